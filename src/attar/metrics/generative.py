"""How like the data a generator's samples are, and how straight its way there: pure functions of samples.

Samples and features are `[n, …]` and are flattened to rows of D numbers; everything is computed in float64. None of the
distances is a loss: they return Python floats.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attar.errors import DataError, RecipeError

CHUNK = 2048  # rows whose distances to all others are in memory at once


def sliced_wasserstein(x: Tensor, y: Tensor, rng: torch.Generator, directions: int = 128) -> float:
    """Return √(E_θ W₂²(θᵀx, θᵀy)) over random directions θ of length 1, in the units of the samples.

    `x` `[n, …]` and `y` `[m, …]`; the distances on the line are exact, also for n ≠ m. The same generator gives the
    same directions, so that arms can be compared (Bonneel et al. 2015).

    Raises:
        DataError: no samples, or rows of different sizes.
        RecipeError: fewer than one direction.
    """
    a, b = _rows(x, y)
    if directions < 1:
        raise RecipeError(f"sliced distances need at least one direction; got {directions}")
    theta = torch.randn(a.shape[1], directions, generator=rng, dtype=torch.float64)
    theta = theta / theta.norm(dim=0)
    low, high = ((rows @ theta).sort(0).values for rows in (a, b))
    n, m = len(low), len(high)
    # both quantile functions are constant between these levels, in units of 1 / (n m)
    levels = torch.cat([torch.arange(n + 1) * m, torch.arange(1, m) * n]).unique()
    widths, begins = levels.diff().double() / (n * m), levels[:-1]
    squares = (low[begins // m] - high[begins // n]).square()
    return (widths @ squares).mean().sqrt().item()


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Return 2 E|x − y| − E|x − x'| − E|y − y'| over all pairs of the samples, at least 0 (Székely & Rizzo 2013).

    Raises:
        DataError: no samples, or rows of different sizes.
    """
    a, b = _rows(x, y)
    across, own, other = (_mean_of_pairs(u, v, torch.cdist) for u, v in ((a, b), (a, a), (b, b)))
    return max(2 * across - own - other, 0.0)


