"""A step of distillation against loops written by hand: with tapped features, and from stored soft labels.

python -m benchmarks.kd
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar import losses, nets
from attar.artifacts import Student
from attar.artifacts.soft_labels import SoftLabels
from attar.data import Images
from attar.data.plans import order_of
from attar.data.soft_labels import Views
from attar.methods.model.kd import KnowledgeDistillation
from attar.methods.model.student import TrainStudent, parts
from attar.nets import ConvNet
from attar.run import SGD, Plan, Run, plan
from attar.train.label import LabelSamples
from attar.train.objective import StudentTraining
from attar.train.teacher import Teacher
from benchmarks.measure import HEADER, Ratio, summarise
from benchmarks.workload import against, images

STUDENT = ConvNet(depth=3, width=32, norm="batch")
TEACHER = ConvNet(depth=3, width=64, norm="batch")
DEAR = ConvNet(depth=3, width=88, norm="batch")  # its forward pass takes four times the student's, by the clock
BATCH, STEPS, PASSES = 64, 300, 2
VIEWS = Views(scale=(0.5, 1.0))
SHAPE = "28 px, w{} → w32, d3, batch norm"


def teacher_of(data: Images, net: ConvNet) -> Student:
    """Return a teacher; what it says does not matter here."""
    module = nets.fresh(net, data, torch.Generator().manual_seed(1)).eval().requires_grad_(False)
    return Student(module, net, data.channels, data.size, data.classes)


def training(steps: int = STEPS) -> StudentTraining:
    """Return how students are trained."""
    return StudentTraining(steps=steps, batch=BATCH, augment="none", optimizer=SGD(lr=0.01, momentum=0.9))


@torch.no_grad()
def forward_seconds(net: ConvNet, data: Images, passes: int = 15) -> float:
    """Return the median of the process's seconds for a forward pass of a batch."""
    module, shown = teacher_of(data, net).module, data.normalised(torch.arange(BATCH))
    times = []
    for _ in range(passes):
        began = time.process_time()
        module(shown)
        times.append(time.process_time() - began)
    return statistics.median(times)


class ByHand:
    """A plain loop of KD, one step a call.

    Args:
        data: the images.
        teacher: asked in every step.
        loss: of student and teacher modules, images and labels.
        rows: samples of an epoch.
        batch: reads images and labels at rows; the data's own if not given.
    """

    def __init__(
        self,
        data: Images,
        teacher: Student,
        loss: Callable[[nn.Module, nn.Module, Tensor, Tensor], Tensor],
        batch: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
        source: Any = None,
    ) -> None:
        self.loss, self.teacher, self.batch = loss, teacher.module, batch or data.batch
        self.student = nets.fresh(STUDENT, data, torch.Generator().manual_seed(0)).train()
        self.optimizer = torch.optim.SGD(self.student.parameters(), 0.01, momentum=0.9)
        self.order = order_of(source or data, BATCH, 0)
        self.steps = 0

    def __call__(self) -> None:
        """Take a step."""
        shown, labels = self.batch(self.order.indices(self.steps))
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.student, self.teacher, shown, labels).backward()
        self.optimizer.step()
        self.steps += 1


def tapped_loss(student: Any, teacher: Any, shown: Tensor, labels: Tensor) -> Tensor:
    """Return labels, KD and attention, features handed out by the networks themselves."""
    with torch.no_grad():
        told_maps, told = teacher.features(shown)
        told = teacher.head(told)
    maps, embedding = student.features(shown)
    logits = student.head(embedding)
    attention = [losses.attention_distance(a, b) for a, b in zip(maps, told_maps, strict=True)]
    wanted = 0.1 * nn.functional.cross_entropy(logits, labels) + 0.9 * losses.kl_divergence(logits, told, 4.0)
    return wanted + 1000.0 * torch.stack(attention).sum()


def live_loss(student: nn.Module, teacher: nn.Module, shown: Tensor, labels: Tensor) -> Tensor:
    """Return labels and KD, the teacher asked."""
    with torch.no_grad():
        told = teacher(shown)
    logits = student(shown)
    return 0.1 * nn.functional.cross_entropy(logits, labels) + 0.9 * losses.kl_divergence(logits, told, 4.0)


def tapped(data: Images, chosen: Plan) -> Ratio:
    """Return our step over a step by hand, both with features of three stages of both networks."""
    teacher = teacher_of(data, TEACHER)
    objective = TrainStudent(student=STUDENT, train=training(), objective=parts("kd+attention"), hard=0.1)
    method = functools.partial(objective, teacher=Teacher.of(teacher))
    times = against(method, data, chosen, ByHand(data, teacher, tapped_loss))
    note = "1 thread each, KD + attention of three stages, batch 64; attar / by hand"
    return summarise(
        f"KD step, tapped teacher, {SHAPE.format(TEACHER.width)}", times, target="<= 1.03", note=note, inverse=True
    )


def stored(data: Images, chosen: Plan) -> Ratio:
    """Return a step by hand with a live teacher over our step from the store, both showing the same views."""
    teacher = teacher_of(data, DEAR)
    with tempfile.TemporaryDirectory() as folder:
        with Run(Path(folder) / "labels", plan=chosen) as run:
            told: SoftLabels = LabelSamples(passes=PASSES, views=VIEWS)(run, teacher=teacher, data=data)
        rows = told.source_of(data)
        key = told.store.head.views_key

        def live(indices: Tensor) -> tuple[Tensor, Tensor]:
            samples, views = indices % len(data), indices // len(data)  # as the store is written
            return VIEWS.images(data, key, samples, views), data.labels[samples]

        objective = KnowledgeDistillation(student=STUDENT, train=training())
        other = ByHand(data, teacher, live_loss, live, rows)
        times = against(functools.partial(objective, teacher=Teacher.of(told)), data, chosen, other)
    cost = forward_seconds(DEAR, data) / forward_seconds(STUDENT, data)
    note = f"1 thread each, crops and flips on both sides, the teacher's forward takes {cost:.1f} of the student's"
    return summarise(f"KD step, stored / live, {SHAPE.format(DEAR.width)}", times, target=">= 1.8", note=note)


def main() -> list[Ratio]:
    """Return every ratio of this topic."""
    data = images(28)
    chosen = plan.choose(28, {"device": "cpu", "threads": 1, "compile": False})
    return [tapped(data, chosen), stored(data, chosen)]


if __name__ == "__main__":
    print(HEADER, *(ratio.line() for ratio in main()), sep="\n")
