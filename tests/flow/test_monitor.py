"""What runs is accounted for, and nothing changes by being looked at."""

import random
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.flow.cancelling import cancel_at_every_checkpoint

from custosd.flow import monitor as monitoring
from custosd.flow.monitor import (
    RECENT_S,
    REST,
    Kind,
    Monitor,
    Operation,
    OperationSummary,
    in_force,
    monitor_in_force,
    traced,
)
from custosd.flow.retry import RetryPolicy
from custosd.flow.sketch import Sketch


def row(monitor: Monitor, name: str = "work") -> OperationSummary:
    return next(one for one in monitor.summary() if one.name == name)


async def test_execution_and_waiting_are_two_things(autojump_clock):
    monitor = Monitor()
    for _ in range(3):
        async with monitor.operation(Kind.NETWORK, "work", 5.0):
            await trio.sleep(2.0)
    seen = row(monitor)
    assert (seen.ok, seen.running, seen.kind) == (3, 0, Kind.NETWORK)
    assert seen.mean_s == pytest.approx(2.0)
    assert seen.p99_s == pytest.approx(2.0, rel=0.01)
    assert seen.queued_mean_s == pytest.approx(5.0)
    assert seen.queued_p99_s == pytest.approx(5.0, rel=0.01)
    assert seen.window_s == pytest.approx(6.0)


async def test_an_operation_that_is_cancelled_is_no_error(autojump_clock):
    monitor = Monitor()
    with trio.move_on_after(1.0):
        async with monitor.operation(Kind.FILE, "work"):
            await trio.sleep_forever()
    with trio.move_on_after(1.0):
        async with monitor.operation(Kind.FILE, "work"), trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)
    seen = row(monitor)
    assert (seen.ok, seen.errors, seen.cancelled) == (0, {}, 2)


async def test_an_error_passes_through_and_is_counted_by_its_class(autojump_clock):
    monitor = Monitor()
    failure = ValueError("as it was")
    with pytest.raises(ValueError, match="as it was") as caught:
        async with monitor.operation(Kind.CACHE, "work"):
            raise failure
    assert caught.value is failure
    with pytest.raises(ExceptionGroup):
        async with monitor.operation(Kind.CACHE, "work"):
            raise ExceptionGroup("two", [ExceptionGroup("one", [OSError()])])
    assert row(monitor).errors == {"ValueError": 1, "OSError": 1}


async def test_an_error_beside_cancellations_is_an_error(autojump_clock):
    monitor = Monitor()

    async def fail() -> None:
        raise KeyError

    async def both() -> None:
        async with monitor.operation(Kind.BATCH, "work"), trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(fail)

    with pytest.raises(ExceptionGroup):
        await both()
    assert row(monitor).errors == {"KeyError": 1}
    assert row(monitor).cancelled == 0


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(0.001, 50)),
        min_size=1,
        max_size=30,
    )
)
@settings(max_examples=30, deadline=None)
def test_once_all_is_over_the_measured_concurrency_is_that_of_littles_law(jobs):
    async def main() -> OperationSummary:
        monitor = Monitor()

        async def job(starts_at: float, takes_s: float) -> None:
            await trio.sleep(starts_at)
            async with monitor.operation(Kind.NETWORK, "work"):
                await trio.sleep(takes_s)

        async with trio.open_nursery() as nursery:
            for starts_at, takes_s in jobs:
                nursery.start_soon(job, starts_at, takes_s)
        return row(monitor)

    seen = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert seen.count == len(jobs)
    assert seen.running == 0
    assert seen.concurrency == pytest.approx(seen.by_littles_law)
    assert seen.concurrency <= seen.most_running + 1e-9


async def test_operations_that_never_end_show_as_a_gap_to_littles_law(autojump_clock):
    monitor = Monitor()
    left_behind = monitor.operation(Kind.BACKGROUND, "work")
    left_behind.begin()
    for _ in range(10):
        async with monitor.operation(Kind.BACKGROUND, "work"):
            await trio.sleep(1.0)
    seen = row(monitor)
    assert (seen.running, seen.most_running) == (1, 2)
    assert seen.concurrency == pytest.approx(2 * seen.by_littles_law)


