"""What is encoded for the store is text that PostgreSQL takes, and comes back unchanged."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.contracts import store_values as some

from custosd.adapters.encoding import (
    FACTS,
    decode_fact,
    decode_json,
    encode_fact,
    encode_json,
    original,
    storable,
)
from custosd.core.facts import Fact

# Lone surrogates, NUL and the escape's own mark and digits, more often than chance has them.
texts = st.lists(
    st.one_of(
        st.characters(exclude_categories=()),
        st.sampled_from(["\0", "\ud800", "\udfff", "\ufdd0", "0000", "d800", "\\u0000", "\\"]),
    )
).map("".join)


@dataclass(frozen=True)
class Box:
    text: str
    numbers: tuple[float, ...] = ()
    inner: "Box | None" = None


@given(texts)
def test_any_text_becomes_storable_and_comes_back(text: str) -> None:
    kept = storable(text)
    assert "\0" not in kept
    kept.encode("utf-8")
    assert original(kept) == text


@given(texts, texts)
def test_different_texts_stay_different(one: str, other: str) -> None:
    assert (storable(one) == storable(other)) == (one == other)


@given(texts, st.lists(st.floats(allow_nan=False)))
def test_any_value_becomes_json_for_jsonb_and_comes_back(text: str, numbers: list[float]) -> None:
    box = Box(text, tuple(numbers), Box(text[::-1]))
    assert decode_json(encode_json(box), Box) == box


def test_not_a_number_comes_back_as_one() -> None:
    found = decode_json(encode_json(Box("", (math.nan,))), Box)
    assert found is not None
    assert math.isnan(found.numbers[0])


def test_the_samples_hold_every_kind_of_fact() -> None:
    assert {type(fact) for fact in some.one_fact_of_each_kind()} == set(FACTS.values())


@pytest.mark.parametrize("text", ["", some.HOSTILE])
@pytest.mark.parametrize("place", range(len(some.one_fact_of_each_kind())))
def test_every_fact_comes_back(place: int, text: str) -> None:
    fact: Fact = some.one_fact_of_each_kind(text)[place]
    assert decode_fact(*encode_fact(fact)) == fact


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("teleported", "{}"),
        ("daemon_stopped", "{}"),
        ("daemon_stopped", '{"reason": 3}'),
        ("daemon_stopped", "not json"),
        ("state_changed", '{"ref": {"agent": "a", "run": "r"}, "before": "x", "after": "y"}'),
    ],
)
def test_what_is_not_understood_is_none_and_no_error(kind: str, body: str) -> None:
    assert decode_fact(kind, body) is None


def test_what_a_newer_version_added_is_left_out() -> None:
    fact = decode_fact("daemon_stopped", '{"reason": "SIGTERM", "code": 0}')
    assert fact is not None
    assert encode_fact(fact) == ("daemon_stopped", '{"reason":"SIGTERM"}')
