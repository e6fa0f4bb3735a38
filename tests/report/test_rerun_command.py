from __future__ import annotations

import shlex

import pytest

from attar.overrides import parse_overrides
from attar.report.recipe import command_line, flatten, text
from attar.spec import build, to_json


def test_the_command_line_says_the_recipe_again() -> None:
    from attar.methods.data.dm import DistributionMatching

    made = build(DistributionMatching, {"ipc": 7, "net.width": 48, "net.norm": "batch"}, preset="small")
    recipe = {
        "id": "dm",
        "preset": "small",
        "fields": to_json(made),
        "inputs": {"data": "folder:my pictures"},
        "seed": 5,
    }
    words = shlex.split(command_line(recipe, {"threads": 2}))
    assert words[:3] == ["attar", "run", "dm"]
    given = parse_overrides(words[3:])
    rest = {key: given.pop(key) for key in ("data", "preset", "seed", "threads")}
    assert rest == {"data": "folder:my pictures", "preset": "small", "seed": 5, "threads": 2}
    assert set(given) == {"ipc", "net.width", "net.norm"}  # what the preset says is not said twice
    assert build(DistributionMatching, given, preset="small") == made


def test_a_method_that_is_not_here_has_every_field_spelled_out() -> None:
    recipe = {"id": "from-the-future", "fields": {"ipc": 3, "net": {"kind": "mlp", "width": 9}}, "seed": 1}
    assert command_line(recipe, {}) == "attar run from-the-future ipc=3 net=mlp net.width=9 seed=1"


@pytest.mark.parametrize(
    "value", ["convnet", "7", "true", "null", "[1]", '"quoted"', "[x", "a b", 7, 0.1, None, [1, "a"], True, "NaN"]
)
def test_values_survive_the_command_line(value: object) -> None:
    (word,) = shlex.split(shlex.join([f"field={text(value)}"]))
    assert parse_overrides([word]) == {"field": value}


def test_nested_mappings_become_dotted_names() -> None:
    nested = {"a": {"b": {"kind": "x", "c": 1}}, "d": [1]}
    assert flatten(nested) == {"a.b": "x", "a.b.c": 1, "d": [1]}
    assert flatten("no mapping") == {}
