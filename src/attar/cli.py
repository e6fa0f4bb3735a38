"""The command line: a thin face over the public functions.

With `--json` a command prints exactly one JSON object, the last line of standard output; progress and messages go to
standard error. A mistake of the person at the keyboard ends with its message and exit code 2, never with a traceback.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from attar import __version__
from attar.errors import AttarError, Interrupted, RecipeError
from attar.overrides import parse_overrides

app = typer.Typer(
    name="attar",
    help="Distil a big data set, a big model or a slow sampler into a small, fast one.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

STOPPED = 130  # exit code after Ctrl-C
ELSEWHERE = {"list": "systems", "ls": "systems", "train": "run", "draw": "sample"}  # commands of other programs

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line of standard output.")]
Folder = Annotated[Path, typer.Argument(help="A run folder.", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        show_default=False,
        help="Fields and inputs of the method, nested with dots (net.width=64), and of the run: "
        "seed, out, preset, threads, device, precision, time, copy.",
    ),
]


@app.callback(invoke_without_command=True)
def attar(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Distil a big data set, a big model or a slow sampler into a small, fast one."""
    if version:
        typer.echo(f"attar {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def run(
    target: Annotated[str, typer.Argument(metavar="ID|RECIPE.yaml", help="A system's id, or a recipe.")],
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Run a method, or go on with a run that was stopped.

    'attar show ID' lists inputs, fields and presets.
    The preset is 'small' without preset=NAME; preset=paper is the paper's.
    The folder is runs/ID-DATA-sSEED-HASH without out=FOLDER.
    """
    overrides = parse_overrides(settings or [])
    if not target.endswith((".yaml", ".yml")):
        from attar import ledger

        ledger.method_path(target)  # an unknown or planned method is refused before torch is loaded
    with _answer(as_json) as answer:
        from attar import api
        from attar.artifacts.sampler import Sampler

        result = api.run_result(target, **overrides)
        drawn = isinstance(result.artifact, Sampler)
        value = {
            "id": target,
            "folder": str(result.folder),
            "fingerprint": result.fingerprint,
            "seconds": result.seconds,
            "state": result.state,
            "reused": result.reused,
            "report": str(result.folder / "report.html"),
            "draw": f"attar sample {shlex.quote(str(result.folder))}" if drawn else None,
        }
        answer(value, _show_run)


@app.command()
def systems(
    family: Annotated[str | None, typer.Option(help="Only this family.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """List every system: what works, and how strongly its claim holds."""
    with _answer(as_json) as answer:
        from attar import ledger, terminal

        rows = ledger.systems(family)
        answer({"systems": rows}, lambda value: terminal.show_systems(value["systems"]))


@app.command()
def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="A system's id.")],
    *,
    whole: Annotated[bool, typer.Option("--all", help="Every field, those inside of others too.")] = False,
    as_json: Json = False,
) -> None:
    """Show a system: its paper, inputs, fields with units and ranges, presets, claim and an example."""
    with _answer(as_json) as answer:
        from attar import catalogue, terminal

        answer(catalogue.entry(id), lambda entry: terminal.show_entry(entry, whole=whole))


@app.command()
def claim(
    id: Annotated[str | None, typer.Argument(metavar="ID", help="A system's id; none lists all claims.")] = None,
    *,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds.", show_default="the claim file's")] = None,
    first_seed: Annotated[int | None, typer.Option(min=0, help="The first seed.", show_default="0")] = None,
    data: Annotated[str | None, typer.Option(help="Other data.", show_default="the claim file's")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Every arm once, in seconds; gives no verdict.")] = False,
    as_json: Json = False,
) -> None:
    """Rerun a paper's claim here: arms, seeds, effect, interval, verdict."""
    from attar import ledger

    if id is not None:
        ledger.claim_path(id)
    with _answer(as_json) as answer:
        from attar import api, terminal

        if id is None:
            answer({"claims": ledger.claimed()}, lambda value: terminal.show_claims(value["claims"]))
            return
        answer(api.claim(id, seeds=seeds, first_seed=first_seed, data=data, quick=quick), terminal.show_claim)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(metavar="NAME", help="kd: objectives; samplers: ways to few steps.")],
    *,
    seeds: Annotated[int | None, typer.Option(min=2, help="Number of seeds.", show_default="the bench's")] = None,
    data: Annotated[str | None, typer.Option(help="Other data.", show_default="the bench's")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Every arm once, in seconds; ranks nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Rank all that do one job: one rig, one budget, every arm tuned alike, with intervals."""
    with _answer(as_json) as answer:
        from attar import api, terminal

        answer(api.bench(name, seeds=seeds, data=data, quick=quick), terminal.show_bench)


@app.command()
def evaluate(
    target: Annotated[str, typer.Argument(metavar="RUN", help="A run folder or an artifact folder.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", show_default=False, help="Fields of the protocol."),
    ] = None,
    *,
    data: Annotated[str | None, typer.Option(help="Data to test on.", show_default="the run's")] = None,
    protocol: Annotated[str | None, typer.Option(help="Training preset.", show_default="the method's")] = None,
    networks: Annotated[int, typer.Option(min=1, help="Fresh networks an arm.")] = 5,
    nets: Annotated[str | None, typer.Option(help="Other architectures too, such as mlp,lenet.")] = None,
    baselines: Annotated[str, typer.Option(help="Arms to compare with; 'none' for none.")] = "random,full",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the networks.")] = 0,
    teacher: Annotated[
        str | None,
        typer.Option(help="Who labels: folders of networks, or of sets that bring some.", show_default="the set's own"),
    ] = None,
    continual: Annotated[
        int | None, typer.Option(min=2, help="Classes come in so many steps, too.", show_default=False)
    ] = None,
    search: Annotated[bool, typer.Option("--search", help="Rank a grid of networks, too.")] = False,
    as_json: Json = False,
) -> None:
    """Train fresh networks on what a run made, and on its baselines, and compare their test accuracy.

    A trained network is scored itself; a sampler by what it draws in 1, 2, 4 and its own number of steps.
    """
    overrides = parse_overrides(settings or [])
    options: dict[str, Any] = {"data": data, "protocol": protocol, "networks": networks, "seed": seed}
    options |= {"nets": _names(nets), "teacher": _names(teacher), "continual": continual, "search": search}
    options["baselines"] = () if baselines == "none" else _names(baselines)
    for key in overrides.keys() & options:
        raise RecipeError(f"'{key}' is an option of evaluate; write --{key} {overrides[key]}")
    with _answer(as_json) as answer:
        from attar import api, terminal

        answer(api.evaluate(target, **options, **overrides), terminal.show_arms)


@app.command()
def sample(
    target: Annotated[str, typer.Argument(metavar="RUN", help="A run folder or an artifact folder of a sampler.")],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PROMPT]...", show_default="at random", help="Classes, or any texts where it was trained on texts."
        ),
    ] = None,
    *,
    n: Annotated[int, typer.Option("--n", min=1, help="Samples of each prompt.")] = 8,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of drawing.", show_default="the sampler's")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Scale g of u + g (c - u); 1 is off.", show_default="the sampler's")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A .png or .npz to write.", show_default="in the folder")] = None,
    as_json: Json = False,
) -> None:
    """Draw from a sampler and write a picture with a row for each prompt."""
    with _answer(as_json) as answer:
        from attar import sampling, terminal

        told = sampling.sample(target, prompts or (), n=n, steps=steps, seed=seed, guidance=guidance, out=out)
        answer(told, terminal.show_values)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Two or more run folders.")],
    *,
    out: Annotated[Path | None, typer.Option(help="Write a page with pictures here, too.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Set runs side by side: what differs between their recipes, their numbers, and on a page their images."""
    with _answer(as_json) as answer:
        from attar import api, terminal

        answer(api.compare(folders, out=out), terminal.show_comparison)


@app.command()
def export(
    folder: Folder,
    to: Annotated[
        str,
        typer.Option(
            help="Images: parquet, imagefolder, npz. Networks: onnx, torch. Samplers: sampler, pipeline, lora.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where to write.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Write a run's artifact in another format."""
    with _answer(as_json) as answer:
        from attar.exporting import exported

        def show(told: dict[str, Any]) -> None:
            draws = f"; it draws as the sampler does by\n{told['draws']}" if "draws" in told else ""
            typer.echo(f"wrote {told['path']}{draws}")

        answer(exported(folder, to, out), show)


@app.command()
def doctor(
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Time this machine and keep the fastest plan.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Report versions, threads, devices and the data found on this machine."""
    with _answer(as_json) as answer:
        from attar import api, terminal

        answer(api.doctor(calibrate=calibrate), terminal.show_values)


Answer = Callable[[Any, Callable[[Any], None]], None]


@contextlib.contextmanager
def _answer(as_json: bool) -> Iterator[Answer]:
    """Give a function that shows a value to a person; with `--json` the value alone reaches standard output."""
    if not as_json:
        yield lambda value, show: show(value)
        return
    answers: list[Any] = []
    with contextlib.redirect_stdout(sys.stderr):
        yield lambda value, show: answers.append(value)
    _print_json(answers[0])


def _print_json(value: Any) -> None:
    """Print one line of JSON."""
    from attar.terminal import json_line

    print(json_line(value), flush=True)


def _names(text: str | None) -> list[str] | None:
    """Split `mlp,lenet` into names; nothing stays nothing."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _show_run(value: dict[str, Any]) -> None:
    """Print where a run's results lie, or how to go on with an unfinished one."""
    from attar import terminal

    keys = ("folder", "fingerprint", "seconds", "state")
    terminal.show_values({key: value[key] for key in keys})
    for key in ("report", "draw"):
        if value[key]:
            typer.echo(f"{key}: {value[key]}")
    if value["reused"]:
        typer.echo("This run was finished before; nothing was computed anew (copy=1 makes another).")
    elif value["state"] == "partial":
        typer.echo("The time budget ended this run; the same command with a larger time= goes on.")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name of a file or in a file need not be valid text
            stream.reconfigure(errors="backslashreplace")
    with contextlib.ExitStack() as exits:
        if _is_follower():
            exits.enter_context(contextlib.redirect_stdout(exits.enter_context(Path(os.devnull).open("w"))))
        code = _code_of(words)
    sys.exit(code)


def _code_of(words: list[str]) -> int:
    """Run the command line and return its exit code."""
    try:
        code = app(args=words, prog_name="attar", standalone_mode=False)
        if code == STOPPED:  # the command-line parser has caught the interrupt
            code = _refuse("stopped", STOPPED, words)
    except KeyboardInterrupt:
        code = _refuse("stopped", STOPPED, words)
    except (AttarError, Interrupted) as error:
        code = _refuse(str(error), error.exit_code, words)
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        sys.stderr.close()
        code = 1
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EROFS, errno.EDQUOT):
            raise
        code = _refuse(f"{error.filename or 'the disk'}: {error.strerror}; nothing already saved is lost", 2, words)
    except Exception as error:
        if not hasattr(error, "format_message"):  # a usage error of the command-line parser, whose class moved about
            if type(error).__name__ != "Abort":
                raise
            code = _refuse("stopped", STOPPED, words)
        else:
            code = _refuse(
                f"{error.format_message()}{_meant(words)} 'attar --help' lists commands and options", 2, words
            )
    return code if isinstance(code, int) else 0


def _meant(words: list[str]) -> str:
    """Return which command is meant by a word of other programs for it."""
    command = ELSEWHERE.get(next((word for word in words if not word.startswith("-")), ""))
    return f" Did you mean '{command}'?" if command else ""


def _is_follower() -> bool:
    """Say whether a launcher started this process as another than the first: it works, and the first one speaks."""
    return os.environ.get("RANK", "0") != "0"


def _refuse(message: str, code: int, words: list[str]) -> int:
    """Print an error's message, as JSON too where that was asked for, and return the exit code."""
    if not _is_follower():
        print(f"attar: {message}", file=sys.stderr)
    if "--json" in words:
        _print_json({"error": message, "exit_code": code})
    return code
