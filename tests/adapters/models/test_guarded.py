"""A model behind retries, rates, a limit and a circuit: what each failure does to them.

Pauses are of the virtual clock and a scripted model; against the real server they are short.
"""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
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
    Stuck,
    Together,
    Well,
    fault_server,
)
from trio.testing import MockClock

from custosd.adapters.http_client import HttpLimits, open_http
from custosd.adapters.models.anthropic import AnthropicProtocol
from custosd.adapters.models.guarded import NO_WORD_S, Call, GuardedModel, circuit, policy
from custosd.adapters.models.http import HttpModel, HttpWire
from custosd.adapters.models.model import (
    PASSING,
    Allowance,
    ModelError,
    ModelErrorKind,
    Prices,
    Prompt,
    Reply,
    Turn,
)
from custosd.adapters.models.openai import OpenAiProtocol
from custosd.adapters.models.scripted import ScriptedModel
from custosd.core.transcript import Usage
from custosd.flow.adaptive import AdaptiveLimit, Aimd
from custosd.flow.breaker import CircuitState
from custosd.flow.rate_limit import Rate, RateLimiter
from custosd.flow.retry import steady

K = ModelErrorKind
PROMPT = Prompt("Judge.", (Turn("user", "data"),), {"type": "object"}, "verdict", "n0nce")
PAID = Usage(100, 10, 0, 0.001)
"""What a scripted model tells of each reply."""

both = pytest.mark.parametrize("kind", ["anthropic", "openai"])


def longest(attempts: int = 3) -> Any:
    """The policy of the daemon, with every pause as long as it may be."""
    return replace(policy(attempts), random=steady)


def rates(**rate: Rate) -> RateLimiter:
    wide = Rate(1_000.0, 1_000_000.0)
    return RateLimiter({"requests": wide, "tokens": wide, **rate})


def failing(
    kind: ModelErrorKind, after_s: float | None = None, usage: Usage = Usage()
) -> ModelError:
    return ModelError(kind, "no", after_s=after_s, usage=usage)


async def outcome(model: GuardedModel) -> Reply | ModelError:
    try:
        return await model.ask(PROMPT)
    except ModelError as error:
        return error


# What is tried again, and when: virtual time


@pytest.mark.parametrize("kind", list(ModelErrorKind))
async def test_what_may_pass_is_tried_again_and_nothing_else(
    kind: ModelErrorKind, autojump_clock: MockClock
) -> None:
    model = ScriptedModel([failing(kind), failing(kind), "yes"])
    guarded = GuardedModel(model, 100, policy=longest())
    passes = kind in PASSING
    assert isinstance(await outcome(guarded), Reply) is passes
    assert len(model.asked) == (3 if passes else 1)
    # 1 s and 2 s: the pauses double.
    assert trio.current_time() == pytest.approx(3.0 if passes else 0.0)


@pytest.mark.parametrize("after_s", [0.0, 0.25, 1.0, 7.0, 30.0])
async def test_no_pause_is_shorter_than_what_the_provider_asks_for(
    after_s: float, autojump_clock: MockClock
) -> None:
    model = ScriptedModel([failing(K.OVERLOADED, after_s), "yes"])
    guarded = GuardedModel(model, 100, policy=longest())
    assert isinstance(await outcome(guarded), Reply)
    assert trio.current_time() == pytest.approx(max(1.0, after_s))


async def test_a_long_wait_is_not_sat_out_and_told_to_all_who_come_meanwhile(
    autojump_clock: MockClock,
) -> None:
    model = ScriptedModel([failing(K.RATE_LIMITED, 3_600.0), "yes"])
    guarded = GuardedModel(model, 100, rates(), policy=longest())
    first = await outcome(guarded)
    assert isinstance(first, ModelError)
    assert trio.current_time() == 0
    await trio.sleep(600)
    again = await outcome(guarded)
    assert isinstance(again, ModelError)
    assert (again.kind, again.after_s) == (K.RATE_LIMITED, pytest.approx(3_000))
    assert "3000 s" in str(again)
    assert (len(model.asked), trio.current_time()) == (1, 600), "nobody was asked, nobody waited"
    await trio.sleep(2_990)
    assert isinstance(await outcome(guarded), Reply)
    assert trio.current_time() == pytest.approx(3_600), "what is short is waited for"


