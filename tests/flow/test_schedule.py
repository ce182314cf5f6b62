import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from custosd.flow.clock import VIRTUAL_START_UTC as START
from custosd.flow.clock import wall_clock
from custosd.flow.schedule import Firing, Schedule, every
from custosd.flow.triggers import crontab, interval, next_after, next_utc

BERLIN = ZoneInfo("Europe/Berlin")


class SteppedClock:
    """A virtual wall clock that somebody sets by hand."""

    def __init__(self) -> None:
        self._base = wall_clock()
        self.set_by = timedelta()

    def __call__(self) -> datetime:
        return self._base() + self.set_by


async def test_three_days_over_a_change_to_summer_time(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    """The interval keeps its count; the nightly job keeps the clock on the wall."""
    start = datetime(2026, 3, 28, 0, 0, tzinfo=UTC)  # the change is on the 29th at 01:00 UTC
    schedule = Schedule(wall_clock(start))
    ticks: list[datetime] = []
    nights: list[datetime] = []

    async def tick(firing: Firing) -> None:
        ticks.append(firing.due_utc)

    async def night(firing: Firing) -> None:
        nights.append(firing.due_utc)

    schedule.add("tick", interval(60, start), tick)
    schedule.add("night", crontab("30 4 * * *", BERLIN), night)
    await nursery.start(schedule.run)
    await trio.sleep(3 * 86_400 - 1)
    nursery.cancel_scope.cancel()

    assert ticks == [start + timedelta(minutes=n) for n in range(3 * 1440)]
    assert [due.astimezone(BERLIN).strftime("%d %H:%M") for due in nights] == [
        "28 04:30",
        "29 04:30",
        "30 04:30",
    ]
    assert [due.hour for due in nights] == [3, 2, 2]
    assert all(due.tzinfo is UTC for due in nights)


async def test_the_hour_that_comes_twice_in_autumn_does_not_run_a_job_twice(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    start = datetime(2026, 10, 24, 12, 0, tzinfo=UTC)  # 02:30 in Berlin comes twice on the 25th
    schedule = Schedule(wall_clock(start))
    nights: list[datetime] = []

    async def night(firing: Firing) -> None:
        nights.append(firing.due_utc)

    schedule.add("night", crontab("30 2 * * *", BERLIN), night)
    await nursery.start(schedule.run)
    await trio.sleep(2 * 86_400)
    nursery.cancel_scope.cancel()

    assert [due.day for due in nights] == [25, 26]
    assert schedule.statistics()["night"].coalesced == 0


async def test_a_job_that_takes_too_long_is_skipped_and_never_overlaps_itself(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    schedule = Schedule()
    running = most = 0

    async def work(_: Firing) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(25)
        running -= 1

    schedule.add("work", interval(10, START), work)
    await nursery.start(schedule.run)
    await trio.sleep(95)
    seen = schedule.statistics()["work"]
    nursery.cancel_scope.cancel()

    assert most == 1
    assert (seen.fired, seen.skipped, seen.coalesced, seen.running) == (4, 6, 0, 1)
    assert seen.last_due_utc == START + timedelta(seconds=90)
    assert seen.next_due_utc == START + timedelta(seconds=100)
    assert seen.last_done_utc == START + timedelta(seconds=85)


async def test_a_job_may_overlap_itself_as_often_as_it_is_told(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    schedule = Schedule()

    async def work(_: Firing) -> None:
        await trio.sleep(25)

    schedule.add("work", interval(10, START), work, overlap=2)
    await nursery.start(schedule.run)
    await trio.sleep(21)
    seen = schedule.statistics()["work"]
    nursery.cancel_scope.cancel()
    assert (seen.fired, seen.skipped, seen.running) == (2, 1, 2)


async def test_firings_missed_in_a_stall_become_one(mock_clock: trio.testing.MockClock):
    """The loop stood still for 35 s: one firing, that says it stands for two more."""
    schedule = Schedule()
    firings: list[Firing] = []

    async def work(firing: Firing) -> None:
        firings.append(firing)

    schedule.add("work", interval(10, START), work)
    async with trio.open_nursery() as nursery:
        await nursery.start(schedule.run)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(35)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert firings == [Firing(START), Firing(START + timedelta(seconds=10), coalesced=2)]
    seen = schedule.statistics()["work"]
    assert (seen.fired, seen.coalesced) == (2, 2)
    assert seen.next_due_utc == START + timedelta(seconds=40)


async def test_jitter_delays_firings_and_never_adds_up(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    """A day of minutes with up to 5 s of jitter is still 1,440 minutes, on the minute."""
    schedule = Schedule(jitter=random.Random(1).random)
    delays: list[float] = []
    dues: list[datetime] = []

    async def work(firing: Firing) -> None:
        dues.append(firing.due_utc)
        delays.append((schedule.now_utc() - firing.due_utc).total_seconds())

    schedule.add("work", interval(60, START), work, jitter_s=5)
    await nursery.start(schedule.run)
    await trio.sleep(86_399)
    nursery.cancel_scope.cancel()

    assert dues == [START + timedelta(minutes=n) for n in range(1440)]
    assert 0 <= min(delays) < 0.1
    assert 4.9 < max(delays) <= 5.1


async def test_a_clock_set_forward_costs_one_firing_and_no_loop_over_the_years(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    clock = SteppedClock()
    schedule = Schedule(clock)
    firings: list[Firing] = []

    async def work(firing: Firing) -> None:
        firings.append(firing)

    schedule.add("work", interval(1, START), work)
    await nursery.start(schedule.run)
    await trio.sleep(2.5)
    clock.set_by = timedelta(days=20 * 365)
    await trio.sleep(3)
    nursery.cancel_scope.cancel()

    assert [firing.coalesced for firing in firings] == [0, 0, 0, 1000, 0, 0]
    assert firings[-1].due_utc == START + clock.set_by + timedelta(seconds=5)


async def test_a_clock_set_back_pauses_no_frequent_job_and_repeats_no_daily_one(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    clock = SteppedClock()
    schedule = Schedule(clock)
    minutes: list[float] = []
    days: list[datetime] = []

    async def each_minute(_: Firing) -> None:
        minutes.append(trio.current_time())

    async def daily(firing: Firing) -> None:
        days.append(firing.due_utc)

    schedule.add("minute", interval(60, START), each_minute)
    schedule.add("daily", crontab("30 0 * * *", UTC), daily)
    await nursery.start(schedule.run)
    await trio.sleep(3600 + 1)
    assert days == [START + timedelta(minutes=30)]

    clock.set_by = -timedelta(hours=1)
    began = trio.current_time()
    await trio.sleep(7200)
    nursery.cancel_scope.cancel()

    after = [at for at in minutes if at > began]
    gaps = [b - a for a, b in zip([began, *after], after, strict=False)]
    assert max(gaps) <= 2 * 60 + 60  # two periods, and the minute until the step is noticed
    assert len(after) >= 118
    assert days == [START + timedelta(minutes=30)]


async def test_an_error_of_a_job_ends_the_schedule(
    autojump_clock: trio.testing.MockClock,
):
    schedule = Schedule()

    async def fail(_: Firing) -> None:
        raise LookupError("no such thing")

    schedule.add("fail", interval(10, START + timedelta(seconds=5)), fail)
    with pytest.RaisesGroup(LookupError):
        await schedule.run()
    assert schedule.statistics()["fail"].running == 0


async def test_a_job_that_is_added_while_nothing_is_due_still_fires_in_time(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    schedule = Schedule()
    fired = trio.Event()

    async def work(_: Firing) -> None:
        fired.set()

    await nursery.start(schedule.run)
    await trio.sleep(7)
    schedule.add("late", interval(3, START + timedelta(seconds=8)), work)
    await fired.wait()
    assert trio.current_time() == pytest.approx(8)
    with pytest.raises(ValueError, match="'late' is in the schedule already"):
        schedule.add("late", interval(3, START), work)
    nursery.cancel_scope.cancel()


async def test_every_begins_at_its_phase_and_keeps_it(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    calls: list[float] = []

    async def work() -> None:
        calls.append(trio.current_time())
        await trio.sleep(3)

    schedule = await nursery.start(
        lambda task_status: every(10, work, name="work", phase_s=4, task_status=task_status)
    )
    await trio.sleep(40)
    nursery.cancel_scope.cancel()
    assert calls == pytest.approx([4, 14, 24, 34])
    assert schedule.statistics()["work"].fired == 4


def test_in_the_hour_that_comes_twice_only_a_line_for_every_hour_is_due_twice():
    def dues(expression: str) -> list[str]:
        trigger, now, found = crontab(expression, BERLIN), datetime(2026, 10, 25, tzinfo=UTC), []
        due = next_utc(trigger, None, now)
        while due is not None and due.hour < 3 and due.day == 25:
            found.append(due.strftime("%H:%M"))
            due = next_utc(trigger, due, due)
        return found

    assert dues("*/30 2 * * *") == ["00:00", "00:30"]
    assert dues("*/30 * * * *") == ["00:00", "00:30", "01:00", "01:30", "02:00", "02:30"]


@given(
    every_s=st.floats(0.001, 1e6),
    late_s=st.floats(0, 1e9),
    most=st.integers(1, 50),
)
def test_the_next_due_time_is_always_later_than_now(every_s: float, late_s: float, most: int):
    now = START + timedelta(seconds=late_s)
    due, missed = next_after(interval(every_s, START), START, now, most)
    assert due is not None
    assert due > now
    assert 0 <= missed <= most


def test_an_interval_below_a_millisecond_is_refused():
    with pytest.raises(ValueError, match=r"at least 0\.001 s"):
        interval(0, START)


def test_a_trigger_that_is_over_gives_nothing():
    class Once:
        def get_next_fire_time(
            self, previous_fire_time: datetime | None, now: datetime, /
        ) -> datetime | None:
            return None if previous_fire_time else now

    assert next_utc(Once(), None, START) == START
    assert next_after(Once(), START, START, 10) == (None, 0)
