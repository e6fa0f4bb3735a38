"""Grading a trained network on a test set, beside its teacher, for `attar.evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from attar import data as sources
from attar import files, metrics
from attar.artifacts import Student
from attar.data import Splits
from attar.errors import AttarError
from attar.nets import count_parameters
from attar.train.teacher import Teacher
from attar.train.training import predict


def grade(student: Student, target: Any, *, data: Any = None, teacher: Any = None) -> dict[str, Any]:
    """Return accuracy, negative log-likelihood (nats) and calibration error of a student on the test set.

    Args:
        student: what is graded.
        target: the run it came from, which says data and teacher; anything else says nothing.
        data: the data instead of the run's.
        teacher: a trained teacher, graded beside it, instead of the run's.

    Raises:
        AttarError: nothing says the data, or it has other classes or another shape than the student reads.
    """
    given = _inputs(target)
    where = given.get("data") if data is None else data
    if where is None or isinstance(where, dict):
        raise AttarError("nothing says which data this network was trained for; name it, such as data=fashion-mnist")
    splits = sources.resolve(where)
    arms = [_row("student", student, splits)]
    teaching = given.get("teacher") if teacher is None else teacher
    if isinstance(teaching, str) and not Path(teaching).exists():
        teaching = None  # a network that was trained on the way; its weights are in the cache of stages
    members = Teacher.of(teaching).members if teaching is not None else ()
    for number, member in enumerate(members, 1):
        if isinstance(member, Student):
            arms.append(_row("teacher" if len(members) == 1 else f"teacher {number}", member, splits))
    return {"protocol": {}, "data": splits.train.source, "note": splits.note, "arms": arms, "cross": []}


def _row(name: str, student: Student, splits: Splits) -> dict[str, Any]:
    test = splits.test
    if student.classes != tuple(test.classes) or (student.channels, student.size) != (test.channels, test.size):
        raise AttarError(
            f"the {name} reads {student.channels}×{student.size}×{student.size} images of {student.num_classes} "
            f"classes, {test.source} has {test.channels}×{test.size}×{test.size} of {test.num_classes}; name its data"
        )
    logits = predict(student.module, test)
    accuracy = metrics.accuracy(logits, test.labels)
    return {
        "name": name,
        "accuracy": accuracy,
        "accuracies": [accuracy],
        "nll": float(torch.nn.functional.cross_entropy(logits.double(), test.labels)),
        "ece": metrics.expected_calibration_error(logits.softmax(1), test.labels),
        "parameters": count_parameters(student.module),
        "bytes": student.bytes,
    }


def _inputs(target: Any) -> dict[str, Any]:
    recipe = Path(target) / "recipe.json" if isinstance(target, str | Path) else None
    return dict(files.mapping(files.read_object(recipe), "inputs")) if recipe is not None and recipe.exists() else {}
