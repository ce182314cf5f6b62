"""What is written about acts, in memory: keeps the contract, and fails when it is told to."""

from datetime import UTC, datetime, timedelta

import pytest
import trio.testing
from tests.contracts.action_contract import ActionContract, intent, leased, life

from custosd.adapters.memory_actions import EPOCH_UTC, MemoryActions
from custosd.core.errors import StoreUnavailable


class TestMemoryActions(ActionContract):
    @pytest.fixture
    def store(self) -> MemoryActions:
        return MemoryActions()


async def test_a_store_that_is_away_does_nothing_until_it_is_back() -> None:
    store = MemoryActions()
    store.fail_with(StoreUnavailable("gone"))
    with pytest.raises(StoreUnavailable):
        await store.save_lives([life()])
    with pytest.raises(StoreUnavailable):
        await store.intend_restart(intent())
    store.fail_with(None)
    assert await store.lives() == ()
    assert await store.restarts(datetime(2000, 1, 1, tzinfo=UTC)) == ()


async def test_a_cancelled_call_has_done_nothing() -> None:
    store = MemoryActions()
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.save_lives([life()])
    assert scope.cancelled_caught
    assert await store.lives() == ()


async def test_a_lease_runs_out_by_the_stores_clock(autojump_clock: trio.testing.MockClock) -> None:
    store = MemoryActions()
    first = await leased(store, "one", 10.0)
    assert first is not None
    start_s = autojump_clock.current_time()
    assert first.expires_utc == EPOCH_UTC + timedelta(seconds=start_s + 10)
    autojump_clock.jump(9.0)
    assert await leased(store, "two", 10.0) is None
    autojump_clock.jump(1.0)
    second = await leased(store, "two", 10.0)
    assert second is not None
    assert second.fence == 2
    autojump_clock.jump(11.0)
    third = await leased(store, "two", 10.0)
    assert third is not None
    assert third.fence == 3
