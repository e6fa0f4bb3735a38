"""Which way the law of made samples differs from the law of real ones: gaps of two denoisers, as gradients."""

from __future__ import annotations

from torch import Tensor

from attar.errors import RecipeError


def distribution_gap(x: Tensor, real: Tensor, fake: Tensor, floor: float = 1e-6) -> Tensor:
    """Return the gradient (f_fake − f_real) / mean |x − f_real| in made samples x, all `[n, …]`; a mean a sample.

    `real` and `fake` are the clean samples that a denoiser of the data and one of the made samples see in noised x. It
    is the gradient of KL(made ‖ real) up to a positive factor; no gradient passes (Yin et al. 2024, DMD, arXiv
    2311.18828, as released; `floor` added to the mean as FastGen does). See `replaced_gradient`.

    Raises:
        RecipeError: shapes that differ.
    """
    if not x.shape == real.shape == fake.shape:
        raise RecipeError(
            f"a gap is between predictions like the samples: got {list(x.shape)}, {list(real.shape)} and "
            f"{list(fake.shape)}"
        )
    x, real, fake = x.detach(), real.detach(), fake.detach()
    scale = (x - real).abs().flatten(1).mean(1).reshape(-1, *[1] * (x.dim() - 1))
    return (fake - real) / (scale + floor)
