"""The purse: money on record before a call, whatever the store does; limits told once."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from tests.contracts import store_values as some
from tests.contracts.store_values import ADA, BOB, NOON

from custosd.adapters.memory_spends import MemorySpends
from custosd.core.agents import AgentId, AgentRef, RunId
from custosd.core.errors import StoreRefused, StoreUnavailable
from custosd.core.facts import (
    AnalysisSkipped,
    BudgetReached,
    BudgetRenewed,
    ConcernResolved,
    Entry,
    Escalated,
    Fact,
    TrajectoryAdvanced,
)
from custosd.core.money import Budgets, ModelBudget, NoMoney, Reservation, Rung, Spend
from custosd.core.transcript import Usage
from custosd.core.view import FleetView
from custosd.flow.pulse import Pulse
from custosd.services.purse import Purse

MORNING = datetime(2026, 3, 1, 8, tzinfo=UTC)
DOLLAR = Budgets(fleet_day_usd=1.0)


@dataclass
class Stage:
    """A purse at work; its wall clock goes with the virtual one."""

    budgets: Budgets = DOLLAR
    store: MemorySpends = field(default_factory=MemorySpends)
    view: FleetView = field(default_factory=FleetView)
    facts: list[Fact] = field(default_factory=list[Fact])

    def now_utc(self) -> datetime:
        return MORNING + timedelta(seconds=trio.current_time() - self._began_at)

    @asynccontextmanager
    async def purse(self, **more: float) -> AsyncGenerator[Purse]:
        self._began_at = getattr(self, "_began_at", trio.current_time())
        purse = Purse(self.store, self.now_utc, self.budgets, **more)
        await purse.load()
        facts, told = trio.open_memory_channel[Fact](1_000)
        async with trio.open_nursery() as nursery:
            pulse = Pulse("money", 0.0)
            await nursery.start(
                lambda task_status: purse.keep(
                    lambda: self.view, facts, pulse, task_status=task_status
                )
            )
            try:
                yield purse
            finally:
                nursery.cancel_scope.cancel()
        while True:
            try:
                self.facts.append(told.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                break

    def grow(self, ref: AgentRef, cost_usd: float) -> None:
        digest = replace(some.digest(), usage=Usage(1, 1, 0, cost_usd))
        fact = TrajectoryAdvanced(ref, digest, 1, NOON)
        self.view = self.view.after([Entry(f"e{self.view.version}", NOON, fact)])


async def given(purse: Purse, usd: float, agent: AgentId = ADA.agent) -> Reservation:
    found = await purse.reserve(agent, "sonnet", usd)
    assert isinstance(found, Reservation), found
    return found


async def test_a_reservation_is_stored_before_its_call_is_made(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    async with stage.purse() as purse:
        one = await given(purse, 0.25)
        assert stage.store.rows == (Spend(one.id, MORNING, ADA.agent, "sonnet", 0.25),)
        assert trio.current_time() == 0


async def test_what_a_call_cost_is_stored_soon_after(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    async with stage.purse() as purse:
        purse.settle(await given(purse, 0.25), 0.125)
        await trio.testing.wait_all_tasks_blocked()
        assert [row.settled_usd for row in stage.store.rows] == [0.125]


async def test_a_crash_between_leaves_the_estimate_and_the_next_start_knows_all(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    async with stage.purse() as purse:
        purse.settle(await given(purse, 0.5), 0.25)
        await given(purse, 0.5)
        await trio.sleep(1)
    async with stage.purse() as again:
        assert [line.spent_usd for line in again.lines()] == [0.75]
        assert isinstance(await again.reserve(ADA.agent, "sonnet", 0.5), NoMoney)
        await given(again, 0.25)


async def test_a_store_that_is_away_stops_no_call_and_makes_none_free(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    async with stage.purse() as purse:
        stage.store.fail_with(StoreUnavailable("gone"))
        with capture_logs() as logs:
            purse.settle(await given(purse, 0.5), 0.5)
            began_at = trio.current_time()
            purse.settle(await given(purse, 0.25), 0.25)
            assert trio.current_time() == began_at, "known to be away: not waited for"
            assert isinstance(await purse.reserve(ADA.agent, "sonnet", 0.5), NoMoney)
            assert purse.shown().unwritten == 2
            stage.store.fail_with(None)
            await trio.sleep(30)
        assert purse.shown().unwritten == 0
    assert [log["event"] for log in logs if "store" in log["event"]] == [
        "store.lost",
        "store.returned",
    ]
    assert sorted(row.settled_usd or 0 for row in stage.store.rows) == [0.25, 0.5]


async def test_a_store_that_hangs_holds_a_call_up_for_a_moment_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Hanging(MemorySpends):
        async def save_spends(self, spends: object) -> None:
            await trio.sleep_forever()

    stage = Stage(store=Hanging())
    async with stage.purse() as purse:
        await given(purse, 0.25)
        assert trio.current_time() <= 1
        await trio.sleep(30)
        began_at = trio.current_time()
        await given(purse, 0.25)
        assert trio.current_time() == began_at, "known to be away: not waited for"


async def test_what_the_store_refuses_counts_all_the_same(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    async with stage.purse() as purse:
        stage.store.fail_with(StoreRefused("no such column"))
        with capture_logs() as logs:
            await given(purse, 0.75)
        assert "spends.refused" in [log["event"] for log in logs]
        assert isinstance(await purse.reserve(ADA.agent, "sonnet", 0.5), NoMoney)


class Picky(MemorySpends):
    """Refuses every batch that holds a spend of `refused`; counts its answers."""

    def __init__(self, *refused: AgentId) -> None:
        super().__init__()
        self.refused, self.asked = frozenset(refused), 0

    async def save_spends(self, spends: Sequence[Spend]) -> None:
        self.asked += 1
        if any(spend.agent in self.refused for spend in spends):
            raise StoreRefused("a row that no store takes")
        await super().save_spends(spends)


async def test_one_spend_that_is_refused_costs_no_other_its_place_on_record(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bad = AgentId("bad")
    stage = Stage(Budgets(fleet_day_usd=100.0), Picky(bad))
    purse = Purse(stage.store, lambda: MORNING, stage.budgets)
    agents = [AgentId(f"a{n}") for n in range(10)]
    for agent in (*agents[:7], bad, *agents[7:]):
        purse.settle(await given(purse, 1.0, agent), 1.0)
    with capture_logs() as logs:
        await purse.flush()
    assert {row.agent for row in stage.store.rows} == set(agents)
    assert [(log["event"], log["count"]) for log in logs] == [("spends.refused", 1)]
    assert purse.shown().unwritten == 0
    after = Purse(stage.store, lambda: MORNING, stage.budgets)
    await after.load()
    assert after.shown().lines[0].spent_usd == 10.0


async def test_where_the_store_refuses_them_all_it_is_not_asked_about_each() -> None:
    agents = [AgentId(f"a{n}") for n in range(1_000)]
    store = Picky(*agents)
    purse = Purse(store, lambda: MORNING, Budgets(fleet_day_usd=1e9))
    for agent in agents:
        purse.settle(await given(purse, 1.0, agent), 1.0)
    with capture_logs() as logs:
        await purse.flush()
    assert store.asked < 100
    assert sum(log["count"] for log in logs) == len(agents)


async def test_a_refused_spend_leaves_what_the_agents_spent_on_record_and_the_other_way_round(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class NoDays(MemorySpends):
        async def save_fleet_day(self, at_utc: datetime, usd: float) -> None:
            raise StoreRefused("no such table")

    for store, rows, day_usd, told in (
        (Picky(ADA.agent), [], 0.25, [1]),
        (NoDays(), [0.5], None, [0]),
    ):
        stage = Stage(store=store)
        stage.grow(ADA, 1.0)
        with capture_logs() as logs:
            async with stage.purse() as purse:
                purse.settle(await given(purse, 0.5), 0.5)
                await trio.sleep(15)
                logs.clear()
                purse.settle(await given(purse, 0.5), 0.5)
                stage.grow(ADA, 1.25)
                await trio.sleep(30)
        refused = [log["count"] for log in logs if log["event"] == "spends.refused"]
        assert refused[-1:] == told
        assert [row.counts[1] for row in store.rows][:1] == rows
        assert await store.fleet_day(stage.now_utc()) == day_usd


async def test_many_calls_at_once_are_stored_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    writes: list[int] = []

    class Counting(MemorySpends):
        async def save_spends(self, spends: object) -> None:
            writes.append(len(spends))  # type: ignore[arg-type]
            await trio.sleep(0.1)
            await super().save_spends(spends)  # type: ignore[arg-type]

    stage = Stage(store=Counting())
    async with stage.purse() as purse, trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(given, purse, 0.01)
    assert sum(writes) >= 50
    assert len(writes) <= 3


async def test_a_call_that_is_cancelled_before_it_is_made_costs_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Slow(MemorySpends):
        async def save_spends(self, spends: object) -> None:
            await trio.sleep(0.5)
            await super().save_spends(spends)  # type: ignore[arg-type]

    stage = Stage(store=Slow())
    async with stage.purse() as purse:
        with trio.move_on_after(0.1) as scope:
            await purse.reserve(ADA.agent, "sonnet", 1.0)
        assert scope.cancelled_caught
        assert purse.shown().own_usd == 0
        await given(purse, 1.0)


async def test_who_finds_no_room_only_for_what_is_under_way_waits_for_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    async with stage.purse() as purse, trio.open_nursery() as nursery:
        first = await given(purse, 0.75)

        async def settle_later() -> None:
            await trio.sleep(5)
            purse.settle(first, 0.25)

        nursery.start_soon(settle_later)
        await given(purse, 0.75)
        assert trio.current_time() == pytest.approx(5, abs=0.1)
    assert stage.facts == []


async def test_money_that_does_not_come_back_is_not_waited_for_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    async with stage.purse(wait_s=20.0) as purse:
        await given(purse, 0.75)
        refused = await purse.reserve(ADA.agent, "sonnet", 0.5)
        assert isinstance(refused, NoMoney)
        assert refused.passing
        assert trio.current_time() == pytest.approx(20, abs=1)
    assert stage.facts == [], "nothing is reached: it is only under way"


async def test_a_limit_is_told_as_facts_once_a_rung_and_a_concern_until_the_day_is_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    async with stage.purse() as purse:
        purse.settle(await given(purse, 0.5), 0.875)
        for _ in range(5):
            await purse.reserve(ADA.agent, "sonnet", 0.5)
            await trio.sleep(60)
        assert purse.rung(BOB.agent, "sonnet")[0] is Rung.RULES
        await trio.sleep(16 * 3_600)
        assert purse.rung(BOB.agent, "sonnet")[0] is Rung.AS_ASKED
    midnight = MORNING.replace(hour=0) + timedelta(days=1)
    warned, reached, raised, renewed, over = stage.facts
    assert warned == BudgetReached("fleet/day", Rung.SMALLER, 0.875, 1.0, midnight)
    assert reached == BudgetReached("fleet/day", Rung.RULES, 0.875, 1.0, midnight)
    assert isinstance(raised, Escalated)
    assert (raised.concern, raised.agent) == ("budget:fleet/day", None)
    assert "0.8750 of 1.00 USD spent" in raised.reason
    assert renewed == BudgetRenewed("fleet/day")
    assert over == ConcernResolved("budget:fleet/day", "renewed")


async def test_an_agents_limit_is_that_agents_concern(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage(Budgets(agent_day_usd=0.5))
    async with stage.purse() as purse:
        purse.settle(await given(purse, 0.5), 0.5)
        await trio.sleep(1)
    raised = [fact for fact in stage.facts if isinstance(fact, Escalated)]
    assert [(one.concern, one.agent) for one in raised] == [(f"budget:{ADA.agent}", ADA.agent)]


async def test_a_limit_that_is_still_reached_is_a_concern_after_a_restart(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    async with stage.purse() as purse:
        purse.settle(await given(purse, 0.5), 1.0)
        await trio.sleep(1)
    stage.facts.clear()
    async with stage.purse():
        await trio.sleep(1)
    assert [type(fact) for fact in stage.facts] == [BudgetReached, Escalated]


async def test_other_limits_are_taken_up_at_once(autojump_clock: trio.testing.MockClock) -> None:
    stage = Stage()
    async with stage.purse() as purse:
        purse.settle(await given(purse, 1.0), 1.0)
        purse.adopt(Budgets(fleet_day_usd=2.0))
        purse.settle(await given(purse, 1.0), 1.0)
        assert isinstance(await purse.reserve(ADA.agent, "sonnet", 0.5), NoMoney)


async def test_who_was_judged_by_another_is_told_once_an_agent_and_window(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    async with stage.purse() as purse:
        purse.settle(await given(purse, 1.0), 1.0)
        limit = (await purse.reserve(ADA.agent, "sonnet", 0.5)).limit  # type: ignore[union-attr]
        for _ in range(100):
            purse.skipped(ADA.agent, "sonnet", "rules", limit)
            purse.skipped(BOB.agent, "sonnet", "rules", limit)
            await trio.sleep(60)
        await trio.sleep(16 * 3_600)
        purse.skipped(ADA.agent, "sonnet", "rules", limit)
        await trio.sleep(1)
        assert purse.shown().skips == 201
    told = [fact for fact in stage.facts if isinstance(fact, AnalysisSkipped)]
    assert [fact.agent for fact in told] == [ADA.agent, BOB.agent, ADA.agent]
    assert told[0].limit == "fleet/day"


async def test_the_share_of_what_agents_spend_today_bounds_us(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage(Budgets(share=0.02, share_floor_usd=0.05))
    stage.grow(ADA, 500.0)
    async with stage.purse() as purse:
        await trio.sleep(11)
        # What it had cost before we saw it was of some other day.
        assert purse.shown().fleet_usd == 0
        assert isinstance(await purse.reserve(ADA.agent, "sonnet", 0.5), NoMoney)
        stage.grow(ADA, 540.0)
        stage.grow(AgentRef(BOB.agent, RunId("b")), 0.0)
        await trio.sleep(11)
        stage.grow(AgentRef(BOB.agent, RunId("b")), 10.0)
        await trio.sleep(11)
        assert purse.shown().fleet_usd == 50
        purse.settle(await given(purse, 1.0), 1.0)
        assert isinstance(await purse.reserve(ADA.agent, "sonnet", 0.5), NoMoney)
    async with stage.purse() as again:
        await trio.sleep(11)
        assert again.shown().fleet_usd == 50
        await trio.sleep(86_400)
        assert again.shown().fleet_usd == 0


async def test_without_any_cost_in_transcripts_there_is_no_share(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage(Budgets(share=0.02))
    stage.grow(ADA, 0.0)
    async with stage.purse() as purse:
        await trio.sleep(11)
        assert purse.shown().fleet_usd is None
        await given(purse, 100.0)


async def test_an_idle_purse_writes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    writes: list[object] = []

    class Counting(MemorySpends):
        async def save_spends(self, spends: object) -> None:
            writes.append(spends)

        async def save_fleet_day(self, at_utc: datetime, usd: float) -> None:
            writes.append(usd)

    stage = Stage(store=Counting())
    async with stage.purse():
        await trio.sleep(86_400)
    assert writes == []
    assert stage.facts == []


async def test_models_windows_are_shown_and_free_models_have_none(
    autojump_clock: trio.testing.MockClock,
) -> None:
    models = MappingProxyType({"sonnet": ModelBudget(1.0, 2.0), "local": ModelBudget()})
    stage = Stage(Budgets(models=models))
    async with stage.purse() as purse:
        ids = [line.limit.id for line in purse.lines()]
    assert ids == ["model/5h/sonnet", "model/week/sonnet"]
