"""The gradient of trajectory matching: unrolled, exact at constant memory, or TESLA's.

A student takes T steps from an expert's checkpoint, b_i = μ b_{i−1} + g_i and θ_{i+1} = θ_i − α b_i, where g_i is the
gradient of its loss on the i-th synthetic batch. The matching loss is a sum over waypoints of
w ‖θ_k − θ*‖² / ‖θ_0 − θ*‖². With λ_i = ∂L/∂θ_i and ν_i = ∂L/∂b_i, backwards from ν_T = 0:

    λ_{i+1} gets 2 w (θ_{i+1} − θ*) / ‖θ_0 − θ*‖² at every waypoint
    ν_i = μ ν_{i+1} − α λ_{i+1}
    ∂L/∂X_i += ∂(g_iᵀ ν_i)/∂X_i      ∂L/∂y_i likewise      ∂L/∂α += g_iᵀ ν_i / α
    λ_i = λ_{i+1} + H_i ν_i           (H_i ν_i = ∂(g_iᵀ ν_i)/∂θ_i)

Two passes need the T + 1 points θ_i and the graphs of a fixed number of steps: of the one that is being differentiated,
and of the last few of the first pass, with which the second begins. TESLA (Cui et al. 2023, arXiv 2211.10586) is the
recursion without H; with one waypoint and no momentum it is the paper's formula, 2 included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attar import losses, nets
from attar.errors import RecipeError, did_you_mean
from attar.losses.trajectory import trajectory_distance
from attar.methods.data.trajectory.flat import FlatNetwork
from attar.run.processes import Processes

Backward = Literal["exact", "tesla", "unroll"]
MODES = ("exact", "tesla", "unroll")
# graphs kept between the passes: they save the second forward of short segments, and at fifty steps they take a fifth
# of the memory of all
KEEP = 10

Model = Callable[[Tensor, Tensor], Tensor]  # (parameters [P], images) -> logits


@dataclass(frozen=True)
class Waypoint:
    """A point of the expert `[P]` that the student is held to behind its step `step`, and how much that counts."""

    step: int
    target: Tensor
    weight: float = 1.0


@dataclass(frozen=True)
class Batch:
    """A synthetic batch: which images, and the augmentation that is replayed on them, drawn once."""

    indices: Tensor
    view: Callable[[Tensor], Tensor] = lambda images: images


@dataclass(frozen=True)
class Synthetic:
    """What is learned: images `[N, C, H, W]`, and labels, classes `[N]` or logits `[N, classes]`."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Match:
    """What one segment gave: the loss, its terms by step, and the gradients of what is learned.

    Of several processes that share a segment each has its share of the gradients, which add up.
    """

    loss: Tensor
    terms: dict[int, Tensor]  # step of a waypoint to its weighted distance
    images: Tensor
    step_size: Tensor
    labels: Tensor | None  # none where labels are hard
    end: Tensor  # θ_T


