"""Steering: a message to a running agent, with a life of its own."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from custosd.core.agents import AgentId
from custosd.core.verdicts import Standing, SteeringKind, SteeringReason


class InterventionState(StrEnum):
    """Where an intervention stands; the last three are ends.

    QUEUED: may be delivered as soon as channel, cooldown and turn allow. DELIVERED: the
    channel proved that it is where the agent will read it. ACKNOWLEDGED: the agent, or a
    turn that began, proved that it was read. ACTED: the trajectory moved on after it.
    """

    PROPOSED = "proposed"
    APPROVED = "approved"
    QUEUED = "queued"
    DELIVERED = "delivered"
    ACKNOWLEDGED = "acknowledged"
    ACTED = "acted"
    EXPIRED = "expired"
    FAILED = "failed"


CLOSED = frozenset({InterventionState.ACTED, InterventionState.EXPIRED, InterventionState.FAILED})


@dataclass(frozen=True, slots=True)
class Intervention:
    """One steering message. `key` is the idempotency key: of one key there is one message.

    `message` is clean text (`clean_message`): no control characters, bounded. `hold_out`:
    measured and never delivered. `failure` is a snake-case code where the state is FAILED.
    Alignment is 0..1 or None (not known).
    """

    id: str
    agent: AgentId
    key: str
    kind: SteeringKind
    message: str
    proposed_by: str
    proposed_utc: datetime
    expires_utc: datetime
    reason: SteeringReason | None = None
    verdict_id: str = ""
    state: InterventionState = InterventionState.PROPOSED
    hold_out: bool = False
    approved_by: str = ""
    channel: str = ""
    failure: str = ""
    attempts: int = 0
    approved_utc: datetime | None = None
    queued_utc: datetime | None = None
    delivered_utc: datetime | None = None
    acknowledged_utc: datetime | None = None
    acted_utc: datetime | None = None
    closed_utc: datetime | None = None
    alignment_before: float | None = None
    alignment_after: float | None = None
    standing_before: Standing | None = None
    standing_after: Standing | None = None
    measured_utc: datetime | None = None


@dataclass(frozen=True, slots=True)
class Letter:
    """What a channel carries: the text is marked, bounded and ready to be shown.

    `id` is the idempotency key on the way: a channel that has it already does nothing.
    """

    id: str
    agent: AgentId
    epoch: int
    kind: SteeringKind
    text: str
    expires_utc: datetime


class Delivery(StrEnum):
    """What a channel can prove about a letter."""

    DELIVERED = "delivered"
    ACKNOWLEDGED = "acknowledged"


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof of delivery. `proof` is a short code, as "file_renamed" or "turn_started"."""

    id: str
    delivery: Delivery
    proof: str
