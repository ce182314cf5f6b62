import math
import traceback
from collections.abc import Callable
from functools import partial

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.cancelling import cancel_at_every_checkpoint

from custosd.flow.retry import FailedAttempt, RetryBudget, RetryPolicy, retry, steady


class Flaky:
    """Fails so many times, each after a second, then returns None."""

    def __init__(self, failures: int, make: Callable[[int], Exception] = OSError) -> None:
        self.began_at: list[float] = []
        self._failures = failures
        self._make = make

    async def __call__(self) -> None:
        self.began_at.append(trio.current_time())
        await trio.sleep(1)
        if len(self.began_at) <= self._failures:
            raise self._make(len(self.began_at))


def policy(attempts: int = 5, *, budget: RetryBudget | None = None, **more) -> RetryPolicy:
    more = {"random": lambda: 1.0, **more}
    return RetryPolicy(attempts, 1.0, 4.0, budget, **more)


async def test_it_tries_again_after_growing_pauses_until_it_gets_a_result_and_none_is_one(
    autojump_clock: trio.testing.MockClock,
):
    fn, told = Flaky(4), list[FailedAttempt]()
    assert await retry(fn, policy(), on_failure=told.append) is None
    assert fn.began_at == [0, 2, 5, 10, 15]
    assert [(f.attempt, str(f.error), f.pause_s) for f in told] == [
        (1, "1", 1),
        (2, "2", 2),
        (3, "3", 4),
        (4, "4", 4),
    ]


async def test_the_last_error_goes_out_as_it_was_raised_and_tells_of_no_other(
    autojump_clock: trio.testing.MockClock,
):
    fn, told = Flaky(9), list[FailedAttempt]()
    with pytest.raises(OSError, match=r"^3$") as raised:
        await retry(fn, policy(3), on_failure=told.append)
    assert told[-1].error is raised.value
    assert told[-1].pause_s is None
    assert raised.value.__context__ is None
    frames = [f.name for f in traceback.extract_tb(raised.value.__traceback__)]
    assert frames[1:] == ["retry", "__call__"]


async def test_what_may_not_pass_by_itself_is_not_tried_again(
    autojump_clock: trio.testing.MockClock,
):
    fn = Flaky(2, lambda attempt: OSError(attempt) if attempt == 1 else ValueError(attempt))
    with pytest.raises(ValueError, match="2"):
        await retry(fn, policy(retry_on=lambda error: isinstance(error, OSError)))


@pytest.mark.parametrize(("asked_s", "began_at"), [(None, [0, 2]), (0.2, [0, 2]), (30, [0, 31])])
async def test_what_the_other_side_asked_for_is_the_least_pause(
    autojump_clock: trio.testing.MockClock, asked_s: float | None, began_at: list[float]
):
    fn = Flaky(1)
    await retry(fn, policy(after=lambda _: asked_s))
    assert fn.began_at == began_at


async def test_a_pause_that_is_asked_to_be_endless_is_not_sat_out(
    autojump_clock: trio.testing.MockClock,
):
    with pytest.raises(OSError, match="1"):
        await retry(Flaky(1), policy(after=lambda _: 1e9))
    assert trio.current_time() == 1


async def test_no_pause_ends_at_or_after_the_callers_deadline(
    autojump_clock: trio.testing.MockClock,
):
    """The error comes out while there is time left, instead of a cancellation without one."""
    fn = Flaky(9)
    with trio.fail_after(5), pytest.raises(OSError, match="2"):
        await retry(fn, policy())
    assert trio.current_time() == 3


async def test_cancellation_is_no_failure(autojump_clock: trio.testing.MockClock):
    fn, told, budget = Flaky(0), list[FailedAttempt](), RetryBudget()
    with trio.move_on_after(0.5) as scope:
        await retry(fn, policy(budget=budget), on_failure=told.append)
    assert scope.cancelled_caught
    assert (told, fn.began_at, budget.granted) == ([], [0], 0)


async def test_a_budget_that_is_used_up_lets_the_error_out_at_once(
    autojump_clock: trio.testing.MockClock,
):
    budget = RetryBudget(ratio=0.1, burst=2)
    fn = Flaky(9)
    with pytest.raises(OSError, match="3"):
        await retry(fn, policy(budget=budget))
    assert (budget.first_attempts, budget.granted, budget.refused) == (1, 2, 1)


