"""What a block leaves behind: tasks, channels, streams, descriptors, threads, and more.

    with leaks_refused(lent=lambda: limiter.borrowed_tokens):
        await work()

Laws:

1. A balance is taken by counting what there is, not by believing what was registered: no
   construct has to take part.
2. What was there before is nobody's leak, and what came instead of it is none either: only
   the numbers are compared, and only growth is refused.
"""

import gc
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import trio

from custosd.flow.task_tree import tasks

_DESCRIPTORS = "/proc/self/fd"
_MOST_NAMED = 5


class Leaked(AssertionError):
    """Something is left behind; the message says what, and how many more."""


@dataclass(frozen=True, slots=True)
class Balance:
    """How much of everything there is at one moment.

    `tasks` by name, system tasks included; `channels` counts open ends of memory channels,
    `streams` open sockets and pipes of trio, `descriptors` all of the process, -1 where the
    system does not tell. `further` is what the caller counts himself.
    """

    tasks: Mapping[str, int]
    channels: int
    streams: int
    descriptors: int
    threads: int
    further: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def grown(self, before: "Balance") -> dict[str, float]:
        """What there is more of than before, and how much more."""
        now, then = _numbers(self), _numbers(before)
        return {
            what: number - then.get(what, 0)
            for what, number in now.items()
            if number > then.get(what, 0)
        }


def balance(further: Mapping[str, Callable[[], float]] | None = None) -> Balance:
    """Count everything, in trio's thread; some milliseconds, for the garbage goes first."""
    gc.collect()
    names: dict[str, int] = {}
    for seen in tasks():
        names[seen.name] = names.get(seen.name, 0) + 1
    return Balance(
        names,
        *_ends(),
        _descriptors(),
        # trio keeps threads for the next `to_thread`: those that wait there are no leak.
        sum(not one.name.startswith("Trio thread") for one in threading.enumerate()),
        {what: number() for what, number in (further or {}).items()},
    )


@contextmanager
def leaks_refused(**further: Callable[[], float]) -> Iterator[Balance]:
    """Compare the balance before and after the block: `Leaked` if anything has grown.

    Yields the balance before. The block must have awaited the end of what it started; a
    block that raises raises that, and is not looked at. `further` are numbers besides that
    must come back to what they were, as live resources of a pool.
    """
    before = balance(further)
    yield before
    if grown := balance(further).grown(before):
        words = [f"{number:+g} {what}" for what, number in sorted(grown.items())]
        rest = f" and {len(words) - _MOST_NAMED} kinds more" if len(words) > _MOST_NAMED else ""
        raise Leaked(f"left behind: {', '.join(words[:_MOST_NAMED])}{rest}")


def _numbers(one: Balance) -> dict[str, float]:
    return {
        **{f"task {name}": float(count) for name, count in one.tasks.items()},
        "channel ends": one.channels,
        "streams": one.streams,
        "descriptors": one.descriptors,
        "threads": one.threads,
        **one.further,
    }


def _ends() -> tuple[int, int]:
    channels = streams = 0
    for one in gc.get_objects():
        # Not `isinstance`: what pretends to be another class answers it with code of its own.
        kind = type(one)
        if kind is trio.MemorySendChannel or kind is trio.MemoryReceiveChannel:
            channels += not one._closed  # noqa: SLF001 - an end does not say so otherwise
        elif kind is trio.SocketStream or kind is trio.SocketListener:
            streams += one.socket.fileno() != -1
        elif kind is trio.lowlevel.FdStream:
            with suppress(trio.ClosedResourceError):
                streams += one.fileno() >= 0
    return channels, streams


def _descriptors() -> int:
    try:
        return sum(1 for _ in Path(_DESCRIPTORS).iterdir())
    except OSError:
        return -1
