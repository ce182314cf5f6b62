"""Values of the core as text for databases and interfaces, and back.

Laws:

1. What is read is what was written. PostgreSQL holds neither NUL nor lone surrogates in
   text, and JSON no infinity: the first two are escaped reversibly (U+FDD0, a code point
   that is no character, and four hex digits), the last becomes a word.
2. Reading is lenient: what this version cannot understand is None, never an error, for a
   newer version may have written it, or an older one.
"""

import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar, get_args

import msgspec

from custosd.core.agents import AgentId, RunId
from custosd.core.errors import StoreRefused
from custosd.core.facts import (
    ActPerformed,
    AgentSeen,
    Entry,
    Fact,
    HoldLifted,
    HoldPlaced,
    VerdictReached,
    kind_of,
    ref_of,
)
from custosd.core.findings import Finding
from custosd.core.forge import Closing, ForgeWork
from custosd.core.holds import FLEET, Hold
from custosd.core.lives import LifeRecord
from custosd.core.money import Spend
from custosd.core.restarts import Restart, RestartState, StepState
from custosd.core.steering import CLOSED, Intervention, InterventionState
from custosd.core.tokens import Token
from custosd.core.transcript import digest_of
from custosd.core.verdicts import Verdict
from custosd.ports import Progress, RunProgress

T = TypeVar("T")

_MARK = "\ufdd0"
_UNSTORABLE = re.compile(f"[\x00\ud800-\udfff{_MARK}]")
_ESCAPED = re.compile(f"{_MARK}([0-9a-f]{{4}})")

# `kind_of` looks at the type of a fact alone, so an empty one will do.
FACTS: Mapping[str, type[Fact]] = {kind_of(kind.__new__(kind)): kind for kind in get_args(Fact)}
"""Every kind of fact by the name under which it is stored."""


def storable(text: str) -> str:
    """The text without what PostgreSQL refuses; `original` undoes it."""
    if text.isascii() and "\0" not in text:
        return text
    return _UNSTORABLE.sub(lambda found: f"{_MARK}{ord(found[0]):04x}", text)


def original(text: str) -> str:
    """The text that `storable` was given."""
    if _MARK not in text:
        return text
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


def day_of(at_utc: datetime) -> datetime:
    """When the day (UTC) of that time began."""
    return at_utc.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def encode_json(value: Any) -> str:
    """A dataclass of the core as JSON that jsonb takes, with no loss (law 1)."""
    return msgspec.json.encode(_storable(msgspec.to_builtins(value))).decode()


def decode_json(text: str, shape: type[T]) -> T | None:
    """What `encode_json` was given; None where this version does not understand it."""
    try:
        if _MARK in text:
            return msgspec.convert(_original(msgspec.json.decode(text)), shape, strict=False)
        return msgspec.json.decode(text, type=shape, strict=False)
    except (msgspec.DecodeError, ValueError):
        return None


def encode_fact(fact: Fact) -> tuple[str, str]:
    """A fact's kind and its body as JSON."""
    return kind_of(fact), encode_json(fact)


def decode_fact(kind: str, body: str) -> Fact | None:
    """The fact; None where this version does not know its kind or its shape."""
    shape = FACTS.get(kind)
    return None if shape is None else decode_json(body, shape)


def subject_of(fact: Fact) -> tuple[AgentId | None, RunId | None]:
    """Which agent, and which run of it, a fact is filed under."""
    ref = ref_of(fact)
    if ref is not None:
        return ref.agent, ref.run
    match fact:
        case HoldPlaced(hold=Hold(subject=subject)) | HoldLifted(subject=subject):
            # A concern's or an incident's hold is filed under its name, which does no harm.
            about = AgentId(subject) if subject and subject != FLEET else None
        case ActPerformed(subject=subject):
            about = AgentId(subject) if subject and subject != FLEET else None
        case _:
            about = getattr(fact, "agent", None)
    return about or None, None


def check_entry(entry: Entry) -> None:
    """Raise `StoreRefused`, naming the entry, where it says what cannot be."""
    if flaw := _flaw_of_entry(entry):
        raise StoreRefused(f"entry {entry.id!a} ({kind_of(entry.fact)}): {flaw}")


def check_progress(progress: Progress) -> None:
    """Raise `StoreRefused`, naming the transcript, where it says what cannot be."""
    at = progress.position
    flaw = "" if at.key and at.offset >= 0 else "its position has no key or a negative offset"
    for run in progress.runs:
        flaw = flaw or _flaw_of_run(run)
    if flaw:
        # A key may be a path, which is as good as agent text: named by its digest.
        raise StoreRefused(f"progress of the transcript with key {digest_of(at.key)}: {flaw}")


def check_time(at_utc: datetime) -> None:
    """Raise `StoreRefused` for a time that does not say in which zone it is."""
    if at_utc.utcoffset() is None:
        raise StoreRefused(_NAIVE)


