"""The guardian's judgement of one trajectory, and who judged it on what.

Laws:

1. A judgement that could not be had is `Standing.UNKNOWN` with a reason, never "fine".
2. Alignment is a number only where a judge compared the work with the goal; the rules
   judge cannot, and leaves it None. Confidence is kept apart from it.
3. Evidence is a reference to steps, not a retelling.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from custosd.core.agents import AgentRef
from custosd.core.signals import Signal
from custosd.core.transcript import Usage


class Standing(StrEnum):
    """How an agent stands with its task, in one word."""

    PROGRESSING = "progressing"
    STUCK = "stuck"
    DRIFTING = "drifting"
    WAITING = "waiting"
    IDLE = "idle"
    SILENT = "silent"
    DONE = "done"
    DONE_UNTESTED = "done_untested"
    DUPLICATING = "duplicating"
    STOPPED = "stopped"
    UNKNOWN = "unknown"


class Phase(StrEnum):
    """What the agent is busy with, read from its latest steps."""

    STARTING = "starting"
    EXPLORING = "exploring"
    PLANNING = "planning"
    IMPLEMENTING = "implementing"
    TESTING = "testing"
    DEBUGGING = "debugging"
    FINISHING = "finishing"
    WAITING = "waiting"
    UNKNOWN = "unknown"


class SteeringKind(StrEnum):
    """How strongly the agent should be told."""

    GUIDANCE = "guidance"
    CORRECTION = "correction"
    EMERGENCY = "emergency"


class SteeringReason(StrEnum):
    """Why the agent should be told something."""

    STUCK = "stuck"
    DRIFTING = "drifting"
    VIOLATING_CONSTRAINTS = "violating_constraints"
    OVER_ENGINEERING = "over_engineering"
    CONFUSED = "confused"
    IDLE = "idle"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A judge's answer. `alignment` and `confidence` are 0..1; None is "not known".

    `unknown_reason` is a short code (snake case) when `standing` is UNKNOWN. `summary`,
    `message`, `focus` and `goal` may hold agent text: stored and shown, never logged.
    """

    standing: Standing
    phase: Phase = Phase.UNKNOWN
    alignment: float | None = None
    confidence: float | None = None
    needs_steering: bool = False
    steering_kind: SteeringKind | None = None
    steering_reason: SteeringReason | None = None
    message: str = ""
    summary: str = ""
    focus: str = ""
    goal: str = ""
    evidence: tuple[int, ...] = ()
    unknown_reason: str = ""


@dataclass(frozen=True, slots=True)
class JudgedBy:
    """Who answered, on which input, at what price. `latency_s` counts the wait too."""

    judge: str
    model: str = ""
    prompt_version: str = ""
    input_hash: str = ""
    usage: Usage = Usage()
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judgement with its circumstances; `id` is unique and stable under retries."""

    id: str
    ref: AgentRef
    at_utc: datetime
    steps: int
    judgement: Judgement
    signals: tuple[Signal, ...]
    by: JudgedBy
    absent: tuple[str, ...] = ()
