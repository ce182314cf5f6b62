"""Events to whoever subscribed to their type, each subscriber with a bounded queue of its own.

Laws:

1. An event goes to the subscriptions that are open when it is published, in the order of
   publishing, at most once each.
2. A subscriber that is slow or fails harms no other: only one whose policy is "wait" holds
   its publishers up, and they have given the event to all others before.
3. Each offered event is counted once for each subscription: received, dropped (by its policy,
   or by its publisher's giving up), or unread when the subscriber left; until then it waits.
4. `close` takes nothing from what was published before.
"""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import trio

E = TypeVar("E")

# What happens to an event for which a subscription has no room. "wait": its publisher waits.
# "keep_latest" is "drop_oldest" with room for one.
Overflow = Literal["wait", "drop_oldest", "drop_newest", "keep_latest"]


class BusClosed(Exception):
    """Nothing is published any more."""


@dataclass(eq=False, slots=True)
class _Waiting(Generic[E]):
    # A publisher that waits for room.
    event: E
    done: trio.Event = field(default_factory=trio.Event)


@dataclass(eq=False, slots=True)
class _Queue(Generic[E]):
    # One subscriber's events; `publishers` wait for room in it, under the policy "wait" alone.
    name: str
    topics: tuple[type[E], ...]
    room: int
    overflow: Overflow
    offered: int = 0
    received: int = 0
    dropped: int = 0
    unread: int = 0
    events: deque[E] = field(default_factory=deque)
    publishers: dict[_Waiting[E], None] = field(default_factory=dict)
    readers: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    ended: bool = False

    def __len__(self) -> int:
        return len(self.events) + len(self.publishers)

    def offer(self, event: E) -> _Waiting[E] | None:
        # None: the event is settled; else its publisher has to wait until it is.
        self.offered += 1
        if len(self.events) < self.room:
            self.events.append(event)
            self.readers.unpark()
        elif self.overflow == "wait":
            waiting = _Waiting(event)
            self.publishers[waiting] = None
            return waiting
        else:
            self.dropped += 1
            if self.overflow != "drop_newest":
                self.events.popleft()
                self.events.append(event)
        return None

    def take(self) -> E:
        event = self.events.popleft()
        self.received += 1
        # In the reader's own step: no newcomer slips in before a publisher that waits.
        if self.publishers:
            waiting = next(iter(self.publishers))
            del self.publishers[waiting]
            self.events.append(waiting.event)
            self.readers.unpark()
            waiting.done.set()
        self.changed.unpark_all()
        return event

    def give_up(self, waiting: _Waiting[E]) -> None:
        if waiting in self.publishers:
            del self.publishers[waiting]
            self.dropped += 1
            self.changed.unpark_all()

    def end(self) -> None:
        self.ended = True
        self.readers.unpark_all()

    def leave(self) -> None:
        self.unread = len(self)
        self.events.clear()
        for waiting in self.publishers:
            waiting.done.set()
        self.publishers.clear()
        self.end()
        self.changed.unpark_all()


class Subscription(AsyncIterator[E]):
    """One subscriber's events; iteration ends when the bus is closed and all has been read.

    Several tasks may read from it: each event goes to one of them.
    """

    def __init__(self, queue: _Queue[E]) -> None:
        self._queue = queue

    @property
    def name(self) -> str:
        """As given, else the types' names."""
        return self._queue.name

    @property
    def offered(self) -> int:
        """How many events were published for it: received + dropped + waiting + unread."""
        return self._queue.offered

    @property
    def received(self) -> int:
        """How many events were read."""
        return self._queue.received

    @property
    def dropped(self) -> int:
        """How many the policy dropped, or a publisher that gave up waiting for room."""
        return self._queue.dropped

    @property
    def waiting(self) -> int:
        """How many are to be read, those of waiting publishers included."""
        return len(self._queue)

    @property
    def unread(self) -> int:
        """How many were waiting when the subscriber left; 0 before."""
        return self._queue.unread

    async def __anext__(self) -> E:
        await trio.lowlevel.checkpoint()
        while not self._queue.events:
            if self._queue.ended:
                raise StopAsyncIteration
            await self._queue.readers.park()
        return self._queue.take()


