"""Training one network as a run: resumable, cacheable as a stage (teachers, networks whose features are used)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from attar import nets
from attar.artifacts import Student
from attar.data import Images
from attar.nets import ConvNet, Net
from attar.run import SGD, Cosine, Run
from attar.spec import method
from attar.train.training import Order, Training, shared_loss


@method
class TrainNetwork:
    """Train a network on labelled images with cross-entropy."""

    version: ClassVar = 1
    presets: ClassVar = {"small": {"net": {"depth": 2, "width": 32}, "training": {"epochs": 1}}}

    net: Net = ConvNet(depth=3, width=128)
    training: Training = Field(
        default=Training(epochs=10, optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=5e-4), schedule=Cosine())
    )

    def __call__(self, run: Run, *, data: Images) -> Student:
        module = nets.fresh(self.net, data, run.rng("net"), device=run.device)
        steps = self.training.total(len(data))
        student = run.learner("student", module, self.training.optimizer, schedule=self.training, steps=steps)
        order = Order(data, self.training, run.rng)
        module.train()
        for step in run.loop("train", steps):
            student.update(shared_loss(run, module, *order.batch(step)))
        return Student(module.eval(), self.net, data.channels, data.size, data.classes)
