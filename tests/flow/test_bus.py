from dataclasses import dataclass
from functools import partial

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.cancelling import cancel_at_every_checkpoint

from custosd.flow.bus import Bus, BusClosed, Overflow, Subscription, handle


@dataclass(frozen=True)
class Event:
    number: int


class Alarm(Event):
    pass


class Other:
    pass


async def read(events: Subscription[Event], into: list[int], pause_s: float = 0) -> None:
    async for event in events:
        into.append(event.number)
        await trio.sleep(pause_s)


async def test_events_go_to_the_subscribers_of_their_type_in_order():
    bus = Bus()
    async with bus.subscribe(Event) as all_events, bus.subscribe(Alarm, name="alarms") as alarms:
        for number in range(4):
            await bus.publish(Alarm(number) if number % 2 else Event(number))
        await bus.publish(Other())
        bus.close()
        assert [event.number async for event in all_events] == [0, 1, 2, 3]
        assert [event.number async for event in alarms] == [1, 3]
        assert [each.name for each in bus.subscriptions] == ["Event", "alarms"]
    assert bus.subscriptions == ()
    assert (bus.published, bus.dropped, bus.unread) == (5, 0, 0)


@pytest.mark.parametrize(
    ("overflow", "left"),
    [("drop_oldest", [3, 4]), ("drop_newest", [0, 1]), ("keep_latest", [4])],
)
async def test_a_full_queue_drops_as_its_policy_says_and_counts_it(
    overflow: Overflow, left: list[int]
):
    bus = Bus()
    async with bus.subscribe(Event, room=2, overflow=overflow) as events:
        for number in range(5):
            await bus.publish(Event(number))
        assert events.dropped == bus.dropped == 5 - len(left)
        bus.close()
        assert [event.number async for event in events] == left
    assert bus.dropped == 5 - len(left)


