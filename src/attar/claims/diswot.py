"""The claim of DisWOT: likeness to an untrained teacher orders students of equal size better than NWOT does."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from attar import nets
from attar.claims.claim import Contrast, Trial
from attar.claims.taught_once import TaughtOnce
from attar.claims.vision import Shares, VisionClaim
from attar.data import Images
from attar.data.sources import Splits
from attar.methods.model.diswot import SearchedStudent, Space
from attar.methods.model.kd import KnowledgeDistillation
from attar.methods.model.proxies import naswot, operations
from attar.metrics import accuracy, kendall_tau
from attar.nets import Net, StagedResNet
from attar.run import Run
from attar.train.training import predict

FEATURES = 24  # channels of every embedding
SPACE = Space(depths=(1, 2), widths=((4, 6, 8, 12, 16), (8, 12, 16, 24, 32), (FEATURES,)))
AT = "24 students within 10 % of one size, accuracy of three distillations of 250 steps each"


class SearchedStudentClaim(TaughtOnce, VisionClaim):
    """DisWOT against NWOT, which needs no teacher: Kendall's τ with the accuracy of students that were distilled.

    A seed draws a size and a pool of students about it, so that size orders nothing. Random ranking has τ 0 by
    construction and is no rival; parameters and operations are printed.
    """

    id = "diswot"
    title = "DisWOT: Student Architecture Search for Distillation WithOut Training"
    says = "Kendall's τ with accuracy after distillation above that of NWOT, Zen and SynFlow (arXiv 2303.15678)"
    origin = "the card: τ above 0.2 on a small space where size may vary; nothing is known at equal size; no pilot"
    primary = Contrast(method="diswot", baseline="nwot", metric="tau", at=AT, worst=-1.0)
    secondary = (
        Contrast(method="diswot", baseline="parameters", metric="tau", at=AT, worst=-1.0),
        Contrast(method="diswot", baseline="operations", metric="tau", at=AT, worst=-1.0),
        Contrast(method="diswot", baseline="random", metric="tau", at=AT, worst=-1.0),
        Contrast(method="semantic", baseline="relation", metric="tau", at=AT, worst=-1.0),
    )
    expects = 0.2
    delta = 0.1
    seeds = 5
    grids: ClassVar = {
        name: {"draws": [5]}
        for name in ("diswot", "relation", "semantic", "nwot", "parameters", "operations", "random")
    }
    methods = ("diswot", "kd")
    trial_seeds = 1
    underpowered = "the standard error of τ is 0.14 a pool of 24, so five pools resolve a difference of about 0.25"
    source = "fashion-mnist?size=14"
    quick_source = "fashion-mnist-mini?size=14"
    teacher_net: ClassVar[Net] = StagedResNet(blocks=(3, 3, 3), widths=(16, 24, FEATURES))
    steps: ClassVar = 250
    batch: ClassVar = 32
    pool_size: ClassVar = 24
    trainings: ClassVar = 3

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        """Return how well a score orders the students of a seed's pool by their accuracy."""
        splits = self.splits(run)
        shares = self.shares(run, self.taught())
        teacher = self.teacher(run, shares.seen)
        pool = self.pool(run, splits.train)
        draws: int = trial["draws"]
        # arms that run side by side begin at different students, so that neither waits for what the other trains
        first = list(self.grids).index(name) % 2 * (len(pool) // 2)
        found = {
            genes: self.distilled(run, splits, shares, teacher, genes=genes, seed=seed)
            for genes in (*pool[first:], *pool[:first])
        }
        truth = [found[genes] for genes in pool]
        scores = [self.score(run, name, genes, splits.train, teacher=teacher.module, draws=draws) for genes in pool]
        return {"tau": kendall_tau(scores, truth) or 0.0}

    def pool(self, run: Run, data: Images) -> list[tuple[int, ...]]:
        """Return different students within a tenth of the size of one that is drawn."""
        every = list(itertools.product(*SPACE.choices))
        with torch.device("meta"):
            size = {
                genes: nets.count_parameters(SPACE.net(genes).build(data.channels, data.size, data.num_classes))
                for genes in every
            }
        rng, count = run.rng("pool"), 4 if self.quick else self.pool_size
        for place in torch.randperm(len(every), generator=rng).tolist():
            near = [genes for genes in every if abs(size[genes] / size[every[place]] - 1) <= 0.1]
            if len(near) >= count:
                order = torch.randperm(len(near), generator=rng)[:count].tolist()
                return [near[number] for number in order]
        raise AssertionError("the space has no pool of that size")

    def distilled(
        self, run: Run, splits: Splits, shares: Shares, teacher: Any, *, genes: tuple[int, ...], seed: int
    ) -> float:
        """Return the mean test accuracy of a student over trainings, in stages that the arms of a seed share.

        Tuning has nothing to choose here and trains each student once, so the spread that it tells is rather too large.
        """
        found = []
        for number in range(self.trainings if self.phase == "verdict" else 1):
            objective = KnowledgeDistillation(student=SPACE.net(genes), train=self.training({}))
            made = self.student(run, objective, shares.labelled, teacher, seed=1000 * number + seed)
            found.append(accuracy(predict(made.module, splits.test), splits.test.labels))
        return statistics.fmean(found)

    def score(self, run: Run, name: str, genes: tuple[int, ...], data: Images, *, teacher: Any, draws: int) -> float:
        """Return what an arm says of a student without training it."""
        number = list(itertools.product(*SPACE.choices)).index(genes)
        if name in ("diswot", "relation", "semantic"):
            kind: Any = "both" if name == "diswot" else name
            method = SearchedStudent(space=SPACE, score=kind, draws=1 if self.quick else draws)
            return method.score_of(genes, data, teacher, run, number)
        module = nets.fresh(SPACE.net(genes), data, run.rng("scored", number))
        if name == "nwot":
            total = 0.0
            for draw in range(1 if self.quick else draws):
                nets.reset(module, run.rng("scored", number, draw))
                rows = torch.randperm(len(data), generator=run.rng("batch", draw))[:64]
                total += naswot(module, data.batch(rows)[0])
            return total
        if name == "random":
            return float(torch.rand((), generator=run.rng("scored", number)))
        return float(nets.count_parameters(module) if name == "parameters" else operations(module, data))
