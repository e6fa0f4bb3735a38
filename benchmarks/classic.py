"""The classic formulations, as the papers' code does the work: what Attar's speed is stated against.

Written from the papers' algorithms. One forward for every class, `GroupNorm(C, C)`, a network built anew in every
step, one `autograd.grad` a class; evaluation trains one network after another from a `DataLoader` and augments every
batch in Python.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from attar.data import Images, augmentation
from attar.losses import gradient_distance


def convnet(data: Images, width: int, depth: int, *, batch_norm: bool = False) -> nn.Sequential:
    """Return the field's ConvNet, its last layer the linear head."""
    layers: list[nn.Module] = []
    channels, size, padding = data.channels, data.size, 1
    if size == 28:
        size, padding = 32, 3
    for _ in range(depth):
        layers += [
            nn.Conv2d(channels, width, 3, padding=padding),
            nn.BatchNorm2d(width) if batch_norm else nn.GroupNorm(width, width),
            nn.ReLU(),
            nn.AvgPool2d(2),
        ]
        channels, padding, size = width, 1, size // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * size * size, data.num_classes))


class Distillation:
    """Real images in memory as one normalised tensor, synthetic images, their optimizer: what DM and DSA share."""

    def __init__(self, data: Images, *, ipc: int, real: int, width: int, depth: int, augment: str, lr: float) -> None:
        self.data, self.ipc, self.real, self.width, self.depth = data, ipc, real, width, depth
        self.images = data.normalised()
        self.members = [members.numpy() for members in data.by_class]
        start = torch.cat([self.images[self.draw(label, ipc)] for label in range(data.num_classes)])
        self.synthetic = start.clone().requires_grad_()
        self.optimizer = torch.optim.SGD([self.synthetic], lr, momentum=0.5)
        self.augment, self.rng = augmentation(augment), torch.Generator().manual_seed(0)

    def draw(self, label: int, count: int) -> Tensor:
        members = self.members[label]
        return torch.as_tensor(members[torch.randperm(len(members))[:count].numpy()])

    def pair(self, label: int) -> tuple[Tensor, Tensor]:
        """Return real and synthetic images of a class under one augmentation."""
        real = self.images[self.draw(label, self.real)]
        fake = self.synthetic[label * self.ipc : (label + 1) * self.ipc]
        view = self.augment.draw(1, real.shape[1:], self.rng, siamese=True)
        return view(real), view(fake)


class MatchMeans(Distillation):
    """DM, arXiv 2110.04181."""

    def step(self) -> float:
        embed = convnet(self.data, self.width, self.depth)[:-1]
        for parameter in embed.parameters():
            parameter.requires_grad = False
        loss = torch.zeros(())
        for label in range(self.data.num_classes):
            real, fake = self.pair(label)
            loss = loss + ((embed(real).detach().mean(0) - embed(fake).mean(0)) ** 2).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


class MatchGradients(Distillation):
    """DC and DSA, arXiv 2006.05929 and 2102.08259: one update of the images, with a network built anew."""

    def step(self) -> float:
        network = convnet(self.data, self.width, self.depth)
        parameters = list(network.parameters())
        loss = torch.zeros(())
        for label in range(self.data.num_classes):
            real, fake = self.pair(label)
            truth = torch.full((len(real),), label)
            wanted = [
                g.detach().clone() for g in torch.autograd.grad(F.cross_entropy(network(real), truth), parameters)
            ]
            outcome = F.cross_entropy(network(fake), truth[: len(fake)])
            found = torch.autograd.grad(outcome, parameters, create_graph=True)
            loss = loss + gradient_distance(found, wanted)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


