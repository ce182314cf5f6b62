"""Resources that are dear to make, kept for the next one who needs them.

Laws:

1. At most `max` exist at once, from before one is made until after it is closed.
2. A resource is used by one at a time, and again only after a use that ended well: one that
   was cancelled or failed may have left it half-way through something.
3. `make`, `check` and `close` run in tasks of the pool, at the same time as others and under no
   lock: none waits for another's, and one who gives up harms none that is being made.
4. Whoever waits longest is served first; a failed `make` is one waiter's error, not all's.
5. Nothing outlives the pool's block: each resource that was made is closed once.
"""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from math import inf
from types import TracebackType
from typing import Generic, Self, TypeVar

import trio

from custosd.flow.background import block_nursery

R = TypeVar("R")

Unheard = Callable[[str, Exception], None]

CHECKS_IN_A_WAIT = 20
"""So many checks that hang, one after the other, are as long as a waiter waits."""


class AcquireTimedOut(TimeoutError):
    """No resource came free, and none could be made, in time."""


class PoolClosed(Exception):
    """The pool's block is not open, or is being left."""


@dataclass(eq=False, slots=True)
class _Entry(Generic[R]):
    resource: R
    made_at: float
    idle_since: float = -inf
    uses: int = 0
    retired: bool = False


@dataclass(eq=False, slots=True)
class _Waiter(Generic[R]):
    entry: _Entry[R] | None = None
    error: Exception | None = None
    served: trio.Event = field(default_factory=trio.Event)


