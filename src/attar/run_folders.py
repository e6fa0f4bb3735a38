"""What run folders say: their recipe and numbers, and how several differ."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attar import files
from attar.errors import AttarError, DamagedFile, RecipeError
from attar.progress import tell


def differences(folders: Iterable[str | Path]) -> dict[str, Any]:
    """Return what differs between the recipes of runs, and their numbers side by side.

    Raises:
        AttarError: no run at all, or a folder that is none.
    """
    rows = []
    for folder in map(Path, folders):
        recipe, judged = recipe_of(folder), read(folder, "evaluation.json", {})
        record = read(folder, "run.json", {})
        fields = flat({key: recipe[key] for key in ("id", "version", "seed")} | recipe["inputs"] | recipe["fields"])
        numbers = {"state": record.get("state"), "seconds": record.get("seconds"), **own_numbers(judged)}
        rows.append((fields, {"folder": str(folder), **numbers}))
    if not rows:
        raise AttarError("compare needs at least one run folder")
    keys = dict.fromkeys(key for fields, _ in rows for key in fields)
    differing = [key for key in keys if len({repr(fields.get(key)) for fields, _ in rows}) > 1]
    told: dict[str, Any] = {"differs": differing}
    told["runs"] = [{**row, **{key: fields.get(key) for key in differing}} for fields, row in rows]
    return told


def recipe_of(folder: Path) -> dict[str, Any]:
    """Return the recipe of a run.

    Raises:
        AttarError: the folder is no run's, or what it says is no recipe.
    """
    recipe: dict[str, Any] = read(folder, "recipe.json")
    missing = [key for key in ("id", "version", "seed") if key not in recipe]
    missing += [key for key in ("inputs", "fields") if not isinstance(recipe.get(key), dict)]
    if missing:
        raise DamagedFile(f"{folder / 'recipe.json'} is no recipe of a run: it has no {missing[0]}")
    return recipe


def origin(folder: str | Path) -> dict[str, str] | None:
    """Return where the artifact of a run or artifact folder lies now, and its fingerprint; none where there is none."""
    for place in (Path(folder), Path(folder) / "artifact"):
        if (place / "artifact.json").is_file():
            return {
                "path": str(Path(folder).resolve()),
                "fingerprint": str(files.read_object(place / "artifact.json").get("fingerprint")),
            }
    return None


def inputs_of(target: Any) -> dict[str, Any]:
    """Return the inputs of the run that a target names, nothing of any other target.

    Folders of artifacts are named by where they lay at the start. One that is not there any more, or holds another
    artifact now, is left out, and that is told.
    """
    path = Path(target) / "recipe.json" if isinstance(target, str | Path) else None
    if path is None or not path.exists():
        return {}
    recipe = files.read_object(path)
    given = dict(files.mapping(recipe, "inputs"))
    then = files.mapping(recipe, "origins")
    for name in then.keys() & given.keys():
        was = files.mapping(then, name)
        places = [place for place in (was.get("path"), given.pop(name)) if isinstance(place, str)]
        there = [place for place in places if (origin(place) or {}).get("fingerprint") == was.get("fingerprint")]
        if there:
            given[name] = there[0]
        else:
            tell(f"goes on without the {name} of {target}, which is not in {was.get('path')} any more")
    return given


def check_origins(folder: Path, then: Mapping[str, Any], now: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse inputs that are not what the run was started with; where nothing was noted, nothing is refused.

    Args:
        folder: of the run.
        then: what `origin` said of each input when the run was started.
        now: what it says of them now.

    Raises:
        RecipeError: another artifact lies there now, or none while the run is not finished.
    """
    for name in then:
        was, known = files.mapping(then, name), now.get(name)
        told = f"{was.get('path')} held {str(was.get('fingerprint'))[:12]}… then"
        if known is None and read(folder, "run.json", {}).get("state") == "finished":
            tell(f"the {name} of {folder} is not there any more: {told}")
        elif known is None or known["fingerprint"] != was.get("fingerprint"):
            there = "it holds none" if known is None else f"{known['path']} holds {known['fingerprint'][:12]}…"
            raise RecipeError(
                f"{folder} was started with another {name}: {told}, {there} now; put it back there, or choose another "
                "folder with out=FOLDER"
            )


def set_aside(folder: Path, outcome: dict[str, Any]) -> None:
    """Keep a former evaluation that tells something else as evaluation-1.json, -2 …, with what was drawn for it."""
    former = folder / "evaluation.json"
    if not former.exists():
        return
    with contextlib.suppress(DamagedFile):
        if _untimed(files.read_json(former)) == _untimed(json.loads(json.dumps(outcome))):
            return
    number = next(n for n in itertools.count(1) if not (folder / f"evaluation-{n}.json").exists())
    for path in (folder / "samples.safetensors", former):
        if path.exists():
            files.write_bytes(path.with_stem(f"{path.stem}-{number}"), path.read_bytes())


def own_numbers(judged: Mapping[str, Any]) -> dict[str, Any]:
    """Return accuracy and size of what was made, from an evaluation; nothing where there are none.

    Of a sampler: what its fewest steps came to.
    """
    arms, measures = judged.get("arms"), ("accuracy", "accuracy_std", "images", "bytes")
    if judged.get("kind") == "sampler":
        measures = ("steps", "frechet", "sliced_wasserstein", "coverage")
    for arm in arms if isinstance(arms, list) else []:
        if isinstance(arm, Mapping) and arm.get("name") not in ("random", "full"):
            told = {key: arm.get(key) for key in measures}
            return {key: value for key, value in told.items() if isinstance(value, int | float)}
    return {}


def read(folder: Path, name: str, *default: Any) -> Any:
    """Return a JSON object of a run folder; the default where there is no such file.

    Raises:
        AttarError: the file is not there, and no default is given.
    """
    path = folder / name
    if not path.exists():
        if default:
            return default[0]
        raise AttarError(f"{folder} is no run folder (it has no {name}); 'attar run' makes them")
    return files.read_object(path)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a tree of values as one level, names joined by dots."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _untimed(value: Any) -> Any:
    """Return a JSON value without the seconds that something took, which differ each time."""
    if isinstance(value, list):
        return [_untimed(one) for one in value]
    if isinstance(value, dict):
        return {key: _untimed(one) for key, one in value.items() if key != "seconds"}
    return value
