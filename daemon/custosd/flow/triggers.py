"""When something is due: triggers, as pure functions of the last and the present time.

A trigger is anything with APScheduler's `get_next_fire_time`. Those made here always
have a start and a time zone of their own (APScheduler would else ask the machine), and
never a jitter (inside a trigger it adds up: each firing counts from a delayed one).
"""

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Protocol

from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

SHORTEST_INTERVAL_S = 0.001


class Trigger(Protocol):
    """Says when the next firing is due."""

    def get_next_fire_time(
        self, previous_fire_time: datetime | None, now: datetime, /
    ) -> datetime | None:
        """The first due time after the previous one, or from now on; None if no more come."""
        ...


def interval(interval_s: float, start_utc: datetime) -> Trigger:
    """Due at `start_utc` and every `interval_s` seconds (at least 0.001) from there on."""
    if interval_s < SHORTEST_INTERVAL_S:
        raise ValueError(f"an interval of {interval_s} s is too short: at least 0.001 s")
    # Its stubs know whole seconds only; the trigger itself hands them to a timedelta.
    seconds: Any = interval_s
    trigger: Trigger = IntervalTrigger(seconds=seconds, start_date=start_utc, timezone=UTC)
    return trigger


def crontab(expression: str, timezone: tzinfo) -> Trigger:
    """Due as the five fields of a crontab line say, by the clock on the wall in `timezone`.

    In the hour that comes twice in autumn, a line that names its hours is due the first
    time only, and one for every hour (`*`) both times. In the hour that is left out in
    spring, a time is due as long after its beginning as it says. Raises: `ValueError` for an
    expression that cannot be read.
    """
    return _Crontab(expression, timezone)


class _Crontab:
    def __init__(self, expression: str, timezone: tzinfo) -> None:
        self._trigger = CronTrigger.from_crontab(expression, timezone=timezone)
        self._timezone = timezone
        self._names_hours = not expression.split()[1].startswith("*")

    def get_next_fire_time(
        self, previous_fire_time: datetime | None, now: datetime, /
    ) -> datetime | None:
        # In the trigger's own time zone: it asks whether two times are equal, and Python says
        # no to that for a time that comes twice, if it is given in two time zones.
        previous = previous_fire_time and previous_fire_time.astimezone(self._timezone)
        due: datetime | None = self._trigger.get_next_fire_time(previous, now)
        while due is not None and due.fold and self._names_hours:
            due = self._trigger.get_next_fire_time(due, max(due, now))
        return due


def next_utc(trigger: Trigger, previous_utc: datetime | None, now_utc: datetime) -> datetime | None:
    """The trigger's next due time, in UTC."""
    due = trigger.get_next_fire_time(previous_utc, now_utc)
    # Datetimes of one time zone are compared by what the wall clock shows, which is wrong
    # around a change to summer time; in UTC comparing and subtracting mean what they say.
    return None if due is None else due.astimezone(UTC)


def next_after(
    trigger: Trigger, due_utc: datetime, now_utc: datetime, most: int
) -> tuple[datetime | None, int]:
    """The first due time later than now, and how many between `due_utc` and it were missed.

    After `most` missed ones counting ends and the present time is taken up: a clock that
    leaps by years does not cost a loop over all its seconds.
    """
    due, missed = next_utc(trigger, due_utc, now_utc), 0
    while due is not None and due <= now_utc:
        missed += 1
        if missed >= most:
            # Past now by more than the rounding of a timestamp that is kept as a float.
            return next_utc(trigger, None, now_utc + timedelta(microseconds=10)), missed
        due = next_utc(trigger, due, now_utc)
    return due, missed


def period_s(trigger: Trigger, from_utc: datetime) -> float | None:
    """Seconds between the next two due times from `from_utc` on; None if there are not two."""
    first = next_utc(trigger, None, from_utc)
    second = None if first is None else next_utc(trigger, first, first)
    return None if first is None or second is None else (second - first).total_seconds()
