import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.cancelling import cancel_at_every_checkpoint

from custosd.flow.work_queue import WorkNotDone, WorkQueue


class Work:
    """Item n takes n tenths of a second, and fails if it is odd and above 100."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.now = self.most = 0
        self.errors: dict[int, Exception] = {}

    async def __call__(self, item: int) -> int | None:
        self.begun.append(item)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.sleep(item % 100 / 10)
            if item > 100 and item % 2:
                raise ValueError(f"no {item}")
            self.ended.append(item)
            return item or None
        finally:
            self.now -= 1

    def on_error(self, item: int, error: Exception) -> None:
        assert item not in self.errors
        self.errors[item] = error


async def test_leaving_the_block_finishes_what_was_taken_in(
    autojump_clock: trio.testing.MockClock,
):
    work = Work()
    async with WorkQueue(work, work.on_error, workers=3) as queue:
        for item in range(1, 10):
            await queue.put(item)
        assert queue.waiting + queue.in_work == 9
    assert sorted(work.ended) == list(range(1, 10))
    assert work.most == 3
    assert (queue.done, queue.failed, queue.cut) == (9, 0, 0)


async def test_who_submits_gets_its_own_outcome_none_included(
    autojump_clock: trio.testing.MockClock,
):
    work = Work()
    async with WorkQueue(work, work.on_error) as queue:
        assert await queue.submit(4) == 4
        assert await queue.submit(0) is None
        with pytest.raises(ValueError, match="no 101"):
            await queue.submit(101)
        await queue.put(103)
    assert list(map(str, work.errors.values())) == ["no 103"]
    assert queue.failed == 2


async def test_none_is_an_item_like_any_other_and_ends_no_worker(
    autojump_clock: trio.testing.MockClock,
):
    worked_on: list[int | None] = []

    async def work(item: int | None) -> None:
        await trio.sleep(1)
        worked_on.append(item)

    async with WorkQueue(work, lambda _item, _error: None, workers=2) as queue:
        for item in (None, 1, None, 2, None, 3):
            await queue.put(item)
    assert worked_on.count(None) == 3
    assert [item for item in worked_on if item is not None] == [1, 2, 3]
    assert trio.current_time() == 3, "a worker had gone"


async def test_a_worker_outlives_an_error(autojump_clock: trio.testing.MockClock):
    work = Work()
    async with WorkQueue(work, work.on_error, workers=1) as queue:
        for item in (101, 103, 1):
            await queue.put(item)
    assert work.ended == [1]
    assert sorted(work.errors) == [101, 103]


async def test_a_full_queue_holds_its_producers_back(autojump_clock: trio.testing.MockClock):
    work = Work()
    async with WorkQueue(work, work.on_error, workers=1, room=2) as queue:
        for item in (10, 10, 10):
            await queue.put(item)
            await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.5) as scope:
            await queue.put(7)
        assert scope.cancelled_caught
        assert queue.waiting == 2
    assert work.begun == [10, 10, 10]


async def test_a_higher_priority_goes_first_but_nobody_waits_for_ever(
    autojump_clock: trio.testing.MockClock,
):
    work = Work()
    async with WorkQueue(work, work.on_error, workers=1, most_wait_s=10) as queue:
        await queue.put(50)
        await trio.testing.wait_all_tasks_blocked()
        await queue.put(1)
        await queue.put(2, priority=5)
        await queue.put(52, priority=5)
        await queue.put(54, priority=5)
        await queue.put(56, priority=5)
    assert work.begun == [50, 2, 52, 1, 54, 56]


async def test_giving_up_before_it_began_it_is_not_worked_on_and_later_it_goes_on(
    autojump_clock: trio.testing.MockClock,
):
    work = Work()
    async with WorkQueue(work, work.on_error, workers=1) as queue:
        with trio.move_on_after(1):
            await queue.submit(143)
        with trio.move_on_after(1):
            await queue.submit(5)
        assert queue.waiting == 0
    assert work.begun == [143]
    assert str(work.errors[143]) == "no 143"  # nobody waited for it any more


async def test_what_is_cut_short_is_told(autojump_clock: trio.testing.MockClock):
    work = Work()
    refused: list[bool] = []

    async def submit(queue: WorkQueue[int, int | None], item: int) -> None:
        with pytest.raises(WorkNotDone) as raised:
            await queue.submit(item)
        refused.append(raised.value.begun)

    queue = WorkQueue(work, work.on_error, workers=2, room=3)

    async def block(nursery: trio.Nursery) -> None:
        async with queue:
            nursery.start_soon(submit, queue, 50)
            await queue.put(51)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(submit, queue, 52)
            await queue.put(53)
            await trio.testing.wait_all_tasks_blocked()
            raise KeyError

    async with trio.open_nursery() as nursery:
        with pytest.raises(KeyError):
            await block(nursery)
    assert sorted(refused) == [False, True]
    assert {item: isinstance(error, WorkNotDone) for item, error in work.errors.items()} == {
        51: True,
        53: True,
    }
    assert queue.cut == 4
    with pytest.raises(WorkNotDone):
        await queue.put(1)


async def test_a_drain_has_its_time(autojump_clock: trio.testing.MockClock):
    work = Work()
    async with WorkQueue(work, work.on_error, workers=1, drain_timeout_s=6) as queue:
        for item in (50, 51):
            await queue.put(item)
    assert trio.current_time() == 6
    assert list(work.errors) == [51]


async def test_cancelled_at_any_checkpoint_no_item_is_lost_or_done_twice(
    autojump_clock: trio.testing.MockClock,
):
    work, taken = Work(), list[int]()

    async def scenario() -> None:
        nonlocal work
        work = Work()
        taken.clear()
        async with (
            WorkQueue(work, work.on_error, workers=2, room=2) as queue,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(queue.submit, 3)
            for item in (1, 101, 2, 4):
                await queue.put(item)
                taken.append(item)

    def check() -> None:
        assert work.now == 0
        assert len(work.begun) == len(set(work.begun))
        for item in taken:
            assert (item in work.ended) != (item in work.errors)

    assert await cancel_at_every_checkpoint(scenario, check) > 10


@given(
    st.lists(
        st.tuples(
            st.integers(0, 20),
            st.booleans(),
            st.integers(0, 2),
            st.none() | st.integers(1, 20),
            st.booleans(),
        ),
        max_size=25,
    ),
    st.integers(1, 3),
    st.integers(1, 4),
    st.none() | st.integers(1, 30),
)
def test_each_item_that_was_taken_in_ends_in_exactly_one_way(
    plan: list[tuple[int, int, int, int | None, int]], workers: int, room: int, cut_ds: int | None
):
    work = Work()
    put: list[int] = []
    ends: dict[int, str] = {}

    async def producer(
        queue: WorkQueue[int, int | None],
        item: int,
        wants: int,
        priority: int,
        patience_ds: int | None,
    ) -> None:
        await trio.sleep(item % 7 / 10)
        with trio.move_on_after(1e6 if patience_ds is None else patience_ds / 10 + 0.01) as scope:
            try:
                if wants:
                    await queue.submit(item, priority)
                    ends[item] = "result"
                else:
                    await queue.put(item, priority)
                    put.append(item)
            except ValueError:
                ends[item] = "error"
            except WorkNotDone:
                ends[item] = "not done"
        if scope.cancelled_caught:
            ends[item] = "gave up"

    async def main() -> None:
        async with trio.open_nursery() as producers:
            with trio.move_on_after(1e6 if cut_ds is None else cut_ds / 10 + 0.005):
                async with WorkQueue(work, work.on_error, workers=workers, room=room) as queue:
                    for number, (takes, wants, priority, patience, fails) in enumerate(plan):
                        item = (number + 2) * 100 + takes - takes % 2 + fails
                        producers.start_soon(producer, queue, item, wants, priority, patience)
                    await trio.sleep(2)
        assert queue.waiting == queue.in_work == 0
        assert len(work.begun) == queue.done + queue.failed + sum(
            isinstance(error, WorkNotDone) and error.begun for error in work.errors.values()
        ) + sum(ends.get(item) == "not done" for item in work.begun)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(work.begun) == len(set(work.begun))
    assert work.most <= workers
    for item in put:
        assert (item in work.ended) != (item in work.errors)
    for item, end in ends.items():
        assert (item in work.ended) == (end == "result") or end == "gave up"


async def test_who_may_not_wait_is_told_that_there_is_no_room(
    autojump_clock: trio.testing.MockClock,
):
    work = Work()
    async with WorkQueue(work, work.on_error, workers=1, room=2) as queue:
        queue.put_nowait(1)
        queue.put_nowait(2)
        with pytest.raises(trio.WouldBlock):
            queue.put_nowait(3)
        await queue.drain()
        queue.put_nowait(4)
    assert work.ended == [1, 2, 4]
    with pytest.raises(WorkNotDone):
        queue.put_nowait(5)
