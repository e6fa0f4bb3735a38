"""A distillation without terms, for tests of what methods put beside their own."""

from __future__ import annotations

from typing import ClassVar

from attar.artifacts.drawing import Multistep
from attar.methods.sampler.core.distillation import Distillation
from attar.spec import method


@method
class Bare(Distillation):
    """A distillation without terms."""

    version: ClassVar = 1
    presets: ClassVar = {"small": {}}

    def drawing(self):
        """Return one step."""
        return Multistep()


def lesson_of(run, data, teacher, **fields):
    bare = Bare(train={"steps": 4, "batch": 6}, **fields)
    lesson = bare.begin(run, data, teacher)
    return bare, lesson


def moment_of(bare, lesson, step=0):
    return bare.moment(lesson, bare.phases()[0], step)
