"""Automatic inheritance: gates on every part of two towers learn, under a limit on parameters, which parts are kept.

Louizos et al. 2018 (arXiv 1712.01312) for the gates, Xia et al. 2022 (arXiv 2204.00408) for towers of transformers,
Wu et al. 2023 (arXiv 2309.12314) for two towers under one limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from attar.methods.model.paired.inheritance import BlockPart, TowerPart
from attar.nets.dual import BlockGates, DualEncoder, TowerGates
from attar.nets.dual_specs import DualNet, Tower
from attar.run import AdamW, Optimizer
from attar.spec import spec

LOW, HIGH = -0.1, 1.1  # what a gate is stretched to, before it is cut to [0, 1]
BETA = 2 / 3  # temperature of the gates
RANGE = (math.log(0.01), math.log(100.0))  # of log α
EPSILON = 1e-6  # draws stay so far from 0 and 1


@spec
class GateTraining:
    """How gates and multipliers learn. Defaults are TinyCLIP's scripts' (arXiv 2309.12314)."""

    steps: int = Field(3000, ge=1)  # of each stage, before what is closed is cut away
    ramp: int = Field(1000, ge=1)  # steps over which the share that has to go grows
    optimizer: Optimizer = AdamW(lr=0.02, weight_decay=0.0)  # of log α down the loss, of the multipliers up
    open: float = 10.0  # log α at the start; it is kept to [log 0.01, log 100]
    multiplier: float = Field(10.0, ge=0)  # λ₁ and λ₂ at the start


def hard_concrete(log_alpha: Tensor, u: Tensor) -> Tensor:
    """Return gates clip(1.2 · σ((log u − log(1 − u) + log α) / β) − 0.1, 0, 1) for draws u in (0, 1)."""
    u = u.clamp(EPSILON, 1 - EPSILON)
    stretched = torch.sigmoid((u.log() - (-u).log1p() + log_alpha) / BETA) * (HIGH - LOW) + LOW
    return stretched.clamp(0, 1)


def open_probability(log_alpha: Tensor) -> Tensor:
    """Return P(z > 0) = 1 − σ(β · log(0.1 / 1.1) − log α) of hard-concrete gates."""
    return torch.sigmoid(log_alpha - BETA * math.log(-LOW / HIGH))


def shortfall_penalty(multipliers: Tensor, wanted: float | Tensor, share: Tensor) -> Tensor:
    """Return λ₁ · max(0, t − ŝ) + λ₂ · max(0, t − ŝ)²: what is missing of the share t that has to go, ŝ expected.

    Minimised over the gates and maximised over `multipliers` `[2]`.
    """
    short = (wanted - share).clamp_min(0)
    return multipliers[0] * short + multipliers[1] * short.square()


class _Tower(nn.Module):
    """log α of a tower's parts."""

    def __init__(self, spec: Tower, start: float) -> None:
        super().__init__()

        def made(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.full(shape, start))

        self.width = made(spec.width)
        self.heads = nn.ParameterList(made(heads) for heads, _ in spec.blocks)
        self.hidden = nn.ParameterList(made(hidden) for _, hidden in spec.blocks)
        self.attention, self.mlp = made(len(spec.blocks)), made(len(spec.blocks))


