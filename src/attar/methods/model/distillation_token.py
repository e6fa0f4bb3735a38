"""Two tokens of a transformer that one head reads, and what each of them says (DeiT, arXiv 2012.12877)."""

from __future__ import annotations

from torch import Tensor, nn


def token_logits(head: nn.Linear, embedding: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of the class token and of the distillation token, `[n, classes]` each.

    The embedding `[n, 2 · width]` is one token behind the other, and the head's answer is the mean of the two. `offset`
    `[classes]` is half the difference of their biases, which training needs and the mean does not.
    """
    tokens, weights = embedding.chunk(2, 1), head.weight.chunk(2, 1)
    one, other = (
        nn.functional.linear(token, 2 * weight, head.bias) for token, weight in zip(tokens, weights, strict=True)
    )
    return one + offset, other - offset
