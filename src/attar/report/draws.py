"""What a sampler draws as a reader meets it: the same noise and conditions in few steps, many, and by its teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from attar.errors import AttarError
from attar.report.charts import scatter
from attar.report.numbers import percent, short
from attar.report.pictures import data_uri

if TYPE_CHECKING:
    from torch import Tensor

KIND = "sampler"
ROWS, EACH, POINTS = 20, 8, 600  # conditions, pictures of each, and points that are shown
SAMPLES = "samples.safetensors"


def time_text(seconds: float) -> str:
    """Return the time of one sample in milliseconds, or in seconds from one on.

    >>> time_text(0.00095), time_text(12.0)
    ('0.95 ms', '12 s')
    """
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def figures(value: float) -> str:
    """Return a number in three figures.

    >>> figures(0.066123), figures(1234.5)
    ('0.0661', '1,234')
    """
    return short(float(f"{value:.3g}")) if abs(value) < 1000 else f"{value:,.0f}"


# measure: its head, and how it is written; the first are on every page
MEASURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "evaluations": ("Calls", figures),
    "seconds": ("Time", time_text),
    "frechet": ("Fréchet", figures),
    "kernel": ("Kernel", figures),
    "sliced_wasserstein": ("Sliced W₂", figures),
    "energy": ("Energy", figures),
    "endpoint_error": ("Endpoint error", figures),
    "accuracy": ("As asked", percent),
    "coverage": ("Coverage", percent),
    "precision": ("Precision", percent),
    "recall": ("Recall", percent),
    "density": ("Density", figures),
    "high_frequencies": ("High freq.", figures),
}
DISTANCES = {"frechet": "Fréchet distance", "sliced_wasserstein": "sliced Wasserstein distance"}


def draws(evaluation: Mapping[str, Any], kind: str, folder: Path) -> dict[str, Any]:
    """Return what the page shows of a sampler as `draws`: its table, and its samples; none of anything else."""
    if kind != KIND:
        return {"draws": None}
    rows = read_rows(evaluation)
    columns = [key for key in MEASURES if any(key in values for _, values in rows)]
    problem, pictures, plots = "", None, None
    try:
        pictures, plots = _shown(evaluation, folder)
    except (AttarError, ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        problem = f"The samples could not be shown: {error}."
    preview = folder / "artifact" / "preview.png"
    return {
        "draws": {
            "heads": [MEASURES[key][0] for key in columns],
            "rows": [(name, [_cell(values, key) for key in columns]) for name, values in rows],
            "measured": _measured(evaluation),
            "pictures": pictures,
            "plots": plots,
            "problem": problem,
            "preview": _file_uri(preview) if pictures is None and plots is None and preview.is_file() else "",
        }
    }


def read_rows(evaluation: Mapping[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Return name and finite measures of every arm of a sampler's evaluation; what cannot be read is left out."""
    arms = evaluation.get("arms")
    rows = []
    for arm in arms if isinstance(arms, list) else []:
        if isinstance(arm, Mapping):
            values = {key: number for key in MEASURES if (number := _number(arm.get(key))) is not None}
            if values:
                rows.append((str(arm.get("name", "unnamed")), values))
    return rows


def draws_headline(evaluation: Mapping[str, Any]) -> str:
    """Say in one sentence what the fewest calls came to, and the teacher or the most calls; empty where nothing is.

    >>> arms = [dict(name="1 step", evaluations=1, seconds=0.001, frechet=4.0),
    ...         dict(name="teacher, 32 steps", evaluations=32, seconds=0.04, frechet=1.5)]
    >>> draws_headline({"arms": arms}).partition(";")[2]
    ' its teacher comes to 1.5 with 32, in 40 times the time.'
    """
    rows = [(name, values) for name, values in read_rows(evaluation) if "evaluations" in values]
    measure = next((key for key in DISTANCES if rows and all(key in values for _, values in rows)), None)
    own = sorted((row for row in rows if not row[0].startswith("teacher")), key=lambda row: row[1]["evaluations"])
    taught = [row for row in rows if row[0].startswith("teacher")]
    if measure is None or not own:
        return ""
    few = own[0][1]
    calls = f"{short(few['evaluations'])} network call{'s' * (few['evaluations'] != 1)}"
    says = f"With {calls} a sample its {DISTANCES[measure]} to the data is {figures(few[measure])}"
    other = taught[0][1] if taught else own[-1][1]
    if other is few:
        return f"{says}."
    who = "its teacher comes to" if taught else "it comes to"
    longer = ""
    if few.get("seconds", 0) > 0 and "seconds" in other:
        longer = f", in {other['seconds'] / few['seconds']:.2g} times the time"
    return f"{says}; {who} {figures(other[measure])} with {short(other['evaluations'])}{longer}."