async def test_ten_first_attempts_pay_for_one_more(autojump_clock: trio.testing.MockClock):
    budget = RetryBudget(ratio=0.1, burst=1)
    assert budget.withdraw()
    for _ in range(10):
        assert not budget.withdraw()
        budget.deposit()
    assert budget.withdraw()
    assert not budget.withdraw()


async def test_cancelled_anywhere_it_keeps_no_token_for_an_attempt_it_did_not_make(
    autojump_clock: trio.testing.MockClock,
):
    budget = RetryBudget(ratio=0.0, burst=1000)
    runs: list[Flaky] = []

    async def scenario() -> None:
        runs.append(Flaky(3))
        await retry(runs[-1], policy(budget=budget))

    def check() -> None:
        further = sum(max(len(fn.began_at) - 1, 0) for fn in runs)
        assert budget.granted == further
        assert budget.tokens == 1000 - further

    # 4 attempts and 3 pauses: 7 places to be cancelled at, at least.
    assert await cancel_at_every_checkpoint(scenario, check) >= 7


@given(
    st.lists(st.integers(0, 5), max_size=40),
    st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0]),
    st.integers(1, 5),
)
def test_retries_never_outgrow_the_burst_and_the_ratio_of_first_attempts(
    failures: list[int], ratio: float, burst: int
):
    budget = RetryBudget(ratio, burst)
    made = 0

    async def call(failures: int) -> None:
        nonlocal made
        fn = Flaky(failures)
        try:
            await retry(fn, policy(4, budget=budget))
        except OSError:
            assert len(fn.began_at) <= min(failures, 4)
        made += len(fn.began_at)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for count in failures:
                nursery.start_soon(call, count)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert made - len(failures) == budget.granted
    assert budget.granted <= burst + ratio * len(failures) + 1e-6


@given(st.floats(0, 1), st.integers(1, 10_000), st.floats(0, 100), st.floats(0, 100))
def test_a_pause_is_between_the_asked_one_and_the_grown_one(
    draw: float, attempt: int, first_s: float, asked_s: float
):
    longest_s = first_s * 8
    pauses = RetryPolicy(
        10_001, first_s, longest_s, after=lambda _: asked_s, random=lambda: draw
    ).pause_s
    pause_s = pauses(attempt, OSError())
    assert pause_s is not None
    assert asked_s <= pause_s <= max(asked_s, longest_s, first_s)


@pytest.mark.parametrize(
    "make",
    [
        partial(RetryPolicy, attempts=0),
        partial(RetryPolicy, first_delay_s=-1),
        partial(RetryPolicy, first_delay_s=2, longest_delay_s=1),
        partial(RetryBudget, burst=0.5),
        partial(RetryBudget, ratio=-0.1),
    ],
)
def test_what_could_never_work_is_refused(make: Callable[[], object]):
    with pytest.raises(ValueError, match=r">= |not less"):
        make()


async def test_without_a_bound_it_goes_on_for_as_long_as_it_takes(
    autojump_clock: trio.testing.MockClock,
):
    fn = Flaky(200)
    await retry(fn, RetryPolicy(math.inf, 1.0, 4.0, random=steady))
    assert len(fn.began_at) == 201
    assert fn.began_at[-1] - fn.began_at[-2] == 5.0


async def test_a_patient_policy_is_ended_by_the_deadline_and_not_by_the_error(
    autojump_clock: trio.testing.MockClock,
):
    """Who drains within a deadline is cut by it, and does not fail on the way there."""
    with trio.move_on_after(5) as scope:
        await retry(Flaky(9), policy(patient=True))
    assert scope.cancelled_caught
    assert trio.current_time() == 5


async def test_the_pause_is_made_as_the_caller_says_and_may_end_it(
    autojump_clock: trio.testing.MockClock,
):
    paused: list[float] = []

    async def pause(seconds: float) -> None:
        paused.append(seconds)
        if len(paused) == 3:
            raise InterruptedError
        await trio.sleep(seconds)

    with pytest.raises(InterruptedError):
        await retry(Flaky(9), policy(), pause=pause)
    assert paused == [1, 2, 4]
