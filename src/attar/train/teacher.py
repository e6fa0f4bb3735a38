"""Teachers: trained networks, networks to be trained on the spot, several at once, or labels that were stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from attar import nets
from attar.artifacts import Student, fingerprint_of, load
from attar.artifacts.soft_labels import SoftLabels
from attar.data import Images
from attar.errors import AttarError, RecipeError, did_you_mean
from attar.nets import NETS, Net
from attar.run import SGD, Cosine, Run
from attar.spec import digest, spec, to_json
from attar.train.network import TrainNetwork
from attar.train.training import Training, logits_of


@spec
class Teaching:
    """How a teacher that is named as a network is trained, with cross-entropy, as a stage that runs share."""

    epochs: int = Field(240, ge=1)  # passes over the data
    batch: int = Field(64, ge=1)
    lr: float = Field(0.05, gt=0)  # of SGD with momentum 0.9 and weight decay 5e-4, along half a cosine
    augment: str = "none"

    def method(self, net: Net) -> TrainNetwork:
        """Return the stage that trains a network."""
        training = Training(
            epochs=self.epochs - 1,  # a field of Training counts one pass less
            batch=self.batch,
            optimizer=SGD(lr=self.lr, momentum=0.9, weight_decay=5e-4, nesterov=True),
            schedule=Cosine(),
            augment=self.augment,
        )
        return TrainNetwork(net=net, training=training)


class Teacher:
    """What teaches: one network or several whose probabilities are averaged, stored labels, or nothing.

    Args:
        members: trained networks (`Student`, any module), or specs of networks that are yet to be trained.
        labels: what a teacher said before; then there are no members.
    """

    kind = "teacher"
    example = "resnet20, which is trained first, a run's folder, or hf:NAME"

    def __init__(self, members: Sequence[Any], labels: SoftLabels | None = None) -> None:
        self.members, self.labels = tuple(members), labels

    @classmethod
    def of(cls, value: Any) -> Teacher:
        """Return the teacher that a value stands for.

        A path of a run or artifact, a `Student`, `SoftLabels`, a module, the name or spec of a network (trained on the
        data first), `hf:NAME` (a classifier of transformers with its weights), or several of them: a list, or names
        joined by commas. None is no teacher.

        Raises:
            AttarError: it stands for none.
        """
        if isinstance(value, Teacher):
            return value
        if value is None:
            return cls(())
        if isinstance(value, str) and "," in value:
            value = value.split(",")
        if isinstance(value, list | tuple):
            many = [member for one in value for member in cls.of(one).members]
            if not many:
                raise AttarError("several teachers must be networks; stored labels stand alone")
            return cls(many)
        if isinstance(value, str | Path):
            value = _named(str(value))
        if isinstance(value, SoftLabels):
            return cls((), value)
        if isinstance(value, (Student, nn.Module, *{type(net) for net in NETS.values()})):
            return cls((value,))
        kind = getattr(value, "kind", type(value).__name__)
        raise AttarError(f"a {kind} cannot teach; name a trained network, a network's name, or stored soft labels")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what teaches."""
        if self.labels is not None:
            return self.labels.fingerprint
        return digest([_fingerprint(member) for member in self.members])

    def ready(self, run: Run, data: Images, teaching: Teaching, *, foreign: bool = False) -> nn.Module:
        """Train what is yet to be trained, and return one frozen module in evaluation mode.

        A `foreign` teacher may tell other things apart than the data's classes: its features alone are read.

        Raises:
            AttarError: a member tells other classes apart than the data has.
        """
        modules = [self._member(run, data, teaching, number, foreign) for number in range(len(self.members))]
        made = modules[0] if len(modules) == 1 else Ensemble(modules)
        return made.to(run.device).eval().requires_grad_(False)

    def architecture(self, run: Run, data: Images) -> nn.Module:
        """Return a module built like the one that `ready` gives, for those who redraw its weights; nothing is trained.

        Raises:
            AttarError: see `ready`.
        """
        modules = []
        for number, member in enumerate(self.members):
            if isinstance(member, Student | nn.Module):
                modules.append(self._member(run, data, Teaching(), number, foreign=False))
            else:
                modules.append(nets.fresh(member, data, run.rng("architecture", number)))
        return modules[0] if len(modules) == 1 else Ensemble(modules)

    def _member(self, run: Run, data: Images, teaching: Teaching, number: int, foreign: bool) -> nn.Module:
        member = self.members[number]
        if not isinstance(member, Student | nn.Module):
            seed = None if len(self.members) == 1 else run.copy * len(self.members) + number
            member = run.stage(f"teacher {number + 1}", teaching.method(member), seed=seed, data=data)
        module = member.module if isinstance(member, Student) else member
        if foreign:
            return module
        with torch.no_grad():
            told = logits_of(module.to(run.device).eval(), data.normalised(torch.arange(2)))
        if told.dim() != 2 or told.shape[1] != data.num_classes:
            raise AttarError(
                f"the teacher gives {tuple(told.shape[1:])} numbers an image and {data.source} has {data.num_classes} "
                "classes; train one on this data, or hand over a module that picks the columns of its classes"
            )
        if isinstance(member, Student) and member.classes != tuple(data.classes):
            raise AttarError(
                f"the teacher's classes are {list(member.classes)[:5]}…, those of {data.source} are "
                f"{list(data.classes)[:5]}…: the columns of its logits would mean other classes. Train one on this data"
            )
        return module


class Ensemble(nn.Module):
    """Several networks as one: the logarithm of the mean of their probabilities, whose softmax is that mean."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.each = nn.Identity()  # passed by the logits of each member, `[n, members, classes]`: a place to read them

    def every(self, images: Tensor) -> Tensor:
        """Return the logits of each member, `[members, n, classes]`."""
        logits = torch.stack([logits_of(member, images) for member in self.members], 1)
        return self.each(logits).transpose(0, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return log-probabilities `[n, classes]`."""
        return (self.every(images).log_softmax(-1).logsumexp(0)) - torch.tensor(float(len(self.members))).log()


def _fingerprint(member: Any) -> Any:
    if isinstance(member, nn.Module):
        return fingerprint_of(member.state_dict())
    return member.fingerprint if isinstance(member, Student) else to_json(member)


def _named(name: str) -> Any:
    """Return the network or labels that a name or path stands for."""
    if name.startswith("hf:"):
        return _from_transformers(name.removeprefix("hf:"))
    if Path(name).exists():
        return load(name)
    if name not in NETS:
        raise AttarError(f"no folder and no network is called '{name}'{did_you_mean(name, NETS)}")
    return NETS[name]


def _from_transformers(name: str) -> nn.Module:
    try:
        from transformers import AutoModelForImageClassification
    except ImportError:
        raise RecipeError("teacher=hf:… needs transformers: pip install 'attar[hf]'") from None
    try:
        module: nn.Module = AutoModelForImageClassification.from_pretrained(name, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise AttarError(f"no classifier of images can be loaded from '{name}': {str(error).splitlines()[0]}") from None
    return module
