"""The page and the card of a sampler: its samples side by side, its numbers, and what its files may say instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from report_runs import HOSTILE
from test_browser import browse

from attar import api, files
from attar.report import card_text, write_report
from attar.report.charts import scatter
from attar.report.draws import draws, draws_headline, read_rows

PICTURES = {"net": "residual-mlp", "net.width": 8, "net.blocks": 1, "train.steps": 3, "train.batch": 8}
POINTS = {"net": "mlp", "net.width": 8, "net.depth": 1, "train.steps": 3, "train.batch": 8}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return folders of a sampler of digits and of one of points, both evaluated."""
    base = tmp_path_factory.mktemp("samplers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTAR_HOME", str(base / "home"))
        patch.setenv("ATTAR_PROGRESS", "off")
        digits = api.run_result("diffusion", data="digits", out=base / "digits", threads=1, **PICTURES).folder
        ring = api.run_result("diffusion", data="ring", out=base / "ring", threads=1, **POINTS).folder
        api.evaluate(ring, samples=30, steps=(1,), reference_steps=2)
        before = (digits / "report.html").read_text()
        api.evaluate(digits, samples=30, steps=(1, 2), prompts=["3", "7"])
    return digits, ring, before


def evaluation(**arms: dict) -> dict:
    return {"arms": [{"name": name.replace("_", " "), **values} for name, values in arms.items()]}


def test_pictures_stand_side_by_side_and_numbers_above(runs):
    page = (runs[0] / "report.html").read_text()
    assert page.count('alt="3, 1 step, noise ') == page.count('alt="7, 32 steps, noise ') == 4
    assert page.count("<img ") == 2 * 3 * 4
    for head in ("Calls", "Fréchet", "As asked", "High freq."):
        assert f">{head}</th>" in page
    assert "With 1 network call a sample its Fréchet distance to the data is" in page
    assert "Test accuracy" not in page
    assert "in the features of classifier of digits" in page


def test_a_sampler_that_is_not_evaluated_shows_its_preview(runs):
    assert "Made: a sampler. It is not evaluated yet" in runs[2]
    assert 'class="preview" src="data:image/png;base64,' in runs[2]


def test_points_are_plotted_with_one_pair_of_axes(runs):
    page = (runs[1] / "report.html").read_text()
    assert page.count('<path class="points"') == 3  # in one step, in 32, and real ones
    assert "sliced Wasserstein distance" in page
    assert "the ways of the sampler bend by" in page


def test_the_card_has_the_numbers_and_how_to_draw(runs):
    folder = runs[0] / "artifact"
    text = (folder / "README.md").read_text()
    assert "| drawn in | Calls | Time | Fréchet |" in text
    assert "sampler = attar.load('.')" in text
    assert "Test accuracy" not in text
    fresh = card_text(files.read_json(folder / "artifact.json"), files.read_json(runs[0] / "recipe.json"))
    assert "Not evaluated yet" in fresh


@pytest.mark.browser
def test_the_pages_load_without_a_console_error(runs, tmp_path):
    for number, folder in enumerate(runs[:2]):
        dom, console = browse(folder / "report.html", tmp_path / f"profile-{number}", "--dump-dom")
        assert console == []
        assert 'id="samples"' in dom


def test_the_headline_says_the_fewest_calls_and_the_teacher():
    few, many = {"evaluations": 1, "seconds": 0.001, "frechet": 4.0}, {"evaluations": 32, "seconds": 0.03, "frechet": 2}
    told = evaluation(many_steps=many, **{"1_step": few}, **{"teacher,_64_steps": {**many, "evaluations": 64}})
    assert draws_headline(told) == (
        "With 1 network call a sample its Fréchet distance to the data is 4; its teacher comes to 2 with 64, in 30 "
        "times the time."
    )
    assert draws_headline(evaluation(a=many, b=few)).endswith("; it comes to 2 with 32, in 30 times the time.")
    assert draws_headline(evaluation(a=few)).endswith("is 4.")
    assert draws_headline({"arms": []}) == ""


def test_points_outside_are_counted_in_words():
    picture = scatter([(0.0, 0.0), (1.0, -1.0), (3.0, 0.0), (float("nan"), 0.0)], 2.0, "Points", width=200)
    assert "M100.0 100.0h0M150.0 150.0h0" in picture
    assert "2 points, 2 more lie outside" in picture


def test_hostile_files_leave_a_page(runs, tmp_path):
    folder = tmp_path / "run"
    (folder / "artifact").mkdir(parents=True)
    good = files.read_json(runs[0] / "evaluation.json")
    (folder / "recipe.json").write_text((runs[0] / "recipe.json").read_text())
    (folder / "artifact" / "artifact.json").write_text(json.dumps({"kind": "sampler"}))
    odd = [
        None,
        3,
        [],
        {"arms": 5},
        {"arms": ["1 step"], "conditions": None},
        {"arms": [HOSTILE], "conditions": [HOSTILE]},
    ]
    for shown in odd:
        files.write_json(folder / "evaluation.json", {**good, "shown": shown, "protocol": HOSTILE})
        for drawn in ({}, {"arm.0": torch.zeros(3)}, {"arm.0": torch.zeros(1, 1, 7, 4, 4)}, {"data": torch.ones(2, 2)}):
            files.save_tensors(folder / "samples.safetensors", drawn or {"x": torch.zeros(1)})
            assert "<script" not in write_report(folder).read_text()
    (folder / "samples.safetensors").write_bytes(b"damaged")
    assert "The samples could not be shown" in write_report(folder).read_text()
    assert read_rows({"arms": [{"name": 1, "frechet": True}, {"frechet": float("inf")}, None]}) == []


def test_other_artifacts_have_no_samples(tmp_path: Path):
    assert draws({"arms": []}, "student", tmp_path) == {"draws": None}
