"""Scores of networks before any training: how much they are like a teacher, how well they tell images apart, cost."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attar import losses
from attar.data import Images
from attar.errors import RecipeError
from attar.nets.network import Network
from attar.train.taps import EMBEDDING, place, read
from attar.train.training import logits_in


def similarities(
    student: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor, score: str = "both"
) -> Iterator[float]:
    """Yield minus the relation distance and minus the semantic distance of two networks, or one of them.

    Relation: ‖G_t − G_s‖²_F / n² of the last stage's maps, G = X Xᵀ with rows of length 1. Semantic: the mean over
    classes of ‖E_t − E_s‖²_F / D, E_k = w_k w_kᵀ with rows of length 1 and w_k the gradient of class k's weights.

    Raises:
        RecipeError: embeddings of different widths.
    """
    seen = [_looked_at(module, images, labels) for module in (student, teacher)]
    if score in ("both", "relation"):
        yield -float(losses.similarity_distance(seen[0][0], seen[1][0]))
    if score in ("both", "semantic"):
        widths = [weights.shape[1] for _, weights in seen]
        if widths[0] != widths[1]:
            raise RecipeError(
                f"the student's embedding has {widths[0]} channels and the teacher's {widths[1]}; give the last stage "
                "the teacher's width, or take score=relation"
            )
        yield -float(losses.channel_correlation_distance(*(weights[:, :, None] for _, weights in seen)))


def _looked_at(module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last stage's map `[n, …]`, or the embedding, and the gradient of the class weights `[classes, D]`."""
    module.train()  # weights of N(0, 1) need the batch's statistics
    head, _ = place(module, EMBEDDING)
    path = "stage:-1" if isinstance(module, Network) else EMBEDDING
    output, found = read(module, images, [path])
    weight: Tensor = head.weight  # type: ignore[assignment]
    gradient = torch.autograd.grad(losses.cross_entropy(logits_in(output), labels), weight)[0]
    return found[path].detach(), gradient


@torch.no_grad()
def redraw(module: nn.Module, rng: torch.Generator) -> None:
    """Draw every weight of convolutions and linear layers from N(0, 1), in place; biases 0, norms as new."""
    module.requires_grad_(True)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=rng))
            if layer.bias is not None:
                layer.bias.zero_()
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm):
            layer.reset_parameters()


def naswot(module: nn.Module, images: Tensor) -> float:
    """Return log |K|, K_ij the units alike active for images i and j: a score without a teacher (arXiv 2006.04647)."""
    codes: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda layer, given, output: codes.append((output > 0).flatten(1).float()))
        for layer in module.modules()
        if isinstance(layer, nn.ReLU)
    ]
    try:
        with torch.no_grad():
            module.train()(images)
    finally:
        for handle in handles:
            handle.remove()
    kernel = sum(code @ code.T + (1 - code) @ (1 - code).T for code in codes)
    if not isinstance(kernel, Tensor):
        return -math.inf
    return float(torch.linalg.slogdet(kernel.double()).logabsdet)


def operations(module: nn.Module, data: Images) -> int:
    """Return the floating-point operations of one image's forward pass, two a multiplication with its sum."""
    device = next(module.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(torch.zeros(1, data.channels, data.size, data.size, device=device))
    return int(counter.get_total_flops())
