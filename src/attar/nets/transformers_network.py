"""A classifier of transformers in the shape of our networks: maps, embedding, head."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from attar.errors import AttarError, RecipeError, did_you_mean
from attar.nets.network import Network
from attar.nets.token_specs import whole
from attar.nets.transformers_spec import TransformersNet

# what a configuration says beside the network
_IDLE = {
    "architectures", "dtype", "id2label", "label2id", "out_features", "out_indices", "problem_type", "stage_names",
    "torch_dtype", "transformers_version",
}  # fmt: skip


class TransformersNetwork(Network):
    """A transformers model whose last linear layer is our `head`; `model` gives what that layer reads.

    `stages` are the model's own blocks or stages, the first list of modules in it; hooks reach all inside by `model.…`.
    `features` gives what they return as maps `[n, channels, h, w]`, without the tokens ahead of the places.

    Args:
        spec: which model.
        channels: of the images.
        size: pixels a side of the images.
        classes: outputs.

    Raises:
        RecipeError: transformers is not installed, has no such family or value, or the images have other channels or
            are too small.
        AttarError: no checkpoint has that name.
    """

    covers_submodules = True  # `reset_parameters` draws everything inside

    def __init__(self, spec: TransformersNet, channels: int, size: int, classes: int) -> None:
        nn.Module.__init__(self)  # stages and pools are the model's own
        self.config = read_config(spec, channels, size, classes)
        self.name, self.num_classes = spec.name, classes
        self.model, self.head = _headless(_make(self.config))
        self.__dict__["stages"] = blocks_of(self.model)  # registered there already: weights have one name each
        self.collapse = nn.Identity()  # the model's own pooling is inside; every way through passes here
        self.num_features = self.head.in_features
        self.sight = Sight(channels, int(_vision(self.config).num_channels), _side(self.config))
        self._try(torch.zeros(1, channels, size, size))

    @property
    def as_built(self) -> TransformersNet:
        """The spec that builds this network without its checkpoint."""
        told = self.config.to_diff_dict()
        values = {key: value for key, value in told.items() if key not in _IDLE and not key.startswith("_")}
        return TransformersNet(config={"model_type": self.config.model_type, **values})

    @property
    def activations(self) -> list[str | None]:
        """None for every stage: what a stage returns is taken as it is."""
        return [None] * len(self.stages)

    def embed(self, x: Tensor) -> Tensor:
        """Return the embedding `[n, num_features]`: the input of the linear head."""
        out: Tensor = self.collapse(self.model(pixel_values=self.sight(x)).logits)
        return out

    def features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return what every stage gives as a map `[n, channels, h, w]`, and the embedding."""
        given: list[Any] = []

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            given.append(output)

        handles = [stage.register_forward_hook(keep) for stage in self.stages]
        try:
            embedding = self.embed(x)
        finally:
            for handle in handles:
                handle.remove()
        return [self.map_of(some) for some in given], embedding

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Take the checkpoint's weights, or draw fresh ones as transformers does, in place."""
        drawn = self._drawn()
        for name, tensor in self.state_dict().items():
            tensor.copy_(drawn[name])

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights; what no file holds (tables of places) is made where the network was built on no memory."""
        told = super().load_state_dict(state_dict, strict, assign)
        if any(buffer.is_meta for buffer in self.model.buffers()):
            with torch.device("cpu"):
                whole_model, _ = _headless(_make(self.config))
            for name, buffer in whole_model.named_buffers():
                layer, _, last = name.rpartition(".")
                if self.model.get_buffer(name).is_meta:
                    self.model.get_submodule(layer)._buffers[last] = buffer
        return told

    def original(self) -> nn.Module:
        """Return a copy as transformers knows it, the head in its place: for `save_pretrained` and its other tools."""
        model = copy.deepcopy(self.model)
        parent, _, last = self._head_path().rpartition(".")
        setattr(model.get_submodule(parent), last, copy.deepcopy(self.head))
        return model

    @torch.no_grad()
    def _try(self, image: Tensor) -> None:
        """Say so now if the model cannot read such images; its statistics stay."""
        if image.is_meta:
            return
        try:
            self.eval()(image)
        except (RuntimeError, ValueError, TypeError) as error:
            raise RecipeError(
                f"a {self.config.model_type} of these values cannot read {image.shape[-1]}×{image.shape[-1]} images: "
                f"{str(error).splitlines()[0]}. Smaller patches, windows or fewer stages may fit"
            ) from None
        self.train()

    def _drawn(self) -> dict[str, Tensor]:
        """Return the weights of a twin, by the names of ours."""
        with torch.device("cpu"):
            if self.name:
                made = _read(self.name, lambda name: _classifiers().from_pretrained(
                    name, config=self.config, ignore_mismatched_sizes=True, use_safetensors=True))  # fmt: skip
            else:
                made = _make(self.config)
        model, head = _headless(made)
        return {f"model.{name}": tensor for name, tensor in model.state_dict().items()} | {
            f"head.{name}": tensor for name, tensor in head.state_dict().items()
        }

    def _head_path(self) -> str:
        return next(name for name, layer in self.model.named_modules() if isinstance(layer, _HeadsPlace))

    def map_of(self, given: Any) -> Tensor:
        """Return tokens `[n, t, channels]` as a map without those ahead of the places; a map as it is."""
        given = given if isinstance(given, Tensor) else given[0]
        if given.dim() == 4:
            return given
        known = _vision(self.config)
        side = (
            int(known.image_size) // int(known.patch_size)
            if hasattr(known, "patch_size")
            else math.isqrt(given.shape[1])
        )
        side = side if side * side <= given.shape[1] else math.isqrt(given.shape[1])
        return given[:, given.shape[1] - side * side :].transpose(1, 2).unflatten(2, (side, side))


class Sight(nn.Module):
    """Show images `[n, channels, s, s]` in the channels and the size a model was made for.

    Raises:
        RecipeError: the model sees other channels, and the images are not grey.
    """

    def __init__(self, channels: int, seen: int, side: int | None) -> None:
        super().__init__()
        if channels not in (1, seen):
            raise RecipeError(
                f"this model sees {seen} channels and the images have {channels}; grey ones it could show"
            )
        self.seen, self.side = seen, side

    def forward(self, x: Tensor) -> Tensor:
        """Return images `[n, seen, side, side]`."""
        x = x.expand(-1, self.seen, -1, -1)
        if self.side is None or self.side == x.shape[-1]:
            return x
        return functional.interpolate(x, size=(self.side, self.side), mode="bilinear", align_corners=False)


class _HeadsPlace(nn.Identity):
    """Stands where the head was."""


def read_config(spec: TransformersNet, channels: int, size: int, classes: int) -> Any:
    """Return the configuration of a model for data of this shape.

    Raises:
        RecipeError: transformers is not installed, or has no such family or no such value.
        AttarError: no checkpoint has that name.
    """
    families = _classifiers()._model_mapping  # by class of configuration
    from transformers import AutoConfig

    told = {key: value for key, value in spec.config.items() if key != "model_type"}
    if spec.name:
        config: Any = _read(spec.name, AutoConfig.from_pretrained)
    else:
        known = sorted(family.model_type for family in families)
        if (family := spec.config["model_type"]) not in known:
            hint = did_you_mean(family, known)
            raise RecipeError(f"transformers has no image classifier '{family}'{hint} Families: {', '.join(known)}")
        config = AutoConfig.for_model(family)
    if type(config) not in families:
        raise RecipeError(f"'{spec.name}' is a {config.model_type}, of which transformers has no image classifier")
    if unknown := [key for key in told if key not in config.to_dict()]:
        hint = did_you_mean(unknown[0], config.to_dict())
        raise RecipeError(f"a {config.model_type} has no '{unknown[0]}'{hint}")
    try:
        if spec.name:
            config = AutoConfig.from_pretrained(spec.name, **told)
        else:
            config = AutoConfig.for_model(config.model_type, **told)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise RecipeError(f"a {config.model_type} cannot have these values: {error}") from None
    config.num_labels = classes
    made = families[type(config)]
    config.architectures = [(made[0] if isinstance(made, tuple | list) else made).__name__]  # DeiT: without a teacher
    seen = _vision(config)
    said = told.get("vision_config", {}) if seen is not config else told
    for key in _dropouts(seen):  # they draw from torch's global generator, which is one for all threads
        setattr(seen, key, said.get(key, 0.0))
    if not spec.name:
        seen.num_channels = said.get("num_channels", channels)
        if hasattr(seen, "image_size"):
            seen.image_size = said.get("image_size", whole(size, int(getattr(seen, "patch_size", 1))))
    return config


def _vision(config: Any) -> Any:
    """Return the part of a configuration that is about images."""
    return getattr(config, "vision_config", config)


def _side(config: Any) -> int | None:
    """Return the pixels a side that a model sees; none if it sees any."""
    side = getattr(_vision(config), "image_size", None)
    return None if side is None else int(side if isinstance(side, int) else side[0])


def _dropouts(config: Any) -> list[str]:
    return [key for key, value in config.to_dict().items() if "drop" in key and isinstance(value, float)]


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """Return the first list of modules in a model, the one nearest to its root.

    Raises:
        RecipeError: there is none.
    """
    waiting = [model]
    while waiting:
        layer = waiting.pop(0)
        if isinstance(layer, nn.ModuleList) and len(layer) and not isinstance(layer[0], nn.ModuleList):
            return layer
        waiting += layer.children()
    raise RecipeError(f"{type(model).__name__} keeps its blocks in no list, so it has no stages to read")


def _headless(model: Any) -> tuple[nn.Module, nn.Linear]:
    """Take the last linear layer out of a classifier and return both."""
    wanted = model.config.num_labels
    found = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    found = [name for name in found if model.get_submodule(name).out_features == wanted]
    if not found:
        raise RecipeError(f"{type(model).__name__} does not end in a linear layer, so it has no head to read")
    parent, _, last = found[-1].rpartition(".")
    head: nn.Linear = model.get_submodule(found[-1])
    setattr(model.get_submodule(parent), last, _HeadsPlace())
    return model, head


def _classifiers() -> Any:
    try:
        from transformers import AutoModelForImageClassification
    except ImportError:
        raise RecipeError("net=transformers needs transformers: pip install 'attar[hf]'") from None
    return AutoModelForImageClassification


def _make(config: Any) -> Any:
    """Return a model with fresh weights in single precision."""
    try:
        return _classifiers().from_config(config).float()
    except (TypeError, ValueError, ArithmeticError) as error:
        raise RecipeError(f"a {config.model_type} cannot have these values: {error}") from None


def _read(name: str, read: Any) -> Any:
    try:
        return read(name)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise AttarError(f"no image classifier can be loaded from '{name}': {str(error).splitlines()[0]}") from None
