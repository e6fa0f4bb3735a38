"""Drawing from a sampler for `attar.sample`: by the names it knows, or by any text where it reads texts."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from attar import files
from attar.artifacts import load
from attar.artifacts.picture import contact_sheet
from attar.artifacts.sampler import Sampler
from attar.errors import AttarError, DataError, RecipeError, did_you_mean
from attar.metrics.work import WorkMeter
from attar.run import guards, plan
from attar.spec import digest

SIDE = 128  # pixels that a picture is enlarged to, about
NAMED = 20  # conditions that a message lists
EACH = 8  # samples of each condition
SLUG = 60  # letters of a file's name that the conditions take, at most


def sample(
    target: Any,
    prompts: str | Sequence[str] = (),
    *,
    n: int = EACH,
    steps: int | None = None,
    seed: int = 0,
    guidance: float | None = None,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Draw from a sampler and write what it drew: a PNG with a row for each prompt, or an NPZ of points.

    Args:
        target: a run folder, an artifact folder, or a `Sampler`.
        prompts: names of its classes, or any texts where it was trained on captions; none: conditions at random.
        n: samples of each.
        steps: of drawing; none: the sampler's own.
        seed: of the noise; the same seed begins with the same noise in any number of steps.
        guidance: g of u + g (c − u); none: the sampler's own.
        out: a file that is not there yet, `.png` or `.npz`; none: one under `samples/` in the folder, whose name tells
            what was asked for.

    Returns:
        path, conditions, samples, steps, guidance, evaluations and seconds of one sample, seed; and for texts that were
        no captions, the nearest one that was; for latents that nothing can show, a note.

    Raises:
        AttarError: the folder holds no sampler, an unknown class, too few samples or steps, or `out` exists.
    """
    sampler = load(target) if isinstance(target, str | Path) else target
    if not isinstance(sampler, Sampler):
        kind = getattr(sampler, "kind", type(sampler).__name__)
        raise AttarError(f"{target} holds a {kind}; only samplers are drawn from, as diffusion and consistency make")
    names = [prompts] if isinstance(prompts, str) else list(prompts)
    name = _name(names, n, sampler.steps if steps is None else steps, seed, guidance)
    hidden = _hidden(sampler)
    path = _path(target, out, name, pictured=not hidden and _pictured(sampler), hidden=hidden)
    with guards.threads(plan.choose(sampler.shape[-1] if len(sampler.shape) == 3 else 0).threads):
        x, took = draw(sampler, names, n=n, steps=steps, seed=seed, guidance=guidance)
    _write(path, sampler, x)
    note = {"note": hidden} if hidden else {}
    return {"path": str(path), "conditions": names, **took, **_nearest(sampler, names), **note}


def draw(
    sampler: Sampler, names: Sequence[str], *, n: int, steps: int | None, seed: int, guidance: float | None = None
) -> tuple[Tensor, dict[str, Any]]:
    """Return `n` samples of each name `[max(1, names), n, *shape]`, and what one of them took.

    Raises:
        AttarError: fewer than one sample or step, a name that the sampler does not know, or one that only encodes.
    """
    for what, count in (("samples", n), ("steps", steps)):
        if count is not None and count < 1:
            raise RecipeError(f"a sampler draws at least one sample, in at least one step; got {count} {what}")
    sampler.refuse_encoding()
    told = condition_of(sampler, names).repeat_interleave(n, 0) if names else None
    count = n * max(1, len(names))
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, *sampler.shape, generator=rng)
    sampler(1, None if told is None else told[:1], steps=1, noise=noise[:1])  # what is set up once is not timed
    meter = WorkMeter()
    meter.watch("sampler", sampler.module)
    with meter:
        began = time.perf_counter()
        x = sampler(count, told, steps=steps, rng=rng, noise=noise, guidance=guidance).cpu()
        seconds = (time.perf_counter() - began) / count
    took = {
        "samples": count,
        "steps": steps or sampler.steps,
        "guidance": sampler.reading.guidance if guidance is None else guidance,
        "evaluations": meter.nfe("sampler", count),
        "seconds": seconds,
        "seed": seed,
    }
    return x.unflatten(0, (-1, n)), took


