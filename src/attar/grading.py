"""Grading a trained network on a test set, beside its teacher, for `attar.evaluate`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from attar import data as sources
from attar import metrics, nets, run_folders
from attar.artifacts import Student
from attar.artifacts.autoencoder import Encoder
from attar.artifacts.dual import DualStudent
from attar.data import Splits
from attar.errors import AttarError
from attar.nets import count_parameters
from attar.nets.masked import MeanFeatures
from attar.train.probe import neighbour_accuracy
from attar.train.regression import Shape
from attar.train.retrieval import retrieval, zero_shot
from attar.train.teacher import Teacher
from attar.train.training import predict
from attar.train.transfer import probed

PROBED = 10_000  # labelled images that a probe is fitted on, at most


def grade(student: Student | DualStudent, target: Any, *, data: Any = None, teacher: Any = None) -> dict[str, Any]:
    """Return accuracy, negative log-likelihood (nats) and calibration error of a student on the test set.

    Of an encoder that saw no labels: what its frozen features say, read with at most 10,000 labelled images. Of a dual
    encoder: recall from images to texts and back, and accuracy by the names of the classes.

    Args:
        student: what is graded.
        target: the run it came from, which says data and teacher; anything else says nothing.
        data: the data instead of the run's.
        teacher: a trained teacher, graded beside it, instead of the run's.

    Raises:
        AttarError: nothing says the data, or it has other classes or another shape than the student reads.
    """
    given = run_folders.inputs_of(target)
    where = given.get("data") if data is None else data
    if where is None or isinstance(where, dict):
        raise AttarError("nothing says which data this network was trained for; name it, such as data=fashion-mnist")
    splits = sources.resolve(where)
    if isinstance(student, Encoder | DualStudent):
        arms = list(_probes(student, splits) if isinstance(student, Encoder) else _found(student, splits))
        return {"protocol": {}, "data": splits.train.source, "note": splits.note, "arms": arms, "cross": []}
    arms = [_row("student", student, splits)]
    teaching = given.get("teacher") if teacher is None else teacher
    if not isinstance(teaching, str | Path | Student) or (isinstance(teaching, str) and not Path(teaching).exists()):
        teaching = None  # none, or trained on the way: its weights are in the cache of stages
    members = Teacher.of(teaching).members if teaching is not None else ()
    for number, member in enumerate(members, 1):
        if isinstance(member, Student):
            arms.append(_row("teacher" if len(members) == 1 else f"teacher {number}", member, splits))
    return {"protocol": {}, "data": splits.train.source, "note": splits.note, "arms": arms, "cross": []}


def _probes(encoder: Encoder, splits: Splits) -> Iterator[dict[str, Any]]:
    """Yield what frozen features say of the classes, by logistic regression and by neighbours; then untrained ones.

    Raises:
        AttarError: the data have images of another shape.
    """
    if (encoder.channels, encoder.size) != (splits.test.channels, splits.test.size):
        raise AttarError(
            f"this encoder reads {encoder.channels}×{encoder.size}×{encoder.size} images, {splits.test.source} has "
            f"{splits.test.channels}×{splits.test.size}×{splits.test.size}; name data of that shape"
        )
    each = max(1, PROBED // splits.train.num_classes)
    few = min(each, *(len(members) for members in splits.train.by_class))
    known = splits.train.subset(splits.train.choose_per_class(few, torch.Generator().manual_seed(0)))
    fresh = nets.fresh(encoder.net, Shape(encoder.channels, encoder.size, 1), torch.Generator().manual_seed(0))
    for name, module in (("encoder", encoder.module), ("untrained", fresh)):
        features: Any = MeanFeatures(module).eval()
        for suffix, score in (("linear probe", probed), ("20 neighbours", neighbour_accuracy)):
            accuracy = score(features, known, splits.test)
            yield {
                "name": f"{name}, {suffix}",
                "accuracy": accuracy,
                "accuracies": [accuracy],
                "images": len(known),
                "parameters": nets.count_parameters(module),
                "bytes": encoder.bytes,
            }


def _found(student: DualStudent, splits: Splits) -> Iterator[dict[str, Any]]:
    """Yield what a dual encoder finds among the test set's texts, images and classes.

    Raises:
        AttarError: the data have images of another shape.
    """
    if (student.channels, student.size) != (splits.test.channels, splits.test.size):
        raise AttarError(
            f"these towers read {student.channels}×{student.size}×{student.size} images, {splits.test.source} has "
            f"{splits.test.channels}×{splits.test.size}×{splits.test.size}; name data of that shape"
        )
    found = retrieval(student, splits.test)
    if splits.test.num_classes > 1:
        found["classes by name"] = zero_shot(student, splits.test)
    for name, share in found.items():
        sizes = {"parameters": nets.count_parameters(student.module), "bytes": student.bytes}
        yield {"name": name, "accuracy": share, "accuracies": [share], "images": len(splits.test), **sizes}


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
