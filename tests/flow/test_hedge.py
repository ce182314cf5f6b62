import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.cancelling import cancel_at_every_checkpoint

from custosd.flow.hedge import hedged
from custosd.flow.retry import RetryBudget


class Service:
    """Each call takes as long as the plan says, and fails if its time is told negative."""

    def __init__(self, *plan_s: float) -> None:
        self.plan_s = list(plan_s)
        self.began_at: list[float] = []
        self.now = self.cut = 0

    async def __call__(self) -> int:
        call = len(self.began_at)
        self.began_at.append(trio.current_time())
        self.now += 1
        try:
            await trio.sleep(abs(self.plan_s[call]))
        except trio.Cancelled:
            self.cut += 1
            raise
        finally:
            self.now -= 1
        if self.plan_s[call] < 0:
            raise OSError(call)
        return call


async def test_a_first_attempt_that_answers_in_time_stays_alone(
    autojump_clock: trio.testing.MockClock,
):
    service = Service(1, 1)
    assert await hedged(service, 2, RetryBudget()) == 0
    assert service.began_at == [0]


async def test_a_slow_first_attempt_gets_company_and_the_first_success_wins(
    autojump_clock: trio.testing.MockClock,
):
    service = Service(15, 1)
    assert await hedged(service, 2, RetryBudget()) == 1
    assert (service.began_at, service.cut, service.now) == ([0, 2], 1, 0)
    assert trio.current_time() == 3


async def test_the_first_attempt_may_win_still(autojump_clock: trio.testing.MockClock):
    service = Service(3, 9)
    assert await hedged(service, 2, RetryBudget()) == 0
    assert (trio.current_time(), service.cut) == (3, 1)


async def test_no_more_than_most_are_made(autojump_clock: trio.testing.MockClock):
    service = Service(20, 20, 20, 1)
    await hedged(service, 2, RetryBudget(), most=3)
    assert service.began_at == [0, 2, 4]


async def test_without_budget_the_first_attempt_is_waited_for(
    autojump_clock: trio.testing.MockClock,
):
    budget = RetryBudget(ratio=0.05, burst=1)
    assert budget.withdraw()
    service = Service(15)
    assert await hedged(service, 2, budget) == 0
    assert budget.refused == 1


async def test_one_failure_is_told_and_the_other_attempt_decides(
    autojump_clock: trio.testing.MockClock,
):
    service, told = Service(9, -1), list[Exception]()
    assert await hedged(service, 2, RetryBudget(), on_failure=told.append) == 0
    assert [error.args for error in told] == [(1,)]


async def test_all_errors_come_out_together(autojump_clock: trio.testing.MockClock):
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="1"), OSError):
        await hedged(Service(-9, -1), 2, RetryBudget())


async def test_a_failure_is_not_made_good_by_a_further_attempt(
    autojump_clock: trio.testing.MockClock,
):
    """Also when it comes in the very moment at which the second would begin."""
    for fails_after_s in (1, 2):
        service = Service(-fails_after_s, 50)
        began_at = trio.current_time()
        with pytest.RaisesGroup(OSError):
            await hedged(service, 2.0000001 if fails_after_s == 2 else 2, RetryBudget())
        assert trio.current_time() - began_at == fails_after_s
        assert len(service.began_at) == 1


async def test_a_decision_in_the_moment_of_the_pauses_end_is_not_held_up(
    autojump_clock: trio.testing.MockClock,
):
    """Which of the two is noticed first is chance; the result may not wait either way."""
    for _ in range(20):
        began_at = trio.current_time()
        await hedged(Service(2, 50), 2, RetryBudget(ratio=1))
        assert trio.current_time() - began_at == 2


async def test_none_is_a_success(autojump_clock: trio.testing.MockClock):
    async def nothing() -> None:
        await trio.sleep(3)

    assert await hedged(nothing, 2, RetryBudget()) is None
    assert trio.current_time() == 3


async def test_an_error_in_a_losers_clean_up_is_told_and_does_not_spoil_the_result(
    autojump_clock: trio.testing.MockClock,
):
    calls, told = 0, list[Exception]()

    async def fn() -> str:
        nonlocal calls
        calls += 1
        if calls == 2:
            return "second"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise LookupError
        raise AssertionError

    assert await hedged(fn, 2, RetryBudget(), on_failure=told.append) == "second"
    assert isinstance(told[0], ExceptionGroup)


async def test_cancelled_anywhere_no_attempt_goes_on_and_none_is_counted_that_was_not_made(
    autojump_clock: trio.testing.MockClock,
):
    budget = RetryBudget(ratio=0, burst=1000)
    services: list[Service] = []

    async def scenario() -> None:
        services.append(Service(15, -1, 4))
        await hedged(services[-1], 2, budget, most=3)

    def check() -> None:
        assert services[-1].now == 0
        assert budget.granted == sum(max(len(s.began_at) - 1, 0) for s in services)

    assert await cancel_at_every_checkpoint(scenario, check) >= 6


@given(
    st.lists(st.lists(st.integers(-9, 9), min_size=3, max_size=3), max_size=20),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_a_result_is_never_later_than_the_first_attempts_and_the_budget_holds(
    plans: list[list[int]], after_s: int, burst: int
):
    budget = RetryBudget(0.05, burst)
    further = 0

    async def call(plan_s: list[int]) -> None:
        nonlocal further
        service = Service(*[s + 0.5 for s in plan_s])
        began_at = trio.current_time()
        try:
            result = await hedged(service, after_s, budget, most=3)
        except ExceptionGroup as group:
            errors = len(group.exceptions)
            assert errors == len(service.began_at)
        else:
            assert service.plan_s[result] >= 0
            if service.plan_s[0] >= 0:
                assert trio.current_time() - began_at <= service.plan_s[0]
        assert service.now == 0
        further += len(service.began_at) - 1

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for plan_s in plans:
                nursery.start_soon(call, plan_s)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert further == budget.granted <= burst + 0.05 * len(plans) + 1e-6
