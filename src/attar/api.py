"""The public functions: run, evaluate, compare, export, claim, bench, doctor."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attar import files, ledger, progress, recipes, run_folders
from attar.errors import AttarError, DamagedFile, Interrupted, RecipeError, did_you_mean

_BENCHES = {
    "kd": "attar.claims.bench:ObjectiveBench",
    "samplers": "attar.claims.bench_samplers:SamplerBench",
}


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a run gave: its artifact, where it lies, and how it went."""

    artifact: Any
    folder: Path
    fingerprint: str
    seconds: float
    state: str  # finished, or partial where the time budget cut it
    reused: bool  # it had finished before and was not run again


def run(id: str, *, preset: str = "small", **settings: Any) -> Any:
    """Run a system and return its artifact.

    Args:
        id: a system's id, or the path of a YAML recipe (then the artifact of its last entry is returned).
        preset: `small` finishes in minutes on a small machine; `paper` is the paper's setting.
        settings: the method's inputs and fields (dotted names as in `{"net.width": 64}` are fine), and the run's own
            keys: seed, out, threads, device, precision, time, copy.

    Raises:
        AttarError: something in this call is wrong; the message says what to do.
    """
    return run_result(id, preset=preset, **settings).artifact


def run_result(target: str, **settings: Any) -> RunResult:
    """Run a system or a recipe like `run`, and return how it went besides the artifact.

    Settings go before those of a recipe; with `out`, each entry of a chain gets a folder of its name in there.
    """
    if not str(target).endswith((".yaml", ".yml")):
        return _run_one(recipes.make(target, settings))
    results: dict[str, RunResult] = {}
    entries = recipes.read(target)
    for name, entry in entries.items():
        artifacts = {key: result.artifact for key, result in results.items()}
        own = recipes.flatten(entry, artifacts)
        given = {**own, **settings}
        if len(entries) > 1 and settings.get("out") is not None:
            given["out"] = Path(settings["out"]) / name
        results[name] = _run_one(recipes.make(given.pop("run"), given))
    return results[name]


def evaluate(
    target: Any,
    *,
    data: Any = None,
    protocol: str | None = None,
    networks: int = 5,
    nets: Sequence[str] | None = None,
    baselines: Sequence[str] = ("random", "full"),
    seed: int = 0,
    teacher: Any = None,
    continual: int | None = None,
    search: bool = False,
    **overrides: Any,
) -> dict[str, Any]:
    """Train fresh networks on a distilled set and on its baselines, and score them on the real test set.

    A `Student` is scored itself, beside its teacher: accuracy, negative log-likelihood in nats, and calibration error.
    A `DualStudent` is scored by what it finds: texts for images, images for texts. A `Sampler` is scored in 1, 2, 4 and
    its own number of steps, beside its teacher: distances to the data, coverage, calls and seconds a sample.

    Args:
        target: a run folder, an artifact folder, or a `DistilledSet`, `Selection`, `Student` or `Sampler`.
        data: the real data; none means what the run was made from.
        protocol: a preset of the evaluation protocol; none means what the method asks for, at the size of the run's
            preset (`small` for what is in memory).
        networks: fresh networks an arm.
        nets: other architectures to score on as well.
        baselines: `random` (a fresh random subset of the same size for each network), `full` (all data, equal steps).
        seed: of the networks.
        teacher: who gives labels that the protocol asks for, instead of the networks that came with the set: a trained
            network, a set that brings some, or a folder of either; several as a list. For `labels="projector"` the
            encoder that the set's label projector stands on.
        continual: let classes come in so many steps, with each arm as the memory of those before.
        search: rank a grid of networks on each arm as well, and compare with their ranking on all the data.
        overrides: fields of the protocol, such as `{"training.epochs": 100, "labels": "soft"}`; for a sampler those of
            `attar.train.generation.Generation`, such as `{"steps": (1, 2), "samples": 500}`.

    Returns:
        What evaluation.json holds, which is added to the run folder with a new report: protocol, data, arms, cross, …
        An earlier one that tells something else is kept there as evaluation-1.json, -2 and so on.

    Raises:
        AttarError: something in this call is wrong, or an option says nothing of an artifact of this kind.
    """
    from attar.artifacts import Student, load
    from attar.artifacts.autoencoder import Encoder
    from attar.artifacts.dual import DualStudent
    from attar.artifacts.sampler import Sampler
    from attar.artifacts.targeted import TargetedSet
    from attar.generating import grade_sampler
    from attar.grading import grade
    from attar.judging import judge
    from attar.run.processes import Processes, join

    join()
    shown, artifact = None, load(target) if isinstance(target, str | Path) else target
    of_images = {"nets": nets, "baselines": baselines, "continual": continual, "search": search}
    of_sets = {"protocol": protocol, "networks": networks, **of_images}
    if isinstance(artifact, Sampler):
        _refuse_idle(artifact, of_sets)
        outcome, shown = grade_sampler(artifact, target, data=data, teacher=teacher, seed=seed, settings=overrides)
    elif isinstance(artifact, Student | DualStudent):
        beside = {} if isinstance(artifact, Student) and not isinstance(artifact, Encoder) else {"teacher": teacher}
        _refuse_idle(artifact, {**of_sets, **beside, "seed": seed, **overrides})
        outcome = grade(artifact, target, data=data, teacher=teacher)
    else:
        if isinstance(artifact, TargetedSet) and not artifact.labelled:
            _refuse_idle(artifact, {**of_images, "teacher": teacher})
        outcome = judge(
            target,
            data=data,
            protocol=protocol,
            settings={**overrides, "networks": networks},
            nets=nets or (),
            baselines=baselines,
            seed=seed,
            teacher=teacher,
            continual_steps=continual,
            network_search=search,
        )
    if isinstance(target, str | Path) and (Path(target) / "recipe.json").exists():
        Processes().first(lambda: _keep(Path(target), outcome, shown))
    return outcome


