"""`report.html`: one self-contained page, made from nothing but the files of a run folder (and real images, if given).

Everything in those files is untrusted text: the template escapes it, and the page's own content policy forbids scripts,
requests and any style but its own.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

import attar
from attar import ledger
from attar.errors import AttarError
from attar.files import write_text
from attar.report import recipe as recipes
from attar.report.card import snippet
from attar.report.charts import bar_chart, line_chart, summary
from attar.report.draws import draws, draws_headline
from attar.report.folder import Curve, RunFolder, read_folder
from attar.report.numbers import bytes_text, seconds_text
from attar.report.pictures import CLASSES_SHOWN, MADE_SHOWN, Gallery, gallery
from attar.report.results import NOUNS, Arm, bars, headline, net_name, read_arms
from attar.report.uses import uses

if TYPE_CHECKING:
    from attar.data.images import Images
    from attar.data.sources import Splits

CURVES_SHOWN = 24  # of a loop
NETWORKS_SHOWN = 20
INTERVAL = "Bars are means; whiskers are 95 % t intervals over networks."


def write_report(folder: str | Path, data: Images | Splits | str | None = None) -> Path:
    """Write `report.html` into a run folder and return its path.

    A run that is not finished, not evaluated or of a kind without pictures gets the page that its files allow.

    Args:
        folder: a run folder; only its `recipe.json` has to be there.
        data: the real images to show beside those of the artifact, or where to load them; a selection needs them to
            show what it chose.

    Raises:
        DataError: `folder` is not a run folder, or `data` cannot be loaded.
    """
    run = read_folder(Path(folder))
    if isinstance(data, str):
        from attar.data import resolve

        data = resolve(data)
    page = environment().get_template("page.html").render(_content(run, data))
    target = run.path / "report.html"
    write_text(target, page)
    return target


@functools.cache
def environment() -> jinja2.Environment:
    """Return what renders the pages: everything is escaped, and the pages' own policy forbids scripts and requests."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("attar", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"plain": lambda share: f"{100 * share:.1f}", "bytes": bytes_text, "seconds": seconds_text}
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    code = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    made.globals |= {
        "style": Markup(style),  # our own file, the only markup that is not made by the template
        "policy": f"default-src 'none'; style-src 'sha256-{code}'; img-src data:; base-uri 'none'; form-action 'none'",
        "version": attar.__version__,
        "interval_note": INTERVAL,
    }
    return made


def _content(run: RunFolder, data: Images | Splits | None) -> dict[str, Any]:
    """Return every value that the template shows."""
    kind = str(run.artifact.get("kind", ""))
    sampled = draws(run.evaluation, kind, run.path)
    arms = [] if sampled["draws"] else read_arms(run.evaluation.get("arms"), run.evaluation.get("networks"))
    pictures, problem = pictures_of(run, data)
    networks = max((len(arm.accuracies) for arm in arms), default=0)
    return {
        "title": _title(run),
        "kicker": f"Attar run {run.path.resolve().name}",
        "paper": _paper(run.recipe),
        "result": headline(arms, kind) if arms else draws_headline(run.evaluation) or _without_result(run, kind),
        "notices": [*_notices(run), *problem],
        "arms": arms,
        "graded": bool(arms) and all(arm.nll is not None for arm in arms),
        "measured": _measured(run.evaluation),
        "accuracy_chart": bar_chart(bars(arms), "Test accuracy") if arms else "",
        "steps_known": any(arm.steps is not None for arm in arms),
        "networks": min(networks, NETWORKS_SHOWN) if networks > 1 else 0,
        **sampled,
        "gallery": pictures,
        "gallery_note": _gallery_note(pictures, kind) if pictures else "",
        "made_word": "Chosen" if kind == "selection" else "Distilled",
        **_cross(run.evaluation),
        **uses(run.evaluation),
        "loops": _loops(run.curves),
        "snippet": snippet(kind, str(run.path / "artifact")) if kind else "",
        "command": recipes.command_line(run.recipe, run.plan),
        "fields": recipes.recipe_rows(run.recipe),
        "recipe_note": _recipe_note(run.recipe),
        "defaults_known": recipes.preset_fields(run.recipe, None) is not None,
        "provenance": list(_provenance(run)),
    }


def _title(run: RunFolder) -> str:
    """Return what was run on what: `dm on fashion-mnist-mini`."""
    data = recipes.flatten(run.recipe.get("inputs", {})).get("data")
    name = str(run.recipe.get("id", "run"))
    return f"{name} on {data}" if isinstance(data, str) else name


def _paper(recipe: Mapping[str, Any]) -> str:
    try:
        row = ledger.find(str(recipe.get("id")))
    except AttarError:
        return ""
    return f"{row.title} ({row.paper})" if row.paper else row.title


def _without_result(run: RunFolder, kind: str) -> str:
    """Say what there is when there is no evaluation."""
    if kind == "sampler":
        return f"Made: a sampler. It is not evaluated yet; ‘attar evaluate {run.path}’ measures it."
    if kind:
        thing = NOUNS.get(kind, f"an artifact of kind “{kind}”")
        return f"Made: {thing}. They are not evaluated yet; ‘attar evaluate {run.path}’ measures them."
    if run.curves:
        curve = run.curves[-1]
        return f"No artifact yet; the last logged step is {curve.steps[-1]:,.0f} of the loop “{curve.loop}”."
    return "Nothing is logged yet."


