"""Judging a set without labels by what it is for: a start for networks that then meet other data."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import Field

from attar import progress
from attar.artifacts.targeted import TargetedSet
from attar.data import Splits
from attar.errors import AttarError, RecipeError, did_you_mean
from attar.run import Plan, guards, keys
from attar.spec import build, spec, to_json
from attar.train.regression import TargetSource
from attar.train.transfer import Transfer, finetuned, pretrained, probed

_PRETRAINING: dict[str, Any] = {"steps": 500}
_FINETUNING: dict[str, Any] = {"steps": 200, "batch": 100}


@spec
class Start(Transfer):
    """How a start is judged: KRR-ST's transfer, from all labelled images or from a few."""

    shots: int | None = Field(None, ge=1)  # labelled images a class, drawn for each network; none: all


STARTS: dict[str, dict[str, Any]] = {
    "transfer": {},  # KRR-ST's (arXiv 2310.06511)
    "small-transfer": {
        "net": {"kind": "convnet", "depth": 2, "width": 32, "norm": "batch"},
        "pretraining": _PRETRAINING,
        "finetuning": _FINETUNING,
        "shots": 20,
    },
}


def judge_start(
    made: TargetedSet,
    splits: Splits,
    *,
    protocol: str | None,
    recipe: Mapping[str, Any],
    settings: Mapping[str, Any],
    seed: int,
    work: Plan,
) -> dict[str, Any]:
    """Return what networks that were trained on a set's targets come to on labelled data, beside untrained ones.

    Args:
        made: images with targets.
        splits: the data that networks meet then; its test set is read once a number.
        protocol: `transfer`, `small-transfer`, or none for the one of the run's preset.
        recipe: of the run, for its preset and network.
        settings: fields of `Start`, and `networks`.
        seed: of networks and batches; network k starts alike in both arms.
        work: threads.

    Returns:
        As `attar.judging.judge`: arms `distilled` and `scratch`, fine-tuned, and each with ` probe`, which is logistic
        regression on the features of the network as it is before.

    Raises:
        AttarError: the data have images of another shape.
        RecipeError: unknown protocol, or a setting that does not validate.
    """
    own, given = (made.channels, made.size), (splits.train.channels, splits.train.size)
    if own != given:
        raise AttarError(
            f"networks that start from this set read {own[0]}×{own[1]}×{own[1]} images, {splits.train.source} has "
            f"{given[0]}×{given[1]}×{given[1]}; name data of that shape (data=…?size={own[1]} pools larger ones)"
        )
    how = dict(settings)
    networks = int(how.pop("networks", 5))
    chosen = _choose(protocol, recipe, how)
    arms = []
    with guards.threads(work.threads), progress.task("evaluate", 0, 2 * networks) as show:
        for number, (name, source) in enumerate(
            (("distilled", TargetSource(made.images.cpu(), made.targets.cpu())), ("scratch", None))
        ):
            scores = []
            for index, score in enumerate(_scores(source, splits, chosen, networks, seed)):
                scores.append(score)
                show(number * networks + index + 1)
            images = 0 if source is None else len(made)
            stored = 0 if source is None else made.bytes
            arms += _rows(name, scores, images, stored, made.targets.numel() * 4 if images else 0)
    return {
        "protocol": to_json(chosen),
        "data": splits.train.source,
        "note": splits.note,
        "networks": networks,
        "seed": seed,
        "arms": arms,
        "cross": [],
    }


def _choose(name: str | None, recipe: Mapping[str, Any], settings: Mapping[str, Any]) -> Start:
    if name is None:
        name = "small-transfer" if recipe.get("preset", "small") == "small" else "transfer"
    if name not in STARTS:
        raise RecipeError(
            f"unknown protocol '{name}'{did_you_mean(name, STARTS)} For sets without labels: {', '.join(STARTS)}"
        )
    base = dict(STARTS[name])
    if net := recipe.get("fields", {}).get("net"):
        base["net"] = net
    return build(Start, settings, base=base, name="protocol")


def _scores(
    source: TargetSource | None, splits: Splits, how: Start, networks: int, seed: int
) -> Iterator[dict[str, float]]:
    """Yield the fine-tuned accuracy, that of the probe, and the seconds of each network."""
    for index in range(networks):

        def rng(name: str, *counters: int, index: int = index) -> torch.Generator:
            return keys.generator(seed, ("evaluate", "transfer"), name, (index, *counters))

        train, test, began = splits.train, splits.test, time.perf_counter()
        if how.shots is not None:
            train = train.subset(train.choose_per_class(how.shots, rng("labels")))
        network = pretrained(how.net, source, train, how.pretraining, rng)
        probe = probed(network, train, test, decay=how.decay)
        tuned = finetuned(network, how.net, train, test, training=how.finetuning, rng=rng)
        yield {"": tuned, " probe": probe, "seconds": time.perf_counter() - began}


def _rows(name: str, scores: list[dict[str, float]], images: int, stored: int, targets: int) -> list[dict[str, Any]]:
    rows = []
    for suffix in ("", " probe"):
        each = [score[suffix] for score in scores]
        rows.append(
            {
                "name": name + suffix,
                "accuracy": statistics.fmean(each),
                "accuracy_std": statistics.stdev(each) if len(each) > 1 else 0.0,
                "accuracies": each,
                "images": images,
                "bytes": stored,
                "label_bytes": targets,
                "seconds": statistics.fmean(score["seconds"] for score in scores),
            }
        )
    return rows
