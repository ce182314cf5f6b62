"""What is known of one agent, in parts that are asked for at once and fail each for itself."""

from dataclasses import dataclass
from datetime import datetime

from custosd.core.lives import LifeRecord
from custosd.core.restarts import Restart
from custosd.core.transcript import Usage
from custosd.core.view import AgentView


@dataclass(frozen=True, slots=True)
class AgentPart:
    """One part: a value, or (`reason` is not "") why there is none.

    A value that is empty is known to be empty.
    """

    name: str
    value: object = None
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """The agent as it stands: its latest run, and its life where that is watched."""

    view: AgentView | None
    life: LifeRecord | None


@dataclass(frozen=True, slots=True)
class Executions:
    """Its incarnations: the one that is there, and the restarts since a time, the latest first."""

    run: str
    epoch: int | None
    state: str
    since_utc: datetime | None
    restarts_since_utc: datetime
    restarts: tuple[Restart, ...]


@dataclass(frozen=True, slots=True)
class AgentMetrics:
    """It in numbers; None for what is not watched.

    `judging_usd` is what judging it has cost since `judging_since_utc`.
    """

    beats: int | None
    heard_utc: datetime | None
    interval_s: float | None
    steps: int | None
    errors: int | None
    edits: int | None
    tests_run: int | None
    usage: Usage | None
    judging_usd: float
    judging_since_utc: datetime
