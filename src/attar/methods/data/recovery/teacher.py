"""The teacher that images are recovered from: what it says, and what its batch norms have seen."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attar import losses, nets
from attar.artifacts import Student, load
from attar.data import Images
from attar.errors import AttarError, DataError, RecipeError
from attar.losses.statistics import Statistics, input_statistics, statistics_distance
from attar.nets import Net
from attar.run import Run
from attar.train.network import TrainNetwork
from attar.train.training import Training, logits_of


def taught(
    run: Run, data: Images, given: Student | str | None, net: Net, training: Training, *, name: str = "teacher"
) -> Student:
    """Return the teacher that was given (an artifact or its folder), or train one as a stage called `name`.

    Raises:
        AttarError: what was given is no trained network.
        DataError: it reads other images, or tells other classes apart.
        RecipeError: it has no batch norm with running statistics.
    """
    if given is None:
        if not nets.batch_statistics(nets.fresh(net, data, torch.Generator())):  # said before anything is trained
            raise _no_statistics(net.label)
        made: Student = run.stage(name, TrainNetwork(net=net, training=training), data=data)
        return made
    teacher = given if isinstance(given, Student) else load(given)
    if not isinstance(teacher, Student):
        raise AttarError(f"input 'teacher' takes a trained network; got a {getattr(teacher, 'kind', 'file')}")
    shape, wanted = (teacher.channels, teacher.size), (data.channels, data.size)
    if shape != wanted or teacher.num_classes != data.num_classes:
        raise DataError(
            f"the teacher reads {shape[0]}×{shape[1]}×{shape[1]} images of {teacher.num_classes} classes, "
            f"{data.source} has {wanted[0]}×{wanted[1]}×{wanted[1]} of {data.num_classes}; give one trained on it"
        )
    return teacher


def frozen(teacher: Student, device: torch.device) -> nn.Module:
    """Return a copy of the teacher's network in evaluation mode, without gradients of its parameters."""
    return copy.deepcopy(teacher.module).to(device).eval().requires_grad_(False)


class BatchNorms:
    """The batch norms of a network, whose inputs are read whenever images go through it.

    Args:
        network: any module with `BatchNorm` layers that keep running statistics; it stays in evaluation mode.

    Raises:
        RecipeError: it has none.
    """

    def __init__(self, network: nn.Module) -> None:
        self.layers = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        if not self.layers:
            raise _no_statistics(type(network).__name__)
        self._found: dict[int, Statistics] = {}
        for place, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(lambda module, inputs, place=place: self._read(place, inputs[0]))

    def _read(self, place: int, x: Tensor) -> None:
        self._found[place] = input_statistics(x)

    def distance(self, *, first_weight: float, variance_weight: float) -> Tensor:
        """Return R_BN of the images that went through the network last; see `statistics_distance`."""
        found = [self._found[place] for place in range(len(self.layers))]
        wanted = [(layer.running_mean, layer.running_var) for layer in self.layers]
        return statistics_distance(found, wanted, first_weight=first_weight, variance_weight=variance_weight)  # type: ignore[arg-type]


def ascend(network: nn.Module, images: Tensor, labels: Tensor, *, steps: int, radius: float) -> None:
    """Move the network's parameters, in place, to where it fits these images less (arXiv 2409.17612, equation 9).

    `steps` times θ ← θ + (radius / steps) · g / ‖g‖₂, with g the gradient of the cross-entropy at θ of the images
    `[n, C, H, W]`, one view of them in all steps as in the official code, and ‖·‖₂ over all parameters together. The
    statistics of batch norms stay as they are.
    """
    parameters = [p.requires_grad_() for p in network.parameters()]
    for _ in range(steps):
        loss = losses.cross_entropy(logits_of(network, images), labels)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        moved = [(p, g) for p, g in zip(parameters, found, strict=True) if g is not None]
        length = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for _, g in moved]))
        with torch.no_grad():
            for parameter, gradient in moved:
                parameter.add_(gradient * (radius / steps / length.clamp_min(1e-12)))
    network.requires_grad_(False)


def rolled(images: Tensor, jitter: int, rng: torch.Generator, *, both_ways: bool = False) -> Tensor:
    """Return all images rolled by one offset, drawn from 0 to `jitter` pixels down and to the right.

    `both_ways`: from −jitter on, so that they are rolled up and to the left as well.
    """
    if not jitter:
        return images
    down, right = torch.randint(-jitter if both_ways else 0, jitter + 1, (2,), generator=rng).tolist()
    return images.roll((down, right), (2, 3))


def _no_statistics(name: str) -> RecipeError:
    return RecipeError(
        f"images are recovered from the statistics of batch norms, and {name} has none; take a network with them, "
        "such as net=resnet18 net.norm=batch"
    )
