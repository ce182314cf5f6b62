"""What is remembered of an agent's life beyond this process, and what everybody may read.

A life belongs to an agent that can be known to be dead: one that is configured, or that
beats. It is apart from the agent's runs (`core.view.AgentView`): those are its transcripts.
"""

from dataclasses import dataclass
from datetime import datetime

from custosd.core.agents import AgentId, AgentState
from custosd.core.beats import WaitKind
from custosd.core.evidence import Condition, Evidence, ProcessIdentity, Value


@dataclass(frozen=True, slots=True)
class LifeRecord:
    """One life as it is stored: what is needed to go on, in times that outlive the process.

    `epoch` numbers the incarnations; only a restart raises it. `sequence` is the last one
    let in. `since_utc` is when `state` began. `gaps_s` are the last intervals between beats.
    """

    agent: AgentId
    epoch: int
    sequence: int
    state: AgentState
    since_utc: datetime
    heard_utc: datetime | None = None
    interval_s: float | None = None
    wait_kind: WaitKind | None = None
    wait_until_utc: datetime | None = None
    process: ProcessIdentity | None = None
    gaps_s: tuple[float, ...] = ()
    progress_utc: datetime | None = None


@dataclass(frozen=True, slots=True)
class LifeView:
    """One life as everybody sees it; replaced whenever it changes in kind, not at each beat.

    `evidence` is what the verdict rests on, as it was at `changed_utc`.
    """

    agent: AgentId
    epoch: int
    state: AgentState
    condition: Condition
    value: Value
    reason: str
    changed_utc: datetime
    evidence: tuple[Evidence, ...] = ()
