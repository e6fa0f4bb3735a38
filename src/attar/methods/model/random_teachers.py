"""Random teachers: a student that imitates a network nobody trained learns features better than its teacher's."""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from attar import losses, nets
from attar.artifacts import Student
from attar.data import Images
from attar.nets import Net, ResNet18
from attar.nets.initialise import seeded
from attar.nets.network import Network
from attar.run import AdamW, Constant, Run
from attar.spec import method, spec
from attar.train.probe import linear_probe
from attar.train.training import Order, Training

_TRAIN = Training(
    epochs=99, batch=256, optimizer=AdamW(lr=1e-3, weight_decay=0.0), schedule=Constant()
)  # a hundred passes


@spec
class Projection:
    """DINO's head: an MLP, a bottleneck on the unit sphere, and prototypes of length 1 (arXiv 2104.14294)."""

    hidden: tuple[int, ...] = (2048, 2048)  # widths of layers with GELU
    bottleneck: int | None = Field(256, ge=1)  # none: the last layer reads the MLP, or the embedding
    outputs: int = Field(65_536, ge=2)


class ProjectionHead(nn.Module):
    """An MLP from embeddings `[n, features]` to `[n, outputs]`, weights of a truncated normal of deviation 0.02."""

    def __init__(self, spec: Projection, features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in spec.hidden:
            layers += [nn.Linear(features, width), nn.GELU()]
            features = width
        self.spec = spec
        if spec.bottleneck is not None:
            layers.append(nn.Linear(features, spec.bottleneck))
            features = spec.bottleneck
        self.mlp = nn.Sequential(*layers)
        self.last = nn.Linear(features, spec.outputs, bias=spec.bottleneck is None)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return the outputs; cosines with the prototypes where there is a bottleneck."""
        x: Tensor = self.mlp(embedding)
        if self.spec.bottleneck is None:
            outputs: Tensor = self.last(x)
            return outputs
        rows = nn.functional.normalize(self.last.weight, dim=1)
        return nn.functional.linear(nn.functional.normalize(x, dim=1), rows)


class Projected(nn.Module):
    """A network's trunk and a projection head."""

    def __init__(self, network: Network, spec: Projection) -> None:
        super().__init__()
        self.network, self.projection = network, ProjectionHead(spec, network.num_features)

    def forward(self, images: Tensor) -> Tensor:
        """Return the head's outputs `[n, outputs]`."""
        outputs: Tensor = self.projection(self.network.embed(images))
        return outputs


@method
class RandomTeacher:
    """Imitate a frozen random network on images without labels or views (Sarnthein et al. 2023, arXiv 2302.12091).

    L = CE(σ(z_t / T_t), σ(z_s / T_s)) over the outputs of a projection head. The student starts at a share `alpha` of
    the way from the teacher to fresh weights, rescaled to their size. The labels are read by nothing but the linear
    probe, which becomes the student's head.
    """

    version: ClassVar = 1
    presets: ClassVar = {
        "small": {
            "net": {"kind": "convnet", "depth": 3, "width": 64, "norm": "batch"},
            "projection": {"hidden": (256,), "bottleneck": 64, "outputs": 1024},
            "train": {"steps": 300},
        }
    }

    net: Net = ResNet18(norm="batch")  # of student and teacher; the paper also has a VGG-11
    projection: Projection = Projection()
    train: Training = _TRAIN
    alpha: float = Field(1.0, ge=0)  # 1: independent; near 0: beside the teacher, where the features get best
    start: Literal["between", "around"] = "between"  # around: (θ_t + α θ') / √(1 + α²)
    loss: Literal["cross-entropy", "squared"] = "cross-entropy"  # squared: of the outputs
    teacher_temperature: float = Field(1.0, gt=0)  # DINO's is 0.04
    student_temperature: float = Field(1.0, gt=0)  # DINO's is 0.1
    centre: float | None = Field(None, ge=0, lt=1)  # decay of a mean taken from the teacher's outputs; DINO's is 0.9
    inputs: Literal["images", "noise"] = "images"  # noise: Gaussian images, on which nothing is learned
    probe: float = Field(1.0, gt=0)  # decay of the linear probe

    def __call__(self, run: Run, *, data: Images) -> Student:
        """Train the student and return it with a linear probe as its head."""
        teacher = self.teacher(run, data)
        student = copy.deepcopy(teacher)
        self.move_away(student, self.fresh(run, data, "student"))
        teacher.eval().requires_grad_(False)
        student.train().requires_grad_(True)
        student.network.head.requires_grad_(False)  # the probe's place, which nothing trains
        steps = self.train.total(len(data))
        learner = run.learner("student", student, self.train.optimizer, schedule=self.train, steps=steps)
        centre = run.keep("centre", torch.zeros(self.projection.outputs, device=run.device))
        order = Order(data, self.train, run.rng)
        for step in run.loop("distil", steps):
            images, _ = order.batch(step)
            if self.inputs == "noise":
                images = torch.randn(images.shape, generator=run.rng("noise", step)).to(images.device)
            with torch.no_grad():
                told = teacher(images)
                wanted = told - centre
                if self.centre is not None:
                    centre.lerp_(told.mean(0), 1 - self.centre)
            learner.update(self.distance(student(images), wanted))
        network = student.network
        network.head.load_state_dict(linear_probe(network, data, decay=self.probe).state_dict())
        return Student(network.eval(), self.net, data.channels, data.size, data.classes)

    def teacher(self, run: Run, data: Images) -> Projected:
        """Return the random network that a run's student imitates."""
        return self.fresh(run, data, "teacher")

    def fresh(self, run: Run, data: Images, name: str) -> Projected:
        """Return an untrained network with its head."""
        network = nets.fresh(self.net, data, run.rng(name), device=run.device)
        with seeded(run.rng(f"{name} head")):
            return Projected(network, self.projection).to(run.device)

    @torch.no_grad()
    def move_away(self, student: nn.Module, other: nn.Module) -> None:
        """Take a student that stands at the teacher towards other weights, keeping their size, in place.

        ((1 − α) θ_t + α θ') / √(α² + (1 − α)²). What no draw made, such as a norm's scale of 1, stays as it is.
        """
        stay = 1 - self.alpha if self.start == "between" else 1.0
        size = (self.alpha**2 + stay**2) ** 0.5
        for own, new in zip(student.parameters(), other.parameters(), strict=True):
            own.copy_(torch.where(own == new, own, (stay * own + self.alpha * new) / size))

    def distance(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """Return how far a student's outputs are from the teacher's: the cross-entropy less its least value."""
        if self.loss == "squared":
            return nn.functional.mse_loss(outputs, wanted)
        return losses.kl_divergence(outputs / self.student_temperature, wanted / self.teacher_temperature)