async def test_a_slow_operation_is_told_of_once_while_it_runs(autojump_clock, nursery):
    told: list[tuple[str, float]] = []

    def on_slow(operation: Operation) -> None:
        assert operation.outcome is None
        told.append((operation.name, trio.current_time() - operation.started_at))

    monitor = Monitor(slow_s=20.0, on_slow=on_slow)
    await nursery.start(monitor.watch)
    async with monitor.operation(Kind.NETWORK, "quick"):
        await trio.sleep(19.0)
    async with (
        monitor.operation(Kind.NETWORK, "patient", slow_s=1000.0),
        monitor.operation(Kind.NETWORK, "work"),
    ):
        await trio.sleep(500.0)
    assert [name for name, _ in told] == ["work"]
    assert 20.0 <= told[0][1] <= 21.0
    assert row(monitor).slow == 1
    nursery.cancel_scope.cancel()


async def test_of_many_slow_operations_each_is_told_of_once(autojump_clock, nursery):
    told: list[str] = []
    monitor = Monitor(slow_s=2.0, on_slow=lambda one: told.append(one.name))
    await nursery.start(monitor.watch)

    async def job(number: int) -> None:
        await trio.sleep(number * 0.3)
        async with monitor.operation(Kind.NETWORK, f"job {number:02}"):
            await trio.sleep(2.5 if number % 2 else 1.5)

    async with trio.open_nursery() as jobs:
        for number in range(40):
            jobs.start_soon(job, number)
    assert told == [f"job {number:02}" for number in range(1, 40, 2)]
    nursery.cancel_scope.cancel()


async def test_names_without_end_share_one_row(autojump_clock):
    monitor = Monitor()
    for number in range(monitoring.MOST_SERIES + 10):
        async with monitor.operation(Kind.EVENT, f"name {number}"):
            pass
    assert len(monitor.summary()) == monitoring.MOST_SERIES + 1
    assert row(monitor, REST).ok == 10


async def test_classes_of_errors_without_end_share_one_count(autojump_clock):
    monitor = Monitor()
    for number in range(monitoring.MOST_ERRORS + 5):
        with suppress(ArithmeticError):
            async with monitor.operation(Kind.EVENT, "work"):
                raise type(f"Error{number}", (ArithmeticError,), {})
    errors = row(monitor).errors
    assert errors[REST] == 5
    assert len(errors) == monitoring.MOST_ERRORS + 1


async def test_what_operations_use_adds_up(autojump_clock):
    monitor = Monitor()
    for _ in range(2):
        async with monitor.operation(Kind.FILE, "work") as operation:
            operation.used("read_bytes", 10)
            operation.used("read_bytes", 5)
    assert row(monitor).resources == {"read_bytes": 30}


async def test_cancelled_at_each_checkpoint_nothing_is_left_running(autojump_clock):
    monitor = Monitor()

    @traced(Kind.PIPELINE, "outer", timeout_s=10.0, retry=RetryPolicy(2, random=lambda: 0.5))
    async def outer() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(inner)
            nursery.start_soon(inner)

    @traced(Kind.NETWORK, "inner")
    async def inner() -> None:
        await trio.sleep(1)

    def check() -> None:
        assert monitor.running == 0
        assert all(not one.errors for one in monitor.summary())

    with in_force(monitor):
        cancelled = await cancel_at_every_checkpoint(outer, check)
    assert cancelled > 3
    # A cancellation that comes after the last checkpoint cancels nothing.
    seen = row(monitor, "outer")
    assert seen.count == cancelled + 1
    assert 1 <= seen.ok <= 2


async def test_a_traced_call_goes_to_the_monitor_in_force(autojump_clock):
    @traced(Kind.COMPUTATION)
    async def answer(number: int, *, plus: int = 0) -> int:
        """Doc."""
        return number + plus

    monitor = Monitor()
    with in_force(monitor):
        assert await answer(41, plus=1) == 42
    assert (answer.__name__, answer.__doc__) == ("answer", "Doc.")
    assert [one.ok for one in monitor.summary()] == [1]
    assert await answer(1) == 1
    assert row(monitor, monitor.summary()[0].name).ok == 1, "out of force nothing is counted"
    assert monitor_in_force() is monitor_in_force()


