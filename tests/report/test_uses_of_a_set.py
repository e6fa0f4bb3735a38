"""The page tells what a set was worth as a memory and for choosing a network, whatever the files hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from report_runs import HOSTILE, evaluation, write

from attar.report import write_report
from attar.report.uses import uses


def arms(*accuracies: float) -> list[dict[str, Any]]:
    return [{"name": name, "accuracy": value} for name, value in zip(("distilled", "full"), accuracies, strict=True)]


CONTINUAL = {
    "order": 0,
    "steps": [
        {"classes": ["shirt", "bag"], "seen": 2, "arms": arms(0.9, 0.96)},
        {"classes": ["coat"], "seen": 3, "arms": arms(0.7, 0.88)},
    ],
    "average": {"distilled": 0.8, "full": 0.92},
}
SEARCH = {
    "nets": [
        {"net": "convnet-1", "distilled": 0.71, "full": 0.85},
        {"net": "convnet-2", "distilled": 0.7, "full": 0.9},
    ],
    "correlation": {"distilled": -1.0},
    "chosen": {"distilled": {"net": "convnet-1", "accuracy": 0.85}, "full": {"net": "convnet-2", "accuracy": 0.9}},
}


def text_of(folder: Path) -> str:
    markup = write_report(folder).read_text(encoding="utf-8")
    return " ".join(re.sub(r"<[^>]+>", " ", markup).replace("\u202f", " ").split())


def test_both_uses_stand_on_the_page_with_their_numbers(run_folder: Path) -> None:
    write(run_folder / "evaluation.json", {**evaluation(), "continual": CONTINUAL, "search": SEARCH})
    text = text_of(run_folder)
    assert "Classes in steps" in text
    assert "2 shirt, bag 90.0 96.0" in text
    assert "Average 80.0 92.0" in text
    assert "distilled -1.00 convnet-1 85.0" in text
    assert "full – convnet-2 90.0" in text
    assert "convnet-2 70.0 90.0" in text


def test_a_run_judged_without_them_has_no_such_section(run_folder: Path) -> None:
    text = text_of(run_folder)
    assert "Classes in steps" not in text
    assert "Choosing a network" not in text
    assert uses(evaluation()) == {"continual": None, "search": None}


@pytest.mark.parametrize("wrong", [None, 7, "text", [], [None], {"x": 1}, {"net": []}, float("nan"), True])
def test_values_of_any_type_give_a_page(run_folder: Path, wrong: object) -> None:
    for part, whole in (("continual", CONTINUAL), ("search", SEARCH)):
        for key in whole:
            told = {**evaluation(), part: {**whole, key: wrong}}
            (run_folder / "evaluation.json").write_text(json.dumps(told))
            assert "Provenance" in text_of(run_folder)
        write(run_folder / "evaluation.json", {**evaluation(), part: wrong})
        assert "Provenance" in text_of(run_folder)
    nested = {**SEARCH, "nets": [{"net": wrong, "distilled": wrong, "full": 0.5}], "chosen": {"distilled": wrong}}
    write(run_folder / "evaluation.json", {**evaluation(), "search": nested})
    assert "Provenance" in text_of(run_folder)


def test_hostile_names_are_inert(run_folder: Path) -> None:
    hostile = json.loads(json.dumps({"continual": CONTINUAL, "search": SEARCH}).replace("distilled", "NAME"))
    hostile = json.loads(json.dumps(hostile).replace("NAME", json.dumps(HOSTILE)[1:-1]).replace("shirt", "<b>"))
    write(run_folder / "evaluation.json", {**evaluation(), **hostile})
    markup = write_report(run_folder).read_text(encoding="utf-8")
    assert "<script>" not in markup
    assert "<b>," not in markup
    assert "&lt;script&gt;" in markup
