"""MTT: a student on the synthetic images must end where an expert on the real data ended."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from attar.artifacts import DistilledSet
from attar.artifacts.trajectories import Trajectories
from attar.data import Images
from attar.errors import RecipeError
from attar.losses.trajectory import balance_factor
from attar.methods.data.trajectory import start as starting
from attar.methods.data.trajectory.experts import ExpertRecipe, recorded
from attar.methods.data.trajectory.flat import FlatNetwork
from attar.methods.data.trajectory.learned import Learned
from attar.methods.data.trajectory.matching import KEEP, Backward, Student, Synthetic, Waypoint, match_segment
from attar.methods.data.trajectory.presets import SMALL, row
from attar.methods.data.trajectory.segments import Window, walk
from attar.nets import ConvNet, Net
from attar.run import SGD, Optimizer, Run
from attar.spec import method


@method
class TrajectoryMatching:
    """Make a few steps on the synthetic images end where epochs on the real data end (Cazenavette et al., 2203.11932).

    Experts are networks in training on the real data, recorded once as a stage. Every step takes an expert's
    checkpoint, trains a student from there on the synthetic images and moves the images, the step size and, where
    they are learned, the labels, so that the student ends nearer to the expert's later checkpoint. FTD, TESLA, AST and
    DATM are this method with other fields, so any of them can be combined.
    """

    version: ClassVar = 1
    protocol: ClassVar = "mtt"  # of evaluation: the student takes the learned step size
    presets: ClassVar = {
        "small": SMALL,
        # the paper's rows, for data that are whitened (data=…?zca) or plain
        "cifar-10-ipc-1": row(1, (50, 2, 2, 100, 1e-7, 0.01)),  # ?zca
        "cifar-10-ipc-10": row(10, (30, 2, 20, 100, 1e-5, 0.001)),  # ?zca
        "cifar-10-ipc-50": row(50, (30, 2, 40, 1000, 1e-5, 0.001)),  # plain
        "cifar-100-ipc-1": row(1, (20, 3, 20, 1000, 1e-5, 0.01)),  # ?zca
        "cifar-100-ipc-10": row(10, (20, 2, 20, 1000, 1e-5, 0.01)),  # plain
        "cifar-100-ipc-50": row(50, (80, 2, 40, 1000, 1e-5, 0.01), batch=125),  # ?zca
        "tiny-imagenet-ipc-1": row(1, (10, 2, 10, 10_000, 1e-4, 0.01), net={"depth": 4}),  # plain
        "tiny-imagenet-ipc-10": row(10, (20, 2, 40, 10_000, 1e-4, 0.01), batch=200, net={"depth": 4}),  # plain
        "tiny-imagenet-ipc-50": row(50, (20, 2, 40, 10_000, 1e-4, 0.01), batch=300, net={"depth": 4}),  # plain
    }

    ipc: int = Field(10, ge=1)  # images per class
    steps: int = Field(5000, ge=1)  # segments matched; defaults are the paper's for CIFAR-10 at ten images a class
    student_steps: int = Field(30, ge=1)  # T, of the student along a segment
    expert_epochs: int = Field(2, ge=1)  # M, of the expert along a segment
    window: Window = Window(stop=20)  # epochs that a segment starts from
    batch: int | None = Field(None, ge=1)  # synthetic images a student's step; none: all of them
    optimizer: Optimizer = SGD(lr=100.0, momentum=0.5)  # of the pixels
    step_size: float = Field(0.001, gt=0)  # the student's, at first
    step_size_lr: float = Field(1e-5, ge=0)  # of the step size, with momentum 0.5; 0: it stays as it is
    backward: Backward = "exact"  # tesla leaves out second-order terms between steps; unroll needs memory for T steps
    kept_steps: int = Field(KEEP, ge=0)  # graphs of exact and tesla kept between two passes; 0 needs the least memory
    labels: Literal["hard", "assigned", "learned"] = "hard"  # assigned by the expert's target (TESLA), learned (DATM)
    label_optimizer: Optimizer = SGD(lr=2.0, momentum=0.9)  # of learned label logits
    threshold: float | None = Field(None, gt=0)  # segments with a larger loss move nothing (DATM)
    average: float = Field(0.0, ge=0, lt=1)  # decay of the average of the pixels that is released (FTD); 0: the last
    average_share: float | None = Field(None, gt=0, le=1)  # instead: the average's horizon as a share of the steps
    init: Literal["real", "representative", "correct"] = "real"  # images; nearest to k-means centres, or known ones
    student_momentum: float = Field(0.0, ge=0, lt=1)  # of the student's steps (AST)
    balanced: bool = False  # larger steps in late segments (AST)
    intermediate: Literal["none", "equal", "adaptive"] = "none"  # epochs between start and target are matched (AST)
    perturbation: float = Field(0.0, ge=0)  # of the start's convolutions, relative (AST)
    net: Net = ConvNet(depth=3, width=128)
    augment: str = "dsa"  # image by image, of the student
    mirror: bool = False  # half of a batch is the mirror images of the other half (FYI)
    experts: ExpertRecipe = ExpertRecipe()

    @model_validator(mode="after")
    def _long_enough(self) -> TrajectoryMatching:
        if self.intermediate != "none" and self.student_steps < self.expert_epochs:
            raise ValueError(
                f"every epoch in between is matched behind a step of its own: raise student_steps to at least "
                f"{self.expert_epochs}, or set intermediate=none"
            )
        return self

    def __call__(self, run: Run, *, data: Images, trajectories: Trajectories | None = None) -> DistilledSet:
        synthetic = DistilledSet.from_real(data, self.ipc, run.rng("init"), protocol=self.protocol)
        experts = self.recorded(run, data, trajectories)
        network = FlatNetwork(self.net, data, run.device)
        learned = self.begin(run, data, synthetic, network, experts)
        skipped = run.keep("skipped segments", 0)
        for step in run.loop("match", self.steps):
            epoch, waypoints, start = self.segment(run, experts, network, step)
            if self.labels == "assigned":
                learned.assign(starting.logits_of(network, waypoints[-1].target, learned.images))
            scale = balance_factor(epoch, self.window.stop) if self.balanced else 1.0
            student = Student(network, learned.step_size, self.student_momentum, scale)
            told: dict[str, Any] = {"order": run.key("order", step), "rng": run.rng("augment", step)}
            told |= {"shape": synthetic.images.shape[1:], "mirror": self.mirror}
            batches = walk(len(synthetic), self.batch, self.student_steps, self.augment, **told)
            match = match_segment(
                student,
                start,
                waypoints,
                batches,
                Synthetic(learned.images, learned.labels),
                mode=self.backward,
                keep=self.kept_steps,
                run=run,
            )
            learned.pixels.watch("the matching loss", match.loss)
            skip = self.threshold is not None and float(match.loss) > self.threshold
            skipped.value += skip
            run.log({"loss": match.loss, "step size": float(learned.step_size.detach()), "epoch": epoch})
            if self.threshold is not None:
                run.log({"share skipped": skipped.value / (step + 1)})
            if not skip:
                learned.update(match)
        return learned.released()

    def begin(
        self, run: Run, data: Images, synthetic: DistilledSet, network: FlatNetwork, experts: Trajectories
    ) -> Learned:
        """Return the synthetic set as it starts, with its learners."""
        indices = self.first_images(run, data, network, experts)
        if indices is not None:
            synthetic.images, synthetic.labels = data.normalised(indices).clone(), data.labels[indices].clone()
        labels = synthetic.labels
        if self.labels == "assigned":
            labels = starting.logits_of(network, experts.experts[0][-1].to(run.device), synthetic.images)
        elif self.labels == "learned":
            labels = self.first_logits(network, experts, synthetic)
        average = self.average if self.average_share is None else max(0.0, 1 - 1 / (self.average_share * self.steps))
        return Learned(
            run,
            synthetic,
            labels,
            step_size=self.step_size,
            pixels=self.optimizer,
            step_size_lr=self.step_size_lr,
            label_optimizer=self.label_optimizer if self.labels == "learned" else None,
            average=average,
        )

    def first_images(self, run: Run, data: Images, network: FlatNetwork, experts: Trajectories) -> Tensor | None:
        """Return the indices of the real images to start from; none where random ones will do."""
        if self.init == "representative":
            final = experts.experts[0][-1].to(run.device)
            return starting.representative_images(network, final, data, self.ipc, run.key("centres"))
        if self.init == "correct":
            return starting.correct_images(network, experts, data, self.ipc, run.rng("correct"))
        return None

    def first_logits(self, network: FlatNetwork, experts: Trajectories, synthetic: DistilledSet) -> Tensor:
        """Return the logits `[n, classes]` that learned labels start from."""
        return starting.averaged_logits(network, experts, synthetic.images, synthetic.labels)

    def segment(
        self, run: Run, experts: Trajectories, network: FlatNetwork, step: int
    ) -> tuple[int, list[Waypoint], Tensor]:
        """Draw a segment; return its first epoch, the waypoints of the student, the last one last, and its start."""
        expert = experts.experts[int(torch.randint(len(experts), (), generator=run.rng("expert", step)))]
        epoch = self.window.draw(step, run.rng("epoch", step))
        points = expert[epoch : epoch + self.expert_epochs + 1].to(run.device)
        start = points[0]
        if self.perturbation:
            start = starting.perturbed(network, start, self.perturbation, run.rng("perturbation", step))
        waypoints = [Waypoint(self.student_steps, points[-1])]
        if self.intermediate != "none":
            stride = self.student_steps // self.expert_epochs
            for j in range(self.expert_epochs - 1, 0, -1):
                weight = 1.0 if self.intermediate == "equal" else j / self.expert_epochs
                waypoints.insert(0, Waypoint(j * stride, points[j], weight))
        return epoch, waypoints, start

    def recorded(self, run: Run, data: Images, given: Trajectories | None) -> Trajectories:
        """Return the experts, recorded as a stage unless they were given.

        Raises:
            RecipeError: they are shorter than the longest segment.
        """
        last = self.window.stop - 1 + self.expert_epochs
        experts = recorded(run, self.net, self.experts, data, given) if given or last <= self.experts.epochs else None
        epochs = self.experts.epochs if experts is None else experts.epochs
        if experts is None or last > epochs:
            raise RecipeError(
                f"segments end as late as epoch {last} (window.stop - 1 + expert_epochs) and experts have {epochs} "
                f"epochs; lower window.stop to {max(1, epochs + 1 - self.expert_epochs)} or raise experts.epochs"
            )
        return experts
