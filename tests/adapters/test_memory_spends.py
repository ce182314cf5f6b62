"""The store of money in memory keeps the contract."""

import pytest
from tests.contracts.spend_contract import SpendContract

from custosd.adapters.memory_spends import MemorySpends


class TestMemorySpends(SpendContract):
    @pytest.fixture
    def store(self) -> MemorySpends:
        return MemorySpends()
