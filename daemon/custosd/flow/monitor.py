"""What runs, how long it takes, how long it waited for its turn, and how it ends.

    async with monitor.operation(Kind.DATABASE, "restore"): ...

    @traced(Kind.FILE, timeout_s=5.0)
    async def read(path: Path) -> bytes: ...

Laws:

1. Whoever measures changes nothing: no checkpoint, no lock, no error of its own; errors and
   cancellation pass through as they are.
2. Cancellation is an outcome of its own, never an error.
3. Memory is bounded: a row for each kind and name, `MOST_SERIES` at most; what is beyond
   shares one row a kind.
4. Execution time and waiting time are two things: `queued_s` is in no execution time.
5. A row tells of all its time and of the recent: the stretch that began `RECENT_S` to twice
   that ago, so that an hour of calm does not hide a bad minute.
6. All of it in trio's thread, by trio's clock.

The mean concurrency is measured twice: as the time integral of what is running, and by
Little's law (J. D. C. Little, 1961) as arrival rate times mean time. In the long run both
agree; a ratio that stays above 1 means operations that began and have not ended.
"""

import inspect
from bisect import bisect_left
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from math import inf
from types import TracebackType
from typing import Any, ParamSpec, Protocol, Self, TypeVar, cast

import trio

from custosd.flow.retry import FailedAttempt, RetryPolicy, retry
from custosd.flow.sketch import Sketch

P = ParamSpec("P")
R = TypeVar("R")

MOST_SERIES = 500
"""How many kinds and names have a row of their own."""

MOST_ERRORS = 32
"""How many classes of errors a row tells apart."""

REST = "other"
"""The name of the row, and of the class of errors, that those beyond the bound share."""

SLOW_S = 20.0
"""When an operation is slow, where nothing else is said."""

RECENT_S = 60.0
"""What is recent began so long ago, and less than twice as long."""

ROWS_A_TURN = 5
"""So many rows are summed up at once: some 10 ms."""

BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0, 300.0)
"""The upper bounds of the coarse counts, for those who cannot read a sketch."""

_PERCENTS = (50.0, 90.0, 95.0, 99.0)
_RECENT_PERCENTS = (50.0, 95.0, 99.0)


class Kind(StrEnum):
    """What an operation is mostly about."""

    DATABASE = "database"
    FILE = "file"
    NETWORK = "network"
    COMPUTATION = "computation"
    CACHE = "cache"
    BACKGROUND = "background"
    EVENT = "event"
    STREAM = "stream"
    BATCH = "batch"
    PIPELINE = "pipeline"


class Outcome(StrEnum):
    """How an operation ended."""

    OK = "ok"
    ERROR = "error"
    CANCELLED = "cancelled"


class Observer(Protocol):
    """Is told of each operation's two ends, in its own task; may neither wait nor raise."""

    def began(self, operation: "Operation") -> None:
        """It begins; `operation.parent` is the one that it is a part of."""

    def ended(self, operation: "Operation") -> None:
        """It has ended: `outcome` and `error` are set."""


@dataclass(frozen=True, slots=True)
class OperationSummary:
    """One row: a kind and a name, since `since_at` (trio's clock) for `window_s` seconds.

    Counts are of operations that ended, `running` of those that did not. `concurrency` is
    the time average of what was running; `by_littles_law` the arrival rate times the mean
    time. Percentiles are of execution times, true to 1 %; `queued_*` of the waits before.
    `resources` are sums of what the operations said they used. `recent_*` are of those that
    ended in the last `recent_s` seconds; all 0 where there was none.
    """

    kind: Kind
    name: str
    window_s: float
    ok: int
    errors: dict[str, int]
    cancelled: int
    slow: int
    running: int
    most_running: int
    mean_s: float
    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float
    longest_s: float
    queued_mean_s: float
    queued_p99_s: float
    queued_longest_s: float
    concurrency: float
    by_littles_law: float
    resources: dict[str, float]
    recent_s: float
    recent_count: int
    recent_p50_s: float
    recent_p95_s: float
    recent_p99_s: float

    @property
    def count(self) -> int:
        """How many have ended, however they did."""
        return self.ok + sum(self.errors.values()) + self.cancelled

    @property
    def rate_per_s(self) -> float:
        """How many ended in a second."""
        return self.count / self.window_s if self.window_s > 0 else 0.0


