from collections.abc import Iterator

import outcome
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.cancelling import cancel_at_every_checkpoint

from custosd.flow.bounded import as_completed, each, for_each


class Gauge:
    def __init__(self) -> None:
        self.now = self.most = 0

    async def work(self, takes_s: float) -> float:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.sleep(takes_s)
        finally:
            self.now -= 1
        return takes_s * 10


async def test_outcomes_come_in_the_order_of_the_items_whoever_is_first(
    autojump_clock: trio.testing.MockClock,
):
    gauge = Gauge()
    outcomes = await each([3, 1, 2, 1], gauge.work, limit=2)
    assert [o.unwrap() for o in outcomes] == [30, 10, 20, 10]
    assert gauge.most == 2
    assert trio.current_time() == 4  # 3 | 1+2 side by side, then 1 more


async def test_a_failure_is_kept_in_its_place_and_harms_no_other(
    autojump_clock: trio.testing.MockClock,
):
    async def invert(x: int) -> float:
        await trio.sleep(1)
        return 1 / x

    first, second, third = await each([1, 0, 2], invert, limit=5)
    assert (first.unwrap(), third.unwrap()) == (1, 0.5)
    with pytest.raises(ZeroDivisionError):
        second.unwrap()


async def test_a_shared_limiter_bounds_several_uses_together_and_is_given_back(
    autojump_clock: trio.testing.MockClock,
):
    gauge, limiter = Gauge(), trio.CapacityLimiter(3)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(lambda: each([1] * 6, gauge.work, limit=limiter))
    assert gauge.most == 3
    assert trio.current_time() == 8
    assert limiter.borrowed_tokens == 0


async def test_cancellation_ends_all_and_gives_every_place_back(
    autojump_clock: trio.testing.MockClock,
):
    gauge, limiter = Gauge(), trio.CapacityLimiter(2)
    with trio.move_on_after(1.5) as scope:
        await each([1, 1, 9, 9, 9], gauge.work, limit=limiter)
    assert scope.cancelled_caught
    assert gauge.now == 0
    assert limiter.borrowed_tokens == 0


async def test_cancellation_is_no_outcome(autojump_clock: trio.testing.MockClock):
    """Also when all items are under way, and nothing else would notice."""
    with trio.move_on_after(1) as scope:
        await each([9, 9], Gauge().work, limit=2)
    assert scope.cancelled_caught


async def test_items_are_taken_as_room_comes_up(
    autojump_clock: trio.testing.MockClock,
):
    """Of a thousand items, no more than the limit and the next one are taken at a time."""
    gauge, taken = Gauge(), 0

    def items() -> Iterator[float]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            assert taken <= 4 + 1 + 4 * int(trio.current_time())
            yield 1.0

    assert len(await each(items(), gauge.work, limit=4)) == 1000


async def test_an_error_of_the_items_themselves_comes_out(
    autojump_clock: trio.testing.MockClock,
):
    def items() -> Iterator[float]:
        yield 5.0
        raise LookupError

    gauge = Gauge()
    with pytest.RaisesGroup(LookupError):
        await each(items(), gauge.work, limit=4)
    assert gauge.now == 0


async def test_no_items_give_no_outcomes():
    assert await each([], Gauge().work, limit=1) == []


async def test_progress_is_told_after_each_end_with_the_total_where_it_is_known(
    autojump_clock: trio.testing.MockClock,
):
    told: list[tuple[int, int | None]] = []

    def progress(done: int, total: int | None) -> None:
        told.append((done, total))

    await each([2, 1, 3], Gauge().work, limit=3, progress=progress)
    await each(iter([1, 1]), Gauge().work, limit=3, progress=progress)
    async with as_completed([2, 1], Gauge().work, limit=2, progress=progress) as ended:
        async for _ in ended:
            pass
    assert told == [(1, 3), (2, 3), (3, 3), (1, None), (2, None), (1, 2), (2, 2)]


async def test_an_error_of_progress_comes_out_and_ends_the_calls(
    autojump_clock: trio.testing.MockClock,
):
    def progress(done: int, total: int | None) -> None:
        raise LookupError

    gauge = Gauge()
    with pytest.RaisesGroup(LookupError):
        await each([1, 9], gauge.work, limit=2, progress=progress)
    assert (gauge.now, trio.current_time()) == (0, 1)


async def test_as_completed_gives_each_outcome_when_it_ends_with_its_place(
    autojump_clock: trio.testing.MockClock,
):
    async def invert(x: int) -> float:
        await trio.sleep(x)
        return 1 / (x - 2)

    seen = []
    async with as_completed([4, 3, 2, 1], invert, limit=3) as ended:
        async for index, result in ended:
            value = result.value if isinstance(result, outcome.Value) else type(result.error)
            seen.append((trio.current_time(), index, value))
    # Indices 1 and 3 end in one moment, in either order.
    assert sorted(seen[:3]) == [(2, 2, ZeroDivisionError), (3, 1, 1), (3, 3, -1)]
    assert seen[3:] == [(4, 0, 0.5)]


async def test_none_is_a_result_and_ends_no_iteration(autojump_clock: trio.testing.MockClock):
    async def nothing(takes_s: float) -> None:
        await trio.sleep(takes_s)

    async with as_completed([1, 2, 3], nothing, limit=1) as ended:
        assert [(i, o.unwrap()) async for i, o in ended] == [(0, None), (1, None), (2, None)]


