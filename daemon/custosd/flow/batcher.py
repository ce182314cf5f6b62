"""Single items handled together, by so many or after so long, and each with its own outcome.

Laws:

1. A batch is handled when `size` items wait, or `delay_s` after the oldest was submitted, as
   soon as one of `concurrency` places is free.
2. An item is handled once, or never if its submitter gave up before its batch was made up.
3. One item's error is its submitter's alone; only an error of `handle` itself is everybody's.
4. No submitter is left waiting: what is queued at `stop` is handled, what is cut is told.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import inf
from typing import Generic, TypeVar

import outcome
import trio

from custosd.flow.single_flight import fresh

T = TypeVar("T")
R = TypeVar("R")


class BatcherStopped(Exception):
    """The item was not handled to its end: the batcher was stopped or cancelled before."""


@dataclass(eq=False, slots=True)
class _Waiting(Generic[T, R]):
    item: T
    submitted_at: float
    result: outcome.Outcome[R] | None = None
    done: trio.Event = field(default_factory=trio.Event)


class Batcher(Generic[T, R]):
    """Gathers items into batches for `handle`, which returns one outcome an item, in order.

    At most `most_waiting` items are queued; a submitter beyond that waits for room. `batches`
    and `handled` (items) count what `handle` was called with; `waiting` is the queue's length.
    """

    def __init__(
        self,
        handle: Callable[[Sequence[T]], Awaitable[Sequence[outcome.Outcome[R]]]],
        *,
        size: int = 5,
        delay_s: float = 0.1,
        concurrency: int = 1,
        most_waiting: int = 1000,
    ) -> None:
        if size < 1 or most_waiting < size:
            raise ValueError(f"batches of {size} (>= 1) out of {most_waiting} (not fewer) waiting")
        self.batches = self.handled = 0
        self._handle = handle
        self._size = size
        self._delay_s = delay_s
        self._room = trio.CapacityLimiter(most_waiting)
        self._concurrency = concurrency
        # Insertion order, and an item that is given up leaves from the middle.
        self._queue: dict[_Waiting[T, R], None] = {}
        self._changed = trio.lowlevel.ParkingLot()
        self._stopping = False
        self._ran = False

    @property
    def waiting(self) -> int:
        """How many items are queued, in no batch yet."""
        return len(self._queue)

    async def submit(self, item: T) -> R:
        """Have the item handled; return its own result.

        Waits for room, for the batch to fill or its delay to pass, and for `handle`. Cancelled
        while queued, the item is not handled; later, its batch goes on and its result is
        dropped. Raises: the item's own error; the error of `handle`, a copy for each item (a
        `ValueError` if it returned more or fewer outcomes than items); `BatcherStopped`.
        """
        entry = _Waiting[T, R](item, trio.current_time())
        await self._room.acquire_on_behalf_of(entry)
        if self._stopping:
            self._room.release_on_behalf_of(entry)
            raise BatcherStopped("submitted after it was stopped")
        self._queue[entry] = None
        self._changed.unpark_all()
        try:
            await entry.done.wait()
        except BaseException:
            if entry in self._queue:
                self._leave_queue(entry)
            raise
        match entry.result:
            case outcome.Value(value):
                own: R = value
                return own
            case outcome.Error(error):
                raise error
        raise BatcherStopped("it was cancelled before the item's batch had ended")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Handle what is submitted, until `stop`: then what is queued by then, and return.

        Started: at once. Runs once. Raises: nothing of `handle` but what is no `Exception`.
        """
        if self._ran:
            raise RuntimeError("a batcher runs once; make another one")
        self._ran = True
        task_status.started()
        places = trio.CapacityLimiter(self._concurrency)
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    place = object()
                    await places.acquire_on_behalf_of(place)
                    await self._until_due()
                    batch = list(islice(self._queue, self._size))
                    if not batch:
                        return
                    for entry in batch:
                        self._leave_queue(entry)
                    nursery.start_soon(self._handle_batch, batch, places, place)
        finally:
            self._stopping = True
            for entry in tuple(self._queue):
                self._leave_queue(entry)
                entry.done.set()

    def stop(self) -> None:
        """Take no more items, and let `run` end when the queue is handled; never waits."""
        self._stopping = True
        self._changed.unpark_all()

    async def _until_due(self) -> None:
        while not (self._stopping or len(self._queue) >= self._size):
            oldest = next(iter(self._queue), None)
            due_at = inf if oldest is None else oldest.submitted_at + self._delay_s
            if trio.current_time() >= due_at:
                return
            with trio.move_on_at(due_at):
                await self._changed.park()

    def _leave_queue(self, entry: _Waiting[T, R]) -> None:
        del self._queue[entry]
        self._room.release_on_behalf_of(entry)

    async def _handle_batch(
        self, batch: list[_Waiting[T, R]], places: trio.CapacityLimiter, place: object
    ) -> None:
        self.batches += 1
        self.handled += len(batch)
        try:
            results = await self._handle([entry.item for entry in batch])
            for entry, result in _matched(batch, results):
                entry.result = result
        except Exception as error:  # noqa: BLE001 - each submitter raises it
            for entry in batch:
                entry.result = outcome.Error(fresh(error))
        finally:
            places.release_on_behalf_of(place)
            for entry in batch:
                entry.done.set()


def _matched(items: Sequence[T], results: Sequence[R]) -> list[tuple[T, R]]:
    if len(items) != len(results):
        raise ValueError(
            f"a batcher's handle returned {len(results)} outcomes for {len(items)} items; "
            "it has to return one for each, in their order"
        )
    return list(zip(items, results, strict=True))
