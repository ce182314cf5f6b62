"""The one way from trio to PostgreSQL: an asyncio loop on a thread of its own.

Laws. asyncio is known to this module and to `pool`, which runs on its far side; nobody else.
A unit of work crosses once. Whoever crosses comes back: with a value, an error, its own
cancellation after the query was cancelled on the server, or `BridgeDied`. Whoever is
cancelled comes back in bounded time, also when the loop's thread is stuck.
"""

import asyncio
import contextvars
import sys
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Generic, Never, TypeVar, TypeVarTuple, cast

import outcome
import structlog
import trio
import uvloop

from custosd.adapters.postgres.pool import Connection, Pool, PoolLimits, PoolUse, Record
from custosd.core.errors import StoreError
from custosd.flow.monitor import Kind, operation

__all__ = [
    "Bridge",
    "BridgeDied",
    "Connection",
    "Database",
    "PoolUse",
    "Record",
    "open_bridge",
    "open_database",
]

log = structlog.get_logger()

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# A trio thread that never blocks keeps the interpreter's lock for a whole interval each
# time the loop wants it; at the default of 5 ms a query of three packets takes 15.
_SWITCH_INTERVAL_S = 0.0005
_REAP_S = 5.0
_STUCK_S = 10.0
_CLOSING_ROUNDS = 3


class BridgeDied(StoreError):
    """The loop's thread has ended: no unit can run any more; the daemon has to be restarted."""


class Bridge:
    """An asyncio loop on its own thread; opened by `open_bridge`, used from one trio run."""

    def __init__(self, far: "_Far") -> None:
        self._far = far

    async def run(self, afn: Callable[[*Ts], Coroutine[Any, Any, T]], *args: *Ts) -> T:
        """Await `afn(*args)` on the loop's thread, in the caller's context variables.

        Cancelled: the asyncio task is cancelled, and the caller goes on when that task has
        ended, or when it did not end in `stuck_s`; a task that ends with a value all the
        same returns it. Raises what `afn` raises, and `BridgeDied` when the loop has ended
        or cancelled the task itself.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._far.ended.is_set():
            raise self._far.death()
        call = _Call(self._far, afn, args)
        self._far.calls.add(call)
        self._far.post_inward(call.start)
        return cast("T", await trio.lowlevel.wait_task_rescheduled(call.abort))

    async def run_last(self, afn: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Await `afn()` on the loop's thread for `stuck_s` at most; its errors are nobody's."""
        await self._far.last(afn)


class _Far:
    """The loop and its thread, the queues to it and from it, and who waits for an answer."""

    def __init__(self, stuck_s: float) -> None:
        self.stuck_s = stuck_s
        self.loop = uvloop.new_event_loop()
        self.loop.set_exception_handler(_loop_failed)
        self.calls: set[_Call[Any]] = set()
        self.ended = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._inward: deque[Callable[[], None]] = deque()
        self._outward: deque[Callable[[], None]] = deque()
        self._cause: BaseException | None = None

    # One wake-up for a whole batch: an entry stays in its queue while it runs, so whoever
    # finds its own entry alone there knows that nobody is draining. Holds because each
    # direction has one thread that appends and one that drains.

    def post_inward(self, entry: Callable[[], None]) -> None:
        self._inward.append(entry)
        if len(self._inward) == 1:
            # Closed: the thread's end is on its way to us and fails every call.
            with suppress(RuntimeError):
                self.loop.call_soon_threadsafe(_drain, self._inward)

    def post_outward(self, entry: Callable[[], None]) -> None:
        self._outward.append(entry)
        if len(self._outward) == 1:
            # Trio has ended: nobody is left to hear of it.
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(_drain, self._outward)

    def death(self) -> BridgeDied:
        died = BridgeDied("the database thread has ended; restart the daemon")
        died.__cause__ = self._cause
        return died

    def serve(self) -> None:
        """The thread: run the loop until it is stopped or dies, then let every task end."""
        try:
            self.loop.run_forever()
        except BaseException as error:  # noqa: BLE001 - whatever it was, the callers must hear of it
            self._cause = error
        try:
            self.loop.run_until_complete(_reap())
            self.loop.close()
        finally:
            self.post_outward(self._end)

    def _end(self) -> None:
        self.ended.set()
        for call in tuple(self.calls):
            call.finish(None)

    async def last(self, afn: Callable[[], Coroutine[Any, Any, object]]) -> None:
        done = trio.Event()
        tasks: list[asyncio.Task[None]] = []

        async def run() -> None:
            try:
                with suppress(Exception):
                    await afn()
            finally:
                self.post_outward(done.set)

        def start() -> None:  # loop's thread; the list keeps the task alive
            tasks.append(self.loop.create_task(run()))

        if not self.ended.is_set():
            self.post_inward(start)
            with trio.move_on_after(self.stuck_s):
                await done.wait()

    async def stop(self) -> None:
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)
        # A coroutine that never lets go of its thread is left behind with it.
        with trio.move_on_after(self.stuck_s):
            await self.ended.wait()
        if not self.ended.is_set():
            log.error("bridge.stuck", during="stop", waited_s=self.stuck_s)


