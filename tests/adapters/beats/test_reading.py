"""Beats as they come in: every good one is read as it was meant, no bad one gets any further."""

import json
import tracemalloc
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from custosd.adapters.beats.reading import (
    MOST_BEATS,
    MOST_VALUES,
    PresentedBeat,
    RefusedBeat,
    read_beats,
)
from custosd.core.agents import AgentId
from custosd.core.beats import (
    LARGEST_SEQUENCE,
    MOST_METRICS,
    Beat,
    BeatStatus,
    DeclaredWait,
    Refusal,
    WaitKind,
)

LEAST = {"agent": "ada", "epoch": 0, "seq": 1}


def one(data: bytes) -> PresentedBeat | RefusedBeat:
    [read] = read_beats(data)
    return read


def read_form(**fields: Any) -> PresentedBeat | RefusedBeat:
    return one(json.dumps(LEAST | fields).encode())


def refused(data: bytes) -> RefusedBeat:
    read = one(data)
    assert isinstance(read, RefusedBeat), read
    return read


def test_a_whole_beat_is_read_as_it_was_meant() -> None:
    read = read_form(
        status="waiting",
        interval_s=15,
        wait={"kind": "human", "expected_s": 600.5},
        pid=4711,
        progress="7f3a",
        task="T-1",
        metrics={"tokens": 12, "share": 0.5},
        token="cust_a_b",
        of_a_newer_client={"x": [1, {}]},
    )
    beat = Beat(
        AgentId("ada"),
        0,
        1,
        BeatStatus.WAITING,
        15.0,
        DeclaredWait(WaitKind.HUMAN, 600.5),
        4711,
        "7f3a",
        "T-1",
        MappingProxyType({"tokens": 12.0, "share": 0.5}),
    )
    assert read == PresentedBeat(0, beat, "cust_a_b")


def test_the_least_beat_has_three_keys() -> None:
    assert one(b' {"agent":"ada","epoch":0,"seq":1}\n') == PresentedBeat(
        0, Beat(AgentId("ada"), 0, 1)
    )


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"agent": ""}, "agent"),
        ({"agent": "a" * 201}, "agent"),
        ({"agent": 7}, "agent"),
        ({"agent": None}, "agent"),
        ({"agent": "a\nb"}, "agent"),
        ({"agent": "a\0b"}, "agent"),
        ({"agent": "a\u202eb"}, "agent"),
        ({"epoch": -1}, "epoch"),
        ({"epoch": LARGEST_SEQUENCE + 1}, "epoch"),
        ({"epoch": 10**40}, "epoch"),
        ({"epoch": 1.0}, "epoch"),
        ({"epoch": True}, "epoch"),
        ({"epoch": "1"}, "epoch"),
        ({"seq": -1}, "seq"),
        ({"seq": None}, "seq"),
        ({"status": "sleeping"}, "status"),
        ({"status": ["running"]}, "status"),
        ({"interval_s": 0}, "interval_s"),
        ({"interval_s": 3600.1}, "interval_s"),
        ({"interval_s": "15"}, "interval_s"),
        ({"wait": {"kind": "human"}}, "wait"),
        ({"wait": {"kind": "lunch", "expected_s": 1}}, "wait.kind"),
        ({"wait": {"kind": "human", "expected_s": 86_400.1}}, "wait.expected_s"),
        ({"wait": {"kind": "human", "expected_s": -1}}, "wait.expected_s"),
        ({"wait": "human"}, "wait"),
        ({"pid": -1}, "pid"),
        ({"pid": 2**31}, "pid"),
        ({"progress": "x" * 201}, "progress"),
        ({"progress": "x\x1b[2J"}, "progress"),
        ({"task": {}}, "task"),
        ({"task": "\x00"}, "task"),
        ({"metrics": {"x": "1"}}, "metrics"),
        ({"metrics": {"": 1}}, "metrics"),
        ({"metrics": {"a\tb": 1}}, "metrics"),
        ({"metrics": {str(n): n for n in range(MOST_METRICS + 1)}}, "metrics"),
        ({"metrics": [1]}, "metrics"),
        ({"token": 1}, "token"),
        ({"token": "t" * 201}, "token"),
    ],
)
def test_a_value_out_of_type_or_bounds_is_refused_by_its_key(
    fields: dict[str, Any], key: str
) -> None:
    read = read_form(**fields)
    assert isinstance(read, RefusedBeat)
    assert read.refusal is Refusal.MALFORMED
    assert f"`{key}" in read.detail
    assert read.agent == ("" if "agent" in fields else "ada")