async def test_leaving_early_cancels_the_rest_and_takes_no_further_item(
    autojump_clock: trio.testing.MockClock,
):
    gauge, limiter, taken = Gauge(), trio.CapacityLimiter(2), []

    def items() -> Iterator[float]:
        for takes_s in (1, 9, 9, 9, 9, 9, 9):
            taken.append(takes_s)
            yield takes_s

    async with as_completed(items(), gauge.work, limit=limiter) as ended:
        async for _ in ended:
            break
    assert trio.current_time() == 1
    assert (gauge.now, limiter.borrowed_tokens) == (0, 0)
    assert len(taken) <= 4
    with pytest.raises(trio.ClosedResourceError):
        await anext(ended)


async def test_the_blocks_own_error_comes_out_as_it_is(autojump_clock: trio.testing.MockClock):
    gauge, error = Gauge(), KeyError("mine")

    async def reads() -> None:
        async with as_completed([1, 9], gauge.work, limit=2) as ended:
            async for _ in ended:
                raise error

    with pytest.raises(KeyError) as raised:
        await reads()
    assert raised.value is error
    assert error.__context__ is None
    assert gauge.now == 0


async def test_as_completed_lets_an_error_of_the_items_out(
    autojump_clock: trio.testing.MockClock,
):
    def items() -> Iterator[float]:
        yield 1.0
        raise LookupError

    gauge = Gauge()
    with pytest.RaisesGroup(LookupError):
        async with as_completed(items(), gauge.work, limit=2) as ended:
            async for _ in ended:
                pass
    assert gauge.now == 0


async def test_a_slow_reader_holds_back_its_own_items_and_nobody_elses(
    autojump_clock: trio.testing.MockClock,
):
    """Four are unread or under way; the limiter that others share is free meanwhile."""
    gauge, limiter, begun = Gauge(), trio.CapacityLimiter(4), 0

    async def work(takes_s: float) -> float:
        nonlocal begun
        begun += 1
        return await gauge.work(takes_s)

    async with as_completed([1.0] * 20, work, limit=limiter) as ended:
        await trio.sleep(100)
        assert (begun, limiter.borrowed_tokens) == (4, 0)
        assert len([index async for index, _ in ended]) == 20
    assert trio.current_time() == 104


async def test_cancellation_of_the_reader_ends_all_of_as_completed(
    autojump_clock: trio.testing.MockClock,
):
    gauge = Gauge()
    with trio.move_on_after(1.5) as scope:
        async with as_completed([1, 9, 9], gauge.work, limit=2) as ended:
            async for _ in ended:
                pass
    assert scope.cancelled_caught
    assert gauge.now == 0


@pytest.mark.parametrize("way", ["each", "as_completed"])
async def test_cancelled_anywhere_every_place_comes_back(
    autojump_clock: trio.testing.MockClock, way: str
):
    gauge, limiter = Gauge(), trio.CapacityLimiter(2)

    async def scenario() -> None:
        if way == "each":
            await each([1, 3, 2, 1], gauge.work, limit=limiter)
            return
        async with as_completed([1, 3, 2, 1], gauge.work, limit=limiter) as ended:
            async for _ in ended:
                await trio.sleep(0.5)

    def check() -> None:
        assert (gauge.now, limiter.borrowed_tokens) == (0, 0)

    assert await cancel_at_every_checkpoint(scenario, check) > 8


@given(st.lists(st.integers(0, 6), max_size=15), st.integers(1, 4), st.integers(0, 15))
def test_both_ways_every_item_has_one_outcome_and_the_limit_holds(
    durations: list[int], limit: int, read: int
):
    async def main() -> None:
        ordered, unordered = Gauge(), Gauge()
        results = await each(durations, ordered.work, limit=limit)
        assert [r.unwrap() for r in results] == [s * 10 for s in durations]
        seen: dict[int, float] = {}
        async with as_completed(durations, unordered.work, limit=limit) as ended:
            async for index, result in ended:
                assert index not in seen
                seen[index] = result.unwrap()
                if len(seen) == read:
                    break
        assert seen == {index: durations[index] * 10 for index in seen}
        assert len(seen) == (min(read, len(durations)) if read else len(durations))
        assert max(ordered.most, unordered.most) <= limit
        assert ordered.now == unordered.now == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_for_each_calls_all_and_no_more_at_once_than_the_limit(
    autojump_clock: trio.testing.MockClock,
):
    gauge = Gauge()
    await for_each([3, 1, 2, 1], gauge.work, limit=2)
    assert (gauge.most, trio.current_time()) == (2, 4)
    await for_each([3, 1, 2, 1], gauge.work)
    assert (gauge.most, trio.current_time()) == (4, 7)


async def test_an_error_of_for_each_ends_the_others_and_takes_no_further_item(
    autojump_clock: trio.testing.MockClock,
):
    gauge, taken = Gauge(), list[int]()

    async def work(item: int) -> None:
        taken.append(item)
        if item == 2:
            raise KeyError(item)
        await gauge.work(60)

    with pytest.raises(ExceptionGroup) as raised:
        await for_each([1, 2, 3, 4], work, limit=2)
    assert [type(error) for error in raised.value.exceptions] == [KeyError]
    assert (taken[:2], gauge.now, trio.current_time()) == ([1, 2], 0, 0)
    assert 4 not in taken


async def test_for_each_cancelled_anywhere_leaves_nothing_under_way_and_the_limiter_whole(
    autojump_clock: trio.testing.MockClock,
):
    limiter, gauge = trio.CapacityLimiter(2), Gauge()

    async def scenario() -> None:
        await for_each([1.0, 2.0, 1.0], gauge.work, limit=limiter)

    def check() -> None:
        assert (limiter.borrowed_tokens, gauge.now) == (0, 0)

    assert await cancel_at_every_checkpoint(scenario, check) >= 4