def draws_lines(evaluation: Mapping[str, Any], escape: Callable[[str], str]) -> Iterator[str]:
    """Yield the table of a sampler's arms as lines of Markdown, names through `escape`; nothing where there is none."""
    rows = read_rows(evaluation)
    columns = [key for key in MEASURES if any(key in values for _, values in rows)]
    if not rows:
        return
    yield from ("## Numbers", "", escape(_measured(evaluation)), "")
    yield f"| drawn in | {' | '.join(MEASURES[key][0] for key in columns)} |"
    yield f"|---|{'---:|' * len(columns)}"
    for name, values in rows:
        yield f"| {escape(name)} | {' | '.join(_cell(values, key) for key in columns)} |"
    yield ""


def _cell(values: Mapping[str, float], key: str) -> str:
    return MEASURES[key][1](values[key]) if key in values else "–"


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        return None
    return float(value) if math.isfinite(value) else None


def _measured(evaluation: Mapping[str, Any]) -> str:
    """Say how the arms were measured."""
    told = evaluation.get("protocol")
    told = told if isinstance(told, Mapping) else {}
    count = _number(told.get("samples"))
    parts = [
        "The same noise for all arms" if count is None else f"The same noise of {short(count)} samples for all arms"
    ]
    if told.get("features"):
        parts.append(f"distances to {told.get('reference', 'the data')} in the features of {told['features']}")
    if told.get("endpoints"):
        parts.append(f"endpoints against {told['endpoints']}")
    if _number(told.get("teacher_guidance")) is not None:
        parts.append(f"the teacher is guided with g = {told['teacher_guidance']}")
    bends = evaluation.get("straightness")
    for name, value in bends.items() if isinstance(bends, Mapping) else ():
        if (number := _number(value)) is not None:
            parts.append(f"the ways of the {name} bend by {figures(number)} (0 is straight)")
    return "; ".join(parts) + ". “data” are other real samples: what a perfect sampler would come to."


def _shown(evaluation: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any] | None, list[Any] | None]:
    """Return the pictures by condition and arm, or the plots of points by arm; none where there are none."""
    told = evaluation.get("shown")
    if not isinstance(told, Mapping) or not (folder / SAMPLES).is_file():
        return None, None
    from attar import files

    names, conditions = ([str(one) for one in told.get(key, [])] for key in ("arms", "conditions"))
    tensors = files.load_tensors(folder / SAMPLES)
    drawn = {name: tensors[f"arm.{place}"] for place, name in enumerate(names)}
    if not drawn:
        return None, None
    if "data" in tensors:
        return None, _plots({**drawn, "data": tensors["data"]})
    rows = []
    for place, condition in enumerate(conditions[:ROWS]):
        cells = [(name, [data_uri(picture) for picture in some[place][:EACH]]) for name, some in drawn.items()]
        rows.append({"name": condition, "cells": cells})
    size = int(next(iter(drawn.values())).shape[-1])
    return {"arms": names, "rows": rows, "size": size}, None


def _plots(drawn: Mapping[str, Tensor]) -> list[tuple[str, Markup]] | None:
    """Return a scatter plot of each arm's points in the plane, all with the axes of the real ones."""
    real = drawn["data"]
    if real.dim() != 2 or real.shape[1] != 2 or not real.isfinite().all():
        return None
    reach = float(real.abs().max()) * 1.15
    return [(name, scatter(_pairs(points), reach, f"Samples: {name}")) for name, points in drawn.items()]


def _pairs(points: Tensor) -> Sequence[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points[:POINTS].tolist()]


def _file_uri(file: Path) -> str:
    import base64

    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