async def test_a_slow_subscriber_holds_up_its_publisher_after_all_others_were_served(
    autojump_clock: trio.testing.MockClock,
):
    bus = Bus()
    slow: list[int] = []
    quick: list[tuple[float, int]] = []

    async def read_quickly(events: Subscription[Event]) -> None:
        quick.extend([(trio.current_time(), event.number) async for event in events])

    async with (
        bus.subscribe(Event, room=1) as for_slow,
        bus.subscribe(Event) as for_quick,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(read, for_slow, slow, 10)
        nursery.start_soon(read_quickly, for_quick)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(4):
            await bus.publish(Event(number))
        assert trio.current_time() == 20
        await bus.drain()
    assert quick == [(0, 0), (0, 1), (0, 2), (10, 3)]
    assert slow == [0, 1, 2, 3]


async def test_a_slow_subscriber_that_drops_holds_up_nobody(
    autojump_clock: trio.testing.MockClock,
):
    bus = Bus()
    seen: list[int] = []
    async with (
        bus.subscribe(Event, room=3, overflow="drop_oldest") as slow,
        bus.subscribe(Event) as quick,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(read, quick, seen)
        for number in range(1000):
            await bus.publish(Event(number))
        assert trio.current_time() == 0
        bus.close()
        assert [event.number async for event in slow] == [997, 998, 999]
    assert len(seen) == 1000


async def test_a_slow_handler_of_one_type_holds_up_no_other_type(
    autojump_clock: trio.testing.MockClock,
):
    bus = Bus()
    handled: list[tuple[float, str]] = []

    async def slow(event: Event) -> None:
        await trio.sleep(100)
        handled.append((trio.current_time(), "event"))

    async def quick(event: Other) -> None:
        handled.append((trio.current_time(), "other"))

    async def publish(events: list[object]) -> None:
        for event in events:
            await bus.publish(event)

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(handle, room=1), bus, Event, slow, lambda *_: None)
        await nursery.start(handle, bus, Other, quick, lambda *_: None)
        async with trio.open_nursery() as publishers:
            publishers.start_soon(publish, [Event(0), Event(1), Event(2), Event(3)])
            publishers.start_soon(publish, [Other() for _ in range(5)])
        assert trio.current_time() > 0, "nobody was slow"
        await bus.drain()
    assert handled == [(0, "other")] * 5 + [(100 * n, "event") for n in range(1, 5)]


async def test_a_failing_subscriber_harms_no_other_and_frees_its_publishers(
    autojump_clock: trio.testing.MockClock,
):
    bus = Bus()
    seen: list[int] = []

    async def block() -> None:
        async with bus.subscribe(Event, room=1) as events:
            async for _ in events:
                await trio.sleep(5)
                raise KeyError

    async def fails() -> None:
        with pytest.raises(KeyError):
            await block()

    async with trio.open_nursery() as nursery, bus.subscribe(Event) as events:
        nursery.start_soon(fails)
        nursery.start_soon(read, events, seen)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(10):
            await bus.publish(Event(number))
        await bus.drain()
    assert seen == list(range(10))
    assert bus.unread == 2  # one in its queue, and one that its publisher waited with
    assert trio.current_time() == 5


async def test_a_handlers_error_is_told_and_the_next_event_handled():
    bus = Bus()
    handled: list[int] = []
    errors: list[tuple[int, str]] = []

    async def handler(event: Event) -> None:
        if event.number == 1:
            raise KeyError("one")
        handled.append(event.number)

    async with trio.open_nursery() as nursery:
        await nursery.start(
            handle,
            bus,
            Event,
            handler,
            lambda event, error: errors.append((event.number, repr(error))),
        )
        for number in range(3):
            await bus.publish(Event(number))
        await bus.drain()
    assert handled == [0, 2]
    assert errors == [(1, "KeyError('one')")]


async def test_closing_loses_nothing_and_refuses_what_comes_later(
    autojump_clock: trio.testing.MockClock,
):
    bus = Bus()
    seen: list[int] = []
    async with bus.subscribe(Event, room=2) as events, trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(bus.publish, Event(number))
            await trio.testing.wait_all_tasks_blocked()
        bus.close()
        with pytest.raises(BusClosed):
            await bus.publish(Event(9))
        with pytest.raises(BusClosed):
            async with bus.subscribe(Event):
                pass
        await read(events, seen)
    assert seen == [0, 1, 2, 3, 4]
    assert bus.unread == bus.dropped == 0


async def test_what_a_subscriber_leaves_unread_is_counted():
    bus = Bus()
    async with bus.subscribe(Event) as events:
        for number in range(5):
            await bus.publish(Event(number))
        await anext(events)
    assert (events.offered, events.received, events.unread) == (5, 1, 4)
    assert bus.unread == 4


async def test_cancelled_at_any_checkpoint_every_event_is_counted_once(
    autojump_clock: trio.testing.MockClock,
):
    subscriptions: list[Subscription[Event]] = []

    async def scenario() -> None:
        subscriptions.clear()
        bus = Bus()
        async with (
            bus.subscribe(Event, room=1) as waits,
            bus.subscribe(Event, room=1, overflow="drop_oldest") as drops,
        ):
            subscriptions.extend((waits, drops))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, waits, [], 1)
                nursery.start_soon(read, drops, [], 2)
                for number in range(4):
                    await bus.publish(Event(number))
                await bus.drain()

    def check() -> None:
        for each in subscriptions:
            assert each.waiting == 0
            assert each.offered == each.received + each.dropped + each.unread

    assert await cancel_at_every_checkpoint(scenario, check) > 10


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["wait", "drop_oldest", "drop_newest", "keep_latest"]),
            st.integers(1, 3),
            st.integers(0, 5),
            st.integers(0, 30),
        ),
        max_size=4,
    ),
    st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(1, 8)), max_size=20),
)
def test_each_event_is_received_dropped_or_unread_and_order_holds(
    readers: list[tuple[Overflow, int, int, int]], plan: list[tuple[int, int | None]]
):
    bus = Bus()

    async def reader(overflow: Overflow, room: int, pause: int, leaves_after: int) -> None:
        seen: list[int] = []
        async with bus.subscribe(Event, room=room, overflow=overflow) as events:
            with trio.move_on_after(leaves_after / 10 if leaves_after < 25 else 1e6):
                await read(events, seen, pause / 10)
        assert events.offered == events.received + events.dropped + events.unread
        assert events.received == len(seen)
        assert seen == sorted(seen)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for each in readers:
                nursery.start_soon(reader, *each)
            await trio.testing.wait_all_tasks_blocked()
            for number, (pause, patience) in enumerate(plan):
                await trio.sleep(pause / 10)
                with trio.move_on_after(1e6 if patience is None else patience / 20):
                    await bus.publish(Event(number))
            await bus.drain()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert bus.subscriptions == ()
