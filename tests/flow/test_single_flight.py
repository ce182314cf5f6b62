import traceback
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.cancelling import cancel_at_every_checkpoint

from custosd.flow.single_flight import FlightEnded, SingleFlight, fresh


class Source:
    """Takes a second, and half a second to clean up; counts what is under way."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun = self.ended = self.cut = self.now = self.most = 0
        self.error = error

    async def __call__(self) -> str:
        self.begun += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.sleep(1)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.5)
            self.cut += 1
            raise
        finally:
            self.now -= 1
        if self.error is not None:
            raise self.error
        self.ended += 1
        return f"result {self.begun}"


@pytest.fixture
async def flights(nursery: trio.Nursery) -> AsyncIterator[SingleFlight[str, str]]:
    flights = SingleFlight[str, str](nursery)
    yield flights
    assert len(flights) == 0


async def gathered(flights: SingleFlight[str, str], source: Source, count: int) -> list[str]:
    results: list[str] = []

    async def caller() -> None:
        results.append(await flights.run("key", source))

    async with trio.open_nursery() as callers:
        for _ in range(count):
            callers.start_soon(caller)
    return results


async def test_concurrent_calls_share_one_execution_and_later_ones_begin_anew(
    autojump_clock: trio.testing.MockClock, flights: SingleFlight[str, str]
):
    source = Source()
    assert await gathered(flights, source, 10) == ["result 1"] * 10
    assert await gathered(flights, source, 2) == ["result 2"] * 2
    assert (flights.executions, flights.joined) == (2, 10)
    assert trio.current_time() == 2


async def test_other_keys_are_no_concern_of_it(
    autojump_clock: trio.testing.MockClock, flights: SingleFlight[str, str], nursery: trio.Nursery
):
    source = Source()
    async with trio.open_nursery() as callers:
        callers.start_soon(flights.run, "a", source)
        callers.start_soon(flights.run, "b", source)
    assert source.most == 2


async def test_it_outlives_the_caller_that_began_it_and_that_callers_deadline(
    autojump_clock: trio.testing.MockClock, flights: SingleFlight[str, str], nursery: trio.Nursery
):
    source, results = Source(), []

    async def second() -> None:
        await trio.sleep(0.1)
        results.append(await flights.run("key", source))

    nursery.start_soon(second)
    with trio.move_on_after(0.5) as first:
        await flights.run("key", source)
    assert first.cancelled_caught
    await trio.sleep(1)
    assert results == ["result 1"]
    assert (source.begun, source.cut) == (1, 0)


async def test_it_is_cancelled_when_nobody_waits_any_more(
    autojump_clock: trio.testing.MockClock, flights: SingleFlight[str, str]
):
    source = Source()
    with trio.move_on_after(0.5):
        await gathered(flights, source, 3)
    await trio.sleep(0.6)
    assert (source.begun, source.cut, source.now) == (1, 1, 0)


async def test_one_that_was_given_up_is_over_before_the_next_begins(
    autojump_clock: trio.testing.MockClock, flights: SingleFlight[str, str]
):
    source = Source()
    for _ in range(3):
        with trio.move_on_after(0.1):
            await flights.run("key", source)
    assert await flights.run("key", source) == "result 2"
    assert source.most == 1
    assert trio.current_time() == 0.1 + 0.5 + 1


async def test_an_error_reaches_each_caller_as_its_own_and_is_not_kept(
    autojump_clock: trio.testing.MockClock, flights: SingleFlight[str, str]
):
    source, errors = Source(OSError(5, "down")), list[OSError]()

    async def caller() -> None:
        try:
            await flights.run("key", source)
        except OSError as error:
            errors.append(error)

    async with trio.open_nursery() as callers:
        for _ in range(3):
            callers.start_soon(caller)
    assert len({id(error) for error in errors}) == 3
    for error in errors:
        assert (type(error), error.errno, error.__cause__) == (OSError, 5, source.error)
        frames = [f.name for f in traceback.extract_tb(error.__traceback__)]
        assert frames == ["caller", "run", "_received"]
    assert traceback.extract_tb(source.error.__traceback__)[-1].name == "__call__"
    source.error = None
    assert await flights.run("key", source) == "result 2"


async def test_none_is_a_result(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery):
    flights = SingleFlight[str, None](nursery)
    assert await flights.run("key", trio.lowlevel.checkpoint) is None


async def test_callers_are_told_when_the_nursery_of_executions_is_cancelled(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    inner = await nursery.start(_open_nursery)
    flights = SingleFlight[str, str](inner)

    async def caller() -> None:
        with pytest.raises(FlightEnded, match="nursery"):
            await flights.run("key", Source())

    async with trio.open_nursery() as callers:
        callers.start_soon(caller)
        callers.start_soon(caller)
        await trio.sleep(0.1)
        inner.cancel_scope.cancel()
    with pytest.raises(RuntimeError):
        await flights.run("key", Source())
    assert len(flights) == 0


async def _open_nursery(task_status: trio.TaskStatus[trio.Nursery]) -> None:
    async with trio.open_nursery() as nursery:
        task_status.started(nursery)
        await trio.sleep_forever()


async def test_what_is_forgotten_serves_those_who_wait_and_later_calls_begin_anew(
    autojump_clock: trio.testing.MockClock, flights: SingleFlight[str, str], nursery: trio.Nursery
):
    source, results = Source(), []

    async def caller() -> None:
        results.append((trio.current_time(), await flights.run("key", source)))

    nursery.start_soon(caller)
    await trio.sleep(0.5)
    flights.forget("key")
    nursery.start_soon(caller)
    await trio.sleep(0.6)
    assert len(flights) == 1
    await trio.sleep(1)
    assert sorted(results) == [(0, "result 2"), (0.5, "result 2")]
    assert source.ended == 2


async def test_an_error_that_nobody_waits_for_is_told_all_the_same(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    async def fn() -> None:
        try:
            await trio.sleep(1)
        finally:
            raise LookupError("clean-up")

    unheard: list[tuple[str, Exception]] = []
    flights = SingleFlight[str, None](nursery, on_unheard=lambda *told: unheard.append(told))
    with trio.move_on_after(0.5):
        await flights.run("key", fn)
    await trio.testing.wait_all_tasks_blocked()
    assert [(key, str(error)) for key, error in unheard] == [("key", "clean-up")]
    with pytest.RaisesGroup(LookupError):
        async with trio.open_nursery() as strict:
            with trio.move_on_after(0.5):
                await SingleFlight[str, None](strict).run("key", fn)
            await trio.sleep_forever()


async def test_a_caller_cancelled_anywhere_neither_harms_another_nor_leaves_a_flight(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    """The scenario's two callers go; a third, outside, waits half the time and must be served."""
    flights, source = SingleFlight[str, str](nursery), Source()
    served = 0

    async def scenario() -> None:
        await trio.sleep(2)  # until an execution that was given up has cleaned up
        assert len(flights) == 0
        async with trio.open_nursery() as callers:
            callers.start_soon(flights.run, "key", source)
            callers.start_soon(flights.run, "key", source)

    async def third() -> None:
        nonlocal served
        while True:
            await trio.sleep(0.25)
            if len(flights):
                await flights.run("key", source)
                served += 1

    nursery.start_soon(third)

    def check() -> None:
        assert source.most <= 1
        assert source.begun - source.ended - source.cut == source.now == len(flights)

    assert await cancel_at_every_checkpoint(scenario, check) > 8
    await trio.sleep(5)
    check()
    assert served > 0
    nursery.cancel_scope.cancel()


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.integers(1, 30), st.integers(0, 1)),
        max_size=20,
    )
)
def test_whoever_comes_and_goes_there_is_one_execution_a_key_and_every_stayer_is_served(
    plan: list[tuple[str, int, int, bool]],
):
    sources = {"a": Source(), "b": Source()}
    served = left = 0

    async def caller(
        flights: SingleFlight[str, str], key: str, at_ds: int, patience_ds: int, stays: int
    ) -> None:
        nonlocal served, left
        await trio.sleep(at_ds / 10 + 0.01)
        with trio.move_on_after(1000 if stays else patience_ds / 10 + 0.005) as scope:
            assert (await flights.run(key, sources[key])).startswith("result")
            served += 1
        left += scope.cancelled_caught
        assert not (stays and scope.cancelled_caught)

    async def main() -> None:
        async with trio.open_nursery() as background:
            flights = SingleFlight[str, str](background)
            async with trio.open_nursery() as callers:
                for call in plan:
                    callers.start_soon(caller, flights, *call)
            await trio.sleep(10)
            assert len(flights) == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert served + left == len(plan)
    for source in sources.values():
        assert source.most <= 1
        assert source.begun == source.ended + source.cut
        assert source.now == 0


class Odd(Exception):
    def __init__(self, name: str, *, code: int) -> None:
        super().__init__(f"no {name}")
        self.code = code


class Wordy(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(f"no {name}")


def test_a_copy_says_what_the_original_says_and_what_cannot_be_copied_stands_for_itself():
    error = Wordy("bread")
    again = fresh(error)
    assert again is not error
    assert (type(again), str(again), again.__cause__) == (Wordy, "no bread", error)
    odd = Odd("bread", code=3)
    assert fresh(odd) is odd
    group = ExceptionGroup("two", [OSError(), Wordy("salt")])
    assert fresh(group).exceptions == group.exceptions
