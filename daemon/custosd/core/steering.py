"""Steering: a message to a running agent, with a life of its own, and the words of it.

Laws:

1. `TRANSITIONS` is the only place that says which state may follow which; `moved` is the
   only way from one to the next. What is held out never gets as far as DELIVERED.
2. What an agent is shown has gone through `clean_message` and `marked`: nothing invisible is
   in it, every line of the message is quoted, so none can pass for the supervisor's frame.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

from custosd.core.agents import AgentId
from custosd.core.errors import CustosdError
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

POLICY = "policy"
"""`approved_by` of what no person approved."""

GUARDIAN = "guardian:"
"""How `proposed_by` begins where a verdict asked for it; persons are called otherwise."""


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


def by_person(intervention: Intervention) -> bool:
    """Whether a person wrote it, and not a verdict."""
    return not intervention.proposed_by.startswith(GUARDIAN)


_S = InterventionState

TRANSITIONS: Mapping[InterventionState, frozenset[InterventionState]] = MappingProxyType(
    {
        _S.PROPOSED: frozenset({_S.APPROVED, _S.EXPIRED, _S.FAILED}),
        _S.APPROVED: frozenset({_S.QUEUED, _S.EXPIRED, _S.FAILED}),
        _S.QUEUED: frozenset({_S.DELIVERED, _S.EXPIRED, _S.FAILED}),
        _S.DELIVERED: frozenset({_S.ACKNOWLEDGED, _S.EXPIRED, _S.FAILED}),
        _S.ACKNOWLEDGED: frozenset({_S.ACTED, _S.EXPIRED}),
        _S.ACTED: frozenset(),
        _S.EXPIRED: frozenset(),
        _S.FAILED: frozenset(),
    }
)

_FORWARD = (_S.PROPOSED, _S.APPROVED, _S.QUEUED, _S.DELIVERED, _S.ACKNOWLEDGED, _S.ACTED)

_NOT_HELD_OUT = frozenset({_S.DELIVERED, _S.ACKNOWLEDGED, _S.ACTED})


class ImpossibleIntervention(CustosdError):
    """A change of an intervention's state that `TRANSITIONS` does not know."""

    def __init__(self, intervention_id: str, before: InterventionState, after: str) -> None:
        super().__init__(f"intervention {intervention_id} cannot go from {before} to {after}")


def way(
    before: InterventionState | None, after: InterventionState
) -> tuple[InterventionState, ...]:
    """The states that are entered on the way, the last one `after`; () where there is none.

    One write may take several steps at once: a channel that proves at once that a letter was
    read takes it from QUEUED by DELIVERED to ACKNOWLEDGED. Before its proposal it is None.
    """
    if before is None:
        entered = _FORWARD[: _FORWARD.index(after) + 1] if after in _FORWARD else ()
        return entered if entered[:1] == (_S.PROPOSED,) else ()
    if after in TRANSITIONS[before]:
        return (after,)
    if before in _FORWARD and after in _FORWARD:
        return _FORWARD[_FORWARD.index(before) + 1 : _FORWARD.index(after) + 1]
    return ()


def moved(
    intervention: Intervention,
    after: InterventionState,
    now_utc: datetime,
    *,
    by: str = "",
    failure: str = "",
) -> Intervention:
    """The intervention in its next state, each state entered on the way with its time.

    `by` is who approved it. Raises `ImpossibleIntervention`, and for what is held out also
    where it would be delivered.
    """
    entered = way(intervention.state, after)
    if not entered or (intervention.hold_out and after in _NOT_HELD_OUT):
        raise ImpossibleIntervention(intervention.id, intervention.state, after)
    ends_at = now_utc if after in CLOSED else intervention.closed_utc
    new = replace(intervention, state=after, closed_utc=ends_at, failure=failure)
    for state in entered:
        match state:
            case _S.APPROVED:
                new = replace(new, approved_utc=now_utc, approved_by=by)
            case _S.QUEUED:
                new = replace(new, queued_utc=now_utc)
            case _S.DELIVERED:
                new = replace(new, delivered_utc=now_utc)
            case _S.ACKNOWLEDGED:
                new = replace(new, acknowledged_utc=now_utc)
            case _S.ACTED:
                new = replace(new, acted_utc=now_utc)
            case _:
                pass
    return new