async def test_a_traced_call_is_bounded_and_tried_again_as_one_operation(autojump_clock):
    calls = 0
    lines: list[str] = []

    @traced(
        Kind.NETWORK,
        "work",
        timeout_s=1.0,
        retry=RetryPolicy(3, first_delay_s=2.0, random=lambda: 0.5),
        debug=lines.append,
    )
    async def work() -> str:
        nonlocal calls
        calls += 1
        if calls < 3:
            await trio.sleep_forever()
        return "done"

    monitor = Monitor()
    with in_force(monitor):
        assert await work() == "done"
    seen = row(monitor)
    assert (seen.ok, seen.errors, seen.resources) == (1, {}, {"retries": 2})
    # Two attempts of a second each, and the pauses between: 1 s and 2 s.
    assert seen.mean_s == pytest.approx(5.0)
    assert lines == ["network work begins", "network work ends after 5.000000 s: ok"]


async def test_a_time_limit_that_is_hit_is_an_error(autojump_clock):
    @traced(Kind.NETWORK, "work", timeout_s=1.0)
    async def work() -> None:
        await trio.sleep_forever()

    monitor = Monitor()
    with in_force(monitor), pytest.raises(trio.TooSlowError):
        await work()
    assert row(monitor).errors == {"TooSlowError": 1}


async def test_a_traced_stream_is_one_operation_and_closes_what_it_reads(autojump_clock):
    closed: list[bool] = []

    @traced(Kind.STREAM, "work")
    async def numbers() -> AsyncGenerator[int]:
        try:
            for number in range(5):
                yield number
        finally:
            closed.append(True)

    monitor = Monitor()
    with in_force(monitor):
        assert [number async for number in numbers()] == [0, 1, 2, 3, 4]
        async with aclosing(numbers()) as items:
            async for _ in items:
                assert monitor.running == 1
                break
    seen = row(monitor)
    assert (seen.ok, seen.cancelled, seen.running) == (1, 1, 0)
    assert seen.resources == {"items": 6}
    assert closed == [True, True]


@pytest.mark.parametrize("wrong", [{"timeout_s": 1.0}, {"retry": RetryPolicy()}])
def test_a_stream_with_a_time_limit_is_refused(wrong):
    async def numbers() -> AsyncGenerator[int]:
        yield 1

    with pytest.raises(TypeError, match="generator"):
        traced(Kind.STREAM, **wrong)(numbers)


def test_what_does_not_wait_is_refused():
    with pytest.raises(TypeError, match="neither"):
        traced(Kind.COMPUTATION)(len)


@given(st.lists(st.floats(1e-5, 80_000.0), min_size=1, max_size=300), st.integers(1, 100))
def test_percentiles_are_true_to_a_hundredth(durations, percent):
    sketch = Sketch()
    for duration in durations:
        sketch.add(duration)
    (found,) = sketch.percentiles_s((percent,))
    # The nearest rank, as HdrHistogram counts.
    rank = max(int(percent * len(durations) / 100 + 0.5), 1)
    assert found == pytest.approx(sorted(durations)[rank - 1], rel=0.011, abs=1.1e-6)


def test_merged_sketches_are_one_of_all():
    numbers = random.Random(7)
    parts, whole = [Sketch(), Sketch()], Sketch()
    for at in range(1000):
        duration = numbers.lognormvariate(0, 2)
        parts[at % 2].add(duration)
        whole.add(duration)
    parts[0].merge(parts[1])
    wanted = (1.0, 50.0, 99.9)
    assert parts[0].percentiles_s(wanted) == whole.percentiles_s(wanted)
    assert Sketch().percentiles_s(wanted) == (0.0, 0.0, 0.0)
    parts[0].add(1e9)
    assert parts[0].percentiles_s((100.0,))[0] == pytest.approx(86_400, rel=0.01)


