"""A sampler that is a frozen one with adapters inside: it stores the adapters, and where the frozen one lies."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from attar import files, nets
from attar.artifacts.base import fingerprint_of, load
from attar.artifacts.sampler import Reading, Sampler
from attar.errors import AttarError, DamagedFile, RecipeError
from attar.nets.adapter_specs import Adapter, LoRA
from attar.nets.adapters import NAME, Adapted, tensors_of
from attar.nets.denoiser_specs import Extras
from attar.nets.initialise import seeded
from attar.spec import digest, to_json

HELD = "base."  # before the names of a base that has no folder of its own
KEPT = "base"  # the folder inside the artifact's of a base whose own folder may be emptied


class AdaptedSampler(Sampler):
    """A sampler whose network is a frozen sampler's with adapters; made by `around`.

    Args:
        base: the frozen sampler, whose weights the network shares.
        adapter: spec of the adapters.
        others: see `Sampler`.
    """

    def __init__(self, *others: Any, base: Sampler, adapter: Any, **named: Any) -> None:
        super().__init__(*others, **named)
        self.base, self.adapter = base, adapter

    @classmethod
    def around(
        cls, base: Sampler, adapter: Any, rng: torch.Generator, *, extras: Extras | None = None, **changes: Any
    ) -> Self:
        """Return a sampler that draws as `base` does until its adapters are trained; `changes` are of its reading.

        Args:
            base: stays as it is; its weights are shared, not copied.
            adapter: a `LoRA`, or other adapters.
            rng: CPU generator of the adapters' weights.
            extras: inputs of the network beside those of the base.
        """
        wanted = extras or base.extras
        network, fresh = _sharing(base, wanted)
        view = base.denoiser
        highest = torch.tensor(view.process.t_max, dtype=torch.float64)
        longest = 1.0 if base.reading.prediction == "edm" else float(view.process.label(highest)) * view.time_scale
        module = adapter.attach(network, base.form, rng, longest=longest, fresh=fresh)
        reading = base.with_module(module, **changes).reading
        return cls(
            module.to(next(base.module.parameters()).device), base.net, base.form, reading, base=base, adapter=adapter,
            conditions=base.conditions, vectors=base.vectors, extras=wanted, source=base.source,
        )  # fmt: skip

    @property
    def adapted(self) -> Adapted:
        """The network with its adapters."""
        assert isinstance(self.module, Adapted)
        return self.module

    def with_module(self, module: nn.Module, **changes: Any) -> Self:
        """Return a sampler like this one around another module with the same adapters."""
        plain = Sampler(
            module, self.net, self.form, self.reading, conditions=self.conditions, vectors=self.vectors,
            extras=self.extras, source=self.source,
        ).with_module(module, **changes)  # fmt: skip
        return type(self)(
            module, self.net, self.form, plain.reading, base=self.base, adapter=self.adapter,
            conditions=self.conditions, vectors=self.vectors, extras=self.extras, source=self.source,
        )  # fmt: skip

    def copy(self, *, extras: Extras | None = None, **changes: Any) -> Any:
        """Return a sampler with a copy of the adapters around the same base; with other `extras`, a merged one."""
        if extras is not None and extras != self.extras:
            return self.merged().copy(extras=extras, **changes)
        return self.with_module(copy.deepcopy(self.module), **changes)

    def merged(self) -> Sampler:
        """Return a sampler without adapters whose own weights do their work.

        Raises:
            RecipeError: adapters that no weights can stand for.
        """
        return Sampler(
            self.adapted.merged(), self.net, self.form, self.reading, conditions=self.conditions, vectors=self.vectors,
            extras=self.extras, source=self.source,
        )  # fmt: skip

    def save_lora(self, folder: str | Path) -> Path:
        """Write the updates as pipelines of diffusers load them (`load_lora_weights(folder)`), and return the file.

        Raises:
            RecipeError: no low-rank updates, inputs that the library's networks have not, or a network of ours.
        """
        model = getattr(self.adapted.network, "model", None)
        if not isinstance(self.adapter, LoRA) or model is None or self.adapted.fresh:
            raise RecipeError(
                "a file of low-rank updates for diffusers holds updates of a network of diffusers and nothing beside; "
                "this sampler has other adapters, other inputs or another network: save it, or merged(), as it is"
            )
        part = "unet" if type(model).__name__.startswith("UNet") else "transformer"
        factor = (self.adapter.alpha or self.adapter.rank) / self.adapter.rank  # readers without α take it for 1
        found: dict[str, Tensor] = {}
        for name, tensor in self.adapted.state_dict().items():
            plain = name.removeprefix("network.model.").replace(f".{NAME}.", ".")
            found[f"{part}.{plain}"] = (factor * tensor if ".lora_B." in plain else tensor).contiguous()
        path = Path(folder) / "pytorch_lora_weights.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        files.save_tensors(path, found)
        return path

    # ------------------------------------------------------------------ as an artifact

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the adapters and of the base's weights."""
        own = {name: tensor for name, tensor in self.tensors().items() if not name.startswith(HELD)}
        return digest(["adapted", fingerprint_of(own), self.base.fingerprint])

    def tensors(self) -> dict[str, Tensor]:
        """Return the adapters' weights; those of a base without a folder, too."""
        held = {} if self.base.folder else {HELD + name: tensor for name, tensor in self.base.tensors().items()}
        own = {name: tensor for name, tensor in super().tensors().items() if name != "vectors"}  # which the base has
        return {**own, **held}

    def about(self) -> dict[str, Any]:
        """Return what the adapters are, and where the base is."""
        base: dict[str, Any] = {"fingerprint": self.base.fingerprint}
        if self._keeps_base():
            base["folder"] = KEPT
        elif self.base.folder:
            base["folder"] = str(self.base.folder.resolve())
        else:
            base["about"] = self.base.about()
        return {**super().about(), "adapter": to_json(self.adapter), "base": base}

    def attach(self, folder: Path) -> None:
        """Write the base into the artifact's folder, where its own is in the cache or in another artifact's."""
        if self._keeps_base():
            (folder / KEPT).mkdir()
            self.base.write(folder / KEPT)

    def _keeps_base(self) -> bool:
        """Say whether the base lies where it may be gone one day without anyone meaning it."""
        lies = self.base.folder and self.base.folder.resolve()
        if not lies:
            return False
        inside = lies.name == KEPT and (lies.parent / "artifact.json").exists()
        return inside or lies.is_relative_to(files.home().resolve())

    @classmethod
    def restored(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return what was saved, its base read from where it lies.

        Raises:
            DamagedFile: the base is gone, or is another one now.
        """
        adapter = TypeAdapter(Adapter).validate_python(about["adapter"])
        reading = TypeAdapter(Reading).validate_python(about["reading"])
        extras = TypeAdapter(Extras).validate_python(about["extras"])
        base = _base(about["base"], tensors, Path(about["here"]))
        made = cls.around(base, adapter, torch.Generator().manual_seed(0), extras=extras)
        own = {name.removeprefix("net."): tensor for name, tensor in tensors.items() if name.startswith("net.")}
        made.module.load_state_dict(own)
        made.module.eval().requires_grad_(False)
        made.reading = reading
        return made


def _sharing(base: Sampler, extras: Extras) -> tuple[nn.Module, frozenset[str]]:
    """Return a network with the base's own tensors in it, and the names of those it has beside."""
    tensors = tensors_of(base.module)
    if extras == base.extras:
        return copy.deepcopy(base.module, {id(tensor): tensor for tensor in tensors.values()}), frozenset()
    with seeded(torch.Generator()):
        network = base.net.build(base.form, extras)
    nets.reset(network, torch.Generator().manual_seed(0))
    names = tensors_of(network).keys()
    for name in names & tensors.keys():
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, tensors[name])
    return network, frozenset(names - tensors.keys())


