"""How students are taught when a small set is judged: the protocol's views, its labels, and the loss they need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from attar.artifacts import DistilledSet, Student, load
from attar.artifacts.projected import ProjectedSet
from attar.artifacts.targeted import TargetedSet
from attar.data import EpochPlan, Images, policies
from attar.data.policies import Policy
from attar.data.soft_labels import Codec, Views
from attar.errors import AttarError, RecipeError
from attar.losses.ridge import centred_one_hot
from attar.methods.data.hello import projector_of
from attar.methods.data.pca import TileCrops
from attar.methods.data.recovery.encoder import encoder_of, read_encoder
from attar.methods.data.recovery.labels import PLAIN, LabelledViews, TaughtLoss, TemperedLoss, as_images
from attar.methods.data.recovery.projector import ProjectedLoss
from attar.run import keys
from attar.train.protocols import Protocol
from attar.train.training import Labelled, LossOf, TensorSource, batch_loss

BY_TEACHER = ("static", "soft")


class OncePerPass:
    """Every image once a pass, in another view each time. A `Labelled` for `fit`.

    Args:
        views: a source whose rows are (view, image): `LabelledViews` or `TileCrops`.
        count: images.
    """

    def __init__(self, views: Labelled, count: int) -> None:
        self.views, self.count = views, count

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return views and labels of rows `[n]`, counted on from pass to pass."""
        return self.views.batch(indices)

    def plan(self, batch: int, key: int | str) -> PassPlan:
        """Return the order: a permutation of all images a pass."""
        return PassPlan(EpochPlan(self.count, batch, key))


class PassPlan:
    """The order of `images`, with the rows of pass p counted from p times the number of images."""

    def __init__(self, images: EpochPlan) -> None:
        self.images = images

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in a pass."""
        return self.images.steps_per_epoch

    def indices(self, step: int) -> Tensor:
        """Return the rows of `step`."""
        return self.images.indices(step) + self.images.n * (step // self.steps_per_epoch)


class EightBit:
    """Pictures in 8 bits under a policy, one draw for every batch. A `Labelled` for `fit`.

    Pixels are clipped to [0, 1] and rounded, which takes from synthetic ones what no picture could hold.

    Args:
        images: what is shown otherwise.
        like: says how pixels in [0, 1] become what networks see.
        policy: from `attar.data.policies`.
        key: seed of all draws.
    """

    def __init__(self, images: Labelled, like: Images, policy: Policy, key: int) -> None:
        self.images, self.like, self.policy, self.key = images, like, policy, key

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and labels of rows `[n]`, counted on from pass to pass."""
        images, labels = self.images.batch(indices % len(self))
        rng = keys.generator(self.key, ("policy",), "draw", (int(indices[0]),))
        pixels = (self.like.denormalise(images).clamp(0, 1) * 255).round()
        shown = policies.apply(pixels, policies.draw(self.policy, self.like.size, rng))
        return self.like.normalise(shown / 255), labels

    def plan(self, batch: int, key: int | str) -> PassPlan:
        """Return the order: a permutation of all images a pass."""
        return PassPlan(EpochPlan(len(self), batch, key))


class Lessons:
    """What every arm's students are shown, and the loss they learn it with.

    Args:
        protocol: says it.
        subject: the set that is judged; it may bring its teachers, its label projector, and its static labels.
        like: the real data.
        seed: of the views; network k is shown alike in every arm.
        teacher: who labels instead: a trained network, a set that brings some, several of these, their folders; for a
            label projector, the encoder that it stands on.

    Raises:
        RecipeError: there is nobody to give the labels that the protocol asks for, or they are not of what is shown.
        AttarError: who was handed over does not fit.
    """

    def __init__(
        self, protocol: Protocol, subject: DistilledSet, like: Images, *, seed: int, teacher: Any = None
    ) -> None:
        self.protocol, self.subject, self.like, self.seed = protocol, subject, like, seed
        soft = subject.labels.dim() == 2
        if protocol.labels == "own" and protocol.views is not None and soft:
            raise RecipeError(
                "soft labels of a set belong to its images as they are; with views, choose labels=static (mixed as "
                "logits), labels=soft (a teacher's, of every view) or labels=hard"
            )
        if protocol.labels == "static" and protocol.tiles and subject.number("tiles", 1) > 1:
            raise RecipeError(
                "static labels belong to whole images, and crops of this set's mosaics show one tile each; choose "
                "tiles=false, labels=soft (a teacher's, of every view) or labels=hard"
            )
        if protocol.policy != "none" and (protocol.views is not None or protocol.labels == "static"):
            raise RecipeError("a policy is another way to show images than views are; choose one (views=null)")
        if protocol.labels == "targets":
            _check_targets(protocol, subject, like)
        self.teachers: list[Student] = []
        if protocol.labels in BY_TEACHER:
            self.teachers = _fitting(_teachers(subject, teacher), like)
            if not self.teachers and (protocol.labels == "soft" or not soft):
                raise RecipeError(
                    f"labels={protocol.labels} are given by a teacher, and this set brings none; hand one over "
                    "(--teacher FOLDER of a trained network, or of a set that brings one), or judge with labels=hard"
                )
        self.networks = [student.module.to(like.pixels.device).eval() for student in self.teachers]
        self.loss = self._loss(teacher)

    def _loss(self, encoder: Any) -> LossOf:
        protocol = self.protocol
        if protocol.labels == "static":
            return TemperedLoss(protocol.temperature)
        if protocol.labels == "soft":
            return TaughtLoss(self.networks, protocol.temperature)
        if protocol.labels == "projector":
            return ProjectedLoss(_projector(self.subject, self.like, encoder), protocol.hard_weight)
        return _targeted_loss if protocol.labels == "targets" else batch_loss

    def show(self, given: DistilledSet | Images, index: int) -> Labelled:
        """Return what network `index` is trained on: views of a small set, or of real images."""
        protocol, key = self.protocol, keys.key(self.seed, ("evaluate",), "views", (index,))
        if protocol.views is not None or protocol.labels == "static":
            return OncePerPass(self._views(given, protocol.views or PLAIN, key), len(given))
        plain: Labelled = given if isinstance(given, Images) else _untouched(given, protocol)
        return plain if protocol.policy == "none" else EightBit(plain, self.like, protocol.policy, key)

    def _views(self, given: DistilledSet | Images, views: Views, key: int) -> Labelled:
        """Return one view of each image a pass, with labels."""
        logits = None
        if isinstance(given, DistilledSet):
            images, tiles = as_images(given, self.like), int(given.number("tiles", 1))
            if self.protocol.tiles and tiles > 1:
                return TileCrops(given.images, images.labels, tiles, views=views, key=key, passes=1)
            logits, given = _own_logits(given, self.protocol.temperature), images
        if self.protocol.labels != "static":
            return LabelledViews(given, "hard", views=views, key=key, passes=1)
        return LabelledViews(
            given,
            "static",
            views=views,
            key=key,
            passes=1,
            teachers=self.networks,
            temperature=self.protocol.temperature,
            logits=logits,
        )

    def label_bytes(self, images: int, steps: int, *, made: bool = False) -> int:
        """Return what the labels of so many images take, for students of so many steps; `made`: of the judged set.

        Labels of every view are kept as the networks that give them or as a store of all rows, whichever is smaller; of
        a projector the factors count, beside the classes, and not the encoder that everybody has.
        """
        protocol, known = self.protocol, self.like.num_classes
        classes = images * self.like.labels.element_size()
        if protocol.labels == "static" or (protocol.labels == "targets" and made):
            return images * known * 4
        if protocol.labels == "soft":
            rows = steps * min(protocol.training.batch, images) * Codec(classes=known).record.itemsize
            return min(rows, sum(teacher.bytes for teacher in self.teachers))
        if protocol.labels == "projector" and isinstance(self.subject, ProjectedSet):
            return classes + sum(tensor.numel() * tensor.element_size() for tensor in self.subject.factors.values())
        return classes


