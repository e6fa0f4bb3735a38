"""The work meter: what each arm of a claim spent, in every currency, and whether two arms spent alike."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from attar.errors import RecipeError, did_you_mean

CURRENCIES: Mapping[str, str] = {
    "stored_bytes": "bytes of what is stored, with labels, projectors and scales",
    "updates": "optimizer updates, of all learners",
    "examples": "examples seen in updates, repeats counted",
    "forward": "images through a forward pass of any network: teacher, fake score, discriminator, views, roll-outs",
    "backward": "images through a backward pass of any network",
    "passes": "forward and backward passes together",
    "teaching": "passes that trained the teachers that are asked, beside all others: a teacher is given",
    "tokens": "tokens seen, both members of a pair counted",
    "teacher_calls": "samples answered by the teacher, guidance counted twice",
    "evaluations": "network evaluations when the result is used, guidance counted twice",
    "trials": "tuning trials: grid points × tuning seeds",
    "seconds": "seconds of one thread, for information: they depend on the machine and on cached stages",
}
TOLERANCE = 0.05  # by how much the method may exceed the baseline in the binding currency
COMPUTE_RATIO = 1.25  # at equal updates, beyond this ratio of passes the baseline must be run at equal compute as well

_COUNTED = tuple(name for name in CURRENCIES if name not in {"passes", "trials", "seconds"})


class Meter:
    """Counts what one arm spends on one seed; the arm calls `add` where it spends, stages that it uses included.

    The run keeps the meter, so that inside loops too an arm that was killed and goes on counts every step once.

    >>> meter = Meter()
    >>> meter.add(updates=1, examples=256, forward=512, backward=256)
    >>> meter.add(updates=1, examples=256, forward=512, backward=256)
    >>> meter.costs()["passes"]
    1536.0
    """

    def __init__(self) -> None:
        self._spent = dict.fromkeys(_COUNTED, 0.0)

    def add(self, **amounts: float) -> None:
        """Add to currencies by name.

        Raises:
            RecipeError: an unknown currency, or an amount below zero.
        """
        for name, amount in amounts.items():
            if name not in self._spent:
                raise RecipeError(
                    f"unknown currency '{name}'{did_you_mean(name, _COUNTED)} Counted: {', '.join(_COUNTED)}"
                )
            if not amount >= 0:
                raise RecipeError(f"an amount of '{name}' is at least 0, got {amount}")
            self._spent[name] += amount

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """Count the passes of what is inside as `teaching` and nothing else of it: it is printed and does not bind.

        >>> meter = Meter()
        >>> with meter.teaching():
        ...     meter.add(forward=512, backward=256)
        >>> meter.costs()["teaching"], meter.costs()["passes"]
        (768.0, 0.0)
        """
        before = self.costs()
        yield
        passes = self.costs()["passes"] - before.pop("passes")
        self._spent |= {**before, "teaching": before["teaching"] + passes}

    def state_dict(self) -> dict[str, float]:
        """Return what was spent, for a checkpoint."""
        return dict(self._spent)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go back to what was spent at a checkpoint."""
        self._spent |= state

    def costs(self) -> dict[str, float]:
        """Return everything spent so far, with `passes` = forward + backward."""
        return {**self._spent, "passes": self._spent["forward"] + self._spent["backward"]}


def check_currency(name: str) -> None:
    """Raise RecipeError unless `name` is a currency that can bind a claim."""
    if name not in CURRENCIES:
        raise RecipeError(f"unknown currency '{name}'{did_you_mean(name, CURRENCIES)} Known: {', '.join(CURRENCIES)}")


def mean_costs(costs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean over seeds of each currency."""
    return {name: statistics.fmean(c.get(name, 0.0) for c in costs) for name in CURRENCIES if costs}


def unequal(
    arms: Mapping[str, Mapping[str, float]],
    pairs: Sequence[tuple[str, str]],
    currency: str,
    tolerance: float = TOLERANCE,
) -> str:
    """Return why the budgets do not allow a verdict, or "".

    For every (method, baseline) the method may exceed the baseline by at most `tolerance` in the binding currency.
    Where that currency is updates or examples and the method's passes exceed 1.25 × the baseline's, one of the method's
    other baselines must come within 1.25 ×: the baseline at equal compute.

    Args:
        arms: mean costs of each arm.
        pairs: (method, baseline) of each primary contrast.
        currency: the binding one; it must have been counted.
        tolerance: relative excess that is allowed.
    """
    for method, baseline in pairs:
        ours, theirs = arms[method][currency], arms[baseline][currency]
        if ours == 0 and theirs == 0:
            return f"the binding currency '{currency}' was never counted for '{method}' and '{baseline}'"
        if ours > theirs * (1 + tolerance):
            spent = _times(ours, theirs)
            return f"'{method}' spent {spent} the {currency} of '{baseline}'; {1 + tolerance:g} × is allowed"
    if currency not in {"updates", "examples"}:
        return ""
    for method in {method for method, _ in pairs}:
        passes = arms[method]["passes"]
        rivals = [baseline for other, baseline in pairs if other == method]
        if all(passes > COMPUTE_RATIO * arms[baseline]["passes"] for baseline in rivals):
            most = max(arms[baseline]["passes"] for baseline in rivals)
            return (
                f"at equal {currency} '{method}' took {_times(passes, most)} the passes of its baseline, "
                f"which must then be run at equal compute as well"
            )
    return ""


def _times(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f} ×" if theirs else f"{ours:g} (against none) of"
