"""What a run made, in the forms that others read: image files, networks for other runtimes, pipelines of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attar import data as sources
from attar import run_folders
from attar.artifacts import Student, deployed, load
from attar.artifacts import export as formats
from attar.artifacts.adapted import AdaptedSampler
from attar.artifacts.pipeline import save_pipeline
from attar.artifacts.sampler import Sampler
from attar.artifacts.scheduling import called, rescheduled, scheduling
from attar.errors import AttarError, RecipeError, did_you_mean

PIPELINE, LORA = "pipeline", "lora"  # what a sampler of a network of diffusers is exported as: whole, or its updates
SAMPLER = "sampler"  # any sampler as an artifact that needs no other


def exported(folder: str | Path, to: str, out: str | Path) -> dict[str, Any]:
    """Do what `attar.export` does; return path, format, and for diffusers the Python that `draws` as the sampler.

    Raises:
        AttarError: see `attar.export`.
    """
    known = [*formats.FORMATS, *deployed.RUNTIMES, SAMPLER, PIPELINE, LORA]
    if to not in known:
        raise RecipeError(f"unknown format '{to}'{did_you_mean(to, known)} Known: {', '.join(known)}")
    out = Path(out)
    if out.exists():
        raise AttarError(f"{out} exists and is not overwritten; choose another --out")
    told = {"path": str(out), "format": to}
    if to in (SAMPLER, PIPELINE, LORA):
        return {**told, **_sampler_as(folder, to, out)}
    artifact = load(folder)
    if to in deployed.RUNTIMES:
        if not isinstance(artifact, Student):
            raise AttarError(f"a {artifact.kind} is no network; export it as {', '.join(formats.FORMATS)}")
        return {**told, "path": str(deployed.deploy(artifact, to, out, _trained_on(Path(folder))))}
    source = getattr(artifact, "source", None)
    real = None if source in {None, "memory"} else sources.resolve(source).train
    return {**told, "path": str(formats.export(artifact, to, out, real))}


def _sampler_as(folder: str | Path, to: str, out: Path) -> dict[str, str]:
    """Write a sampler whole, as the pipeline that its network was taken out of, or as its low-rank updates alone.

    Returns:
        For diffusers the Python that `draws` as the sampler does.
    """
    artifact = load(folder)
    if not isinstance(artifact, Sampler):
        raise AttarError(f"a {artifact.kind} is no sampler, and only samplers are exported as {to}")
    if to == SAMPLER:
        whole = artifact.merged()
        whole.parents = artifact.parents
        whole.save(out)
        return {}
    if to == PIPELINE:
        line = save_pipeline(artifact, out)
        return {"draws": f"pipe = diffusers.DiffusionPipeline.from_pretrained({str(out)!r})\n{line}"}
    if not isinstance(artifact, AdaptedSampler):
        raise AttarError("this sampler has no low-rank updates: train with lora.rank=4, or export a pipeline")
    artifact.save_lora(out)
    try:
        scheduler, call = scheduling(artifact.reading)
    except RecipeError as error:  # the updates are good for whoever draws in another way
        return {"draws": f"# {error}"}
    return {"draws": f"pipe.load_lora_weights({str(out)!r})\n{rescheduled(scheduler)}\n{called(call)}"}


def _trained_on(folder: Path) -> Any:
    """Return the training images that a run's recipe names, if there is one that does."""
    recipe = run_folders.read(folder, "recipe.json", {})
    named = (recipe.get("inputs") or {}).get("data")
    return sources.resolve(named).train if isinstance(named, str) else None