@pytest.mark.parametrize("key", sorted(LEAST))
def test_a_beat_without_what_it_must_say_is_refused(key: str) -> None:
    form = {name: value for name, value in LEAST.items() if name != key}
    assert f"`{key}`" in refused(json.dumps(form).encode()).detail


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"null",
        b"7",
        b'"ada"',
        b"{",
        b"[",
        b"[{",
        b"{}x",
        b'{"agent":"ada","epoch":0,"seq":1} {}',
        b'{"agent":"ada","epoch":0,"seq":1,}',
        b'{"agent":"ada","epoch":0,"seq":1,"metrics":{"x":NaN}}',
        b'{"agent":"ada","epoch":0,"seq":1,"metrics":{"x":Infinity}}',
        b'{"agent":"ada","epoch":0,"seq":1,"metrics":{"x":1e999}}',
        b'{"agent":"ada","epoch":0,"seq":1,"interval_s":1e999}',
        b'{"agent":"\xff","epoch":0,"seq":1}',
        b'{"agent":"ada","epoch":0,"seq":1,"unknown":"\xc0\xaf"}',
        b'{"agent":"\\ud800","epoch":0,"seq":1}',
        b'{"agent":"a\\u0000b","epoch":0,"seq":1}',
        b'{"agent":"a\0b","epoch":0,"seq":1}',
        b'{"agent":"ada","epoch":0,"seq":1}\0',
        b'\xef\xbb\xbf{"agent":"ada","epoch":0,"seq":1}',
        '{"agent":"ada","epoch":0,"seq":1}'.encode("utf-16"),
        b"[" * 200_000,
        b"[" * 30_000 + b"]" * 30_000,
        b'{"agent":"ada","epoch":0,"seq":1,"x":' + b"[" * 9_000 + b"]" * 9_000 + b"}",
        b'{"x":' * 20_000 + b"1" + b"}" * 20_000,
        b"[[]]",
        b"[[[[]]]]",
        b"[]",
    ],
)
def test_what_is_no_beat_is_malformed_and_nothing_is_raised(data: bytes) -> None:
    assert refused(data).refusal is Refusal.MALFORMED


@pytest.mark.parametrize(
    "text",
    [
        '{"agent":"ada","agent":"bob","epoch":0,"seq":1}',
        '{"agent":"ada","\\u0061gent":"bob","epoch":0,"seq":1}',
        '{"agent":"ada","epoch":0,"seq":1,"epoch":9}',
        '{"agent":"ada","epoch":0,"seq":1,"wait":{"kind":"human","kind":"command","expected_s":1}}',
        '{"agent":"ada","epoch":0,"seq":1,"metrics":{"x":1,"x":2}}',
        '{"agent":"ada","epoch":0,"seq":1,"metrics":{"x":1,"\\u0078":2}}',
    ],
)
def test_a_key_that_comes_twice_is_refused_however_it_is_spelt(text: str) -> None:
    assert "comes twice" in refused(text.encode()).detail


def test_a_word_may_be_key_and_value_and_a_metric_may_have_a_keys_name() -> None:
    read = read_form(task="task", progress="epoch", metrics={"seq": 1, "status": 2, "\u00e9": 3})
    assert isinstance(read, PresentedBeat)


