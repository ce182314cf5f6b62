from collections import Counter
from collections.abc import Sequence

import outcome
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.cancelling import cancel_at_every_checkpoint

from custosd.flow.batcher import Batcher, BatcherStopped


class Handler:
    """Takes a second a batch; an item that is negative fails, and 13 breaks the whole batch."""

    def __init__(self, takes_s: float = 1.0) -> None:
        self.batches: list[tuple[float, list[int]]] = []
        self.now = self.most = 0
        self._takes_s = takes_s

    async def __call__(self, items: Sequence[int]) -> list[outcome.Outcome[int]]:
        self.batches.append((trio.current_time(), list(items)))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.sleep(self._takes_s)
        finally:
            self.now -= 1
        if 13 in items:
            raise OSError("the whole batch")
        return [outcome.Value(i * 10) if i >= 0 else outcome.Error(ValueError(i)) for i in items]


class Submitters:
    """Submits items side by side, and keeps what became of each."""

    def __init__(self, batcher: Batcher[int, int]) -> None:
        self.batcher = batcher
        self.results: dict[int, object] = {}

    async def one(self, item: int) -> None:
        try:
            self.results[item] = await self.batcher.submit(item)
        except trio.Cancelled:
            self.results[item] = "cancelled"
            raise
        except Exception as error:  # noqa: BLE001 - what a submitter was told
            self.results[item] = error

    async def all(self, *items: int) -> None:
        async with trio.open_nursery() as nursery:
            for item in items:
                nursery.start_soon(self.one, item)
                await trio.testing.wait_all_tasks_blocked()