def compare(folders: Iterable[str | Path], out: str | Path | None = None) -> dict[str, Any]:
    """Return what differs between the recipes of runs, and their numbers side by side.

    Args:
        folders: of runs.
        out: a file to write a page to, with charts and the images of all runs beside each other.

    Raises:
        AttarError: no run at all, or for a page fewer than two; or `out` is a file of another kind.
    """
    folders = list(folders)
    told = run_folders.differences(folders)
    if out is not None:
        from attar.report import write_comparison

        told["page"] = str(write_comparison(folders, out))
    return told


def export(folder: str | Path, to: str, out: str | Path) -> Path:
    """Write a run's artifact as `parquet`, `imagefolder` or `npz` (images), or as `onnx` or `torch` (networks).

    A sampler distilled from a pipeline of diffusers is written as a `pipeline`, which diffusers loads, or its low-rank
    updates alone as a `lora` folder, which `pipeline.load_lora_weights` reads; any sampler as a `sampler`, an artifact
    whose own weights do the work of its adapters. A student that lies in its run's folder takes pixels in [0, 1] there;
    see `attar.artifacts.deployed.deploy`.

    Raises:
        AttarError: unknown format, an artifact that has no such form, or `out` exists.
    """
    from attar.exporting import exported

    return Path(exported(folder, to, out)["path"])


def claim(
    id: str, *, seeds: int | None = None, first_seed: int | None = None, data: str | None = None, quick: bool = False
) -> dict[str, Any]:
    """Rerun a paper's claim: its arms over paired seeds, the effect, its interval, the verdict."""
    from attar.claims.harness import run_claim

    return run_claim(ledger.claim_class(id), seeds=seeds, first_seed=first_seed, data=data, quick=quick)


