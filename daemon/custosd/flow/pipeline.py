"""Items through stages, each stage with its own concurrency, and bounded room between them.

Laws:

1. Each stage handles an item at most once; every item that is taken from the source ends as
   one outcome, unless a stage's error policy ends the whole run or tells of it elsewhere.
2. Any value is an item, None too: the end is told by closing, not by a value.
3. A slow stage, or a slow reader, holds back those before it: no more items are under way than
   the stages' concurrencies and rooms add up to.
4. Leaving the block early cancels what is under way, waits for its clean-up, and takes
   nothing more from the source.
"""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import outcome
import trio

from custosd.flow.background import block_nursery
from custosd.flow.streams import iterated

T = TypeVar("T")
R = TypeVar("R")
Q = TypeVar("Q")


@dataclass(frozen=True, slots=True)
class StageError:
    """One item's failure: of which stage, which item (its place in the source), and what."""

    stage: str
    index: int
    error: Exception


# "fail": the error ends the run. "keep": it is the item's outcome, and later stages do not see
# the item. A function: it is told, and may not wait; the item ends there.
OnError = Literal["fail", "keep"] | Callable[[StageError], None]


@dataclass(frozen=True, slots=True)
class Stage(Generic[T, R]):
    """What is done with each item: `concurrency` of them at once, `room` more waiting before it.

    An ordered stage passes on in the order in which it took: an item that is done early keeps
    its place in the stage until those before it have gone. An unordered one passes on as they end.
    """

    name: str
    fn: Callable[[T], Awaitable[R]]
    concurrency: int = 1
    room: int = 0
    ordered: bool = True
    on_error: OnError = "fail"

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.room < 0:
            raise ValueError(
                f"stage {self.name!r} needs a concurrency of at least 1 and room of at least 0, "
                f"not {self.concurrency} and {self.room}"
            )


@dataclass(slots=True)
class StageCount:
    """How many items a stage has taken, and passed on well, failed or skipped (failed before)."""

    taken: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0


# Called with a stage's name and its counts after each item's end there.
Progress = Callable[[str, StageCount], None]

_Item = tuple[int, outcome.Outcome[Any]]


class Pipeline(Generic[T, R]):
    """Stages in a row, from items T to results R; it can be run many times, also at once."""

    def __init__(self, stages: tuple[Stage[Any, Any], ...]) -> None:
        names = [stage.name for stage in stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages need different names, these have not: {', '.join(names)}")
        self.stages = stages

    @staticmethod
    def of(stage: Stage[T, R]) -> "Pipeline[T, R]":
        """A pipeline of one stage."""
        return Pipeline[T, R]((stage,))

    def then(self, stage: Stage[R, Q]) -> "Pipeline[T, Q]":
        """The pipeline with one more stage at its end."""
        return Pipeline[T, Q]((*self.stages, stage))

    @asynccontextmanager
    async def run(
        self, items: Iterable[T] | AsyncIterable[T], *, progress: Progress | None = None
    ) -> AsyncIterator[AsyncIterator[tuple[int, outcome.Outcome[R]]]]:
        """Run the items through; iterate over (place in the source, outcome) as they come out.

        `async with pipeline.run(items) as results: async for index, result in results: ...`.
        Raises, in an `ExceptionGroup`: a stage's error under the policy "fail" (with a note of
        stage and item), an error of the source, of `progress` or of a policy's function. The
        block's own error comes out as it is. An asynchronous generator as source is closed.
        """
        stages = self.stages
        rooms = [*(stage.room for stage in stages), 0]
        channels = [trio.open_memory_channel[_Item](room) for room in rooms]
        # The last one is closed after all who send to it have ended.
        with channels[-1][1] as results:
            async with block_nursery("the block over the pipeline was left") as nursery:
                nursery.start_soon(_feed, items, channels[0][0])
                for stage, (_, receive), (send, _) in zip(
                    stages, channels[:-1], channels[1:], strict=True
                ):
                    running = _RunningStage(stage, send, progress, nursery)
                    nursery.start_soon(running.run, receive)
                yield results


async def _feed(items: Iterable[T] | AsyncIterable[T], send: trio.MemorySendChannel[_Item]) -> None:
    with send:
        index = 0
        async with iterated(items) as source:
            async for item in source:
                await send.send((index, outcome.Value(item)))
                index += 1


class _RunningStage:
    def __init__(
        self,
        stage: Stage[Any, Any],
        send: trio.MemorySendChannel[_Item],
        progress: Progress | None,
        nursery: trio.Nursery,
    ) -> None:
        self._stage = stage
        self._send = send
        self._progress = progress
        self._nursery = nursery
        self._count = StageCount()
        self._places = trio.CapacityLimiter(stage.concurrency)

    async def run(self, receive: trio.MemoryReceiveChannel[_Item]) -> None:
        before = trio.Event()
        before.set()
        with receive, self._send:
            while True:
                place = object()
                await self._places.acquire_on_behalf_of(place)
                try:
                    item = await receive.receive()
                except trio.EndOfChannel:
                    return
                self._count.taken += 1
                gone = trio.Event()
                send = self._send.clone()
                self._nursery.start_soon(self._handle, item, place, before, gone, send)
                before = gone

    async def _handle(
        self,
        item: _Item,
        place: object,
        before: trio.Event,
        gone: trio.Event,
        send: trio.MemorySendChannel[_Item],
    ) -> None:
        with send:
            index, value = item
            result = await self._outcome(index, value)
            if self._stage.ordered:
                await before.wait()
            if result is not None:
                await send.send((index, result))
            gone.set()
            self._places.release_on_behalf_of(place)

    async def _outcome(
        self, index: int, value: outcome.Outcome[Any]
    ) -> outcome.Outcome[Any] | None:
        if isinstance(value, outcome.Error):
            self._count.skipped += 1
            return value
        result: outcome.Outcome[Any] | None
        try:
            result = outcome.Value(await self._stage.fn(value.unwrap()))
            self._count.done += 1
        except Exception as error:
            self._count.failed += 1
            result = self._failed(StageError(self._stage.name, index, error))
            if result is None and self._stage.on_error == "fail":
                raise
        if self._progress is not None:
            self._progress(self._stage.name, self._count)
        return result

    def _failed(self, failure: StageError) -> outcome.Outcome[Any] | None:
        failure.error.add_note(f"in stage {failure.stage!r}, for item {failure.index}")
        match self._stage.on_error:
            case "fail":
                return None
            case "keep":
                return outcome.Error(failure.error)
            case tell:
                tell(failure)
                return None