def _untouched(made: DistilledSet, protocol: Protocol) -> TensorSource:
    if protocol.labels == "targets" and isinstance(made, TargetedSet):
        return TensorSource(made.images, made.targets)
    return TensorSource(made.images, made.labels if protocol.labels == "own" else made.hard_labels())


def _targeted_loss(module: torch.nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return the squared error of targets `[n, d]`, or of the classes `[n]` of real images, centred and one-hot."""
    told: Tensor = module(images)
    return functional.mse_loss(told, targets if targets.dim() == 2 else centred_one_hot(targets, told.shape[1]))


def _check_targets(protocol: Protocol, subject: DistilledSet, like: Images) -> None:
    if not isinstance(subject, TargetedSet) or subject.targets.shape[1] != like.num_classes:
        raise RecipeError(
            f"labels=targets need a set with {like.num_classes} learned targets an image, one a class, such as one of "
            "'frepo' or 'kip'"
        )
    if protocol.views is not None:
        raise RecipeError("learned targets belong to images as they are; leave views=null, and set training.augment")


def _own_logits(made: DistilledSet, temperature: float) -> Tensor | None:
    """Return the logits of a set's own soft labels, up to a constant in each row, which no mixing lets through."""
    if made.labels.dim() == 1:
        return None
    smallest = torch.finfo(made.labels.dtype).tiny
    return made.labels.clamp_min(smallest).log() * made.number("temperature", temperature)


def _teachers(subject: DistilledSet, given: Any) -> list[Student]:
    """Return who was handed over, else who came with the set; what stands by a projector is an encoder, no teacher."""
    if given is None:
        return [] if isinstance(subject, ProjectedSet) else subject.labellers
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [student for each in given for student in _teachers(subject, each)]
    found = load(given) if isinstance(given, str | Path) else given
    if isinstance(found, DistilledSet) and not isinstance(found, ProjectedSet) and found.labellers:
        return found.labellers
    if not isinstance(found, Student):
        kind = getattr(found, "kind", type(found).__name__)
        raise AttarError(f"a teacher is a trained network, or a set that brings one; this {kind} is neither")
    return [found]


def _fitting(teachers: Sequence[Student], like: Images) -> list[Student]:
    """Return the teachers.

    Raises:
        AttarError: one reads other images, or tells other classes apart.
    """
    wanted = (like.channels, like.size, like.num_classes)
    for teacher in teachers:
        if (teacher.channels, teacher.size, teacher.num_classes) != wanted:
            raise AttarError(
                f"the teacher reads {teacher.channels}×{teacher.size}×{teacher.size} images of {teacher.num_classes} "
                f"classes, {like.source} has {like.channels}×{like.size}×{like.size} of {like.num_classes}; give one "
                "trained on it"
            )
    return list(teachers)


def _projector(subject: DistilledSet, like: Images, given: Any) -> torch.nn.Module:
    """Return the label projector that came with a set, on its encoder."""
    if not isinstance(subject, ProjectedSet):
        raise RecipeError("labels=projector need a set that brings a label projector, such as one of 'hello'")
    brought = [given] if isinstance(given, str | Path) or not isinstance(given, Sequence) else list(given)
    if given is None:
        brought = [*subject.labellers, subject.hints.get("encoder")]
    origin = brought[0]
    if not isinstance(origin, Student | str | Path):
        raise RecipeError("this set does not say which encoder its label projector stands on; hand it over as teacher")
    return projector_of(subject, encoder_of(read_encoder(origin), like)).folded().to(like.pixels.device)
