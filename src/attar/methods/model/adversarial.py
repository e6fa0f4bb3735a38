"""Adversarial training: a network learns labels of pictures that are changed against it (arXiv 1706.06083)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from attar import losses, nets
from attar.artifacts import Student
from attar.data import Images
from attar.metrics.attacks import Attack, attackable
from attar.nets import Net, ResNet18
from attar.run import SGD, Drop, Run
from attar.spec import method
from attar.train.training import Order, Training

_TRAIN = Training(
    epochs=199,
    batch=128,
    optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=2e-4),
    schedule=Drop(at=(0.5, 0.75), by=0.1),
    augment="crop-and-flip",
)


@method
class AdversarialTraining:
    """Train on attacked pictures: L = (1 − clean) · CE(z(x'), y) + clean · CE(z(x), y) (arXiv 1706.06083)."""

    version: ClassVar = 1
    presets: ClassVar = {"small": {"net": {"kind": "convnet", "depth": 2, "width": 32}, "train": {"steps": 300}}}

    net: Net = ResNet18(norm="batch")
    train: Training = _TRAIN
    attack: Attack = Attack()
    clean: float = Field(0.0, ge=0, le=1)  # share of the loss on pictures as they are

    def __call__(self, run: Run, *, data: Images) -> Student:
        """Train the network and return it."""
        module = nets.fresh(self.net, data, run.rng("net"), device=run.device)
        steps = self.train.total(len(data))
        learner = run.learner("robust", module, self.train.optimizer, schedule=self.train, steps=steps)
        order = Order(data, self.train, run.rng)
        for step in run.loop("train", steps):
            images, labels = order.batch(step)
            with attackable(module, data.normalise) as logits:
                attacked = self.attack(logits, data.denormalise(images), labels, run.rng("attack", step))
            module.train()
            terms = {"attacked": (1 - self.clean) * losses.cross_entropy(module(data.normalise(attacked)), labels)}
            if self.clean:
                terms["clean"] = self.clean * losses.cross_entropy(module(images), labels)
            learner.update(terms)
        return Student(module.eval(), self.net, data.channels, data.size, data.classes)
