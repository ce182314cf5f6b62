"""Acts: what a person, or a program with a token, may ask the running daemon to do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType


class Act(StrEnum):
    """What can be asked for. The first four only tell; the others change something."""

    WHY = "why"
    FORECAST = "forecast"
    TASKS = "tasks"
    BUDGET = "budget"
    STEER = "steer"
    APPROVE = "approve"
    REJECT = "reject"
    RESTART = "restart"
    QUARANTINE = "quarantine"
    RELEASE = "release"
    PAUSE = "pause"
    RESUME = "resume"
    ESTOP = "estop"
    THAW = "thaw"
    SILENCE = "silence"
    ACK = "ack"
    RELOAD = "reload"
    ENROL = "enrol"
    DISMISS = "dismiss"
    TASK = "task"
    EMERGENCY = "emergency"
    CYCLE = "cycle"
    SYNC = "sync"


TELLING = frozenset({Act.WHY, Act.FORECAST, Act.TASKS, Act.BUDGET})
"""Acts that change nothing."""


@dataclass(frozen=True, slots=True)
class ActRequest:
    """One request.

    `author` is who asks, as the door found out: "uid:1000 (ada)", "token:ci". `subject` is
    the id of an agent (or a part that only one id has), of an intervention, an incident or a
    concern, or "fleet"; "" where none is needed. An emergency has several, one a line.
    """

    act: Act
    author: str
    subject: str = ""
    text: str = ""
    arguments: Mapping[str, str | int | float | bool] = field(
        default_factory=lambda: MappingProxyType({})
    )
    dry_run: bool = False


class ActOutcome(StrEnum):
    """How a request ended. PARTLY_DONE: `detail` names what is missing, and why."""

    DONE = "done"
    PARTLY_DONE = "partly_done"
    WOULD_BE_DONE = "would_be_done"
    NOTHING_TO_DO = "nothing_to_do"
    REFUSED = "refused"
    UNKNOWN_SUBJECT = "unknown_subject"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ActAnswer:
    """What became of a request. `message` is for people, one line; `detail` for programs."""

    outcome: ActOutcome
    message: str
    detail: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
