"""Grading a sampler beside its teacher for `attar.evaluate`."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar import data as sources
from attar import files, run_folders
from attar.artifacts import load
from attar.artifacts.pipeline import Pipeline
from attar.artifacts.sampler import Reading, Sampler
from attar.data import Images, Samples
from attar.data.latents import LatentSamples
from attar.data.samples import ImageSamples
from attar.data.uri import POINTS
from attar.diffusion import Flow, View
from attar.diffusion.specs import FlowProcess
from attar.errors import AttarError, DataError, RecipeError
from attar.nets.denoiser_specs import PointMLP
from attar.progress import tell
from attar.run import Run, guards, plan
from attar.sampling import condition_of
from attar.spec import build, to_json
from attar.train import generation
from attar.train.generation import Arm, Asked, Generation
from attar.train.judges import ClassifierJudge, PackagedJudge, judge_of

ROWS, EACH = 10, 4  # conditions that are shown of pictures, and samples of each
POINTS_SHOWN = 1000
BENT = 200  # samples whose ways are followed
Shown = dict[str, Tensor]  # samples to look at: pixels [rows, each, C, H, W] in bytes, or points [n, d]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A sampler with what it is held against."""

    sampler: Sampler
    data: Samples
    test: Images | None
    note: str
    teacher: Sampler | None
    guidance: float | None  # of the teacher; none: the teacher's own

    def seen(self, x: Tensor) -> Tensor:
        """Return samples as the data are: latents of a pipeline as pictures in [-1, 1] with the data's channels."""
        if self.sampler.pipeline is None:
            return x
        pixels = self.sampler.picture(x) * 2 - 1
        return pixels.mean(1, keepdim=True) if self.data.shape[0] == 1 else pixels


def grade_sampler(
    sampler: Sampler,
    target: Any,
    *,
    data: Any = None,
    teacher: Any = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], Shown]:
    """Return what a sampler's samples are worth in few and many steps, beside its teacher's, and some to look at.

    Args:
        sampler: what is graded.
        target: the run it came from, which says data, teacher and guidance; anything else says nothing.
        data: the data instead of the run's.
        teacher: a sampler to stand beside, instead of the run's.
        seed: of noise and conditions, which all arms share.
        settings: fields of `Generation`.

    Raises:
        AttarError: nothing says the data, or they are of another shape than the sampler's; or a setting is wrong.
    """
    sampler.refuse_encoding()
    protocol = build(Generation, dict(settings or {}), name="protocol")
    subject = _subject(sampler, target, data, teacher, protocol)
    points = not isinstance(subject.data, ImageSamples)
    count = protocol.samples or (generation.POINTS if points else generation.PICTURES)
    asked = Asked.of(subject.data, count, seed, sampler.shape)
    if not sampler.form.labels and not sampler.form.width:
        asked = dataclasses.replace(asked, which=None)  # a pipeline that is told nothing
    arms = generation.arms_of(sampler, subject.teacher, protocol, subject.guidance)
    with guards.threads(plan.choose(0 if points else sampler.shape[-1]).threads):
        score, told = _score(subject, protocol, asked)
        rows, refused = generation.measured(arms, asked, lambda x, of: score(subject.seen(x), of))
        rows.append(_real(subject, asked, score))
        bends = _bends(subject, asked.few(BENT), protocol)
        drawable = [arm for arm in arms if arm.name not in refused]
        names, pictures = (
            (["all"], _points(subject, drawable, asked))
            if points
            else _pictures(subject, drawable, protocol.prompts, seed)
        )
    protocol_told = {**to_json(protocol), "samples": len(asked), "teacher_guidance": subject.guidance, **told}
    outcome = {
        "kind": "sampler",
        "protocol": protocol_told,
        "data": subject.data.source,
        "note": subject.note,
        "seed": seed,
        "arms": rows,
        "cross": [],
        "refused": refused,
        "straightness": bends,
        "shown": {"conditions": names, "arms": [arm.name for arm in drawable]},
    }
    return outcome, pictures