class _Recent:
    """Durations of the stretch that began `RECENT_S` to twice that ago, in two sketches."""

    __slots__ = ("_before", "_began_at", "_first_at", "_now")

    def __init__(self, now: float) -> None:
        self._began_at = self._first_at = now
        self._now: Sketch | None = None
        self._before: Sketch | None = None

    def add(self, now: float, took_s: float) -> None:
        self._turn(now)
        if self._now is None:
            self._now = Sketch()
        self._now.add(took_s)

    def stretch_s(self, now: float) -> float:
        self._turn(now)
        return now - max(self._first_at, self._began_at - RECENT_S)

    def percentiles_s(self, now: float, percents: Sequence[float]) -> tuple[int, Sequence[float]]:
        self._turn(now)
        both = [sketch for sketch in (self._before, self._now) if sketch is not None]
        if not both:
            return 0, (0.0,) * len(percents)
        joined = both[0]
        if len(both) > 1:
            joined = Sketch()
            for sketch in both:
                joined.merge(sketch)
        return joined.count, joined.percentiles_s(percents)

    def _turn(self, now: float) -> None:
        turns = int((now - self._began_at) // RECENT_S)
        if turns > 0:
            self._before = self._now if turns == 1 else None
            self._now = None
            self._began_at += turns * RECENT_S


class Series:
    """The running account of one kind and name; plain numbers, written by operations alone."""

    __slots__ = (
        "_area",
        "_changed_at",
        "_recent",
        "_sketch",
        "_waits",
        "buckets",
        "cancelled",
        "errors",
        "kind",
        "longest_s",
        "most_running",
        "name",
        "ok",
        "queued_longest_s",
        "queued_s",
        "resources",
        "running",
        "since_at",
        "slow",
        "total_s",
    )

    def __init__(self, kind: Kind, name: str, now: float) -> None:
        self.kind, self.name, self.since_at = kind, name, now
        self.ok = self.cancelled = self.slow = self.running = self.most_running = 0
        self.total_s = self.longest_s = self.queued_s = self.queued_longest_s = 0.0
        self.errors: dict[str, int] = {}
        self.resources: dict[str, float] = {}
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        self._sketch = Sketch()
        self._recent = _Recent(now)
        # Most operations never wait for a turn: no memory for what does not happen.
        self._waits: Sketch | None = None
        self._area = 0.0
        self._changed_at = now

    def enter(self, now: float) -> None:
        """One more is running."""
        self._area += self.running * (now - self._changed_at)
        self._changed_at = now
        self.running += 1
        self.most_running = max(self.most_running, self.running)

    def leave(self, now: float, operation: "Operation") -> None:
        """One has ended."""
        self._area += self.running * (now - self._changed_at)
        self._changed_at = now
        self.running -= 1
        took_s = now - operation.started_at
        self.total_s += took_s
        self.longest_s = max(self.longest_s, took_s)
        self._sketch.add(took_s)
        self._recent.add(now, took_s)
        self.buckets[bisect_left(BUCKETS_S, took_s)] += 1
        if operation.queued_s > 0:
            self._waited(operation.queued_s)
        match operation.outcome:
            case Outcome.OK:
                self.ok += 1
            case Outcome.CANCELLED:
                self.cancelled += 1
            case _:
                known = operation.error in self.errors or len(self.errors) < MOST_ERRORS
                error = operation.error if known else REST
                self.errors[error] = self.errors.get(error, 0) + 1
        for resource, amount in operation.resources.items():
            self.resources[resource] = self.resources.get(resource, 0.0) + amount

    def _waited(self, queued_s: float) -> None:
        self.queued_s += queued_s
        self.queued_longest_s = max(self.queued_longest_s, queued_s)
        if self._waits is None:
            self._waits = Sketch()
        self._waits.add(queued_s)

    @property
    def count(self) -> int:
        """How many have ended."""
        return self._sketch.count

    def summary(self, now: float) -> OperationSummary:
        """The account as it stands."""
        window_s = now - self.since_at
        area = self._area + self.running * (now - self._changed_at)
        count = self.count
        waits = self._waits
        p50_s, p90_s, p95_s, p99_s = self._sketch.percentiles_s(_PERCENTS)
        recent_count, recent = self._recent.percentiles_s(now, _RECENT_PERCENTS)
        return OperationSummary(
            self.kind,
            self.name,
            window_s,
            self.ok,
            dict(self.errors),
            self.cancelled,
            self.slow,
            self.running,
            self.most_running,
            self.total_s / count if count else 0.0,
            p50_s,
            p90_s,
            p95_s,
            p99_s,
            self.longest_s,
            self.queued_s / count if count else 0.0,
            waits.percentiles_s((99.0,))[0] if waits else 0.0,
            self.queued_longest_s,
            area / window_s if window_s > 0 else 0.0,
            self.total_s / window_s if window_s > 0 else 0.0,
            dict(self.resources),
            self._recent.stretch_s(now),
            recent_count,
            *recent,
        )


class Operation:
    """One operation while it runs; made by `Monitor.operation`."""

    __slots__ = (
        "_monitor",
        "_series",
        "_token",
        "apart",
        "error",
        "kind",
        "mark",
        "name",
        "outcome",
        "parent",
        "queued_s",
        "resources",
        "slow_s",
        "started_at",
    )

    def __init__(
        self, monitor: "Monitor", kind: Kind, name: str, queued_s: float, slow_s: float
    ) -> None:
        self.kind, self.name, self.queued_s, self.slow_s = kind, name, queued_s, slow_s
        self.started_at = 0.0
        self.outcome: Outcome | None = None
        self.error = ""
        self.resources: dict[str, float] = {}
        self.parent: Operation | None = None
        self.mark: object = None
        """The observer's own."""
        self.apart = kind is Kind.STREAM
        """Nobody's parent: what it would set around a `yield`, its reader would see."""
        self._monitor = monitor
        self._series: Series | None = None
        self._token: Token[Operation | None] | None = None

    def used(self, resource: str, amount: float) -> None:
        """Say what it used, the unit in the name: "read_bytes", "cost_usd"; sums are told."""
        self.resources[resource] = self.resources.get(resource, 0.0) + amount

    def waited(self, queued_s: float) -> None:
        """Say how long it waited for its turn, where that is known only now, before it began."""
        self.queued_s += queued_s

    async def __aenter__(self) -> Self:
        self.begin()
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.end(error)

    def begin(self) -> None:
        """It begins now."""
        now = trio.current_time()
        self.started_at = now
        monitor = self._monitor
        self._series = series = monitor.series_of(self.kind, self.name, now)
        series.enter(now)
        monitor.entered(self)
        observer = monitor.observer
        if observer is not None:
            self.parent = _CURRENT.get()
            if not self.apart:
                self._token = _CURRENT.set(self)
            observer.began(self)

    def end(self, error: BaseException | None = None) -> None:
        """It has ended, by this error if there is one."""
        self.outcome, self.error = _outcome_of(error)
        assert self._series is not None  # noqa: S101 - only what began can end
        self._series.leave(trio.current_time(), self)
        monitor = self._monitor
        monitor.left(self)
        token, self._token = self._token, None
        if token is not None and _CURRENT.get() is self:
            try:
                _CURRENT.reset(token)
            except ValueError:
                # Ended in another task than it began in: that task's value is its own.
                _CURRENT.set(self.parent)
        if monitor.observer is not None:
            monitor.observer.ended(self)


_CURRENT: ContextVar[Operation | None] = ContextVar("operation", default=None)


def _outcome_of(error: BaseException | None) -> tuple[Outcome, str]:
    match error:
        case None:
            return Outcome.OK, ""
        case trio.Cancelled() | GeneratorExit():
            return Outcome.CANCELLED, ""
        case BaseExceptionGroup():
            rest = error.split((trio.Cancelled, GeneratorExit))[1]
            # Of several errors the first one's class; no group in it is empty.
            return _outcome_of(rest.exceptions[0]) if rest else (Outcome.CANCELLED, "")
        case _:
            return Outcome.ERROR, type(error).__name__


def _nobody(_: Operation) -> None:
    return None


class Monitor:
    """The accounts of one run: one in each, see `monitor_in_force`; or as many as wanted.

    `on_slow` is told by `watch` of each operation that runs for longer than its `slow_s`,
    once, while it still runs; it may neither wait nor raise.
    """

    def __init__(
        self,
        *,
        slow_s: float = SLOW_S,
        on_slow: Callable[[Operation], None] = _nobody,
        observer: Observer | None = None,
    ) -> None:
        self.slow_s = slow_s
        self.on_slow = on_slow
        self.observer = observer
        self._series: dict[tuple[Kind, str], Series] = {}
        # In the order of their beginnings; those that were told of as slow are gone.
        self._untold: dict[Operation, None] = {}

    def operation(
        self, kind: Kind, name: str, queued_s: float = 0.0, *, slow_s: float | None = None
    ) -> Operation:
        """`async with` this around the work; it begins at the `async with`.

        `name` is one of few: it makes a row. `slow_s`: when it is slow, if later than what
        the monitor says; inf: never, for what runs as long as it likes.
        """
        slow_s = self.slow_s if slow_s is None else max(slow_s, self.slow_s)
        return Operation(self, kind, name, queued_s, slow_s)

    @property
    def running(self) -> int:
        """How many operations are under way."""
        return sum(series.running for series in self._series.values())

    def series(self) -> tuple[Series, ...]:
        """The accounts themselves, since the beginning."""
        return tuple(self._series.values())

    def summary(self) -> tuple[OperationSummary, ...]:
        """All rows as they stand, by kind and name. Some 2 ms a row in which much happened.

        For few rows: the loop stands still meanwhile. Else `summary_in_turns`.
        """
        now = trio.current_time()
        return tuple(self._series[key].summary(now) for key in sorted(self._series))

    async def summary_in_turns(self) -> tuple[OperationSummary, ...]:
        """The same; others have their turns after each `ROWS_A_TURN` rows, each row its own now."""
        rows: list[OperationSummary] = []
        for key in sorted(self._series):
            rows.append(self._series[key].summary(trio.current_time()))
            if len(rows) % ROWS_A_TURN == 0:
                await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        return tuple(rows)

    async def watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell of slow operations while they run; never returns unless cancelled.

        Started: at once. They are told within a twentieth of the monitor's `slow_s` after
        their time; so often it wakes at most, and once in `slow_s` at least.
        """
        task_status.started()
        while True:  # noqa: ASYNC110 - the time of the next look is what is waited for
            await trio.sleep_until(self._tell_slow(trio.current_time()))

    def _tell_slow(self, now: float) -> float:
        """Tell what is due; return when to look again."""
        # What begins from now on is due no earlier than this.
        next_at = now + self.slow_s
        due = []
        for operation in self._untold:
            due_at = operation.started_at + operation.slow_s
            if due_at <= now:
                due.append(operation)
            else:
                next_at = min(next_at, due_at)
        for operation in due:
            del self._untold[operation]
            self.series_of(operation.kind, operation.name, now).slow += 1
            self.on_slow(operation)
        return max(next_at, now + self.slow_s / 20)

    def series_of(self, kind: Kind, name: str, now: float) -> Series:
        """The account of this kind and name."""
        series = self._series.get((kind, name))
        if series is None:
            if len(self._series) >= MOST_SERIES:
                name = REST
            series = self._series.setdefault((kind, name), Series(kind, name, now))
        return series

    def entered(self, operation: Operation) -> None:
        """An operation has begun."""
        if operation.slow_s < inf:
            self._untold[operation] = None

    def left(self, operation: Operation) -> None:
        """An operation has ended."""
        self._untold.pop(operation, None)


_IN_FORCE: trio.lowlevel.RunVar[Monitor] = trio.lowlevel.RunVar("monitor")


def monitor_in_force() -> Monitor:
    """The monitor of this trio run: the one that was put in force, else one of its own."""
    try:
        return _IN_FORCE.get()
    except LookupError:
        monitor = Monitor()
        _IN_FORCE.set(monitor)
        return monitor


@contextmanager
def in_force(monitor: Monitor) -> Iterator[Monitor]:
    """Have this run's operations accounted for here, for the block."""
    token = _IN_FORCE.set(monitor)
    try:
        yield monitor
    finally:
        _IN_FORCE.reset(token)


def operation(
    kind: Kind, name: str, queued_s: float = 0.0, *, slow_s: float | None = None
) -> Operation:
    """`Monitor.operation` of the monitor in force."""
    return monitor_in_force().operation(kind, name, queued_s, slow_s=slow_s)


def traced(
    kind: Kind,
    name: str | None = None,
    *,
    timeout_s: float | None = None,
    retry: RetryPolicy | None = None,
    debug: Callable[[str], None] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Account for each call of a coroutine function, or of an async generator function.

    `name`: the function's qualified name, where none is given. `timeout_s` bounds each
    attempt: `trio.TooSlowError`. `retry`: all attempts are one operation; its resource
    `retries` counts those after the first. `debug` is told each call's two ends in a line.

    An async generator is one operation from its first item to its end, its reader's time
    included; close it where it is not read to its end (`contextlib.aclosing`). Time limits
    and retries are refused for one with `TypeError`: no scope may stay open over a `yield`.
    """
    policy = retry

    def decorate(fn: Callable[P, R]) -> Callable[P, R]:
        called = fn.__qualname__ if name is None else name
        if inspect.isasyncgenfunction(fn):
            if timeout_s is not None or policy is not None:
                raise TypeError(f"{called} is a generator: it has no time limit and no retries")
            return cast("Callable[P, R]", _traced_stream(kind, called, fn, debug))
        if not inspect.iscoroutinefunction(fn):
            raise TypeError(f"{called} is neither a coroutine nor an async generator function")
        return cast("Callable[P, R]", _traced_call(kind, called, fn, timeout_s, policy, debug))

    return decorate


def _traced_call(
    kind: Kind,
    name: str,
    fn: Callable[P, Awaitable[R]],
    timeout_s: float | None,
    policy: RetryPolicy | None,
    debug: Callable[[str], None] | None,
) -> Callable[P, Awaitable[R]]:
    bounded = fn if timeout_s is None else _bounded(fn, timeout_s)

    @wraps(fn)
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        current = _begun(operation(kind, name), debug)
        error: BaseException | None = None
        try:
            if policy is None:
                return await bounded(*args, **kwargs)

            async def attempt() -> R:
                return await bounded(*args, **kwargs)

            def failed(failure: FailedAttempt) -> None:
                if failure.pause_s is not None:
                    current.used("retries", 1)

            return await retry(attempt, policy, on_failure=failed)
        except BaseException as raised:
            error = raised
            raise
        finally:
            _ended(current, error, debug)

    return call


def _bounded(fn: Callable[P, Awaitable[R]], timeout_s: float) -> Callable[P, Awaitable[R]]:
    async def bounded(*args: P.args, **kwargs: P.kwargs) -> R:
        with trio.fail_after(timeout_s):
            return await fn(*args, **kwargs)

    return bounded


def _traced_stream(
    kind: Kind,
    name: str,
    fn: Callable[P, AsyncGenerator[Any, Any]],
    debug: Callable[[str], None] | None,
) -> Callable[P, AsyncGenerator[Any, Any]]:
    @wraps(fn)
    async def stream(*args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[Any, Any]:
        items = fn(*args, **kwargs)
        current = operation(kind, name)
        current.apart = True
        _begun(current, debug)
        error: BaseException | None = None
        try:
            async for item in items:
                current.used("items", 1)
                yield item
        except BaseException as raised:
            error = raised
            raise
        finally:
            try:
                await items.aclose()
            finally:
                _ended(current, error, debug)

    return stream


def _begun(current: Operation, debug: Callable[[str], None] | None) -> Operation:
    if debug is not None:
        debug(f"{current.kind} {current.name} begins")
    current.begin()
    return current


def _ended(
    current: Operation, error: BaseException | None, debug: Callable[[str], None] | None
) -> None:
    current.end(error)
    if debug is not None:
        took_s = trio.current_time() - current.started_at
        how = current.error or current.outcome
        debug(f"{current.kind} {current.name} ends after {took_s:.6f} s: {how}")