def check_lives(lives: Iterable[LifeRecord]) -> None:
    """Raise `StoreRefused`, naming the agent, where a life says what cannot be."""
    for life in lives:
        flaw = _naive(
            life.since_utc, life.heard_utc, life.wait_until_utc, life.progress_utc
        ) or _flaw_of_life(life)
        if flaw:
            raise StoreRefused(f"the life of {life.agent!a}: {flaw}")


def check_spends(spends: Iterable[Spend]) -> None:
    """Raise `StoreRefused`, naming the call, where its money is what cannot be."""
    for spend in spends:
        flaw = _naive(spend.at_utc, spend.settled_utc)
        flaw = flaw or ("" if spend.id and spend.model else _NAMELESS)
        if (spend.settled_usd is None) != (spend.settled_utc is None):
            flaw = flaw or "it is settled without its time, or open with one"
        for usd in (spend.reserved_usd, spend.settled_usd):
            if usd is not None and not (math.isfinite(usd) and usd >= 0):
                flaw = flaw or "its money is negative, or no number"
        if flaw:
            raise StoreRefused(f"spend {spend.id!a}: {flaw}")


def check_restart(restart: Restart) -> None:
    """Raise `StoreRefused`, naming the restart, where it says what cannot be."""
    it = restart
    flaw = _naive(it.intended_utc, it.started_utc, it.ended_utc)
    for record in it.steps:
        flaw = flaw or _naive(record.started_utc, record.ended_utc)
        if (record.state is StepState.RUNNING) != (record.ended_utc is None):
            flaw = flaw or "a step has ended without its time, or runs with one"
        if record.attempt < 1:
            flaw = flaw or "attempts are counted from 1"
    if not (it.id and it.agent and it.key):
        flaw = flaw or _NAMELESS
    elif min(it.epoch, it.fence) < 0:
        flaw = flaw or "its epoch or fence is negative"
    elif it.ended != (it.ended_utc is not None):
        flaw = flaw or "it has ended without its time, or goes on with one"
    elif (it.state is RestartState.FAILED) != (it.failure != ""):
        flaw = flaw or "it failed for no reason, or did not and has one"
    elif it.state is RestartState.RUNNING and not (it.started_utc and it.owner and it.fence):
        flaw = flaw or "it runs and nobody does it: no owner, fence or start"
    if flaw:
        raise StoreRefused(f"restart {it.id!a}: {flaw}")


def check_intervention(intervention: Intervention) -> None:
    """Raise `StoreRefused`, naming the intervention, where it says what cannot be."""
    it = intervention
    flaw = _naive(
        *(it.proposed_utc, it.expires_utc, it.approved_utc, it.queued_utc, it.delivered_utc),
        *(it.acknowledged_utc, it.acted_utc, it.closed_utc, it.measured_utc),
    )
    shares = (it.alignment_before, it.alignment_after)
    if not (it.id and it.agent and it.key):
        flaw = flaw or _NAMELESS
    elif not it.message:
        flaw = flaw or "its message is empty"
    elif it.attempts < 0 or any(share is not None and not 0 <= share <= 1 for share in shares):
        flaw = flaw or "its attempts are negative, or an alignment is not within 0..1"
    else:
        flaw = flaw or _flaw_of_course(it)
    if flaw:
        raise StoreRefused(f"intervention {it.id!a}: {flaw}")


def check_hold(hold: Hold) -> None:
    """Raise `StoreRefused`, naming its kind, where a hold says what cannot be."""
    if flaw := _naive(hold.since_utc, hold.until_utc) or ("" if hold.subject else _NAMELESS):
        raise StoreRefused(f"hold {hold.kind}: {flaw}")


def check_findings(findings: Iterable[Finding]) -> None:
    """Raise `StoreRefused`, naming the finding, where one says what cannot be."""
    for it in findings:
        flaw = _naive(it.first_seen_utc, it.last_seen_utc, it.resolved_utc)
        if not it.id or not it.sighting.one < it.sighting.other:
            flaw = flaw or "it has no name, or not two agents, the lesser name first"
        elif (it.resolved_utc is None) != (it.resolution is None):
            flaw = flaw or "it is over for no reason, or lasts with one"
        elif min(it.sightings, it.missed) < 0:
            flaw = flaw or "a count is negative"
        if flaw:
            raise StoreRefused(f"finding {it.id!a}: {flaw}")


def check_works(works: Iterable[ForgeWork], repository: str) -> None:
    """Raise `StoreRefused`, naming the work, where one says what cannot be."""
    for it in works:
        flaw = _naive(it.updated_utc, it.landed_utc)
        if not (it.key and it.repository):
            flaw = flaw or _NAMELESS
        elif it.repository != repository:
            flaw = flaw or "it is of another repository"
        if flaw:
            raise StoreRefused(f"{it.kind} {it.key!a}: {flaw}")


def check_closing(closing: Closing) -> None:
    """Raise `StoreRefused`, naming the task, where a closing says what cannot be."""
    it = closing
    flaw = _naive(it.intended_utc, it.done_utc) or ("" if it.task and it.key else _NAMELESS)
    if (it.done_utc is None) != (it.told is None):
        flaw = flaw or "it is over and does not say how, or says how and is not"
    if flaw:
        raise StoreRefused(f"the end of task {it.task!a}: {flaw}")


