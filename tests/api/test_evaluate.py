"""`attar.evaluate`, `attar.compare` and the demo: what is judged, what is written, and what it is called."""

from pathlib import Path

import pytest

import attar
from attar import api, demo, files
from attar.errors import AttarError

TINY = {"ipc": 2, "steps": 4, "real_batch": 4, "net.depth": 1, "net.width": 4}
FAST = {"networks": 2, "training.epochs": 2}


def test_a_run_folder_is_judged_against_random_and_full_and_keeps_the_result(pictures):
    folder = api.run_result("dm", data=pictures, **TINY).folder
    report = (folder / "report.html").read_bytes()
    outcome = attar.evaluate(folder, **FAST)
    assert [arm["name"] for arm in outcome["arms"]] == ["distilled", "random", "full"]
    assert all(0 <= arm["accuracy"] <= 1 and len(arm["accuracies"]) == 2 for arm in outcome["arms"])
    assert outcome["data"] == pictures
    assert outcome["protocol"]["net"]["width"] == 4  # the network the images were made with
    assert files.read_json(folder / "evaluation.json") == outcome
    assert (folder / "report.html").read_bytes() != report
    assert attar.evaluate(folder, **FAST)["arms"][0]["accuracies"] == outcome["arms"][0]["accuracies"]


def test_a_selection_and_a_set_in_memory_are_judged_alike(pictures):
    selection = attar.run("random", data=pictures, ipc=2)
    images = selection.distilled(attar.data.load(pictures).train)
    given = {"net": "mlp", "baselines": ("random",), **FAST}
    chosen = attar.evaluate(selection, **given)
    held = attar.evaluate(images, **given)
    assert [arm["name"] for arm in chosen["arms"]] == ["selected", "random"]
    assert [arm["name"] for arm in held["arms"]] == ["distilled", "random"]
    assert chosen["arms"][0]["accuracies"] == held["arms"][0]["accuracies"]
    assert chosen["arms"][1]["accuracies"] == held["arms"][1]["accuracies"]
    assert chosen["arms"][0]["bytes"] < held["arms"][0]["bytes"]


def test_an_artifact_folder_is_judged_without_writing_into_it(pictures):
    folder = api.run_result("dm", data=pictures, **TINY).folder / "artifact"
    before = sorted(path.name for path in folder.iterdir())
    attar.evaluate(folder, baselines=(), net="mlp", **FAST)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_other_architectures_come_as_a_cross_table(pictures):
    folder = api.run_result("dm", data=pictures, **TINY).folder
    outcome = attar.evaluate(folder, nets=["mlp"], **FAST)
    assert [arm["name"] for arm in outcome["cross"][0]["arms"]] == ["distilled", "random"]


def test_a_folder_that_is_no_run_is_refused(empty_folder):
    with pytest.raises(AttarError, match="nowhere"):
        attar.evaluate("nowhere")
    with pytest.raises(AttarError, match="is no run folder"):
        attar.compare(["nowhere"])
    with pytest.raises(AttarError, match="at least one"):
        attar.compare([])
    assert list(empty_folder.iterdir()) == []


def test_comparing_tells_what_differs_and_the_numbers(pictures):
    first, second = (api.run_result("dm", data=pictures, seed=seed, **TINY).folder for seed in (0, 1))
    third = api.run_result("random", data=pictures, ipc=2).folder
    outcome = attar.evaluate(first, **FAST)
    table = attar.compare([first, second])
    assert table["differs"] == ["seed"]
    assert [row["seed"] for row in table["runs"]] == [0, 1]
    assert table["runs"][0]["accuracy"] == outcome["arms"][0]["accuracy"]
    assert "accuracy" not in table["runs"][1]
    assert {"id", "steps", "net.width"} <= set(attar.compare([first, third])["differs"])


# -------------------------------------------------------------------- demo


@pytest.fixture
def tiny_demo(pictures, monkeypatch):
    run_result, evaluate, calls = api.run_result, api.evaluate, []

    def tiny_run(id, **settings):
        calls.append((id, settings["data"], settings["ipc"]))
        return run_result(id, **{**settings, **TINY, "data": pictures})

    monkeypatch.setattr(api, "run_result", tiny_run)
    monkeypatch.setattr(
        api, "evaluate", lambda folder, networks: evaluate(folder, networks=networks, **{"training.epochs": 2})
    )
    return calls


def test_the_demo_writes_a_summary_and_says_where_the_report_lies(tiny_demo, capsys):
    demo.main()
    summary = files.read_json(Path("runs/demo/summary.json"))
    assert tiny_demo == [("dm", "fashion-mnist-mini", 10)]
    assert set(summary) == {"distilled", "random", "full", "networks", "seconds"}
    assert all(0 <= summary[arm] <= 1 for arm in ("distilled", "random", "full"))
    assert summary["networks"] == demo.NETWORKS
    assert summary["seconds"] > 0
    judged = files.read_json(Path("runs/demo/evaluation.json"))
    assert summary["distilled"] == judged["arms"][0]["accuracy"]
    said = capsys.readouterr().out
    assert said.rstrip().endswith(f"report: {Path('runs/demo/report.html').resolve()}")
    assert Path("runs/demo/report.html").exists()
    for word in ("distilled", "random", "full"):
        assert word in said


def test_the_second_demo_starts_at_once(tiny_demo, monkeypatch):
    demo.main()
    summary = Path("runs/demo/summary.json").read_bytes()
    monkeypatch.setattr(api, "evaluate", lambda *a, **k: pytest.fail("it was judged again"))
    demo.main()
    assert Path("runs/demo/summary.json").read_bytes() == summary


def test_a_mistake_in_the_demo_is_one_line_and_code_two(capsys):
    Path("runs").mkdir()
    Path("runs/demo").write_text("in the way")
    with pytest.raises(SystemExit) as end:
        demo.main()
    assert end.value.code == 2
    assert "is a file" in capsys.readouterr().err