def bench(name: str, *, seeds: int | None = None, data: str | None = None, quick: bool = False) -> dict[str, Any]:
    """Rank everything that does one job on one rig at one budget, each tuned alike: `kd` ranks objectives, `samplers`
    ways to few steps.

    Args:
        name: the bench.
        seeds: number of paired seeds; the bench's if not given.
        data: other data than the bench's.
        quick: every arm once, in seconds; ranks nothing.

    Raises:
        RecipeError: there is no such bench, or too few seeds.
    """
    if name not in _BENCHES:
        raise RecipeError(f"unknown bench '{name}'{did_you_mean(name, _BENCHES)} Known: {', '.join(_BENCHES)}")
    from attar.claims.bench import rank

    return rank(ledger.load_path(_BENCHES[name]), seeds=seeds, data=data, quick=quick)


def doctor(*, calibrate: bool = False) -> dict[str, Any]:
    """Report versions, threads, devices and data found; with `calibrate`, time this machine and keep its best plan."""
    from attar import diagnosis

    return diagnosis.report(calibrate=calibrate)


def _run_one(recipe: recipes.Recipe) -> RunResult:
    """Report a finished run, go on with an unfinished one, or start."""
    from attar.artifacts import load
    from attar.run import Run, plan, signals
    from attar.run.processes import join
    from attar.run.stage import execute

    join(str(recipe.plan.get("device", "cpu")))
    folder = recipe.folder
    _check_folder(folder, recipe)
    record = run_folders.read(folder, "run.json", {})
    if record.get("state") == "finished":
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # of a run killed when all was done but this
        if not (folder / "report.html").exists():
            _complete(folder, recipe)
        return _result(load(folder), folder, record, reused=True)
    resolved, splits = recipes.resolve(recipe)
    size = splits.train.size if splits is not None else 0
    chosen = plan.stored(folder) or plan.choose(size, recipe.plan)
    if chosen.device != "cpu":
        resolved, splits = _moved(resolved, splits, chosen.device)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    if not progress.quiet():
        progress.tell(f"{recipe.id} with preset={recipe.preset}, in {folder}")
    try:
        with Run(
            folder,
            seed=recipe.seed,
            plan=chosen,
            recipe=recipe.hash,
            time=recipe.time,
            copy=recipe.copy,
            title=recipe.id,
        ) as live:
            live.parents |= recipes.parents(recipe)
            live.first(lambda: _describe(folder, recipe, chosen))
            artifact = execute(live, recipe.method, resolved)
            with signals.deferred():  # the template engine takes an exception inside of it for an error of the template
                live.first(lambda: _report(folder, splits))
            record = run_folders.read(folder, "run.json")
    except (AttarError, Interrupted):
        if missing:
            _remove(missing)
        raise
    return _result(artifact, folder, record, reused=False)


def _moved(resolved: dict[str, Any], splits: Any, device: str) -> tuple[dict[str, Any], Any]:
    """Put the pictures among the inputs, and their splits, on the device where the run computes."""
    from attar.data import Images, Samples

    there = None if splits is None else splits.to(device)

    def moved(value: Any) -> Any:
        if there is not None and value is splits.train:
            return there.train
        return value.to(device) if isinstance(value, Images | Samples) else value

    return {name: moved(value) for name, value in resolved.items()}, there


def _result(artifact: Any, folder: Path, record: Mapping[str, Any], *, reused: bool) -> RunResult:
    """Put together what a run gave, with what run.json says of how it went."""
    fingerprint, seconds, state = (record.get(key) for key in ("fingerprint", "seconds", "state"))
    if not (isinstance(fingerprint, str) and isinstance(seconds, int | float) and isinstance(state, str)):
        raise DamagedFile(f"{folder / 'run.json'} does not say how the run went; choose another folder with out=FOLDER")
    return RunResult(artifact, folder, fingerprint, seconds, state, reused)


def _refuse_idle(artifact: Any, given: Mapping[str, Any]) -> None:
    """Refuse those options of `evaluate` that say nothing of an artifact, unless they have their defaults.

    Raises:
        RecipeError: the message names the first.
    """
    usual = inspect.signature(evaluate).parameters
    for name, value in given.items():
        told = tuple(value) if isinstance(value, list) else value
        if name not in usual or told not in (usual[name].default, ()):
            raise RecipeError(f"a {artifact.kind} is evaluated without '{name}'; leave it out")


