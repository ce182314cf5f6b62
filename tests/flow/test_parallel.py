from collections.abc import Awaitable, Callable

import outcome
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.cancelling import cancel_at_every_checkpoint

from custosd.flow.parallel import NotStarted, TooSlow, run_parallel
from custosd.flow.retry import RetryPolicy


class Tasks:
    """Makes tasks that take so long, and counts those that are under way."""

    def __init__(self) -> None:
        self.now = self.most = self.begun = 0

    def taking(
        self, takes_s: float, result: object = None, error: Exception | None = None
    ) -> Callable[[], Awaitable[object]]:
        async def task() -> object:
            self.begun += 1
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                await trio.sleep(takes_s)
            finally:
                self.now -= 1
            if error is not None:
                raise error
            return result

        return task


def told(results: list[outcome.Outcome[object]]) -> list[object]:
    return [r.value if isinstance(r, outcome.Value) else type(r.error) for r in results]


async def test_each_task_has_its_own_outcome_in_its_place_and_a_failure_is_no_empty_value(
    autojump_clock: trio.testing.MockClock,
):
    tasks = Tasks()
    results = await run_parallel(
        [
            tasks.taking(3, "a"),
            tasks.taking(1, error=KeyError("b")),
            tasks.taking(1, None),
            tasks.taking(2, []),
        ]
    )
    assert told(results) == ["a", KeyError, None, []]
    with pytest.raises(KeyError, match="b"):
        results[1].unwrap()


async def test_the_next_begins_when_one_ends_without_rounds(
    autojump_clock: trio.testing.MockClock,
):
    """In rounds of 2 it would take 9 + 9 s: each round as long as its slowest."""
    tasks = Tasks()
    durations = [9.0, 1, 1, 9]
    await run_parallel([tasks.taking(s) for s in durations], max_concurrent=2)
    assert tasks.most == 2
    assert trio.current_time() == 11


async def test_a_task_whose_time_is_up_is_too_slow_and_the_others_are_not_touched(
    autojump_clock: trio.testing.MockClock,
):
    tasks = Tasks()
    results = await run_parallel(
        [tasks.taking(5, "a"), tasks.taking(1, "b"), tasks.taking(1.9, "c")],
        max_concurrent=1,
        item_timeout_s=2,
    )
    assert told(results) == [TooSlow, "b", "c"]
    with pytest.raises(TooSlow, match=r"its 2 s"):
        results[0].unwrap()


async def test_what_had_not_begun_when_all_time_was_up_is_told_as_that(
    autojump_clock: trio.testing.MockClock,
):
    tasks, progress = Tasks(), list[tuple[int, int | None]]()
    results = await run_parallel(
        [tasks.taking(2, "a"), tasks.taking(2, "b"), tasks.taking(2), tasks.taking(2)],
        max_concurrent=1,
        timeout_s=3,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert told(results) == ["a", TooSlow, NotStarted, NotStarted]
    assert trio.current_time() == 3
    assert tasks.begun == 2
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with pytest.raises(TooSlow, match=r"all 3 s"):
        results[1].unwrap()


async def test_a_tasks_own_time_out_stays_its_own(autojump_clock: trio.testing.MockClock):
    async def task() -> None:
        with trio.fail_after(1):
            await trio.sleep(2)

    (result,) = await run_parallel([task], item_timeout_s=9)
    assert told([result]) == [trio.TooSlowError]


async def test_a_value_that_was_there_when_its_time_was_up_is_kept(
    autojump_clock: trio.testing.MockClock,
):
    async def stubborn() -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        return "done after all"

    assert told(await run_parallel([stubborn], timeout_s=1)) == ["done after all"]


async def test_an_error_in_the_clean_up_of_a_cut_task_is_its_outcome(
    autojump_clock: trio.testing.MockClock,
):
    async def task() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise LookupError

    results = await run_parallel([task, Tasks().taking(0, "b")], timeout_s=1)
    assert told(results) == [ExceptionGroup, "b"]


async def test_each_task_is_tried_again_as_the_policy_says_and_within_its_time(
    autojump_clock: trio.testing.MockClock,
):
    tries: list[str] = []

    def flaky(name: str, failures: int) -> Callable[[], Awaitable[str]]:
        async def task() -> str:
            tries.append(name)
            await trio.sleep(1)
            if tries.count(name) <= failures:
                raise OSError(name)
            return name

        return task

    results = await run_parallel(
        [flaky("a", 1), flaky("b", 9), flaky("c", 0)],
        item_timeout_s=4,
        retry=RetryPolicy(9, 1, 1, random=lambda: 1.0),
    )
    assert told(results) == ["a", OSError, "c"]
    assert (tries.count("a"), tries.count("b"), tries.count("c")) == (2, 2, 1)


async def test_cancelled_anywhere_no_task_goes_on(autojump_clock: trio.testing.MockClock):
    tasks = Tasks()

    async def scenario() -> None:
        await run_parallel(
            [tasks.taking(s) for s in (1, 3, 2, 5)],
            max_concurrent=2,
            item_timeout_s=4,
            retry=RetryPolicy(2, 1, 1, random=lambda: 1.0),
        )

    def check() -> None:
        assert tasks.now == 0

    assert await cancel_at_every_checkpoint(scenario, check) > 8


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=12),
    st.integers(1, 4),
    st.none() | st.integers(0, 8),
    st.none() | st.integers(0, 4),
)
def test_every_task_ends_as_exactly_what_happened_to_it(
    plan: list[tuple[int, bool]], most: int, all_s: int | None, own_s: int | None
):
    """Value, its own error, TooSlow or NotStarted; begun in order, bounded, and in time."""
    tasks, errors = Tasks(), [ValueError(index) for index in range(len(plan))]

    async def main() -> tuple[list[outcome.Outcome[object]], float]:
        results = await run_parallel(
            [
                tasks.taking(s + 0.5, index, errors[index] if fails else None)
                for index, (s, fails) in enumerate(plan)
            ],
            max_concurrent=most,
            timeout_s=all_s,
            item_timeout_s=own_s,
        )
        return results, trio.current_time()

    results, took_s = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(results) == len(plan)
    assert tasks.most <= most
    assert took_s <= (float("inf") if all_s is None else all_s)
    not_started = 0
    for index, ((takes_s, fails), result) in enumerate(zip(plan, results, strict=True)):
        match result:
            case outcome.Value(value):
                assert value == index
                assert not fails
            case outcome.Error(TooSlow()):
                assert own_s is not None or all_s is not None
                assert all_s is not None or takes_s + 0.5 > own_s
            case outcome.Error(NotStarted()):
                assert all_s is not None
                not_started += 1
            case outcome.Error(error):
                assert error is errors[index]
                assert fails
    assert tasks.begun == len(plan) - not_started