def check_lease(name: str, owner: str, ttl_s: float) -> None:
    """Raise `StoreRefused` where there is nobody, or no time, to lease for."""
    if not (name and owner and 0 < ttl_s < _LONGEST_LEASE_S):
        raise StoreRefused(f"lease {name!a}: it needs a name, an owner and a time > 0, of days")


def check_token(token: Token) -> None:
    """Raise `StoreRefused`, naming the token, where it says what cannot be."""
    flaw = _naive(token.created_utc) or ("" if token.id else _NAMELESS)
    if len(token.secret_hash) != _HASH_BYTES:
        flaw = flaw or f"its hash has not {_HASH_BYTES} bytes"
    if flaw:
        raise StoreRefused(f"token {token.id!a}: {flaw}")


_NAIVE = "a time has no zone; make it aware, in UTC"
_NAMELESS = "an id is empty"
_NEGATIVE = "the number of steps is negative"
_LONGEST_LEASE_S = 1e7
_HASH_BYTES = 32
_LARGEST = 2**63 - 1


def _naive(*times_utc: datetime | None) -> str:
    return _NAIVE if any(at and at.utcoffset() is None for at in times_utc) else ""


def _flaw_of_life(life: LifeRecord) -> str:
    if not life.agent:
        return _NAMELESS
    if not (0 <= life.epoch <= _LARGEST and 0 <= life.sequence <= _LARGEST):
        return "its epoch or sequence is out of range"
    if life.process is not None and (life.process.pid < 1 or life.process.started_ticks < 0):
        return "its process is none"
    if not min(life.gaps_s, default=0.0) >= 0 or not (life.interval_s or 0.0) >= 0:
        return "an interval is negative"
    return ""


def _flaw_of_course(it: Intervention) -> str:
    """Where the state and the times of an intervention do not fit."""
    reached = {
        InterventionState.APPROVED: it.approved_utc is not None and it.approved_by != "",
        InterventionState.QUEUED: it.queued_utc is not None,
        InterventionState.DELIVERED: it.delivered_utc is not None and it.channel != "",
        InterventionState.ACKNOWLEDGED: it.acknowledged_utc is not None,
        InterventionState.ACTED: it.acted_utc is not None,
    }
    if not reached.get(it.state, True):
        return f"it is {it.state} without what belongs to that"
    if (it.state in CLOSED) != (it.closed_utc is not None):
        return "it is closed without its time, or open with one"
    if (it.state is InterventionState.FAILED) != (it.failure != ""):
        return "it failed for no reason, or did not and has one"
    if it.hold_out and it.delivered_utc is not None:
        return "it is held out, and delivered"
    measured = it.alignment_after is not None or it.standing_after is not None
    if measured and it.measured_utc is None:
        return "it has a measure without its time"
    return ""


def _flaw_of_entry(entry: Entry) -> str:
    agent, run = subject_of(entry.fact)
    if entry.at_utc.utcoffset() is None:
        return _NAIVE
    if not entry.id or agent == "" or run == "":
        return _NAMELESS
    match entry.fact:
        case VerdictReached(verdict=verdict):
            return _flaw_of_verdict(verdict)
        case AgentSeen(seen_utc=seen_utc) if seen_utc.utcoffset() is None:
            return _NAIVE
        case _:
            return ""


def _flaw_of_verdict(verdict: Verdict) -> str:
    shares = (verdict.judgement.alignment, verdict.judgement.confidence)
    if any(share is not None and not 0 <= share <= 1 for share in shares):
        return "alignment or confidence is not within 0..1"
    if verdict.at_utc.utcoffset() is None:
        return _NAIVE
    if not verdict.id:
        return _NAMELESS
    return _NEGATIVE if verdict.steps < 0 else ""


def _flaw_of_run(run: RunProgress) -> str:
    if any(at.utcoffset() is None for at in (run.seen_utc, run.grown_utc, run.state_utc)):
        return _NAIVE
    if not run.ref.agent or not run.ref.run:
        return _NAMELESS
    return _NEGATIVE if run.digest.steps < 0 else ""


def _storable(value: Any) -> Any:
    """Plain data made storable: text escaped, infinities and not-a-number as words."""
    # By type and not by pattern: all digests of a fleet pass here (3 times as fast).
    kind = type(value)
    if kind is str:
        return value if value.isascii() and "\0" not in value else storable(value)
    if kind is list or kind is tuple:
        return [_storable(part) for part in value]
    if kind is dict:
        return {storable(name): _storable(part) for name, part in value.items()}
    if kind is float and not math.isfinite(value):
        return str(value)
    return value


def _original(value: Any) -> Any:
    match value:
        case str():
            return original(value)
        case dict():
            return {original(name): _original(part) for name, part in value.items()}
        case list():
            return [_original(part) for part in value]
        case _:
            return value