def test_each_item_of_an_array_is_judged_alone() -> None:
    items = [LEAST, LEAST | {"seq": "x"}, 7, LEAST | {"agent": "bob"}]
    read = read_beats(json.dumps(items).encode())
    assert [(type(item), item.index) for item in read] == [
        (PresentedBeat, 0),
        (RefusedBeat, 1),
        (RefusedBeat, 2),
        (PresentedBeat, 3),
    ]
    assert [item.agent for item in read if isinstance(item, RefusedBeat)] == ["ada", ""]


def test_an_array_has_its_bounds() -> None:
    full = [LEAST | {"seq": n} for n in range(MOST_BEATS)]
    assert len(read_beats(json.dumps(full).encode())) == MOST_BEATS
    over = refused(json.dumps([*full, LEAST]).encode())
    assert (over.index, over.refusal) == (None, Refusal.OVERSIZE)
    assert refused(b"[" + b"1," * (MOST_VALUES + 1) + b"1]").refusal is Refusal.OVERSIZE


@pytest.mark.parametrize("item", [b"1,", b"[],", b'"",', b"{},"])
def test_an_array_of_very_many_nothings_takes_little_memory(item: bytes) -> None:
    """Half a million items in one mebibyte: they are not even told apart."""
    data = b"[" + item * (2**20 // len(item)) + b"1]"
    tracemalloc.start()
    try:
        assert refused(data).refusal is Refusal.OVERSIZE
        assert tracemalloc.get_traced_memory()[1] < 6 * 2**20
    finally:
        tracemalloc.stop()


def test_a_refusal_quotes_the_sender_in_part_only() -> None:
    told = refused(json.dumps(LEAST | {"status": "\x1b" + "x" * 100_000}).encode()).detail
    assert len(told) <= 160
    assert told.isprintable()


@given(st.binary(max_size=300))
@example(b'[{"agent":"ada","epoch":0,"seq":1}]')
def test_bytes_never_raise(data: bytes) -> None:
    assert read_beats(data)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*LEAST, "wait", "kind", "metrics"]), inner, max_size=6)
    ),
    max_leaves=20,
)


@given(_json)
def test_json_of_any_shape_never_raises(value: Any) -> None:
    assert read_beats(json.dumps(value).encode())


@given(_json, st.sampled_from(["agent", "epoch", "seq", "status", "wait", "metrics", "pid"]))
def test_a_beat_with_one_wild_value_is_read_or_refused(value: Any, key: str) -> None:
    read = read_form(**{key: value})
    if isinstance(read, PresentedBeat):
        assert read.beat.agent.isprintable()
        assert 0 <= read.beat.epoch <= LARGEST_SEQUENCE


_words = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=50)


@given(
    agent=_words,
    epoch=st.integers(0, LARGEST_SEQUENCE),
    seq=st.integers(0, LARGEST_SEQUENCE),
    status=st.sampled_from(list(BeatStatus)),
    metrics=st.dictionaries(
        _words, st.floats(allow_nan=False, allow_infinity=False), max_size=MOST_METRICS
    ),
    ascii_only=st.booleans(),
)
def test_every_good_beat_is_read_as_it_was_written(
    agent: str,
    epoch: int,
    seq: int,
    status: BeatStatus,
    metrics: dict[str, float],
    *,
    ascii_only: bool,
) -> None:
    form = {"agent": agent, "epoch": epoch, "seq": seq, "status": status, "metrics": metrics}
    read = one(json.dumps(form, ensure_ascii=ascii_only).encode())
    assert read == PresentedBeat(0, Beat(AgentId(agent), epoch, seq, status, metrics=metrics))


@given(st.data())
def test_a_good_beat_with_one_byte_changed_never_raises(data: st.DataObject) -> None:
    text = bytearray(json.dumps([LEAST | {"metrics": {"x": 1.5}, "wait": None}]).encode())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] = data.draw(st.integers(0, 255))
    assert read_beats(text)
