"""A pipeline of diffusers as a teacher: its network, process and autoencoder, and what it says of captions."""

from __future__ import annotations

import functools
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attar.artifacts.base import fingerprint_of
from attar.artifacts.drawing import Ode
from attar.artifacts.sampler import Reading, Sampler
from attar.artifacts.scheduling import called, scheduling
from attar.data import Samples
from attar.data.latents import LatentSamples
from attar.data.samples import ImageSamples
from attar.diffusion import from_scheduler
from attar.diffusion.specs import spec_of
from attar.errors import AttarError, DataError, RecipeError
from attar.nets.denoiser_specs import DiffusersNet, Extras
from attar.spec import digest

LEFT_OUT = ("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor")  # parts that SD3 may lack
PATIENCE = 10.0  # seconds that the hub has for its first answer
CHUNK = 16  # images or captions that are encoded together


class Pipeline:
    """A pipeline by its hub name or folder: Stable Diffusion, SDXL, PixArt, SD3, DiT, or one on pixels.

    Args:
        name: what `from_pretrained` takes.

    Raises:
        RecipeError: diffusers is not installed, or the pipeline has no network that takes noise away.
        AttarError: nothing can be loaded from the name.
    """

    kind = "pipeline"

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            import diffusers
        except ImportError:
            raise RecipeError("teacher=hf:… needs diffusers: pip install 'attar[hf]'") from None
        _reached(name)
        try:
            known = diffusers.DiffusionPipeline.load_config(name)
            cls = getattr(diffusers, str(known.get("_class_name")), None)
            if cls is None:
                raise ValueError(_nameless(known.get("_class_name"), diffusers.__version__))
            takes = inspect.signature(cls.__init__).parameters
            left_out = [part for part in LEFT_OUT if part in takes and not any(known.get(part) or ())]
            self.pipe: Any = cls.from_pretrained(name, use_safetensors=True, **dict.fromkeys(left_out))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError) as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            if importlib.util.find_spec("transformers") is None:
                reason = "its text encoders need transformers: pip install 'attar[hf]'"
            raise AttarError(f"no pipeline of diffusers can be loaded from '{name}': {reason}") from None
        self.place = next((part for part in ("unet", "transformer") if getattr(self.pipe, part, None)), "")
        if not self.place:
            raise RecipeError(f"a {type(self.pipe).__name__} has neither unet nor transformer, so it cannot teach")
        self.network: Any = getattr(self.pipe, self.place).float().eval().requires_grad_(False)
        self.autoencoder: Any = getattr(self.pipe, "vae", None)
        if self.autoencoder is not None:
            self.autoencoder.float().eval().requires_grad_(False)

    @staticmethod
    @functools.lru_cache(maxsize=1)
    def named(name: str) -> Pipeline:
        """Return the pipeline of a name, loaded once a process; its weights are for reading only."""
        return Pipeline(name)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights of all parts that are used."""
        parts = {name: part for name, part in self.pipe.components.items() if isinstance(part, torch.nn.Module)}
        return digest({name: fingerprint_of(part.state_dict()) for name, part in parts.items()})

    # ------------------------------------------------------------------ what it sees of data

    def seen(self, data: Samples) -> LatentSamples:
        """Return the images as the network sees them, with what it is told of their classes or captions.

        Raises:
            DataError: no images, or images of another size than the network's.
        """
        if not isinstance(data, ImageSamples):
            raise DataError(f"a pipeline learned images, and {data.source} has none")
        latents = self.encode(data.images.unit() * 2 - 1)
        side, channels = self.network.config.get("sample_size"), self.network.config.in_channels
        wanted = (channels, side, side) if isinstance(side, int) else (channels, *latents.shape[2:])
        if tuple(latents.shape[1:]) != wanted:
            ratio = data.images.size / latents.shape[-1]
            raise DataError(
                f"'{self.name}' draws {list(wanted)}, and {data.source} gives it {list(latents.shape[1:])}; take "
                f"images of {round(wanted[-1] * ratio)} pixels a side"
            )
        conditions, vectors = self.told(data.conditions)
        return LatentSamples(latents, data.which.cpu(), conditions, vectors, source=data.source)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return latents `[N, c, h, w]` of pixels `[N, C, H, W]` in [-1, 1], scaled as the network takes them."""
        if self.autoencoder is None:
            return pixels
        config = self.autoencoder.config
        if pixels.shape[1] == 1:
            pixels = pixels.expand(-1, config.in_channels, -1, -1)
        autoencoder = self.autoencoder.to(pixels.device)
        parts = [autoencoder.encode(part).latent_dist.mode() for part in pixels.split(CHUNK)]
        return (torch.cat(parts) - (config.get("shift_factor") or 0.0)) * config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels `[N, C, H, W]` in [0, 1] of samples as the network draws them."""
        return ((self.pixels(latents) + 1) / 2).clamp(0, 1)

    def pixels(self, latents: Tensor) -> Tensor:
        """Return pixels `[N, C, H, W]` of samples, about in [-1, 1] and with the samples' gradients."""
        if self.autoencoder is None:
            return latents
        config = self.autoencoder.config
        latents = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
        autoencoder = self.autoencoder.to(latents.device)
        return torch.cat([autoencoder.decode(part).sample for part in latents.split(CHUNK)])

    # ------------------------------------------------------------------ what it is told

    def told(self, captions: tuple[str, ...]) -> tuple[tuple[str, ...], Tensor | None]:
        """Return the conditions that the network knows of these, and their vectors, less that of no text.

        Classes go to a network with that many of them, captions to one that reads text; one that reads neither is told
        nothing.

        Raises:
            RecipeError: a network with another number of classes.
        """
        if hasattr(self.pipe, "encode_prompt"):
            parts = {name: self._embedded(captions)[name] - blank for name, blank in self.blank.items()}
            return captions, torch.cat([part.flatten(1) for part in parts.values()], 1)
        config = self.network.config
        classes = config.get("num_embeds_ada_norm") or (config.get("num_class_embeds") or 0) - 1
        if classes <= 0:
            return (), None
        if classes != len(captions):
            raise RecipeError(f"'{self.name}' knows {classes} classes, and the data have {len(captions)}")
        return captions, None

    @functools.cached_property
    def blank(self) -> dict[str, Tensor]:
        """What the network is told where there is no text, `[1, …]` by keyword of its forward."""
        if not hasattr(self.pipe, "encode_prompt"):
            return {}
        told = self._embedded(("",))
        if getattr(self.pipe.config, "force_zeros_for_empty_prompt", False):
            told = {
                name: value if name.endswith("time_ids") else torch.zeros_like(value) for name, value in told.items()
            }
        return told

    @torch.no_grad()
    def _embedded(self, captions: tuple[str, ...]) -> dict[str, Tensor]:
        """Return what the network is told of captions, `[captions, …]` float32 by keyword of its forward."""
        takes = inspect.signature(self.pipe.encode_prompt).parameters
        told: list[dict[str, Tensor]] = []
        for first in range(0, len(captions), CHUNK):
            some = list(captions[first : first + CHUNK])
            given: dict[str, Any] = {"prompt": some, "prompt_2": some, "prompt_3": some}
            given |= {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
            answer = self.pipe.encode_prompt(**{name: value for name, value in given.items() if name in takes})
            told.append({name: value.float() for name, value in self._named(answer, len(some)).items()})
        return {name: torch.cat([part[name] for part in told]) for name in told[0]}

    def _named(self, answer: Any, n: int) -> dict[str, Tensor]:
        """Return what `encode_prompt` gave by keyword of the network's forward."""
        takes = inspect.signature(self.network.forward).parameters
        named: dict[str, Tensor] = {"encoder_hidden_states": answer[0]}
        if "encoder_attention_mask" in takes and len(answer) == 4 and answer[1] is not None and answer[1].dim() == 2:
            named["encoder_attention_mask"] = answer[1]
        if "pooled_projections" in takes:
            named["pooled_projections"] = answer[2]
        if self.network.config.get("addition_embed_type") == "text_time":
            side = float(self.network.config.sample_size * getattr(self.pipe, "vae_scale_factor", 1))
            named["added_cond_kwargs.text_embeds"] = answer[2]
            named["added_cond_kwargs.time_ids"] = torch.tensor([[side, side, 0.0, 0.0, side, side]]).expand(n, -1)
        if getattr(self.network, "use_additional_conditions", False):  # PixArt at 1024 pixels
            side = float(self.network.config.sample_size * self.pipe.vae_scale_factor)
            named["added_cond_kwargs.resolution"] = torch.tensor([[side, side]]).expand(n, -1)
            named["added_cond_kwargs.aspect_ratio"] = torch.ones(n, 1)
        return named

    # ------------------------------------------------------------------ as a sampler

    def sampler(self, data: LatentSamples) -> Sampler:
        """Return the pipeline's network as a sampler of these latents."""
        process, prediction = from_scheduler(self.pipe.scheduler)
        config = {key: value for key, value in self.network.config.items() if not key.startswith("_")}
        cut = {name: tuple(value.shape[1:]) for name, value in self.blank.items()}
        net = DiffusersNet(cls=type(self.network).__name__, config=config, told=cut, pipeline=self.name)
        module: Any = net.build(data.form, Extras())
        module.model.load_state_dict(self.network.state_dict())
        if cut:
            module.blank = torch.cat([value.flatten(1) for value in self.blank.values()], 1)[0]
        reading = Reading(process=spec_of(process), prediction=prediction, drawing=Ode())
        return Sampler(
            module.eval(), net, data.form, reading, conditions=data.conditions, vectors=data.vectors, source=data.source
        )


def _reached(name: str) -> None:
    """Refuse a name that is no folder, nor stored here, while the hub is out of reach, which loading notices late.

    Raises:
        AttarError: it is.
    """
    import huggingface_hub

    try:
        if Path(name).exists() or huggingface_hub.try_to_load_from_cache(name, "model_index.json"):
            return
        huggingface_hub.HfApi().model_info(name, timeout=PATIENCE)
    except (huggingface_hub.errors.HfHubHTTPError, ValueError):  # an answer, or no name; loading says it better
        return
    except Exception as error:  # of whichever client of HTTP the hub's library has
        raise AttarError(
            f"'{name}' is no folder, and the hub cannot be reached ({type(error).__name__}): name a folder that "
            "save_pretrained wrote, or connect to the network"
        ) from None


def _nameless(named: str | None, version: str) -> str:
    """Return what is wrong with a `model_index.json` whose class is not there."""
    if not named:
        return "its model_index.json names no _class_name; take a folder that a pipeline's save_pretrained wrote"
    return f"its class {named} is not in diffusers {version}: pip install --upgrade diffusers"


def save_pipeline(sampler: Sampler, folder: str | Path) -> str:
    """Write the pipeline that a sampler's network was taken out of, with that network in it, as diffusers loads it.

    Returns:
        The line of Python by which the pipeline draws as the sampler does.

    Raises:
        AttarError: a network that came from no pipeline, one with inputs that the pipeline does not know, or a way of
            drawing that diffusers does not have.
    """
    name = getattr(sampler.net, "pipeline", "")
    if not name:
        raise AttarError("this sampler's network came out of no pipeline of diffusers, so it has none to go back to")
    if sampler.extras != Extras():
        raise AttarError(
            "this student is told its guidance or a second time by inputs that pipelines of diffusers do not have; "
            "draw from it here (attar sample), or train again with one guidance inside: guidance.embedded=no "
            "guidance.highest=null"
        )
    scheduling(sampler.reading)  # refuses before anything large is read
    pipeline, module = Pipeline(name), sampler.merged().module
    pipeline.network.load_state_dict(module.model.state_dict())  # type: ignore[union-attr]
    takes = inspect.signature(type(pipeline.pipe).__call__).parameters
    pipeline.pipe.scheduler, call = scheduling(sampler.reading, takes)
    pipeline.pipe.save_pretrained(str(folder))
    return called(call, takes)
