"""TinyCLIP: a dual encoder inherits a part of a larger one and mimics its affinities, in stages (arXiv 2309.12314)."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field, field_validator
from torch import Tensor

from attar import losses, nets
from attar.artifacts.dual import DualStudent
from attar.data import Images
from attar.errors import RecipeError
from attar.methods.model.clip import ContrastivePairs
from attar.methods.model.paired.gates import Gates, GateTraining, shortfall_penalty
from attar.methods.model.paired.inheritance import Shrunk, TowerPart, inherit, leading_parts, net_of
from attar.methods.model.paired.teacher import DualTeacher
from attar.methods.model.paired.training import PLAIN, Batch, Pairs, PairTraining, learn, vectors
from attar.nets.dual import START_SCALE, DualEncoder, TowerGates, fresh_dual
from attar.nets.dual_specs import DualNet
from attar.run import Cosine, Run
from attar.spec import method
from attar.train.retrieval import image_vectors, text_vectors


@method
class TinyCLIP:
    """Shrink a dual encoder: weights are inherited, affinities mimicked, in stages (Wu et al. 2023, arXiv 2309.12314).

    L = affinity · ½ [CE(softmax(s I'U'ᵀ), s I Uᵀ) + CE(softmax(s U'I'ᵀ), s U Iᵀ)] + (1 − affinity) · L_CLIP, with unit
    vectors I, U of a batch's images and texts, the teacher's primed; their spaces may differ in width.
    Manual: a stage takes every k-th block of the one before, and the first of everything in it. Automatic: a stage
    learns gates on the one before, that close under a limit on parameters, and keeps what is open. The teacher stays
    the first network, whose tokenizer the student has.
    """

    version: ClassVar = 2
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            "stages": [
                {"image_width": 80, "image_depth": 4, "text_width": 48, "text_depth": 4},
                {"image_width": 64, "image_depth": 2, "text_width": 32, "text_depth": 2},
            ],
            "keep": [0.5, 0.25],
            "gates": {"steps": 100, "ramp": 50, "open": 2.0, "optimizer": {"lr": 0.05}},
            "inherit=automatic": {"train": {**ContrastivePairs.presets["small"]["train"], "steps": 250}},
            "train": {**ContrastivePairs.presets["small"]["train"], "steps": 150},
            "teaching": ContrastivePairs.presets["small"],
        }
    }

    inherit: Literal["manual", "automatic", "none"] = "manual"  # none: every stage starts from random weights
    stages: tuple[Shrunk, ...] = Field(
        (
            Shrunk(image_width=640, image_depth=12, text_width=512, text_depth=9),
            Shrunk(image_width=512, image_depth=12, text_width=512, text_depth=6),
        ),
        min_length=1,
    )  # of manual inheritance; the paper's ViT-61M/32 + 29M, then ViT-40M/32 + 19M, from ViT-B/32
    keep: tuple[float, ...] = Field((0.75, 0.5, 0.25), min_length=1)  # of automatic: share of the teacher's parameters
    gates: GateTraining = GateTraining()  # of automatic
    affinity: float = Field(1.0, ge=0, le=1)  # α, weight of the teacher's affinities; the rest is the pairs' own
    scale: float | None = Field(50.0, gt=0)  # s of both networks, fixed; none: the teacher's own, the student's learned
    train: PairTraining = PairTraining()  # of each stage
    teaching: ContrastivePairs = ContrastivePairs()  # of a teacher, where none is given

    @field_validator("keep")
    @classmethod
    def _falls(cls, keep: tuple[float, ...]) -> tuple[float, ...]:
        if not all(a > b for a, b in itertools.pairwise((1.0, *keep, 0.0))):
            raise ValueError("shares that are kept lie between 1 and 0 and fall from stage to stage")
        return keep

    def __call__(self, run: Run, *, data: Images, teacher: DualTeacher | None = None) -> DualStudent:
        """Shrink the teacher, which is trained first if none is given, stage by stage.

        Raises:
            RecipeError: gates take all of a stage's steps, and what they leave would learn nothing.
        """
        each = self.train.total(len(data))  # steps of a stage
        if self.inherit == "automatic" and self.gates.steps >= each:
            raise RecipeError(
                f"a stage has {each} steps on {len(data)} pairs, and its gates take {self.gates.steps} of them; set "
                f"gates.steps lower, such as {max(1, each // 2)}, or train.steps higher"
            )
        known = DualTeacher.of(teacher).ready(run, data, self.teaching)
        lessons = Lessons(run, data, known, self)
        module, net = known.module, known.net
        ids = {"vocabulary": len(module.text.tokens), "end": known.tokenizer.end}
        sizes: Sequence[Shrunk | float] = self.keep if self.inherit == "automatic" else self.stages
        for number, size in enumerate(sizes):
            name, first, parts = f"stage {number + 1}", number * lessons.steps, None
            if isinstance(size, Shrunk):
                child = size.of(net)
                if self.inherit == "manual":
                    parts = leading_parts(net, child)
            else:
                module, parts = self.chosen(lessons, module, net, size, name=name, first=first)
                child, first = net_of(net, parts), first + self.gates.steps
            smaller = fresh_dual(child, data, run.rng(name), **ids, device=run.device)
            if parts is not None:
                inherit(module, smaller, parts)
            module, net = self.scaled(smaller), child
            steps = (number + 1) * lessons.steps - first
            learn(run, module, self.train, functools.partial(lessons.loss, module, first), name=name, steps=steps)
        made = module.requires_grad_(True).eval()
        return DualStudent(made, net, known.tokenizer, channels=data.channels, size=data.size, template=known.template)

    def chosen(
        self, lessons: Lessons, parent: DualEncoder, net: DualNet, keep: float, *, name: str, first: int
    ) -> tuple[DualEncoder, tuple[TowerPart, TowerPart]]:
        """Return a copy of a network that has learned together with its gates, and the parts that these leave."""
        run, own, steps = lessons.run, self.gates, self.gates.steps
        module = self.scaled(copy.deepcopy(parent).requires_grad_(True))
        gates = Gates(net, module, own.open).to(run.device)
        multipliers = torch.full((2,), own.multiplier, device=run.device)
        wanted = 1 - keep * lessons.parameters / gates.total
        warm = Cosine(warmup=min(self.train.warmup, steps // 5), final=1.0)
        optimizer, clip = self.train.optimizer, self.train.clip
        learners = (
            run.learner(f"{name}, gated", module, optimizer, schedule=warm, steps=steps, clip=clip),
            run.learner(f"{name}, gates", gates, own.optimizer),
            run.learner(f"{name}, multipliers", multipliers, own.optimizer),
        )
        for step in run.loop(f"{name}, gates", steps):
            module.train()
            pairs = lessons.loss(module, first, step, gates.drawn(run.rng("gates", step)))
            target = wanted * min(1.0, (step + 1) / own.ramp)
            limit = shortfall_penalty(multipliers, target, gates.share())
            run.backward({"pairs": pairs, "limit": limit}, *learners, joined=True)
            learners[2].parameters[0].grad = -cast(Tensor, multipliers.grad)  # they climb what the rest goes down
            for learner in learners:
                learner.step()
            gates.constrain()
            module.constrain()
        return module, gates.kept()

    def scaled(self, module: DualEncoder) -> DualEncoder:
        """Return a module whose cosines are multiplied by the fixed scale, or by one that is learned anew."""
        with torch.no_grad():
            module.log_scale.fill_(math.log(self.scale or START_SCALE))
        module.log_scale.requires_grad_(self.scale is None)
        return module


class Lessons:
    """The pairs of a run, and what its teacher says of them: asked once where pictures are shown as they are.

    Args:
        run: the run.
        data: the pairs.
        teacher: frozen.
        method: weights, scale and training.
    """

    def __init__(self, run: Run, data: Images, teacher: DualStudent, method: TinyCLIP) -> None:
        self.run, self.method, self.teacher = run, method, teacher.module
        self.steps = method.train.total(len(data))  # of a stage
        towers = (teacher.module.image, teacher.module.text)
        self.parameters = sum(nets.count_parameters(tower) for tower in towers)
        context = teacher.net.text.context
        self.pairs = Pairs(run, data, teacher.tokenizer, method.train, context=context, template=teacher.template)
        self._told: tuple[Tensor, Tensor] | None = None
        if method.train.views == PLAIN and method.affinity:
            self._told = image_vectors(teacher.module, data), text_vectors(teacher.module, self.pairs.ids)

    def loss(
        self, module: DualEncoder, first: int, step: int, gates: tuple[TowerGates, TowerGates] | None = None
    ) -> Tensor:
        """Return the loss of a step of a loop, whose pairs are counted from `first`."""
        batch, method = self.pairs.batch(first + step), self.method
        images, texts = vectors(self.run, module, batch, gates)
        scale: Tensor | float = method.scale or module.scale
        loss = images.new_zeros(())
        if method.affinity:
            told, teacher_scale = self.told(batch), method.scale or self.teacher.scale
            loss = method.affinity * losses.affinity_cross_entropy(
                (images, texts), told, student_scale=scale, teacher_scale=teacher_scale
            )
        if method.affinity < 1:
            own = losses.pair_cross_entropy(images, texts, scale, groups=batch.groups)
            loss = loss + (1 - method.affinity) * own
        return loss

    @torch.no_grad()
    def told(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the teacher's vectors of a batch."""
        if self._told is None:
            return vectors(self.run, self.teacher, batch)
        places = batch.indices.to(self.run.device)
        return self._told[0][places], self._told[1][places]
