"""What the process is asked to do by signals: stop, stop now, or something else.

The first SIGTERM or SIGINT sets `stop`; a second one cancels everything in the block at
once. SIGHUP, SIGUSR1 and SIGUSR2 are counted; whoever has an answer waits for them.
"""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from custosd.flow.latest import Latest


@dataclass(slots=True)
class Stopping:
    """What has been asked for so far. Anybody may set `stop`; it then counts as asked."""

    stop: trio.Event = field(default_factory=trio.Event)
    asked_by: signal.Signals | None = None
    """The first signal to stop, if it was one."""
    forced: bool = False
    """Whether a second signal cut the block short."""
    hangups: Latest[int] = field(default_factory=lambda: Latest(0))
    """How many SIGHUP came; several that come together may be seen as one change."""
    user1: Latest[int] = field(default_factory=lambda: Latest(0))
    """The same of SIGUSR1."""
    user2: Latest[int] = field(default_factory=lambda: Latest(0))
    """The same of SIGUSR2."""


@asynccontextmanager
async def open_stopping() -> AsyncIterator[Stopping]:
    """Take the process's signals for the block; only in the main thread.

    When a second signal has cancelled the block, the `async with` ends without an error
    and `forced` is true. Errors of the block come out in an `ExceptionGroup`.
    """
    stopping = Stopping()
    with trio.open_signal_receiver(
        signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2
    ) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_listen, signals, stopping, nursery.cancel_scope)
            yield stopping
            nursery.cancel_scope.cancel()


async def _listen(signals: AsyncIterator[int], stopping: Stopping, scope: trio.CancelScope) -> None:
    async for number in signals:
        match signal.Signals(number):
            case signal.SIGHUP:
                stopping.hangups.publish(stopping.hangups.value + 1)
            case signal.SIGUSR1:
                stopping.user1.publish(stopping.user1.value + 1)
            case signal.SIGUSR2:
                stopping.user2.publish(stopping.user2.value + 1)
            case _ if stopping.stop.is_set():
                stopping.forced = True
                scope.cancel("second signal to stop")
            case asked_by:
                stopping.asked_by = asked_by
                stopping.stop.set()