async def test_of_a_group_the_error_counts_wherever_the_cancellations_stand(autojump_clock):
    caught: list[BaseException] = []
    with trio.move_on_after(0):
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            caught.append(cancelled)
            raise
    monitor = Monitor()
    for errors in ([*caught, KeyError()], [KeyError(), *caught], caught):
        operation = monitor.operation(Kind.EVENT, "work")
        operation.begin()
        operation.end(BaseExceptionGroup("several", errors))
    assert (row(monitor).errors, row(monitor).cancelled) == ({"KeyError": 2}, 1)


class Parents:
    """Notes whose part each operation is."""

    def __init__(self) -> None:
        self.of: dict[str, str | None] = {}

    def began(self, operation: Operation) -> None:
        self.of[operation.name] = operation.parent.name if operation.parent else None

    def ended(self, operation: Operation) -> None:
        pass


async def test_a_task_that_ends_what_it_inherited_goes_on_below_what_was_around_it(autojump_clock):
    parents = Parents()
    monitor = Monitor(observer=parents)

    async def ends(operation: Operation) -> None:
        operation.end()
        async with monitor.operation(Kind.EVENT, "after"):
            pass

    async with monitor.operation(Kind.EVENT, "around"), trio.open_nursery() as nursery:
        inherited = monitor.operation(Kind.EVENT, "inherited")
        inherited.begin()
        nursery.start_soon(ends, inherited)
    assert parents.of == {"around": None, "inherited": "around", "after": "around"}


async def test_a_bad_minute_shows_after_an_hour_of_calm_and_is_gone_two_minutes_later(
    autojump_clock,
):
    """All of the time says p99 = 0.01 s; the recent says what is the matter now."""
    monitor = Monitor()

    async def work(takes_s: float) -> None:
        async with monitor.operation(Kind.NETWORK, "work"):
            await trio.sleep(takes_s)

    for _ in range(3_600):
        await work(0.01)
        await trio.sleep(0.99)
    for _ in range(10):
        await work(3.0)
    seen = row(monitor)
    assert seen.p99_s == pytest.approx(0.01, rel=0.01)
    assert seen.recent_p95_s == seen.recent_p99_s == pytest.approx(3.0, rel=0.01)
    assert RECENT_S <= seen.recent_s < 2 * RECENT_S
    await trio.sleep(2 * RECENT_S)
    gone = row(monitor)
    assert (gone.recent_count, gone.recent_p99_s) == (0, 0.0)
    assert gone.count == 3_610


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 200)), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_the_recent_is_exactly_what_ended_in_the_stretch_that_is_told(work):
    """Whatever the pattern: what ended within `recent_s` counts, and nothing before."""

    async def main() -> None:
        monitor, ended_at = Monitor(), list[float]()
        for takes_s, pause_s in work:
            async with monitor.operation(Kind.NETWORK, "work"):
                await trio.sleep(takes_s)
            ended_at.append(trio.current_time())
            await trio.sleep(pause_s)
            seen, now = row(monitor), trio.current_time()
            began_at = now - seen.recent_s
            inside = sum(at > began_at + 1e-6 for at in ended_at)
            at_least_inside = sum(at >= began_at - 1e-6 for at in ended_at)
            assert inside <= seen.recent_count <= at_least_inside
            assert seen.recent_s <= 2 * RECENT_S
            assert seen.recent_s == pytest.approx(seen.window_s) or seen.recent_s >= RECENT_S

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_many_rows_are_summed_up_in_turns_and_others_get_theirs(autojump_clock):
    """Some 2 ms a row: all rows at once would hold the loop up for a second."""
    monitor = Monitor()
    for number in range(monitoring.MOST_SERIES):
        async with monitor.operation(Kind.FILE, f"work {number:03}"):
            pass
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        rows = await monitor.summary_in_turns()
        nursery.cancel_scope.cancel()
    assert rows == monitor.summary()
    assert turns >= monitoring.MOST_SERIES / monitoring.ROWS_A_TURN / 2
