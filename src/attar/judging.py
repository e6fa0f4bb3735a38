"""Judging what a run made: arms, protocol and storage put together for `attar.evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attar import data as sources
from attar import files
from attar.artifacts import DistilledSet, Selection, load
from attar.data import Images, Splits
from attar.errors import AttarError, RecipeError, did_you_mean
from attar.nets import NETS
from attar.run import keys, plan
from attar.spec import build, to_json
from attar.train.evaluation import PROTOCOLS, Protocol, evaluate
from attar.train.training import Labelled, TensorSource

Arms = dict[str, Callable[[int], Labelled]]


def judge(
    target: Any,
    *,
    data: Any,
    protocol: str | None,
    settings: Mapping[str, Any],
    nets: Sequence[str],
    baselines: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """Return protocol, data, arms and cross-architecture arms of a small set; see `attar.evaluate`."""
    artifact = load(target) if isinstance(target, str | Path) else target
    splits = _splits(artifact, data)
    subject, name = _images(artifact, splits)
    chosen = choose_protocol(protocol, _recipe(target), subject, settings)
    arms: Arms = {name: lambda index: TensorSource(subject.images, subject.labels)}
    arms |= _baselines(baselines, subject, splits, seed)
    variants = [_variant(chosen, name) for name in nets]
    steps = chosen.training.total(len(subject))  # the same number for every arm
    chosen = _changed(chosen, {"training": {"steps": steps}})
    work = plan.choose(splits.train.size)
    table = evaluate(arms, splits.test, chosen, seed=seed, plan=work)
    for row in table:
        row["bytes"] = subject.bytes if row["name"] == "distilled" else _stored(splits.train, row["images"])
    small = {key: arm for key, arm in arms.items() if key != "full"}
    cross = [
        {"net": net.label, "arms": evaluate(small, splits.test, _changed(chosen, {"net": net}), seed=seed, plan=work)}
        for net in variants
    ]
    return {
        "protocol": to_json(chosen),
        "data": splits.train.source,
        "note": splits.note,
        "networks": chosen.networks,
        "seed": seed,
        "arms": table,
        "cross": cross,
    }


def choose_protocol(
    name: str | None, recipe: Mapping[str, Any], subject: DistilledSet, settings: Mapping[str, Any]
) -> Protocol:
    """Return the protocol asked for, else `small` for a run made with that preset, else what the method asks for.

    The network is the one the images were made with, unless the settings name another; where a step size was learned
    with them, students take it.

    Raises:
        RecipeError: unknown protocol, or a setting that does not validate.
    """
    if name is None:
        name = str(subject.hints.get("protocol", "dsa"))
        if recipe.get("preset", "small") == "small":
            name = f"small-{name}" if f"small-{name}" in PROTOCOLS else "small"
    if name not in PROTOCOLS:
        raise RecipeError(f"unknown protocol '{name}'{did_you_mean(name, PROTOCOLS)} Known: {', '.join(PROTOCOLS)}")
    base = dict(PROTOCOLS[name])
    fields = recipe.get("fields", {})
    if net := fields.get("net") or fields.get("base", {}).get("net"):
        base["net"] = net
    if (lr := subject.hints.get("student_lr")) is not None:  # the step size that was learned with the images
        base["training"] = {**base["training"], "optimizer": {"lr": lr}}
    return build(Protocol, dict(settings), preset=None, name="protocol", base=base)


def _recipe(target: Any) -> dict[str, Any]:
    path = Path(target) / "recipe.json" if isinstance(target, str | Path) else None
    return dict(files.read_json(path)) if path is not None and path.exists() else {}


def _variant(protocol: Protocol, name: str) -> Any:
    if name not in NETS:
        raise RecipeError(f"unknown network '{name}'{did_you_mean(name, NETS)} Known: {', '.join(NETS)}")
    return NETS[name]


def _changed(protocol: Protocol, changes: Mapping[str, Any]) -> Protocol:
    return build(Protocol, {key: to_json(value) for key, value in changes.items()}, base=to_json(protocol))


def _splits(artifact: Any, data: Any) -> Splits:
    """Return the data the artifact was made from, or what was named instead."""
    if data is None and getattr(artifact, "source", "memory") == "memory":
        raise AttarError("this was made from data in memory; name the data to judge it on, such as data=fashion-mnist")
    return sources.resolve(artifact.source if data is None else data)


def _images(artifact: Any, splits: Splits) -> tuple[DistilledSet, str]:
    """Return the images to judge and what their arm is called."""
    if isinstance(artifact, Selection):
        return artifact.distilled(splits.train), "selected"
    if not isinstance(artifact, DistilledSet):
        kind = getattr(artifact, "kind", type(artifact).__name__)
        raise AttarError(f"evaluate judges distilled sets and selections; this is a {kind}")
    shape, wanted = artifact.images.shape[1:], (splits.train.channels, splits.train.size, splits.train.size)
    if tuple(shape) != wanted or artifact.num_classes != splits.train.num_classes:
        raise AttarError(
            f"the distilled images are {tuple(shape)} of {artifact.num_classes} classes, and {splits.train.source} is "
            f"{wanted} of {splits.train.num_classes}; judge them on the data they were made from"
        )
    return artifact, "distilled"


def _baselines(names: Sequence[str], subject: DistilledSet, splits: Splits, seed: int) -> Arms:
    """Return the arms to compare with: a fresh random subset a network, and all the data."""

    def random(index: int) -> Labelled:
        rng = keys.generator(seed, ("evaluate",), "random subset", (index,))
        chosen = DistilledSet.from_real(splits.train, subject.ipc, rng)
        return TensorSource(chosen.images, chosen.labels)

    known: Arms = {"random": random, "full": lambda index: splits.train}
    for name in names:
        if name not in known:
            raise RecipeError(f"unknown baseline '{name}'{did_you_mean(name, known)} Known: {', '.join(known)}")
    return {name: known[name] for name in names}


def _stored(data: Images, count: int) -> int:
    """Return the bytes of `count` real images with their labels."""
    return count * (data.pixels[0].numel() * data.pixels.element_size() + data.labels.element_size())
