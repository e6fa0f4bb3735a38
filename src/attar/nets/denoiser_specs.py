"""Denoisers as specs: networks `net(x, label, condition)` whose output has the shape of x. None imports torch.

Labels are what a `Denoiser` view gives: the time, scaled to about 1 for networks of ours. Classes get one more row, the
null label; `Extras` are inputs that a student has beside its teacher's, which begin at zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from attar.errors import RecipeError
from attar.spec import kinds, spec

if TYPE_CHECKING:
    from torch import nn

    from attar.nets.denoisers import DenoiserNetwork

Shape = tuple[int, ...]


@spec
class Form:
    """What a denoiser must know of its samples."""

    shape: Shape  # of one sample
    labels: int = Field(0, ge=0)  # classes; label `labels` is the null one
    width: int = Field(0, ge=0)  # of condition vectors, whose null one is zero


@spec
class Extras:
    """Inputs beside x, time and condition, through layers that are zero at first: the weights of a teacher stay one."""

    guidance: bool = False  # a guidance scale w, of (1 + w) c − w u
    second_time: bool = False  # the time that a flow map jumps to


@spec
class PointMLP:
    """An MLP on flat samples with the embedding of time and condition beside them: for points in the plane."""

    kind: Literal["mlp"] = "mlp"
    width: int = Field(128, ge=2)
    depth: int = Field(4, ge=1)  # hidden layers
    frequency: float = Field(16.0, ge=1)  # highest angular frequency of the time features, in 1/label
    time_scale: float = Field(1.0, gt=0)  # of labels, beside the process's own

    def build(self, form: Form, extras: Extras) -> DenoiserNetwork:
        """Return the module for samples of this form."""
        from attar.nets.denoisers import PointNetwork

        return PointNetwork(self, form, extras)


@spec
class ResidualMLP:
    """Residual blocks of two linear layers on flat samples, the embedding added inside each: for 8×8 pictures."""

    kind: Literal["residual-mlp"] = "residual-mlp"
    width: int = Field(256, ge=2)
    blocks: int = Field(3, ge=1)
    frequency: float = Field(16.0, ge=1)  # highest angular frequency of the time features, in 1/label
    dropout: float = Field(0.0, ge=0, lt=1)  # inside the blocks
    time_scale: float = Field(1.0, gt=0)  # of labels, beside the process's own

    def build(self, form: Form, extras: Extras) -> DenoiserNetwork:
        """Return the module for samples of this form."""
        from attar.nets.denoisers import ResidualNetwork

        return ResidualNetwork(self, form, extras)


@spec
class DiT:
    """A diffusion transformer with adaLN-zero (arXiv 2212.09748), at a size for small images."""

    kind: Literal["dit"] = "dit"
    patch: int = Field(2, ge=1)  # pixels a side
    width: int = Field(64, ge=4)  # channels of a token
    depth: int = Field(4, ge=1)  # blocks
    heads: int = Field(4, ge=1)
    frequency: float = Field(16.0, ge=1)  # highest angular frequency of the time features, in 1/label
    time_scale: float = Field(1.0, gt=0)  # of labels, beside the process's own

    @model_validator(mode="after")
    def _heads(self) -> DiT:
        if self.width % self.heads:
            raise ValueError("heads share the width, so the width must be a multiple of heads")
        return self

    def build(self, form: Form, extras: Extras) -> DenoiserNetwork:
        """Return the module for maps `[C, H, W]`; raises RecipeError for other samples."""
        from attar.nets.denoisers import DiTNetwork

        _need_map(self.kind, form.shape)
        if any(side % self.patch for side in form.shape[1:]):
            sides = "×".join(map(str, form.shape[1:]))
            raise RecipeError(f"patches of {self.patch} pixels do not fill {sides}; set net.patch to a divisor")
        return DiTNetwork(self, form, extras)


@spec
class UNet:
    """A small U-Net of residual blocks with attention on its smallest map: for 14 to 32 pixels."""

    kind: Literal["unet"] = "unet"
    width: int = Field(32, ge=8)  # channels of the first level, a multiple of 8
    multipliers: tuple[int, ...] = (1, 2, 2)  # channels of each level, in widths; each level halves the map
    blocks: int = Field(1, ge=1)  # residual blocks a level
    frequency: float = Field(16.0, ge=1)  # highest angular frequency of the time features, in 1/label
    dropout: float = Field(0.0, ge=0, lt=1)  # inside the blocks
    time_scale: float = Field(1.0, gt=0)  # of labels, beside the process's own

    @model_validator(mode="after")
    def _groups(self) -> UNet:
        if self.width % 8 or not self.multipliers or min(self.multipliers) < 1:
            raise ValueError("norms make groups of 8 channels: the width is a multiple of 8, multipliers are 1 or more")
        return self

    def build(self, form: Form, extras: Extras) -> DenoiserNetwork:
        """Return the module for maps `[C, H, W]`; raises RecipeError for other samples."""
        from attar.nets.unet import UNetNetwork

        _need_map(self.kind, form.shape)
        return UNetNetwork(self, form, extras)


@spec
class DiffusersNet:
    """A network of diffusers by its class: fresh from `config`, or the weights of a checkpoint.

    Sides, channels and classes that `config` leaves out are the data's. Condition vectors are one token each for
    networks that read text.
    """

    kind: Literal["diffusers"] = "diffusers"
    cls: str = "UNet2DModel"  # or UNet2DConditionModel, DiTTransformer2DModel, SD3Transformer2DModel …
    config: dict[str, Any] = Field(default_factory=dict)  # values of that class
    name: str = ""  # a checkpoint, a hub name or folder; its weights replace the fresh ones
    subfolder: str = ""  # of the checkpoint, such as unet or transformer
    told: dict[str, tuple[int, ...]] = Field(default_factory=dict)  # what a condition vector is cut into, by keyword
    pipeline: str = ""  # what it was taken out of, for whoever puts it back
    time_scale: float = Field(1000.0, gt=0)  # of labels in [0, 1]: these networks count steps

    def build(self, form: Form, extras: Extras) -> nn.Module:
        """Return the module for maps `[C, H, W]`; raises RecipeError for other samples."""
        from attar.nets.diffusers_net import DiffusersDenoiser

        _need_map(self.kind, form.shape)
        return DiffusersDenoiser(self, form, extras)


def _need_map(kind: str, shape: Shape) -> None:
    if len(shape) != 3:
        raise RecipeError(f"net={kind} reads maps [C, H, W], and the samples are {list(shape)}; take net=mlp")


if TYPE_CHECKING:
    DenoiserNet = PointMLP | ResidualMLP | DiT | UNet | DiffusersNet
else:
    DenoiserNet = kinds(PointMLP | ResidualMLP | DiT | UNet | DiffusersNet)