def was_kept_back(intervention: Intervention) -> bool:
    """Whether the draw kept it back, at the very moment when it would have been delivered."""
    return intervention.hold_out and intervention.attempts > 0


def end_of(intervention: Intervention) -> str:
    """Why it ended, as a snake-case code; "" while it has not, and where it was acted upon."""
    it, state = intervention, intervention.state
    if it.closed_utc is None or state is not _S.EXPIRED:
        return it.failure
    if it.acknowledged_utc is not None:
        return "not_acted"
    if it.delivered_utc is not None:
        return "unacknowledged"
    if was_kept_back(it):
        return "hold_out"
    if it.closed_utc < it.expires_utc:
        return "superseded"
    return "undelivered" if it.approved_utc is not None else "not_approved"


LONGEST_MESSAGE = 2_000
"""Characters of a message, the mark of a cut included."""

_CUT = " […]"

_LINE_ENDS = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")

# What a terminal would take for a command: CSI with its end, strings (OSC, DCS, SOS, PM, APC)
# with their end, other two- and three-character sequences. An unfinished one loses only its
# introducer below, so it cannot swallow what follows it.
_ESCAPES = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]{0,64}[ -/]{0,16}[@-~]"
    "|(?:\x1b[\\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]{0,4096}(?:\x07|\x1b\\\\|\x9c)"
    "|\x1b[ -/]{1,4}[0-~]"
)

# Categories of what cannot be seen or is nobody's: controls, formats (directions, zero width,
# tags), surrogates, private use, unassigned.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})

# Invisible too, and filed under letters and marks: fillers, joiners, variation selectors.
_BLANK = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
    + "".join(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
)

_BLANK_LINES = re.compile(r"\n{3,}")


def clean_message(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """The text as it may be shown: only what can be seen, at most `longest` (>= 8) characters.

    Line ends become line feeds, other white space plain spaces (a tab would complete a word
    in a terminal), more than one empty line in a row one. What is too long is cut, and the
    cut is marked. Cleaning what is clean changes nothing.
    """
    # What is far beyond the bound is not even looked at.
    beyond = len(text) > 8 * longest
    text = _LINE_ENDS.sub("\n", _ESCAPES.sub("", text[: 8 * longest]))
    seen = "".join(map(_shown, text))
    lines = (line.rstrip(" ") for line in seen.split("\n"))
    clean = _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip(" \n")
    if len(clean) > longest or beyond:
        clean = clean[: max(0, longest - len(_CUT))].rstrip(" \n") + _CUT
    return clean.strip(" ")


def _shown(character: str) -> str:
    if character == "\n" or " " <= character <= "~":
        return character
    category = unicodedata.category(character)
    if category == "Zs" or character == "\t":
        return " "
    return "" if category in _INVISIBLE or character in _BLANK else character


_QUOTE = "| "

_OUR_WORDS = re.compile(
    r"[\[\uff3b\u3010\u3014\u301a\u27e6]"
    r"(?=\W*(?:(?:end|start|begin\w*)\W+(?:of\W+)?(?:the\W+)?)?custosd)",
    re.IGNORECASE,
)


def marked(
    kind: SteeringKind, reason: SteeringReason | None, text: str, intervention_id: str
) -> str:
    """The text as the agent sees it: framed, with its supervisor's name and its id.

    Each line of the message begins with "| ", the frame's with "[custosd": no text can
    leave its frame. The text is cleaned once more here, whoever made it.
    """
    why = f" · {reason.replace('_', ' ')}" if reason is not None else ""
    name = clean_message(intervention_id, 80).replace("\n", " ").replace("]", ")")
    lines = _OUR_WORDS.sub("(", clean_message(text)).split("\n")
    body = "\n".join((_QUOTE + line).rstrip(" ") for line in lines)
    return (
        f"[custosd supervisor · {kind}{why} · id {name}]\n{body}\n[custosd end of message {name}]"
    )
