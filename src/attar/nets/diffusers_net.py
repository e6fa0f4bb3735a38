"""Networks of the diffusers library as denoisers: fresh ones of any size, or the weights of a checkpoint."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attar.diffusion.denoiser import arguments, diffusers_network
from attar.diffusion.guidance import GuidanceEmbedding
from attar.diffusion.view import Condition
from attar.errors import AttarError, RecipeError, did_you_mean
from attar.nets.denoiser_specs import DiffusersNet, Extras, Form
from attar.nets.denoisers import TimeFeatures, ZeroLinear, parted

KNOWN = (
    "UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel", "PixArtTransformer2DModel",
    "SD3Transformer2DModel", "FluxTransformer2DModel", "SanaTransformer2DModel",
)  # fmt: skip


class DiffusersDenoiser(nn.Module):
    """See `DiffusersNet`. Labels become `class_labels`, vectors one token of `encoder_hidden_states`; a mapping of a
    forward's own keywords goes through as it is. Where the spec says how a vector is cut (`told`), it holds what
    differs from `blank`, the condition of no text, so that zeros stand for none. What `Extras` add is added to every
    embedding of the time.

    Raises:
        RecipeError: diffusers is not installed, has no such class, or the class no such values.
        AttarError: no checkpoint has that name.
    """

    blank: Tensor  # [width]
    covers_submodules = True  # `reset_parameters` draws everything inside

    def __init__(self, spec: DiffusersNet, form: Form, extras: Extras) -> None:
        super().__init__()
        self.spec, self.form, self.extras = spec, form, extras
        self.model = _made(spec, _config(spec, form))
        if (needed := sum(math.prod(shape) for shape in spec.told.values())) and needed != form.width:
            raise RecipeError(f"condition vectors of {form.width} numbers cannot be cut into {dict(spec.told)}")
        if spec.told:
            self.register_buffer("blank", torch.zeros(form.width))
        for layer in self.model.modules():
            if type(layer).__name__ == "LabelEmbedding":
                layer.dropout_prob = 0.0  # conditions are dropped by who trains
        widths = [layer.linear_2.out_features for layer in self._embeddings()]
        if extras.guidance:
            self.guidance = nn.ModuleList(GuidanceEmbedding(width) for width in widths)
        if extras.second_time:
            self.second = nn.ModuleList(SecondTime(width) for width in widths)

    @property
    def as_built(self) -> DiffusersNet:
        """The spec that builds this network without its checkpoint."""
        config = {key: value for key, value in self.model.config.items() if not key.startswith("_")}
        return dataclasses.replace(self.spec, config=config, name="", subfolder="")

    def forward(self, x: Tensor, label: Tensor, condition: Condition = None) -> Tensor:
        """Return the prediction `[n, C, H, W]` of x at labels `[n]`."""
        own, guidance, second = parted(condition)
        told = self._told(own, x)
        beside = () if guidance is None and second is None else self._beside(guidance, second)
        handles = [layer.register_forward_hook(_adding(more)) for layer, more in beside]
        try:
            return diffusers_network(self.model)(x, label, told)
        finally:
            for handle in handles:
                handle.remove()

    def _embeddings(self) -> list[Any]:
        return [layer for layer in self.model.modules() if type(layer).__name__ == "TimestepEmbedding"]

    def _beside(self, guidance: Tensor | None, second: Tensor | None) -> list[tuple[Any, Tensor]]:
        """Return the embeddings of times, and what is added to what each says."""
        made = []
        for number, layer in enumerate(self._embeddings()):
            parts = []
            for name, value in (("guidance", guidance), ("second", second)):
                if value is not None and not hasattr(self, name):
                    raise RecipeError(f"this network has no input '{name}'; it was built without it (extras)")
                if value is not None:
                    scale = 1.0 if name == "guidance" else 1 / self.spec.time_scale
                    parts.append(getattr(self, name)[number](value * scale))
            made.append((layer, sum(parts[1:], parts[0])))
        return made

    def _told(self, condition: Any, x: Tensor) -> Condition:
        """Return the keyword tensors that stand for a condition."""
        if isinstance(condition, Mapping):
            return condition
        takes, n = arguments(self.model), len(x)
        if condition is None:
            null = torch.full((n,), self.form.labels, device=x.device)
            condition = null if self.form.labels else x.new_zeros(n, self.form.width)
        if self.spec.told:
            return self._cut(condition)
        told: dict[str, Tensor] = {}
        if self.form.labels and "class_labels" in takes:
            told["class_labels"] = condition.expand(n)
        if "encoder_hidden_states" in takes:
            wide = int(self.model.config.get("cross_attention_dim") or self.form.width)
            tokens = condition[:, None] if self.form.width else x.new_zeros(n, 1, wide)
            told["encoder_hidden_states"] = tokens.to(x.dtype)
        return told

    def _cut(self, vectors: Tensor) -> Any:
        """Return the keyword tensors that vectors `[n, width]` are cut into; `a.b` is an entry of a mapping `a`."""
        told: dict[str, Any] = {}
        whole, place = vectors + self.blank, 0
        for name, shape in self.spec.told.items():
            part = whole[:, place : place + math.prod(shape)].unflatten(1, shape)
            place += math.prod(shape)
            owner, _, entry = name.rpartition(".")
            (told.setdefault(owner, {}) if owner else told)[entry] = part.round() if entry.endswith("mask") else part
        return told

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Take the checkpoint's weights, or draw fresh ones as diffusers does, in place; extras become zero."""
        drawn = _made(self.spec, _config(self.spec, self.form), weights=True).state_dict()
        for name, tensor in self.model.state_dict().items():
            tensor.copy_(drawn[name])
        for layer in [*getattr(self, "guidance", ()), *getattr(self, "second", ())]:
            for part in layer.modules():
                if part is not layer and hasattr(part, "reset_parameters"):
                    part.reset_parameters()
            if isinstance(layer, GuidanceEmbedding):
                layer.reset_parameters()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights; what no file holds (tables of places) is made where the network was built on no memory."""
        told = super().load_state_dict(state_dict, strict, assign)
        if any(buffer.is_meta for buffer in self.model.buffers()):
            with torch.device("cpu"):
                whole = _made(self.spec, _config(self.spec, self.form))
            for name, buffer in whole.named_buffers():
                layer, _, last = name.rpartition(".")
                if self.model.get_buffer(name).is_meta:
                    self.model.get_submodule(layer)._buffers[last] = buffer
        return told


class SecondTime(nn.Module):
    """An embedding of a second time that is zero at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            TimeFeatures(16.0), nn.Linear(TimeFeatures.size, width), nn.SiLU(), ZeroLinear(width, width)
        )

    def forward(self, label: Tensor) -> Tensor:
        """Return the embedding `[n, width]` of labels `[n]` of about 1."""
        out: Tensor = self.layers(label)
        return out


