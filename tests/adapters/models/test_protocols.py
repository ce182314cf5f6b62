"""Both protocols over a real server: what a reply holds, and what each misbehaviour comes to."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.adapters.models.fault_server import (
    VERDICT,
    Cut,
    Disconnect,
    Fault,
    FaultServer,
    Garbage,
    Hang,
    Huge,
    Raw,
    Slow,
    Status,
    StreamError,
    Well,
    fault_server,
)

from custosd.adapters.http_client import HttpLimits, open_http
from custosd.adapters.models.anthropic import AnthropicProtocol
from custosd.adapters.models.http import HttpModel, HttpWire
from custosd.adapters.models.model import (
    Allowance,
    ModelError,
    ModelErrorKind,
    Prices,
    Prompt,
    Turn,
)
from custosd.adapters.models.openai import OpenAiProtocol
from custosd.adapters.models.wire import EventReader, allowances, retry_after_s
from custosd.config.secret import Secret

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
PROMPT = Prompt(
    "Judge.", (Turn("user", "data"),), {"type": "object", "properties": {}}, "verdict", "n0nce"
)
PROTOCOLS = {"anthropic": AnthropicProtocol, "openai": OpenAiProtocol}
PATHS = {"anthropic": "", "openai": "/v1"}

both = pytest.mark.parametrize("kind", ["anthropic", "openai"])
streamed_or_not = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@asynccontextmanager
async def opened(
    kind: str, *, stream: bool = False, key: Secret | None = None, **limits: Any
) -> AsyncGenerator[tuple[HttpModel, FaultServer]]:
    prices = Prices(3.0, 15.0, 0.3)
    made = PROTOCOLS[kind]("judge-1", prices, 500)
    bounds = HttpLimits(read_s=0.3, largest_body_bytes=200_000, **limits)
    async with fault_server() as server, open_http(bounds) as http:
        wire = HttpWire(http, server.url + PATHS[kind], made.secret_headers, key, 0.3)
        yield HttpModel("judge", made, wire, lambda: NOW, 1.0, stream), server


async def failure_of(kind: str, fault: Fault, *, stream: bool = False) -> ModelError:
    async with opened(kind, stream=stream) as (model, server):
        server.faults = [fault]
        with pytest.raises(ModelError) as caught:
            await model.ask(PROMPT)
        assert (await model.ask(PROMPT)).text, "the next question is answered"
        return caught.value


@both
@streamed_or_not
async def test_a_reply_holds_the_answer_and_what_it_cost(kind: str, stream: bool) -> None:  # noqa: FBT001 - a parameter of pytest
    async with opened(kind, stream=stream) as (model, _):
        reply = await model.ask(PROMPT)
    assert json.loads(reply.text) == VERDICT
    assert reply.model == "judge-1-20260101"
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (1_200, 100)
    assert reply.usage.cached_tokens == 200
    assert reply.usage.cost_usd == pytest.approx((1_000 * 3 + 100 * 15 + 200 * 0.3) / 1e6)


@both
async def test_the_request_is_the_protocols_own(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("s3cr3t\n")
    file.chmod(0o600)
    async with opened(kind, key=Secret("model.key_file", file)) as (model, server):
        await model.ask(PROMPT)
    (asked,), (headers,) = server.requests, server.headers
    assert asked["model"] == "judge-1"
    assert asked["max_tokens"] == 500
    assert asked["messages"][-1] == {"role": "user", "content": "data"}
    if kind == "anthropic":
        assert headers["x-api-key"] == "s3cr3t"
        assert headers["anthropic-version"] == "2023-06-01"
        assert asked["system"] == "Judge."
        assert asked["tool_choice"] == {"type": "tool", "name": "verdict"}
    else:
        assert headers["authorization"] == "Bearer s3cr3t"
        assert asked["messages"][0] == {"role": "system", "content": "Judge."}
        assert asked["response_format"]["json_schema"]["strict"] is True


@both
async def test_a_key_that_others_can_read_is_not_sent(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("s3cr3t")
    file.chmod(0o644)
    async with opened(kind, key=Secret("model.key_file", file)) as (model, server):
        with pytest.raises(ModelError) as caught:
            await model.ask(PROMPT)
    assert caught.value.kind is ModelErrorKind.UNAUTHORIZED
    assert "chmod" in str(caught.value)
    assert not server.requests


K = ModelErrorKind
IN_AN_HOUR = format_datetime(datetime(2026, 3, 1, 13, 0, tzinfo=UTC), usegmt=True)


@both
@streamed_or_not
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Status(429, "rate_limit_error"), K.RATE_LIMITED),
        (Status(529, "overloaded_error"), K.OVERLOADED),
        (Status(503, "?"), K.OVERLOADED),
        (Status(500), K.UNAVAILABLE),
        (Status(502, body=b"<html>bad gateway</html>"), K.UNAVAILABLE),
        (Status(504, "?"), K.TIMEOUT),
        (Status(401, "authentication_error"), K.UNAUTHORIZED),
        (Status(429, "insufficient_quota"), K.UNAUTHORIZED),
        (Status(400, "invalid_request_error"), K.BAD_REQUEST),
        (Status(404, "not_found_error"), K.BAD_REQUEST),
        (Status(413, "request_too_large"), K.TOO_LARGE),
        (Status(500, body=b"[" * 100_000), K.UNAVAILABLE),
        (Disconnect(), K.CUT_OFF),
        (Cut(3), K.CUT_OFF),
        (Hang(), K.TIMEOUT),
        (Slow(0.02), K.TIMEOUT),
        (Garbage(), K.MALFORMED),
        (Huge(), K.ANSWER_TOO_LARGE),
        (Raw(b"not json"), K.MALFORMED),
        (Raw(b"[]"), K.MALFORMED),
        (Raw(b"{}"), K.MALFORMED),
        (Raw(b'{"content": 3, "choices": "x", "usage": []}'), K.MALFORMED),
        (Raw(b"[" * 100_000), K.MALFORMED),
        (Raw(b"\xff\xfe"), K.MALFORMED),
        (Well(stop="refusal"), K.REFUSED),
    ],
    ids=repr,
)
async def test_each_misbehaviour_is_its_kind_of_error(
    kind: str,
    stream: bool,  # noqa: FBT001 - a parameter of pytest
    fault: Fault,
    expected: ModelErrorKind,
) -> None:
    error = await failure_of(kind, fault, stream=stream)
    assert error.kind is expected
    assert "data" not in str(error).split()


@pytest.mark.parametrize(("kind", "stop"), [("anthropic", "max_tokens"), ("openai", "length")])
@streamed_or_not
async def test_an_answer_cut_at_its_most_tokens_was_paid_and_is_no_answer(
    kind: str,
    stop: str,
    stream: bool,  # noqa: FBT001 - a parameter of pytest
) -> None:
    error = await failure_of(kind, Well(stop=stop), stream=stream)
    assert error.kind is K.TRUNCATED
    assert error.usage.input_tokens == 1_200 or (kind, stream) == ("openai", True)


@both
@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("overloaded_error", K.OVERLOADED),
        ("rate_limit_error", K.RATE_LIMITED),
        ("?", K.UNAVAILABLE),
    ],
)
async def test_an_error_in_the_middle_of_a_stream_is_told(
    kind: str, word: str, expected: ModelErrorKind
) -> None:
    assert (await failure_of(kind, StreamError(word), stream=True)).kind is expected


@both
@pytest.mark.parametrize(
    ("headers", "after_s"),
    [
        ((("retry-after", "7"),), 7.0),
        ((("Retry-After", "1.5"),), 1.5),
        ((("retry-after", IN_AN_HOUR),), 3_600.0),
        # By the server's own clock, which is half an hour fast.
        ((("retry-after", IN_AN_HOUR), ("date", "Sun, 01 Mar 2026 12:30:00 GMT")), 1_800.0),
        ((("retry-after", "Sun, 01 Mar 2026 11:00:00 GMT"),), 0.0),
        ((("retry-after-ms", "250"), ("retry-after", "1")), 0.25),
        ((("retry-after", "soon"),), None),
        ((("retry-after", "-5"),), 0.0),
        ((("retry-after", "1e400"),), None),
        ((("retry-after", "99999999999"),), None),
        ((), None),
    ],
    ids=repr,
)
async def test_retry_after_is_read_in_every_form(
    kind: str, headers: tuple[tuple[str, str], ...], after_s: float | None
) -> None:
    error = await failure_of(kind, Status(429, "rate_limit_error", headers))
    assert error.after_s == after_s


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "date"]), st.text()))
def test_no_retry_after_makes_trouble(headers: dict[str, str]) -> None:
    after_s = retry_after_s(headers, NOW)
    assert after_s is None or 0 <= after_s <= 7 * 86_400


def test_what_is_left_is_read_from_either_providers_headers() -> None:
    theirs = {
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-requests-reset": "2026-03-01T12:00:30Z",
        "anthropic-ratelimit-tokens-remaining": "x",
    }
    assert allowances(theirs, "anthropic-ratelimit-", "after", NOW) == (
        Allowance("requests", 49, 30.0),
    )
    others = {
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1h6m0.5s",
        "x-ratelimit-remaining-tokens": "1000",
        "x-ratelimit-reset-tokens": "120ms",
    }
    assert allowances(others, "x-ratelimit-", "before", NOW) == (
        Allowance("requests", 0, 3_960.5),
        Allowance("tokens", 1_000, 0.12),
    )


def test_the_time_of_a_reset_is_told_by_the_other_sides_clock() -> None:
    """Ours may be an hour off: that is not to shut the gate for an hour, nor to open it."""
    for off_s in (-3_600, 0, 3_600):
        headers = {
            "date": "Sun, 01 Mar 2026 12:00:00 GMT",
            "anthropic-ratelimit-requests-remaining": "0",
            "anthropic-ratelimit-requests-reset": "2026-03-01T12:00:30Z",
        }
        now_utc = datetime(2026, 3, 1, 12, tzinfo=UTC) + timedelta(seconds=off_s)
        assert allowances(headers, "anthropic-ratelimit-", "after", now_utc) == (
            Allowance("requests", 0, 30.0),
        )


STREAM = (
    "event: a\r\ndata: 1\ndata: é2\r\r: comment\nid: 9\ndata\n\nevent: b\n\ndata: {}\n\n".encode()
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    reader, found = EventReader(), []
    places = [0, *sorted(cuts), len(STREAM)]
    for start, end in pairwise(places):
        found += [(event.name, event.data) for event in reader.feed(STREAM[start:end])]
    assert found == [("a", "1\né2"), ("message", ""), ("message", "{}")]


def test_an_endless_event_is_too_large() -> None:
    reader = EventReader()

    def feed() -> None:
        for _ in range(100):
            list(reader.feed(b"x" * 65_536))

    with pytest.raises(ModelError) as caught:
        feed()
    assert caught.value.kind is K.ANSWER_TOO_LARGE