def _subject(sampler: Sampler, target: Any, data: Any, teacher: Any, protocol: Generation) -> Subject:
    recipe = Path(target) / "recipe.json" if isinstance(target, str | Path) else None
    told = files.read_object(recipe) if recipe is not None and recipe.exists() else {}
    inputs, fields = run_folders.inputs_of(target), files.mapping(told, "fields")
    where = data if data is not None else inputs.get("data", sampler.source)
    if where is None or isinstance(where, Mapping) or where == "memory":
        raise AttarError("nothing says which data this sampler was trained for; name it, such as data=digits")
    test, note = None, ""
    if isinstance(where, Samples) or (isinstance(where, str) and where.strip() in POINTS):
        samples = Samples.of(where)
    else:
        splits = sources.resolve(where)
        samples, test, note = Samples.of(splits.train), splits.test, splits.note
    fits = sampler.form == samples.form
    if sampler.pipeline is not None:  # whose latents become pictures
        fits = sampler.picture(torch.zeros(1, *sampler.shape)).shape[2:] == samples.shape[1:]
    if not fits or (sampler.conditions and sampler.conditions != samples.conditions):
        raise DataError(
            f"the sampler draws {list(sampler.shape)} with {len(sampler.conditions)} conditions, {samples.source} has "
            f"{list(samples.shape)} with {len(samples.conditions)}; name the data it was trained for"
        )
    taught = inputs.get("teacher")
    named = taught if isinstance(taught, str) and taught != "exact" and not taught.startswith("hf:") else None
    if teacher is None and named is not None and not Path(named).exists():
        tell(f"the teacher {taught} is not there, so none is measured; name one with --teacher")
        taught = None
    found = _teacher(sampler, samples, taught if teacher is None else teacher)
    guidance = protocol.teacher_guidance
    if guidance is None and found is not None and isinstance(fields.get("guidance"), Mapping):
        guidance = _usual(fields["guidance"])
    return Subject(sampler, samples, test, note, found, guidance)


def _usual(guidance: Mapping[str, Any]) -> float | None:
    """Return the g that a student took over from its teacher: the middle of the range, where there is one."""
    scale, highest = guidance.get("scale"), guidance.get("highest")
    if not isinstance(scale, int | float):
        return None
    return float(scale if not isinstance(highest, int | float) else (scale + highest) / 2)


def _piped(pipeline: Pipeline, sampler: Sampler, data: Samples) -> Sampler:
    """Return a pipeline as a sampler of latents like a student's."""
    conditions, vectors = pipeline.told(data.conditions)
    like = torch.zeros(1, *sampler.shape)
    return pipeline.sampler(LatentSamples(like, torch.zeros(1).long(), conditions, vectors, source=data.source))


def _teacher(sampler: Sampler, data: Samples, given: Any) -> Sampler | None:
    """Return the teacher as a sampler: given, the data's closed form, or one that was trained as a stage; or none."""
    if isinstance(given, list | tuple):
        if len(given) != 1:
            raise RecipeError(f"a sampler stands beside one teacher; got {len(given)}")
        given = given[0]
    if isinstance(given, Sampler):
        return given
    if given == "exact":
        return exact(data)
    if isinstance(given, str) and given.startswith("hf:"):
        return _piped(Pipeline.named(given.removeprefix("hf:")), sampler, data)
    if isinstance(given, str | Path) and Path(given).exists():
        made = load(given)
        if not isinstance(made, Sampler):
            raise AttarError(f"{given} holds a {made.kind}; a sampler stands beside the sampler that taught it")
        return made
    if isinstance(given, str | Path):
        raise AttarError(f"the teacher {given} is not there any more; name another with --teacher")
    taught = next((sampler.parents[name] for name in sampler.parents if name.endswith("teacher")), None)
    return None if taught is None else _stage(taught)


def _stage(fingerprint: str) -> Sampler | None:
    """Return the sampler of a fingerprint from the cache of stages; none where the cache has been emptied."""
    for head in sorted((files.home() / "stages").glob("*/artifact/artifact.json")):
        if f'"{fingerprint}"' in head.read_text(encoding="utf-8", errors="replace"):
            made = load(head.parent)
            if isinstance(made, Sampler) and made.fingerprint == fingerprint:
                return made
    return None