def condition_of(sampler: Sampler, names: Sequence[str]) -> Tensor:
    """Return what a sampler is told for names of its conditions, or for any texts where it reads texts.

    Returns:
        Labels `[n]`, or vectors `[n, width]`.

    Raises:
        DataError: a name that no class has; the message says the nearest.
        RecipeError: a sampler without conditions.
    """
    if not sampler.conditions:
        raise RecipeError("this sampler was trained without conditions, so nothing can be asked for by name")
    unknown = [name for name in names if name not in sampler.conditions]
    if not unknown:
        places = torch.tensor([sampler.conditions.index(name) for name in names])
        return places if sampler.vectors is None else sampler.vectors.cpu()[places]
    if sampler.vectors is None:
        known = ", ".join(sampler.conditions[:NAMED]) + (" …" if len(sampler.conditions) > NAMED else "")
        raise DataError(
            f"this sampler draws no '{unknown[0]}'{did_you_mean(unknown[0], sampler.conditions)} It draws: {known}"
        )
    if getattr(sampler.net, "pipeline", ""):
        try:
            vectors: Tensor = sampler.pipeline.told(tuple(names))[1]
        except AttarError as error:
            raise DataError(f"'{unknown[0]}' is none of its captions, and what reads others is gone: {error}") from None
        return vectors
    from attar.data import texts

    first = texts.prompts(sampler.conditions[:1])
    if first.shape[1] != sampler.form.width or not torch.allclose(first, sampler.vectors[:1].cpu(), atol=1e-3):
        raise DataError(
            f"this sampler's captions were not read by the packaged MiniLM, so '{unknown[0]}' cannot be; "
            f"ask for one of its own{did_you_mean(unknown[0], sampler.conditions)}"
        )
    return texts.prompts(names)


def _nearest(sampler: Sampler, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return for each text that no picture was learned under the caption that means most alike."""
    unknown = [name for name in names if name not in sampler.conditions]
    if sampler.vectors is None or not unknown:
        return {}
    vectors = functional.normalize(sampler.vectors.cpu())
    near = (functional.normalize(condition_of(sampler, unknown)) @ vectors.T).argmax(1)
    return {"nearest": {name: sampler.conditions[place] for name, place in zip(unknown, near.tolist(), strict=True)}}


def _path(target: Any, out: str | Path | None, name: str, *, pictured: bool, hidden: str) -> Path:
    """Return where to write, so that a mistake there costs no time.

    Raises:
        AttarError: it exists, or it is no file for what the sampler draws.
    """
    suffix = ".png" if pictured else ".npz"
    if out is None:
        if not isinstance(target, str | Path):
            raise RecipeError("a sampler in memory has no folder; say where to write, out=FILE")
        return Path(target) / "samples" / f"{name}{suffix}"
    path = Path(out)
    if path.exists():
        raise AttarError(f"{path} exists and is not overwritten; choose another --out")
    if path.suffix.lower() not in (suffix, ".npz"):
        what = "pictures are written as .png or .npz" if pictured else hidden or "points are written as .npz"
        raise RecipeError(f"{path} ends in '{path.suffix}'; {what}")
    return path


def _name(names: Sequence[str], n: int, steps: int, seed: int, guidance: float | None) -> str:
    """Return a file's name that nothing else asked of the same sampler has.

    What the names of conditions lose on the way into it, six digits of a digest make up for.
    """
    whole = "-".join(names)
    words = re.sub(r"[^a-z0-9]+", "-", whole.lower())[:SLUG].strip("-") or "any"
    scale = None if guidance is None else str(float(guidance)).removesuffix(".0")
    parts = [words, str(steps), f"s{seed}"]
    parts += [f"n{n}"] * (n != EACH) + [f"g{scale}"] * (scale is not None)
    if words != (whole if names else "any") or any("-" in name for name in names) or list(names) == ["any"]:
        parts.append(digest([list(names), n, steps, seed, scale])[:6])
    return "-".join(parts)


def _pictured(sampler: Sampler) -> bool:
    return sampler.pipeline is not None or (len(sampler.shape) == 3 and sampler.shape[0] in (1, 3))


def _hidden(sampler: Sampler) -> str:
    """Return why nobody can see what a sampler draws: latents whose pipeline cannot be loaded; empty for others."""
    try:
        _ = sampler.pipeline
    except AttarError as error:
        return f"this sampler draws latents, which its pipeline turns into pictures: {error}; out=FILE.npz has latents"
    return ""


def _write(path: Path, sampler: Sampler, x: Tensor) -> None:
    """Write samples `[rows, n, *shape]`: a row of the sheet for each prompt, or the numbers themselves."""
    with files.replacing(path) as aside:
        if path.suffix.lower() == ".npz":
            import numpy as np

            with aside.open("wb") as file:
                np.savez(file, samples=x.numpy())
        else:
            pictures = sampler.picture(x.flatten(0, 1))
            sheet = contact_sheet(pictures, columns=x.shape[1], scale=max(1, SIDE // pictures.shape[-1]))
            sheet.save(aside, "PNG")
