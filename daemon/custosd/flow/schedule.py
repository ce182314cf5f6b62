"""Runs jobs when their triggers say, on trio's clock and the one on the wall.

Laws:

1. A due time is nominal: it comes from the trigger alone. Jitter and lateness delay a
   firing and never move the next one, so nothing drifts.
2. A job does not overlap itself unless it may: a firing that finds it running is skipped
   and counted. Firings that were missed (a stall, a suspend, a clock set forward) become
   one, and are counted.
3. The wall clock is read at least once a minute. If it was set back, a job is never
   silent for more than two of its periods: a daily job is not repeated because of an
   hour, and one that runs each minute does not pause for that hour.
4. A job's error is not swallowed: it ends the schedule. Whoever wants a job to survive
   its errors supervises the job.
"""

import heapq
import itertools
import math
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import trio

from custosd.flow.clock import WallClock, wall_clock
from custosd.flow.triggers import Trigger, interval, next_after, next_utc, period_s

LONGEST_WAIT_S = 60.0
"""The wall clock may be set while we wait by trio's, so a wait is never longer than this."""

STEP_BACK_S = 1.0
"""A wall clock that falls behind trio's by less is being slewed, not set back."""

MOST_MISSED = 1_000
"""So many missed firings are counted one by one; beyond, only the present matters."""


@dataclass(frozen=True, slots=True)
class Firing:
    """One start of a job: its nominal time, and how many missed ones it stands for."""

    due_utc: datetime
    coalesced: int = 0


@dataclass(frozen=True, slots=True)
class JobStatistics:
    """What became of one job so far. `coalesced` and `skipped` firings did not run."""

    fired: int
    coalesced: int
    skipped: int
    running: int
    next_due_utc: datetime | None
    last_due_utc: datetime | None
    last_done_utc: datetime | None


@dataclass(slots=True)
class _Job:
    name: str
    trigger: Trigger
    fn: Callable[[Firing], Awaitable[None]]
    overlap: int
    jitter_s: float
    due_utc: datetime | None = None
    fire_utc: datetime | None = None
    fired: int = 0
    coalesced: int = 0
    skipped: int = 0
    running: int = 0
    last_due_utc: datetime | None = None
    last_done_utc: datetime | None = None


@dataclass(slots=True)
class Schedule:
    """A set of jobs, each with a trigger; `run` fires them until it is cancelled.

    `now_utc` defaults to the clock that fits trio's; `jitter` gives numbers in [0, 1).
    """

    now_utc: WallClock = field(default_factory=wall_clock)
    jitter: Callable[[], float] = random.random
    _jobs: dict[str, _Job] = field(default_factory=dict)
    _heap: list[tuple[datetime, int, _Job]] = field(default_factory=list)
    _order: "itertools.count[int]" = field(default_factory=itertools.count)
    _added: trio.Event = field(default_factory=trio.Event)

    def add(
        self,
        name: str,
        trigger: Trigger,
        fn: Callable[[Firing], Awaitable[None]],
        *,
        overlap: int = 1,
        jitter_s: float = 0.0,
    ) -> None:
        """Add a job, before or while the schedule runs.

        At most `overlap` runs of it go on at once; each firing is delayed by 0 to `jitter_s`
        seconds. Raises: `ValueError` for a name that is taken.
        """
        if name in self._jobs:
            raise ValueError(f"a job named {name!r} is in the schedule already")
        job = self._jobs[name] = _Job(name, trigger, fn, overlap, jitter_s)
        self._plan(job, next_utc(trigger, None, self.now_utc()))
        self._added.set()

    def statistics(self) -> Mapping[str, JobStatistics]:
        """What became of each job so far, by its name."""
        return {
            job.name: JobStatistics(
                job.fired,
                job.coalesced,
                job.skipped,
                job.running,
                job.due_utc,
                job.last_due_utc,
                job.last_done_utc,
            )
            for job in self._jobs.values()
        }

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fire jobs as they fall due; never returns unless cancelled, jobs and all.

        Started: at once. Raises: what a job raised, in an `ExceptionGroup`.
        """
        async with trio.open_nursery() as nursery:
            task_status.started()
            offset = self._offset(self.now_utc())
            while True:
                now = self.now_utc()
                if self._offset(now) < offset - timedelta(seconds=STEP_BACK_S):
                    self._plan_anew(now)
                offset = self._offset(now)
                self._fire_due(now, nursery)
                await self._wait(now)

    async def _wait(self, now: datetime) -> None:
        wait_s = (self._heap[0][0] - now).total_seconds() if self._heap else math.inf
        self._added = trio.Event()
        with trio.move_on_after(min(max(wait_s, 0.0), LONGEST_WAIT_S)):
            await self._added.wait()

    @staticmethod
    def _offset(now: datetime) -> datetime:
        # Where the wall clock stood when trio's stood at zero: constant until it is set.
        return now - timedelta(seconds=trio.current_time())

    def _plan(self, job: _Job, due_utc: datetime | None) -> None:
        job.due_utc = due_utc
        job.fire_utc = None
        if due_utc is not None:
            job.fire_utc = due_utc + timedelta(seconds=job.jitter_s * self.jitter())
            heapq.heappush(self._heap, (job.fire_utc, next(self._order), job))

    def _plan_anew(self, now: datetime) -> None:
        planned = self._heap
        self._heap = []
        for entry in planned:
            job = entry[2]
            period = period_s(job.trigger, now)
            if (
                job.due_utc is not None
                and period is not None
                and (job.due_utc - now).total_seconds() > 2 * period
            ):
                self._plan(job, next_utc(job.trigger, None, now))
            else:
                heapq.heappush(self._heap, entry)

    def _fire_due(self, now: datetime, nursery: trio.Nursery) -> None:
        while self._heap and self._heap[0][0] <= now:
            job = heapq.heappop(self._heap)[2]
            assert job.due_utc is not None  # noqa: S101 - what is in the heap is due some time
            due = job.due_utc
            following, missed = next_after(job.trigger, due, now, MOST_MISSED)
            job.coalesced += missed
            job.last_due_utc = due
            if job.running >= job.overlap:
                job.skipped += 1
            else:
                job.fired += 1
                job.running += 1
                nursery.start_soon(self._run_job, job, Firing(due, missed), name=job.name)
            self._plan(job, following)

    async def _run_job(self, job: _Job, firing: Firing) -> None:
        try:
            await job.fn(firing)
        finally:
            job.running -= 1
            job.last_done_utc = self.now_utc()


async def every(
    interval_s: float,
    fn: Callable[[], Awaitable[None]],
    *,
    name: str,
    phase_s: float = 0.0,
    task_status: trio.TaskStatus[Schedule] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call `fn` now + `phase_s` and each `interval_s` after that, never two calls at once.

    Never returns unless cancelled. Started: at once, with the schedule (for its
    statistics). Raises: what `fn` raised, in an `ExceptionGroup`.
    """
    schedule = Schedule()
    start_utc = schedule.now_utc() + timedelta(seconds=phase_s)
    schedule.add(name, interval(interval_s, start_utc), lambda _: fn())
    task_status.started(schedule)
    await schedule.run()
