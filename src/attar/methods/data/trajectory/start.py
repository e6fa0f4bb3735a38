"""What the synthetic data starts from, and how an expert's point is disturbed: real images, labels, perturbation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attar.artifacts.trajectories import Trajectories
from attar.data import Images
from attar.errors import DataError
from attar.methods.data.trajectory.flat import FlatNetwork


def logits_of(network: FlatNetwork, weights: Tensor, images: Tensor, chunk: int = 512) -> Tensor:
    """Return an expert's logits `[n, classes]` of images in the space networks see."""
    with torch.no_grad():
        return torch.cat([network(weights, part) for part in images.split(chunk)])


def _real_logits(network: FlatNetwork, weights: Tensor, data: Images, indices: Tensor, chunk: int = 512) -> Tensor:
    with torch.no_grad():
        return torch.cat([network(weights, data.normalised(part)) for part in indices.split(chunk)])


def representative_images(network: FlatNetwork, weights: Tensor, data: Images, ipc: int, seed: int) -> Tensor:
    """Return indices `[classes · ipc]`, class-major, of the images nearest to k-means centres of an expert's logits.

    k = min(ipc, 10) centres a class and ipc / k images each, the remainder going to the first centres; an image counts
    once (Shen et al. 2023, arXiv 2310.10541; the official code takes nothing at one image a class).

    Raises:
        DataError: a class has fewer than `ipc` images.
    """
    from sklearn.cluster import KMeans

    chosen = []
    for label, members in enumerate(data.by_class):
        if len(members) < ipc:
            raise DataError(f"class '{data.classes[label]}' has {len(members)} images, {ipc} were asked for; lower ipc")
        logits = _real_logits(network, weights, data, members).cpu()
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
    chosen = []
    for label, members in enumerate(data.by_class):
        order = members[torch.randperm(len(members), generator=rng)]
        found = torch.zeros(0, dtype=torch.int64)
        for part in (order[: 64 * ipc], order[64 * ipc :]):
            left = part
            for expert in experts.experts:
                if len(found) >= ipc or not len(left):
                    break
                right = _real_logits(network, expert[-1].to(network.device), data, left).argmax(1).cpu() == label
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
