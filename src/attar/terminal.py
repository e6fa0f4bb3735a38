"""How the command line shows what the library returns: quiet rich tables for people, one line of JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

STATUS_STYLES = {"works": "green", "partial": "yellow", "planned": "dim"}
SCREEN = 48  # rows of a table that are read without searching
VERDICT_STYLES = {"holds": "green", "fails": "red", "inconclusive": "yellow"}


def console() -> Console:
    """Return a console on the present standard output: plain text, never cut, where that is not a terminal."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=200, soft_wrap=True)


def json_line(value: Any) -> str:
    """Return a value as one line of strict JSON: non-finite numbers become null, paths and the like their text."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """Return a value made of JSON values alone."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return plain(value.item()) if hasattr(value, "item") else str(value)  # NumPy and torch scalars


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Iterable[str] = (), title: str = ""
) -> Table:
    """Return a table in the house's look; `right` names the columns of numbers."""
    made = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", header_style="bold", pad_edge=False)
    numbers = set(right)
    for column in columns:
        whole = column == "field"  # a name is copied
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold", no_wrap=whole)
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(as_text(cell)) for cell in row))
    return made


def as_text(value: Any) -> str:
    """Return a value as it stands in a table: four digits for numbers, a dash for nothing."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple | dict):
        return json.dumps(plain(value), ensure_ascii=False)
    return str(value)


def effect(result: Mapping[str, Any]) -> str:
    """Return a claim's effect with its interval: `+0.109 [0.100, 0.118]`; a dash where there is none."""
    if result.get("effect") is None:
        return "–"
    interval = result.get("interval")
    bounds = f" [{interval[0]:.3g}, {interval[1]:.3g}]" if interval and None not in interval else ""
    return f"{result['effect']:+.3g}{bounds}"


def verdict(result: Mapping[str, Any]) -> Text:
    """Return a verdict in its colour and its reason; `stale` where the code moved on, `doubted` where a review did."""
    name = result.get("verdict")
    if not name:
        return Text("–", style="dim")
    reason = f": {result['reason']}" if result.get("reason") else ""
    marks = [mark for mark, on in (("stale", result.get("stale")), ("doubted", result.get("doubt"))) if on]
    note = f" ({', '.join(marks)})" if marks else ""
    return Text(name + reason + note, style=VERDICT_STYLES.get(name, ""))


