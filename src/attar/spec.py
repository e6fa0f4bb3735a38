"""Frozen, validated bags of hyper-parameters, and how defaults, presets and overrides become one.

`@spec` makes a plain class with annotated fields into a frozen keyword-only pydantic dataclass; `@method` is a spec
that can be called on a run. Nothing here imports torch.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import inspect
import io
import json
import textwrap
import tokenize
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from attar import ledger
from attar.errors import RecipeError, did_you_mean

T = TypeVar("T")
_NAMED = 6  # inner fields that a message lists
_SHOWN = (str, int, float, list, tuple, type(None))  # what a message shows of what came; others have fields


@dataclass_transform(frozen_default=True, kw_only_default=True)
def spec(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only, validated dataclass that refuses unknown fields."""
    config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)
    return typing.cast(type[T], pydantic_dataclass(frozen=True, kw_only=True, config=config)(cls))


@dataclass_transform(frozen_default=True, kw_only_default=True)
def method(cls: type[T]) -> type[T]:
    """Make `cls` a method: a spec with `version`, `presets` (at least `small`) and `__call__(run, *, inputs…)`.

    Raises:
        TypeError: the class lacks one of them, or a field has the name of an input.
    """
    made: Any = spec(cls)
    presets = getattr(made, "presets", None)
    if not isinstance(presets, Mapping) or "small" not in presets:
        raise TypeError(f"{cls.__name__}.presets must hold at least the preset 'small'")
    if not isinstance(getattr(made, "version", None), int):
        raise TypeError(f"{cls.__name__}.version must be an integer, raised by hand whenever its numbers change")
    if clash := set(inputs(made)) & {f.name for f in fields(made)}:
        raise TypeError(f"{cls.__name__}: a field never has an input's name: {sorted(clash)}")
    return typing.cast(type[T], made)


def kinds(union: Any) -> Any:
    """Annotate a union of specs, each with a literal field `kind`, so that a bare name (`"resnet18"`) builds one."""

    def by_name(value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    return typing.Annotated[union, Field(discriminator="kind"), BeforeValidator(by_name)]


def fields(cls: Any) -> tuple[dataclasses.Field[Any], ...]:
    """Return the dataclass fields of a spec class or instance."""
    return dataclasses.fields(cls)


@functools.cache
def inputs(cls: type) -> dict[str, Any]:
    """Return the inputs of a method: the keyword-only parameters of `__call__`, name to annotation."""
    call = cls.__call__
    hints = typing.get_type_hints(call)
    parameters = inspect.signature(call).parameters.values()
    return {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}


def required_inputs(cls: type) -> list[str]:
    """Return the names of the inputs without a default."""
    parameters = inspect.signature(cls.__call__).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]


