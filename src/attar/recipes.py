"""Recipes: which method, with which fields, on which inputs; from a command line, from Python or from a YAML file."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attar import ledger, run_folders
from attar.errors import AttarError, RecipeError, did_you_mean
from attar.spec import build, digest, fields, inputs, places_of, required_inputs, to_json

RESERVED = ("seed", "out", "preset", "threads", "device", "precision", "time", "copy")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that says what a run computes, and where and how."""

    id: str
    method: Any  # the frozen method
    preset: str
    seed: int
    copy: int
    inputs: Mapping[str, Any]  # as given: URIs, paths, artifacts, Python objects
    out: Path | None = None
    time: float | None = None  # budget in seconds; not part of what is computed
    plan: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # threads, device, precision

    @property
    def hash(self) -> str:
        """SHA-256 of method, version, fields, inputs and seeds; the execution plan is not part of it."""
        told = self.to_json()
        return digest({key: told[key] for key in ("id", "version", "fields", "inputs", "seed", "copy")})

    @property
    def folder(self) -> Path:
        """Where the run lies: `out`, or a name made of id, data, seed and hash under `runs/`."""
        if self.out is not None:
            return self.out
        from attar.data.uri import uri_slug

        data = self.inputs.get("data")
        name = uri_slug(data) if isinstance(data, str) else "memory"
        return Path("runs") / f"{self.id}-{name}-s{self.seed}-{self.hash[:8]}"

    def to_json(self) -> dict[str, Any]:
        """Return what `recipe.json` holds, less the hash."""
        return {
            "id": self.id,
            "version": self.method.version,
            "preset": self.preset,
            "fields": to_json(self.method),
            "inputs": {name: _told(value) for name, value in self.inputs.items()},
            "seed": self.seed,
            "copy": self.copy,
        }


def make(id: str, settings: Mapping[str, Any]) -> Recipe:
    """Sort settings into fields, inputs and reserved keys, and validate them.

    Raises:
        RecipeError: unknown method, unknown or invalid field, missing input.
    """
    cls = ledger.method_class(id)
    known = set(inputs(cls))
    given = {key: value for key, value in settings.items() if key in known}
    reserved = {key: value for key, value in settings.items() if key in RESERVED and value is not None}
    values = {key: value for key, value in settings.items() if key not in known and key not in RESERVED}
    preset = str(reserved.get("preset", "small"))
    names = [f.name for f in fields(cls)]
    for key in values:
        if (first := key.partition(".")[0]) not in names:
            places = places_of([cls]) | {name: name for name in (*known, *RESERVED)}
            hint = did_you_mean(first, places, places)
            raise RecipeError(f"'{id}' has no field or input '{first}'{hint} 'attar show {id}' lists them")
    method: Any = build(cls, values, preset=preset, name=id)
    if missing := [name for name in required_inputs(cls) if name not in given]:
        name = missing[0]
        example = "fashion-mnist-mini" if name == "data" else getattr(_given(inputs(cls)[name]), "example", "PATH")
        raise RecipeError(f"'{id}' needs the input '{name}'; add {name}={example}")
    return Recipe(
        id=id,
        method=method,
        preset=preset,
        seed=_whole("seed", reserved.get("seed", 0)),
        copy=_whole("copy", reserved.get("copy", 0)),
        inputs=given,
        out=_folder(reserved.get("out")),
        time=_seconds(reserved.get("time")),
        plan={key: reserved[key] for key in ("threads", "device", "precision") if key in reserved},
    )


