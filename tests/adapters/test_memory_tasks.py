"""The fleet's tasks, in memory: keeps the contract, and fails when it is told to."""

import pytest
from tests.contracts.task_contract import ADA, Clock, TaskContract, new

from custosd.adapters.memory_tasks import MemoryTasks
from custosd.core.errors import StoreUnavailable
from custosd.core.tasks import ClaimRequest


@pytest.fixture
def clock() -> Clock:
    return Clock()


class TestMemoryTasks(TaskContract):
    @pytest.fixture
    def store(self, clock: Clock) -> MemoryTasks:
        return MemoryTasks(now_utc=clock)


async def test_a_store_that_is_away_does_nothing_until_it_is_back() -> None:
    store = MemoryTasks()
    store.fail_with(StoreUnavailable("gone"))
    with pytest.raises(StoreUnavailable):
        await store.add([new("a")], "eve")
    store.fail_with(None)
    assert not (await store.claim(ClaimRequest(ADA, 1.0))).tasks
