"""What is kept of the fleet as a whole, in memory: keeps the contract, and lets claims run out."""

import pytest
import trio.testing
from tests.contracts.coordination_contract import A, B, CoordinationContract, intent

from custosd.adapters.memory_coordination import MemoryCoordination
from custosd.core.errors import StoreUnavailable


class TestMemoryCoordination(CoordinationContract):
    @pytest.fixture
    def store(self) -> MemoryCoordination:
        return MemoryCoordination()


async def test_a_claim_runs_out_by_itself(autojump_clock: trio.testing.MockClock) -> None:
    store = MemoryCoordination()
    await store.take_claim(intent(A, "a.py"), 10.0)
    autojump_clock.jump(9.0)
    assert (await store.take_claim(intent(B, "a.py"), 10.0)).claim is None
    autojump_clock.jump(1.0)
    assert await store.claims(9) == ()
    assert (await store.take_claim(intent(B, "a.py"), 10.0)).claim is not None


async def test_a_store_that_is_away_says_so() -> None:
    store = MemoryCoordination()
    store.fail_with(StoreUnavailable("gone"))
    with pytest.raises(StoreUnavailable):
        await store.claims(9)
