"""What is remembered of an agent's life beyond this process, and what everybody may read.

A life belongs to an agent that can be known to be dead: one that is configured, or that
beats. It is apart from the agent's runs (`core.view.AgentView`): those are its transcripts.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from custosd.core.agents import AgentId, AgentState
from custosd.core.beats import WaitKind
from custosd.core.evidence import Condition, Evidence, ProcessIdentity, Value
from custosd.core.restarts import Restart, RestartStep, passed, stop_begun


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


def ended_by_us(lives: Iterable[LifeRecord], restarts: Iterable[Restart]) -> frozenset[AgentId]:
    """Agents that we told to end, and of which no new incarnation was started since.

    Whatever became of that restart (it failed, was held up, or is open): that such an agent is
    gone is not its own doing, nor that of a person who stopped it. One that was heard
    after the restart had ended lives its own life again.
    """
    heard_utc = {life.agent: life.heard_utc for life in lives}
    down: dict[AgentId, Restart] = {}
    for restart in sorted(restarts, key=lambda one: one.next_epoch):
        if passed(restart, RestartStep.SPAWN):
            down.pop(restart.agent, None)
        elif stop_begun(restart):
            down[restart.agent] = restart
    return frozenset(
        agent for agent, restart in down.items() if not _heard_after(restart, heard_utc.get(agent))
    )


def _heard_after(restart: Restart, heard_utc: datetime | None) -> bool:
    if restart.ended_utc is None or heard_utc is None:
        return False
    return heard_utc > restart.ended_utc


def still_known(
    lives: Iterable[LifeRecord], configured: Container[AgentId], since_utc: datetime
) -> tuple[LifeRecord, ...]:
    """Lives that are gone on with: of agents that are configured, or were heard since then."""
    return tuple(
        life
        for life in lives
        if life.agent in configured or (life.heard_utc is not None and life.heard_utc >= since_utc)
    )
