"""Each attempt is paid for: what it reserves, and what each end of it costs."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial

import pytest
import trio
import trio.testing
from tests.adapters.models.fault_server import (
    Cut,
    Disconnect,
    Fault,
    Hang,
    Huge,
    Raw,
    Status,
    StreamError,
    Well,
    fault_server,
)

from custosd.adapters.http_client import HttpLimits, open_http
from custosd.adapters.memory_spends import MemorySpends
from custosd.adapters.models.anthropic import AnthropicProtocol
from custosd.adapters.models.guarded import GuardedModel, circuit, policy
from custosd.adapters.models.http import HttpModel, HttpWire
from custosd.adapters.models.model import (
    Model,
    ModelError,
    ModelErrorKind,
    Prices,
    Prompt,
    Reply,
    Turn,
)
from custosd.adapters.models.scripted import ScriptedModel
from custosd.adapters.models.till import Till
from custosd.core.agents import AgentId
from custosd.core.money import Budgets
from custosd.core.transcript import Usage
from custosd.flow.breaker import CircuitState
from custosd.flow.hedge import hedged
from custosd.flow.rate_limit import Rate, RateLimiter
from custosd.flow.retry import RetryBudget
from custosd.services.purse import Purse

PRICES = Prices(3.0, 15.0)
PROMPT = Prompt("Judge.", (Turn("user", "x" * 3_000),), {"type": "object"}, "verdict", about="ada")
ADA = AgentId("ada")


def now_utc() -> datetime:
    return datetime(2026, 3, 1, 12, tzinfo=UTC)


def purse(fleet_day_usd: float = 0.0) -> Purse:
    budgets = Budgets(fleet_day_usd=fleet_day_usd)
    return Purse(MemorySpends(), now_utc, budgets, wait_s=1.0)


def till_of(of: Purse, prices: Prices = PRICES) -> Till:
    return Till("sonnet", prices, 1_000, of)


ESTIMATE_USD = till_of(purse()).estimate_usd(PROMPT)


def paid(of: Purse) -> float:
    """What the ledger holds now, settled or not."""
    return of.shown().own_usd


def test_an_estimate_is_above_what_any_answer_costs() -> None:
    """1000 tokens of text, the schema and a frame, and the longest answer there may be."""
    usual = till_of(purse()).estimate_usd(PROMPT)
    assert usual == pytest.approx(1_508 * 3e-6 + 1_000 * 15e-6, rel=0.01)
    dear = till_of(purse(), Prices(3.0, 15.0, 0.3, 3.75)).estimate_usd(PROMPT)
    assert dear == pytest.approx(1_508 * 3.75e-6 + 1_000 * 15e-6, rel=0.01)


TOO_LONG = b'{"error": {"type": "?", "message": "prompt is too long: 9 > 8"}}'

ANSWERS: list[tuple[Fault, float]] = [
    (Well(), 1_200 * 3e-6 + 100 * 15e-6),
    (Well(stop="refusal"), 1_200 * 3e-6 + 100 * 15e-6),
    (Well(stop="max_tokens"), 1_200 * 3e-6 + 100 * 15e-6),
    (Status(429), 0.0),
    (Status(529), 0.0),
    (Status(500), 0.0),
    (Status(401), 0.0),
    (Status(400), 0.0),
    (Status(413, "request_too_large"), 0.0),
    (Status(400, body=TOO_LONG), 0.0),
    (Huge(), ESTIMATE_USD),
    (Raw(b"{}"), ESTIMATE_USD),
    (Raw(b"<html>"), ESTIMATE_USD),
    (Cut(20), ESTIMATE_USD),
    (Disconnect(), ESTIMATE_USD),
]


@pytest.mark.parametrize(("fault", "cost_usd"), ANSWERS, ids=lambda value: repr(value)[:30])
async def test_what_each_end_of_a_call_costs(fault: Fault, cost_usd: float) -> None:
    await _costs(fault, cost_usd, stream=False)


@pytest.mark.parametrize("fault", [Cut(2), StreamError("overloaded_error")], ids=repr)
async def test_a_stream_that_breaks_off_costs_what_it_may_have(fault: Fault) -> None:
    await _costs(fault, ESTIMATE_USD, stream=True)


async def _costs(fault: Fault, cost_usd: float, *, stream: bool) -> None:
    money, limits = purse(), HttpLimits(largest_body_bytes=200_000)
    async with fault_server() as server, open_http(limits) as client:
        server.always = fault
        protocol = AnthropicProtocol("m", PRICES, 1_000)
        wire = HttpWire(client, server.url, protocol.secret_headers)
        model = HttpModel("sonnet", protocol, wire, now_utc, 5.0, stream)
        guarded = GuardedModel(model, 1_000, till=till_of(money), policy=policy(1))
        if isinstance(fault, Well) and not fault.stop:
            await guarded.ask(PROMPT)
        else:
            with pytest.raises(ModelError):
                await guarded.ask(PROMPT)
    assert paid(money) == pytest.approx(cost_usd)


async def test_a_call_that_is_cancelled_costs_its_estimate() -> None:
    """The provider has the question, and bills it whoever waits for the answer."""
    money = purse()
    async with fault_server() as server, open_http() as client:
        server.always = Hang()
        protocol = AnthropicProtocol("m", PRICES, 1_000)
        wire = HttpWire(client, server.url, protocol.secret_headers)
        model = HttpModel("sonnet", protocol, wire, now_utc, 30.0)
        guarded = GuardedModel(model, 1_000, till=till_of(money), policy=policy(1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guarded.ask, PROMPT)
            with trio.fail_after(10):
                while not server.requests:
                    await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
    assert paid(money) == pytest.approx(ESTIMATE_USD)
    assert money.shown().lines == ()


def scripted(
    money: Purse, *replies: Reply | ModelError | str | None, **how: object
) -> GuardedModel:
    model = ScriptedModel(replies, usage=Usage(1_000, 100, 0, 0.0045))
    return GuardedModel(model, 1_000, till=till_of(money), **how)  # type: ignore[arg-type]


async def test_each_attempt_is_paid_for(autojump_clock: trio.testing.MockClock) -> None:
    money = purse()
    lost = ModelError(ModelErrorKind.CUT_OFF, "cut")
    await scripted(money, lost, lost, "{}", policy=policy(3)).ask(PROMPT)
    assert paid(money) == pytest.approx(2 * ESTIMATE_USD + 0.0045)


async def test_a_provider_that_tells_no_usage_did_not_work_for_nothing() -> None:
    money = purse()
    await scripted(money, Reply("{}", "m", Usage())).ask(PROMPT)
    assert paid(money) == pytest.approx(ESTIMATE_USD)


async def test_each_copy_of_a_hedged_call_is_paid_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    money = purse()
    slow = GuardedModel(
        ScriptedModel(["{}"], delay_s=60, usage=Usage(1, 1, 0, 0.001)), 1_000, till=till_of(money)
    )
    quick = scripted(money, "{}")
    calls: list[Callable[[], Awaitable[Reply]]] = [
        partial(slow.ask, PROMPT), partial(quick.ask, PROMPT),
    ]  # fmt: skip
    await hedged(lambda: calls.pop(0)(), 1.0, RetryBudget())  # noqa: PLW0108 - another each time
    assert paid(money) == pytest.approx(ESTIMATE_USD + 0.0045)


async def test_without_money_nobody_is_asked_and_nothing_is_said_against_the_service() -> None:
    money = purse(fleet_day_usd=ESTIMATE_USD / 2)
    breaker = circuit("sonnet")
    limiter = RateLimiter({"requests": Rate(1.0, 1.0), "tokens": Rate(10_000.0, 10_000.0)})
    guarded = scripted(money, "{}", breaker=breaker, limiter=limiter, policy=policy(3))
    for _ in range(3):
        with pytest.raises(ModelError) as caught:
            await guarded.ask(PROMPT)
        assert caught.value.kind is ModelErrorKind.NO_MONEY
        assert "raise the limit in [money]" in str(caught.value)
    assert guarded.model.asked == []  # type: ignore[attr-defined]
    assert (breaker.state, breaker.succeeded) == (CircuitState.CLOSED, 0)


async def test_a_circuit_that_is_open_costs_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    money = purse()
    down = ModelError(ModelErrorKind.UNAVAILABLE, "down")
    guarded = scripted(money, down, breaker=circuit("sonnet", failures=1), policy=policy(1))
    for _ in range(4):
        with pytest.raises(ModelError):
            await guarded.ask(PROMPT)
    assert len(guarded.model.asked) == 1  # type: ignore[attr-defined]
    assert paid(money) == 0


async def test_calls_at_once_never_pass_the_limit(autojump_clock: trio.testing.MockClock) -> None:
    """Twenty ask at once, there is money for four at a time: the others wait, then go."""
    money = Purse(
        MemorySpends(), now_utc, Budgets(fleet_day_usd=4 * ESTIMATE_USD + 1e-6), wait_s=60.0
    )
    under_way = most = 0

    class Counted(Model):
        @property
        def name(self) -> str:
            return "sonnet"

        async def ask(self, prompt: Prompt) -> Reply:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await trio.sleep(1)
            under_way -= 1
            return Reply("{}", "m", Usage(10, 10, 0, ESTIMATE_USD / 100))

    guarded = GuardedModel(Counted(), 1_000, till=till_of(money))
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(guarded.ask, PROMPT)
    assert most == 4
    assert paid(money) == pytest.approx(20 * ESTIMATE_USD / 100)