def gaussian_frechet(mean: Tensor, cov: Tensor, other_mean: Tensor, other_cov: Tensor) -> float:
    """Return |m₁ − m₂|² + tr(C₁ + C₂ − 2 (C₁^½ C₂ C₁^½)^½), the squared Fréchet distance of two Gaussians.

    Means `[D]`, covariances `[D, D]`. The roots are of symmetric matrices by their eigenvalues, those that rounding
    made negative put to 0, so that covariances may be singular (Dowson & Landau 1982; FID, arXiv 1706.08500).

    Raises:
        DataError: shapes that do not fit.
    """
    size = len(mean)
    if mean.shape != other_mean.shape or cov.shape != (size, size) or other_cov.shape != (size, size):
        raise DataError(
            f"Gaussians have means [D] and covariances [D, D]; got {tuple(mean.shape)}, {tuple(cov.shape)} and "
            f"{tuple(other_mean.shape)}, {tuple(other_cov.shape)}"
        )
    first, second = cov.double(), other_cov.double()
    values, vectors = torch.linalg.eigh((first + first.T) / 2)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    product = root @ second @ root
    overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    offset = (mean.double() - other_mean.double()).square().sum()
    return max((offset + first.trace() + second.trace() - 2 * overlap).item(), 0.0)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Return the squared Fréchet distance of the Gaussians fitted to features `[n, …]` and `[m, …]`.

    It is biased upwards by about as much as n and m are small: compare arms at equal numbers.

    Raises:
        DataError: fewer than two samples, or rows of different sizes.
    """
    (mean, cov), (other_mean, other_cov) = (_moments(rows) for rows in _rows(x, y, least=2))
    return gaussian_frechet(mean, cov, other_mean, other_cov)


def kernel_distance(x: Tensor, y: Tensor, degree: int = 3) -> float:
    """Return the unbiased squared maximum mean discrepancy with the kernel (aᵀb / D + 1)^degree.

    Its expectation is 0 for equal distributions, so it may be negative (KID, Bińkowski et al. 2018, arXiv 1801.01401).

    Raises:
        DataError: fewer than two samples, or rows of different sizes.
        RecipeError: a degree below 1.
    """
    a, b = _rows(x, y, least=2)
    if degree < 1:
        raise RecipeError(f"the degree of the kernel is at least 1; got {degree}")

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        return (u @ v.T / u.shape[1] + 1) ** degree

    def within(rows: Tensor) -> float:
        count = len(rows)
        own = ((rows.square().sum(1) / rows.shape[1] + 1) ** degree).mean().item()
        return (_mean_of_pairs(rows, rows, kernel) * count - own) / (count - 1)

    return within(a) + within(b) - 2 * _mean_of_pairs(a, b, kernel)


def manifold_scores(real: Tensor, made: Tensor, neighbours: int = 5) -> dict[str, float]:
    """Return precision, recall, density and coverage of features `made` `[n, …]` against `real` `[m, …]`.

    With balls around each sample that reach its k-th neighbour among its own kind: precision is the share of made
    samples in a real ball, recall that of real samples in a made ball (Kynkäänniemi et al. 2019, arXiv 1904.06991);
    density is the number of real balls a made sample is in, over k, and coverage the share of real balls that hold a
    made sample (Naeem et al. 2020, arXiv 2002.09797). All in [0, 1] but density, which is 1 for equal distributions.

    Raises:
        DataError: as many samples as neighbours or fewer, or rows of different sizes.
        RecipeError: fewer than one neighbour.
    """
    if neighbours < 1:
        raise RecipeError(f"a ball reaches at least the first neighbour; got {neighbours}")
    a, b = _rows(real, made, least=neighbours + 1)
    reach, other_reach = _reach(a, neighbours), _reach(b, neighbours)
    inside, found, covered = 0.0, torch.zeros(len(a), dtype=torch.bool), torch.zeros(len(a), dtype=torch.bool)
    precise = 0
    for rows, radii in zip(b.split(CHUNK), other_reach.split(CHUNK), strict=True):
        distances = torch.cdist(a, rows)
        in_real = distances <= reach[:, None]
        precise += int(in_real.any(0).sum())
        inside += in_real.sum().item()
        covered |= in_real.any(1)
        found |= (distances <= radii).any(1)
    return {
        "precision": precise / len(b),
        "recall": found.double().mean().item(),
        "density": inside / (neighbours * len(b)),
        "coverage": covered.double().mean().item(),
    }


def nearest_modes(points: Tensor, means: Tensor, reach: float | None = None) -> Tensor:
    """Return the index of the nearest of the means `[K, d]` for points `[n, d]`; −1 where none is within `reach`."""
    distances = torch.cdist(points.double(), means.double())
    nearest = distances.min(1)
    return nearest.indices if reach is None else nearest.indices.masked_fill(nearest.values > reach, -1)


def mode_coverage(modes: Tensor, count: int, shares: Tensor | None = None, least: float = 0.25) -> float:
    """Return the share in [0, 1] of modes that hold at least `least` of what is fair.

    Args:
        modes: of each sample `[n]`, integers from 0; −1 is none, and counts as a sample all the same.
        count: number of modes.
        shares: fair share of each `[count]`; equal ones if not given.
        least: part of its fair share that a mode must hold.

    Raises:
        DataError: no samples, or a mode that there is not.
        RecipeError: fewer than one mode.
    """
    if count < 1:
        raise RecipeError(f"coverage is of at least one mode; got {count}")
    if modes.dim() != 1 or not len(modes) or bool((modes < -1).any() | (modes >= count).any()):
        raise DataError(f"expected the modes of samples [n], from −1 to {count - 1}; got {tuple(modes.shape)}")
    fair = torch.full((count,), 1 / count).double() if shares is None else shares.double() / shares.double().sum()
    held = torch.bincount(modes[modes >= 0].cpu(), minlength=count).double() / len(modes)
    return (held >= least * fair.cpu()).double().mean().item()


def endpoint_error(x: Tensor, reference: Tensor) -> float:
    """Return √(mean (x − reference)²) over samples and their numbers, both `[n, …]` made from the same noise.

    Raises:
        DataError: no samples, or other shapes than each other's.
    """
    if x.shape != reference.shape or not x.numel():
        raise DataError(
            f"endpoints are compared one by one: expected equal shapes; got {tuple(x.shape)} and "
            f"{tuple(reference.shape)}"
        )
    return (x.double() - reference.double()).square().mean().sqrt().item()


def straightness(path: Tensor, times: Tensor) -> float:
    """Return ∫ E|ẋ − (x_end − x_begin) / (t_end − t_begin)|² dt / |t_end − t_begin|, 0 for straight even ways.

    `path` `[steps + 1, n, …]` are the states at `times` `[steps + 1]`, which rise or fall; |·|² sums over the numbers
    of a sample. Liu et al. 2022 (arXiv 2209.03003), equation 5, on a clock of any length.

    Raises:
        DataError: fewer than two states, another number of times, or times that turn back.
    """
    times = times.double().to(path.device)
    spans = times.diff()
    if len(path) < 2 or times.shape != path.shape[:1] or not bool((spans > 0).all() | (spans < 0).all()):
        raise DataError(
            f"a way has states [steps + 1, n, …] at as many rising or falling times; got {tuple(path.shape)} and "
            f"{tuple(times.shape)}"
        )
    rows = path.double().flatten(2) if path.dim() > 2 else path.double()[..., None]
    length = times[-1] - times[0]
    speed = rows.diff(dim=0) / spans[:, None, None]
    chord = (rows[-1] - rows[0]) / length
    bends = (speed - chord).square().sum(2).mean(1)
    return ((spans / length) @ bends).item()


def high_frequency_share(images: Tensor, cutoff: float = 0.5) -> float:
    """Return the share in [0, 1] of the images' energy at radial frequencies above `cutoff` of Nyquist's.

    `images` `[n, C, H, W]`; each channel's mean is left out, and a flat image counts as 0. White noise has the share of
    the area, 1 − π/16 at ½.

    Raises:
        DataError: no images.
        RecipeError: a cutoff outside [0, √2].
    """
    if images.dim() != 4 or not images.numel():
        raise DataError(f"frequencies are of images [n, C, H, W]; got {tuple(images.shape)}")
    if not 0 <= cutoff <= 2**0.5:
        raise RecipeError(f"cutoff is a part of Nyquist's frequency, from 0 to √2 (the corner); got {cutoff}")
    values = images.double() - images.double().mean((2, 3), keepdim=True)
    energy = torch.fft.fft2(values).abs().square().sum(1)
    rows, columns = (
        torch.fft.fftfreq(side, dtype=torch.float64, device=images.device) * 2 for side in images.shape[2:]
    )
    above = torch.hypot(rows[:, None], columns[None]) > cutoff
    total = energy.sum((1, 2))
    shares = torch.where(total > 0, energy[:, above].sum(1) / total.clamp_min(1e-300), torch.zeros_like(total))
    return shares.mean().item()


def high_frequency_ratio(made: Tensor, real: Tensor, cutoff: float = 0.5) -> float:
    """Return the high-frequency share of made images over that of real ones: 1 is right, below 1 is blurred.

    Raises:
        DataError: no images, or real ones without high frequencies.
        RecipeError: a cutoff outside [0, √2].
    """
    share = high_frequency_share(real, cutoff)
    if share == 0:
        raise DataError("the real images have no high frequencies to compare with; lower the cutoff")
    return high_frequency_share(made, cutoff) / share


def _rows(x: Tensor, y: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    """Return both as rows `[n, D]` in float64."""
    if min(x.dim(), y.dim()) < 1 or min(len(x), len(y)) < least:
        counts = [len(one) if one.dim() else 0 for one in (x, y)]
        raise DataError(f"this distance needs at least {least} samples on either side; got {counts[0]} and {counts[1]}")
    a, b = x.detach().double().cpu().reshape(len(x), -1), y.detach().double().cpu().reshape(len(y), -1)
    if a.shape[1] != b.shape[1]:
        raise DataError(f"samples of one shape are compared; got {tuple(x.shape[1:])} and {tuple(y.shape[1:])}")
    if not bool(a.isfinite().all() & b.isfinite().all()):
        raise DataError("a sample holds a number that is not finite: the generator diverged")
    return a, b


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    centred = rows - rows.mean(0)
    return rows.mean(0), centred.T @ centred / (len(rows) - 1)


def _mean_of_pairs(a: Tensor, b: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Return the mean of a function of all pairs of rows, a chunk of rows at a time."""
    return sum(float(function(rows, b).sum()) for rows in a.split(CHUNK)) / (len(a) * len(b))


def _reach(rows: Tensor, neighbours: int) -> Tensor:
    """Return the distance of each row to its k-th neighbour `[n]`, itself left out."""
    parts = [torch.cdist(some, rows).kthvalue(neighbours + 1, dim=1).values for some in rows.split(CHUNK)]
    return torch.cat(parts)