async def test_who_cannot_wait_for_the_next_attempt_has_the_error_at_once(
    autojump_clock: MockClock,
) -> None:
    guarded = GuardedModel(ScriptedModel([failing(K.UNAVAILABLE, 20.0)]), 100, policy=longest())
    with trio.fail_after(10.0):
        assert isinstance(await outcome(guarded), ModelError)
    assert trio.current_time() == 0


async def test_retries_have_a_budget_of_their_own(autojump_clock: MockClock) -> None:
    model = ScriptedModel([failing(K.UNAVAILABLE)])
    guarded = GuardedModel(model, 100, policy=longest())
    for _ in range(100):
        await outcome(guarded)
    assert len(model.asked) <= 100 + 10 + 10, "a burst of ten, and a tenth of the questions"


# The gate


@pytest.mark.parametrize(("after_s", "opens_at"), [(12.0, 12.0), (None, 1.0)])
async def test_too_many_requests_closes_the_gate_for_all(
    after_s: float | None, opens_at: float, autojump_clock: MockClock
) -> None:
    limiter = rates()
    first = GuardedModel(
        ScriptedModel([failing(K.RATE_LIMITED, after_s)]), 100, limiter, policy=policy(1)
    )
    other = GuardedModel(ScriptedModel(["yes"]), 100, limiter, policy=policy(1))
    await outcome(first)
    ended: list[float] = []

    async def ask() -> None:
        await other.ask(PROMPT)
        ended.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert ended == [pytest.approx(opens_at)] * 5


async def test_overloaded_closes_the_gate_only_where_it_says_for_how_long(
    autojump_clock: MockClock,
) -> None:
    for after_s, opens_at in ((None, 0.0), (8.0, 8.0)):
        began = trio.current_time()
        model = ScriptedModel([failing(K.OVERLOADED, after_s), "yes"])
        guarded = GuardedModel(model, 100, rates(), policy=policy(1))
        await outcome(guarded)
        await guarded.ask(PROMPT)
        assert trio.current_time() - began == pytest.approx(opens_at)


async def test_what_the_headers_say_is_left_slows_us_down(autojump_clock: MockClock) -> None:
    spent = Reply("yes", "m", PAID, allowances=(Allowance("requests", 0, 9.0),))
    guarded = GuardedModel(ScriptedModel([spent, "yes"]), 100, rates())
    await guarded.ask(PROMPT)
    await guarded.ask(PROMPT)
    assert trio.current_time() == pytest.approx(9.0)


async def test_tokens_are_taken_as_estimated_and_settled_as_used(
    autojump_clock: MockClock,
) -> None:
    limiter = rates(tokens=Rate(1.0, 1_000.0))
    guarded = GuardedModel(ScriptedModel(["yes"]), 500, limiter)
    await guarded.ask(PROMPT)
    assert limiter.level("tokens") == pytest.approx(1_000 - 110)


@pytest.mark.parametrize(
    ("kind", "requests", "tokens"),
    # Refused at the door: no tokens. Told of none: they may have been counted all the same.
    [(K.RATE_LIMITED, 9, 1_000), (K.OVERLOADED, 9, 1_000), (K.TIMEOUT, 9, 496)],
)
async def test_failed_attempts_settle_too(
    kind: ModelErrorKind, requests: float, tokens: float, autojump_clock: MockClock
) -> None:
    limiter = rates(requests=Rate(0.001, 10.0), tokens=Rate(0.001, 1_000.0))
    guarded = GuardedModel(ScriptedModel([failing(kind)]), 500, limiter, policy=policy(1))
    await outcome(guarded)
    assert limiter.level("requests") == pytest.approx(requests)
    assert limiter.level("tokens") == pytest.approx(tokens, abs=1)