def _base(known: Mapping[str, Any], tensors: Mapping[str, Tensor], here: Path) -> Sampler:
    if "folder" not in known:
        held = {name.removeprefix(HELD): tensor for name, tensor in tensors.items() if name.startswith(HELD)}
        return Sampler.rebuild({**known["about"], "here": str(here)}, held)
    folder = (here / known["folder"]).resolve()
    if not (folder / "artifact.json").exists():
        raise DamagedFile(
            f"these adapters belong to the sampler in {folder}, which is not there; put it back there. (While it is, "
            "'attar export RUN --to sampler --out FOLDER' writes a sampler that needs no other)"
        )
    try:
        _refuse_circle(folder)
        base = load(folder)
    except AttarError as error:
        raise DamagedFile(
            f"these adapters belong to the sampler in {folder}, which cannot be read ({error}); put it back there"
        ) from None
    if not isinstance(base, Sampler) or base.fingerprint != known["fingerprint"]:
        raise DamagedFile(f"these adapters belong to a sampler that was in {folder}, and another one lies there now")
    return base


def _refuse_circle(folder: Path) -> None:
    """Refuse a base whose own base, or the base of that, is itself.

    Raises:
        DamagedFile: it is.
    """
    seen: set[Path] = set()
    while folder not in seen:
        seen.add(folder)
        below = files.mapping(files.read_object(folder / "artifact.json"), "base").get("folder")
        if not isinstance(below, str):
            return
        folder = (folder / below).resolve()
    raise DamagedFile(f"{folder} names itself as its base")
