"""What was seen on forges, in memory: keeps the contract."""

import pytest
from tests.contracts.sync_contract import SyncContract

from custosd.adapters.memory_sync import MemorySync
from custosd.core.errors import StoreUnavailable


class TestMemorySync(SyncContract):
    @pytest.fixture
    def store(self) -> MemorySync:
        return MemorySync()


async def test_a_store_that_is_away_says_so() -> None:
    store = MemorySync()
    store.fail_with(StoreUnavailable("gone"))
    with pytest.raises(StoreUnavailable):
        await store.records()
