"""The store in memory keeps the contract, and fails when it is told to."""

import pytest
import trio
from tests.contracts import store_values as some
from tests.contracts.store_contract import StoreContract

from custosd.adapters.memory import MemoryStore
from custosd.core.errors import StoreUnavailable


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()


async def test_a_store_that_is_away_does_nothing_until_it_is_back() -> None:
    store = MemoryStore()
    store.fail_with(StoreUnavailable("gone"))
    with pytest.raises(StoreUnavailable):
        await store.save_progress([some.progress(some.run())])
    with pytest.raises(StoreUnavailable):
        await store.restore()
    store.fail_with(None)
    assert (await store.restore()).agents == ()


async def test_an_answer_may_be_lost_after_the_work() -> None:
    store = MemoryStore()
    store.fail_with(StoreUnavailable("broke after the commit"), after_work=True)
    with pytest.raises(StoreUnavailable):
        await store.save_progress([some.progress(some.run())])
    store.fail_with(None)
    assert len((await store.restore()).agents) == 1


async def test_a_cancelled_call_has_done_nothing() -> None:
    store = MemoryStore()
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.save_progress([some.progress(some.run())])
    assert scope.cancelled_caught
    assert (await store.restore()).agents == ()
