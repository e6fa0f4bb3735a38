"""What a dual encoder knows: it finds texts for images, images for texts, and classes by their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from attar.artifacts.dual import DualStudent
from attar.data import Images
from attar.data.captions import captions_of
from attar.metrics import accuracy, recall_at
from attar.nets.dual import DualEncoder

CHUNK = 256


def groups_of(captions: Sequence[str]) -> Tensor:
    """Return a number for each caption `[n]`, the same for those that say the same, whatever their case.

    >>> groups_of(["a bag", "a shoe", "A bag"]).tolist()
    [0, 1, 0]
    """
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(caption.lower(), len(numbers)) for caption in captions])


@torch.no_grad()
def image_vectors(module: DualEncoder, data: Images) -> Tensor:
    """Return vectors of length 1 `[N, dimensions]` of all images, in evaluation mode."""
    module.eval()
    device = module.log_scale.device
    parts = torch.arange(len(data)).split(CHUNK)
    return torch.cat([module.images(data.batch(part)[0].to(device)) for part in parts])


@torch.no_grad()
def text_vectors(module: DualEncoder, ids: Tensor) -> Tensor:
    """Return vectors of length 1 `[N, dimensions]` of token ids `[N, t]`; equal rows are computed once."""
    module.eval()
    once, places = ids.unique(dim=0, return_inverse=True)
    device = module.log_scale.device
    return torch.cat([module.texts(part.to(device)) for part in once.split(CHUNK)])[places.to(device)]


def retrieval(student: DualStudent, data: Images, ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Return recall at each k, from images to texts and from texts to images; captions that say the same are one text.

    Keys: `image to text @1`, `text to image @1`, ….
    """
    captions = captions_of(data, student.template)
    groups = groups_of(captions)
    first = torch.tensor([int((groups == group).nonzero()[0]) for group in range(int(groups.max()) + 1)])
    images = image_vectors(student.module, data).cpu()
    texts = student.texts([captions[place] for place in first.tolist()]).cpu()
    scores, own = images @ texts.T, torch.arange(len(first))
    found = {f"image to text @{k}": recall_at(scores, groups, own, k) for k in ks}
    return found | {f"text to image @{k}": recall_at(scores.T, own, groups, k) for k in ks}


def zero_shot(
    student: DualStudent,
    data: Images,
    prompts: Sequence[Sequence[str]] | None = None,
    *,
    by: Literal["mean", "nearest"] = "mean",
) -> float:
    """Return how often the class is right whose texts are nearest to an image.

    Args:
        student: the dual encoder.
        data: images and their classes.
        prompts: the texts of each class; none: its name in the student's template.
        by: the mean vector of a class's texts, as CLIP has it, or the nearest of them, where texts say more than that.
    """
    said = prompts or [[student.template.format(name)] for name in data.classes]
    vectors = [student.texts(texts) for texts in said]
    if by == "mean":
        vectors = [torch.nn.functional.normalize(some.mean(0, keepdim=True)) for some in vectors]
    images = image_vectors(student.module, data)
    logits = torch.stack([(images @ some.T).amax(1) for some in vectors], 1)
    return accuracy(logits.cpu(), data.labels.cpu())