async def test_a_question_that_the_rates_never_allow_is_an_error_and_no_defect(
    autojump_clock: MockClock,
) -> None:
    model = ScriptedModel(["yes"])
    guarded = GuardedModel(model, 5_000, rates(tokens=Rate(1.0, 1_000.0)), policy=longest())
    error = await outcome(guarded)
    assert isinstance(error, ModelError)
    assert (error.kind, model.asked, trio.current_time()) == (K.TOO_LARGE, [], 0)


# The circuit

AGAINST = {K.OVERLOADED, K.UNAVAILABLE, K.TIMEOUT, K.CUT_OFF}


@pytest.mark.parametrize("kind", list(ModelErrorKind))
async def test_only_what_speaks_against_the_service_opens_the_circuit(
    kind: ModelErrorKind, autojump_clock: MockClock
) -> None:
    breaker = circuit("m", failures=3)
    guarded = GuardedModel(ScriptedModel([failing(kind)]), 100, breaker=breaker, policy=policy(1))
    for _ in range(6):
        await outcome(guarded)
        await trio.sleep(NO_WORD_S)
    assert (breaker.state is CircuitState.OPEN) is (kind in AGAINST)


async def test_nobody_is_asked_and_nothing_taken_or_told_while_the_circuit_is_open(
    autojump_clock: MockClock,
) -> None:
    calls: list[Call] = []
    limiter = rates(requests=Rate(0.001, 10.0), tokens=Rate(0.001, 100_000.0))
    model = ScriptedModel([failing(K.UNAVAILABLE)])
    guarded = GuardedModel(
        model, 100, limiter, breaker=circuit("m", failures=2, open_s=30.0), policy=longest(),
        on_call=calls.append,
    )  # fmt: skip
    await outcome(guarded)
    assert len(model.asked) == 2, "the third attempt met an open circuit"
    level = limiter.level("requests")
    with capture_logs() as logs:
        error = await outcome(guarded)
    assert isinstance(error, ModelError)
    assert error.kind is K.UNAVAILABLE
    assert error.after_s == pytest.approx(28.0)
    assert len(model.asked) == len(calls) == 2, "what was not made is no call"
    assert limiter.level("requests") == pytest.approx(level, abs=0.1)
    assert [entry["event"] for entry in logs] == ["model.failed"]


async def test_cancellation_says_nothing_of_the_service(autojump_clock: MockClock) -> None:
    breaker, concurrency = circuit("m", failures=1), AdaptiveLimit(Aimd(4, ceiling=4))
    calls: list[Call] = []
    guarded = GuardedModel(
        ScriptedModel([None]), 100, rates(), concurrency, breaker, policy=longest(),
        on_call=calls.append,
    )  # fmt: skip
    for _ in range(20):
        with trio.move_on_after(5.0):
            await guarded.ask(PROMPT)
    assert (breaker.state, breaker.neutral, breaker.failed) == (CircuitState.CLOSED, 20, 0)
    assert concurrency.rule.limit == 4
    assert [(call.failure, call.usage) for call in calls] == [("cancelled", Usage())] * 20
    guarded.model = ScriptedModel(["yes"])
    assert isinstance(await outcome(guarded), Reply)


# What it cost


async def test_what_failed_attempts_cost_is_told_with_the_reply(
    autojump_clock: MockClock,
) -> None:
    lost = Usage(70, 1, 0, 0.5)
    calls: list[Call] = []
    model = ScriptedModel([failing(K.CUT_OFF, usage=lost), failing(K.MALFORMED, usage=lost), "yes"])
    guarded = GuardedModel(model, 100, policy=longest(), on_call=calls.append)
    reply = await guarded.ask(PROMPT)
    assert reply.usage == lost + lost + PAID == guarded.spent
    assert [call.usage for call in calls] == [lost, lost, PAID]
    assert [call.failure for call in calls] == ["cut_off", "malformed", ""]


