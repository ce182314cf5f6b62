"""An alarm wakes its task at the earliest time that was asked for, or when it is rung."""

import trio
import trio.testing

from custosd.flow.alarm import Alarm


async def waited_s(alarm: Alarm) -> float:
    start = trio.current_time()
    await alarm.wait()
    return trio.current_time() - start


async def test_the_earliest_time_wins_and_no_wait_is_longer_than_the_longest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    alarm = Alarm(60.0, 0.5)
    assert await waited_s(alarm) == 60
    for seconds in (40, 20, 30):
        alarm.after(seconds)
    assert await waited_s(alarm) == 20
    alarm.rewind()
    alarm.after(-5)
    assert await waited_s(alarm) == 0.5


async def test_a_ring_during_the_work_ends_the_next_wait(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    alarm = Alarm(60.0)
    alarm.rewind()
    alarm.ring()
    assert await waited_s(alarm) == 0
    alarm.rewind()
    nursery.start_soon(ring_later, alarm)
    assert await waited_s(alarm) == 3


async def ring_later(alarm: Alarm) -> None:
    await trio.sleep(3)
    alarm.ring()
