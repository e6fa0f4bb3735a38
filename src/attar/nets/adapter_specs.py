"""What is trained inside a frozen network, as specs: low-rank updates, and adapters told of guidance. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from attar.nets.denoiser_specs import Form
from attar.spec import kinds, spec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from attar.nets.adapters import Adapted


@spec
class LoRA:
    """Low-rank updates W + (α / r) B A of a frozen network's layers, B zero at first (arXiv 2106.09685), by peft."""

    told_guidance: ClassVar[bool] = False  # whether guidance is an input of the adapters
    kind: Literal["lora"] = "lora"
    rank: int = 4  # r, at least 1; 4 is what diffusers takes
    alpha: int | None = Field(None, ge=1)  # updates count alpha / rank; none: as they are
    layers: Literal["attention", "all"] = "attention"  # linear ones in attention; all: every linear and convolution

    @model_validator(mode="after")
    def _learns(self) -> LoRA:
        if self.rank < 1:
            raise ValueError(f"a LoRA of rank {self.rank} has nothing to learn; take a rank of 1 or more, such as 4")
        return self

    def attach(
        self, network: nn.Module, form: Form, rng: torch.Generator, *, longest: float, fresh: frozenset[str]
    ) -> Adapted:
        """Return the network with updates in its layers; `fresh` names parameters of it that are trained as well."""
        from attar.nets.adapters import with_low_rank

        return with_low_rank(network, self, rng, fresh=fresh)


@spec
class GuidanceAdapters:
    """Small networks beside attention, told guidance, time and condition: f(x) + A(x; w, t, c), A zero at first.

    Networks without attention have them beside their hidden layers.
    """

    told_guidance: ClassVar[bool] = True
    kind: Literal["guidance"] = "guidance"
    form: Literal["offset", "attention"] = "offset"  # one vector for all tokens; or attention to w, t and c
    hidden: int = Field(256, ge=2)  # width inside an adapter; 320 for Stable Diffusion
    frequency: float = Field(1.0, gt=0)  # κ of the features cos 2π(f κ w + φ); the official default 1000 is not smooth

    def attach(
        self, network: nn.Module, form: Form, rng: torch.Generator, *, longest: float, fresh: frozenset[str]
    ) -> Adapted:
        """Return the network with adapters beside its layers; `longest` is the largest label that it is told."""
        from attar.nets.guidance_adapters import with_guidance_adapters

        return with_guidance_adapters(network, self, form, rng, longest=longest, fresh=fresh)


@spec
class ControlBlocks:
    """Copies of a transformer's first blocks that see a picture, through layers that are zero at first (2401.05252)."""

    told_guidance: ClassVar[bool] = False
    kind: Literal["control"] = "control"
    blocks: int = Field(13, ge=1)  # first blocks with a copy, or all where there are fewer; PixArt has 28
    channels: int = Field(1, ge=1)  # of the picture

    def attach(
        self, network: nn.Module, form: Form, rng: torch.Generator, *, longest: float, fresh: frozenset[str]
    ) -> Adapted:
        """Return the network with copies beside its first blocks."""
        from attar.nets.control import with_control

        return with_control(network, self, rng)


if TYPE_CHECKING:
    Adapter = LoRA | GuidanceAdapters | ControlBlocks
else:
    Adapter = kinds(LoRA | GuidanceAdapters | ControlBlocks)
