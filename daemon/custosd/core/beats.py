"""Heartbeats: what an agent says of itself, and what may be refused of it.

Laws:

1. The time of a beat is the time of its receipt, by our monotonic clock; what the agent's
   clock says is never asked.
2. (epoch, sequence) only grows: a beat of an older incarnation, or one that was received
   before, is refused, whoever sends it.
3. A beat is a claim. It proves that something speaks for the agent, not that work is done.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from custosd.core.agents import AgentId

LARGEST_SEQUENCE = 2**63 - 1
LONGEST_INTERVAL_S = 3600.0
LONGEST_WAIT_S = 24 * 3600.0
MOST_METRICS = 32


class BeatStatus(StrEnum):
    """What the agent says it is doing."""

    STARTING = "starting"
    IDLE = "idle"
    RUNNING = "running"
    WAITING = "waiting"
    MONITORING = "monitoring"
    STOPPING = "stopping"
    FINISHED = "finished"


class WaitKind(StrEnum):
    """What an agent may wait for without being late."""

    HUMAN = "human"
    RATE_LIMIT = "rate_limit"
    COMMAND = "command"


@dataclass(frozen=True, slots=True)
class DeclaredWait:
    """A wait that the agent announced: it expects to be back `expected_s` after the receipt."""

    kind: WaitKind
    expected_s: float


@dataclass(frozen=True, slots=True)
class Beat:
    """One heartbeat. `sequence` grows with each beat, over restarts of the sender too.

    `interval_s` is when the next beat will come (None: as usual for the status). `pid` is
    the process that works (0: not told). `progress` is anything that changes when work was
    done ("": not told); `task` names the task at hand. Metrics are plain numbers.
    """

    agent: AgentId
    epoch: int
    sequence: int
    status: BeatStatus = BeatStatus.RUNNING
    interval_s: float | None = None
    wait: DeclaredWait | None = None
    pid: int = 0
    progress: str = ""
    task: str = ""
    metrics: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class ReceivedBeat:
    """A beat that was let in. `at` is trio's clock at the receipt; `door` "socket" or "http"."""

    beat: Beat
    at: float
    door: str


class Refusal(StrEnum):
    """Why a beat, or what should have been one, was not let in."""

    MALFORMED = "malformed"
    OVERSIZE = "oversize"
    UNKNOWN_AGENT = "unknown_agent"
    FORGED = "forged"
    OLD_EPOCH = "old_epoch"
    FUTURE_EPOCH = "future_epoch"
    REPLAYED = "replayed"
    FULL = "full"
