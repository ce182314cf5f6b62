"""Work for a number of workers: bounded, by priority, and each item's outcome for who wants it.

Laws:

1. An item is worked on at most once.
2. No item that was taken in is lost: its outcome is handed to who submitted it, or its error is
   told to `on_error`; one that was not done, or cut short, is told as `WorkNotDone`.
3. A worker outlives the errors of its items.
4. Turns are `flow.line`'s: higher priority first, the oldest first within one, and who has
   waited `most_wait_s` goes before all others.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from math import inf
from types import TracebackType
from typing import Generic, Self, TypeVar

import outcome
import trio

from custosd.flow.background import block_nursery
from custosd.flow.line import Line

T = TypeVar("T")
R = TypeVar("R")


class WorkNotDone(Exception):
    """The queue was stopped or cancelled before the item was done.

    `begun` tells whether its work was under way, and may have had effects.
    """

    def __init__(self, *, begun: bool) -> None:
        super().__init__(
            "the work was cut short: the queue's block ended before it was done"
            if begun
            else "the work was not begun: the queue's block was left"
        )
        self.begun = begun


@dataclass(eq=False, slots=True)
class _Entry(Generic[T, R]):
    item: T
    wanted: bool
    result: outcome.Maybe[R] | None = None
    done: trio.Event = field(default_factory=trio.Event)


class WorkQueue(Generic[T, R]):
    """Calls `work` on what is put or submitted; `async with WorkQueue(...) as queue` runs it.

    At most `room` items wait; producers beyond that wait for room, in order. Leaving the block
    takes in nothing more and waits until everything is done, for at most `drain_timeout_s`; an
    error or a cancellation cuts it short. `on_error` is called with an item and its error when
    nobody waits for its outcome, and may not wait. `done` and `failed` are counters, `cut`
    counts the items that are not done.
    """

    def __init__(
        self,
        work: Callable[[T], Awaitable[R]],
        on_error: Callable[[T, Exception], None],
        *,
        workers: int = 10,
        room: int = 1000,
        most_wait_s: float = 60.0,
        drain_timeout_s: float = inf,
    ) -> None:
        if workers < 1 or room < 1:
            raise ValueError(f"a queue with {workers} workers and room for {room}: at least 1 each")
        self.done = self.failed = self.cut = 0
        self._work = work
        self._on_error = on_error
        self._workers = workers
        self._room = trio.CapacityLimiter(room)
        self._line = Line[_Entry[T, R]](most_wait_s)
        self._drain_timeout_s = drain_timeout_s
        self._state = "not run yet"
        self._in_work = 0
        self._idle_workers = trio.lowlevel.ParkingLot()
        self._changed = trio.lowlevel.ParkingLot()
        self._block: AbstractAsyncContextManager[None]

    @property
    def waiting(self) -> int:
        """How many items wait for a worker."""
        return len(self._line)

    @property
    def in_work(self) -> int:
        """How many items are worked on."""
        return self._in_work

    async def __aenter__(self) -> Self:
        if self._state != "not run yet":
            raise RuntimeError("a work queue is run once; make another one")
        self._block = self._run()
        await self._block.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return await self._block.__aexit__(kind, error, trace)

    async def put(self, item: T, priority: int = 0) -> None:
        """Take the item in, waiting for room; its error, if any, goes to `on_error`.

        Cancelled, it was not taken in. Raises `WorkNotDone` if the queue takes in no more.
        """
        await self._put(_Entry(item, wanted=False), priority)

    def put_nowait(self, item: T, priority: int = 0) -> None:
        """As `put`, without waiting. Raises `trio.WouldBlock` where there is no room."""
        entry = _Entry[T, R](item, wanted=False)
        if self._state == "running":
            self._room.acquire_on_behalf_of_nowait(entry)
        self._join(entry, priority)

    async def submit(self, item: T, priority: int = 0) -> R:
        """Have the item worked on, and return its result.

        Cancelled while it waits for a worker, it is not worked on; later, its work goes on, and
        an error of it goes to `on_error`. Raises: the item's error; `WorkNotDone`.
        """
        entry = _Entry[T, R](item, wanted=True)
        await self._put(entry, priority)
        try:
            await entry.done.wait()
        except BaseException:
            entry.wanted = False
            if entry in self._line:
                self._leave_line(entry)
            raise
        match entry.result:
            case outcome.Value(value):
                own: R = value
                return own
            case outcome.Error(error):
                raise error
        raise AssertionError("an entry is done without a result")

    async def drain(self) -> None:
        """Return when nothing waits and nothing is worked on; more may be taken in meanwhile."""
        await trio.lowlevel.checkpoint()
        while len(self._line) or self._in_work:
            await self._changed.park()

    def stop(self) -> None:
        """Take in nothing more; what was taken in is still done. Never waits."""
        if self._state == "running":
            self._state = "stopped"

    async def _put(self, entry: _Entry[T, R], priority: int) -> None:
        await self._room.acquire_on_behalf_of(entry)
        if self._state != "running":
            self._room.release_on_behalf_of(entry)
        self._join(entry, priority)

    def _join(self, entry: _Entry[T, R], priority: int) -> None:
        if self._state != "running":
            raise WorkNotDone(begun=False)
        self._line.join(entry, priority, trio.current_time())
        self._idle_workers.unpark()

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        async with block_nursery("the work queue's block was left") as nursery:
            self._state = "running"
            for number in range(self._workers):
                nursery.start_soon(self._worker, name=f"worker {number}")
            try:
                yield
                self.stop()
                with trio.move_on_after(self._drain_timeout_s):
                    await self.drain()
            finally:
                self._state = "left"
                for entry in tuple(self._line):
                    self._leave_line(entry)
                    self._cut(entry, begun=False)

    async def _worker(self) -> None:
        while True:
            entry = self._line.first(trio.current_time())
            if entry is None:
                await self._idle_workers.park()
                continue
            self._leave_line(entry)
            self._in_work += 1
            try:
                await self._do(entry)
            finally:
                self._in_work -= 1
                self._changed.unpark_all()

    async def _do(self, entry: _Entry[T, R]) -> None:
        try:
            entry.result = outcome.Value(await self._work(entry.item))
            self.done += 1
            entry.done.set()
        except Exception as error:  # noqa: BLE001 - handed or told on
            self.failed += 1
            self._fail(entry, error)
        except BaseException:
            self._cut(entry, begun=True)
            raise

    def _cut(self, entry: _Entry[T, R], *, begun: bool) -> None:
        self.cut += 1
        self._fail(entry, WorkNotDone(begun=begun))

    def _fail(self, entry: _Entry[T, R], error: Exception) -> None:
        entry.result = outcome.Error(error)
        entry.done.set()
        if not entry.wanted:
            self._on_error(entry.item, error)

    def _leave_line(self, entry: _Entry[T, R]) -> None:
        self._line.leave(entry)
        self._room.release_on_behalf_of(entry)
        self._changed.unpark_all()
