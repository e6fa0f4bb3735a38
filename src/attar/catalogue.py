"""What can be said of one system: its row, its class's inputs, fields and presets, its claim and an example.

`attar show` and the documentation site print the same entry.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from attar import ledger
from attar.spec import field_notes, inputs, methods_in, required_inputs, to_json

_BOUNDS = {"ge": "≥ ", "gt": "> ", "le": "≤ ", "lt": "< ", "multiple_of": "multiple of "}
_LENGTHS = {"min_length": "at least {} long", "max_length": "at most {} long"}


def entry(id: str) -> dict[str, Any]:
    """Return everything there is to say about a system as JSON values.

    Keys: those of `ledger.systems`, and `kind` (`method`, `objective`, `planned`). Where there is code: `summary` (one
    sentence), `description`, `version`, `inputs`, `fields`, `presets`, `example`. Where there is a claim: `claim`, with
    the first sentence of its docstring as `says`.

    Raises:
        RecipeError: the id is unknown.
    """
    row = ledger.find(id)
    found: dict[str, Any] = ledger.describe(row) | {"kind": "planned", "claim": None}
    if ledger.exists(row.claim):
        claim = ledger.claim_class(id)
        found["claim"] = {"says": str(getattr(claim, "says", "")) or _first_sentence(inspect.getdoc(claim) or "")}
    if not ledger.exists(row.code):
        return found
    cls = ledger.method_class(id)
    text = inspect.getdoc(cls) or ""
    presets = {"paper": {}, **getattr(cls, "presets", {})}
    found |= {
        "kind": "method" if row.method else "objective",
        "summary": _first_sentence(text),
        "description": text,
        "version": getattr(cls, "version", None),
        "fields": [dataclasses.asdict(field) for field in fields_of(cls)],
        "presets": {name: _flat(values) for name, values in presets.items()},
    }
    taken, required = inputs(cls), required_inputs(cls)
    found["inputs"] = [
        {"name": name, "type": type_name(hint), "required": name in required} for name, hint in taken.items()
    ]
    found["example"] = example(id, required, [field.name for field in fields_of(cls)])
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldNote:
    """A field as a person sets it: its dotted name, default, type, range and the comment in the source."""

    name: str
    default: Any
    type: str
    range: str
    note: str


def fields_of(cls: type, prefix: str = "", values: Any = None) -> Iterator[FieldNote]:
    """Yield the fields of a spec class, those of nested specs behind the field that holds them (`net`, `net.width`).

    `values` is the instance whose values are the defaults: of `optimizer = SGD(lr=1.0)` the 1.0, not SGD's own default.
    """
    notes = field_notes(cls)
    known: dict[str, FieldInfo] = cls.__pydantic_fields__  # type: ignore[attr-defined]
    for name, info in known.items():
        own = info.get_default(call_default_factory=True, validated_data={})
        default = getattr(values, name) if values is not None else own
        nested = dataclasses.is_dataclass(default) and not isinstance(default, type)
        kind = (getattr(default, "kind", None) or ledger.id_of(type(default))) if nested else None
        if prefix and name == "kind":
            continue
        shown = (kind or type(default).__name__) if nested else to_json(default)
        yield FieldNote(
            name=prefix + name,
            default=None if info.is_required() and values is None else _plain(shown),
            type="method" if name in methods_in(cls) else type_name(info.annotation),
            range=range_of(info),
            note=notes.get(name, ""),
        )
        if nested:
            yield from fields_of(type(default), f"{prefix}{name}.", default)


def notes(cls: type, values: Mapping[str, Any]) -> dict[str, str]:
    """Return the note of every field of a spec class by its dotted name.

    Of a method inside, the fields are those of the method that `values`, the JSON values of an instance, name.
    """
    found = {field.name: field.note for field in fields_of(cls)}
    for name in methods_in(cls):
        told = values.get(name, {})
        if "kind" in told:
            inside = notes(ledger.method_class(told["kind"]), told)
            found |= {f"{name}.{inner}": note for inner, note in inside.items()}
    return found


def type_name(hint: Any) -> str:
    """Return an annotation as a person would write it: `int`, `float or null`, `convnet or mlp`, `a URI …`."""
    if hint is None or hint is type(None):
        return "null"
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return type_name(typing.get_args(hint)[0])
    if origin is typing.Literal:
        return " or ".join(str(value) for value in typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_name(part) for part in typing.get_args(hint)))
    if origin is not None:
        parts = ", ".join("…" if part is ... else type_name(part) for part in typing.get_args(hint))
        return f"{getattr(origin, '__name__', origin)}[{parts}]"
    kind = getattr(hint, "__pydantic_fields__", {}).get("kind")
    return str(kind.default) if kind is not None else getattr(hint, "example", getattr(hint, "__name__", str(hint)))


def range_of(info: FieldInfo) -> str:
    """Return the bounds that a field was declared with, such as `≥ 1, ≤ 9`."""
    parts = []
    for bound in info.metadata:
        parts += [sign + f"{getattr(bound, name):g}" for name, sign in _BOUNDS.items() if hasattr(bound, name)]
        parts += [text.format(getattr(bound, name)) for name, text in _LENGTHS.items() if hasattr(bound, name)]
    return ", ".join(parts)


def example(id: str, required: list[str], names: list[str]) -> str:
    """Return a command that runs the system on data that is always there."""
    words = ["attar run", id]
    words += ["data=fashion-mnist-mini" if name == "data" else f"{name}={name.upper()}" for name in required]
    return " ".join(words + [f"{name}=10" for name in ("ipc", "base.ipc") if name in names])


def _first_sentence(text: str) -> str:
    """Return a docstring's first paragraph on one line."""
    return " ".join(text.partition("\n\n")[0].split())


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return a preset with dotted names, as it would be typed."""
    flat: dict[str, Any] = {}
    for name, value in dict(values).items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = _plain(to_json(value))
    return flat


def _plain(value: Any) -> Any:
    """Return a default as a JSON value; what is none becomes its text."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