class Recover:
    """SRe2L, arXiv 2306.13092: hooks on every batch norm compare its input with what it saw in training.

    One image of every class, from noise, with the pixels clamped channel by channel.
    """

    def __init__(self, teacher: nn.Module, data: Images, *, steps: int, lr: float, alpha: float, jitter: int) -> None:
        self.teacher, self.data, self.alpha, self.jitter = teacher.eval(), data, alpha, jitter
        self.found: list[Tensor] = []
        for layer in teacher.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.register_forward_hook(self._compare)
        for parameter in teacher.parameters():
            parameter.requires_grad = False
        self.labels = torch.arange(data.num_classes)
        shape = (data.num_classes, data.channels, data.size, data.size)
        self.images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        self.optimizer = torch.optim.Adam([self.images], lr, betas=(0.5, 0.9))
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)

    def _compare(self, layer: nn.BatchNorm2d, inputs: tuple[Tensor], output: Tensor) -> None:
        x = inputs[0]
        mean = x.mean((0, 2, 3))
        variance = x.permute(1, 0, 2, 3).contiguous().reshape(x.shape[1], -1).var(1, unbiased=False)
        seen = dict(layer.named_buffers())
        self.found.append((seen["running_var"] - variance).norm(2) + (seen["running_mean"] - mean).norm(2))

    def step(self) -> float:
        down, right = (int(torch.randint(0, self.jitter + 1, ())) for _ in range(2))
        self.found.clear()
        self.optimizer.zero_grad()
        classified = F.cross_entropy(self.teacher(self.images.roll((down, right), (2, 3))), self.labels)
        first, *others = self.found
        loss = classified + self.alpha * (10 * first + torch.stack(others).sum())
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        for channel, (mean, std) in enumerate(zip(self.data.mean.tolist(), self.data.std.tolist(), strict=True)):
            self.images.data[:, channel].clamp_(-mean / std, (1 - mean) / std)
        return loss.item()


def evaluate(
    images: Tensor,
    labels: Tensor,
    test: Images,
    build: Callable[[], nn.Module],
    *,
    networks: int,
    epochs: int,
    augment: str,
) -> list[float]:
    """Train networks one after another for `epochs` + 1 passes and return their test accuracies."""
    drawn, rng = augmentation(augment), torch.Generator().manual_seed(0)
    held = TensorDataset(test.normalised(), test.labels)
    accuracies = []
    for _ in range(networks):
        network = build()
        optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        loader = DataLoader(TensorDataset(images, labels), batch_size=256, shuffle=True)
        for epoch in range(epochs + 1):
            if epoch == epochs // 2 + 2:
                optimizer = torch.optim.SGD(network.parameters(), 0.001, momentum=0.9, weight_decay=5e-4)
            right, total = 0, 0.0
            for batch, truth in loader:
                view = drawn.draw(len(batch), batch.shape[1:], rng)
                logits = network(view(batch))
                loss = F.cross_entropy(logits, truth)
                right += int((logits.argmax(1) == truth).sum())  # the papers' code reads both in every step
                total += loss.item() * len(truth)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        right = 0
        with torch.no_grad():
            for batch, truth in DataLoader(held, batch_size=256):
                right += int((network(batch).argmax(1) == truth).sum())
        accuracies.append(right / len(test))
    return accuracies


def unrolled_segment(
    network: nn.Module, start: Tensor, target: Tensor, images: Tensor, labels: Tensor, *, steps: int, step_size: Tensor
) -> tuple[Tensor, Tensor]:
    """MTT, arXiv 2203.11932: the gradients of the matching loss in images and step size, through the whole unrolling.

    The network is called as a function of one flat vector in every step, whose graphs are all kept.
    """
    named = list(network.named_parameters())
    names, shapes, sizes = zip(*((name, p.shape, p.numel()) for name, p in named), strict=True)
    images, step_size = images.detach().requires_grad_(), step_size.detach().requires_grad_()
    point = start.detach().requires_grad_()
    for _ in range(steps):
        parts = zip(names, point.split(sizes), shapes, strict=True)
        logits = functional_call(network, {name: part.view(shape) for name, part, shape in parts}, images)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels), point, create_graph=True)
        point = point - step_size * gradient
    loss = F.mse_loss(point, target, reduction="sum") / F.mse_loss(start, target, reduction="sum")
    to_images, to_step_size = torch.autograd.grad(loss, [images, step_size])
    return to_images, to_step_size


def experts(
    data: Images, build: Callable[[], nn.Module], *, count: int, epochs: int, batch: int, lr: float
) -> list[list[list[Tensor]]]:
    """MTT's buffers, arXiv 2203.11932: one network after another from a `DataLoader`, its weights kept every epoch."""
    kept = []
    source = TensorDataset(data.normalised(), data.labels)
    for _ in range(count):
        network = build()
        optimizer = torch.optim.SGD(network.parameters(), lr)
        path = [[p.detach().clone() for p in network.parameters()]]
        for _ in range(epochs):
            right, total = 0, 0.0
            for images, labels in DataLoader(source, batch_size=batch, shuffle=True):
                logits = network(images)
                loss = F.cross_entropy(logits, labels)
                right += int((logits.argmax(1) == labels).sum())  # the papers' code reads both in every step
                total += loss.item() * len(labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            path.append([p.detach().clone() for p in network.parameters()])
        kept.append(path)
    return kept