def to_json(value: Any) -> Any:
    """Return a spec as plain JSON values, nested specs with their `kind`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return TypeAdapter(type(value)).dump_python(value, mode="json")
    return value


def digest(value: Any) -> str:
    """Return the SHA-256 hex digest of a JSON value in canonical form (sorted keys, no spaces).

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def build(
    cls: type[T],
    overrides: Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    base: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> T:
    """Build a spec from its defaults, then the preset, then `base`, then the overrides.

    Overrides may be nested mappings or dotted keys (`{"net.width": 64}`); changing a nested spec's kind
    (`net=resnet18`) drops what the preset said of that spec.

    Raises:
        RecipeError: unknown preset, unknown field, or a value that does not validate.
    """
    name = name or cls.__name__
    layers: list[Mapping[str, Any]] = []
    if preset is not None:
        layers.append(preset_values(cls, preset, name, {**(base or {}), **(overrides or {})}))
    layers += [base or {}, overrides or {}]
    defaults = {f.name: f.default for f in fields(cls)}
    defaults |= {key: _changes(defaults[key]) for key in methods_in(cls)}
    values: dict[str, Any] = {}
    for layer in layers:
        for key, value in _nested(layer).items():
            if key not in defaults:
                places = places_of([cls])
                hint = did_you_mean(key, places, places)
                raise RecipeError(f"'{name}' has no field '{key}'{hint}{_where_to_look(name, 'its fields')}")
            values[key] = _merge(values.get(key, defaults[key]), value)
    for key in methods_in(cls):
        if isinstance(chosen := values.get(key, defaults[key]), Mapping):
            values[key] = build_method(chosen, preset=preset)
    try:
        return cls(**values)
    except ValidationError as error:
        raise RecipeError(_explain(error, cls, name)) from None


def build_method(told: Any, *, preset: str | None = None) -> Any:
    """Build the method that a mapping of fields with the `kind` of its ledger id stands for, or that id alone.

    An instance of a method in the ledger is returned as it is. A `version` must be the method's own.

    Raises:
        RecipeError: unknown id, another version, or what `build` refuses.
    """
    told = {"kind": told} if isinstance(told, str) else told
    if not isinstance(told, Mapping):
        if ledger.id_of(type(told)) is None:
            raise ValueError("a method is named by its id in the ledger, such as 'dm'; 'attar systems' lists all")
        return told
    values = dict(told)
    id = str(values.pop("kind", ""))
    cls: Any = ledger.method_class(id)
    if (version := values.pop("version", cls.version)) != cls.version:
        raise RecipeError(f"this is version {cls.version} of '{id}', and version {version} was asked for")
    return build(cls, values, preset=preset, name=id)


def _told(method: Any) -> dict[str, Any]:
    """Return a method as JSON values: its id as `kind`, its version and all its fields."""
    return {"kind": ledger.id_of(type(method)), "version": method.version, **to_json(method)}


def _changes(method: Any) -> Any:
    """Return the id of a default method, as `kind`, and what it changes in its class's own defaults."""
    plain = to_json(type(method)())
    return {"kind": ledger.id_of(type(method))} | {k: v for k, v in to_json(method).items() if v != plain[k]}


_BY_ID = BeforeValidator(build_method)
AnyMethod = typing.Annotated[Any, _BY_ID, PlainSerializer(_told)]  # a field that holds a method, named by ledger id


def methods_in(cls: Any) -> list[str]:
    """Return the names of the fields that hold a method; the preset of the class is applied to it as well."""
    return [name for name, info in cls.__pydantic_fields__.items() if _BY_ID in info.metadata]


def preset_values(
    cls: Any, preset: str, name: str | None = None, given: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    """Return the overrides that a preset stands for; `paper` is the defaults unless the class says otherwise.

    An entry named `field=value` holds overrides for the case that the field has that value, among `given` or else in
    the preset or by default: `{"steps": 20, "ipc=1": {"steps": 150}}`. Where a field holds a method that is still to be
    built, an unknown preset may be that method's, who refuses it otherwise.
    """
    presets: Mapping[str, Mapping[str, Any]] = {"paper": {}, **getattr(cls, "presets", {})}
    if preset not in presets and any(isinstance((given or {}).get(key, ""), str | Mapping) for key in methods_in(cls)):
        return {}
    if preset not in presets:
        hint = did_you_mean(preset, presets)
        raise RecipeError(f"'{name or cls.__name__}' has no preset '{preset}'{hint} It has: {', '.join(presets)}")
    values = {key: value for key, value in presets[preset].items() if "=" not in key}
    known = {**{f.name: f.default for f in fields(cls)}, **values, **(given or {})}
    for case in presets[preset].keys() - values.keys():
        field, _, wanted = case.partition("=")
        if str(known[field]) == wanted:
            values = {**values, **presets[preset][case]}
    return values


def field_notes(cls: type) -> dict[str, str]:
    """Return the comment that stands behind each field in the source: its unit and the origin of its default.

    A field that a subclass gives another default keeps its note, unless it gets one of its own.
    """
    notes: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            notes |= {name: note for name, note in _own_notes(base).items() if note or name not in notes}
    return notes


def _own_notes(cls: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(cls))
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
    return {
        node.target.id: comments.get(node.end_lineno or node.lineno, "")
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _nested(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Expand dotted keys: `{"net.width": 64}` becomes `{"net": {"width": 64}}`."""
    tree: dict[str, Any] = {}
    for key, value in layer.items():
        first, _, rest = key.partition(".")
        tree[first] = _merge(tree.get(first), _nested({rest: value})) if rest else _merge(tree.get(first), value)
    return tree


def _merge(current: Any, new: Any) -> Any:
    """Lay `new` over `current`; mappings merge key by key unless the kind changes."""
    if dataclasses.is_dataclass(current) and isinstance(new, str | Mapping):
        current = to_json(current)
    if not isinstance(current, Mapping):
        if isinstance(current, str) and isinstance(new, Mapping):  # net=resnet18 net.norm=batch
            current = {"kind": current}
        else:
            return new
    if isinstance(new, str) and "kind" in current:
        new = {"kind": new}
    if not isinstance(new, Mapping):
        return new
    if new.get("kind", current.get("kind")) != current.get("kind"):
        return dict(new)
    return {**current, **{key: _merge(current.get(key), value) for key, value in new.items()}}


def _where_to_look(name: str, what: str) -> str:
    """Name the command that explains a system; a spec that is none (a plan, a protocol) has no such page."""
    known = any(row.id == name for row in ledger.rows())
    return f" 'attar show {name}' lists {what}" if known else ""


def _explain(error: ValidationError, cls: type, name: str) -> str:
    """Say which field is wrong, what was expected and what came."""
    lines = []
    for problem in error.errors(include_url=False):
        *above, last = problem["loc"] or ("",)
        path, beside = _followed(cls, above)
        where = ".".join(str(part) for part in (*path, last) if str(part) not in _kinds_in(beside))
        if problem["type"] == "unexpected_keyword_argument":
            places = places_of(beside, "".join(f"{part}." for part in path))
            hint = did_you_mean(str(last), places, places)
            lines.append(f"'{name}' has no field '{where}'{hint.removesuffix('.')}")
            continue
        message = _of_inner(problem, where, _followed(cls, problem["loc"])[1])
        message = message or problem["msg"].removeprefix("Value error, ")
        whose = f"field '{where}' of '{name}'" if where else f"'{name}'"
        came = f"; got {problem['input']!r}" if isinstance(problem["input"], _SHOWN) else ""
        lines.append(f"{whose}: {message[:1].lower()}{message[1:]}{came}")
    told = "; ".join(lines)
    return told + ("" if told.endswith(("?", ".")) else ".") + _where_to_look(name, "fields, units and ranges")


def _of_inner(problem: Mapping[str, Any], where: str, specs: Sequence[type]) -> str:
    """Say how a field that holds one of some specs is set; nothing of other problems."""
    kinds = ", ".join(_kinds_in(specs))
    if problem["type"] == "union_tag_invalid":
        tag = problem["ctx"]["tag"]
        return f"unknown kind '{tag}'{did_you_mean(tag, _kinds_in(specs))} Known: {kinds}"
    if problem["type"] == "union_tag_not_found":
        given = problem["input"]
        fitting = next((one for one in specs if given.keys() <= _known(one).keys()), specs[0])
        words = [f"{where}={_known(fitting)['kind'].default}", *(f"{where}.{key}={given[key]}" for key in given)]
        return f"name a kind, as {' '.join(words)}; kinds: {kinds}"
    if problem["type"] == "model_attributes_type":
        return f"name a kind, one of {kinds}"
    if problem["type"] == "dataclass_type":
        inner = [f"{where}.{key}" for one in specs for key in _known(one) if key != "kind"]
        return f"this field has inner fields: set {', '.join(inner[:_NAMED])}{', …' if len(inner) > _NAMED else ''}"
    return ""


def places_of(specs: Iterable[type], prefix: str = "") -> dict[str, str]:
    """Return the dotted name of every field by its last name; of several that with the fewest specs around it."""
    found: dict[str, str] = {}
    level, seen = [(prefix, one) for one in specs], set[type]()
    while level:
        below = []
        for above, one in level:
            seen.add(one)
            for name, info in _known(one).items():
                found.setdefault(name, above + name)
                inner = _specs_in(info.annotation) or _specs_in(type(info.default))
                below += [(f"{above}{name}.", spec) for spec in inner if spec not in seen]
        level = below
    found.pop("kind", None)
    return found


def _followed(cls: type, path: Iterable[Any]) -> tuple[list[Any], list[type]]:
    """Follow a path as pydantic tells it, of names and kinds; return its names, and the specs that may lie there."""
    names, here = [], [cls]
    for part in path:
        if str(part) in _kinds_in(here):
            here = [one for one in here if str(part) in _kinds_in([one])]
            continue
        names.append(part)
        here = [inner for one in here if part in _known(one) for inner in _specs_in(_known(one)[part].annotation)]
    return names, here


def _kinds_in(specs: Iterable[type]) -> list[str]:
    return [str(_known(one)["kind"].default) for one in specs if "kind" in _known(one)]


def _known(cls: Any) -> dict[str, Any]:
    return cls.__pydantic_fields__ if hasattr(cls, "__pydantic_fields__") else {}


def _specs_in(hint: Any) -> list[type]:
    """Return the spec classes in an annotation."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return [hint]
    return [inner for part in typing.get_args(hint) for inner in _specs_in(part)]


Method = Callable[..., Any]  # a method's instance: `method(run, *, inputs…) -> artifact`
