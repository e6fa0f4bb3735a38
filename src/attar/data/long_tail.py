"""Long tails: data whose classes shrink from one to the next, as class-imbalance benchmarks cut them."""

from __future__ import annotations

import torch

from attar.data.images import Images
from attar.errors import RecipeError


def long_tail(images: Images, imbalance: float, rng: torch.Generator, largest: int | None = None) -> Images:
    """Return a part with n_max · imbalance^(k / (K − 1)) images of class k, at least one, drawn without replacement.

    Args:
        images: the whole; no class has fewer than it is asked for.
        imbalance: size of the last class over that of the first, in (0, 1].
        rng: the draw.
        largest: n_max; none: as many as the smallest class has.

    Raises:
        RecipeError: an imbalance outside (0, 1], or a class that is too small.
    """
    if not 0 < imbalance <= 1:
        raise RecipeError(
            f"imbalance is the last class's size over the first's, above 0 and at most 1; got {imbalance}"
        )
    smallest = min(len(members) for members in images.by_class)
    largest = smallest if largest is None else largest
    chosen = []
    for label, members in enumerate(images.by_class):
        count = max(1, int(largest * imbalance ** (label / max(1, images.num_classes - 1))))
        if count > len(members):
            raise RecipeError(f"class '{images.classes[label]}' has {len(members)} images and {count} were asked for")
        chosen.append(members[torch.randperm(len(members), generator=rng)[:count]])
    return images.subset(torch.cat(chosen).sort().values)
