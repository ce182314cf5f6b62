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
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar, get_args

import msgspec

from custosd.core.agents import AgentId, RunId
from custosd.core.errors import StoreRefused
from custosd.core.facts import (
    AgentSeen,
    Entry,
    Fact,
    SourceTroubled,
    VerdictReached,
    kind_of,
    ref_of,
)
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
    return (fact.agent if isinstance(fact, SourceTroubled) else None), None


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


_NAIVE = "a time has no zone; make it aware, in UTC"
_NAMELESS = "an id is empty"
_NEGATIVE = "the number of steps is negative"


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
