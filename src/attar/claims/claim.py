"""What a claim file states before its first verdict run.

A claim reads in one screen: the statement, the numbers that bind it, and one function that runs an arm.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from attar.claims.meter import Meter, check_currency
from attar.claims.verdict import Form, Scale
from attar.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from attar.data.sources import Splits
    from attar.run import Run

Phase = Literal["tuning", "verdict", "quick"]
Trial = Mapping[str, Any]  # one point of an arm's grid: field to value
Grid = Mapping[str, Sequence[Any]]  # field to the values to try

LEAST_SEEDS = 5
TUNING_SEEDS = (100, 101, 102, 103)
PILOT_SEEDS = range(100, 200)  # piloting, debugging, tuning and the quick form; never a verdict seed
LEAST_DELTA = {"accuracy": 0.005, "log-ratio": 0.1}


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One comparison: `method` against `baseline` in `metric` at a budget point."""

    method: str  # an arm
    baseline: str | None = None  # an arm; an `exact` contrast may have a `target` instead
    metric: str = "accuracy"  # a key of what `arm` returns
    at: str  # the budget point in words: "1 image a class, 300 updates"
    form: Form = "superior"
    scale: Scale = "difference"  # "log-ratio" for distances, losses and times
    higher_is_better: bool = True
    worst: float | None = None  # the metric's worst admissible value; stands in for an arm that diverged or timed out
    delta: float | None = None  # the claim's, unless the contrast has its own
    expects: float | None = None  # the claim's, unless the contrast has its own
    target: float | None = None  # of an `exact` contrast without a baseline
    resolution: float = 0.0  # the metric's own standard error on its test set, on the contrast's scale
    plain: bool = False  # the same contrast on plain data, which a claim on constructed data must carry

    def statement(self) -> str:
        """Return the contrast in words."""
        against = f"'{self.baseline}'" if self.baseline else f"{self.target:g}"
        verb = {"superior": "better than", "not-worse": "not worse than", "exact": "equal to"}[self.form]
        return f"'{self.method}' is {verb} {against} in {self.metric}, {self.at}"


@dataclass(frozen=True, kw_only=True)
class Precondition:
    """What must be true on the verdict seeds for the claim to be about its subject, or it is `inconclusive`."""

    says: str  # "the baseline beats random images by 3 points"
    contrast: Contrast
    at_least: float  # of the mean paired difference


class Claim:
    """The base of all claims; a claim file fills in what is written here in capitals and defines `arm`.

    The harness makes one instance a job. An arm asks it for `splits(run)` and `quick`, and tells `meter` what it
    spends. Stages without a `seed` of their own are shared: they get the seed's copy (`copies`).
    """

    id: ClassVar[str]  # of the system in the ledger
    title: ClassVar[str]
    says: ClassVar[str]  # what the paper says, with its table or figure
    origin: ClassVar[str]  # where the expected effect comes from: the paper's number, a pilot on seeds 100-199
    primary: ClassVar[Contrast | tuple[Contrast, ...]]  # several: the statement holds only if each holds
    expects: ClassVar[float]  # effect expected here; for `not-worse` the expected difference, mostly 0
    delta: ClassVar[float]  # smallest effect that counts; margin of `not-worse`; tolerance of `exact`
    seeds: ClassVar[int] = LEAST_SEEDS  # verdict seeds 0 … seeds - 1
    grids: ClassVar[Mapping[str, Grid]]  # arm to grid; every arm gets the same number of trials
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {}  # field to the range that widening must not leave
    currency: ClassVar[str]  # binding budget, a key of `meter.CURRENCIES`
    fixed: ClassVar[Sequence[str]]  # what no seed redraws: the test set, a feature network, a teacher
    source: ClassVar[str] = "fashion-mnist?size=14"  # the data that the claim is about
    quick_source: ClassVar[str] = "fashion-mnist-mini?size=14"
    methods: ClassVar[Sequence[str]]  # ids of the methods used; a new version of one makes the result stale
    uses: ClassVar[Sequence[str]] = ()  # further modules whose source belongs to the claim
    secondary: ClassVar[Sequence[Contrast]] = ()  # printed, without a verdict
    precondition: ClassVar[Precondition | None] = None
    tuning_seeds: ClassVar[Sequence[int]] = TUNING_SEEDS
    trial_seeds: ClassVar[int] = len(TUNING_SEEDS)  # the first so many tuning seeds run the whole grid
    may_extend: ClassVar[bool] = False  # once, to 3n seeds; then both looks use 97.5 % intervals
    copies: ClassVar[int] = (
        1  # of a stage too dear for every seed (3), dealt to the seeds in turn; their spread is printed
    )
    constructed: ClassVar[bool] = False  # the data is built to show the effect
    underpowered: ClassVar[str] = ""  # why the claim may start with less than 90 % power
    seconds_per_job: ClassVar[float | None] = None  # an arm that needs longer on one thread counts as timed out

    def __init__(self, phase: Phase, source: str | None = None) -> None:
        self.phase: Phase = phase
        self.data_source = source or (self.quick_source if phase == "quick" else self.source)
        self.meter = Meter()

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        """Run one arm with the values of `trial` and return its metrics; randomness comes from `run` alone.

        Raises:
            NonFinite: the arm diverged; it counts with the metric's worst admissible value.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how to run an arm")

    @property
    def quick(self) -> bool:
        """Whether this is the quick form: every arm in seconds, no verdict."""
        return self.phase == "quick"

    def splits(self, run: Run) -> Splits:
        """Return the data: in tuning, `test` is a validation part of the training set; the real one is read later."""
        whole = self.load(self.data_source)
        return whole if self.phase == "verdict" else whole.tuning(run.seed)

    def load(self, source: str) -> Splits:
        """Load a source; kept, because a process runs many jobs."""
        return _load(source)

    @classmethod
    def contrasts(cls) -> tuple[Contrast, ...]:
        """Return the primary contrasts, with the claim's `delta` and `expects` filled in."""
        primary = cls.primary if isinstance(cls.primary, tuple) else (cls.primary,)
        return tuple(_filled(contrast, cls) for contrast in primary)

    @classmethod
    def statement(cls) -> str:
        """Return what is claimed here in one sentence; data built to show the effect is named first."""
        said = "; and ".join(contrast.statement() for contrast in cls.contrasts())
        where = "On data constructed to show the effect: " if cls.constructed else ""
        return f"{where}{said} ({cls.source})"

    @classmethod
    def arms(cls) -> list[str]:
        """Return the arms in the order of the file."""
        return list(cls.grids)