@dataclass(frozen=True)
class Student:
    """How the student learns: everything of the inner loop but its data."""

    network: Model
    step_size: Tensor  # α, a positive scalar
    momentum: float = 0.0
    loss_scale: float = 1.0  # multiplies the cross-entropy

    def loss(self, parameters: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the scaled mean cross-entropy; labels are classes `[n]` or logits `[n, classes]`."""
        logits = self.network(parameters, images)
        if labels.dim() == 1:
            return self.loss_scale * losses.cross_entropy(logits, labels)
        return self.loss_scale * losses.soft_cross_entropy(logits, labels.softmax(-1))


def match_segment(
    student: Student,
    start: Tensor,
    waypoints: Sequence[Waypoint],
    batches: Sequence[Batch],
    synthetic: Synthetic,
    *,
    mode: Backward = "exact",
    keep: int = KEEP,
    run: Processes | None = None,
) -> Match:
    """Train a student on synthetic data along a segment, and return how its end point depends on that data.

    Args:
        student: network, step size and the rest of the inner loop.
        start: θ_0 `[P]`.
        waypoints: where the expert was; steps in 1 … T, the last of them usually T.
        batches: T of them, one a step.
        synthetic: images and labels that the batches index.
        mode: `exact` and `unroll` give the same gradient, the first with memory that does not grow with T; `tesla`
            leaves out how earlier steps move later gradients.
        keep: last steps whose graphs are kept for the second pass; it changes time, memory and rounding.
        run: its processes share the rows of every batch; `unroll` repeats the whole in each.

    Raises:
        RecipeError: an unknown mode, no batch, or a waypoint that no step reaches.
    """
    if mode not in MODES:
        raise RecipeError(f"unknown backward {mode!r}{did_you_mean(str(mode), MODES)} Known: {', '.join(MODES)}")
    if not batches or not waypoints:
        raise RecipeError("a segment needs at least one batch and one waypoint to match")
    if bad := [w.step for w in waypoints if not 1 <= w.step <= len(batches)]:
        raise RecipeError(f"a waypoint stands behind step {bad[0]}, but the student takes {len(batches)} steps")
    if mode == "unroll":
        return _unrolled(student, start, waypoints, batches, synthetic)
    together = _Together(student, run)
    return _recursive(together, start, waypoints, batches, synthetic, hessian=mode == "exact", keep=keep)


def _unrolled(
    student: Student,
    start: Tensor,
    waypoints: Sequence[Waypoint],
    batches: Sequence[Batch],
    synthetic: Synthetic,
) -> Match:
    images, labels = synthetic.images.detach().requires_grad_(), synthetic.labels
    step_size = student.step_size.detach().requires_grad_()
    soft = labels.dim() == 2
    labels = labels.detach().requires_grad_() if soft else labels
    point, buffer = start.detach().requires_grad_(), None
    path = [point]
    for batch in batches:
        loss = student.loss(point, batch.view(images[batch.indices]), labels[batch.indices])
        (gradient,) = torch.autograd.grad(loss, point, create_graph=True)
        buffer = gradient if buffer is None or not student.momentum else student.momentum * buffer + gradient
        point = point - step_size * buffer
        path.append(point)
    terms = _terms(waypoints, path, start)
    total = torch.stack(list(terms.values())).sum()
    learned = [images, step_size, labels] if soft else [images, step_size]
    found = torch.autograd.grad(total, learned)
    return Match(
        loss=total.detach(),
        terms={step: term.detach() for step, term in terms.items()},
        images=found[0],
        step_size=found[1],
        labels=found[2] if soft else None,
        end=point.detach(),
    )


@dataclass(frozen=True)
class _Together:
    """A student whose batches several processes share: every loss is this one's share of it."""

    student: Student
    processes: Processes | None

    def loss(self, parameters: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the share of the mean loss of this process's rows, or of the whole where a row needs the others."""
        count, world = len(images), 1 if self.processes is None else self.processes.world
        if self.processes is None or world == 1:
            return self.student.loss(parameters, images, labels)
        rows = self.processes.shard(count)
        network = self.student.network
        if count < world or (isinstance(network, FlatNetwork) and nets.batch_statistics(network.module)):
            return self.student.loss(parameters, images, labels) / world
        share = (rows.stop - rows.start) / count
        return share * self.student.loss(parameters, images[rows], labels[rows])

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over processes, where a next step needs the whole."""
        return tensor if self.processes is None else self.processes.sum(tensor)


def _recursive(
    together: _Together,
    start: Tensor,
    waypoints: Sequence[Waypoint],
    batches: Sequence[Batch],
    synthetic: Synthetic,
    *,
    hessian: bool,
    keep: int,
) -> Match:
    images, labels, start = synthetic.images.detach(), synthetic.labels.detach(), start.detach()
    soft, student = labels.dim() == 2, together.student
    step_size = student.step_size.detach()
    path, kept = _forward(together, start, batches, Synthetic(images, labels), keep)
    terms = _terms(waypoints, path, start)
    to_images = torch.zeros_like(images)
    to_labels = torch.zeros_like(labels) if soft else None
    to_step_size = torch.zeros_like(step_size)
    slope, pull = torch.zeros_like(start), torch.zeros_like(start)  # λ and ν
    for i in reversed(range(len(batches))):
        for waypoint in waypoints:
            if waypoint.step == i + 1:
                scale = 2 * waypoint.weight / (start - waypoint.target).square().sum()
                slope = slope + scale * (path[i + 1] - waypoint.target)
        pull = student.momentum * pull - step_size * slope
        step = kept.pop() if kept else _differentiable(together, path[i], batches[i], Synthetic(images, labels))
        product = step.gradient @ pull
        wanted = [step.images] + [step.labels] * soft + [step.point] * hessian
        found = list(torch.autograd.grad(product, wanted))
        to_images.index_add_(0, step.indices, found[0])
        if to_labels is not None:
            to_labels.index_add_(0, step.indices, found[1])
        to_step_size += product.detach() / step_size
        slope = slope + together.sum(found[-1]) if hessian else slope
    total = torch.stack(list(terms.values())).sum()
    end = path[-1].detach()
    return Match(loss=total, terms=terms, images=to_images, step_size=to_step_size, labels=to_labels, end=end)


@dataclass(frozen=True)
class _Step:
    """A step whose gradient g_i (of this process's rows) still has its graph, and the leaves of that graph."""

    indices: Tensor
    images: Tensor
    labels: Tensor
    point: Tensor
    gradient: Tensor


def _differentiable(together: _Together, point: Tensor, batch: Batch, synthetic: Synthetic) -> _Step:
    indices = batch.indices.to(synthetic.images.device)
    images, labels = synthetic.images[indices].requires_grad_(), synthetic.labels[indices]
    labels = labels.requires_grad_(labels.dim() == 2)
    point = point.detach().requires_grad_()
    loss = together.loss(point, batch.view(images), labels)
    return _Step(indices, images, labels, point, torch.autograd.grad(loss, point, create_graph=True)[0])


def _forward(
    together: _Together, start: Tensor, batches: Sequence[Batch], synthetic: Synthetic, keep: int
) -> tuple[list[Tensor], list[_Step]]:
    """Return θ_0 … θ_T without a graph, and the last `keep` steps with theirs."""
    student = together.student
    path, kept, buffer = [start], list[_Step](), torch.zeros_like(start)
    for i, batch in enumerate(batches):
        if i >= len(batches) - keep:
            kept.append(_differentiable(together, path[-1], batch, synthetic))
            gradient = kept[-1].gradient.detach()
        else:
            point = path[-1].detach().requires_grad_()
            indices = batch.indices.to(synthetic.images.device)
            loss = together.loss(point, batch.view(synthetic.images[indices]), synthetic.labels[indices])
            (gradient,) = torch.autograd.grad(loss, point)
        gradient = together.sum(gradient)
        buffer = student.momentum * buffer + gradient if student.momentum else gradient
        path.append(path[-1] - student.step_size.detach() * buffer)
    return path, kept


def _terms(waypoints: Sequence[Waypoint], path: Sequence[Tensor], start: Tensor) -> dict[int, Tensor]:
    """Return the weighted distance at every waypoint, by step; several behind one step add up."""
    terms: dict[int, Tensor] = {}
    for waypoint in waypoints:
        term = waypoint.weight * trajectory_distance(path[waypoint.step], waypoint.target, start)
        terms[waypoint.step] = terms[waypoint.step] + term if waypoint.step in terms else term
    return terms
