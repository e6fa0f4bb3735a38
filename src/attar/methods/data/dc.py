"""DC: match the gradients of real and synthetic images along a short training path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from attar import losses, nets
from attar.artifacts import DistilledSet
from attar.data import Images
from attar.losses.matching import GradientDistance
from attar.methods.data.views import Shown, SiameseViews
from attar.nets import ConvNet, Net
from attar.run import SGD, Constant, Learner, Optimizer, Run
from attar.spec import method
from attar.train.training import TensorSource, Training, batch_loss, fit

SCHEDULE = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}  # ipc: (updates, epochs)
Parameters = dict[str, Tensor]
STATISTICS = 16  # real images per class that set a batch norm's statistics before a matching step


def class_loss(network: nn.Module, parameters: Parameters, images: Tensor, label: Tensor) -> Tensor:
    """Return the mean cross-entropy of images `[n, C, H, W]` of one class `[]`, as a function of the parameters."""
    logits = torch.func.functional_call(network, parameters, (images,))
    return losses.cross_entropy(logits, label.expand(len(images)))


def class_gradient(network: nn.Module, images: Tensor, label: Tensor) -> Parameters:
    """Return the gradient of `class_loss` at the network's parameters, by name, without a graph."""
    parameters: Parameters = dict(network.named_parameters())
    found = torch.autograd.grad(class_loss(network, parameters, images, label), list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


def class_distances(
    network: nn.Module, real: Parameters, images: Tensor, labels: Tensor, kind: GradientDistance
) -> Tensor:
    """Return the distance `[classes]` of every class's gradient to the real one, differentiable in the images.

    `real` holds gradients `[classes, …]` by name, `images` is `[classes, n, C, H, W]`, `labels` `[classes]`. All
    classes go through the network together: with few images a class, a loop over them takes up to 1.8 times as long.
    """
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def distance(real: Parameters, images: Tensor, label: Tensor) -> Tensor:
        fake = torch.func.grad(lambda at: class_loss(network, at, images, label))(parameters)
        return losses.gradient_distance(list(fake.values()), list(real.values()), kind)

    if any(isinstance(module, nn.LayerNorm) for module in network.modules()):
        # torch 2.13 gives a wrong second derivative of a layer norm under vmap
        per_class = [{name: gradient[k] for name, gradient in real.items()} for k in range(len(labels))]
        return torch.stack([distance(*one) for one in zip(per_class, images, labels, strict=True)])
    found: Tensor = torch.func.vmap(distance, randomness="different")(real, images, labels)
    return found


@method
class GradientMatching(Shown):
    """Match, class by class, the gradients of real and synthetic images in a network in training (arXiv 2006.05929).

    A fresh network is drawn `steps` times; each is matched `updates` times and trained on the synthetic images for
    `epochs` epochs between two matches. One image per class needs no training: networks are matched where they start.
    """

    version: ClassVar = 1
    schedule: ClassVar[Mapping[int, tuple[int, int]]] = SCHEDULE
    presets: ClassVar = {
        "small": {
            "steps": 20,
            "updates": 10,
            "epochs": 10,
            "real_batch": 64,
            "net": {"depth": 2, "width": 32},
            "ipc=1": {"steps": 150, "updates": 1, "epochs": 0},  # as the paper: networks are matched where they start
        },
    }

    ipc: int = Field(10, ge=1)  # images per class
    steps: int = Field(1000, ge=1)  # networks, the paper's K
    updates: int | None = Field(
        None, ge=1
    )  # of the images per network; none: the paper's for this ipc or the next below
    epochs: int | None = Field(None, ge=0)  # of network training between two updates; none: as for `updates`
    optimizer: Optimizer = SGD(lr=0.1, momentum=0.5)  # of the pixels, kept across networks; for an MLP the paper: 0.01
    net_optimizer: Optimizer = SGD(lr=0.01)
    real_batch: int = Field(256, ge=1)  # real images per class and update
    net: Net = ConvNet(depth=3, width=128)
    distance: GradientDistance = "rows"
    init: Literal["noise", "real"] = "noise"
    augment: str = "none"  # one Siamese draw per class and update; per image while the network trains
    mirror: bool = False  # the mirror image of every synthetic image counts as well (FYI)

    def __call__(self, run: Run, *, data: Images) -> DistilledSet:
        if self.listed != self.ipc and None in (self.updates, self.epochs):
            updates, epochs = self.schedule[self.listed]
            told = f"where they are not set, those for {self.listed} are taken: updates={updates} and epochs={epochs}"
            run.tell(f"the paper has no updates and epochs for {self.ipc} images a class; {told}")
        start = DistilledSet.from_real if self.init == "real" else DistilledSet.from_noise
        protocol = "dc" if self.augment == "none" else "dsa"
        synthetic = start(data, self.ipc, run.rng("init"), protocol=protocol)
        pixels = run.learner("pixels", synthetic.images, self.optimizer)
        network = run.keep("network", nets.fresh(self.net, data, run.rng("net"), device=run.device))
        count = data.num_classes * self.shown_ipc
        updates, training = self.path(count)
        each = 0 if training is None else training.total(count) * min(training.batch, count)
        loss_of = run.compiled(batch_loss, self.steps * (updates - 1) * each)
        for step in run.loop("match", self.steps * updates):
            outer, update = divmod(step, updates)
            if update == 0:
                nets.reset(network, run.rng("net", outer))
            self.match(run, data, synthetic, network, pixels=pixels, step=step)
            pixels.step()
            if update < updates - 1 and training is not None:
                labels = synthetic.labels.repeat(self.shown_ipc // self.ipc)
                source = TensorSource(self.shown(synthetic.images), labels)
                fit(network, source, training, lambda name, *at, step=step: run.rng(name, step, *at), loss_of)
        return synthetic

    @property
    def listed(self) -> int:
        """The most images a class, `ipc` or fewer, for which the paper says updates and epochs."""
        return max(ipc for ipc in self.schedule if ipc <= self.ipc)

    def path(self, count: int) -> tuple[int, Training | None]:
        """Return the updates per network, and how it is trained on `count` images between two of them."""
        known = self.schedule[self.listed]
        updates = known[0] if self.updates is None else self.updates
        epochs = known[1] if self.epochs is None else self.epochs
        if epochs == 0 or updates == 1:
            return updates, None
        steps = epochs * -(-count // 256)
        return updates, Training(
            steps=steps, batch=256, optimizer=self.net_optimizer, schedule=Constant(), augment=self.augment
        )

    def match(
        self, run: Run, data: Images, synthetic: DistilledSet, network: nn.Module, *, pixels: Learner, step: int
    ) -> None:
        """Send the gradient of every class's distance to the pixels."""
        for real, fake, labels in self.pairs(run, data, synthetic, network, step=step):
            run.backward(class_distances(network, real, fake, labels, self.distance).sum(), pixels)

    def pairs(
        self, run: Run, data: Images, synthetic: DistilledSet, network: nn.Module, *, step: int
    ) -> Iterator[tuple[Parameters, Tensor, Tensor]]:
        """Yield what a step matches, some classes at a time.

        Real gradients `[classes, …]` by name, synthetic images `[classes, n, C, H, W]` with a graph of their own, and
        labels `[classes]`.
        """
        if nets.batch_statistics(network):
            settled = data.per_class(STATISTICS, run.rng("statistics", step), repeat=True)
            settle_batch_norm(network, settled.flatten(0, 1))
        indices = data.draw(self.real_batch, run.rng("real", step), repeat=True)
        views = SiameseViews(self.augment, data.num_classes, synthetic.images.shape[1:], run.rng("augment", step))
        labels = torch.arange(data.num_classes, device=run.device)
        for part in run.chunks(data.num_classes, self.shown_ipc):
            gradients = []
            for label in range(part.start, part.stop):
                one = slice(label, label + 1)
                gradients.append(class_gradient(network, views(data.normalised(indices[one]), one), labels[label]))
            real = {name: torch.stack([gradient[name] for gradient in gradients]) for name in gradients[0]}
            fake = views(self.shown(synthetic.by_class()[part]), part).unflatten(0, (-1, self.shown_ipc))
            yield real, fake, labels[part]


def settle_batch_norm(network: nn.Module, images: Tensor) -> None:
    """Let batch norms see these images once in training mode, then freeze their statistics for a matching step."""
    network.train()
    with torch.no_grad():
        network(images)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