@functools.lru_cache(maxsize=2)
def _load(source: str) -> Splits:
    from attar.data import sources

    return sources.load(source)


def _filled(contrast: Contrast, cls: type[Claim]) -> Contrast:
    from dataclasses import replace

    return replace(
        contrast,
        delta=cls.delta if contrast.delta is None else contrast.delta,
        expects=cls.expects if contrast.expects is None else contrast.expects,
    )


def trials(grid: Grid) -> list[dict[str, Any]]:
    """Return every point of a grid; an empty grid has one, with nothing in it."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def check(cls: type[Claim]) -> None:
    """Hold a claim file to the rules that can be checked before anything runs.

    Raises:
        RecipeError: the first rule that the file breaks.
    """
    for name in (
        "id",
        "title",
        "says",
        "origin",
        "primary",
        "expects",
        "delta",
        "grids",
        "currency",
        "fixed",
        "methods",
    ):
        if not hasattr(cls, name):
            raise RecipeError(f"claim {cls.__name__} does not state '{name}'; see attar.claims.claim.Claim")
    check_currency(cls.currency)
    exact = all(contrast.form == "exact" for contrast in cls.contrasts())
    if cls.seeds < LEAST_SEEDS and not exact:
        raise RecipeError(f"claim '{cls.id}' has {cls.seeds} seeds; a seeded claim needs at least {LEAST_SEEDS}")
    if not set(cls.tuning_seeds) <= set(PILOT_SEEDS) or (len(set(cls.tuning_seeds)) < 4 and not exact):
        raise RecipeError(
            f"claim '{cls.id}': tuning takes at least four seeds of 100-199, got {list(cls.tuning_seeds)}"
        )
    if not 1 <= cls.trial_seeds <= len(cls.tuning_seeds):
        raise RecipeError(f"claim '{cls.id}': trial_seeds is 1 to {len(cls.tuning_seeds)}, got {cls.trial_seeds}")
    counts = {arm: len(trials(grid)) for arm, grid in cls.grids.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise RecipeError(f"claim '{cls.id}': every arm gets the same number of tuning trials, got {counts}")
    further = [cls.precondition.contrast] if cls.precondition else []
    for contrast in (*cls.contrasts(), *cls.secondary, *further):
        _check_arms(cls, contrast)
    for contrast in cls.contrasts():
        _check_delta(cls, contrast)
    if cls.constructed and not any(contrast.plain for contrast in cls.secondary):
        raise RecipeError(f"claim '{cls.id}' is on constructed data; add the same contrast on plain data (plain=True)")


def _check_arms(cls: type[Claim], contrast: Contrast) -> None:
    for arm in (contrast.method, contrast.baseline):
        if arm is not None and arm not in cls.grids:
            raise RecipeError(f"claim '{cls.id}': no grid for the arm '{arm}'{did_you_mean(arm, cls.grids)}")
    if contrast.form not in get_args(Form) or contrast.scale not in get_args(Scale):
        raise RecipeError(f"claim '{cls.id}': form {contrast.form!r} or scale {contrast.scale!r} is unknown")
    if (contrast.baseline is None) == (contrast.target is None):
        raise RecipeError(f"claim '{cls.id}': a contrast has either a baseline or a target")
    if contrast.baseline is None and contrast.form != "exact":
        raise RecipeError(f"claim '{cls.id}': only an exact contrast has a target instead of a baseline")


def _check_delta(cls: type[Claim], contrast: Contrast) -> None:
    delta, expects = contrast.delta, contrast.expects
    if delta is None or expects is None or not math.isfinite(delta) or not math.isfinite(expects):
        raise RecipeError(f"claim '{cls.id}': 'delta' and 'expects' are finite numbers, got {delta} and {expects}")
    if contrast.form != "superior":
        if not delta > 0 and contrast.form == "not-worse":
            raise RecipeError(f"claim '{cls.id}': the margin of a 'not-worse' contrast is above 0, got {delta}")
        return
    if expects <= 0:
        raise RecipeError(f"claim '{cls.id}': a 'superior' contrast expects an effect above 0, got {expects}")
    kind = "log-ratio" if contrast.scale == "log-ratio" else "accuracy" if "accuracy" in contrast.metric else ""
    least = max(expects / 2, LEAST_DELTA.get(kind, 0.0), contrast.resolution)
    if delta < least - 1e-12:
        raise RecipeError(
            f"claim '{cls.id}': delta {delta:g} is below {least:g}, the largest of half the expected effect, "
            f"{LEAST_DELTA.get(kind, 0.0):g} for this metric, and its own standard error {contrast.resolution:g}"
        )
