"""What a person reads at the end of a claim: the verdict, the arms, and what everything cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attar.claims.meter import CURRENCIES


def account(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that tell a result: verdict, primary contrasts, arms, secondary contrasts, all currencies."""
    yield sentence(result)
    if len(result["primary"]) > 1:
        for part in result["primary"]:
            yield f"  {part['verdict']}: {part['statement']} · {_effect(part)}"
    for arm, record in result["measured"].items():
        trial = ", ".join(f"{name} {value}" for name, value in record["trial"].items())
        lost = sum(status != "finished" for status in record["status"])
        means = " · ".join(f"{name} {record[name]:.4g} ± {record[f'{name}_std']:.2g}" for name in record["values"])
        yield f"  arm {arm}" + (f" ({trial})" if trial else "") + f": {means}" + (f" · {lost} lost" if lost else "")
    for part in result["secondary"]:
        yield f"  secondary, no verdict: {part['statement']} · {_effect(part)}"
    if result["precondition"]:
        stated = result["precondition"]
        yield f"  precondition: {stated['says']} · measured {stated['measured']:.4g} of {stated['at_least']:g}"
    for copy, mean in result["copies"].items():
        yield f"  copy {copy} of the shared stages: effect {mean:+.4g}"
    yield from _costs(result)


def sentence(result: Mapping[str, Any]) -> str:
    """Return the verdict with its numbers in one line."""
    word = result["verdict"] + (f": {result['reason']}" if result["reason"] else "")
    chance = "" if result["p"] is None else f", one-sided p {result['p']:.2g}"
    return (
        f"{word} · {_effect(result)} at {result['confidence']:.4g} confidence, "
        f"smallest that counts {result['delta']:g}, {result['n']} seeds{chance}; about this scale and setting only"
    )


def _costs(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line a currency that any arm spent; the binding one is marked."""
    arms = result["currencies"]
    for name in CURRENCIES:
        spent = {arm: costs.get(name, 0.0) for arm, costs in arms.items()}
        if any(spent.values()):
            mark = " (binding)" if name == result["currency"] else ""
            yield f"  {name}{mark}: " + " · ".join(f"{arm} {amount:,.6g}" for arm, amount in spent.items())


def _effect(part: Mapping[str, Any]) -> str:
    bounds = part["interval"]
    return f"effect {part['effect']:+.4g}" + (f" [{bounds[0]:+.4g}, {bounds[1]:+.4g}]" if bounds else "")
