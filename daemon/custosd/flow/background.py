"""Tasks in the background of a block: named, bounded in number, and ended with it.

Laws:

1. No task outlives the block; leaving it cancels what still runs and waits for its clean-up.
2. No error is lost: each is told to `on_error` when it happens, whoever else asks for it.
3. A task that was cancelled did not fail; who waits for it is told that it was cancelled.
4. Outcomes that nobody asked for are kept, the oldest dropped beyond a bound, and counted.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import outcome
import trio

from custosd.flow.single_flight import fresh
from custosd.flow.supervise import Failure, RestartPolicy, supervise

R = TypeVar("R")


@asynccontextmanager
async def block_nursery(reason: str) -> AsyncIterator[trio.Nursery]:
    """A nursery for a block's servants: they are cancelled, with `reason`, when it is left.

    The block's own error comes out as it is, and not in a group, unless a servant failed as
    well; a servant's error cancels the block and comes out in an `ExceptionGroup`.
    """
    error_of_block: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as error:
                error_of_block = error
                raise
            finally:
                nursery.cancel_scope.cancel(reason)
    except BaseExceptionGroup as group:
        # Compared by leaves: a group that passes through a nursery comes out as another one.
        own = {id(leaf) for leaf in _leaves(error_of_block)}
        if any(id(leaf) not in own for leaf in _leaves(group)):
            raise
    else:
        error_of_block = None
    if error_of_block is not None:
        raise error_of_block


def _leaves(error: BaseException | None) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    elif error is not None:
        yield error


class TaskCancelled(Exception):
    """The task was cancelled before it had a result."""


@dataclass(eq=False, slots=True)
class BackgroundTask(Generic[R]):
    """One task: its name, since when, and what became of it. Made by `Background.start`.

    `result` is None while it runs, and for ever if it was cancelled; `ended_at` (trio clock)
    tells these two apart. `restarts` counts the failed runs that were followed by another.
    """

    name: str
    started_at: float
    result: outcome.Maybe[R] | None = None
    ended_at: float | None = None
    restarts: int = 0
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    asked: Callable[["BackgroundTask[Any]"], None] = lambda _: None

    def cancel(self, reason: str = "cancelled by name") -> None:
        """Have it end at its next checkpoint; never waits. Nothing happens if it has ended."""
        self.scope.cancel(reason)

    async def wait(self) -> R:
        """Its result, when it has ended; any number may wait, and giving up harms nothing.

        Raises: the task's error (a copy for each who asks); `TaskCancelled`.
        """
        await self.ended.wait()
        self.asked(self)
        match self.result:
            case outcome.Value(value):
                own: R = value
                return own
            case outcome.Error(error):
                raise fresh(error)
        raise TaskCancelled(f"the background task {self.name!r} was cancelled")


class Background:
    """What runs in the background of a block; made by `open_background`.

    `started`, `failed` and `dropped` (outcomes that nobody asked for in time) are counters.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        on_error: Callable[[str, Exception], None],
        most: int,
        most_kept: int,
    ) -> None:
        self.started = self.failed = self.dropped = 0
        self._nursery = nursery
        self._on_error = on_error
        self._most_kept = most_kept
        self._places = trio.CapacityLimiter(most)
        self._running: dict[str, BackgroundTask[Any]] = {}
        self._kept: dict[str, BackgroundTask[Any]] = {}
        self._idle = trio.lowlevel.ParkingLot()

    @property
    def running(self) -> tuple[str, ...]:
        """The names of what runs, in the order of starting."""
        return tuple(self._running)

    @property
    def kept(self) -> tuple[str, ...]:
        """The names of ended tasks whose outcome nobody has asked for, the oldest first."""
        return tuple(self._kept)

    def __getitem__(self, name: str) -> BackgroundTask[Any]:
        """The running task of that name, else the ended one that is kept, else `KeyError`."""
        task = self._running.get(name) or self._kept.get(name)
        if task is None:
            raise KeyError(f"no background task {name!r} runs, and no outcome of one is kept")
        return task

    async def start(
        self,
        name: str,
        fn: Callable[[], Awaitable[R]],
        *,
        restarts: RestartPolicy | None = None,
    ) -> BackgroundTask[R]:
        """Begin `fn()` in the background; wait for a place first if as many as may run do.

        With a policy, a failed run is followed by another as `supervise` says. Cancelled
        while it waits, nothing has begun. Raises `ValueError` if one of that name runs; a
        kept outcome of that name is dropped, and counted.
        """
        task = BackgroundTask[R](name, trio.current_time(), asked=self._forget)
        await self._places.acquire_on_behalf_of(task)
        if name in self._running:
            self._places.release_on_behalf_of(task)
            raise ValueError(f"a background task named {name!r} runs already")
        task.started_at = trio.current_time()
        self._nursery.start_soon(self._run, task, fn, restarts, name=name)
        if self._kept.pop(name, None) is not None:
            self.dropped += 1
        self._running[name] = task
        self.started += 1
        return task

    async def wait_idle(self) -> None:
        """Return when nothing runs any more."""
        await trio.lowlevel.checkpoint()
        while self._running:
            await self._idle.park()

    async def _run(
        self,
        task: BackgroundTask[R],
        fn: Callable[[], Awaitable[R]],
        restarts: RestartPolicy | None,
    ) -> None:
        try:
            with task.scope:
                if restarts is None:
                    task.result = outcome.Value(await fn())
                else:
                    await self._run_supervised(task, fn, restarts)
        except Exception as error:  # noqa: BLE001 - kept as the outcome, and told
            self.failed += 1
            task.result = outcome.Error(error)
            self._on_error(task.name, error)
        finally:
            self._end(task)

    async def _run_supervised(
        self, task: BackgroundTask[R], fn: Callable[[], Awaitable[R]], policy: RestartPolicy
    ) -> None:
        async def service(task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            task.result = outcome.Value(await fn())

        def on_failure(failure: Failure) -> None:
            if failure.delay_s is not None:  # the last one is told with the outcome
                task.restarts += 1
                self._on_error(task.name, failure.error)

        await supervise(task.name, service, policy, on_failure)

    def _end(self, task: BackgroundTask[Any]) -> None:
        task.ended_at = trio.current_time()
        del self._running[task.name]
        self._places.release_on_behalf_of(task)
        self._kept[task.name] = task
        while len(self._kept) > self._most_kept:
            del self._kept[next(iter(self._kept))]
            self.dropped += 1
        task.ended.set()
        if not self._running:
            self._idle.unpark_all()

    def _forget(self, task: BackgroundTask[Any]) -> None:
        # One of the same name may have come since: its outcome nobody has asked for.
        if self._kept.get(task.name) is task:
            del self._kept[task.name]


@asynccontextmanager
async def open_background(
    on_error: Callable[[str, Exception], None], *, most: int = 100, most_kept: int = 1000
) -> AsyncIterator[Background]:
    """A block with tasks in its background, at most `most` at once.

    `on_error` is called with a task's name and error at once, and may not wait; its own
    error ends the block. Leaving the block cancels what runs: `await tasks.wait_idle()`
    first where it is to be finished. The block's own error comes out as it is.
    """
    async with block_nursery("the block over its background tasks was left") as nursery:
        yield Background(nursery, on_error, most, most_kept)
