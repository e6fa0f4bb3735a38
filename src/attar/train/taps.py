"""Reading features by name: what passes through places inside a network, in one forward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from attar import nets
from attar.errors import RecipeError, did_you_mean
from attar.nets import Network
from attar.run.processes import Processes
from attar.train.training import Labelled, logits_in

EMBEDDING = "embedding"  # what the last linear layer reads
_INPUT = ":input"


def place(module: nn.Module, path: str) -> tuple[nn.Module, bool]:
    """Return the submodule that a path names, and whether its input is meant instead of its output.

    A path is a submodule's name (`stages.2`), with `:input` behind it for what the submodule reads. `embedding` stands
    for the input of the last linear layer, and `stage:-1` for the last of a network's `stages`, whose tokens, where it
    gives some, are made a map.

    Raises:
        RecipeError: there is no such place; the message names the nearest.
    """
    if path == EMBEDDING:
        linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
        if not linear:
            raise RecipeError(f"{type(module).__name__} has no linear layer, so it has no 'embedding'; name a place")
        head = getattr(module, "head", None)
        return (head if isinstance(head, nn.Linear) else linear[-1]), True
    stages = getattr(module, "stages", ())
    if path.startswith("stage:"):
        try:
            return stages[int(path.removeprefix("stage:"))], False
        except (IndexError, ValueError):
            raise RecipeError(f"'{path}': {type(module).__name__} has {len(stages)} stages") from None
    name = path.removesuffix(_INPUT)
    known = dict(module.named_modules())
    if not name or name not in known:
        hint = did_you_mean(name, known)
        raise RecipeError(f"{type(module).__name__} has no place '{path}'{hint} Places: {_some(known)}")
    return known[name], path.endswith(_INPUT)


def read(module: nn.Module, images: Tensor, paths: Iterable[str]) -> tuple[Any, dict[str, Tensor]]:
    """Run a module on images and return its output and what passed through the places.

    Raises:
        RecipeError: a place does not exist, was not passed, or gave something that is no tensor.
    """
    found: dict[str, Any] = {}

    def keep(path: str, ingoing: bool, layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        found[path] = given[0] if ingoing else output
        if path.startswith("stage:") and isinstance(module, Network):
            found[path] = module.map_of(output)

    handles = []
    try:
        for path in dict.fromkeys(paths):
            layer, ingoing = place(module, path)
            handles.append(layer.register_forward_hook(partial(keep, path, ingoing)))
        output = module(images)
    finally:
        for handle in handles:
            handle.remove()
    for path in paths:
        if path not in found:
            raise RecipeError(f"the forward of {type(module).__name__} does not pass '{path}'; name another place")
        if not isinstance(found[path], Tensor):
            kind, name = type(found[path]).__name__, type(module).__name__
            raise RecipeError(f"'{path}' of {name} gives a {kind}, not a tensor; name a place inside it")
    return output, found


@torch.no_grad()
def shapes(module: nn.Module, images: Tensor, paths: Sequence[str]) -> dict[str, torch.Size]:
    """Return the shape of one sample at each place; nothing of the module changes."""
    training = module.training
    module.eval()
    try:
        _, found = read(module, images, paths)
    finally:
        module.train(training)
    return {path: tensor.shape[1:] for path, tensor in found.items()}


@torch.no_grad()
def answers(
    module: nn.Module, source: Labelled, paths: Sequence[str] = (), chunk: int = 256
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return logits `[N, classes]` of all samples, and what passed through the places `[N, …]`, in evaluation mode."""
    module.eval()
    every = [read(module, source.batch(part)[0], paths) for part in torch.arange(len(source)).split(chunk)]
    logits = torch.cat([logits_in(output) for output, _ in every])
    return logits, {path: torch.cat([found[path] for _, found in every]) for path in paths}


