"""Fine-tuning: an encoder that learned without labels becomes a classifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from attar import losses
from attar.artifacts import Student
from attar.data import Images
from attar.data.soft_labels.views import Views
from attar.methods.model.mae import MaskedAutoencoding
from attar.methods.model.masked.pretraining import Pretraining, encoder_of
from attar.nets.masked import continued
from attar.nets.tokens import TokenNetwork
from attar.run import AdamW, Learner, Run
from attar.spec import method, spec
from attar.train.objective import Term

Loss = Callable[[TokenNetwork, Tensor, Tensor], Tensor]  # (network, images, labels [n, classes]) -> mean loss


SMALL: dict[str, Any] = {
    "train": {"steps": 300, "batch": 64, "optimizer": {"lr": 1e-3}, "views": {"scale": [0.5, 1.0], "mix": "none"}}
}


@spec
class Tuning:
    """How a pre-trained vision transformer learns labels."""

    layers: Literal["all", "head"] = "all"  # what learns
    layer_decay: float = Field(0.65, gt=0, le=1)  # ViT-B's; 0.75 for ViT-L
    pool: Literal["class", "mean"] | None = None  # what the head reads; none: as the encoder has it
    train: Pretraining = Pretraining(
        epochs=100,
        batch=1024,
        optimizer=AdamW(lr=2e-3, weight_decay=0.05, decays="weights"),  # 5e-4 for each 256
        warmup_epochs=5,
        views=Views(scale=(0.08, 1.0), mix="cutmix"),
    )

    def tune(
        self, run: Run, module: TokenNetwork, data: Images, loss_of: Loss, *, extra: Sequence[Tensor] = ()
    ) -> None:
        """Train a network in place, and `extra` parameters at the rate of its head."""
        steps, batch = self.train.total(len(data)), self.train.labelled(run, data)
        learners = self.learners(run, module, len(data), extra)
        for step in run.loop("fine-tune", steps):
            module.train()
            part = batch(step)
            loss = loss_of(module, part.images, part.labels)
            run.backward(part.share([Term("labels", loss)]), *learners)
            for learner in learners:
                learner.step()

    def learners(self, run: Run, module: TokenNetwork, count: int, extra: Sequence[Tensor]) -> list[Learner]:
        """Return the learners of head, blocks and patches, each with its rate; of the head alone in a linear probe."""
        module.requires_grad_(self.layers == "all")
        groups: list[list[Tensor]] = [
            [*module.head.requires_grad_(True).parameters(), *module.collapse.parameters(), *extra]
        ]
        groups += [list(stage.parameters()) for stage in reversed(module.stages)]
        groups.append(list(module.patches.parameters()))
        steps, schedule, optimizer = self.train.total(count), self.train.schedule(count), self.train.optimizer
        made = []
        for depth, group in enumerate(groups):
            trained = [parameter for parameter in group if parameter.requires_grad]
            if trained:
                own = dataclasses.replace(optimizer, lr=optimizer.lr * self.layer_decay**depth)
                made.append(
                    run.learner(f"layer {depth}", trained, own, schedule=schedule, steps=steps, clip=self.train.clip)
                )
        return made


@method
class FineTuning(Tuning):
    """Train a pre-trained vision transformer on labels behind a new head (He et al. 2022, arXiv 2111.06377, table 9).

    The learning rate falls by `layer_decay` with every block towards the pixels. Of the paper's recipe, RandAugment,
    label smoothing, stochastic depth and switching between MixUp and CutMix are left out, and of its code random
    erasing. With `layers="head"` it is a linear probe.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {"small": {**SMALL, "pretraining": MaskedAutoencoding.presets["small"]}}

    pretraining: MaskedAutoencoding = MaskedAutoencoding()  # of an encoder, where none is given

    def __call__(self, run: Run, *, data: Images, encoder: Student | None = None) -> Student:
        """Train an encoder's blocks, a run of mae's or its kin's, behind a head of its own for the classes."""
        given = run.stage("encoder", self.pretraining, data=data) if encoder is None else encoder
        _, net = encoder_of(given, data)
        net = dataclasses.replace(net, pool=self.pool or net.pool)
        module = continued(given.module, net, data, run.rng("head")).to(run.device)
        self.tune(run, module, data, lambda network, images, labels: losses.soft_cross_entropy(network(images), labels))
        module.requires_grad_(True)
        return Student(module.eval(), net, data.channels, data.size, data.classes)