def _keep(folder: Path, outcome: dict[str, Any], shown: Any = None) -> None:
    """Add an evaluation to a run folder, with what a sampler drew for it, and write a new report."""
    run_folders.set_aside(folder, outcome)
    if shown is not None:
        files.save_tensors(folder / "samples.safetensors", shown)
    files.write_json(folder / "evaluation.json", outcome)
    _report(folder, outcome["data"] if shown is None else None)


def _describe(folder: Path, recipe: recipes.Recipe, chosen: Any) -> None:
    """Write what is run, and how it is cut for this machine."""
    from attar.run import plan

    files.write_json(
        folder / "recipe.json", {**recipe.to_json(), "hash": recipe.hash, "origins": recipes.origins(recipe)}
    )
    plan.store(folder, chosen)


def _complete(folder: Path, recipe: recipes.Recipe) -> None:
    """Write the report of a run that was killed when all but its report was done; another process may be at it."""
    from attar.run import guards

    with contextlib.suppress(AttarError), guards.locked(folder):
        files.remove_leftovers(folder)
        _report(folder, recipes.resolve(recipe)[1])


def _remove(paths: Sequence[Path]) -> None:
    """Remove a run folder in which nothing was made yet, and of the folders above it those that were made for it.

    Another process may have started in it meanwhile, which then holds its lock: what is in there is that one's.
    """
    from attar.run import guards

    folder = paths[0]
    if folder.exists():
        with contextlib.suppress(AttarError), guards.locked(folder):
            if not (folder / "checkpoints").exists() and not (folder / "artifact").exists():
                shutil.rmtree(folder, ignore_errors=True)
    for path in paths[1:]:
        with contextlib.suppress(OSError):
            path.rmdir()


def _check_folder(folder: Path, recipe: recipes.Recipe) -> None:
    """Refuse a folder that holds something else; nothing a user made is overwritten."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise AttarError(f"{folder} is a file; choose another folder with out=FOLDER")
    there = run_folders.read(folder, "recipe.json", None)
    if there is None and not all(_is_beginning(item) for item in folder.iterdir()):
        there = run_folders.read(folder, "recipe.json", None)  # another process may just have written it
        if there is None:
            raise AttarError(f"{folder} exists and is no run folder; choose another with out=FOLDER")
    if there is None:
        return
    if there.get("hash") == recipe.hash:
        run_folders.check_origins(folder, files.mapping(there, "origins"), recipes.origins(recipe))
        return
    mine = recipe.to_json()
    if there.get("id") == recipe.id and there.get("version") != mine["version"]:
        raise RecipeError(
            f"{folder} was made with version {there.get('version')} of '{recipe.id}', and this is version "
            f"{mine['version']}, whose numbers differ; choose another folder with out=FOLDER"
        )
    old, new = run_folders.flat(there), run_folders.flat(mine)
    differing = [key for key in new if key in old and old[key] != new[key]]
    detail = f" ({differing[0]}: {old[differing[0]]!r} there, {new[differing[0]]!r} now)" if differing else ""
    raise RecipeError(f"{folder} holds a run of another recipe{detail}; choose another folder with out=FOLDER")


def _is_beginning(item: Path) -> bool:
    """Say whether a file is what a run killed before it wrote its recipe leaves: a lock, an empty log, a file aside."""
    empty_log = item.name == "metrics.jsonl" and item.stat().st_size == 0
    return item.name == ".lock" or empty_log or (item.name.startswith(".recipe.json.") and item.suffix == ".tmp")


def _report(folder: Path, data: Any) -> None:
    """Write the artifact's card and the page of the run."""
    from attar.report import card_text, write_report

    about = run_folders.read(folder / "artifact", "artifact.json")
    text = card_text(about, run_folders.read(folder, "recipe.json"), run_folders.read(folder, "evaluation.json", None))
    files.write_text(folder / "artifact" / "README.md", text)
    write_report(folder, data)
