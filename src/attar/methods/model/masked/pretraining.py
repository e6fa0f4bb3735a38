"""How a masked autoencoder is trained, and what comes out of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from attar.artifacts import Student
from attar.artifacts.autoencoder import Autoencoder
from attar.data import Images
from attar.data.plans import order_of
from attar.data.soft_labels.views import Views
from attar.errors import AttarError, DataError
from attar.methods.data.recovery.labels import LabelledViews
from attar.nets.masked import transformer
from attar.nets.token_specs import ViT
from attar.nets.tokens import TokenNetwork
from attar.run import AdamW, Cosine, Optimizer, Run
from attar.spec import spec
from attar.train.objective import Term


@dataclass(frozen=True)
class Part:
    """The rows of a batch that go through a network here; every draw of a step is of the whole batch."""

    images: Tensor  # [n, C, H, W], in the space that networks see
    labels: Tensor  # [n, classes]; [n, 0] without any
    rows: slice  # where they stand in the batch
    count: int  # images of the whole batch

    @classmethod
    def of(cls, run: Run, images: Tensor, labels: Tensor | None = None) -> Part:
        """Return this process's rows of a batch, on the run's device."""
        rows = run.shard(len(images))
        labels = images.new_empty(len(images), 0) if labels is None else labels
        return cls(images[rows].to(run.device), labels[rows].to(run.device), rows, len(images))

    def share(self, terms: Iterable[Term]) -> dict[str, Tensor]:
        """Return what terms that are means over these rows add to the batch's means, weighted, by name."""
        share = len(self.images) / self.count
        return {term.name: term.loss * (term.weight * share) for term in terms if term.weight}


@spec
class Pretraining:
    """How a network is trained without labels. Defaults are MAE's on ImageNet (arXiv 2111.06377)."""

    epochs: int = Field(800, ge=1)  # passes over the data, unless `steps` are given
    steps: int | None = Field(None, ge=1)  # optimizer steps
    batch: int = Field(4096, ge=1)  # images a step, at most the whole set
    optimizer: Optimizer = AdamW(lr=2.4e-3, beta2=0.95, weight_decay=0.05, decays="weights")  # 1.5e-4 for each 256
    warmup_epochs: float = Field(40, ge=0)  # then half a cosine down to 0; at most a fifth of the steps
    clip: float | None = Field(None, gt=0)  # largest length of the gradient
    views: Views = Views(scale=(0.2, 1.0))  # crops and flips

    def total(self, count: int) -> int:
        """Return the number of optimizer steps for `count` images."""
        return self.steps or self.epochs * -(-count // self.batch)

    def schedule(self, count: int) -> Cosine:
        """Return the schedule of the learning rate for `count` images."""
        warmup = round(self.warmup_epochs * -(-count // self.batch))
        return Cosine(warmup=min(warmup, self.total(count) // 5))

    def batches(self, run: Run, data: Images) -> Callable[[int], Part]:
        """Return a function from a step to the views of its images."""
        indices, key = self._order(run, data), run.key("views")

        def batch(step: int) -> Part:
            samples = indices(step)
            return Part.of(run, self.views.images(data, key, samples, torch.full_like(samples, step)))

        return batch

    def labelled(self, run: Run, data: Images) -> Callable[[int], Part]:
        """Return a function from a step to views and their labels, mixed as the pixels are."""
        indices, key = self._order(run, data), run.key("views")
        source = LabelledViews(data, "hard", views=self.views, key=key, passes=self.total(len(data)))

        def batch(step: int) -> Part:
            return Part.of(run, *source.batch(indices(step) + step * len(data)))

        return batch

    def _order(self, run: Run, data: Images) -> Callable[[int], Tensor]:
        plan = order_of(data, min(self.batch, len(data)), int(run.rng("order").initial_seed()))
        return plan.indices


def encoder_of(teacher: Any, data: Images) -> tuple[TokenNetwork, ViT]:
    """Return the transformer of a trained network, frozen, and its spec.

    Raises:
        AttarError: it is no transformer of ours.
        DataError: it reads other images.
    """
    if not isinstance(teacher, Student) or not isinstance(teacher.net, ViT):
        kind = getattr(getattr(teacher, "net", None), "kind", getattr(teacher, "kind", type(teacher).__name__))
        raise AttarError(f"a {kind} is no vision transformer; name a run of mae, or a network trained with net=vit")
    if (teacher.channels, teacher.size) != (data.channels, data.size):
        raise DataError(
            f"the teacher reads {teacher.channels}×{teacher.size}×{teacher.size} images, {data.source} has "
            f"{data.channels}×{data.size}×{data.size}; take one trained on images of this shape"
        )
    return transformer(teacher.module).eval().requires_grad_(False), teacher.net


def same_places(net: ViT, teacher: ViT) -> None:
    """Hold a student to its teacher's patches.

    Raises:
        AttarError: its patches are of another size.
    """
    if net.patch != teacher.patch:
        raise AttarError(
            f"the teacher's patches have {teacher.patch} pixels a side and the student's {net.patch}: their tokens "
            f"stand for different places. Set net.patch={teacher.patch}"
        )


def with_decoder(teacher: Any) -> Autoencoder:
    """Return a teacher whose decoder was trained and stored with it.

    Raises:
        AttarError: it has none; a random one would teach noise, as public encoder-only checkpoints do.
    """
    if not isinstance(teacher, Autoencoder):
        kind = getattr(teacher, "kind", type(teacher).__name__)
        raise AttarError(
            f"this {kind} has no decoder, and the student learns from the teacher's decoder: a random one teaches "
            "noise. Name a run of mae or dmae, which keep theirs, or leave teacher out to have one trained"
        )
    return teacher


class Taught(nn.Module):
    """Linear layers with GELU between them from a student's tokens to a teacher's, and that teacher, frozen.

    The teacher's weights are not among the module's own: no optimizer and no checkpoint holds them.

    Args:
        teacher: moves with the layers.
        widths: of the tokens, from the student's to the teacher's; one alone is no layer.
    """

    def __init__(self, teacher: nn.Module, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for inputs, outputs in itertools.pairwise(widths):
            if len(self.layers):
                self.layers.append(nn.GELU())
            self.layers.append(nn.Linear(inputs, outputs))
        self._kept = (teacher.eval().requires_grad_(False),)

    @property
    def teacher(self) -> Any:
        """The teacher."""
        return self._kept[0]

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the student's tokens `[n, t, mine]` as `[n, t, theirs]`."""
        out: Tensor = self.layers(tokens)
        return out

    def _apply(self, function: Any, recurse: bool = True) -> Taught:
        """Do to the teacher what is done to the layers, such as moving them."""
        self._kept[0]._apply(function)
        super()._apply(function, recurse)
        return self


def last_places(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tokens `[n, t, …]` that both have, where one alone has a class token ahead of its places."""
    both = min(first.shape[1], second.shape[1])
    return first[:, -both:], second[:, -both:]
