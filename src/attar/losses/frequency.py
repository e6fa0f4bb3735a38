"""What is fine in pictures `[n, C, H, W]`: their high frequencies, and their edges."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from attar.errors import RecipeError


def high_pass(x: Tensor, cut: float) -> Tensor:
    """Return the part of pictures `[n, C, H, W]` whose frequency is above `cut`, from 0 to 1 of the Nyquist frequency.

    The frequency of a wave is √(f_h² + f_w²), each in shares of the Nyquist frequency, so that corners reach √2.

    Raises:
        RecipeError: a cut outside [0, √2).
    """
    if not 0 <= cut < 2**0.5:
        raise RecipeError(f"frequencies are cut at 0 to √2 of the Nyquist frequency; got {cut}")
    height, width = x.shape[-2:]
    rows = torch.fft.fftfreq(height, device=x.device) * 2
    columns = torch.fft.rfftfreq(width, device=x.device) * 2
    passes = torch.hypot(rows[:, None], columns) > cut
    return torch.fft.irfft2(torch.fft.rfft2(x) * passes, s=(height, width))


def edges(x: Tensor) -> Tensor:
    """Return the length of the Sobel gradient of each channel `[n, C, H, W]`; borders are repeated.

    A ramp that rises by 1 a pixel has length 1.
    """
    kernel = x.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    channels = x.shape[1]
    both = torch.stack([kernel, kernel.T])[:, None].repeat(channels, 1, 1, 1)
    sloping = functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), both, groups=channels)
    along, across = sloping.unflatten(1, (channels, 2)).unbind(2)
    return (along.square() + across.square() + 1e-12).sqrt()  # not 0, where the root has no gradient