async def test_what_all_attempts_cost_is_told_with_the_last_error(
    autojump_clock: MockClock,
) -> None:
    lost = Usage(70, 1, 0, 0.5)
    model = ScriptedModel([failing(K.CUT_OFF, usage=lost), failing(K.TRUNCATED, usage=PAID)])
    guarded = GuardedModel(model, 100, policy=longest())
    for turn in (1, 2):
        error = await outcome(guarded)
        assert isinstance(error, ModelError)
        assert error.usage == (lost + PAID if turn == 1 else PAID), "and nothing twice"
    assert guarded.spent == lost + PAID + PAID


# Against the real server: so many requests, no more, and the next question is answered


@asynccontextmanager
async def behind_guards(
    kind: str, *, stream: bool = False, timeout_s: float = 5.0, **more: Any
) -> AsyncGenerator[tuple[GuardedModel, FaultServer]]:
    made: Callable[..., Any] = {"anthropic": AnthropicProtocol, "openai": OpenAiProtocol}[kind]
    protocol = made("judge-1", Prices(3.0, 15.0, 0.3))
    async with fault_server() as server, open_http(HttpLimits(largest_body_bytes=200_000)) as http:
        url = server.url + ("/v1" if kind == "openai" else "")
        wire = HttpWire(http, url, protocol.secret_headers, None, timeout_s)
        model = HttpModel("judge", protocol, wire, lambda: datetime.now(UTC), timeout_s, stream)
        tried = replace(policy(3, 0.01), longest_delay_s=0.02)
        yield GuardedModel(model, 500, **{"policy": tried, **more}), server


@both
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("fault", "expected", "requests"),
    [
        (Status(429, "rate_limit_error", (("retry-after", "0.01"),)), K.RATE_LIMITED, 3),
        (Status(429, "rate_limit_error", (("retry-after-ms", "10"),)), K.RATE_LIMITED, 3),
        (Status(429, "rate_limit_error", (("retry-after", "3600"),)), K.RATE_LIMITED, 1),
        (Status(429, "insufficient_quota"), K.UNAUTHORIZED, 1),
        (Status(529, "overloaded_error"), K.OVERLOADED, 3),
        (Status(500), K.UNAVAILABLE, 3),
        (Status(502, body=b"<html>"), K.UNAVAILABLE, 3),
        (Status(503, "?"), K.OVERLOADED, 3),
        (Status(504, "?"), K.TIMEOUT, 3),
        (Status(401, "authentication_error"), K.UNAUTHORIZED, 1),
        (Status(400, "invalid_request_error"), K.BAD_REQUEST, 1),
        (Status(404, "not_found_error"), K.BAD_REQUEST, 1),
        (Status(413, "request_too_large"), K.TOO_LARGE, 1),
        (Disconnect(), K.CUT_OFF, 3),
        (Cut(3), K.CUT_OFF, 3),
        (Hang(), K.TIMEOUT, 3),
        (Stuck(2), K.TIMEOUT, 3),
        (Slow(0.02), K.TIMEOUT, 3),
        (Garbage(), K.MALFORMED, 3),
        (Huge(), K.ANSWER_TOO_LARGE, 1),
        (Raw(b"not json"), K.MALFORMED, 3),
        (Raw(b"data: {\n\n", "text/event-stream"), K.MALFORMED, 3),
        (Raw(b"", "text/event-stream"), K.CUT_OFF, 3),
        (Raw(b"<html>", "text/html"), K.MALFORMED, 3),
        (Well(stop="refusal"), K.REFUSED, 1),
    ],
    ids=repr,
)
async def test_each_failure_is_asked_about_so_often_and_then_over(
    kind: str,
    stream: bool,  # noqa: FBT001 - a parameter of pytest
    fault: Fault,
    expected: ModelErrorKind,
    requests: int,
) -> None:
    async with behind_guards(kind, stream=stream, timeout_s=0.15) as (guarded, server):
        server.always = fault
        error = await outcome(guarded)
        assert isinstance(error, ModelError)
        assert error.kind is expected
        assert len(server.requests) == requests
    # One bad answer is survived, where it may pass.
    async with behind_guards(kind, stream=stream, timeout_s=0.15) as (guarded, server):
        server.faults = [fault]
        found = await outcome(guarded)
        if requests == 1:
            assert isinstance(found, ModelError)
        else:
            assert isinstance(found, Reply)
            assert json.loads(found.text) == VERDICT
            assert len(server.requests) == 2


