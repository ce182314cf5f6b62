"""Holds: what a person, or a rule, has put between the daemon and an act.

Quarantine, pause, emergency stop, silence, acknowledgement and incident are one thing with
one life: placed by an author for a reason, in force until it is lifted or runs out.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

FLEET = "fleet"
"""The subject of a hold on everything."""


class HoldKind(StrEnum):
    """What a hold keeps from happening.

    QUARANTINE: no restart, no steering, until released. PAUSE: supervised and never acted
    upon. ESTOP: no act on any agent. SILENCE: no notice about the subject. ACK: a person
    knows; no further notice of this concern. INCIDENT: a common cause; restarts of the
    agents it names wait (subject: the incident's id). NOTIFIED: a person was told of this
    concern, and is not told again until it has been resolved.
    """

    QUARANTINE = "quarantine"
    PAUSE = "pause"
    ESTOP = "estop"
    SILENCE = "silence"
    ACK = "ack"
    INCIDENT = "incident"
    NOTIFIED = "notified"


@dataclass(frozen=True, slots=True)
class Hold:
    """One hold. `subject` is an agent's id, `FLEET`, an incident's or a concern's id.

    `until_utc` None: until it is lifted. `agents` are those that an incident names.
    """

    kind: HoldKind
    subject: str
    by: str
    reason: str
    since_utc: datetime
    until_utc: datetime | None = None
    agents: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[HoldKind, str]:
        """What can be held once at a time."""
        return self.kind, self.subject

    def in_force(self, now_utc: datetime) -> bool:
        """Whether it still holds."""
        return self.until_utc is None or now_utc < self.until_utc


def holding(
    holds: Iterable[Hold], agent: str, kinds: Iterable[HoldKind], now_utc: datetime
) -> Hold | None:
    """The first hold of one of these kinds that is in force for this agent.

    It may be the agent's own, the fleet's, or an incident's that names the agent.
    """
    wanted = frozenset(kinds)
    for hold in holds:
        if (
            hold.kind in wanted
            and hold.in_force(now_utc)
            and (hold.subject in {agent, FLEET} or agent in hold.agents)
        ):
            return hold
    return None