def show_systems(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the ledger as a table and a line that counts."""
    cells = [
        (
            row["id"],
            row["title"],
            row["family"],
            Text(row["status"], STATUS_STYLES[row["status"]]),
            verdict(row),
            effect(row),
        )
        for row in rows
    ]
    out = console()
    out.print(table(("id", "title", "family", "status", "claim", "effect"), cells))
    counts = ", ".join(f"{sum(row['status'] == name for row in rows)} {name}" for name in STATUS_STYLES)
    out.print(f"{len(rows)} rows: {counts}. 'attar show ID' says more of one.")


def show_claims(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the claims as a table and a line that counts."""
    cells = [(row["id"], row["title"], row["family"], verdict(row), effect(row)) for row in rows]
    out = console()
    out.print(table(("id", "title", "family", "claim", "effect"), cells))
    undecided = sum(row["verdict"] is None or row["stale"] for row in rows)
    out.print(f"{len(rows)} claims, {undecided} of them undecided. 'attar claim ID' checks one.")


def show_entry(entry: Mapping[str, Any], *, whole: bool = False) -> None:
    """Print what there is to say of one system, see `attar.catalogue.entry`; unless `whole`, outer fields alone."""
    out = console()
    out.print(Text(entry["title"], style="bold"))
    about = [entry["paper"], entry["family"], "base" if entry["base"] else "", entry["status"]]
    out.print(Text(f"{entry['id']} · " + " · ".join(part for part in about if part), style="dim"))
    if entry["kind"] == "planned":
        out.print(f"\nPlanned: there is no code yet. 'attar systems --family {entry['family']}' lists its family.")
        return
    out.print(f"\n{entry['summary']}", markup=False)
    if entry["inputs"]:
        cells = [(i["name"], i["type"], "needed" if i["required"] else "may be left out") for i in entry["inputs"]]
        out.print(table(("input", "type", ""), cells))
    shown = entry["fields"] if whole else outer_fields(entry["fields"])
    cells = [tuple(field[key] for key in ("name", "default", "type", "range", "note")) for field in shown]
    out.print(table(("field", "default", "type", "range", "note"), cells, right=("default",)))
    if folded := len(entry["fields"]) - len(shown):
        out.print(f"{folded} more fields lie inside these: attar show {entry['id']} --all", style="dim")
    for name, values in entry["presets"].items():
        settings = " ".join(f"{key}={as_text(value)}" for key, value in values.items())
        out.print(f"preset={name}: {settings or 'the defaults above'}", markup=False)
    if entry["claim"]:
        out.print(f"\nClaim: {entry['claim']['says']}", markup=False)
        result = Text("Verdict: ").append_text(verdict(entry))
        out.print(result.append(f"  {effect(entry)}") if entry["verdict"] else "Verdict: none yet")
        if entry["doubt"]:
            out.print(f"Doubted: {entry['doubt']}", markup=False)
    out.print(f"\nExample: {entry['example']}", markup=False)


def outer_fields(fields: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the fields down to the depth at which they still fit on a screen."""
    depths = [field["name"].count(".") for field in fields]
    fitting = [limit for limit in set(depths) if sum(depth <= limit for depth in depths) <= SCREEN]
    return [field for field, depth in zip(fields, depths, strict=True) if depth <= max(fitting, default=0)]


def show_arms(result: Mapping[str, Any]) -> None:
    """Print the arms of an evaluation: accuracy over networks, storage, training time; then other architectures."""
    out = console()
    if result.get("kind") == "sampler":
        _show_samplers(result, out)
        return
    if any("nll" in arm for arm in result["arms"]):
        graded = ("arm", "accuracy", "nll", "calibration error", "parameters", "bytes")
        numbers = [
            (_arm(arm)[:2], [arm[key] for key in ("nll", "ece", "parameters", "bytes")]) for arm in result["arms"]
        ]
        out.print(table(graded, [(*name, *rest) for name, rest in numbers], right=graded[1:]))
        return
    columns = ("arm", "accuracy", "networks", "images", "bytes", "seconds")
    out.print(table(columns, [_arm(arm) for arm in result["arms"]], right=columns[1:]))
    cross = [(entry["net"], *_arm(arm)) for entry in result.get("cross") or [] for arm in entry["arms"]]
    if cross:
        out.print(table(("net", *columns), cross, right=columns[1:], title="Other architectures"))
    if learned := result.get("continual"):
        arms = list(learned["average"])
        steps = [(step["seen"], *_per_cent(step["arms"], arms)) for step in learned["steps"]]
        steps.append(("average", *(f"{100 * learned['average'][arm]:.1f} %" for arm in arms)))
        out.print(table(("classes seen", *arms), steps, right=arms, title="Classes in steps"))
    if found := result.get("search"):
        rows = [
            (arm, found["correlation"].get(arm), chosen["net"], f"{100 * chosen['accuracy']:.1f} %")
            for arm, chosen in found["chosen"].items()
        ]
        names = ("arm", "rank correlation", "its choice", "which has on all data")
        out.print(table(names, rows, right=("rank correlation", names[3]), title="Choosing a network"))


def _show_samplers(result: Mapping[str, Any], out: Console) -> None:
    """Print what a sampler's arms were measured at: calls and time of a sample, then its distances and shares."""
    measures = list(dict.fromkeys(key for arm in result["arms"] for key in arm))
    shown = [key for key in measures if key not in ("name", "samples", "steps", "bytes")]
    heads = {"evaluations": "calls", "seconds": "ms", "sliced_wasserstein": "sliced W2", "accuracy": "as asked"}
    rows = [
        (arm["name"], *(1000 * arm[key] if key == "seconds" and key in arm else arm.get(key) for key in shown))
        for arm in result["arms"]
    ]
    columns = ("arm", *(heads.get(key, key.replace("_", " ")) for key in shown))
    out.print(table(columns, rows, right=columns[1:]))
    for name, why in result.get("refused", {}).items():
        out.print(f"{name}: {why}", markup=False)


def show_claim(result: Mapping[str, Any]) -> None:
    """Print a claim's result: the statement, the mean of each arm, the verdict with effect and interval."""
    out = console()
    if result.get("statement"):
        out.print(Text(str(result["statement"])))
    arms = [(key, result[key], result[f"{key}_std"]) for key in result if f"{key}_std" in result]
    if arms:
        out.print(table(("arm", "mean", "std"), arms, right=("mean", "std")))
    if result.get("verdict"):
        out.print(Text("Verdict: ").append_text(verdict(result)).append(f"  {effect(result)}"))
    else:
        out.print(f"No verdict ({'the quick form' if result.get('quick') else result.get('reason')}).")


def show_bench(result: Mapping[str, Any]) -> None:
    """Print the arms of a bench, the best first: means, and differences to its two references and to the best."""
    out = console()
    if result["quick"]:
        metric = next(name for name in ("accuracy", "frechet_1") if name in result["arms"][0])
        out.print(table(("arm", metric), [(row["arm"], row.get(metric)) for row in result["arms"]]))
        out.print("The quick form: every arm ran, nothing is ranked.")
        return
    columns, rows = ranking(result)
    out.print(table(columns, rows, right=columns[1:-1], title=f"{result['title']}, {result['seeds']} seeds"))
    out.print("95 % intervals of one comparison each: of twenty, about one misses.")


def ranking(result: Mapping[str, Any]) -> tuple[list[str], list[list[str | Text]]]:
    """Return columns and rows of a bench that was run whole, the best arm first."""
    metrics, references = result["metrics"], result["references"]
    names = {"gain": f"over {references['gain']}", "over_kd": f"over {references['over_kd']}", "behind": "to the best"}
    rows: list[list[str | Text]] = [
        [
            row["arm"],
            _with_interval(row, metrics[0], "interval"),
            *(_with_interval(row, name, f"{name}_interval") for name in metrics[1:]),
            *(effect({"effect": row.get(key), "interval": row.get(f"{key}_interval")}) for key in names),
            " ".join(f"{key}={as_text(value)}" for key, value in row["trial"].items()),
        ]
        for row in result["arms"]
    ]
    return ["arm", *metrics, *names.values(), "tuned"], rows


def _with_interval(row: Mapping[str, Any], metric: str, interval: str) -> str:
    """Return a mean with its interval; accuracies in per cent."""
    if row.get(metric) is None:
        return ""
    low, high = row[interval]
    if metric.startswith("accuracy"):
        return f"{100 * row[metric]:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{row[metric]:.3g} [{low:.3g}, {high:.3g}]"


def _arm(arm: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return an arm's row: accuracies in per cent, mean ± standard deviation over networks."""
    spread = f" ± {100 * arm['accuracy_std']:.1f}" if arm.get("accuracy_std") is not None else ""
    networks = len(arm.get("accuracies") or []) or None
    accuracy = f"{100 * arm['accuracy']:.1f}{spread} %"
    return arm["name"], accuracy, networks, arm.get("images"), arm.get("bytes"), arm.get("seconds")


def _per_cent(rows: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> list[str]:
    """Return the accuracies of arms in their order, in per cent."""
    found = {row["name"]: row["accuracy"] for row in rows}
    return [f"{100 * found[arm]:.1f} %" for arm in arms]


def show_comparison(result: Mapping[str, Any]) -> None:
    """Print runs as columns, which stay narrow however much differs between them."""
    out = console()
    runs = result["runs"]
    ids = [str(run.get("id", "")) for run in runs]
    heads = [id if id and ids.count(id) == 1 else str(number) for number, id in enumerate(ids, 1)]
    keys = list(dict.fromkeys(key for run in runs for key in run if key != "folder" and run[key] is not None))
    out.print(table(("", *heads), [(key, *(_cut(run.get(key)) for run in runs)) for key in keys], right=heads))
    for head, run in zip(heads, runs, strict=True):
        out.print(Text(f"{head}  ", style="bold").append(str(run["folder"]), style="dim"), soft_wrap=True)
    if page := result.get("page"):
        out.print(f"page: {page}", soft_wrap=True)


def _cut(value: Any, most: int = 28) -> Any:
    """Return a value as a table's cell; of a long one its beginning."""
    if isinstance(value, str | list | Mapping):
        words = value if isinstance(value, str) else as_text(value)
        return words if len(words) <= most else words[: most - 1] + "…"
    return value


def show_values(values: Mapping[str, Any], title: str = "") -> None:
    """Print a dictionary: one line a value, nested dictionaries as their own tables."""
    out = console()
    simple = [(key, value) for key, value in values.items() if not isinstance(value, Mapping) and not _is_rows(value)]
    if simple:
        out.print(table(("", ""), simple, title=title) if title else _pairs(simple))
    for key, value in values.items():
        name = f"{title}.{key}" if title else str(key)
        if isinstance(value, Mapping) and value:
            show_values(value, name)
        elif _is_rows(value):
            columns = list(dict.fromkeys(column for row in value for column in row))
            out.print(table(columns, [[row.get(column) for column in columns] for row in value], title=name))


def _pairs(pairs: Iterable[tuple[str, Any]]) -> Table:
    """Return names and values in two columns without a head."""
    made = Table(box=None, show_header=False, pad_edge=False)
    for key, value in pairs:
        made.add_row(Text(str(key), style="dim"), Text(str(value) if isinstance(value, Path) else as_text(value)))
    return made


def _is_rows(value: Any) -> bool:
    """Say whether a value is a non-empty list of dictionaries, which makes a table."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)
