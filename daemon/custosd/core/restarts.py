"""Restarts: the durable, fenced procedure, its budgets and its causes."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from custosd.core.agents import AgentId
from custosd.core.evidence import Evidence


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
