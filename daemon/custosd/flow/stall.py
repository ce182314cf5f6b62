"""Notices when trio's loop stands still because a task does not let go, and says where.

Laws:

1. An idle loop is no stall: only the time between two waits for input or output counts.
2. The stack is taken while the loop still stands, by a thread of its own; so a loop that
   never comes back is told of too.
3. Each stall is told of once.

The time that stands still is real time: this is the one module that no virtual clock moves.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import trio

STALL_S = 1.0
"""For how long the loop may be busy without a look at input, output and deadlines."""

MOST_FRAMES = 40


@dataclass(frozen=True, slots=True)
class Stall:
    """A loop that has stood still for `stood_s` seconds, and goes on standing still.

    `task` is the one that has run since `task_s` ("" between two); `stack` its thread's
    frames, "file:line function", the innermost last, `MOST_FRAMES` at most.
    """

    stood_s: float
    task: str
    stack: tuple[str, ...]


class LoopProbe(trio.abc.Instrument):
    """Since when the loop is busy; to be added to the run by `open_stall_watch`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.busy_since: float | None = clock()
        self.turn = 0
        self.longest_s = 0.0
        """The longest turn of the loop since `taken_longest_s`."""

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - trio's signature
        """The loop has done all that it had to do."""
        if self.busy_since is not None:
            self.longest_s = max(self.longest_s, self._clock() - self.busy_since)
        self.busy_since = None

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - trio's signature
        """The next turn begins."""
        self.turn += 1
        self.busy_since = self._clock()

    def taken_longest_s(self) -> float:
        """The longest turn since this was last asked."""
        longest_s, self.longest_s = self.longest_s, 0.0
        return longest_s


class StallWatch:
    """Looks at a probe from another thread; `open_stall_watch` runs it."""

    def __init__(
        self,
        probe: LoopProbe,
        thread_id: int,
        stall_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probe = probe
        self._thread_id = thread_id
        self._stall_s = stall_s
        self._clock = clock
        self._told = -1

    def look(self) -> Stall | None:
        """The stall that is to be told of now, if there is one."""
        turn, busy_since = self._probe.turn, self._probe.busy_since
        if busy_since is None or turn == self._told:
            return None
        stood_s = self._clock() - busy_since
        if stood_s < self._stall_s:
            return None
        frame = sys._current_frames().get(self._thread_id)  # noqa: SLF001 - its documented name
        # Taken from a loop that went on meanwhile, the stack would accuse somebody else.
        if self._probe.turn != turn or self._probe.busy_since is None:
            return None
        self._told = turn
        return Stall(stood_s, _task_in(frame), _stack_of(frame))


@contextmanager
def open_stall_watch(
    on_stall: Callable[[Stall], None],
    *,
    stall_s: float = STALL_S,
) -> Iterator[LoopProbe]:
    """Watch this trio run for the block, from a thread that looks four times in `stall_s`.

    `on_stall` is called in that thread, while the loop stands still; what it raises ends
    the watch, and comes out at the block's end.
    """
    probe = LoopProbe()
    watch = StallWatch(probe, threading.get_ident(), stall_s)
    ended = threading.Event()
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            while not ended.wait(stall_s / 4):
                if (stall := watch.look()) is not None:
                    on_stall(stall)
        except BaseException as error:  # noqa: BLE001 - told to whoever opened the watch
            failures.append(error)

    thread = threading.Thread(target=serve, name="custosd-stall", daemon=True)
    trio.lowlevel.add_instrument(probe)
    thread.start()
    try:
        yield probe
    finally:
        trio.lowlevel.remove_instrument(probe)
        ended.set()
        thread.join()
    if failures:
        raise failures[0]


def _stack_of(frame: FrameType | None) -> tuple[str, ...]:
    stack: list[str] = []
    while frame is not None and len(stack) < MOST_FRAMES:
        code = frame.f_code
        stack.append(f"{code.co_filename}:{frame.f_lineno} {code.co_qualname}")
        frame = frame.f_back
    return tuple(reversed(stack))


def _task_in(frame: FrameType | None) -> str:
    """The name of the task that runs, from the loop's own frame; "" between two tasks."""
    while frame is not None:
        task = frame.f_locals.get("task") if frame.f_code.co_name == "unrolled_run" else None
        if isinstance(task, trio.lowlevel.Task):
            return task.name
        frame = frame.f_back
    return ""
