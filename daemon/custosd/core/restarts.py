"""Restarts: the durable, fenced procedure, its budgets and its causes."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from custosd.core.agents import AgentId
from custosd.core.evidence import Condition, Evidence, Health, Observation, Source, Value
from custosd.core.ledger import GONE, INACTIVE, STOPPED


class Cause(StrEnum):
    """Why an agent needs a new incarnation."""

    CRASH = "crash"
    KILLED = "killed"
    OUT_OF_MEMORY = "out_of_memory"
    USAGE_LIMIT = "usage_limit"
    AUTH = "auth"
    PROVIDER_OUTAGE = "provider_outage"
    POISON_TASK = "poison_task"
    HANG = "hang"
    REQUESTED = "requested"
    UNKNOWN = "unknown"


class RestartStep(StrEnum):
    """The steps in their order; each is recorded before and after it is done."""

    LEASE = "lease"
    EVIDENCE = "evidence"
    GRACEFUL_STOP = "graceful_stop"
    FORCED_STOP = "forced_stop"
    VERIFY_DEAD = "verify_dead"
    SPAWN = "spawn"
    FIRST_BEAT = "first_beat"
    HAND_OVER = "hand_over"


class StepState(StrEnum):
    """Where one attempt at a step stands."""

    RUNNING = "running"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"


class RestartState(StrEnum):
    """Where a restart stands; the last three are ends."""

    INTENDED = "intended"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ABANDONED = "abandoned"


ENDED = frozenset({RestartState.SUCCEEDED, RestartState.FAILED, RestartState.ABANDONED})


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One attempt at one step. `result` is a short snake-case code, "" while it runs."""

    step: RestartStep
    attempt: int
    state: StepState
    started_utc: datetime
    ended_utc: datetime | None = None
    result: str = ""


@dataclass(frozen=True, slots=True)
class Restart:
    """One restart of one agent. `epoch` is the incarnation that ends.

    `next_epoch` is given with the intent, and never to anybody else: whoever beats with it
    is the new incarnation. `key` is the idempotency key: of one key there is one restart.
    `owner` and `fence` are of the daemon that carries it out. `task` is what it worked on.
    """

    id: str
    agent: AgentId
    key: str
    cause: Cause
    reason: str
    requested_by: str
    epoch: int
    next_epoch: int
    intended_utc: datetime
    fingerprint: str = ""
    task: str = ""
    evidence: tuple[Evidence, ...] = ()
    state: RestartState = RestartState.INTENDED
    owner: str = ""
    fence: int = 0
    failure: str = ""
    started_utc: datetime | None = None
    ended_utc: datetime | None = None
    steps: tuple[StepRecord, ...] = field(default=())

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.state in ENDED

    def with_step(self, record: StepRecord) -> "Restart":
        """The restart with this attempt added, or replaced where it is known already."""
        others = tuple(
            known
            for known in self.steps
            if (known.step, known.attempt) != (record.step, record.attempt)
        )
        return replace(self, steps=(*others, record))


def attempts(restart: Restart, step: RestartStep) -> tuple[StepRecord, ...]:
    """All attempts at one step, in their order."""
    return tuple(
        sorted((r for r in restart.steps if r.step is step), key=lambda record: record.attempt)
    )


def passed(restart: Restart, step: RestartStep) -> bool:
    """Whether the last attempt at a step ended well, or was found not to be needed."""
    return any(
        record.state in (StepState.DONE, StepState.SKIPPED)
        for record in attempts(restart, step)[-1:]
    )


def stop_begun(restart: Restart) -> bool:
    """Whether the old incarnation may have been told to end, by us."""
    steps = (RestartStep.GRACEFUL_STOP, RestartStep.FORCED_STOP)
    return any(
        record.state is not StepState.SKIPPED
        for step in steps
        for record in attempts(restart, step)
    )


def begun(restart: Restart, step: RestartStep, now_utc: datetime) -> Restart:
    """The restart with a new attempt at this step under way.

    Attempts that a daemon's end has cut short are ended with that.
    """
    cut = [r for r in restart.steps if r.state is StepState.RUNNING]
    for record in cut:
        restart = restart.with_step(
            replace(record, state=StepState.FAILED, ended_utc=now_utc, result="cut_short")
        )
    number = len(attempts(restart, step)) + 1
    return restart.with_step(StepRecord(step, number, StepState.RUNNING, now_utc))


