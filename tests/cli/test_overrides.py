"""`key=value` words become values, and every other word is refused with a message."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attar.errors import RecipeError
from attar.overrides import parse_overrides, parse_value

KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,6}(\.[a-z_][a-z0-9_]{0,6}){0,2}", fullmatch=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_json_value_survives_the_command_line(settings):
    words = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    assert parse_overrides(words) == settings


@given(st.lists(st.text(max_size=20), max_size=4))
def test_any_words_are_either_parsed_or_refused_with_a_recipe_error(words):
    with contextlib.suppress(RecipeError):  # any other exception would reach the person as a traceback
        assert len(parse_overrides(words)) == len(words)


@given(st.text(min_size=1).filter(lambda text: text.strip()[:1] not in ("", "[", "{", '"')))
def test_text_that_is_not_json_stays_as_it_stands(text):
    value = parse_value(text)
    assert value == (text if isinstance(value, str) else json.loads(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10),
        ("1e-3", 0.001),
        ("-0.5", -0.5),
        ("true", True),
        ("null", None),
        ("none", "none"),  # a norm may be called none
        ("NaN", "NaN"),
        ("Infinity", "Infinity"),
        ("1_000", "1_000"),
        ("007", "007"),
        ('"7"', "7"),
        ("[1, 2]", [1, 2]),
        ("folder:a=b?size=14", "folder:a=b?size=14"),
        ("9" * 5000, "9" * 5000),  # more digits than Python turns into an integer
    ],
)
def test_values_are_json_where_they_are_json_and_text_elsewhere(text, value):
    assert parse_value(text) == value


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("ipc", "written key=value"),
        ("=3", "not a field's name"),
        ("a.=3", "not a field's name"),
        ("a-b=3", "not a field's name"),
        ("ipc=", "no value"),
        ("x=[1,", "does not parse as JSON"),
        ('x={"a": NaN}', "does not parse as JSON"),
        ("x=" + "[" * 100_000, "does not parse as JSON"),
    ],
)
def test_other_words_are_refused(word, message):
    with pytest.raises(RecipeError, match=message):
        parse_overrides([word])


def test_a_key_stands_once():
    with pytest.raises(RecipeError, match="given twice"):
        parse_overrides(["ipc=1", "ipc=1"])
