"""A field may hold a method, named by its id: presets, overrides, recipes and reports reach into it."""

import shlex

import pytest

from attar import catalogue, recipes
from attar.errors import RecipeError
from attar.methods.data.dc import GradientMatching
from attar.methods.data.dm import DistributionMatching
from attar.methods.data.fyi import MirroredBatches
from attar.methods.data.mtt import TrajectoryMatching
from attar.nets import ConvNet, ResNet18
from attar.overrides import parse_overrides
from attar.report.recipe import command_line, recipe_rows
from attar.spec import build, to_json


def test_the_preset_is_applied_to_the_method_inside():
    assert build(MirroredBatches, preset="small").base == build(DistributionMatching, preset="small")
    assert build(MirroredBatches, preset="paper").base == MirroredBatches().base == DistributionMatching()
    assert build(MirroredBatches, {"base": "dc"}, preset="small").base == build(GradientMatching, preset="small")


def test_a_preset_of_the_method_inside_is_applied_to_it():
    made = build(MirroredBatches, {"base": "mtt", "base.ipc": 2}, preset="cifar-10-ipc-1").base
    assert made == build(TrajectoryMatching, {"ipc": 2}, preset="cifar-10-ipc-1")
    assert made.student_steps == 50
    with pytest.raises(RecipeError, match=r"'dm' has no preset 'cifar-10-ipc-1'\. It has: paper, small"):
        build(MirroredBatches, preset="cifar-10-ipc-1", name="fyi")
    with pytest.raises(RecipeError, match="'mtt' has no preset 'cifar-10-ipc-2'; did you mean 'cifar-10-ipc-1'"):
        build(MirroredBatches, {"base": "mtt"}, preset="cifar-10-ipc-2")
    with pytest.raises(RecipeError, match="'fyi' has no preset 'cifar-10-ipc-1'"):
        build(MirroredBatches, {"base": TrajectoryMatching()}, preset="cifar-10-ipc-1", name="fyi")


def test_overrides_reach_inside_and_lie_over_the_preset():
    made = build(MirroredBatches, {"base": "dc", "base.steps": 7, "base.net.width": 8}, preset="small").base
    assert (made.steps, made.updates, made.net) == (7, 10, ConvNet(depth=2, width=8))
    assert build(MirroredBatches, {"base.ipc": 3}, preset="small").base.steps == 300
    given = DistributionMatching(ipc=4)
    assert build(MirroredBatches, {"base": given}, preset="small").base is given  # as it was made


@pytest.mark.parametrize("fields", [{}, {"base": "dcc", "base.warmup_share": 0.5}, {"base.net": "resnet18"}])
def test_a_recipe_builds_what_it_was_made_from(fields):
    made = build(MirroredBatches, fields, preset="small")
    told = to_json(made)
    assert told["base"]["kind"] == fields.get("base", "dm")
    assert told["base"]["version"] == type(made.base).version  # a new version of the base is another recipe
    assert build(MirroredBatches, told) == made


def test_what_is_inside_is_part_of_the_recipes_hash():
    def hash_of(**more):
        return recipes.make("fyi", {"data": "digits", **more}).hash

    assert hash_of() == hash_of(base="dm")
    assert len({hash_of(), hash_of(base="dc"), hash_of(**{"base.ipc": 3}), hash_of(always_flip=False)}) == 4


@pytest.mark.parametrize(
    "words",
    [
        ["base.ipc=1"],
        ["base=dc", "base.steps=300"],  # dm's number of the preset, not dc's
        ["base=dc", "base.updates=null"],
        ["base=dcc", "base.net=resnet18", "base.net.width=16"],
    ],
)
def test_the_command_line_of_a_run_makes_its_recipe_again(words):
    settings = parse_overrides(["data=digits", *words])
    made = recipes.make("fyi", settings)
    again = shlex.split(command_line(made.to_json(), {}))
    assert again[:3] == ["attar", "run", "fyi"]
    assert recipes.make("fyi", parse_overrides(again[3:])).hash == made.hash


def test_the_command_line_keeps_what_equals_another_kinds_default():
    """ConvNet's default width is not ResNet's."""
    settings = parse_overrides(["data=digits", "preset=paper", "net=resnet18", "net.width=128"])
    made = recipes.make("dm", settings)
    assert made.method.net == ResNet18(width=128)
    again = shlex.split(command_line(made.to_json(), {}))
    assert recipes.make("dm", parse_overrides(again[3:])).hash == made.hash


def test_reports_and_show_have_the_notes_of_what_is_inside():
    rows = {row.name: row for row in recipe_rows(recipes.make("fyi", {"data": "digits", "base": "dc"}).to_json())}
    assert (rows["base"].value, rows["base"].default) == ("dc", "dm")
    assert rows["base.steps"].note == "networks, the paper's K"
    assert (rows["base.steps"].value, rows["base.steps"].default) == ("20", "1000")
    shown = {field.name: field for field in catalogue.fields_of(MirroredBatches)}
    assert (shown["base"].default, shown["base"].type) == ("dm", "method")
    assert shown["base.ipc"].note == "images per class"
    assert catalogue.entry("fyi")["example"] == "attar run fyi data=fashion-mnist-mini base.ipc=10"


def test_a_preset_may_differ_by_the_value_of_a_field():
    from attar.methods.data.dc import GradientMatching

    assert build(GradientMatching, preset="small").steps == 20
    one = build(GradientMatching, {"ipc": "1"}, preset="small")
    assert (one.steps, one.updates, one.epochs) == (150, 1, 0)
    assert build(GradientMatching, {"ipc": 1, "steps": 7}, preset="small").steps == 7
