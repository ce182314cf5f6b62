"""A shut gate holds wherever a question stands, and each attempt is settled however it ends."""

from datetime import UTC, datetime

import pytest
import trio
from trio.testing import MockClock

from custosd.adapters.memory_spends import MemorySpends
from custosd.adapters.models.guarded import Call, GuardedModel, circuit, policy
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
from custosd.core.money import Budgets, NoMoney, Reservation
from custosd.core.transcript import Usage
from custosd.flow.adaptive import AdaptiveLimit, Aimd
from custosd.flow.breaker import CircuitState
from custosd.flow.rate_limit import Rate, RateLimiter
from custosd.services.purse import Purse

K = ModelErrorKind
PROMPT = Prompt("Judge.", (Turn("user", "data"),), {"type": "object"}, "verdict", about="ada")


def rates(**rate: Rate) -> RateLimiter:
    wide = Rate(1_000.0, 1_000_000.0)
    return RateLimiter({"requests": wide, "tokens": wide, **rate})


def one_at_a_time(most: float = 1.0) -> AdaptiveLimit[Aimd]:
    return AdaptiveLimit(Aimd(most, ceiling=most))


def purse(fleet_day_usd: float = 0.0) -> Purse:
    limits = Budgets(fleet_day_usd=fleet_day_usd)
    return Purse(MemorySpends(), lambda: datetime(2026, 3, 1, 12, tzinfo=UTC), limits, wait_s=60.0)


class Closing(Model):
    """Says after 1 s that there were too many requests, so often; then it answers."""

    def __init__(self, after_s: float, refusals: int) -> None:
        self.asked_at: list[float] = []
        self.after_s = after_s
        self.refusals = refusals

    @property
    def name(self) -> str:
        return "closing"

    async def ask(self, prompt: Prompt) -> Reply:
        self.asked_at.append(trio.current_time())
        refused = len(self.asked_at) <= self.refusals
        await trio.sleep(1.0)
        if refused:
            raise ModelError(K.RATE_LIMITED, "no", after_s=self.after_s)
        return Reply("yes", "m", Usage(10, 1, 0, 0.001))


async def ask_all(guarded: GuardedModel, count: int) -> list[tuple[float, Reply | ModelError]]:
    """The ends of so many questions at once, and when each was."""
    ends: list[tuple[float, Reply | ModelError]] = []

    async def ask() -> None:
        try:
            end: Reply | ModelError = await guarded.ask(PROMPT)
        except ModelError as error:
            end = error
        ends.append((trio.current_time(), end))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(ask)
    return ends


async def test_who_waits_for_a_slot_asks_nothing_once_the_gate_is_shut(
    autojump_clock: MockClock,
) -> None:
    model = Closing(3_600.0, 40)
    limiter = rates(requests=Rate(1e-6, 1_000.0))
    concurrency = one_at_a_time(5.0)
    guarded = GuardedModel(model, 100, limiter, concurrency, policy=policy())
    ends = await ask_all(guarded, 40)
    assert model.asked_at == [0.0] * 5
    assert [at for at, _ in ends] == [1.0] * 40, "told at once"
    assert all(isinstance(end, ModelError) and end.kind is K.RATE_LIMITED for _, end in ends)
    assert limiter.level("requests") == pytest.approx(995), "given back for whom nobody was asked"
    assert concurrency.rejected == 5, "who asked nothing was not rejected"


async def test_a_short_wait_is_sat_out_by_whoever_is_inside(autojump_clock: MockClock) -> None:
    model = Closing(12.0, 5)
    guarded = GuardedModel(model, 100, rates(), one_at_a_time(5.0), policy=policy())
    ends = await ask_all(guarded, 20)
    assert all(isinstance(end, Reply) for _, end in ends)
    assert model.asked_at[:5] == [0.0] * 5
    assert min(model.asked_at[5:]) >= 13.0, "nobody asks while the gate is shut"


async def test_who_waits_for_money_asks_nothing_once_the_gate_is_shut(
    autojump_clock: MockClock,
) -> None:
    free = Till("m", Prices(3.0, 15.0), 1_000, purse())
    money = purse(fleet_day_usd=free.estimate_usd(PROMPT) * 1.5)
    model = Closing(3_600.0, 40)
    till = Till("m", Prices(3.0, 15.0), 1_000, money)
    guarded = GuardedModel(model, 1_000, rates(), till=till, policy=policy())
    ends = await ask_all(guarded, 10)
    assert model.asked_at == [0.0], "there is money for one at a time"
    assert [at for at, _ in ends] == [1.0] * 10
    assert money.shown().own_usd == 0.0, "what nobody was asked for costs nothing"