def _notices(run: RunFolder) -> Iterator[str]:
    """Say what a reader must know before trusting the page."""
    state = run.run.get("state")
    if state == "partial":
        yield "This run was cut by its time budget: it is partial, and never counts as evidence."
    elif state != "finished":
        yield "This run is not finished; the same command goes on with it."
    for problem in run.problems:
        yield f"{problem[:1].upper()}{problem[1:]}."


def pictures_of(run: RunFolder, data: Images | Splits | None) -> tuple[Gallery | None, list[str]]:
    """Return the gallery, or in words why an artifact that should have one could not be shown."""
    if not run.artifact:
        return None, []
    try:
        return gallery(run.artifact, run.path / "artifact", data), []
    except (AttarError, ValueError, KeyError, TypeError, IndexError, RuntimeError, OSError) as error:
        return None, [f"The images of the artifact could not be shown: {error}."]


def _gallery_note(pictures: Gallery, kind: str) -> str:
    made = "chosen" if kind == "selection" else "distilled"
    parts = [
        f"{pictures.images:,} {made} images of {pictures.classes:,} classes, {pictures.size} × {pictures.size} pixels."
    ]
    if any(row.made_total > MADE_SHOWN for row in pictures.rows):
        parts.append(f"The first {MADE_SHOWN} of each class are shown.")
    if pictures.classes > CLASSES_SHOWN:
        parts.append(f"The first {CLASSES_SHOWN} classes are shown.")
    if kind != "selection":
        parts.append("Values outside the range of a picture are clipped.")
    return " ".join(parts)


def _measured(evaluation: Mapping[str, Any]) -> str:
    """Say on what the arms were measured, and by how many networks; the whole protocol is under provenance."""
    data = f" on {evaluation['data']}" if evaluation.get("data") else ""
    networks = (
        f" with {evaluation['networks']} fresh networks for each training set" if evaluation.get("networks") else ""
    )
    note = f" {evaluation['note']}" if evaluation.get("note") else ""
    return f"Measured{data}{networks}.{note}"


def _cross(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the charts and the table of other networks."""
    parts = []
    entries = evaluation.get("cross")
    for entry in entries if isinstance(entries, list) else []:
        arms = read_arms(entry.get("arms"), evaluation.get("networks")) if isinstance(entry, Mapping) else []
        if arms:
            parts.append((net_name(entry.get("net")), arms))
    names = list(dict.fromkeys(arm.name for _, arms in parts for arm in arms))
    return {"cross_names": names, "cross": [_cross_part(net, arms, names) for net, arms in parts]}


def _cross_part(net: str, arms: list[Arm], names: list[str]) -> dict[str, Any]:
    by_name = {arm.name: arm for arm in arms}
    chart = bar_chart(bars(arms), f"Test accuracy of {net} by training set", width=360)
    return {"net": net, "chart": chart, "cells": [by_name.get(name) for name in names]}


def _loops(curves: list[Curve]) -> list[dict[str, Any]]:
    """Return the charts of every loop."""
    loops: dict[str, list[Curve]] = {}
    for curve in curves:
        loops.setdefault(curve.loop, []).append(curve)
    return [
        {
            "name": f"Loop “{loop}”" if loop else "Outside loops",
            "left_out": max(0, len(members) - CURVES_SHOWN),
            "curves": [
                {
                    "name": curve.name,
                    "chart": line_chart(curve.steps, curve.values, f"{curve.name} over steps"),
                    "words": summary(curve.steps, curve.values).capitalize(),
                }
                for curve in members[:CURVES_SHOWN]
            ],
        }
        for loop, members in loops.items()
    ]


def _recipe_note(recipe: Mapping[str, Any]) -> str:
    preset = f"Preset “{recipe['preset']}”. " if recipe.get("preset") else ""
    if recipes.preset_fields(recipe, None) is None:
        return f"{preset}This version of Attar does not have the method, so its defaults are not known."
    return f"{preset}Marked fields differ from the paper setting, which is the default."


def _provenance(run: RunFolder) -> Iterator[tuple[str, str]]:
    """Yield name and value of everything that says where the artifact comes from."""
    yield "Run folder", run.path.resolve().name
    yield "State", str(run.run.get("state", "unknown"))
    yield "Fingerprint", str(run.run.get("fingerprint") or run.artifact.get("fingerprint") or "none yet")
    for name, value in recipes.flatten(run.artifact.get("parents", {})).items():
        yield f"Parent {name}", recipes.shown(value)
    for key, name in (("hash", "Recipe hash"), ("version", "Method version"), ("seed", "Seed")):
        if key in run.recipe:
            yield name, recipes.shown(run.recipe[key])
    for key, value in run.run.items():
        if key == "seconds" and isinstance(value, int | float):
            yield "Run time", seconds_text(value)
        elif key not in ("state", "fingerprint"):
            yield from _entries(key, value)
    for key, value in run.plan.items():
        yield from _entries(key, value)
    yield from _entries("evaluation protocol", run.evaluation.get("protocol"))
    yield from _entries("evaluation seed", run.evaluation.get("seed"))


def _entries(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield one entry of provenance; a mapping or a list becomes one line."""
    name = key.replace("_", " ").capitalize()
    if isinstance(value, Mapping):
        yield name, recipes.told(value)
    elif value not in (None, "", []):
        yield name, recipes.shown(value)