class _Call(Generic[T]):
    """One crossing: begun and ended in the trio thread, run in the loop's."""

    __slots__ = ("_afn", "_args", "_cancel", "_context", "_far", "_over", "_task", "_work")

    def __init__(
        self, far: _Far, afn: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...]
    ) -> None:
        self._far = far
        self._afn = afn
        self._args = args
        self._context = contextvars.copy_context()
        self._task = trio.lowlevel.current_task()
        self._cancel: Callable[[], Never] | None = None
        self._work: asyncio.Task[T] | None = None
        self._over = trio.Event()

    def start(self) -> None:  # loop's thread
        self._work = self._far.loop.create_task(self._run(), context=self._context)
        self._work.add_done_callback(self._done)

    async def _run(self) -> T:
        return await self._afn(*self._args)

    def _done(self, work: asyncio.Task[T]) -> None:  # loop's thread
        result: outcome.Outcome[T] | None
        if work.cancelled():
            result = None
        elif (error := work.exception()) is not None:
            result = outcome.Error(error)
        else:
            result = outcome.Value(work.result())
        self._far.post_outward(partial(self.finish, result))

    def abort(self, raise_cancel: Callable[[], Never]) -> trio.lowlevel.Abort:  # trio's thread
        self._cancel = raise_cancel
        self._far.post_inward(self._cancel_work)
        # The driver cleans up first: a connection must not be lent again before.
        trio.lowlevel.spawn_system_task(self._give_up)
        return trio.lowlevel.Abort.FAILED

    async def _give_up(self) -> None:
        with trio.move_on_after(self._far.stuck_s):
            await self._over.wait()
            return
        log.error("bridge.stuck", during="cancel", waited_s=self._far.stuck_s)
        self.finish(None)

    def _cancel_work(self) -> None:  # loop's thread, after `start`
        if self._work is not None:
            self._work.cancel()

    def finish(self, result: outcome.Outcome[T] | None) -> None:  # trio's thread
        if self not in self._far.calls:
            return
        self._far.calls.remove(self)
        self._over.set()
        if result is None:
            result = (
                outcome.Error(self._far.death())
                if self._cancel is None
                else outcome.capture(self._cancel)
            )
        trio.lowlevel.reschedule(self._task, result)


async def _reap() -> None:
    await asyncio.sleep(0)  # calls that were on their way in become tasks first
    itself = asyncio.current_task()
    stuck: set[asyncio.Task[Any]] = set()
    while not stuck and (live := asyncio.all_tasks() - {itself}):
        for task in live:
            task.cancel()
        _, stuck = await asyncio.wait(live, timeout=_REAP_S)
    # What the tasks closed is closed in the next rounds of the loop.
    for _ in range(_CLOSING_ROUNDS):
        await asyncio.sleep(0)


