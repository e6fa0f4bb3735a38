"""A student in the formats of runtimes: ONNX and torch's exported program, each run once and compared when written."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar import files
from attar.artifacts.student import Student
from attar.data import Images
from attar.errors import AttarError, RecipeError

TOLERANCE = 1e-3  # of the largest logit, between the network and what was written
_TRIED = 3  # images that both are run on: another number than the one it was traced with


class Served(nn.Module):
    """A network behind its normalisation: pixels `[n, C, H, W]` in [0, 1] to logits `[n, classes]`."""

    def __init__(self, module: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("mean", mean.clone().view(-1, 1, 1))
        self.register_buffer("std", std.clone().view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.module((pixels - self.get_buffer("mean")) / self.get_buffer("std"))
        return logits


def deploy(student: Student, to: str, out: str | Path, data: Images | None = None) -> Path:
    """Write a student as `onnx` or `torch` to the file `out`, whole or not at all; return `out`.

    With the data that it was trained on, the file takes pixels in [0, 1] and normalises them itself; without, it takes
    what the network takes. The first dimension is free. What was written is run and compared before it stands there.

    Args:
        student: a network with everything for training stripped off.
        to: `onnx` (needs the extra `[onnx]`) or `torch` (`torch.export.load` reads it).
        out: the file; it must not exist.
        data: says how pixels become what the network sees.

    Raises:
        RecipeError: what the format needs is not installed, or the data are whitened.
        AttarError: `out` exists or cannot be written, the network cannot be traced, or what was written computes
            something else.
    """
    out = Path(out)
    if out.exists() or out.is_symlink():
        raise AttarError(f"{out} exists and is not overwritten; choose another --out")
    if data is not None and data.whitening is not None:
        raise RecipeError("whitening cannot be put into the file; train on data without ?zca to export the network")
    module = student.module if data is None else Served(student.module, data.mean.cpu(), data.std.cpu())
    module = module.cpu().eval()
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with files.explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            shape = (student.channels, student.size, student.size)
            run = RUNTIMES[to](_traced(module, torch.rand(2, *shape)), aside)
            _compare(module, run, torch.rand(_TRIED, *shape, generator=torch.Generator().manual_seed(0)), to)
            aside.rename(out)
        finally:
            shutil.rmtree(aside, ignore_errors=True) if aside.is_dir() else aside.unlink(missing_ok=True)
    return out


def _traced(module: nn.Module, example: Tensor) -> Any:
    try:
        with torch.no_grad(), _quietly():
            return torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    except Exception as error:  # whatever the tracer makes of code that it cannot follow
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise AttarError(f"{type(module).__name__} cannot be traced for export: {reason}") from error


def _write_onnx(program: Any, path: Path) -> Callable[[Tensor], Tensor]:
    """Write an ONNX file of one piece, and return what onnxruntime computes with it."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx asks for it without saying so
    except ImportError:
        raise RecipeError("--to onnx needs onnx, onnxscript and onnxruntime: pip install 'attar[onnx]'") from None
    with _quietly():
        made: Any = torch.onnx.export(program, dynamo=True, verbose=False)
        made.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def _write_torch(program: Any, path: Path) -> Callable[[Tensor], Tensor]:
    """Write torch's own archive, and return what it computes when it is read."""
    with _quietly(), path.open("wb") as file:
        torch.export.save(program, file)
    with _quietly(), path.open("rb") as file:
        read: Callable[[Tensor], Tensor] = torch.export.load(file).module()
    return read


RUNTIMES: dict[str, Callable[[Any, Path], Callable[[Tensor], Tensor]]] = {"onnx": _write_onnx, "torch": _write_torch}


@torch.no_grad()
def _compare(module: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor, to: str) -> None:
    wanted, found = module(images), run(images)
    gap = float((wanted - found).abs().max())
    if not gap <= TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise AttarError(
            f"what was written as {to} computes other logits (by {gap:.2g}) and was thrown away; export it in another "
            "format, and tell us which network it was"
        )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporters' remarks about themselves from the user."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
