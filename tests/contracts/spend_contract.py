"""What every `ports.SpendStore` promises; collected for each by a subclass with `store`."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from custosd.core.agents import AgentId
from custosd.core.errors import StoreRefused
from custosd.core.money import Spend, Spent
from custosd.ports import SpendStore

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
ADA, BOB = AgentId("ada"), AgentId("b\0b \ud800")


def spend(id_: str = "s1", agent: AgentId = ADA, usd: float = 0.5, at: datetime = NOON) -> Spend:
    return Spend(id_, at, agent, "sonnet", usd)


def settled(one: Spend, usd: float, after: timedelta = MINUTE) -> Spend:
    return replace(one, settled_usd=usd, settled_utc=one.at_utc + after)


class SpendContract:
    """The tests. `store` is a fresh, empty store."""

    async def test_nothing_was_spent_in_the_beginning(self, store: SpendStore) -> None:
        await store.save_spends([])
        assert await store.spent(NOON - DAY) == ()
        assert await store.fleet_day(NOON) is None
        assert await store.prune_spends(NOON) == 0

    async def test_what_was_never_settled_counts_as_it_was_reserved(
        self, store: SpendStore
    ) -> None:
        await store.save_spends([spend()])
        assert await store.spent(NOON) == (Spent(NOON, ADA, "sonnet", 0.5),)

    async def test_what_is_settled_counts_so_from_then_on(self, store: SpendStore) -> None:
        one = spend()
        await store.save_spends([one])
        await store.save_spends([settled(one, 0.125, 7 * MINUTE)])
        assert await store.spent(NOON) == (Spent(NOON + 5 * MINUTE, ADA, "sonnet", 0.125),)

    async def test_a_settled_call_stays_as_it_is_whatever_comes_late(
        self, store: SpendStore
    ) -> None:
        one = spend()
        for word in (settled(one, 0.25), one, settled(one, 4.0)):
            await store.save_spends([word])
        assert [found.usd for found in await store.spent(NOON)] == [0.25]

    async def test_writing_twice_is_writing_once(self, store: SpendStore) -> None:
        batch = [spend("s1"), spend("s2", BOB)]
        await store.save_spends(batch)
        await store.save_spends(batch)
        assert sum(found.usd for found in await store.spent(NOON)) == 1.0

    async def test_calls_are_added_up_by_agent_model_and_five_minutes(
        self, store: SpendStore
    ) -> None:
        await store.save_spends(
            [
                spend("s1", at=NOON + MINUTE),
                spend("s2", at=NOON + 4 * MINUTE),
                spend("s3", at=NOON + 5 * MINUTE),
                spend("s4", BOB),
                replace(spend("s5"), model="haiku"),
                settled(spend("s6"), 0.0),
            ]
        )
        assert set(await store.spent(NOON)) == {
            Spent(NOON, ADA, "sonnet", 1.0),
            Spent(NOON + 5 * MINUTE, ADA, "sonnet", 0.5),
            Spent(NOON, BOB, "sonnet", 0.5),
            Spent(NOON, ADA, "haiku", 0.5),
        }

    async def test_only_what_was_reserved_since_is_told_and_the_future_too(
        self, store: SpendStore
    ) -> None:
        await store.save_spends(
            [spend("old", at=NOON - DAY), spend("now"), spend("ahead", at=NOON + 400 * DAY)]
        )
        assert len(await store.spent(NOON)) == 2

    async def test_what_one_agent_cost_is_told_by_itself(self, store: SpendStore) -> None:
        await store.save_spends(
            [spend("s1"), spend("s2", BOB), spend("s3", BOB, at=NOON - DAY), spend("s4", BOB)]
        )
        assert await store.spent(NOON, BOB) == (Spent(NOON, BOB, "sonnet", 1.0),)
        assert await store.spent(NOON, AgentId("nobody")) == ()

    async def test_what_agents_spent_in_a_day_never_shrinks(self, store: SpendStore) -> None:
        for usd in (5.0, 3.0):
            await store.save_fleet_day(NOON, usd)
        await store.save_fleet_day(NOON + DAY, 1.0)
        assert await store.fleet_day(NOON.replace(hour=23)) == 5.0
        assert await store.fleet_day(NOON + DAY) == 1.0

    async def test_what_is_old_is_dropped(self, store: SpendStore) -> None:
        await store.save_spends([spend("old", at=NOON - DAY), spend("now")])
        await store.save_fleet_day(NOON - DAY, 5.0)
        assert await store.prune_spends(NOON) == 1
        assert len(await store.spent(NOON - 9 * DAY)) == 1
        assert await store.fleet_day(NOON - DAY) is None

    @pytest.mark.parametrize(
        "wrong",
        [
            spend(usd=-1.0),
            spend(usd=float("nan")),
            spend(usd=float("inf")),
            spend(""),
            replace(spend(), model=""),
            replace(spend(), settled_usd=1.0),
            spend(at=NOON.replace(tzinfo=None)),
        ],
        ids=str,
    )
    async def test_money_that_cannot_be_refuses_its_batch(
        self, store: SpendStore, wrong: Spend
    ) -> None:
        with pytest.raises(StoreRefused):
            await store.save_spends([spend("good"), wrong])
        assert await store.spent(NOON - DAY) == ()
