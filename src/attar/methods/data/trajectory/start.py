"""What the synthetic data starts from, and how an expert's point is disturbed: real images, labels, perturbation."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from attar import nets
from attar.artifacts.trajectories import Trajectories
from attar.data import Images
from attar.errors import DataError
from attar.methods.data.trajectory.flat import FlatNetwork

CHUNK = 512  # images that go through a network together


def logits_of(network: FlatNetwork, weights: Tensor, images: Tensor) -> Tensor:
    """Return an expert's logits `[n, classes]` of images in the space networks see."""
    return _logits(network, weights, images.__getitem__, torch.arange(len(images)))


def _logits(network: FlatNetwork, weights: Tensor, show: Callable[[Tensor], Tensor], indices: Tensor) -> Tensor:
    """Return logits `[n, classes]` of what `show` gives for indices `[n]`.

    A batch norm takes away what its batch has in common, so it is shown them mixed, in batches alike: those of one
    class among themselves would lose what tells it from the others.
    """
    if nets.batch_statistics(network.module):
        order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(0))
        parts, back = indices[order].tensor_split(-(-len(order) // CHUNK)), order.argsort()
    else:
        parts, back = indices.split(CHUNK), torch.arange(len(indices))
    with torch.no_grad():
        return torch.cat([network(weights, show(part)) for part in parts])[back]


def _real_logits(network: FlatNetwork, weights: Tensor, data: Images) -> Callable[[Tensor], Tensor]:
    """Return a function from indices `[n]` of real images to logits; a batch norm is shown all of the data, once."""
    if not nets.batch_statistics(network.module):
        return lambda indices: _logits(network, weights, data.normalised, indices)
    whole = _logits(network, weights, data.normalised, torch.arange(len(data)))
    return whole.__getitem__


def representative_images(network: FlatNetwork, weights: Tensor, data: Images, ipc: int, seed: int) -> Tensor:
    """Return indices `[classes · ipc]`, class-major, of the images nearest to k-means centres of an expert's logits.

    k = min(ipc, 10) centres a class and ipc / k images each, the remainder going to the first centres; an image counts
    once (Shen et al. 2023, arXiv 2310.10541; the official code takes nothing at one image a class).

    Raises:
        DataError: a class has fewer than `ipc` images.
    """
    from sklearn.cluster import KMeans

    told, chosen = _real_logits(network, weights, data), []
    for label, members in enumerate(data.by_class):
        if len(members) < ipc:
            raise DataError(f"class '{data.classes[label]}' has {len(members)} images, {ipc} were asked for; lower ipc")
        logits = told(members).cpu()
        count = min(ipc, 10)
        means = KMeans(count, n_init=3, random_state=(seed + label) % 2**32).fit(logits.numpy())
        distances = torch.cdist(logits, torch.from_numpy(means.cluster_centers_).to(logits))
        for centre in range(count):
            share = ipc // count + (centre < ipc % count)
            nearest = distances[:, centre].topk(share, largest=False).indices
            distances[nearest] = torch.inf  # taken
            chosen.append(members[nearest])
    return torch.cat(chosen)


def correct_images(network: FlatNetwork, experts: Trajectories, data: Images, ipc: int, rng: torch.Generator) -> Tensor:
    """Return indices `[classes · ipc]`, class-major, of random images that an expert at its end classifies correctly.

    Experts are asked in turn until every class has enough (Guo et al. 2024, arXiv 2310.05773). Images are looked at in
    random order, 64 times ipc of a class at first, and all of them only where that is too few.

    Raises:
        DataError: the experts together classify fewer than `ipc` images of a class correctly.
    """

    @functools.cache
    def told(expert: int) -> Callable[[Tensor], Tensor]:
        return _real_logits(network, experts.experts[expert][-1].to(network.device), data)

    chosen = []
    for label, members in enumerate(data.by_class):
        order = members[torch.randperm(len(members), generator=rng)]
        found = torch.zeros(0, dtype=torch.int64)
        for part in (order[: 64 * ipc], order[64 * ipc :]):
            left = part
            for expert in range(len(experts.experts)):
                if len(found) >= ipc or not len(left):
                    break
                right = told(expert)(left).argmax(1).cpu() == label
                found, left = torch.cat([found, left[right]]), left[~right]
        if len(found) < ipc:
            raise DataError(
                f"the experts classify {len(found)} images of class '{data.classes[label]}' correctly, {ipc} were "
                "asked for; lower ipc, train better experts, or use init=real"
            )
        chosen.append(found[:ipc])
    return torch.cat(chosen)


def averaged_logits(network: FlatNetwork, experts: Trajectories, images: Tensor, labels: Tensor) -> Tensor:
    """Return label logits `[n, classes]`: the mean over the experts that classify an image correctly.

    An image that no expert knows gets the mean over all of them, with its own class raised above the others, so that
    its label still names it (Guo et al. 2024, arXiv 2310.05773, whose code divides by zero there).
    """
    ends = (expert[-1].to(network.device) for expert in experts.experts)
    logits = torch.stack([logits_of(network, end, images) for end in ends])
    right = (logits.argmax(-1) == labels).to(logits).unsqueeze(-1)
    known = right.sum(0) > 0
    mean = torch.where(known, (right * logits).sum(0) / right.sum(0).clamp_min(1), logits.mean(0))
    unknown = (~known[:, 0]).nonzero()[:, 0]
    mean[unknown, labels[unknown]] = mean[unknown].max(1).values + 1
    return mean


def perturbed(network: FlatNetwork, weights: Tensor, size: float, rng: torch.Generator) -> Tensor:
    """Return weights with every convolution moved to W + size · d ⊙ W, d a random direction of length 1.

    One direction a layer (Shen et al. 2023, arXiv 2310.10541); the rest of the vector is left as it is.
    """
    moved = weights.clone()
    for where in network.slices(nn.Conv2d):
        part = weights[where]
        direction = torch.randn(len(part), generator=rng).to(part)
        moved[where] = part + size * direction / direction.norm() * part
    return moved
