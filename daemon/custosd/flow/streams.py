"""Streams that end, with everything behind them, when their reader leaves.

Each is an asynchronous context manager over an iterator: `async with mapped(...) as results:
async for result in results: ...`.

Laws:

1. Outside its block nothing of a stream runs: leaving it early cancels what is under way,
   waits for its clean-up, and closes the source, if that can be closed.
2. A slow reader holds the stream back; read ahead is what a function says it reads ahead.
3. An error of the source or of a function comes out where the reader reads, after what
   came before it.
4. Any value is an item, None too.
"""

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
)
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from math import inf
from typing import Generic, Literal, TypeVar

import outcome
import trio

from custosd.flow.background import block_nursery
from custosd.flow.rate_limit import RateLimiter

T = TypeVar("T")
R = TypeVar("R")

Source = Iterable[T] | AsyncIterable[T]
Stream = AbstractAsyncContextManager[AsyncIterator[T]]


@asynccontextmanager
async def iterated(source: Source[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Iterate over any source, asynchronous or not; an asynchronous generator is closed."""
    if not isinstance(source, AsyncIterable):
        source = _plain(source)
    if isinstance(source, AsyncGenerator):
        async with aclosing(source):
            yield source
    else:
        yield aiter(source)


async def _plain(items: Iterable[T]) -> AsyncGenerator[T, None]:
    for item in items:
        await trio.lowlevel.checkpoint()
        yield item


@trio.as_safe_channel
async def mapped(
    source: Source[T], fn: Callable[[T], Awaitable[R]], *, limit: int = 1
) -> AsyncGenerator[R, None]:
    """`fn` of each item, in the source's order, at most `limit` calls at once.

    `limit` results at most are under way or unread, beside the one that the reader has.
    """
    places = trio.CapacityLimiter(limit)
    send, receive = trio.open_memory_channel[_Call[R]](limit)
    with receive:
        async with block_nursery("the reader left") as nursery:
            nursery.start_soon(_begin_calls, source, fn, places, send, nursery)
            async for call in receive:
                await call.ended.wait()
                places.release_on_behalf_of(call)
                yield call.result.unwrap()


class _Call(Generic[R]):
    def __init__(self) -> None:
        self.ended = trio.Event()
        self.result: outcome.Outcome[R]


async def _begin_calls(
    source: Source[T],
    fn: Callable[[T], Awaitable[R]],
    places: trio.CapacityLimiter,
    send: trio.MemorySendChannel[_Call[R]],
    nursery: trio.Nursery,
) -> None:
    async def run(call: _Call[R], item: T) -> None:
        call.result = await _outcome(fn, item)
        call.ended.set()

    with send:
        async with iterated(source) as items:
            while True:
                call = _Call[R]()
                await places.acquire_on_behalf_of(call)
                item = await _next(items)
                if item is None:
                    return
                await send.send(call)
                match item:
                    case outcome.Value(value):
                        nursery.start_soon(run, call, value)
                    case outcome.Error() as failed:
                        call.result = failed
                        call.ended.set()
                        return


async def _outcome(fn: Callable[[T], Awaitable[R]], item: T) -> outcome.Outcome[R]:
    try:
        return outcome.Value(await fn(item))
    except Exception as error:  # noqa: BLE001 - raised where the reader reads
        return outcome.Error(error)


async def _next(items: AsyncIterator[T]) -> outcome.Maybe[T] | None:
    # None: the source has ended. An outcome of None is an item.
    try:
        return outcome.Value(await anext(items))
    except StopAsyncIteration:
        return None
    except Exception as error:  # noqa: BLE001 - raised where the reader reads
        return outcome.Error(error)


async def _forward(source: Source[T], send: trio.MemorySendChannel[outcome.Outcome[T]]) -> None:
    with send:
        async with iterated(source) as items:
            while (item := await _next(items)) is not None:
                await send.send(item)


@trio.as_safe_channel
async def merged(*sources: Source[T]) -> AsyncGenerator[T, None]:
    """The items of all sources as they come, each source's own in order; ends with the last.

    One item of each source is read ahead. One source's error ends all.
    """
    send, receive = trio.open_memory_channel[outcome.Outcome[T]](0)
    with receive:
        async with block_nursery("the reader left") as nursery:
            with send:
                for source in sources:
                    nursery.start_soon(_forward, source, send.clone())
            async for item in receive:
                yield item.unwrap()


@trio.as_safe_channel
async def batched(
    source: Source[T], size: int = 100, delay_s: float = inf
) -> AsyncGenerator[list[T], None]:
    """Lists of `size` items, or fewer `delay_s` after a list's first item came, and at the end.

    One item is read ahead. What came before an error comes out as a list of its own.
    """
    if size < 1:
        raise ValueError(f"batches of {size} items: at least 1")
    send, receive = trio.open_memory_channel[outcome.Outcome[T]](0)
    with receive:
        async with block_nursery("the reader left") as nursery:
            nursery.start_soon(_forward, source, send)
            last: outcome.Outcome[T] | Literal["more"] | None = "more"
            while last == "more":
                batch, last = await _batch(receive, size, delay_s)
                if batch:
                    yield batch
            if isinstance(last, outcome.Error):
                last.unwrap()


async def _batch(
    receive: trio.MemoryReceiveChannel[outcome.Outcome[T]], size: int, delay_s: float
) -> tuple[list[T], outcome.Outcome[T] | Literal["more"] | None]:
    # With what came of the source after it: more, its error, or its end (None).
    batch: list[T] = []
    with trio.CancelScope() as window:
        async for item in receive:
            if isinstance(item, outcome.Error):
                return batch, item
            batch.append(item.unwrap())
            if len(batch) == size:
                return batch, "more"
            if len(batch) == 1:
                window.deadline = trio.current_time() + delay_s
        return batch, None
    return batch, "more"


@trio.as_safe_channel
async def limited(
    source: Source[T], limiter: RateLimiter, *, priority: int = 0
) -> AsyncGenerator[T, None]:
    """The items as they are, each one after the limiter has let through a cost of one for it."""
    async with iterated(source) as items:
        while True:
            item = await _next(items)
            if item is None:
                return
            value = item.unwrap()
            await limiter.take(priority=priority)
            yield value


@trio.as_safe_channel
async def timed(source: Source[T], timeout_s: float) -> AsyncGenerator[T, None]:
    """The items as they are; `trio.TooSlowError` if one takes longer than that to come.

    The time is counted from when the reader asks for it.
    """
    async with iterated(source) as items:
        while True:
            with trio.fail_after(timeout_s):
                item = await _next(items)
            if item is None:
                return
            yield item.unwrap()