class _ExactNetwork(nn.Module):
    """A closed form as the network of a sampler."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self.view, self.place = view, nn.Parameter(torch.zeros(1))  # a network has a device

    def forward(self, x: Tensor, label: Tensor, condition: Any = None) -> Tensor:
        return self.view.velocity(x, label, condition)


def exact(data: Samples) -> Sampler:
    """Return the data's closed form as a sampler: by flow matching, whose ODE ends where every process's does.

    Raises:
        DataError: the data have no closed form.
    """
    view = data.exact(Flow())
    if view is None:
        raise DataError(f"{data.source} has no closed form; name a trained teacher")
    reading = Reading(process=FlowProcess(), prediction="velocity")
    return Sampler(_ExactNetwork(view), PointMLP(), data.form, reading, conditions=data.conditions, source=data.source)


def _score(subject: Subject, protocol: Generation, asked: Asked) -> tuple[generation.Score, dict[str, Any]]:
    """Return what scores the arms, and what is to be said of it."""
    if not isinstance(subject.data, ImageSamples):
        return _point_score(subject, protocol, asked)
    with tempfile.TemporaryDirectory() as scratch:
        work = plan.choose(subject.sampler.shape[-1])
        with Run(Path(scratch) / "run", plan=work, title="evaluate") as run:  # for its stages, which are kept
            judge = judge_of(run, subject.data, protocol.features)
    real, which = generation.reference_pictures(subject.data, subject.test)
    if isinstance(judge, PackagedJudge) and subject.data.vectors is not None:
        real = judge.known_pictures  # the same ones, which the judge has looked at
    told: dict[str, Any] = {"features": judge.name, "reference": f"{len(real)} {which}"}
    if isinstance(judge, ClassifierJudge) and subject.test is not None:
        told["judge_accuracy"] = judge.accuracy(subject.test)
    return generation.picture_score(judge, real), told


def _point_score(subject: Subject, protocol: Generation, asked: Asked) -> tuple[generation.Score, dict[str, Any]]:
    """Return what scores points; the ODE that endpoints are held to is the teacher's, else the data's closed form."""
    judge, whose, guidance = subject.teacher, "the teacher's ODE", subject.guidance
    if judge is None and subject.data.exact(Flow()) is not None:
        judge, whose, guidance = exact(subject.data), "the exact ODE", None
    ends = None
    if judge is not None:
        ends = generation.endpoints(judge, asked, protocol.reference_steps, guidance)
    told = {"endpoints": f"{whose}, Heun, {protocol.reference_steps} steps" if judge is not None else None}
    return generation.point_score(subject.data, protocol, asked, ends), told


def _bends(subject: Subject, asked: Asked, protocol: Generation) -> dict[str, float]:
    """Return how far the ways of the sampler and of its teacher are from straight, where they follow an ODE."""
    steps = protocol.teacher_steps
    found = {"sampler": generation.straightness(subject.sampler, asked, steps)}
    if subject.teacher is not None:
        found["teacher"] = generation.straightness(subject.teacher, asked, steps, subject.guidance)
    return {name: value for name, value in found.items() if value is not None}


def _real(subject: Subject, asked: Asked, score: generation.Score) -> dict[str, Any]:
    """Return the row of the data themselves: as many other samples, which is what a perfect sampler would come to."""
    which = asked.which
    if isinstance(subject.data, ImageSamples):
        x, drawn = subject.data.draw_named(len(asked), torch.Generator().manual_seed(asked.seed + 1))
        which = None if which is None else drawn
    else:
        x = generation.real_points(subject.data, asked, "other")
    told = score(x, Asked(asked.noise, which, asked.seed))
    told.pop("endpoint_error", None)  # real samples begin at no noise
    return {"name": "data", "samples": len(x), **told}


def _pictures(subject: Subject, arms: Sequence[Arm], prompts: Sequence[str], seed: int) -> tuple[list[str], Shown]:
    """Return the names of the rows, and what each arm draws in them as bytes `[rows, each, C, H, W]`."""
    sampler, data = subject.sampler, subject.data
    if not sampler.conditions:
        if prompts:
            raise RecipeError("this sampler was trained without conditions, so no prompt can be given to it")
        names, told = ["all"], None
    else:
        spaced = torch.linspace(0, len(data.conditions) - 1, min(ROWS, len(data.conditions))).round().long()
        names = list(prompts) or [data.conditions[place] for place in spaced]
        told = condition_of(sampler, names)
    each = EACH if told is not None else EACH * ROWS
    drawn = generation.shown(list(arms), told, each, sampler.shape, seed)
    pixels = {name: sampler.picture(x.flatten(0, 1)).unflatten(0, x.shape[:2]) for name, x in drawn.items()}
    return names, {name: (x * 255).round().to(torch.uint8) for name, x in pixels.items()}


def _points(subject: Subject, arms: Sequence[Arm], asked: Asked) -> Shown:
    """Return where the same first noises end in every arm, and real points `[n, d]`."""
    few = asked.few(POINTS_SHOWN)
    made = {f"arm.{number}": few.draw(arm.sampler, arm.steps, arm.guidance) for number, arm in enumerate(arms)}
    return {**made, "data": subject.data.draw_named(len(few), torch.Generator().manual_seed(0))[0]}
