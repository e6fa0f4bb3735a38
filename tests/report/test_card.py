from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from report_runs import HOSTILE, evaluation

from attar.artifacts import load
from attar.report import card_text
from attar.report.card import DOCUMENTATION


def card(folder: Path, measured: Any = None, **more: Any) -> str:
    artifact = json.loads((folder / "artifact" / "artifact.json").read_text())
    return card_text(artifact | more, json.loads((folder / "recipe.json").read_text()), measured)


def test_the_card_holds_the_numbers(run_folder: Path) -> None:
    text = card(run_folder, evaluation())
    assert "| distilled | 77.0 ± 1.0 | 74.5 to 79.5 | 3 | 100 | 78.4 kB | 3,000 | 12.3 |" in text
    assert "- With resnet18 (norm batch): distilled 77.0, random 72.2" in text
    assert "epochs 300" in text


def test_without_an_evaluation_the_card_says_so(run_folder: Path) -> None:
    text = card(run_folder)
    assert "Not evaluated yet" in text
    assert "## Numbers" not in text


def test_the_snippet_of_the_card_runs(run_folder: Path) -> None:
    code = (
        card(run_folder)
        .partition("```python\n")[2]
        .partition("```")[0]
        .replace("'.'", repr(str(run_folder / "artifact")))
    )
    names: dict[str, Any] = {}
    exec(code, names)  # our own text
    assert names["images"].shape == load(run_folder).images.shape


def test_silence_is_shown_and_what_is_stated_is_kept(run_folder: Path) -> None:
    assert card(run_folder).count("| not stated |") == len(DOCUMENTATION)
    told = card(run_folder, documentation={"licence": "MIT", "annotation": ""})
    assert told.count("| not stated |") == len(DOCUMENTATION) - 1
    assert "| MIT |" in told


def test_hostile_names_stay_text(run_folder: Path) -> None:
    hostile = f"{HOSTILE}\n# [a](http://b) | `c` ---"
    text = card(
        run_folder, evaluation() | {"protocol": {hostile: hostile}}, classes=[hostile], provenance={"x": hostile}
    )
    assert "<script" not in text
    assert "<img" not in text
    assert "\n# [" not in text
    assert "[a](" not in text.replace("\\[", "")


def test_the_head_is_yaml_whatever_the_names(run_folder: Path) -> None:
    recipe = {"id": '---\nevil: "yes"', "inputs": {"data": "x: y # z"}}
    head = yaml.safe_load(card_text({"kind": "distilled-set"}, recipe).split("\n---\n")[0].removeprefix("---\n"))
    assert set(head) == {"pretty_name", "tags"}
    assert head["tags"] == ["attar", "dataset-distillation"]
