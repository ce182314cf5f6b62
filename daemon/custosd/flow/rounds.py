"""Something done in rounds: on a grid of times, and at once for whoever asks; one at a time.

Laws:

1. The times lie on a grid that was begun with the first round: however long rounds take, fail or
   are run again, it does not move. Only another interval begins another grid.
2. Rounds never overlap. One that is due while another is under way begins when that has ended,
   and stands for all that were missed by then; so does the first one after a suspend.
3. Who asks gets a round that began after it asked; all who ask while one is under way share the
   next. A round that was asked for does not move the grid either.
4. Whoever waits is told how its round failed; where a round was cut short by a stop, or runs are
   made anew, it waits on for the next run's first.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Generic, TypeVar

import outcome
import trio

from custosd.flow.clock import WallClock
from custosd.flow.pulse import Pulse
from custosd.flow.schedule import Firing, Schedule
from custosd.flow.triggers import interval

R = TypeVar("R")


class RoundFailed(Exception):
    """The round that was asked for ended with an error: the cause."""


@dataclass(eq=False, slots=True)
class _Asker(Generic[R]):
    result: outcome.Maybe[R] | None = None
    done: trio.Event = field(default_factory=trio.Event)


class Rounds(Generic[R]):
    """The rounds of one thing; lives longer than its runs, so that the grid does too.

    `now_utc` is the wall clock. `coalesced` counts the missed ones that others stood for.
    """

    def __init__(self, name: str, now_utc: WallClock) -> None:
        self.name = name
        self.coalesced = 0
        self._now_utc = now_utc
        self._grid: tuple[datetime, float] | None = None
        self._askers: list[_Asker[R]] = []
        self._due = 0
        self._wake = trio.Event()

    async def ask(self) -> R:
        """The result of a round that begins from now on; waits for as long as that takes.

        Raises `RoundFailed`. Cancelled, it asks no more; a round that is under way goes on.
        """
        asker = _Asker[R]()
        self._askers.append(asker)
        self._wake.set()
        try:
            await asker.done.wait()
        finally:
            if asker in self._askers:
                self._askers.remove(asker)
        assert asker.result is not None  # noqa: S101 - it is done
        return asker.result.unwrap()

    async def run(
        self,
        interval_s: float,
        do: Callable[[int], Awaitable[R]],
        pulse: Pulse,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Do a round now, on each time of the grid, and when asked; until cancelled.

        `do` is given how many missed rounds this one stands for. Started: when the first round
        is done. The pulse beats with each. Raises what a round raised, in an `ExceptionGroup`.
        """
        if self._grid is None or self._grid[1] != interval_s:
            self._grid = self._now_utc(), interval_s
        first_utc = self._grid[0] + timedelta(seconds=interval_s)
        schedule = Schedule(self._now_utc)
        schedule.add(self.name, interval(interval_s, first_utc), self._fire)
        self._due = 1
        async with trio.open_nursery() as nursery:
            await nursery.start(schedule.run, name=f"rounds of {self.name}")
            while True:
                self._wake = trio.Event()
                if self._due or self._askers:
                    await self._round(do)
                    pulse.beat()
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
                    continue
                with pulse.waiting():
                    await self._wake.wait()

    async def _fire(self, firing: Firing) -> None:
        self._due += 1 + firing.coalesced
        self._wake.set()
        await trio.lowlevel.checkpoint()

    async def _round(self, do: Callable[[int], Awaitable[R]]) -> None:
        missed, self._due = max(self._due - 1, 0), 0
        self.coalesced += missed
        askers, self._askers = self._askers, []
        try:
            result = await do(missed)
        except Exception as error:
            for asker in askers:
                failed = RoundFailed(f"{self.name} failed: {error!r}")
                failed.__cause__ = error
                _give(asker, outcome.Error(failed))
            raise
        except BaseException:
            # Who gave up meanwhile takes itself out.
            self._askers = [asker for asker in askers if not asker.done.is_set()] + self._askers
            raise
        for asker in askers:
            _give(asker, outcome.Value(result))


def _give(asker: _Asker[R], result: outcome.Maybe[R]) -> None:
    asker.result = result
    asker.done.set()