async def test_who_waits_for_the_rates_is_told_when_the_gate_shuts_for_long(
    autojump_clock: MockClock,
) -> None:
    model = Closing(3_600.0, 40)
    guarded = GuardedModel(model, 100, rates(requests=Rate(0.1, 1.0)), policy=policy())
    ends = await ask_all(guarded, 3)
    assert [at for at, _ in ends] == [1.0] * 3
    for _, end in ends[1:]:
        assert isinstance(end, ModelError)
        assert (end.kind, end.after_s) == (K.RATE_LIMITED, pytest.approx(3_600))


async def test_the_gate_is_shut_for_another_model_of_the_provider_too(
    autojump_clock: MockClock,
) -> None:
    limiter = rates()
    await ask_all(GuardedModel(Closing(3_600.0, 40), 100, limiter, policy=policy()), 1)
    other = ScriptedModel(["yes"])
    ((at, end),) = await ask_all(GuardedModel(other, 100, limiter, policy=policy()), 1)
    assert (at, other.asked) == (1.0, [])
    assert isinstance(end, ModelError)
    assert end.kind is K.RATE_LIMITED


async def test_who_is_cancelled_before_anybody_was_asked_gives_its_share_back(
    autojump_clock: MockClock,
) -> None:
    limiter = rates(requests=Rate(1e-6, 1_000.0), tokens=Rate(1e-6, 100_000.0))
    calls: list[Call] = []
    guarded = GuardedModel(
        ScriptedModel([None]), 100, limiter, one_at_a_time(), on_call=calls.append
    )
    with trio.move_on_after(5.0):
        await ask_all(guarded, 50)
    assert limiter.level("requests") == pytest.approx(999)
    assert limiter.level("tokens") == pytest.approx(100_000 - 104, abs=1)
    assert len(calls) == 1, "and is no call"


async def test_who_is_cancelled_once_it_was_asked_is_accounted_for_as_it_is_paid(
    autojump_clock: MockClock,
) -> None:
    money = purse()
    till = Till("m", Prices(3.0, 15.0), 1_000, money)
    calls: list[Call] = []
    guarded = GuardedModel(ScriptedModel([None], "m"), 1_000, till=till, on_call=calls.append)
    with trio.move_on_after(5.0):
        await guarded.ask(PROMPT)
    cost = Usage(cost_usd=till.estimate_usd(PROMPT))
    assert calls == [Call("m", cost, 5.0, "cancelled")]
    assert guarded.spent == cost
    assert money.spent_usd["m"] == pytest.approx(cost.cost_usd)


async def test_who_is_broken_off_by_a_defect_is_accounted_for_too() -> None:
    def broken(_: Prompt) -> str:
        raise ZeroDivisionError

    till = Till("m", Prices(3.0, 15.0), 1_000, purse())
    calls: list[Call] = []
    guarded = GuardedModel(
        ScriptedModel(broken, "m"), 1_000, till=till, policy=policy(1), on_call=calls.append
    )
    with pytest.raises(ZeroDivisionError):
        await guarded.ask(PROMPT)
    assert [(call.failure, call.usage.cost_usd) for call in calls] == [
        ("defect", till.estimate_usd(PROMPT))
    ]


class Watched(Purse):
    """Counts what is asked of it."""

    reserved = 0

    async def reserve(
        self, agent: AgentId, model: str, estimate_usd: float
    ) -> Reservation | NoMoney:
        self.reserved += 1
        return await super().reserve(agent, model, estimate_usd)


async def test_an_open_circuit_is_told_before_any_wait_and_any_money(
    autojump_clock: MockClock,
) -> None:
    money = Watched(MemorySpends(), lambda: datetime(2026, 3, 1, 12, tzinfo=UTC), Budgets())
    breaker = circuit("m", failures=1, open_s=30.0)
    model = ScriptedModel([ModelError(K.UNAVAILABLE, "down"), "yes"], delay_s=1.0)
    till = Till("m", Prices(3.0, 15.0), 1_000, money)
    slow = rates(requests=Rate(0.1, 2.0))
    guarded = GuardedModel(model, 1_000, slow, one_at_a_time(), breaker, till, policy(1))
    await ask_all(guarded, 2)
    assert (len(model.asked), money.reserved) == (1, 1), "the second waited for the slot"
    assert slow.take_nowait(), "now the rates would have to be waited for"
    ends = await ask_all(guarded, 5)
    assert [at for at, _ in ends] == [1.0] * 5
    assert money.reserved == 1
    for _, end in ends:
        assert isinstance(end, ModelError)
        assert (end.kind, end.after_s) == (K.UNAVAILABLE, 30.0)
    await trio.sleep(30.0)
    ((_, end),) = await ask_all(guarded, 1)
    assert isinstance(end, Reply), "a look takes no probe away"
    assert breaker.state is CircuitState.CLOSED
