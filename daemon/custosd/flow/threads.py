"""Calls that block, and may hang, in so many threads of their own.

Laws:

1. What hangs in the kernel keeps its thread, and no other: the threads of everybody else
   are not taken by it.
2. Who waits for a call may be cancelled at any time; an abandoned call's result is dropped.
3. A call whose caller was cancelled before its turn came is never made.
"""

from collections.abc import Callable
from typing import TypeVar

import trio

R = TypeVar("R")


class Threads:
    """At most `most` calls at once; the others wait their turn, first come first served.

    `abandon`: a caller that is cancelled goes at once, and leaves the call behind, which holds
    its place until it ends. Without it, he waits for the end of the call.
    """

    def __init__(self, most: int, *, abandon: bool = True) -> None:
        self._limiter = trio.CapacityLimiter(most)
        self._abandon = abandon

    @property
    def busy(self) -> int:
        """How many calls are under way, the abandoned ones included."""
        return self._limiter.borrowed_tokens

    @property
    def waiting(self) -> int:
        """How many calls wait for a thread."""
        return self._limiter.statistics().tasks_waiting

    async def run(self, fn: Callable[[], R]) -> R:
        """The result of `fn()`, called in a thread; raises what it raises."""
        return await trio.to_thread.run_sync(
            fn, abandon_on_cancel=self._abandon, limiter=self._limiter
        )