def read(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read a YAML recipe: one run (`run: dm` with its settings), or a `chain:` of named ones.

    Returns:
        Name to settings, each with the key `run`; a single run has the name `run`.

    Raises:
        RecipeError: the file is missing, not plain YAML, or not of this form.
    """
    import yaml

    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"recipe {path} is not plain YAML (tags that build Python objects are refused): {reason}"
        ) from None
    chain = tree.get("chain") if isinstance(tree, dict) and "chain" in tree else {"run": tree}
    if not isinstance(chain, dict) or not chain:
        raise RecipeError(f"recipe {path}: 'chain' must map names to runs, such as 'small: {{run: dm, data: digits}}'")
    for name, entry in chain.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("run"), str):
            raise RecipeError(f"recipe {path}: entry '{name}' needs a mapping with 'run: ID' and its settings")
        if bad := [key for key in entry if not isinstance(key, str)]:
            raise RecipeError(f"recipe {path}: entry '{name}' has the key {bad[0]!r}; keys are names")
    return {str(name): dict(entry) for name, entry in chain.items()}


def flatten(settings: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Replace `$name` by the earlier result of that name.

    Raises:
        RecipeError: no earlier entry has that name.
    """
    flat = dict(settings)
    for key, value in settings.items():
        if isinstance(value, str) and value.startswith("$"):
            if value[1:] not in earlier:
                raise RecipeError(f"'{key}: {value}' refers to no earlier entry{did_you_mean(value[1:], earlier)}")
            flat[key] = earlier[value[1:]]
    return flat


def resolve(recipe: Recipe) -> tuple[dict[str, Any], Any]:
    """Turn the inputs as given into what the method takes; return them, and the data's splits if there are any.

    Raises:
        AttarError: something is missing or of the wrong kind.
    """
    from attar import data
    from attar.artifacts import Artifact, load

    resolved: dict[str, Any] = {}
    splits = None
    cls: Any = type(recipe.method)
    for name, hint in inputs(cls).items():
        if name not in recipe.inputs:
            continue
        value, annotation = recipe.inputs[name], _given(hint)
        if annotation is data.Images:
            found = _splits(value)
            splits = found if name == "data" or splits is None else splits
            value = found.train
        elif hasattr(annotation, "of"):  # a type that knows what may stand for it
            value = annotation.of(value)
        elif isinstance(annotation, type) and issubclass(annotation, Artifact):
            value = load(value) if isinstance(value, str | Path) else value
            if not isinstance(value, annotation):
                kind = getattr(value, "kind", type(value).__name__)
                raise AttarError(f"input '{name}' of '{recipe.id}' takes a {annotation.kind}; got a {kind}")
        resolved[name] = value
    return resolved, splits


def origins(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Return for each input that names folders of artifacts where they lie and their fingerprints as they are now.

    Of several, as in `teacher=a,b`, each has its number behind the name. Data are not among them, nor what lies in
    memory, whose fingerprints are a part of the recipe.

    Raises:
        DamagedFile: an artifact.json is not readable.
    """
    from attar import data

    cls: Any = type(recipe.method)
    found = {}
    for name, hint in inputs(cls).items():
        if name not in recipe.inputs or _given(hint) in (data.Images, data.Samples):
            continue
        value = recipe.inputs[name]
        several = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        for number, one in enumerate(several, 1):
            known = run_folders.origin(one) if isinstance(one, str | Path) else None
            if known is not None:
                found[name if len(several) == 1 else f"{name} {number}"] = known
    return found


def parents(recipe: Recipe) -> dict[str, str]:
    """Return the fingerprints of the artifacts among a recipe's inputs, by the inputs' names."""
    from attar.artifacts import Artifact

    held = {name: value.fingerprint for name, value in recipe.inputs.items() if isinstance(value, Artifact)}
    return {**held, **{name: known["fingerprint"] for name, known in origins(recipe).items()}}


def _given(annotation: Any) -> Any:
    """Return what an input takes where it is given: `T` of `T | None`."""
    some = [part for part in typing.get_args(annotation) if part is not type(None)]
    return some[0] if len(some) == 1 and type(None) in typing.get_args(annotation) else annotation


def _splits(value: Any) -> Any:
    """Return the splits that stand for an input; a small set stands for its images, with its source's test set.

    Raises:
        AttarError: a set made from data in memory, one with soft labels, or what `attar.data.resolve` refuses.
    """
    from attar import data
    from attar.artifacts import DistilledSet, Selection

    if not isinstance(value, DistilledSet | Selection):
        return data.resolve(value)
    if value.source == "memory":
        raise AttarError("a set made from data in memory has no test set to go with it; hand over data.Splits instead")
    real = data.resolve(value.source)
    chosen = value.distilled(real.train) if isinstance(value, Selection) else value
    if chosen.labels.dim() != 1 or chosen.num_classes != real.train.num_classes:
        has = "soft labels" if chosen.labels.dim() != 1 else "no labels"
        raise AttarError(f"this set has {has}; a method that takes real images needs one class an image")
    pixels = real.train.denormalise(chosen.images.detach().cpu())
    small = dataclasses.replace(real.train, pixels=pixels, labels=chosen.labels.cpu())
    return data.Splits(small, real.test, real.note)


def _told(value: Any) -> Any:
    """Return what recipe.json says of an input: the URI or path, a spec's fields, or an object's fingerprint."""
    if value is None or isinstance(value, bool | int | float | str | Path):
        return str(value) if isinstance(value, Path) else value
    if isinstance(value, list | tuple):
        return [_told(one) for one in value]
    known = getattr(value, "fingerprint", None) or getattr(getattr(value, "train", None), "fingerprint", None)
    if isinstance(known, str):
        return {"fingerprint": known}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_json(value)
    told = {"type": type(value).__name__}
    if callable(weights := getattr(value, "state_dict", None)):  # of a module: not all of one class are the same
        from attar.artifacts import fingerprint_of

        told["fingerprint"] = fingerprint_of(weights())
    return told


def _whole(name: str, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if number < 0 or str(number) != str(value).strip():
        raise RecipeError(f"{name}={value!r} is not a whole number from 0 up")
    return number


def _folder(value: Any) -> Path | None:
    if value is not None and not isinstance(value, str | Path):
        raise RecipeError(f"out={value!r} is not the name of a folder")
    return None if value is None else Path(value)


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number < float("inf"):
        raise RecipeError(f"time={value!r} is not a number of seconds above 0")
    return number
