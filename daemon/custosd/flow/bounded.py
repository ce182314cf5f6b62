"""One function over many items, so many at a time, and each item's own outcome.

Laws: an item's failure is kept beside the others' results, never turned into an empty
value, or (`for_each`) ends the whole call; cancellation is no failure: it ends the whole call,
and every started item with it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sized
from contextlib import asynccontextmanager
from math import inf
from typing import TypeVar

import outcome
import trio

T = TypeVar("T")
R = TypeVar("R")

# Called with how many items have ended, and how many there are (None: nobody can tell yet).
Progress = Callable[[int, int | None], None]


async def each(
    items: Iterable[T],
    fn: Callable[[T], Awaitable[R]],
    *,
    limit: int | trio.CapacityLimiter,
    progress: Progress | None = None,
) -> list[outcome.Outcome[R]]:
    """Call `fn` on every item; return the outcomes in the order of the items.

    A number bounds the calls of this one use; a limiter is shared with whoever else has it
    (then `fn` itself must not acquire it: that would wait for itself). Items are taken one
    by one, as room comes up. `progress` is called after each item's end and may not wait.
    Raises: no `Exception` of `fn`: those are in the outcomes, and `unwrap()` raises them
    there; an error of `items` or of `progress` comes out, in an `ExceptionGroup`, and ends
    the calls that are under way.
    """
    outcomes: dict[int, outcome.Outcome[R]] = {}
    total = len(items) if isinstance(items, Sized) else None

    async def call(numbered: tuple[int, T]) -> None:
        index, item = numbered
        outcomes[index] = await _outcome(fn, item)

    def ended() -> None:
        if progress is not None:
            progress(len(outcomes), total)

    await _call_all(enumerate(items), call, limit, ended)
    return [outcomes[index] for index in range(len(outcomes))]


async def for_each(
    items: Iterable[T],
    fn: Callable[[T], Awaitable[object]],
    *,
    limit: float | trio.CapacityLimiter = inf,
) -> None:
    """Call `fn` on every item, for its effect; an error ends the others.

    `limit` as in `each`; none by default. Returns when all have ended. Raises: the first
    error, and those of the clean-up of the others, in an `ExceptionGroup`.
    """
    await _call_all(items, fn, limit)


async def _call_all(
    items: Iterable[T],
    fn: Callable[[T], Awaitable[object]],
    limit: float | trio.CapacityLimiter,
    ended: Callable[[], None] = lambda: None,
) -> None:
    limiter = limit if isinstance(limit, trio.CapacityLimiter) else trio.CapacityLimiter(limit)

    async def call(item: T, borrower: object) -> None:
        try:
            await fn(item)
        finally:
            limiter.release_on_behalf_of(borrower)
        ended()

    async with trio.open_nursery() as nursery:
        for item in items:
            borrower = object()
            await limiter.acquire_on_behalf_of(borrower)
            nursery.start_soon(call, item, borrower)


@asynccontextmanager
async def as_completed(
    items: Iterable[T],
    fn: Callable[[T], Awaitable[R]],
    *,
    limit: int | trio.CapacityLimiter,
    progress: Progress | None = None,
) -> AsyncIterator[AsyncIterator[tuple[int, outcome.Outcome[R]]]]:
    """Call `fn` on every item; iterate over (index of the item, its outcome) as they end.

    `async with as_completed(...) as ended: async for index, result in ended: ...`. Calls
    are under way inside the block only: leaving it early cancels them, waits for their
    clean-up, and takes no further item. A slow reader holds back the items of this use: no
    more are under way or unread than the limit; a shared limiter's places are held by calls,
    not by unread outcomes. Otherwise as `each`; the block's own error comes out as it is.
    """
    limiter = trio.CapacityLimiter(limit) if isinstance(limit, int) else limit
    send, receive = trio.open_memory_channel[tuple[int, outcome.Outcome[R]]](0)
    error_of_block: BaseException | None = None
    try:
        with receive:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_begin_calls, items, fn, limiter, progress, send, nursery)
                try:
                    yield receive
                except BaseException as error:
                    error_of_block = error
                    raise
                finally:
                    nursery.cancel_scope.cancel("the block over as_completed was left")
    except BaseExceptionGroup as group:
        # The nursery has put it into a group, which says nothing if it is alone there.
        if group.exceptions != (error_of_block,):
            raise
    else:
        error_of_block = None
    if error_of_block is not None:
        raise error_of_block


async def _begin_calls(
    items: Iterable[T],
    fn: Callable[[T], Awaitable[R]],
    limiter: trio.CapacityLimiter,
    progress: Progress | None,
    send: trio.MemorySendChannel[tuple[int, outcome.Outcome[R]]],
    nursery: trio.Nursery,
) -> None:
    unread = trio.CapacityLimiter(1)
    total = len(items) if isinstance(items, Sized) else None
    done = 0

    async def call(
        index: int,
        item: T,
        borrower: object,
        send: trio.MemorySendChannel[tuple[int, outcome.Outcome[R]]],
    ) -> None:
        nonlocal done
        with send:  # the last one to close it ends the iteration
            async with limiter:
                result = await _outcome(fn, item)
            done += 1
            if progress is not None:
                progress(done, total)
            await send.send((index, result))
            unread.release_on_behalf_of(borrower)

    with send:
        for index, item in enumerate(items):
            # Whoever shares the limiter may have changed it since the last item.
            unread.total_tokens = max(limiter.total_tokens, 1)
            borrower = object()
            await unread.acquire_on_behalf_of(borrower)
            nursery.start_soon(call, index, item, borrower, send.clone())


async def _outcome(fn: Callable[[T], Awaitable[R]], item: T) -> outcome.Outcome[R]:
    try:
        return outcome.Value(await fn(item))
    except Exception as error:  # noqa: BLE001 - kept whole, as this item's outcome
        return outcome.Error(error)