async def test_a_batch_goes_when_it_is_full_and_its_rest_after_the_delay_from_its_oldest(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    handler = Handler(takes_s=0)
    batcher = Batcher(handler)
    await nursery.start(batcher.run)
    submitters = Submitters(batcher)
    await submitters.all(1, 2, 3, 4, 5, 6)
    assert handler.batches == [(0, [1, 2, 3, 4, 5]), (0.1, [6])]
    assert submitters.results == {i: i * 10 for i in range(1, 7)}
    nursery.start_soon(submitters.one, 7)
    await trio.sleep(0.09)
    nursery.start_soon(submitters.one, 8)
    await trio.sleep(1)
    assert handler.batches[2:] == [(0.2, [7, 8])]
    assert (batcher.batches, batcher.handled, batcher.waiting) == (3, 8, 0)
    batcher.stop()


async def test_one_failing_item_fails_its_own_submitter_only(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    batcher = Batcher(Handler())
    await nursery.start(batcher.run)
    submitters = Submitters(batcher)
    await submitters.all(1, -2, 3)
    assert (submitters.results[1], submitters.results[3]) == (10, 30)
    assert repr(submitters.results[-2]) == "ValueError(-2)"
    batcher.stop()


async def test_a_failure_of_the_whole_batch_reaches_each_submitter_and_no_other_batch(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    batcher = Batcher(Handler(), size=2)
    await nursery.start(batcher.run)
    submitters = Submitters(batcher)
    await submitters.all(1, 13, 3, 4)
    errors = [submitters.results[i] for i in (1, 13)]
    assert [str(error) for error in errors] == ["the whole batch"] * 2
    assert errors[0] is not errors[1]
    assert (submitters.results[3], submitters.results[4]) == (30, 40)
    batcher.stop()


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_a_wrong_number_of_outcomes_gives_nobody_anothers_result(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, count: int
):
    async def handle(items: Sequence[int]) -> list[outcome.Outcome[int]]:
        return [outcome.Value(0)] * count

    batcher = Batcher(handle, size=2)
    await nursery.start(batcher.run)
    submitters = Submitters(batcher)
    await submitters.all(1, 2)
    for error in submitters.results.values():
        assert isinstance(error, ValueError)
        assert f"{count} outcomes for 2 items" in str(error)
    batcher.stop()


async def test_none_is_a_result(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery):
    async def handle(items: Sequence[None]) -> list[outcome.Outcome[None]]:
        return [outcome.Value(None) for _ in items]

    batcher = Batcher(handle)
    await nursery.start(batcher.run)
    assert await batcher.submit(None) is None
    batcher.stop()


async def test_so_many_batches_at_once_and_what_gathers_meanwhile_goes_together(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    handler = Handler()
    batcher = Batcher(handler, size=2, delay_s=0.1, concurrency=2)
    await nursery.start(batcher.run)
    submitters = Submitters(batcher)
    async with trio.open_nursery() as callers:
        callers.start_soon(submitters.all, 1, 2)
        await trio.sleep(0.05)
        callers.start_soon(submitters.one, 3)
        await trio.sleep(0.2)
        callers.start_soon(submitters.one, 4)
        callers.start_soon(submitters.one, 5)
        callers.start_soon(submitters.one, 6)
    assert handler.most == 2
    assert [(at, len(items)) for at, items in handler.batches] == [
        (0, 2),
        (pytest.approx(0.15), 1),
        (1, 2),
        (pytest.approx(1.15), 1),
    ]
    batcher.stop()


async def test_a_submitter_that_gives_up_takes_its_item_along_and_harms_no_other(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    handler = Handler()
    batcher = Batcher(handler, size=3, most_waiting=3)
    await nursery.start(batcher.run)
    submitters = Submitters(batcher)
    nursery.start_soon(submitters.one, 1)
    with trio.move_on_after(0.05):
        await submitters.one(2)  # gives up in the queue
    nursery.start_soon(submitters.one, 3)
    with trio.move_on_after(0.5):
        await submitters.one(4)  # gives up while its batch is handled
    await trio.sleep(2)
    assert [sorted(items) for _, items in handler.batches] == [[1, 3, 4]]
    assert submitters.results == {1: 10, 2: "cancelled", 3: 30, 4: "cancelled"}
    assert (batcher.waiting, batcher._room.borrowed_tokens) == (0, 0)
    batcher.stop()


async def test_a_full_queue_makes_submitters_wait_in_their_order(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    handler = Handler()
    batcher = Batcher(handler, size=2, most_waiting=2)
    await nursery.start(batcher.run)
    submitters = Submitters(batcher)
    nursery.start_soon(submitters.all, *range(9))
    await trio.sleep(0.5)
    assert (batcher.waiting, batcher._room.statistics().tasks_waiting) == (2, 5)
    await trio.sleep(10)
    batches = [sorted(items) for _, items in handler.batches]
    assert batches == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
    batcher.stop()


async def test_what_is_queued_at_the_stop_is_handled_and_what_comes_later_is_refused(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    handler = Handler()
    batcher = Batcher(handler, size=2, delay_s=100, most_waiting=3)
    submitters = Submitters(batcher)
    async with trio.open_nursery() as callers:
        for item in range(1, 7):
            callers.start_soon(submitters.one, item)
            await trio.testing.wait_all_tasks_blocked()
        assert batcher.waiting == 3  # before it runs already
        batcher.stop()
        await batcher.run()
        assert trio.current_time() == 2
    assert [items for _, items in handler.batches] == [[1, 2], [3]]
    assert [submitters.results[i] for i in (1, 2, 3)] == [10, 20, 30]
    assert all(isinstance(submitters.results[i], BatcherStopped) for i in (4, 5, 6))
    with pytest.raises(BatcherStopped, match="after it was stopped"):
        await batcher.submit(7)
    with pytest.raises(RuntimeError, match="runs once"):
        await batcher.run()


async def test_no_submitter_is_left_waiting_when_it_is_cancelled(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    batcher = Batcher(Handler(), size=2, most_waiting=2)
    submitters = Submitters(batcher)
    nursery.start_soon(submitters.all, 1, 2, 3, 4, 5)
    with trio.move_on_after(0.5):
        await batcher.run()
    await trio.testing.wait_all_tasks_blocked()
    assert [type(submitters.results[i]) for i in range(1, 6)] == [BatcherStopped] * 5


async def test_whoever_is_cancelled_anywhere_nothing_is_lost_or_handled_twice(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    """Submitters are cut at each step, beside one who stays and the batcher that goes on."""
    handler = Handler()
    batcher = Batcher(handler, size=2, most_waiting=3)
    await nursery.start(batcher.run)
    submitters, stayers = Submitters(batcher), Submitters(batcher)
    number = 0

    async def scenario() -> None:
        nonlocal number
        await trio.sleep(5)
        number += 100
        nursery.start_soon(stayers.one, number)
        async with trio.open_nursery() as nursery_of_some:
            for item in range(number + 1, number + 6):
                nursery_of_some.start_soon(submitters.one, item)

    def check() -> None:
        handled = Counter(item for _, items in handler.batches for item in items)
        assert not handled or max(handled.values()) == 1
        assert batcher.waiting == batcher._room.borrowed_tokens <= 1
        for item, result in submitters.results.items():
            assert result in (item * 10, "cancelled")
            assert result == "cancelled" or handled[item] == 1

    assert await cancel_at_every_checkpoint(scenario, check) > 10
    await trio.sleep(5)
    check()
    assert stayers.results == {item: item * 10 for item in range(100, number + 1, 100)}
    batcher.stop()


async def test_a_batcher_cancelled_anywhere_tells_every_submitter_something(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    handler = Handler()

    async def scenario() -> None:
        nonlocal submitters
        batcher = Batcher(handler, size=2, most_waiting=3)
        submitters = Submitters(batcher)
        for item in range(1, 6):
            nursery.start_soon(submitters.one, item)
        async with trio.open_nursery() as inner:
            await inner.start(batcher.run)
            await trio.sleep(4)
            batcher.stop()

    submitters = Submitters(Batcher(handler))

    def check() -> None:
        assert handler.now == 0
        for item, result in submitters.results.items():
            assert result == item * 10 or isinstance(result, BatcherStopped)
        if submitters.batcher._ran:
            assert len(submitters.results) == 5
            assert submitters.batcher._room.borrowed_tokens == 0

    assert await cancel_at_every_checkpoint(scenario, check) > 8
    assert submitters.results == {i: i * 10 for i in range(1, 6)}
    nursery.cancel_scope.cancel()  # those whose batcher never began


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 1), st.none() | st.integers(0, 20)),
        max_size=25,
    ),
    st.integers(1, 4),
    st.integers(1, 2),
    st.integers(4, 8),
)
def test_each_item_is_handled_once_in_small_enough_batches_and_its_own_submitter_is_told(
    plan: list[tuple[int, int, int | None]], size: int, concurrency: int, most_waiting: int
):
    handler = Handler(takes_s=0.3)

    async def main() -> None:
        batcher = Batcher(handler, size=size, concurrency=concurrency, most_waiting=most_waiting)
        submitters = Submitters(batcher)

        async def one(item: int, patience_ds: int | None) -> None:
            with trio.move_on_after(1e6 if patience_ds is None else patience_ds / 20 + 0.01):
                await submitters.one(item)

        async with trio.open_nursery() as background:
            await background.start(batcher.run)
            async with trio.open_nursery() as callers:
                for index, (pause_ds, fails, patience_ds) in enumerate(plan, start=20):
                    await trio.sleep(pause_ds / 20)
                    callers.start_soon(one, -index if fails else index, patience_ds)
            batcher.stop()
        handled = Counter(item for _, items in handler.batches for item in items)
        assert not handled or max(handled.values()) == 1
        assert all(1 <= len(items) <= size for _, items in handler.batches)
        assert handler.most <= concurrency
        assert len(submitters.results) == len(plan)
        for item, result in submitters.results.items():
            if result != "cancelled":
                assert handled[item] == 1
                assert result == item * 10 if item > 0 else result.args == (item,)
        assert (batcher.waiting, batcher._room.borrowed_tokens) == (0, 0)
        assert batcher.handled == sum(handled.values())

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_queue_that_can_never_fill_a_batch_is_refused():
    for size, most_waiting in ((0, 10), (5, 4)):
        with pytest.raises(ValueError, match="batches of"):
            Batcher(Handler(), size=size, most_waiting=most_waiting)