class Seen:
    """What a network says of a batch, computed in one forward when something of it is first asked for.

    Several processes each send their rows through the network, and read the whole batch; where a sample's output
    depends on its batch, each sends all. Gradients pass.

    Args:
        run: the processes.
        module: the network.
        images: the batch.
        paths: places that may be asked for.
        whole: every process sends the whole batch.
        frozen: no gradient is kept.
    """

    def __init__(
        self, run: Processes, module: nn.Module, images: Tensor, paths: Sequence[str] = (), *, whole: bool, frozen: bool
    ) -> None:
        self.run, self.module, self.images, self.paths = run, module, images, tuple(paths)
        self._shared = run.world > 1 and not whole
        self._frozen = frozen

    @cached_property
    def _read(self) -> tuple[Tensor, dict[str, Tensor]]:
        images = self.images[self.run.shard(len(self.images))] if self._shared else self.images
        with torch.set_grad_enabled(not self._frozen):
            output, found = read(self.module, images, self.paths)
            logits = logits_in(output)
        if self._shared:
            logits, found = self.run.gather(logits), {path: self.run.gather(value) for path, value in found.items()}
        return logits, found

    @property
    def logits(self) -> Tensor:
        """The logits `[n, classes]`."""
        return self._read[0]

    @property
    def embedding(self) -> Tensor:
        """What the last linear layer reads, `[n, features]`."""
        return self.at(EMBEDDING)

    def at(self, path: str) -> Tensor:
        """Return what passed through a place, `[n, …]`."""
        return self._read[1][path]

    def only(self, paths: Sequence[str]) -> Seen:
        """Return the same forward with the places of one of several that read it."""
        return _Part(self, paths)

    def of(self, images: Tensor, *, frozen: bool | None = None) -> Seen:
        """Return what the same network says of other images, in a forward of its own; `frozen` without a gradient."""
        frozen = self._frozen if frozen is None else frozen
        return Seen(self.run, self.module, images, self.paths, whole=not self._shared, frozen=frozen)

    def by(self, module: nn.Module) -> Seen:
        """Return what another network, which learns too, says of the same images."""
        whole = not self._shared or nets.batch_statistics(module)
        return Seen(self.run, module, self.images, whole=whole, frozen=False)


class _Part(Seen):
    def __init__(self, seen: Seen, paths: Sequence[str]) -> None:
        self.run, self.module, self.images, self.paths = seen.run, seen.module, seen.images, tuple(paths)
        self._seen, self._shared, self._frozen = seen, seen._shared, seen._frozen

    @cached_property
    def _read(self) -> tuple[Tensor, dict[str, Tensor]]:
        return self._seen._read


class Told(Seen):
    """What was known before: stored soft labels, or a teacher that was asked once; nothing without a teacher."""

    def __init__(
        self, logits: Tensor | None, found: Mapping[str, Tensor] | None = None, paths: Sequence[str] | None = None
    ) -> None:
        self._logits, self._found = logits, dict(found or {})
        self.paths = tuple(self._found if paths is None else paths)

    @property
    def logits(self) -> Tensor:
        """The logits `[n, classes]`, up to a constant per row.

        Raises:
            RecipeError: there is no teacher.
        """
        if self._logits is None:
            raise RecipeError("this objective asks a teacher, and none is named; add teacher=…")
        return self._logits

    def only(self, paths: Sequence[str]) -> Seen:
        """Return the same with the places of one of several that read it."""
        return Told(self._logits, self._found, [path for path in paths if path in self._found])

    def at(self, path: str) -> Tensor:
        """Return what passed through a place, `[n, features]`.

        Raises:
            RecipeError: it is not known.
        """
        if path in self._found:
            return self._found[path]
        raise RecipeError(f"stored labels hold no features, and '{path}' is asked for; name the teacher itself")


def _some(names: Iterable[str], most: int = 12) -> str:
    listed = [name for name in names if name]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def stage_pairs(student: nn.Module, teacher: nn.Module | None, pairs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the places "student=teacher" of both networks; without any, the last stages, as many as both have.

    Raises:
        RecipeError: a pair that is none, or networks without stages.
    """
    if pairs:
        split = [pair.partition("=") for pair in pairs]
        for pair, (mine, _, theirs) in zip(pairs, split, strict=True):
            if not mine or not theirs:
                raise RecipeError(
                    f"'{pair}' does not name two places; write STUDENT=TEACHER, such as stages.2=stages.3"
                )
        return [mine for mine, _, _ in split], [theirs for _, _, theirs in split]
    if teacher is None:
        raise RecipeError("stored labels hold no features, and this objective reads some; name the teacher itself")
    common = min(len(getattr(module, "stages", ())) for module in (student, teacher))
    if not common:
        lacking = student if not len(getattr(student, "stages", ())) else teacher
        raise RecipeError(f"{type(lacking).__name__} has no stages; name places to compare with pairs=STUDENT=TEACHER")
    names = [f"stage:{number}" for number in range(-common, 0)]
    return names, list(names)
