"""Wakes one task: at the earliest of the times that were asked for, or at once.

Laws:

1. What is asked for while the task works is not lost: its next wait ends accordingly.
2. One task waits; anybody may `ring`. Nothing here is queued: many rings are one.
"""

import math

import trio


class Alarm:
    """When a level-triggered service has to look again."""

    def __init__(self, longest_s: float, shortest_s: float = 0.0) -> None:
        self._longest_s = longest_s
        self._shortest_s = shortest_s
        self._at = math.inf
        self._rung = trio.Event()

    def ring(self) -> None:
        """Look again at once."""
        self._rung.set()

    def after(self, seconds: float) -> None:
        """Look again after so many seconds, at the latest; never sooner than the shortest."""
        self._at = min(self._at, trio.current_time() + max(seconds, self._shortest_s))

    def rewind(self) -> None:
        """Forget the rings and times up to now: a look begins that will see what they meant."""
        self._at = math.inf
        self._rung = trio.Event()

    async def wait(self) -> None:
        """Until it rings, a time comes, or the longest wait is over."""
        with trio.move_on_at(min(self._at, trio.current_time() + self._longest_s)):
            await self._rung.wait()
