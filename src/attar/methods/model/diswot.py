"""DisWOT: which student a teacher will teach best, told from untrained networks and searched for."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from attar import nets
from attar.artifacts import Student
from attar.data import Images
from attar.errors import RecipeError
from attar.methods.model.proxies import operations, redraw, similarities
from attar.methods.model.student import TrainStudent
from attar.nets import StagedResNet
from attar.run import Run
from attar.spec import method, spec, to_json
from attar.train.objective import Objective
from attar.train.taps import EMBEDDING, place
from attar.train.teacher import Teacher

Genes = tuple[int, ...]  # blocks of every stage, then their widths


@spec
class Space:
    """The students that are searched. The default is the paper's first: 64 ResNets of three stages."""

    depths: tuple[int, ...] = Field(default=(1, 3, 5, 7), min_length=1)  # blocks that a stage may have
    widths: tuple[tuple[int, ...], ...] = ((16,), (32,), (64,))  # channels that each stage may have

    @model_validator(mode="after")
    def _stages(self) -> Self:
        if not self.widths or not all(self.widths):
            raise ValueError("every stage needs a width, such as widths=[[16],[32],[64]]")
        return self

    @property
    def choices(self) -> list[tuple[int, ...]]:
        """What every gene may be."""
        return [self.depths] * len(self.widths) + list(self.widths)

    def net(self, genes: Genes) -> StagedResNet:
        """Return the network that genes stand for."""
        return StagedResNet(blocks=genes[: len(self.widths)], widths=genes[len(self.widths) :])

    def drawn(self, rng: torch.Generator) -> Genes:
        """Return genes drawn evenly."""
        return tuple(choices[_below(len(choices), rng)] for choices in self.choices)

    def mutated(self, genes: Genes, rng: torch.Generator) -> Genes:
        """Return genes with one of those that can change changed."""
        free = [place for place, choices in enumerate(self.choices) if len(set(choices)) > 1]
        if not free:
            return genes
        spot = free[_below(len(free), rng)]
        others = [choice for choice in self.choices[spot] if choice != genes[spot]]
        return (*genes[:spot], others[_below(len(others), rng)], *genes[spot + 1 :])


@method
class SearchedStudent:
    """Search the student that looks most like the teacher before any training (Dong et al. 2023, arXiv 2303.15678).

    Both are drawn from N(0, 1); the score is minus the distance of how they relate the samples of a batch, minus that
    of how the gradients of their class weights relate channels, so their embeddings need one width. Regularised
    evolution keeps the last `population` students; the best of all is trained by `distillation`. With the terms of the
    score beside KD, `distillation.objective=kd+sp:3000+ickd:2.5`, it is the paper's DisWOT†.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            "space": {"depths": (1, 2, 3), "widths": ((16,), (16, 32), (64,))},  # for teachers such as resnet20
            "evaluations": 30,
            "population": 10,
            "tournament": 4,
            "distillation": {"train": Objective.presets["small"]["train"], "teaching": {"epochs": 3}},
        }
    }

    space: Space = Space()
    distillation: TrainStudent = TrainStudent(hard=0.1)  # of the student found; its own `student` does not count
    score: Literal["both", "relation", "semantic"] = "both"
    draws: int = Field(5, ge=1)  # of weights and batch, averaged; one is noisy
    batch: int = Field(64, ge=2)
    evaluations: int = Field(1000, ge=1)  # students that are scored
    population: int = Field(36, ge=1)
    tournament: int = Field(8, ge=1)  # students of the population drawn for a round
    parents: int = Field(5, ge=1)  # of the tournament's best, one of which is mutated
    most_parameters: int | None = Field(None, ge=1)  # none: no limit
    most_operations: int | None = Field(None, ge=1)  # floating-point operations an image; none: no limit

    def __call__(self, run: Run, *, data: Images, teacher: Teacher) -> Student:
        """Search, write the ranking to search.json, and train the student that is found."""
        teacher = Teacher.of(teacher)
        ranked = self.search(run, data, self.fitting(teacher.architecture(run, data)))
        rows = [{"net": to_json(self.space.net(genes)), "score": score} for genes, score in ranked]
        run.write("search.json", {"ranking": rows})
        found = dataclasses.replace(self.distillation, student=self.space.net(ranked[0][0]))
        return found(run, data=data, teacher=teacher)

    def fitting(self, teacher: nn.Module) -> nn.Module:
        """Return the teacher, before anything is scored.

        Raises:
            RecipeError: the score relates channels, and students end with others than the teacher.
        """
        head: Any = place(teacher, EMBEDDING)[0]
        ends, width = self.space.widths[-1], head.weight.shape[1]
        if self.score != "relation" and set(ends) != {width}:
            wanted = json.dumps([*self.space.widths[:-1], [width]])
            raise RecipeError(
                f"the score relates channels: the teacher's embedding has {width}, students end with {list(ends)}; "
                f"set space.widths='{wanted}', take a teacher of that width, or score=relation"
            )
        return teacher

    def search(self, run: Run, data: Images, teacher: nn.Module) -> list[tuple[Genes, float]]:
        """Return the students that were scored and their scores, best first; the teacher's weights are redrawn."""
        past: Any = run.keep("history", ())
        for step in run.loop("search", self.evaluations):
            genes = self.proposed(past.value, data, run.rng("genes", step))
            known = [score for other, score in past.value if tuple(other) == genes]
            score = known[0] if known else self.score_of(genes, data, teacher, run, step)
            past.value = (*past.value, (genes, score))
            run.log({"score": score, "best": max(score for _, score in past.value)})
        best: dict[Genes, float] = {tuple(genes): score for genes, score in past.value}
        return sorted(best.items(), key=lambda row: -row[1])

    def proposed(self, history: Any, data: Images, rng: torch.Generator) -> Genes:
        """Return the next student: drawn until there is a population, then a mutation of one of its best.

        Raises:
            RecipeError: no student keeps the limits.
        """
        population = history[-self.population :]
        for _ in range(1000):
            if len(history) < self.population:
                genes = self.space.drawn(rng)
            else:
                drawn = [population[_below(len(population), rng)] for _ in range(self.tournament)]
                best = sorted(drawn, key=lambda row: -row[1])[: self.parents]
                genes = self.space.mutated(tuple(best[_below(len(best), rng)][0]), rng)
            if self.allowed(genes, data):
                return genes
        raise RecipeError("of a thousand students none keeps the limits; raise most_parameters or most_operations")

    def allowed(self, genes: Genes, data: Images) -> bool:
        """Say whether a student keeps the limits."""
        if self.most_parameters is None and self.most_operations is None:
            return True
        with torch.device("meta"):
            module = self.space.net(genes).build(data.channels, data.size, data.num_classes)
            small = self.most_parameters is None or nets.count_parameters(module) <= self.most_parameters
            return small and (self.most_operations is None or operations(module, data) <= self.most_operations)

    def score_of(self, genes: Genes, data: Images, teacher: nn.Module, run: Run, step: int) -> float:
        """Return a student's score, the mean over draws of weights and of a batch."""
        student = nets.fresh(self.space.net(genes), data, run.rng("student", step), device=run.device)
        other, total = copy.deepcopy(teacher).to(run.device), 0.0
        for draw in range(self.draws):
            rows = torch.randperm(len(data), generator=run.rng("batch", draw))[: self.batch]
            images, labels = data.batch(rows)
            redraw(student, run.rng("weights", step, draw))
            redraw(other, run.rng("teacher", draw))  # the same teachers for all students
            total += sum(similarities(student, other, images, labels, self.score))
        return total / self.draws


def _below(count: int, rng: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=rng))
