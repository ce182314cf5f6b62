"""So many at a time, and who is more urgent goes first.

Laws:

1. No more than `limit` uses are under way; one that has begun is never interrupted for another.
2. Turns are `flow.line`'s: higher priority first, the oldest first within one, and who has
   waited `most_wait_s` goes before all others.
3. Who waits already can be promoted, by the name under which it came; it keeps its age.
"""

from collections.abc import AsyncGenerator, Hashable
from contextlib import asynccontextmanager

import trio

from custosd.flow.line import Line


class Gate:
    """Lets in `limit` uses at a time, by priority."""

    def __init__(self, limit: int, *, most_wait_s: float = 300.0) -> None:
        if limit < 1:
            raise ValueError(f"a gate for {limit} uses lets nobody in: at least 1")
        self.limit = limit
        self.in_use = 0
        self._line = Line[trio.Event](most_wait_s)
        self._named: dict[Hashable, trio.Event] = {}

    @property
    def waiting(self) -> int:
        """How many wait to be let in."""
        return len(self._line)

    def promote(self, name: Hashable, priority: int) -> bool:
        """Raise the priority of who waits under this name; False: nobody does (any more)."""
        turn = self._named.get(name)
        if turn is None or turn not in self._line:
            return False
        self._line.promote(turn, priority)
        return True

    @asynccontextmanager
    async def slot(self, priority: int = 0, name: Hashable = None) -> AsyncGenerator[float]:
        """Wait to be let in; the block is the use, and is given the seconds waited.

        `name` is what `promote` knows it by as long as it waits; no two wait under one.
        """
        came_at = trio.current_time()
        turn = trio.Event()
        self._line.join(turn, priority, came_at)
        if name is not None:
            self._named[name] = turn
        self._let_in()
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self._leave()
            else:
                self._line.leave(turn)
            raise
        finally:
            if name is not None:
                del self._named[name]
        try:
            yield trio.current_time() - came_at
        finally:
            self._leave()

    def _leave(self) -> None:
        self.in_use -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self.in_use < self.limit:
            turn = self._line.first(trio.current_time())
            if turn is None:
                return
            self._line.leave(turn)
            self.in_use += 1
            turn.set()
