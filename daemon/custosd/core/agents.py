"""The words that everything shares: agents, their runs, and the states of an agent.

Law: `TRANSITIONS` is the only place that says which state may follow which. A
change that is not in the table raises `ImpossibleTransition` and changes nothing.
"""

import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from custosd.core.errors import CustosdError

AgentId = NewType("AgentId", str)
"""`<source>:<session>` for the author of a transcript, with `/<thread>` for a sub-agent."""

RunId = NewType("RunId", str)
"""One incarnation of an agent: its transcript's session; unique in the fleet."""

SHARDS = 256
"""Fixed for ever: stored rows carry the number (the key is `(shard, agent_id)`)."""


def shard_of(agent: AgentId) -> int:
    """The shard of an agent, 0..255, the same on every host and in every version."""
    return zlib.crc32(agent.encode("utf-8", "surrogatepass")) % SHARDS


class AgentState(StrEnum):
    """Where an agent stands in its life."""

    STARTING = "starting"
    IDLE = "idle"
    RUNNING = "running"
    WAITING = "waiting"
    DEGRADED = "degraded"
    UNRESPONSIVE = "unresponsive"
    RESTARTING = "restarting"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    TERMINATED = "terminated"


_S = AgentState
_LIVE = frozenset({_S.IDLE, _S.RUNNING, _S.WAITING})
_TROUBLE = frozenset({_S.DEGRADED, _S.UNRESPONSIVE})
_ENDS = frozenset({_S.FAILED, _S.QUARANTINED, _S.TERMINATED})

TRANSITIONS: dict[AgentState, frozenset[AgentState]] = {
    _S.STARTING: _LIVE | _TROUBLE | _ENDS | {_S.RESTARTING},
    _S.IDLE: _LIVE - {_S.IDLE} | _TROUBLE | _ENDS | {_S.RESTARTING},
    _S.RUNNING: _LIVE - {_S.RUNNING} | _TROUBLE | _ENDS | {_S.RESTARTING},
    _S.WAITING: _LIVE - {_S.WAITING} | _TROUBLE | _ENDS | {_S.RESTARTING},
    _S.DEGRADED: _LIVE | {_S.UNRESPONSIVE, _S.RESTARTING} | _ENDS,
    _S.UNRESPONSIVE: _LIVE | {_S.DEGRADED, _S.RESTARTING} | _ENDS,
    _S.RESTARTING: frozenset({_S.STARTING}) | _ENDS,
    # A failed or quarantined agent comes back only by way of a new run, or when a
    # person releases it; an ended run's transcript may still grow (resumed).
    _S.FAILED: frozenset({_S.STARTING, _S.QUARANTINED, _S.TERMINATED, _S.RESTARTING}),
    _S.QUARANTINED: frozenset({_S.STARTING, _S.IDLE, _S.TERMINATED}),
    _S.TERMINATED: frozenset({_S.STARTING}),
}


class ImpossibleTransition(CustosdError):
    """A change of state that `TRANSITIONS` does not know."""

    def __init__(self, before: AgentState, after: AgentState) -> None:
        super().__init__(f"an agent cannot go from {before} to {after}")
        self.before = before
        self.after = after


def transition(before: AgentState, after: AgentState) -> AgentState:
    """Return `after` where the table allows it; raise `ImpossibleTransition` else."""
    if after not in TRANSITIONS[before]:
        raise ImpossibleTransition(before, after)
    return after


def path_to(before: AgentState, after: AgentState) -> tuple[AgentState, ...]:
    """The states to pass through: none where there is no change, else one or two.

    A state that cannot be reached directly is reached by way of STARTING (an ended run
    that is resumed); () where there is no way, as out of quarantine without release.
    """
    if before is after:
        return ()
    if after in TRANSITIONS[before]:
        return (after,)
    if _S.STARTING in TRANSITIONS[before] and after in TRANSITIONS[_S.STARTING]:
        return (_S.STARTING, after)
    return ()


@dataclass(frozen=True, slots=True)
class AgentRef:
    """Which agent, and which incarnation of it, something is about."""

    agent: AgentId
    run: RunId
