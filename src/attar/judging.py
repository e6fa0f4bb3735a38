"""Judging what a run made: arms, protocol and storage put together for `attar.evaluate`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attar import data as sources
from attar import files
from attar.artifacts import DistilledSet, Selection, load
from attar.artifacts.targeted import TargetedSet
from attar.data import Images, Splits
from attar.errors import AttarError, RecipeError, did_you_mean
from attar.methods.data.fyi import ALWAYS_FLIP
from attar.methods.data.recovery.students import Lessons
from attar.nets import NETS
from attar.run import Plan, keys, plan
from attar.spec import build, to_json
from attar.starting import judge_start
from attar.train import continual, search
from attar.train.evaluation import evaluate
from attar.train.protocols import PROTOCOLS, STEPS, Protocol
from attar.train.training import Labelled

FLIPPED = {"none": "flip", **ALWAYS_FLIP}  # how students of mirrored batches are shown what others are shown so

Given = DistilledSet | Images
Arms = dict[str, Callable[[int], Given]]  # name to what network k is trained on, before it is shown and labelled
Table = list[dict[str, Any]]


def judge(
    target: Any,
    *,
    data: Any,
    protocol: str | None,
    settings: Mapping[str, Any],
    nets: Sequence[str],
    baselines: Sequence[str],
    seed: int,
    teacher: Any = None,
    continual_steps: int | None = None,
    network_search: bool = False,
) -> dict[str, Any]:
    """Return protocol, data, arms and cross-architecture arms of a small set; see `attar.evaluate`."""
    artifact = load(target) if isinstance(target, str | Path) else target
    splits, recipe = _splits(artifact, data), _recipe(target)
    work = plan.choose(splits.train.size)
    if isinstance(artifact, TargetedSet) and not artifact.labelled:
        return judge_start(artifact, splits, protocol=protocol, recipe=recipe, settings=settings, seed=seed, work=work)
    subject, name = _images(artifact, splits)
    splits = splits.to(subject.images.device)  # fresh from a run it may lie on another than the CPU
    chosen = choose_protocol(protocol, recipe, subject, settings)
    bench = _Bench(subject, splits, chosen, seed=seed, work=work, teacher=teacher)
    arms: Arms = {name: lambda index: subject} | _baselines(baselines, subject, splits, seed)
    variants = [_variant(net) for net in nets]
    table = [row | bench.stored(row) for row in bench.table(arms)]
    small = {key: arm for key, arm in arms.items() if key != "full"}
    cross = [{"net": net.label, "arms": bench.table(small, {"net": net})} for net in variants]
    outcome = {
        "protocol": to_json(bench.protocol),
        "data": splits.train.source,
        "note": splits.note,
        "networks": chosen.networks,
        "seed": seed,
        "arms": table,
        "cross": cross,
    }
    if continual_steps is not None:
        outcome["continual"] = _continual(bench, arms, continual_steps)
    if network_search:
        outcome["search"] = _search(bench, small)
    return outcome


def choose_protocol(
    name: str | None, recipe: Mapping[str, Any], subject: DistilledSet, settings: Mapping[str, Any]
) -> Protocol:
    """Return the protocol asked for, else the one that the method asks for, at the size of the run's preset.

    For a method that asks for `sre2l`, a run made with the preset `cifar` is judged by `cifar-sre2l`, where there is
    such a protocol; one made with `small` by `small-sre2l`, else by `small`. Students of sets that were made with
    mirrored batches (FYI) see mirror images, unless a protocol is asked for. The network is the one the images were
    made with, unless the settings name another; where a step size was learned with them, students that SGD trains take
    it, unless the settings name another optimizer or rate.

    Raises:
        RecipeError: unknown protocol, or a setting that does not validate.
    """
    mirrored = name is None and bool(subject.hints.get("mirrored"))
    if name is None:
        asked, preset = str(subject.hints.get("protocol", "dsa")), str(recipe.get("preset", "small"))
        sized = f"{preset}-{asked}"
        name = sized if sized in PROTOCOLS else "small" if preset == "small" else asked
    if name not in PROTOCOLS:
        raise RecipeError(f"unknown protocol '{name}'{did_you_mean(name, PROTOCOLS)} Known: {', '.join(PROTOCOLS)}")
    base = dict(PROTOCOLS[name])
    inside = files.mapping(recipe, "fields")
    if net := inside.get("net") or files.mapping(inside, "base").get("net"):
        bare = base.get("labels") == "targets" and isinstance(net, Mapping) and "norm" in net
        base["net"] = {**net, "norm": "none"} if bare else net
    if name in STEPS:
        sizes = [size for size in STEPS[name] if size >= len(subject)] or [max(STEPS[name])]
        base["training"] = {**base["training"], "steps": STEPS[name][sizes[0]]}
    if mirrored:
        augment = base["training"].get("augment", "none")
        base["training"] = {**base["training"], "augment": FLIPPED.get(augment, augment)}
    optimizer = base["training"].get("optimizer", {})
    if (lr := subject.hints.get("student_lr")) is not None and optimizer.get("kind", "sgd") == "sgd":
        base["training"] = {**base["training"], "optimizer": {**optimizer, "lr": lr}}
    return build(Protocol, dict(settings), preset=None, name="protocol", base=base)


class _Bench:
    """What all arms share: the data, the number of steps, the views, and who labels them.

    Args:
        subject: the set that is judged.
        splits: the real data.
        protocol: how; every arm takes the steps that the set takes.
        seed: of networks and views.
        work: threads, and how many networks train side by side.
        teacher: see `Lessons`.
    """

    def __init__(
        self, subject: DistilledSet, splits: Splits, protocol: Protocol, *, seed: int, work: Plan, teacher: Any = None
    ) -> None:
        self.subject, self.splits, self.seed, self.work = subject, splits, seed, work
        self.given = protocol
        self.protocol = _changed(protocol, {"training": {"steps": protocol.training.total(len(subject))}})
        self.lessons = Lessons(protocol, subject, splits.train, seed=seed, teacher=teacher)

    def table(self, arms: Arms, changes: Mapping[str, Any] | None = None) -> Table:
        """Return a row for each arm, under the protocol with these changes."""
        shown = {name: functools.partial(self._shown, arm) for name, arm in arms.items()}
        protocol = _changed(self.protocol, changes) if changes else self.protocol
        return evaluate(shown, self.splits.test, protocol, seed=self.seed, plan=self.work, loss=self.lessons.loss)

    def _shown(self, arm: Callable[[int], Given], index: int) -> Labelled:
        return self.lessons.show(arm(index), index)

    def stored(self, row: Mapping[str, Any]) -> dict[str, int]:
        """Return the bytes of an arm's images with all that labels them, and of the labels alone."""
        images, real, subject = int(row["images"]), self.splits.train, self.subject
        pixels = images * real.pixels[0].numel() * real.pixels.element_size()
        made = row["name"] == "distilled"
        labels = self.lessons.label_bytes(images, int(row["steps"]), made=made)
        if made:
            pixels = _image_bytes(subject)
            if self.protocol.labels == "own":
                labels = subject.labels.numel() * subject.labels.element_size()
        return {"bytes": pixels + labels, "label_bytes": labels}