class Pool(Generic[R]):
    """Keeps between `min` and `max` resources; `async with Pool(...) as pool` opens it.

    Opened, it makes `min` in the background; more when somebody waits and none is idle. The
    one that was used last is used next; those idle for `idle_timeout_s` are closed, down to
    `min`, and those older than `longest_life_s` are replaced. `check` is asked before an idle
    one is used; False or an error means that it is discarded. `make` has
    `acquire_timeout_s`, `close` has `close_timeout_s`, and `check` `check_timeout_s`: by default
    a twentieth of the first, so that who waits for one that hangs can be served still. Leaving
    the block refuses newcomers, serves and waits for those inside for `drain_timeout_s`, then
    closes everything, also what is in use still (`seized` counts those). On an error or a
    cancellation it does not wait.

    `on_unheard` is called with "make" or "close" and an error that no waiter is there for, and
    may not wait; without it such an error ends the block, in an `ExceptionGroup`. What the pool
    is to keep warm is tried again `remake_delay_s` after a failure. `made`,
    `reused`, `discarded` (after a bad use), `failed_checks` and `failed_makes` are counters,
    `last_check_error` is the error of the last check that raised one.
    """

    def __init__(
        self,
        make: Callable[[], Awaitable[R]],
        close: Callable[[R], Awaitable[object]],
        *,
        min: int = 2,  # noqa: A002 - the field's own words
        max: int = 10,  # noqa: A002
        acquire_timeout_s: float = 30.0,
        idle_timeout_s: float = 30.0,
        check: Callable[[R], Awaitable[bool]] | None = None,
        check_timeout_s: float | None = None,
        longest_life_s: float = inf,
        close_timeout_s: float = 10.0,
        drain_timeout_s: float = 30.0,
        remake_delay_s: float = 1.0,
        on_unheard: Unheard | None = None,
    ) -> None:
        if not 0 <= min <= max or max < 1:
            raise ValueError(f"a pool of {min} to {max} resources: 0 <= min <= max, and max >= 1")
        self.made = self.reused = self.discarded = self.seized = 0
        self.failed_makes = self.failed_checks = 0
        self.last_check_error: Exception | None = None
        self._make, self._close, self._check = make, close, check
        self._min, self._max = min, max
        self._acquire_timeout_s = acquire_timeout_s
        self._check_timeout_s = (
            acquire_timeout_s / CHECKS_IN_A_WAIT if check_timeout_s is None else check_timeout_s
        )
        self._idle_timeout_s = idle_timeout_s
        self._longest_life_s = longest_life_s
        self._close_timeout_s = close_timeout_s
        self._drain_timeout_s = drain_timeout_s
        self._remake_delay_s = remake_delay_s
        self._on_unheard = on_unheard
        self._idle: deque[_Entry[R]] = deque()  # the longest idle at the left
        self._used: set[_Entry[R]] = set()
        self._waiters: dict[_Waiter[R], None] = {}  # in the order of asking
        self._making = self._checking = self._closing = 0
        self._remake_at = -inf
        self._state: str = "not open"
        self._changed = trio.lowlevel.ParkingLot()
        self._keeper = trio.lowlevel.ParkingLot()
        self._next_look_at = -inf
        self._nursery: trio.Nursery
        self._block: AbstractAsyncContextManager[None]

    @property
    def live(self) -> int:
        """How many exist, or are being made or closed; never above `max`."""
        return self._kept + self._closing

    @property
    def _kept(self) -> int:
        return len(self._idle) + len(self._used) + self._making + self._checking

    @property
    def idle(self) -> int:
        """How many wait for somebody to use them."""
        return len(self._idle)

    @property
    def in_use(self) -> int:
        """How many are used."""
        return len(self._used)

    @property
    def waiting(self) -> int:
        """How many wait for a resource."""
        return len(self._waiters)

    async def __aenter__(self) -> Self:
        if self._state != "not open":
            raise RuntimeError("a pool is opened once; make another one")
        self._block = self._opened()
        await self._block.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return await self._block.__aexit__(kind, error, trace)

    @asynccontextmanager
    async def acquire(self, *, keep_on_error: tuple[type[Exception], ...] = ()) -> AsyncIterator[R]:
        """A resource for the block; it comes back when the block ends well, else is discarded.

        After an error of the types in `keep_on_error` it comes back as well; after a
        cancellation never. Raises `AcquireTimedOut` (not for what happens in the block), what
        `make` raised on behalf of this waiter, `PoolClosed`.
        """
        entry = await self._next()
        self.reused += entry.uses > 0
        entry.uses += 1
        good = False
        try:
            yield entry.resource
            good = True
        except keep_on_error:
            good = True
            raise
        finally:
            self._take_back(entry, good=good)

    # Taking and giving: nothing here waits but the waiter itself.

    async def _next(self) -> _Entry[R]:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._state != "open":
            raise PoolClosed(f"the pool is {self._state}: acquire inside its `async with` block")
        waiter = _Waiter[R]()
        self._waiters[waiter] = None
        self._serve()
        try:
            with trio.move_on_after(self._acquire_timeout_s):
                await waiter.served.wait()
        except BaseException:
            self._give_up(waiter)
            raise
        self._waiters.pop(waiter, None)
        if waiter.error is not None:
            raise waiter.error
        if waiter.entry is None:
            raise AcquireTimedOut(
                f"no resource within {self._acquire_timeout_s:g} s: {self.in_use} of at most "
                f"{self._max} are in use, {self._making} being made, {self.waiting} others wait; "
                "raise max, or hold them more shortly"
            )
        return waiter.entry

    def _give_up(self, waiter: _Waiter[R]) -> None:
        # It may have been served by the step in which it asked, and cancelled before it waited.
        # An error it cannot have got then: only a task of the pool hands those out.
        self._waiters.pop(waiter, None)
        if waiter.entry is not None:
            self._take_back(waiter.entry, good=True)

    def _tell(self, doing: str, error: Exception) -> None:
        if self._on_unheard is None:
            self._nursery.start_soon(_raise, error)
        else:
            self._on_unheard(doing, error)

    def _take_back(self, entry: _Entry[R], *, good: bool) -> None:
        self._used.discard(entry)
        if not entry.retired:
            self.discarded += not good
            if good:
                self._put_idle(entry)
            else:
                self._retire(entry)
        self._tell_change()

    def _put_idle(self, entry: _Entry[R]) -> None:
        entry.idle_since = trio.current_time()
        self._idle.append(entry)
        self._serve()
        self._tell_change()

    def _tell_change(self) -> None:
        self._changed.unpark_all()
        # A use that ends well makes nothing due sooner: it costs no step of the keeper.
        if self._due_at() < self._next_look_at:
            self._keeper.unpark_all()

    def _hand_over(self, entry: _Entry[R]) -> None:
        if self._state == "closed":
            self._retire(entry)
        elif self._waiters:
            waiter = next(iter(self._waiters))
            del self._waiters[waiter]
            waiter.entry = entry
            self._used.add(entry)
            waiter.served.set()
        else:
            self._put_idle(entry)

    def _serve(self) -> None:
        # Each waiter beyond those for whom something is coming gets an idle one, else a new one.
        while self._idle and len(self._waiters) > self._checking:
            entry = self._idle.pop()
            if trio.current_time() >= entry.made_at + self._longest_life_s:
                self._retire(entry)
            elif self._check is None:
                self._hand_over(entry)
            else:
                self._checking += 1
                self._nursery.start_soon(self._check_one, entry, self._check)
        while len(self._waiters) > self._checking + self._making and self.live < self._max:
            self._begin_make()

    def _retire(self, entry: _Entry[R]) -> None:
        entry.retired = True
        self._closing += 1
        self._nursery.start_soon(self._close_one, entry.resource)

    def _begin_make(self) -> None:
        self._making += 1
        self._nursery.start_soon(self._make_one)

    # What runs in the pool's own tasks.

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        async with block_nursery("the pool's block was left") as nursery:
            self._nursery = nursery
            self._state = "open"
            nursery.start_soon(self._keep)
            try:
                yield
                self._state = "draining"
                with trio.move_on_after(self._drain_timeout_s):
                    while self._used or self._waiters:
                        await self._changed.park()
            finally:
                self._state = "closed"
                self._retire_all()

    def _retire_all(self) -> None:
        for waiter in self._waiters:
            waiter.error = PoolClosed("the pool was closed before a resource came free")
            waiter.served.set()
        self._waiters.clear()
        self.seized += len(self._used)
        for entry in (*self._idle, *self._used):
            self._retire(entry)
        self._idle.clear()
        self._used.clear()

    async def _keep(self) -> None:
        while True:
            now = trio.current_time()
            self._retire_stale(now)
            if self._state == "open" and now >= self._remake_at:
                while self._kept < self._min and self.live < self._max:
                    self._begin_make()
            self._next_look_at = self._due_at()
            with trio.move_on_at(self._next_look_at):
                await self._keeper.park()

    def _retire_stale(self, now: float) -> None:
        for entry in [each for each in self._idle if each.made_at + self._longest_life_s <= now]:
            self._idle.remove(entry)
            self._retire(entry)
        while (
            self._idle
            and self._kept > self._min
            and self._idle[0].idle_since + self._idle_timeout_s <= now
        ):
            self._retire(self._idle.popleft())

    def _due_at(self) -> float:
        due_at = []
        if self._longest_life_s < inf:
            due_at = [each.made_at + self._longest_life_s for each in self._idle]
        if self._idle and self._kept > self._min:
            due_at.append(self._idle[0].idle_since + self._idle_timeout_s)
        if self._state == "open" and self._kept < self._min and self.live < self._max:
            due_at.append(self._remake_at)
        return min(due_at, default=inf)

    async def _make_one(self) -> None:
        try:
            with trio.fail_after(self._acquire_timeout_s):
                made: _Entry[R] | Exception = _Entry(await self._make(), trio.current_time())
        except Exception as error:  # noqa: BLE001 - told to a waiter, or as unheard
            made = error
        finally:
            self._making -= 1
        if isinstance(made, _Entry):
            self.made += 1
            self._hand_over(made)
        else:
            self._tell_failed_make(made)
        self._serve()

    def _tell_failed_make(self, error: Exception) -> None:
        self.failed_makes += 1
        self._remake_at = trio.current_time() + self._remake_delay_s
        if self._waiters:
            waiter = next(iter(self._waiters))
            del self._waiters[waiter]
            waiter.error = error
            waiter.served.set()
        else:
            self._tell("make", error)
        self._tell_change()

    async def _check_one(self, entry: _Entry[R], check: Callable[[R], Awaitable[bool]]) -> None:
        good: bool | None = None
        try:
            with trio.move_on_after(self._check_timeout_s) as time:
                good = await check(entry.resource)
            good = bool(good) and not time.cancelled_caught
        except Exception as error:  # noqa: BLE001 - a way to say no
            self.last_check_error = error
            good = False
        finally:
            # None: the pool is being left, and cancelled the check.
            self._checking -= 1
            self.failed_checks += good is False
            if good:
                self._hand_over(entry)
            else:
                self._retire(entry)
        self._serve()
        self._tell_change()

    async def _close_one(self, resource: R) -> None:
        try:
            with trio.CancelScope(shield=True), trio.fail_after(self._close_timeout_s):
                await self._close(resource)
        except Exception as error:  # noqa: BLE001 - told; the place is free all the same
            self._tell("close", error)
        finally:
            self._closing -= 1
        if self._state != "closed":
            self._serve()
        self._tell_change()


async def _raise(error: Exception) -> None:
    raise error
