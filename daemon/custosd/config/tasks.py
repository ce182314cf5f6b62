"""The settings of the fleet's tasks: leases, retries, and how urgency is counted."""

from collections.abc import Iterator
from typing import Annotated

from custosd.config.kinds import Amount, Count, Duration
from custosd.config.section import Conflict, Section, default, in_order, section
from custosd.core.tasks import RetryRules, ScoreRules, TaskRules

_Weight = Amount(0, 1, "share of the score")


class RetrySettings(Section):
    """How long a task rests after an attempt that came to nothing."""

    first_s: Annotated[float, Duration("1ms", "1d")] = default(
        "1s", "After the first attempt; doubled after each that follows."
    )
    spread: Annotated[float, Amount(0, 0.9, "part of the rest")] = default(
        0.25, "How much longer or shorter a rest may be, so that tasks do not come back together."
    )
    cap_s: Annotated[float, Duration("1ms", "7d")] = default(
        "60s", "The longest rest; also that after a usage limit of which no end is known."
    )

    def conflicts(self) -> Iterator[Conflict]:
        """See `Section.conflicts`."""
        yield from super().conflicts()
        yield from in_order(self, "first_s", "cap_s")

    def rules(self) -> RetryRules:
        """The settings as the core takes them."""
        return RetryRules(self.first_s, self.spread, self.cap_s)


class ScoreSettings(Section):
    """How urgent a ready task is: a sum of five parts, each from 0 to 1, by their weights."""

    priority: Annotated[float, _Weight] = default(
        0.45, "Weight of the priority: critical 1, high 0.75, medium 0.5, low 0.25."
    )
    age: Annotated[float, _Weight] = default(0.20, "Weight of the time since it is ready.")
    deadline: Annotated[float, _Weight] = default(0.15, "Weight of the closeness of its deadline.")
    blocking: Annotated[float, _Weight] = default(0.15, "Weight of the tasks that wait for it.")
    retries: Annotated[float, _Weight] = default(0.05, "Weight of the retries that it has left.")
    full_age_s: Annotated[float, Duration("1s", "365d")] = default(
        "1h", "Ready for so long, a task is as old as can be."
    )
    near_deadline_s: Annotated[float, Duration("1s", "30d")] = default(
        "15m", "So long before its deadline a task begins to be near it."
    )
    blockers: Annotated[int, Count(1, 100_000, "tasks")] = default(
        10, "So many waiting tasks are as many as can be."
    )
    boost: Annotated[float, Amount(1, 10, "times the score")] = default(
        1.25, "What the score of a task is multiplied by that is near its deadline, or past it."
    )
    floor: Annotated[float, Amount(0, 2, "score")] = default(
        0.6, "The least score of a task that has been ready for floor_after."
    )
    floor_after_s: Annotated[float, Duration("1s", "365d")] = default(
        "2h", "Ready for so long, a task has at least the floor."
    )

    def rules(self) -> ScoreRules:
        """The settings as the core takes them."""
        return ScoreRules(
            self.priority,
            self.age,
            self.deadline,
            self.blocking,
            self.retries,
            age_s=self.full_age_s,
            deadline_s=self.near_deadline_s,
            blockers=self.blockers,
            boost=self.boost,
            floor=self.floor,
            floor_s=self.floor_after_s,
        )


class TaskSettings(Section):
    """How long an agent has a task, and how often it is tried."""

    lease_s: Annotated[float, Duration("1s", "7d")] = default(
        "5m", "How long a claim lasts where nothing else is asked for; extend it in time."
    )
    longest_lease_s: Annotated[float, Duration("1s", "30d")] = default(
        "1h", "The longest that may be asked for at a time."
    )
    retries: Annotated[int, Count(0, 999, "retries")] = default(
        3, "How often a task is tried again where nothing else is said; usage limits do not count."
    )
    retry: RetrySettings = section(RetrySettings)
    score: ScoreSettings = section(ScoreSettings)

    def rules(self) -> TaskRules:
        """The settings as stores take them."""
        return TaskRules(self.score.rules(), self.retry.rules())

    def conflicts(self) -> Iterator[Conflict]:
        """See `Section.conflicts`."""
        yield from super().conflicts()
        yield from in_order(self, "lease_s", "longest_lease_s")
