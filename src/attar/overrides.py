"""Settings as they are typed on a command line: `key=value`, nested with dots."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from attar.errors import RecipeError

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """Parse `key=value` words into a dictionary with dotted keys.

    A value that reads as JSON (a number, `true`, `false`, `null`, a list, an object, a quoted string) is that;
    everything else is a string as it stands: `data=folder:pictures` needs no quotes, and `name="7"` is a string too.

    >>> parse_overrides(["ipc=10", "net.width=64", "data=fashion-mnist?size=14"])
    {'ipc': 10, 'net.width': 64, 'data': 'fashion-mnist?size=14'}

    Raises:
        RecipeError: a word is not `key=value`, a key is no dotted name, a key stands twice, or a value is missing or is
            a list or an object that does not parse.
    """
    parsed: dict[str, Any] = {}
    for word in settings:
        key, equals, text = word.partition("=")
        key = key.strip()
        if not equals:
            raise RecipeError(
                f"'{word}' is not a setting; settings are written key=value, such as ipc=10 or net.width=64"
            )
        if not _KEY.fullmatch(key):
            raise RecipeError(f"'{key}' in '{word}' is not a field's name; fields are named like ipc or net.width")
        if key in parsed:
            raise RecipeError(f"'{key}' is given twice: {parsed[key]!r} and {text!r}; give it once")
        if not text.strip():
            raise RecipeError(f"'{key}=' has no value; write {key}=VALUE, or {key}=null for none")
        parsed[key] = parse_value(text, key)
    return parsed


def parse_value(text: str, key: str = "value") -> Any:
    """Parse one value: JSON where it is JSON, else the string itself.

    Raises:
        RecipeError: the text opens a list, an object or a string that does not parse; `key` names it in the message.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        if text.lstrip()[:1] in ("[", "{", '"'):
            shown = text if len(text) <= 60 else f"{text[:57]}..."
            raise RecipeError(
                f"{key}={shown} opens a list, an object or a string that does not parse as JSON ({error}); "
                f"""quote it for the shell, such as '{key}=[1, 2]' or '{key}={{"kind": "sgd"}}'"""
            ) from None
        return text


def _refuse_constant(name: str) -> Any:
    """Leave NaN and Infinity, which Python reads and JSON does not have, to the field they are meant for."""
    raise ValueError(f"{name} is not JSON")