class Gates(nn.Module):
    """Gates on widths, heads, hidden units, attentions and MLPs of both towers.

    Args:
        net: the spec of the network that they belong to.
        encoder: that network.
        start: log α.
    """

    def __init__(self, net: DualNet, encoder: DualEncoder, start: float) -> None:
        super().__init__()
        self.image, self.text = _Tower(net.image, start), _Tower(net.text, start)
        self._specs = (net.image, net.text)
        self._outer = outer_parameters(encoder)
        self.total = sum(p.numel() for tower in (encoder.image, encoder.text) for p in tower.parameters())
        self.constrain()

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep log α to its range."""
        for parameter in self.parameters():
            parameter.clamp_(*RANGE)

    def drawn(self, rng: torch.Generator) -> tuple[TowerGates, TowerGates]:
        """Return gates of both towers for a step."""
        image, text = (
            self._gates(tower, lambda a: hard_concrete(a, torch.rand(a.shape, generator=rng).to(a.device)))
            for tower in (self.image, self.text)
        )
        return image, text

    def share(self) -> Tensor:
        """Return the expected share of the parameters of both towers that closed gates take away, in [0, 1)."""
        probable = tuple(self._gates(tower, open_probability) for tower in (self.image, self.text))
        return 1 - self.count(probable) / self.total

    def count(self, gates: Sequence[TowerGates]) -> Tensor:
        """Return the number of parameters that gates leave, those of independent parts multiplied."""
        found = gates[0].width.new_zeros(())
        for tower, shape, outer in zip(gates, self._specs, self._outer, strict=True):
            width, each = tower.width.sum(), shape.head_width
            found = found + outer * width
            for block in tower.blocks:
                heads, hidden = block.heads.sum(), block.hidden.sum()
                attention = heads * each * (3 * (width + 1) + width) + 3 * width  # with shift and norm
                found = found + block.attention * attention * (heads > 0)
                found = found + block.mlp * (hidden * (2 * width + 1) + 3 * width) * (hidden > 0)
        return found

    @torch.no_grad()
    def kept(self) -> tuple[TowerPart, TowerPart]:
        """Return what is kept: of each kind of gate in each tower, the expected number closes, the least open first.

        A tower keeps at least one channel; an attention without heads goes, and an MLP without units.
        """
        return self._kept(self.image), self._kept(self.text)

    def binary(self) -> tuple[TowerGates, TowerGates]:
        """Return gates that are 1 for what is kept and 0 for the rest."""
        image, text = (_binary(part, tower) for part, tower in zip(self.kept(), (self.image, self.text), strict=True))
        return image, text

    def _gates(self, tower: _Tower, value: Callable[[Tensor], Tensor]) -> TowerGates:
        blocks = [
            BlockGates(value(tower.attention[n]), value(heads), value(tower.mlp[n]), value(hidden))
            for n, (heads, hidden) in enumerate(zip(tower.heads, tower.hidden, strict=True))
        ]
        return TowerGates(value(tower.width), blocks)

    def _kept(self, tower: _Tower) -> TowerPart:
        width = most_open(tower.width)
        width = width if len(width) else tower.width.argmax()[None]
        attention, mlp = (set(most_open(x).tolist()) for x in (tower.attention, tower.mlp))
        blocks = []
        for number, (heads, hidden) in enumerate(zip(tower.heads, tower.hidden, strict=True)):
            none = torch.zeros(0, dtype=torch.int64)
            some = most_open(heads) if number in attention else none
            units = most_open(hidden) if number in mlp else none
            blocks.append(BlockPart(number, some.cpu(), units.cpu()))
        return TowerPart(width.cpu(), blocks)


def most_open(log_alpha: Tensor) -> Tensor:
    """Return the numbers, ascending, of the gates that stay: all but the round(Σ P(z = 0)) with the least log α."""
    closed = round(float((1 - open_probability(log_alpha)).sum()))
    return log_alpha.argsort(descending=True, stable=True)[: len(log_alpha) - closed].sort().values


def outer_parameters(encoder: DualEncoder) -> tuple[int, int]:
    """Return the parameters a channel of each tower beside its blocks: embeddings, norms, projection."""
    found = []
    for tower in (encoder.image, encoder.text):
        inside = sum(p.numel() for p in tower.blocks.parameters())
        found.append((sum(p.numel() for p in tower.parameters()) - inside) // tower.positions.shape[1])
    return found[0], found[1]


def _binary(part: TowerPart, tower: _Tower) -> TowerGates:
    def ones(like: Tensor, places: Tensor) -> Tensor:
        out = torch.zeros_like(like)
        out[places.to(like.device)] = 1.0
        return out

    blocks = [
        BlockGates(
            torch.tensor(float(len(block.heads) > 0)),
            ones(tower.heads[block.block], block.heads),
            torch.tensor(float(len(block.hidden) > 0)),
            ones(tower.hidden[block.block], block.hidden),
        )
        for block in part.blocks
    ]
    return TowerGates(ones(tower.width, part.width), blocks)
