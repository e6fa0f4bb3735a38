"""Fusing a student's stages from the deepest upwards into maps like the teacher's: ReviewKD's chain."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from attar.errors import RecipeError


class Fusion(nn.Module):
    """One block: a stage's map, weighed place by place against what the deeper block passed up, and made the teacher's.

    Args:
        inputs: channels of the stage.
        middle: channels of what is passed up.
        outputs: channels of the teacher's map.
        fuses: whether a deeper block passes something up.
    """

    def __init__(self, inputs: int, middle: int, outputs: int, *, fuses: bool) -> None:
        super().__init__()
        into, out_of = nn.Conv2d(inputs, middle, 1, bias=False), nn.Conv2d(middle, outputs, 3, padding=1, bias=False)
        for convolution in (into, out_of):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.enter = nn.Sequential(into, nn.BatchNorm2d(middle))
        self.leave = nn.Sequential(out_of, nn.BatchNorm2d(outputs))
        self.attention = nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()) if fuses else None

    def forward(self, maps: Tensor, deeper: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return a map with the teacher's channels and `size` (height, width), and what is passed up."""
        fused: Tensor = self.enter(maps)
        if self.attention is not None and deeper is not None:
            deeper = functional.interpolate(deeper, fused.shape[2:], mode="nearest")
            shares = self.attention(torch.cat([fused, deeper], 1))
            fused = fused * shares[:, :1] + deeper * shares[:, 1:]
        if fused.shape[2:] != torch.Size(size):
            fused = functional.interpolate(fused, tuple(size), mode="nearest")
        return self.leave(fused), fused


class FusionChain(nn.Module):
    """Blocks for all levels, the embedding the deepest of them.

    Args:
        student: shapes of one sample at each level, shallow to deep; a vector is a map of one pixel.
        teacher: those of the teacher.
        widest: the most channels that are passed up, which are else as many as the student's last map has.

    Raises:
        RecipeError: a shape that is neither a map's nor a vector's.
    """

    def __init__(self, student: Sequence[torch.Size], teacher: Sequence[torch.Size], *, widest: int = 512) -> None:
        super().__init__()
        for size in (*student, *teacher):
            if len(size) not in {1, 3}:
                raise RecipeError(
                    f"the review fuses maps [channels, height, width] and vectors; got {list(size)}. Name places that "
                    "give maps with pairs=STUDENT=TEACHER"
                )
        maps = [size for size in student if len(size) == 3]  # an embedding may be a whole map, flattened
        middle = min(widest, (maps or student)[-1][0])
        deepest = len(student) - 1
        self.sizes = [tuple(size[1:]) if len(size) == 3 else (1, 1) for size in teacher]
        self.blocks = nn.ModuleList(
            Fusion(own[0], middle, wanted[0], fuses=number < deepest)
            for number, (own, wanted) in enumerate(zip(student, teacher, strict=True))
        )

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return a guess of the teacher's map at every level, shallow to deep; a vector's is `[n, channels, 1, 1]`."""
        guesses: list[Tensor] = []
        passed: Tensor | None = None
        for block, maps, size in reversed(list(zip(self.blocks, levels, self.sizes, strict=True))):
            guess, passed = block(maps[..., None, None] if maps.dim() == 2 else maps, passed, size)
            guesses.insert(0, guess)
        return guesses