def stepped(restart: Restart, state: StepState, result: str, now_utc: datetime) -> Restart:
    """The restart with the attempt that is under way ended so; unchanged where none is."""
    for record in restart.steps:
        if record.state is StepState.RUNNING:
            return restart.with_step(replace(record, state=state, ended_utc=now_utc, result=result))
    return restart


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen of an agent at one time, right before something is done to it.

    `sight` is what its control says of its process: there (OK), gone (BAD), or not known.
    """

    sight: Value
    health: Health
    observations: tuple[Observation, ...] = ()

    def value_of(self, source: Source) -> Value:
        """What the probes said of one source; unknown where they did not."""
        values = {seen.source: seen.value for seen in self.observations}
        return values.get(source, Value.UNKNOWN)

    @property
    def there(self) -> bool:
        """Whether anything shows a process of it that lives; one that stands stopped does."""
        seen = (self.sight, self.value_of(Source.PROCESS), self.value_of(Source.UNIT))
        return Value.OK in seen or self.stands

    @property
    def stands(self) -> bool:
        """Whether its process is seen to stand stopped."""
        return self._shows(frozenset({STOPPED}))

    @property
    def gone(self) -> bool:
        """Whether its control says that it is gone, and a probe, and nothing shows it there."""
        told = self.sight is Value.BAD and self._shows(GONE | {INACTIVE})
        return told and not self.there

    def _shows(self, details: frozenset[str]) -> bool:
        return any(
            seen.value is Value.BAD and seen.detail in details
            for seen in self.observations
            if seen.source in (Source.PROCESS, Source.UNIT)
        )


def progressed(first: Sample, second: Sample) -> bool:
    """Whether work was done between two samples. A process that spins uses its processor, too."""
    before = _measures(first)
    return any(before.get(source, now) != now for source, now in _measures(second).items())


def _measures(sample: Sample) -> dict[Source, float]:
    return {
        seen.source: seen.progress
        for seen in sample.observations
        if seen.progress is not None and not seen.is_processor_time
    }


def woke_up(*samples: Sample) -> bool:
    """Whether what is held to stand stopped was seen to run, as after SIGCONT."""
    return any(
        _held_to_stand(sample) and sample.value_of(Source.PROCESS) is Value.OK for sample in samples
    )


def _held_to_stand(sample: Sample) -> bool:
    return sample.health.reason.endswith("stopped")


def objection(first: Sample, second: Sample, *, requested: bool, told_to_end: bool) -> str:
    """Why the agent may not be stopped after all, by two samples; "" where nothing is against it.

    What its control says is gone, and is seen to be there, is never replaced: a second one
    would be started beside it. Else a person's order (`requested`) needs no evidence, and what
    was told to end before and is gone needs no other. Otherwise both samples must say that it
    is bad, and nothing may say that it is not; what is not known is against it.
    """
    both = (first, second)
    if second.sight is Value.BAD and second.there:
        return "still_there"
    if requested or (told_to_end and all(sample.sight is Value.BAD for sample in both)):
        return ""
    found = ""
    if any(sample.health.value is Value.OK for sample in both):
        found = "healthy_again"
    elif progressed(first, second):
        found = "progress_seen"
    elif not all(sample.health.authorises_restart for sample in both):
        found = "not_known"
    elif any(sample.sight is Value.UNKNOWN for sample in both):
        found = "not_seen"
    elif second.health.condition is Condition.DEAD:
        found = "still_there" if any(sample.there for sample in both) else ""
    else:
        found = _hung_no_more(first, second)
    return found


def _hung_no_more(first: Sample, second: Sample) -> str:
    if second.sight is Value.BAD:
        return "" if second.gone else "not_seen"
    if first.sight is Value.BAD:
        return "came_back"
    if woke_up(first, second):
        return "stopped_no_more"
    both = (first, second)
    held = any(map(_held_to_stand, both))
    return "not_known" if held and not all(sample.stands for sample in both) else ""
