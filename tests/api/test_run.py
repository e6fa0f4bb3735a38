"""`attar.run`: one folder a recipe, nothing done twice, nothing overwritten, nothing left behind by a mistake."""

from pathlib import Path

import pytest
import torch

import attar
from attar import api, files
from attar.artifacts import DistilledSet, Selection
from attar.errors import AttarError, RecipeError
from attar.methods.data.dm import DistributionMatching

TINY = {"ipc": 2, "steps": 4, "real_batch": 4, "net.depth": 1, "net.width": 4}


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


def test_a_run_gives_its_artifact_and_leaves_one_folder(pictures, empty_folder):
    made = attar.run("dm", data=pictures, **TINY)
    assert isinstance(made, DistilledSet)
    assert made.images.shape == (6, 1, 8, 8)
    (folder,) = (empty_folder / "runs").iterdir()
    assert folder.name.startswith("dm-")
    held = {path.name for path in folder.iterdir()}
    assert {"recipe.json", "plan.json", "run.json", "metrics.jsonl", "artifact", "report.html"} <= held
    recipe, record = files.read_json(folder / "recipe.json"), files.read_json(folder / "run.json")
    assert folder.name.endswith("-s0-" + recipe["hash"][:8])
    assert (recipe["preset"], recipe["fields"]["steps"], recipe["fields"]["augment"]) == ("small", 4, "dsa")
    assert (record["state"], record["fingerprint"]) == ("finished", made.fingerprint)


def test_a_finished_run_is_reported_and_not_run_again(pictures, monkeypatch):
    first = api.run_result("dm", data=pictures, **TINY)
    monkeypatch.setattr(DistributionMatching, "__call__", lambda *a, **k: pytest.fail("it ran again"))
    second = api.run_result("dm", data=pictures, **TINY)
    assert (first.reused, second.reused) == (False, True)
    assert second.folder == first.folder
    assert second.fingerprint == first.fingerprint == second.artifact.fingerprint
    assert second.seconds == first.seconds
    assert torch.equal(second.artifact.images, first.artifact.images)


@pytest.mark.parametrize("change", [{"seed": 1}, {"steps": 5}, {"net.width": 5}, {"augment": "none"}, {"copy": 1}])
def test_another_recipe_is_another_folder(change, pictures):
    first, second = (api.run_result("dm", data=pictures, **{**TINY, **more}) for more in ({}, change))
    assert second.folder != first.folder
    assert not second.reused
    assert (second.fingerprint == first.fingerprint) == ("copy" in change)  # DM shares no stage with other copies


def test_a_preset_is_a_way_to_write_fields_and_no_part_of_the_recipe(pictures):
    first = api.run_result("dm", data=pictures, **TINY)
    assert api.run_result("dm", data=pictures, preset="paper", **TINY).reused  # every field small sets is given
    assert api.run_result("random", data=pictures, ipc=1).folder != first.folder


def test_how_it_is_run_is_not_part_of_what_is_run(pictures):
    first = api.run_result("dm", data=pictures, **TINY)
    assert api.run_result("dm", data=pictures, threads=2, time=100, **TINY).reused
    assert files.read_json(first.folder / "plan.json")["threads"] == 1


def test_the_same_recipe_gives_the_same_bytes_in_another_folder(pictures):
    first, second = (api.run_result("dm", data=pictures, out=name, **TINY) for name in ("a", "b"))
    assert not second.reused
    assert first.fingerprint == second.fingerprint


def test_a_folder_of_another_recipe_is_refused_and_left_alone(pictures):
    api.run_result("dm", data=pictures, out="mine", **TINY)
    before = {
        name: (Path("mine") / name).read_bytes() for name in ("recipe.json", "run.json", "artifact/artifact.json")
    }
    with pytest.raises(RecipeError, match=r"another recipe \(fields.steps: 4 there, 5 now\).*out="):
        api.run_result("dm", data=pictures, out="mine", **{**TINY, "steps": 5})
    for key in ("seed", "copy"):
        with pytest.raises(RecipeError, match=rf"another recipe \({key}: 0 there, 1 now\)"):
            api.run_result("dm", data=pictures, out="mine", **{**TINY, key: 1})
    with pytest.raises(RecipeError, match=r"id: 'dm' there, 'random' now"):
        api.run_result("random", data=pictures, out="mine")
    assert before == {name: (Path("mine") / name).read_bytes() for name in before}