def _adding(more: Tensor) -> Any:
    return lambda _, __, output: output + more.to(output)


def _library() -> Any:
    try:
        import diffusers
    except ImportError:
        raise RecipeError("net=diffusers needs diffusers: pip install 'attar[hf]'") from None
    return diffusers


def _class(spec: DiffusersNet) -> Any:
    found = getattr(_library(), spec.cls, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise RecipeError(
            f"diffusers has no network '{spec.cls}'{did_you_mean(spec.cls, KNOWN)} Such as: {', '.join(KNOWN)}"
        )
    return found


def _config(spec: DiffusersNet, form: Form) -> dict[str, Any]:
    """Return the values of a class: those of the checkpoint, those given, and what the data say of the rest."""
    cls = _class(spec)
    known = inspect.signature(cls.__init__).parameters
    if unknown := [key for key in spec.config if key not in known]:
        raise RecipeError(f"{spec.cls} has no '{unknown[0]}'{did_you_mean(unknown[0], known)}")
    if spec.name:
        try:
            stored = cls.load_config(spec.name, subfolder=spec.subfolder or None)
        except (OSError, ValueError) as error:
            raise AttarError(f"no {spec.cls} can be loaded from '{spec.name}': {str(error).splitlines()[0]}") from None
        return {**{key: value for key, value in stored.items() if key in known}, **spec.config}
    channels, side = form.shape[0], form.shape[1]
    fitting = {"sample_size": side, "in_channels": channels, "out_channels": channels}
    if form.labels:
        fitting |= {"num_class_embeds": form.labels + 1, "num_embeds_ada_norm": form.labels}
    if form.width:
        fitting |= {
            "cross_attention_dim": form.width,
            "caption_channels": form.width,
            "joint_attention_dim": form.width,
        }
    return {**{key: value for key, value in fitting.items() if key in known}, **spec.config}


def _made(spec: DiffusersNet, config: Mapping[str, Any], *, weights: bool = False) -> Any:
    """Return the network in single precision, with the checkpoint's weights where it has one and they are asked for."""
    cls = _class(spec)
    try:
        if weights and spec.name:
            place = spec.subfolder or None
            return cls.from_pretrained(spec.name, subfolder=place, use_safetensors=True, **spec.config).float()
        return cls.from_config(dict(config)).float()
    except (TypeError, ValueError, ArithmeticError, OSError, RuntimeError) as error:
        raise RecipeError(f"a {spec.cls} cannot be made so: {str(error).splitlines()[0]}") from None