@both
async def test_a_refused_connection_is_no_answer(kind: str) -> None:
    async with behind_guards(kind) as (guarded, server):
        with trio.socket.socket() as taken:
            await taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
            inner = guarded.model
            assert isinstance(inner, HttpModel)
            assert isinstance(inner.wire, HttpWire)
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            guarded.model = replace(inner, wire=replace(inner.wire, base_url=url))
            error = await outcome(guarded)
        assert isinstance(error, ModelError)
        assert error.kind is K.UNAVAILABLE
        assert not server.requests


@both
async def test_a_date_is_waited_for(kind: str) -> None:
    """Whole seconds are all that a date has, so that it is the server's clock that counts."""
    now = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    headers = (
        ("date", format_datetime(now, usegmt=True)),
        ("retry-after", format_datetime(now + timedelta(seconds=1), usegmt=True)),
    )
    async with behind_guards(kind) as (guarded, server):
        server.faults = [Status(429, "rate_limit_error", headers)]
        began = trio.current_time()
        assert isinstance(await outcome(guarded), Reply)
        assert trio.current_time() - began >= 1.0
        assert len(server.requests) == 2


async def test_what_a_cut_stream_had_told_of_its_cost_is_counted() -> None:
    async with behind_guards("anthropic", stream=True) as (guarded, server):
        server.faults = [Cut(4), StreamError("overloaded_error")]
        reply = await guarded.ask(PROMPT)
    # Twice the question and a token of the answer, and then all of it.
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (3_600, 102)
    assert reply.usage == guarded.spent
    assert reply.usage.cost_usd == pytest.approx((3 * (3_000 + 60) + 102 * 15) / 1e6)


async def test_a_cancelled_question_leaves_nothing_behind_at_the_server() -> None:
    breaker = circuit("m", failures=1)
    async with behind_guards("openai", breaker=breaker) as (guarded, server):
        server.always = Hang()
        with trio.move_on_after(0.1):
            await guarded.ask(PROMPT)
        server.always = Well()
        assert isinstance(await outcome(guarded), Reply)
        assert (breaker.neutral, breaker.failed) == (1, 0)
        assert server.open == 1, "the cancelled connection is closed"


async def test_the_server_sees_as_many_at_once_as_the_limit_allows() -> None:
    concurrency = AdaptiveLimit(Aimd(7, ceiling=7))
    async with behind_guards("anthropic", concurrency=concurrency) as (guarded, server):
        server.always = Together(7)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(guarded.ask, PROMPT)
        assert server.most_open == 7
        assert len(server.requests) == 20


async def test_no_room_lowers_the_limit_and_other_failures_do_not() -> None:
    for fault, lower in ((Status(429, "rate_limit_error"), True), (Status(500), False)):
        concurrency = AdaptiveLimit(Aimd(8, ceiling=8))
        options = {"concurrency": concurrency, "policy": policy(1)}
        async with behind_guards("openai", **options) as (guarded, server):
            server.always = fault
            await outcome(guarded)
            assert (concurrency.rule.limit < 8) is lower
