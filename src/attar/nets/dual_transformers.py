"""CLIP models of transformers as our dual encoders, weight by weight, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from attar.errors import AttarError, RecipeError
from attar.nets.dual import Block, DualEncoder
from attar.nets.dual_specs import DualNet, ImageTower, TextTower

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's own pictures
_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick-gelu"}


def read_clip(name: str) -> tuple[Any, tuple[Tensor, Tensor]]:
    """Return a CLIP model of transformers by its folder or name, and mean and deviation of the pixels that it knows.

    Raises:
        RecipeError: transformers is not installed.
        AttarError: no CLIP model has that name.
    """
    try:
        from transformers import CLIPModel
        from transformers.utils import cached_file
    except ImportError:
        raise RecipeError("teacher=hf:… needs transformers: pip install 'attar[hf]'") from None
    try:
        model: Any = CLIPModel.from_pretrained(name, use_safetensors=True).float().eval()
        said = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        told = json.loads(Path(said).read_text(encoding="utf-8")) if said else {}
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise AttarError(f"no CLIP model can be loaded from '{name}': {str(error).splitlines()[0]}") from None
    return model, (torch.tensor(told.get("image_mean", MEAN)), torch.tensor(told.get("image_std", STD)))


def from_clip(model: Any, channels: int, size: int) -> tuple[DualEncoder, DualNet]:
    """Return the dual encoder that computes what a CLIP model does, for images of `channels` and `size`, and its spec.

    Raises:
        RecipeError: its MLPs have an activation that ours lack, or its images other channels.
    """
    spec = spec_of(model.config)
    made = DualEncoder(spec, channels, size, int(model.config.text_config.vocab_size))
    made.end = end_of(model.config.text_config)
    made.load_state_dict({**made.state_dict(), **_renamed(model, made)})
    return made.eval(), spec


def spec_of(config: Any) -> DualNet:
    """Return the spec of a CLIP configuration.

    Raises:
        RecipeError: its MLPs have an activation that ours lack.
    """
    vision, text = config.vision_config, config.text_config
    if vision.hidden_act != text.hidden_act or vision.hidden_act not in _ACTIVATIONS:
        raise RecipeError(f"MLPs of both towers are gelu or quick_gelu; got {vision.hidden_act} and {text.hidden_act}")
    sizes = [
        {
            "width": tower.hidden_size,
            "depth": tower.num_hidden_layers,
            "heads": tower.num_attention_heads,
            "head_width": tower.hidden_size // tower.num_attention_heads,
            "hidden": tower.intermediate_size,
        }
        for tower in (vision, text)
    ]
    shown = {"patch": vision.patch_size, "size": vision.image_size, "channels": vision.num_channels}
    return DualNet(
        image=ImageTower(**sizes[0], **shown),
        text=TextTower(**sizes[1], context=text.max_position_embeddings),
        dimensions=config.projection_dim,
        activation=_ACTIVATIONS[vision.hidden_act],  # type: ignore[arg-type]
    )


def end_of(config: Any) -> int:
    """Return the id at which a text model reads; early checkpoints say 2 and mean the largest id."""
    return int(config.vocab_size - 1 if config.eos_token_id == 2 else config.eos_token_id)


def to_clip(encoder: DualEncoder, spec: DualNet) -> Any:
    """Return a dual encoder as a CLIP model of transformers, for `save_pretrained` and its other tools.

    Raises:
        RecipeError: its blocks differ in size, or heads do not fill the width, which transformers has no form for.
    """
    from transformers import CLIPConfig, CLIPModel

    for tower in (spec.image, spec.text):
        if (
            len(set(tower.blocks)) != 1
            or tower.blocks[0][0] * tower.head_width != tower.width
            or not tower.blocks[0][1]
        ):
            raise RecipeError("transformers' CLIP has blocks alike, whose heads fill the width; this one was pruned")
    act = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[spec.activation]
    text, image = (
        {
            "hidden_size": tower.width,
            "intermediate_size": tower.blocks[0][1],
            "num_hidden_layers": len(tower.blocks),
            "num_attention_heads": tower.blocks[0][0],
            "hidden_act": act,
            "projection_dim": spec.dimensions,
        }
        for tower in (spec.text, spec.image)
    )
    seen = encoder.image.patches
    side = round((len(encoder.image.positions) - 1) ** 0.5) * spec.image.patch
    image |= {"patch_size": spec.image.patch, "image_size": side, "num_channels": seen.in_channels}
    text |= {
        "vocab_size": len(encoder.text.tokens),
        "max_position_embeddings": spec.text.context,
        "eos_token_id": encoder.end,
        "bos_token_id": None,
        "pad_token_id": None,
    }
    model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=spec.dimensions)).eval()
    model.load_state_dict(_named(encoder), strict=True)
    return model


_PARTS = {  # ours to theirs, of a block
    "attention_norm": "layer_norm1",
    "project": "self_attn.out_proj",
    "mlp_norm": "layer_norm2",
    "expand": "mlp.fc1",
    "contract": "mlp.fc2",
}
_WHOLE = {  # ours to theirs, of the rest
    "image.class_token": "vision_model.embeddings.class_embedding",
    "image.patches.weight": "vision_model.embeddings.patch_embedding.weight",
    "image.positions": "vision_model.embeddings.position_embedding.weight",
    "image.first_norm.weight": "vision_model.pre_layrnorm.weight",
    "image.first_norm.bias": "vision_model.pre_layrnorm.bias",
    "image.norm.weight": "vision_model.post_layernorm.weight",
    "image.norm.bias": "vision_model.post_layernorm.bias",
    "image.project.weight": "visual_projection.weight",
    "text.tokens": "text_model.embeddings.token_embedding.weight",
    "text.positions": "text_model.embeddings.position_embedding.weight",
    "text.norm.weight": "text_model.final_layer_norm.weight",
    "text.norm.bias": "text_model.final_layer_norm.bias",
    "text.project.weight": "text_projection.weight",
    "log_scale": "logit_scale",
}
_MIXED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def _blocks(encoder: DualEncoder) -> list[tuple[str, str, Block]]:
    """Return our prefix, theirs, and the block, of every block."""
    towers = (("image", "vision_model", encoder.image), ("text", "text_model", encoder.text))
    return [
        (f"{ours}.blocks.{number}.", f"{theirs}.encoder.layers.{number}.", block)  # type: ignore[misc]
        for ours, theirs, tower in towers
        for number, block in enumerate(tower.blocks)
    ]


def _renamed(model: Any, encoder: DualEncoder) -> dict[str, Tensor]:
    """Return a CLIP model's weights by our names."""
    theirs = model.state_dict()
    found = {ours: theirs[name] for ours, name in _WHOLE.items()}
    for mine, there, _ in _blocks(encoder):
        for kind in ("weight", "bias"):
            found |= {f"{mine}{ours}.{kind}": theirs[f"{there}{name}.{kind}"] for ours, name in _PARTS.items()}
            found[f"{mine}mix.{kind}"] = torch.cat([theirs[f"{there}{name}.{kind}"] for name in _MIXED])
    return found


def _named(encoder: DualEncoder) -> dict[str, Tensor]:
    """Return a dual encoder's weights by the names of transformers."""
    ours = encoder.state_dict()
    found = {theirs: ours[name] for name, theirs in _WHOLE.items()}
    for mine, there, _ in _blocks(encoder):
        for kind in ("weight", "bias"):
            found |= {f"{there}{name}.{kind}": ours[f"{mine}{part}.{kind}"] for part, name in _PARTS.items()}
            found |= {
                f"{there}{name}.{kind}": t for name, t in zip(_MIXED, ours[f"{mine}mix.{kind}"].chunk(3), strict=True)
            }
    return found
