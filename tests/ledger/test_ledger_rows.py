"""The ledger is complete, and status and verdict are derived, never typed."""

from __future__ import annotations

import hashlib
import importlib
import re
import subprocess
import sys
import tomllib
from collections import Counter

import pytest

from attar import catalogue, ledger, results
from attar.errors import RecipeError

DECIDED = {"verdict": "holds", "effect": 0.1, "interval": [0.05, 0.15], "stale": False}


def test_the_124_systems_of_the_project_are_all_there_and_no_other():
    ids = sorted(row.id for row in ledger.rows() if not row.base)
    assert len(ids) == 124
    # SHA-256 of the sorted ids, one a line, of the list that the project was given.
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()
    assert digest == "8871497cd23c4356bb26bad2768c951f1b3b263e689a11fae1ee25f972169205"
    assert Counter(row.family for row in ledger.rows() if not row.base) == {
        "sampler-trajectory": 22,
        "model-vision": 20,
        "data-efficiency": 19,
        "dense-imaging": 19,
        "sampler-distribution": 18,
        "data-distillation": 13,
        "model-language": 13,
    }


def test_ids_are_unique_and_can_be_typed():
    ids = [row.id for row in ledger.rows()]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]*", id) for id in ids)


def test_every_system_names_its_paper():
    for row in ledger.rows():
        if not row.base:
            assert re.match(r"arXiv \d{4}\.\d{4,5}\b.*, .*\d{4}", row.paper), row


def test_nothing_derived_is_typed_into_the_file():
    with (ledger._PACKAGE / "systems.toml").open("rb") as file:
        keys = {key for row in tomllib.load(file)["system"] for key in row}
    assert keys <= {"id", "title", "family", "paper", "base", "method", "objective", "claim"}


def test_the_bases_of_data_distillation_stand_beside_the_systems():
    bases = {row.id for row in ledger.rows() if row.base}
    assert {"random", "herding", "kcenter", "dc", "dsa", "dm"} <= bases


def test_each_path_whose_module_exists_names_a_class_that_leads_back_to_its_row():
    paths = {path: row.id for row in ledger.rows() for path in (row.code, row.claim) if path and ledger.exists(path)}
    for path, id in paths.items():
        cls = ledger.load_path(path)
        assert isinstance(cls, type), path
        assert ledger.id_of(cls) == id


def test_the_nearest_id_is_named_for_a_misspelt_one():
    with pytest.raises(
        RecipeError, match=r"unknown method 'datdam'; did you mean 'datadam'\? 'attar systems' lists all"
    ):
        ledger.find("datdam")


def test_a_planned_system_is_refused_with_its_title():
    planned = next(row for row in ledger.rows() if ledger.status(row, {}) == "planned")
    with pytest.raises(RecipeError, match=re.escape(planned.title)):
        ledger.method_class(planned.id)
    with pytest.raises(RecipeError, match="has no claim to check; 'attar claim' lists all"):
        ledger.claim_class(planned.id)


def test_a_misspelt_claim_names_the_nearest():
    with pytest.raises(RecipeError, match=r"there is no claim 'constant-memroy'; did you mean 'constant-memory'\?"):
        ledger.claim_class("constant-memroy")


def test_every_row_with_a_claim_file_is_listed_and_so_are_the_claims_of_no_system():
    listed = [row["id"] for row in ledger.claimed()]
    assert {"dm", "constant-memory"} <= set(listed)
    assert "random" not in listed  # a base without a claim
    assert all(ledger.claim_path(id) for id in listed)


def row(**changes) -> ledger.System:
    values = {"id": "x", "title": "X", "family": "data-distillation", "method": "attar.ledger:System"}
    return ledger.System(**{**values, **changes})


CLAIM = "attar.results:results"


@pytest.mark.parametrize(
    ("changes", "results", "status"),
    [
        ({"method": None}, {}, "planned"),
        ({"method": "attar.nowhere:X"}, {"x": DECIDED}, "planned"),  # results without code decide nothing
        ({"method": "other.ledger:X"}, {}, "planned"),
        ({}, {}, "partial"),
        ({"base": True}, {}, "works"),
        ({"claim": CLAIM}, {}, "partial"),
        ({"claim": CLAIM, "base": True}, {}, "partial"),
        ({"claim": CLAIM}, {"y": DECIDED}, "partial"),
        ({"claim": CLAIM}, {"x": DECIDED}, "works"),
        ({"claim": CLAIM}, {"x": {**DECIDED, "verdict": "inconclusive"}}, "works"),
        ({"claim": CLAIM}, {"x": {**DECIDED, "verdict": "fails"}}, "works"),
        ({"claim": CLAIM}, {"x": {**DECIDED, "stale": True}}, "partial"),
        ({"claim": CLAIM}, {"x": {**DECIDED, "verdict": None}}, "partial"),
        ({"method": None, "objective": "attar.ledger:System", "claim": CLAIM}, {"x": DECIDED}, "works"),
    ],
)
def test_status_follows_from_the_code_that_exists_and_from_fresh_results(changes, results, status):
    assert ledger.status(row(**changes), results) == status


def test_a_row_carries_the_numbers_of_its_result():
    described = ledger.describe(row(claim=CLAIM), {"x": DECIDED})
    assert (described["status"], described["verdict"], described["effect"]) == ("works", "holds", 0.1)
    assert described["interval"] == [0.05, 0.15]
    bare = ledger.describe(row(), {})
    assert (bare["verdict"], bare["effect"], bare["interval"], bare["stale"]) == (None, None, None, False)


def test_a_family_is_filtered_and_a_wrong_one_is_refused():
    assert {row["family"] for row in ledger.systems("model-language")} == {"model-language"}
    with pytest.raises(RecipeError, match="did you mean 'model-vision'"):
        ledger.systems("model-vison")


def test_reading_the_ledger_loads_no_torch():
    code = "import sys; from attar import ledger; ledger.systems(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_dotted_path_is_found_as_a_module_or_as_a_package():
    assert ledger.exists("attar.ledger:System")
    assert ledger.exists("attar.methods:X") == (importlib.util.find_spec("attar.methods") is not None)
    assert not ledger.exists("attar.ledger.inner:X")
    assert not ledger.exists(None)


def test_an_entry_shows_the_values_of_nested_specs_as_the_method_sets_them():
    fields = {field["name"]: field for field in catalogue.entry("dm")["fields"]}
    assert fields["optimizer.lr"]["default"] == 1.0  # the method's, not the optimizer's own 0.01
    assert fields["net"]["default"] == "convnet"
    assert fields["ipc"] == {"name": "ipc", "default": 10, "type": "int", "range": "≥ 1", "note": "images per class"}
    assert "optimizer.kind" not in fields


def test_every_system_with_code_explains_itself():
    for row in ledger.rows():
        if ledger.exists(row.code):
            entry = catalogue.entry(row.id)
            assert entry["summary"].endswith("."), row.id
            assert "small" in entry["presets"]
            assert entry["example"].startswith(f"attar run {row.id}")


@pytest.mark.parametrize(
    "path",
    [
        "attar.methods.data.dm:DistributionMatching",
        "attar.methods.model.kd:KnowledgeDistillation",  # inherits it
        "attar.methods.model.initial:Objective",  # has it from elsewhere
    ],
)
def test_a_version_is_read_from_the_source_as_python_would_find_it(path):
    module, _, name = path.partition(":")
    assert results.method_version(path) == getattr(importlib.import_module(module), name).version
    assert results.method_version(f"{module}:Absent") is None
