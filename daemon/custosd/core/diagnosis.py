"""Why an agent died or hangs: read from its exit, and from how its transcript ended.

Laws:

1. What the system saw (signal, exit, out of memory) goes before what the agent wrote.
2. An agent's words may put a restart off or bring in a person. They never cause one, and
   they are heard only where the transcript's structure says that the agent could not go on.
3. A time read from words is bounded; whoever waits for it looks again at the latest then.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from custosd.core.evidence import Condition, Exit
from custosd.core.restarts import Cause
from custosd.core.transcript import RunEnd

LONGEST_RESET_S = 24 * 3600.0
"""No usage limit is believed to last longer than this; then it is tried."""

_FROM_OUTSIDE = frozenset({1, 2, 9, 15})
"""Signals that somebody sends (HUP, INT, KILL, TERM); others a program earns by itself."""

_SHELL_SIGNAL = 128
"""A shell says 128 + n of a child that signal n ended."""

_DONE = frozenset({RunEnd.FINISHED, RunEnd.SUBMITTED})
_BROKEN_OFF = frozenset({RunEnd.ERROR, RunEnd.LIMIT, RunEnd.ABORTED})

_AUTH = re.compile(
    r"invalid (?:x-)?api.?key|authentication.?(?:error|failed)|unauthori[sz]ed|\b401\b"
    r"|please run /login|(?:oauth )?token (?:has )?(?:expired|been revoked)|not logged in"
    r"|credit balance is too low|billing",
    re.IGNORECASE,
)
_OUTAGE = re.compile(
    r"overloaded|\b5(?:00|02|03|04|29)\b|internal server error|service unavailable|bad gateway"
    r"|connection (?:error|refused|reset)|could not connect|network error|fetch failed",
    re.IGNORECASE,
)
_LIMIT = re.compile(
    r"(?:usage|rate|session|weekly|5-hour|message).?limit|hit your .{0,20}limit|quota"
    r"|too many requests|\b429\b|resource.?exhausted",
    re.IGNORECASE,
)
_SPEAKS_AS_PROGRAM = re.compile(
    r"\W*(?:api error|error|fatal|failed|http|invalid|please run|credit balance|unexpected status"
    r"|request failed|stream (?:error|disconnected)|oauth|unauthori|litellm|not logged in)",
    re.IGNORECASE,
)
"""How a program reports its failure; an agent that talks about one begins otherwise."""
_EPOCH = re.compile(r"limit[^|\n]{0,40}\|(\d{10})\b", re.IGNORECASE)
_STAMP = re.compile(r"\b(\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?)(?:\.\d+)?(Z|[+-]\d\d:?\d\d| UTC)")
_AFTER = re.compile(
    r"(?:again|retry|resets?|available)\s*(?:in|after)\s*:?\s*"
    r"((?:\d+(?:\.\d+)?\s*(?:days?|hours?|hrs?|minutes?|mins?|seconds?|secs?|[dhms])\b[\s,]*"
    r"(?:and\s+)?){1,4})",
    re.IGNORECASE,
)
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([dhms])", re.IGNORECASE)
_UNIT_S = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}


@dataclass(frozen=True, slots=True)
class LastWords:
    """How the transcript ended. `waiting_on` and `end` are its structure, `text` its words.

    `at_utc` is when it was written last; a span of time in the words counts from there.
    """

    text: str = ""
    waiting_on: str = ""
    end: RunEnd | None = None
    at_utc: datetime | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The cause, in more detail (a snake-case code), and when a limit is over, if told."""

    cause: Cause
    detail: str
    resets_utc: datetime | None = None


def finished(seen: Exit | None, words: LastWords) -> bool:
    """Whether the agent ended because it was done: by its exit and its transcript both."""
    return seen is not None and seen.code == 0 and words.end in _DONE


def classify(
    condition: Condition, seen: Exit | None, words: LastWords, now_utc: datetime
) -> Diagnosis:
    """Why the agent is in this condition, as far as exit and last words tell."""
    if seen is not None and seen.out_of_memory:
        return Diagnosis(Cause.OUT_OF_MEMORY, "out_of_memory")
    if seen is not None and (signal := _signal(seen)):
        cause = Cause.KILLED if signal in _FROM_OUTSIDE else Cause.CRASH
        return Diagnosis(cause, f"signal_{signal}")
    if (told := _from_words(words, now_utc)) is not None:
        return told
    if condition is Condition.HUNG:
        return Diagnosis(Cause.HANG, "no_progress")
    if seen is None or seen.code is None:
        return Diagnosis(Cause.UNKNOWN, "exit_not_seen")
    return Diagnosis(Cause.CRASH if seen.code else Cause.UNKNOWN, f"exit_{seen.code}")


def fingerprint(diagnosis: Diagnosis, account: str, host: str) -> str:
    """What agents have in common that fail for one reason.

    What a machine does to its processes is alike on one host; the rest on one account.
    """
    of_host = diagnosis.cause in {Cause.OUT_OF_MEMORY, Cause.KILLED, Cause.UNKNOWN}
    where = host if of_host else account
    return f"{diagnosis.cause}/{diagnosis.detail}" + (f"@{where}" if where else "")


def resets_at(text: str, said_utc: datetime) -> datetime | None:
    """When a limit is over, by words that name a moment or a span; None: not told.

    Times of day without their zone are not taken: nobody knows whose they are.
    """
    found: datetime | None = None
    if match := _EPOCH.search(text):
        found = datetime.fromtimestamp(int(match[1]), UTC)
    elif match := _STAMP.search(text):
        zone = match[2].strip().replace("UTC", "Z")
        try:
            found = datetime.fromisoformat(match[1].replace(" ", "T") + zone)
        except ValueError:
            found = None
    elif match := _AFTER.search(text):
        span_s = sum(float(part[1]) * _UNIT_S[part[2].lower()] for part in _PART.finditer(match[1]))
        found = said_utc + timedelta(seconds=min(span_s, LONGEST_RESET_S))
    return found


def _signal(seen: Exit) -> int:
    if seen.signal:
        return seen.signal
    code = seen.code or 0
    shell = code - _SHELL_SIGNAL
    return shell if shell in _FROM_OUTSIDE else 0


def _from_words(words: LastWords, now_utc: datetime) -> Diagnosis | None:
    limited = words.waiting_on == "rate_limit"
    stopped = words.waiting_on == "human" or words.end in _BROKEN_OFF
    if not limited and not (stopped and _SPEAKS_AS_PROGRAM.match(words.text)):
        return None
    if _AUTH.search(words.text):
        return Diagnosis(Cause.AUTH, "refused")
    if _LIMIT.search(words.text) or (limited and not _OUTAGE.search(words.text)):
        latest = now_utc + timedelta(seconds=LONGEST_RESET_S)
        told = resets_at(words.text, words.at_utc or now_utc)
        return Diagnosis(Cause.USAGE_LIMIT, "limited", None if told is None else min(told, latest))
    if _OUTAGE.search(words.text):
        return Diagnosis(Cause.PROVIDER_OUTAGE, "unreachable")
    return None
