from collections.abc import Iterator

import pytest
import trio
import trio.testing

from custosd.flow.bounded import each


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
