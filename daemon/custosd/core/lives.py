"""What is remembered of an agent's life beyond this process, and what everybody may read.

A life belongs to an agent that can be known to be dead: one that is configured, or that
beats. It is apart from the agent's runs (`core.view.AgentView`): those are its transcripts.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from custosd.core.agents import AgentId, AgentState
from custosd.core.beats import WaitKind
from custosd.core.evidence import Condition, Evidence, ProcessIdentity, Value
from custosd.core.restarts import Restart, RestartStep, passed


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


def with_given_epochs(
    lives: Iterable[LifeRecord], restarts: Iterable[Restart]
) -> tuple[LifeRecord, ...]:
    """Lives with the incarnations that restarts gave: those are stored first, lives later.

    Whatever became of a restart once it had started somebody: who was started may be alive,
    and beats in its own name.
    """
    given: dict[AgentId, int] = {}
    for restart in restarts:
        if restart.ended and passed(restart, RestartStep.SPAWN):
            given[restart.agent] = max(given.get(restart.agent, 0), restart.next_epoch)
    return tuple(
        replace(life, epoch=given[life.agent], sequence=0)
        if given.get(life.agent, 0) > life.epoch
        else life
        for life in lives
    )