def test_a_folder_of_another_version_is_refused(pictures, monkeypatch):
    api.run_result("dm", data=pictures, out="mine", **TINY)
    monkeypatch.setattr(DistributionMatching, "version", 7)
    with pytest.raises(RecipeError, match=f"version {1} of 'dm', and this is version 7"):
        api.run_result("dm", data=pictures, out="mine", **TINY)


def test_a_folder_or_file_of_something_else_is_refused(pictures):
    Path("photos").mkdir()
    Path("photos/cat.png").write_bytes(b"cat")
    Path("file").write_text("text")
    for out, message in (("photos", "is no run folder"), ("file", "is a file")):
        with pytest.raises(AttarError, match=message):
            api.run_result("random", data=pictures, ipc=1, out=out)
    assert everything("photos") == ["cat.png"]
    assert Path("file").read_text() == "text"


@pytest.mark.parametrize(
    ("id", "settings", "message"),
    [
        ("dm", {"ipc": 13}, "12 images, 13 were asked for"),
        ("herding", {"ipc": 13}, "12 images, 13 were asked for"),
        ("dm", {"data": "npz:missing.npz"}, "missing.npz"),
        ("dm", {"data": "no-such-data"}, "no-such-data"),
        ("dm", {"stepz": 3}, "did you mean 'steps'"),
        ("dm", {"steps": 0}, "greater than or equal to 1"),
        ("dm", {"steps": "many"}, "steps"),
        ("dm", {"net.width": "wide"}, "net.width"),
        ("dm", {"augment": "blur"}, "unknown augmentation 'blur'"),
        ("dm", {"preset": "smal"}, "did you mean 'small'"),
        ("dm", {"seed": -1}, "whole number"),
        ("dm", {"seed": 1.5}, "whole number"),
        ("dm", {"time": 0}, "seconds above 0"),
        ("dm", {"device": "tpu"}, "device 'tpu'"),
        ("dm", {"data": None}, "data"),
        ("dmm", {}, "did you mean 'dm'"),
        ("dm", {"net": "resnet18", "data": "npz:missing.npz"}, "missing.npz"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing_behind(id, settings, message, pictures, empty_folder):
    given = {"data": pictures, "real_batch": 4, "steps": 2} if id != "herding" else {"data": pictures}
    with pytest.raises(AttarError, match=message):
        api.run_result(id, **{**given, **settings})
    assert everything(empty_folder) == []


def test_an_input_that_is_missing_is_named():
    with pytest.raises(RecipeError, match="needs the input 'data'; add data=fashion-mnist-mini"):
        api.run_result("dm")
    with pytest.raises(RecipeError, match="needs the input 'teacher'; add teacher=resnet20, which is trained first"):
        api.run_result("kd", data="fashion-mnist-mini")


def test_a_time_budget_leaves_a_partial_artifact_that_is_not_taken_for_the_whole(pictures):
    long = {**TINY, "steps": 100_000}
    cut = api.run_result("dm", data=pictures, time=0.2, **long)
    assert cut.state == "partial"
    assert cut.artifact.images.shape == (6, 1, 8, 8)
    assert files.read_json(cut.folder / "run.json")["state"] == "partial"
    assert not api.run_result("dm", data=pictures, time=0.2, **long).reused


def test_data_from_memory_is_known_by_its_content(tiny_images):
    first = api.run_result("random", data=tiny_images(), ipc=2)
    assert isinstance(first.artifact, Selection)
    assert "memory" in first.folder.name
    assert api.run_result("random", data=tiny_images(), ipc=2).reused
    assert not api.run_result("random", data=tiny_images(seed=8), ipc=2).reused
    with pytest.raises(AttarError, match="name the data to judge it on"):
        api.evaluate(first.folder)


def test_arrays_from_python_are_data(tiny_images):
    data = tiny_images()
    made = attar.run("random", data=(data.pixels.numpy(), data.labels.numpy()), ipc=2)
    assert len(made) == 6


# ----------------------------------------------------------------- recipes


def recipe(text):
    path = Path("recipe.yaml")
    path.write_text(text)
    return str(path)


def test_a_recipe_from_a_file_is_the_same_run(pictures):
    path = recipe(f"run: dm\ndata: '{pictures}'\nipc: 2\nsteps: 4\nreal_batch: 4\nnet: {{depth: 1, width: 4}}\n")
    first = api.run_result(path)
    assert api.run_result("dm", data=pictures, **TINY).folder == first.folder
    assert api.run_result(path, seed=3).folder.name.split("-")[-2] == "s3"  # what is named in the call comes last


CHAIN = """
chain:
  few: {run: dm, data: 'DATA', ipc: 4, steps: 2, real_batch: 4, net: {depth: 1, width: 4}}
  fewer: {run: dm, data: $few, ipc: 1, steps: 2, real_batch: 4, net: {depth: 1, width: 4}}
"""


def test_a_chain_hands_earlier_results_on(pictures):
    path = recipe(CHAIN.replace("DATA", pictures))
    last = api.run_result(path)
    assert last.artifact.images.shape == (3, 1, 8, 8)
    few, fewer = (
        files.read_json(run / "recipe.json")
        for run in sorted(Path("runs").iterdir(), key=lambda run: "memory" in run.name)
    )
    (run,) = (run for run in Path("runs").iterdir() if run != last.folder)
    assert few["inputs"] == {"data": pictures}
    assert fewer["inputs"] == {"data": {"fingerprint": files.read_json(run / "run.json")["fingerprint"]}}
    assert api.run_result(path).reused


def test_the_runs_of_a_chain_get_their_names_as_folders_in_the_one_named(pictures):
    last = api.run_result(recipe(CHAIN.replace("DATA", pictures)), out="here")
    assert last.folder == Path("here/fewer")
    assert files.read_json(Path("here/few/run.json"))["state"] == "finished"


def test_a_set_that_goes_into_a_run_is_what_networks_saw_with_its_sources_test_set(pictures):
    from attar import recipes

    real = attar.data.load(pictures)
    for method in ("dm", "random"):
        made = attar.run(method, data=pictures, **(TINY if method == "dm" else {"ipc": 2}))
        splits = recipes.resolve(recipes.make("dm", {"data": made}))[1]
        images = made if method == "dm" else made.distilled(real.train)
        assert torch.allclose(splits.train.normalised(), images.images, atol=1e-5)
        assert splits.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert splits.test.fingerprint == real.test.fingerprint


def test_a_set_that_cannot_stand_for_data_is_refused(pictures, tiny_images):
    made = attar.run("dm", data=pictures, **TINY)
    soft = DistilledSet(made.images, torch.full((6, 3), 1 / 3), attar.data.load(pictures).train)
    with pytest.raises(AttarError, match="soft labels"):
        api.run_result("random", data=soft, ipc=1)
    with pytest.raises(AttarError, match="in memory has no test set"):
        api.run_result("random", data=attar.run("random", data=tiny_images(), ipc=2), ipc=1)


def test_a_reference_becomes_the_earlier_artifact_and_an_unknown_one_is_refused():
    from attar import recipes

    assert recipes.flatten({"data": "$small", "ipc": 2}, {"small": "the artifact"}) == {
        "data": "the artifact",
        "ipc": 2,
    }
    with pytest.raises(RecipeError, match=r"refers to no earlier entry; did you mean 'small'\?"):
        recipes.flatten({"data": "$smal"}, {"small": 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: !!python/object/apply:os.system ['touch hacked']\n", "tags that build Python objects are refused"),
        ("run: dm\ndata: [\n", "not plain YAML"),
        ("chain: {}\n", "'chain' must map names to runs"),
        ("chain: {a: {data: digits}}\n", "entry 'a' needs a mapping with 'run: ID'"),
        ("- run: dm\n", "needs a mapping"),
        ("run: dm\n3: 4\n", "keys are names"),
        ("run: dm\ndata: $other\n", "refers to no earlier entry"),
        ("", "needs a mapping"),
    ],
)
def test_a_recipe_that_is_none_is_refused(text, message, empty_folder):
    with pytest.raises(RecipeError, match=message):
        api.run_result(recipe(text))
    assert everything(empty_folder) == ["recipe.yaml"]


def test_a_missing_recipe_is_refused():
    with pytest.raises(RecipeError, match=r"no\.yaml cannot be read"):
        api.run_result("no.yaml")


def test_a_place_where_no_folder_can_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file" / "run", "/dev/null/run"):
        with pytest.raises(AttarError, match="run"):
            api.run("random", data="digits", out=place)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_mistake_in_the_plan_names_no_page_that_is_not_there(tmp_path):
    with pytest.raises(RecipeError, match="threads") as refused:
        api.run("random", data="digits", out=tmp_path / "run", threads=0)
    assert "attar show" not in str(refused.value)