class Bus:
    """Takes events of any type, and passes them on to the subscriptions to it.

    It starts no task. `published` counts events; `dropped` and `unread` sum up what the
    subscriptions counted, those that have ended included.
    """

    def __init__(self) -> None:
        self.published = 0
        self._queues: list[_Queue[Any]] = []
        self._dropped_before = self._unread_before = 0
        self._closed = False

    @property
    def subscriptions(self) -> tuple[Subscription[Any], ...]:
        """The open subscriptions, the oldest first."""
        return tuple(Subscription(queue) for queue in self._queues)

    @property
    def dropped(self) -> int:
        """Events that a subscription's policy, or a publisher that gave up, has dropped."""
        return self._dropped_before + sum(queue.dropped for queue in self._queues)

    @property
    def unread(self) -> int:
        """Events that subscribers had not read when they left."""
        return self._unread_before

    @asynccontextmanager
    async def subscribe(
        self, *topics: type[E], name: str = "", room: int = 100, overflow: Overflow = "wait"
    ) -> AsyncIterator[Subscription[E]]:
        """Open a subscription to events of these types, their subtypes included, for the block.

        At most `room` events wait for the reader. Raises `BusClosed`.
        """
        if self._closed:
            raise BusClosed("subscribed to a closed bus")
        if room < 1 or not topics:
            raise ValueError(f"a subscription to {len(topics)} types with room for {room} events")
        named = name or "|".join(topic.__name__ for topic in topics)
        queue = _Queue(named, topics, 1 if overflow == "keep_latest" else room, overflow)
        self._queues.append(queue)
        try:
            yield Subscription(queue)
        finally:
            self._queues.remove(queue)
            queue.leave()
            self._dropped_before += queue.dropped
            self._unread_before += queue.unread

    async def publish(self, event: object) -> None:
        """Give the event to each subscription to its type; wait where "wait" has no room.

        Cancelled while it waits, the event counts as dropped where it found no room; all
        others have it. Raises `BusClosed`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise BusClosed("published to a closed bus")
        self.published += 1
        queues = [queue for queue in self._queues if isinstance(event, queue.topics)]
        offers = [(queue, queue.offer(event)) for queue in queues]
        try:
            for _, waiting in offers:
                if waiting is not None:
                    await waiting.done.wait()
        finally:
            for queue, waiting in offers:
                if waiting is not None:
                    queue.give_up(waiting)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def close(self) -> None:
        """Let nothing more be published; iterations end when they have read what there is."""
        self._closed = True
        for queue in self._queues:
            queue.end()

    async def drain(self) -> None:
        """Close, and wait until every subscriber has read all that was published, or has left.

        Bounded by nothing but the caller's own deadline.
        """
        self.close()
        await trio.lowlevel.checkpoint()
        for queue in tuple(self._queues):
            while len(queue):
                await queue.changed.park()


async def handle(
    bus: Bus,
    topic: type[E],
    handler: Callable[[E], Awaitable[object]],
    on_error: Callable[[E, Exception], None],
    *,
    name: str = "",
    room: int = 100,
    overflow: Overflow = "wait",
    task_status: trio.TaskStatus[Subscription[E]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call `handler` with each event, one after the other, until the bus is closed and drained.

    Started: when subscribed. Its error is told to `on_error`, which may not wait, and the next
    event is handled.
    """
    async with bus.subscribe(topic, name=name, room=room, overflow=overflow) as events:
        task_status.started(events)
        async for event in events:
            try:
                await handler(event)
            except Exception as error:  # noqa: BLE001 - told, and the next event is handled
                on_error(event, error)
