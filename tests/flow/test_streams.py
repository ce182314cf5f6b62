from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.cancelling import cancel_at_every_checkpoint

from custosd.flow.rate_limit import Rate, RateLimiter
from custosd.flow.streams import Stream, batched, limited, mapped, merged, timed


class Source:
    """Gives its items, each so many tenths of a second after the one before; then its error."""

    def __init__(self, *pauses_ds: int, error: Exception | None = None) -> None:
        self.pauses_ds = pauses_ds
        self.error = error
        self.given = 0
        self.closed = False

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            for number, pause_ds in enumerate(self.pauses_ds):
                await trio.sleep(pause_ds / 10)
                self.given += 1
                yield number
            if self.error is not None:
                raise self.error
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.01)
            self.closed = True


class Work:
    def __init__(self, takes_s: float = 1) -> None:
        self.now = self.most = self.begun = 0
        self.takes_s = takes_s

    async def __call__(self, item: int | None) -> int | None:
        self.begun += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.sleep(self.takes_s / (1 + (item or 0)))
            if item == 99:
                raise ValueError("99")
            return item
        finally:
            self.now -= 1


async def everything(stream: Stream[Any]) -> list[Any]:
    async with stream as items:
        return [item async for item in items]


async def read(stream: Stream[Any], into: list[Any], pause_s: float = 0) -> None:
    # `into` has what came before an error as well.
    async with stream as items:
        async for item in items:
            into.append(item)
            await trio.sleep(pause_s)


async def test_mapped_keeps_the_order_and_its_limit(autojump_clock: trio.testing.MockClock):
    work = Work()
    assert await everything(mapped(range(6), work, limit=3)) == [0, 1, 2, 3, 4, 5]
    assert work.most == 3
    assert await everything(mapped([None, 0, None], work)) == [None, 0, None]


async def test_mapped_raises_an_error_after_what_came_before_it(
    autojump_clock: trio.testing.MockClock,
):
    got: list[int | None] = []
    with pytest.raises(ValueError, match="99"):
        await read(mapped([1, 99, 2], Work(), limit=3), got)
    assert got == [1]
    source = Source(1, 1, error=OSError("source"))
    got.clear()
    with pytest.raises(OSError, match="source"):
        await read(mapped(source.items(), Work(), limit=3), got)
    assert got == [0, 1]


async def test_mapped_reads_no_more_ahead_than_its_limit(autojump_clock: trio.testing.MockClock):
    source, work = Source(*[0] * 100), Work()
    async with mapped(source.items(), work, limit=3) as results:
        await anext(results)
        await trio.sleep(100)
        assert work.begun <= 1 + 3
    assert source.closed


async def test_merged_gives_items_as_they_come_and_ends_with_the_last(
    autojump_clock: trio.testing.MockClock,
):
    async def slow() -> AsyncGenerator[str, None]:
        for item in "ab":
            await trio.sleep(1)
            yield item

    async def quick() -> AsyncGenerator[str, None]:
        for item in "xyz":
            await trio.sleep(0.4)
            yield item

    assert await everything(merged(slow(), quick())) == ["x", "y", "a", "z", "b"]
    assert await everything(merged()) == []


async def test_batched_fills_up_or_waits_its_delay(autojump_clock: trio.testing.MockClock):
    assert await everything(batched(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    source = Source(0, 1, 1, 30, 1, 1, 1, 1)
    begun_at = trio.current_time()
    async with batched(source.items(), 4, delay_s=1) as stream:
        batches = [(round(trio.current_time() - begun_at, 2), batch) async for batch in stream]
    assert batches == [(1, [0, 1, 2]), (3.5, [3, 4, 5, 6]), (3.61, [7])]
    assert await everything(batched([None, None], 5)) == [[None, None]]
    with pytest.raises(ValueError, match="at least 1"):
        await everything(batched([], 0))


async def test_batched_gives_what_came_before_an_error(autojump_clock: trio.testing.MockClock):
    batches: list[list[int]] = []
    with pytest.raises(OSError, match="source"):
        await read(batched(Source(1, 1, 1, error=OSError("source")).items(), 2), batches)
    assert batches == [[0, 1], [2]]


async def test_limited_lets_items_through_at_the_limiters_rate(
    autojump_clock: trio.testing.MockClock,
):
    limiter = RateLimiter(Rate(1, 1))
    assert await everything(limited(range(5), limiter)) == [0, 1, 2, 3, 4]
    assert trio.current_time() == pytest.approx(4)
    assert limiter.granted == 5


async def test_timed_raises_when_an_item_takes_too_long(autojump_clock: trio.testing.MockClock):
    source, got = Source(1, 9, 11), list[int]()
    with pytest.raises(trio.TooSlowError):
        # A slow reader is not the source's fault.
        await read(timed(source.items(), 1), got, pause_s=50)
    assert got == [0, 1]
    assert source.closed


STREAMS: dict[str, Callable[[Source], Stream[Any]]] = {
    "mapped": lambda source: mapped(source.items(), Work(), limit=2),
    "merged": lambda source: merged(source.items(), Source(0, 1, 1).items()),
    "batched": lambda source: batched(source.items(), 2, delay_s=0.15),
    "limited": lambda source: limited(source.items(), RateLimiter(Rate(5, 1))),
    "timed": lambda source: timed(source.items(), 5),
}


@pytest.mark.parametrize("name", STREAMS)
async def test_leaving_early_closes_the_source_and_its_error_comes_out_bare(
    autojump_clock: trio.testing.MockClock, name: str
):

    async def fail(pause_s: float) -> None:
        async with STREAMS[name](source) as stream:
            await anext(stream)
            await trio.sleep(pause_s)
            raise KeyError

    for pause_s in (0, 0.05, 3):
        source = Source(*[1] * 50)
        with pytest.raises(KeyError):
            await fail(pause_s)
        assert source.closed
        assert source.given < 10
        source = Source(*[1] * 50)
        async with STREAMS[name](source) as stream:
            async for _ in stream:
                await trio.sleep(pause_s)
                break
        assert source.closed


@pytest.mark.parametrize("name", STREAMS)
async def test_cancelled_at_any_checkpoint_the_source_is_closed(
    autojump_clock: trio.testing.MockClock, name: str
):
    source: Source | None = None

    async def scenario() -> None:
        nonlocal source
        source = Source(1, 1, 0)
        await everything(STREAMS[name](source))

    def check() -> None:
        assert source is None or source.given == 0 or source.closed

    assert await cancel_at_every_checkpoint(scenario, check) > 5


@given(
    st.lists(st.integers(0, 5), max_size=20),
    st.integers(1, 5),
    st.integers(0, 10),
    st.integers(0, 5),
)
def test_batches_hold_every_item_once_in_order_and_none_is_late(
    pauses_ds: list[int], size: int, delay_ds: int, reader_ds: int
):
    source = Source(*pauses_ds)

    async def main() -> None:
        got: list[int] = []
        async with batched(source.items(), size, delay_s=delay_ds / 10) as stream:
            async for batch in stream:
                assert 1 <= len(batch) <= size
                got.extend(batch)
                await trio.sleep(reader_ds / 10)
        assert got == list(range(len(pauses_ds)))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert source.closed