def _drain(queue: deque[Callable[[], None]]) -> None:
    while queue:
        try:
            queue[0]()
        finally:
            queue.popleft()


def _loop_failed(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # The driver tells here of connections that broke while nobody used them: the next
    # unit hears of it by its own error.
    log.debug(
        "bridge.callback_failed",
        what=context.get("message", ""),
        error=type(context.get("exception")).__name__,
    )


@asynccontextmanager
async def open_bridge(*, stuck_s: float = _STUCK_S) -> AsyncGenerator[Bridge, None]:
    """Open a bridge for one trio run; at the end its tasks are cancelled and awaited.

    A thread that does not answer for `stuck_s` is left behind, at the end and by whoever
    is cancelled (`bridge.stuck`). Sets the interpreter's switch interval while it is open.
    """
    far = _Far(stuck_s)
    thread = threading.Thread(target=far.serve, name="custosd-postgres", daemon=True)
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    thread.start()
    try:
        yield Bridge(far)
    finally:
        with trio.CancelScope(shield=True):
            await far.stop()
        sys.setswitchinterval(interval_s)


class Database:
    """Units of work on PostgreSQL; opened by `open_database`."""

    def __init__(self, bridge: Bridge, pool: Pool) -> None:
        self._bridge = bridge
        self._pool = pool

    async def unit(
        self,
        fn: Callable[[Connection, *Ts], Awaitable[T]],
        *args: *Ts,
        tx: bool = True,
    ) -> T:
        """Run the coroutine function `fn(connection, *args)` on the loop's thread.

        All of it in one transaction, or with `tx=False` each statement in its own (one round
        trip instead of three: for a single statement). `fn` may await the connection and
        nothing of trio; settings and locks that it takes must be its transaction's own; it
        must not go on after a failed statement.

        Raises `StoreUnavailable`, `StoreConflict`, `StoreRefused`, `BridgeDied`, and what
        `fn` itself raises. Cancelled: the statement is cancelled on the server and the
        transaction rolled back, within the release timeout; a commit under way may have
        happened. Slow server: bounded by the timeouts that the database was opened with.
        """
        async with operation(Kind.DATABASE, getattr(fn, "__name__", "unit")):
            return await self._bridge.run(self._use, fn, args, tx)

    async def _use(
        self,
        fn: Callable[[Connection, *Ts], Awaitable[T]],
        args: tuple[*Ts],
        tx: bool,  # noqa: FBT001 - the bridge carries positional arguments only
    ) -> T:
        return await self._pool.use(fn, args, tx=tx)

    @property
    def usage(self) -> PoolUse:
        """How the pool is used at this moment."""
        return self._pool.usage()


@asynccontextmanager
async def open_database(
    dsn: str,
    *,
    password: str | None = None,
    pool_size: int = 10,
    acquire_timeout_s: float = 5.0,
    statement_timeout_s: float = 30.0,
    connect_timeout_s: float = 5.0,
    release_timeout_s: float = 2.0,
    stuck_s: float = _STUCK_S,
) -> AsyncGenerator[Database, None]:
    """Open a database on a bridge of its own; the server need not be there yet.

    With several hosts in `dsn` all are dialled at once and the primary is taken. Connections
    are opened as they are needed, `pool_size` at most. A cancelled caller waits for a
    frozen server no longer than `release_timeout_s`, for a stuck thread no longer than
    `stuck_s`.
    """
    limits = PoolLimits(
        size=pool_size,
        acquire_timeout_s=acquire_timeout_s,
        connect_timeout_s=connect_timeout_s,
        statement_timeout_s=statement_timeout_s,
        release_timeout_s=release_timeout_s,
    )
    pool = Pool(dsn, password, limits)
    async with open_bridge(stuck_s=stuck_s) as bridge:
        try:
            yield Database(bridge, pool)
        finally:
            with trio.CancelScope(shield=True):
                await bridge.run_last(pool.close)
