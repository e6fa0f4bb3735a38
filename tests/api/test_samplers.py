"""Samplers by the public functions: graded beside their teachers, drawn from by name, refused with a reason."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import attar
from attar import api, demo_sampler, files, sampling
from attar.artifacts import load
from attar.artifacts.sampler import Sampler
from attar.data import Samples
from attar.errors import AttarError, DataError, NonFinite, RecipeError
from attar.generating import exact

POINTS = {"net": "mlp", "net.width": 8, "net.depth": 1, "train.steps": 3, "train.batch": 8}
PICTURES = {"net": "residual-mlp", "net.width": 8, "net.blocks": 1, "train.steps": 3, "train.batch": 8}
FEW = {"samples": 40, "teacher_steps": 3, "reference_steps": 4}


@pytest.fixture
def ring():
    return api.run_result("diffusion", data="ring", **POINTS).folder


@pytest.fixture
def digits(pictures):
    return api.run_result("diffusion", data=pictures, **PICTURES).folder


def test_points_are_measured_in_few_and_many_steps_beside_the_data(ring):
    outcome = attar.evaluate(ring, steps=(1, 2), **FEW)
    assert [arm["name"] for arm in outcome["arms"]] == ["1 step", "2 steps", "32 steps", "data"]
    calls = [arm.get("evaluations") for arm in outcome["arms"]]
    assert calls == [1, 2, 32, None]
    assert all(arm["sliced_wasserstein"] >= 0 and 0 <= arm["coverage"] <= 1 for arm in outcome["arms"])
    assert outcome["protocol"]["endpoints"] == "the exact ODE, Heun, 4 steps"
    assert files.read_json(ring / "evaluation.json") == outcome
    drawn = files.load_tensors(ring / "samples.safetensors")
    assert sorted(drawn) == ["arm.0", "arm.1", "arm.2", "data"]
    again = attar.evaluate(ring, steps="1,2", **FEW)
    untimed = [[{k: v for k, v in arm.items() if k != "seconds"} for arm in one["arms"]] for one in (outcome, again)]
    assert untimed[0] == untimed[1]
    assert attar.evaluate(ring, steps=2, seed=1, **FEW)["arms"][0] != outcome["arms"][1]
    told = attar.compare([ring, ring], out="page.html")
    assert told["runs"][0]["sliced_wasserstein"] >= 0
    assert told["runs"][0]["steps"] == 2
    assert "accuracy" not in told["runs"][0]
    assert "None of these runs has a test accuracy" in Path("page.html").read_text()


@pytest.mark.parametrize(
    "given",
    [
        {"nets": ["mlp"]},
        {"networks": 3},
        {"search": True},
        {"protocol": "nonsense"},
        {"baselines": ["random"]},
        {"continual": 2},
    ],
)
def test_what_says_nothing_of_a_sampler_is_refused(given):
    with pytest.raises(RecipeError, match=f"a sampler is evaluated without '{next(iter(given))}'; leave it out"):
        attar.evaluate(exact(Samples.of("ring")), **given)


def test_a_student_stands_beside_the_teacher_it_was_made_with(ring):
    tiny = {key: value for key, value in POINTS.items() if not key.startswith("net")}
    folder = api.run_result("consistency", data="ring", teacher=str(ring), **tiny).folder
    outcome = attar.evaluate(folder, **FEW)
    assert outcome["arms"][-2]["name"] == "teacher, 3 steps"
    assert outcome["protocol"]["endpoints"] == "the teacher's ODE, Heun, 4 steps"
    taught_on_the_way = api.run_result(
        "consistency", data="ring", **tiny, **{f"teaching.{key}": value for key, value in POINTS.items()}
    ).folder
    outcome = attar.evaluate(taught_on_the_way, **FEW)  # its teacher is in the cache of stages
    assert outcome["arms"][-2]["name"] == "teacher, 3 steps"
    named = attar.evaluate(taught_on_the_way, teacher=[str(ring)], **FEW)
    assert named["arms"][-2]["sliced_wasserstein"] != outcome["arms"][-2]["sliced_wasserstein"]
    with pytest.raises(AttarError, match="not there any more"):
        attar.evaluate(folder, teacher="runs/gone", **FEW)


def test_pictures_are_measured_in_the_features_of_a_classifier_and_shown_in_all_arms(digits, pictures):
    outcome = attar.evaluate(digits, steps=(1,), prompts=["2", "0"], **FEW)
    for arm in outcome["arms"]:
        assert {"frechet", "kernel", "coverage", "accuracy", "high_frequencies"} <= arm.keys()
    data = outcome["arms"][-1]
    assert data["name"] == "data"
    assert data["accuracy"] > 0.9
    assert data["frechet"] < outcome["arms"][0]["frechet"]
    assert outcome["protocol"]["judge_accuracy"] > 0.9
    assert outcome["protocol"]["reference"] == "18 test pictures"
    assert outcome["shown"] == {"conditions": ["2", "0"], "arms": ["1 step", "32 steps"]}
    drawn = files.load_tensors(digits / "samples.safetensors")
    assert drawn["arm.0"].shape == (2, 4, 1, 8, 8)
    assert drawn["arm.0"].dtype == torch.uint8
    assert attar.evaluate(digits, steps=(1,), prompts=2, **FEW)["shown"]["conditions"] == ["2"]
    with pytest.raises(DataError, match="draws no '11'; did you mean '1'"):
        attar.evaluate(digits, prompts=["11"], **FEW)
    with pytest.raises(DataError, match="name the data it was trained for"):
        attar.evaluate(digits, data="digits", **FEW)


def test_a_picture_is_drawn_by_name_with_a_row_for_each(digits, empty_folder):
    told = attar.sample(digits, ["1", "0"], n=3, steps=2, out=empty_folder / "drawn.png")
    assert told["conditions"] == ["1", "0"]
    assert (told["samples"], told["steps"], told["evaluations"]) == (6, 2, 2.0)
    assert told["seconds"] > 0
    picture = Image.open(told["path"])
    assert picture.size == (3 * 130 + 2, 2 * 130 + 2)
    same = attar.sample(digits, ["1", "0"], n=3, steps=2, out="again.png")
    assert np.array_equal(np.asarray(picture), np.asarray(Image.open(same["path"])))
    other = attar.sample(digits, ["1", "0"], n=3, steps=2, seed=1)
    assert other["path"].endswith("samples/1-0-2-s1-n3.png")
    assert not np.array_equal(np.asarray(picture), np.asarray(Image.open(other["path"])))


def test_what_is_asked_for_differently_is_written_elsewhere(digits):
    first = attar.sample(digits, ["1", "0"], steps=1)
    kept = Path(first["path"]).read_bytes()
    assert (Path(first["path"]).name, first["guidance"]) == ("1-0-1-s0.png", 1.0)
    others = [attar.sample(digits, ["1", "0"], steps=1, **more) for more in ({"n": 4}, {"guidance": 12})]
    assert [Path(told["path"]).name for told in others] == ["1-0-1-s0-n4.png", "1-0-1-s0-g12.png"]
    assert others[1]["guidance"] == 12
    assert Path(first["path"]).read_bytes() == kept
    assert attar.sample(digits, ["1", "0"], steps=1)["path"] == first["path"]  # the same again


def test_names_of_files_tell_texts_apart_that_no_file_name_can_hold():
    long = "a very long text " * 5
    asked = [[], ["any"], ["красный"], ["синий"], ["red apple"], ["red", "apple"], ["Red", "apple"], [""]]
    asked += [[long + "red"], [long + "blue"], ["red-apple"], ["red", "", "apple"]]
    names = [sampling._name(texts, 8, 4, 0, None) for texts in asked]
    assert len(set(names)) == len(names)
    assert names[0] == "any-4-s0"
    assert re.fullmatch("any-4-s0-[0-9a-f]{6}", names[2])
    assert names[5] == "red-apple-4-s0"
    assert sampling._name(["красный"], 8, 4, 0, 2.0) != sampling._name(["красный"], 8, 4, 0, 2.5)
    assert max(map(len, names)) < 80


def test_points_are_drawn_into_a_file_of_numbers(ring, empty_folder):
    told = attar.sample(ring, n=5, out="points.npz")
    assert np.load(told["path"])["samples"].shape == (1, 5, 2)
    with pytest.raises(AttarError, match="points are written as"):
        attar.sample(ring, out="points.png")


def test_mistakes_are_named(digits, pictures, empty_folder):
    (empty_folder / "there.png").write_text("mine")
    for given, message in (
        ({"prompts": "11"}, "draws no '11'; did you mean '1'[?] It draws: 0, 1, 2"),
        ({"n": 0}, "at least one sample, in at least one step; got 0 samples"),
        ({"steps": 0}, "got 0 steps"),
        ({"out": "there.png"}, "exists and is not overwritten"),
        ({"out": "a.jpg"}, "pictures are written as .png or .npz"),
    ):
        with pytest.raises(AttarError, match=message):
            attar.sample(digits, **given)
    assert (empty_folder / "there.png").read_text() == "mine"
    student = api.run_result("dm", data=pictures, ipc=1, steps=1, real_batch=4, **{"net.depth": 1, "net.width": 4})
    with pytest.raises(AttarError, match="holds a distilled-set; only samplers are drawn from"):
        attar.sample(student.folder)
    with pytest.raises(AttarError, match="holds no artifact"):
        attar.sample("nowhere")


def test_the_closed_form_of_the_data_is_a_sampler():
    sampler = exact(Samples.of("ring"))
    assert isinstance(sampler, Sampler)
    x = sampler(16, torch.full((16,), 3), steps=64)
    mode = Samples.of("ring").mixture.means[3].float()
    assert (x - mode).norm(dim=1).max() < 0.5
    with pytest.raises(DataError, match="no closed form"):
        exact(Samples.of("checkerboard"))


def test_any_text_is_drawn_where_captions_were_read_by_the_packaged_encoder(tiny_images, monkeypatch, tmp_path):
    from attar.artifacts.sampler import Reading
    from attar.data import captions, texts
    from attar.diffusion.specs import FlowProcess
    from attar.nets.denoiser_specs import ResidualMLP

    class Reader:
        fingerprint = "reader"

        def __call__(self, given):
            return torch.tensor([[float(len(text)), float("red" in text)] for text in given])

    monkeypatch.setattr(texts, "_encoder", Reader)
    data = Samples.of(captions.captioned(tiny_images(each=2), ["red apple", "dog", "sun", "cat", "red", "moon"]))
    reading = Reading(process=FlowProcess(), prediction="velocity")
    sampler = Sampler.fresh(ResidualMLP(width=8, blocks=1), data, reading, torch.Generator().manual_seed(0))
    root = 2**0.5
    known, other = sampling.condition_of(sampler, ["dog"]), sampling.condition_of(sampler, ["red dog", "dog"])
    torch.testing.assert_close(known, torch.tensor([[root, 0.0]]))
    torch.testing.assert_close(other, torch.tensor([[7 / 5, 1 / 5], [root, 0.0]]))
    told = attar.sample(sampler, "red dog", n=2, out=tmp_path / "dog.png")
    assert json.loads(json.dumps(told))["conditions"] == ["red dog"]
    assert told["nearest"] == {"red dog": "red apple"}  # (7, 1) is nearest in angle to (9, 1)
    sampler.vectors = sampler.vectors + 1  # another encoder's
    with pytest.raises(DataError, match="not read by the packaged MiniLM"):
        sampling.condition_of(sampler, ["red dog"])


def test_the_demo_makes_teacher_student_and_page_once(pictures, monkeypatch, capsys):
    small = {"train.steps": 3, "train.batch": 8}
    monkeypatch.setattr(demo_sampler, "TEACHER", {**demo_sampler.TEACHER, "net.width": 8, "net.blocks": 1, **small})
    monkeypatch.setattr(demo_sampler, "STUDENT", {**demo_sampler.STUDENT, **small})
    monkeypatch.setattr(demo_sampler, "SAMPLES", 20)
    demo_sampler.main(["--data", pictures, "--out", "demo"])
    first = capsys.readouterr().out
    assert "teacher, 32 steps" in first
    page = Path(first.split("page: ")[1].strip())
    assert page.name == "report.html"
    assert files.read_json(page.parent / "evaluation.json")["protocol"]["teacher_guidance"] == 2.0
    before = page.stat().st_mtime_ns
    demo_sampler.main(["--data", pictures, "--out", "demo"])
    assert page.stat().st_mtime_ns == before
    with pytest.raises(SystemExit) as end:
        demo_sampler.main(["--data", "no-such-data"])
    assert end.value.code == 2


STUDENT = {key: value for key, value in POINTS.items() if not key.startswith("net")}


def ring_teacher(folder, **changes):
    shutil.rmtree(folder, ignore_errors=True)
    return api.run_result("diffusion", data="ring", out=folder, **{**POINTS, **changes})


def test_a_run_notes_who_taught_it_and_where_outside_of_what_is_hashed(empty_folder):
    teacher = ring_teacher("tt").fingerprint
    made = api.run_result("consistency", data="ring", teacher="tt", **STUDENT)
    recipe = files.read_json(made.folder / "recipe.json")
    assert recipe["inputs"]["teacher"] == "tt"
    assert recipe["origins"] == {"teacher": {"path": str(empty_folder / "tt"), "fingerprint": teacher}}
    assert files.read_json(made.folder / "artifact" / "artifact.json")["parents"]["teacher"] == teacher
    ring_teacher("other", seed=1)
    by_path = api.run_result("consistency", data="ring", teacher="other", out="by-path", **STUDENT)
    in_memory = api.run_result("consistency", data="ring", teacher=load("other"), out="in-memory", **STUDENT)
    assert by_path.artifact.parents == in_memory.artifact.parents != made.artifact.parents


def test_a_finished_run_is_not_reported_for_another_teacher_at_the_same_place(capsys):
    ring_teacher("tt")
    first = api.run_result("consistency", data="ring", teacher="tt", out="ss", **STUDENT)
    ring_teacher("tt", seed=1)
    with pytest.raises(RecipeError, match=r"another teacher: .*tt held \w{12}… then, .*tt holds .*now.*out=FOLDER"):
        api.run_result("consistency", data="ring", teacher="tt", out="ss", **STUDENT)
    shutil.rmtree("tt")
    capsys.readouterr()
    assert api.run_result("consistency", data="ring", teacher="tt", out="ss", **STUDENT).reused
    assert "the teacher of ss is not there any more" in capsys.readouterr().err
    recipe = files.read_json(first.folder / "recipe.json")
    ring_teacher("tt", seed=1)
    files.write_json(first.folder / "recipe.json", {k: v for k, v in recipe.items() if k != "origins"})
    assert api.run_result("consistency", data="ring", teacher="tt", out="ss", **STUDENT).reused  # nothing was noted


def test_a_stopped_run_does_not_go_on_with_another_teacher():
    ring_teacher("tt")
    long = {**STUDENT, "train.steps": 100_000, "time": 0.2}
    assert api.run_result("consistency", data="ring", teacher="tt", out="ss", **long).state == "partial"
    ring_teacher("tt", **{"net.width": 16})
    with pytest.raises(RecipeError, match="another teacher"):
        api.run_result("consistency", data="ring", teacher="tt", out="ss", **long)
    shutil.rmtree("tt")
    with pytest.raises(RecipeError, match="it holds none now; put it back"):
        api.run_result("consistency", data="ring", teacher="tt", out="ss", **long)


def test_a_run_may_have_the_name_of_its_data():
    assert not api.run_result("diffusion", data="ring", out="ring", **POINTS).reused
    assert api.run_result("diffusion", data="ring", out="ring", **POINTS).reused
    assert files.read_json(Path("ring/recipe.json"))["origins"] == {}


def test_a_low_rank_student_outlives_the_cache_of_stages_and_is_exported_whole(digits, pictures, tmp_path):
    settings = {**{f"teaching.{key}": value for key, value in PICTURES.items()}, **STUDENT, "steps": 2, "out": "thin"}
    settings |= {"lora.rank": 2, "lora.layers": "all"}
    made = api.run_result("lora-distillation", data=pictures, **settings)
    shutil.rmtree(tmp_path / "home")
    assert api.run_result("lora-distillation", data=pictures, **settings).reused
    told = attar.sample("thin", ["1"], n=2)
    attar.export("thin", "sampler", "whole")
    shutil.rmtree("thin/artifact/base")
    assert (type(load("whole")), load("whole").parents) == (Sampler, made.artifact.parents)
    again = attar.sample("whole", ["1"], n=2)
    drawn, anew = (np.asarray(Image.open(one["path"])).astype(int) for one in (told, again))
    assert abs(drawn - anew).max() <= 1
    with pytest.raises(AttarError, match="which is not there; put it back"):
        attar.sample("thin")
    with pytest.raises(AttarError, match="only samplers are exported as sampler"):
        attar.export(api.run_result("random", data=pictures, ipc=1).folder, "sampler", "no")


def test_a_former_evaluation_is_kept_where_it_tells_something_else(ring):
    first = attar.evaluate(ring, steps=(1, 2), **FEW)
    drawn = files.load_tensors(ring / "samples.safetensors")
    attar.evaluate(ring, steps=(1, 2), **FEW)  # the same, but for the seconds
    assert not (ring / "evaluation-1.json").exists()
    second = attar.evaluate(ring, steps=(1,), **FEW)
    third = attar.evaluate(ring, steps=(2,), **FEW)
    kept = [files.read_json(ring / f"evaluation{name}.json") for name in ("-1", "-2", "")]
    assert [one["protocol"]["steps"] for one in kept] == [[1, 2], [1], [2]]
    assert (kept[0]["arms"][0]["name"], kept[1:]) == (first["arms"][0]["name"], [second, third])
    assert files.load_tensors(ring / "samples-1.safetensors").keys() == drawn.keys()
    assert "2 steps" in (ring / "report.html").read_text()
    (ring / "evaluation.json").write_text("{")
    attar.evaluate(ring, steps=(1,), **FEW)
    assert (ring / "evaluation-3.json").read_text() == "{"


def test_a_run_finds_its_teacher_from_any_folder_and_is_measured_without_one_that_is_gone(
    empty_folder, monkeypatch, capsys
):
    ring_teacher("tt")
    folder = api.run_result("consistency", data="ring", teacher="tt", out="ss", **STUDENT).folder
    (empty_folder / "mine").mkdir()
    monkeypatch.chdir(empty_folder / "mine")
    assert attar.evaluate("../ss", **FEW)["arms"][-2]["name"] == "teacher, 3 steps"
    monkeypatch.chdir(empty_folder)
    ring_teacher("tt", seed=1)  # another one
    capsys.readouterr()
    for told in ("goes on without the teacher of ss, which is not in .*tt any more", "the teacher tt is not there"):
        arms = [arm["name"] for arm in attar.evaluate(folder, **FEW)["arms"]]
        assert not any("teacher" in name for name in arms)
        assert re.search(told, capsys.readouterr().err)
        shutil.rmtree("tt", ignore_errors=True)  # and of a run that did not note its place
        recipe = files.read_json(folder / "recipe.json")
        files.write_json(folder / "recipe.json", {key: recipe[key] for key in recipe if key != "origins"})


def test_a_run_that_is_not_finished_is_called_so(ring):
    shutil.rmtree(ring / "artifact")
    with pytest.raises(AttarError, match="holds no artifact"):
        attar.sample(ring)
    record = files.read_json(ring / "run.json")
    files.write_json(ring / "run.json", {**record, "state": "running"})
    for use in (attar.sample, attar.evaluate):
        with pytest.raises(AttarError, match=r"a run that is not finished.*the same 'attar run' command goes on"):
            use(ring)


def test_a_sampler_that_skipped_most_of_its_steps_is_no_finished_run():
    wild = {**POINTS, "train.steps": 30, "train.optimizer.lr": 1e30}
    with pytest.raises(NonFinite, match=r"train.optimizer.lr, or leave such steps out with train.skip_nonfinite=yes"):
        api.run_result("diffusion", data="ring", **wild)
    with pytest.raises(NonFinite, match=r"of 30 steps of learner 'denoiser' were left out.*Lower the learning rate"):
        api.run_result("diffusion", data="ring", **wild, **{"train.skip_nonfinite": True})