def _image_bytes(made: DistilledSet) -> int:
    """Return what a set's images take, with their whitening; compensators that classes share count once."""
    if "stored_floats" in made.hints and made.labels.dim() == 2:
        return 4 * (int(made.number("stored_floats", 1)) - made.labels.numel())
    kept = [t for name, t in made.tensors().items() if name == "images" or name.startswith("whitening.")]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)


def _continual(bench: _Bench, arms: Arms, steps: int) -> dict[str, Any]:
    """Return what each arm is worth as a memory, when classes come in so many steps.

    Raises:
        RecipeError: labels that a teacher of all classes gives, which would tell of classes to come.
    """
    if bench.protocol.labels not in ("own", "hard"):
        raise RecipeError(
            f"labels={bench.protocol.labels} come from a network that has seen all classes, those to come among them; "
            "learn in steps with labels=hard, or labels=own"
        )
    train, test = bench.splits.train, bench.splits.test

    def table(seen: list[int]) -> Table:
        real = continual.images_of(train, seen)

        def part(arm: Callable[[int], Given], index: int) -> Given:
            given = arm(index)
            return real if isinstance(given, Images) else continual.set_of(given, seen, real)

        subject = continual.set_of(bench.subject, seen, real)
        splits = Splits(real, continual.images_of(test, seen))
        own = _Bench(subject, splits, bench.given, seed=bench.seed, work=bench.work)
        return own.table({name: functools.partial(part, arm) for name, arm in arms.items()})

    return continual.learn_in_steps(table, train.classes, steps=steps, order=bench.seed)


def _search(bench: _Bench, small: Arms) -> dict[str, Any]:
    """Return how well small arms rank a grid of networks, against training on all the data for longer."""
    train = bench.splits.train
    longer = search.FULL_PASSES * -(-len(train) // bench.protocol.training.batch)

    def accuracies(net: Any) -> dict[str, float]:
        rows = bench.table(small, {"net": net})
        rows += bench.table({"full": lambda index: train}, {"net": net, "training": {"steps": longer}})
        return {row["name"]: row["accuracy"] for row in rows}

    return search.agreement(accuracies, search.grid(train.size))


def _recipe(target: Any) -> dict[str, Any]:
    path = Path(target) / "recipe.json" if isinstance(target, str | Path) else None
    return files.read_object(path) if path is not None and path.exists() else {}


def _variant(name: str) -> Any:
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
    """Return the arms to compare with: a fresh random subset a network, and all the data.

    Where a set is composed of fewer images than it shows, there are as many random ones as what it stores pays for.
    """
    each = subject.ipc
    if "stored_floats" in subject.hints and subject.labels.dim() == 2:
        each = -(-_image_bytes(subject) // (4 * subject.images[0].numel() * subject.num_classes))

    def random(index: int) -> DistilledSet:
        rng = keys.generator(seed, ("evaluate",), "random subset", (index,))
        return DistilledSet.from_real(splits.train, each, rng)

    known: Arms = {"random": random, "full": lambda index: splits.train}
    for name in names:
        if name not in known:
            raise RecipeError(f"unknown baseline '{name}'{did_you_mean(name, known)} Known: {', '.join(known)}")
    return {name: known[name] for name in names}
