"""The normal form of a transcript: what any agent of any maker did, in the same words.

Adapters parse a maker's format into these events at the door; past it nobody sees
JSON. Laws:

1. A *step* is one action with its observation. It is emitted once: when its answer
   is there, or when it is known that none will come (`Result.UNANSWERED`).
2. Text is kept as a `Text`: bounded excerpt, length and digest of the whole, so that
   equality of long outputs is testable without keeping them.
3. `thread` is "" for the transcript's main agent, else the name of a sub-agent whose
   work is interleaved in the same file. Each thread is an agent of its own.
4. Times are wall time (`_utc`, aware) as the transcript states them, or None: a
   transcript's clock is a claim, not a measurement.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

EXCERPT_CHARS = 2_000
"""The longest excerpt kept of any text: its head and its tail, half each."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text of any length, bounded: `excerpt` is at most EXCERPT_CHARS + 1 characters.

    `digest` and `loose_digest` are 16 hex digits of BLAKE2b over the whole text, as it
    is and normalised (`effects.loosen`): numbers, addresses, times and blanks made equal.
    """

    excerpt: str
    length: int
    digest: str
    loose_digest: str


def digest_of(text: str) -> str:
    """16 hex digits (64 bits) of BLAKE2b; equal texts have equal digests."""
    raw = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(raw, digest_size=8).hexdigest()


class StepKind(StrEnum):
    """What sort of action a step is; decides which detector looks at it."""

    READ = "read"
    SEARCH = "search"
    EDIT = "edit"
    RUN = "run"
    TEST = "test"
    BROWSE = "browse"
    PLAN = "plan"
    DELEGATE = "delegate"
    ASK = "ask"
    SUBMIT = "submit"
    OTHER = "other"


class Result(StrEnum):
    """How a step ended. `UNKNOWN`: the format does not say and the text shows nothing."""

    OK = "ok"
    ERROR = "error"
    REJECTED = "rejected"
    INTERRUPTED = "interrupted"
    UNANSWERED = "unanswered"
    UNKNOWN = "unknown"


class ErrorClass(StrEnum):
    """What kind of failure an observation shows; see `effects.error_class`."""

    SYNTAX = "syntax"
    MISSING_MODULE = "missing_module"
    MISSING_FILE = "missing_file"
    MISSING_COMMAND = "missing_command"
    TEST_FAILURE = "test_failure"
    EXCEPTION = "exception"
    EDIT_REJECTED = "edit_rejected"
    TOOL_MISUSE = "tool_misuse"
    PERMISSION = "permission"
    TIMEOUT = "timeout"
    NETWORK = "network"
    RATE_LIMIT = "rate_limit"
    AUTH = "auth"
    OUT_OF_MEMORY = "out_of_memory"
    DISK_FULL = "disk_full"
    EXIT_CODE = "exit_code"
    OTHER = "other"


class Change(NamedTuple):
    """One place where lines were exchanged.

    From line `at` on, `removed` lines are gone and `added` lines stand in their place.
    """

    at: int
    removed: int
    added: int


@dataclass(frozen=True, slots=True)
class EditRange:
    """Lines of a file that an edit wrote, 1-based and inclusive; 0..0 where unknown.

    `created`: the edit wrote the file anew as a whole. `digest` is of the new content.
    `changes` are the places in it that really differ, from the top down, each in lines of
    the file as it is when those above have been made; () where that is not told.
    """

    path: str
    first_line: int = 0
    last_line: int = 0
    created: bool = False
    digest: str = ""
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and money that a model call cost; zero where the format says nothing."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.cost_usd + other.cost_usd,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One action with its observation.

    `key` names the step in its transcript (the call's id where there is one).
    `tool` is the maker's name of the tool, `action` the whole call (arguments or
    command line), `verb` the program or operation that it comes down to ("grep",
    "str_replace"). `files` are the paths that it touches, as written. `exit_code` is
    None where there is none. `changes_state` says that the world may differ after it.
    """

    key: str
    kind: StepKind
    tool: str
    verb: str
    action: Text
    observation: Text
    result: Result
    error: ErrorClass | None = None
    files: tuple[str, ...] = ()
    edits: tuple[EditRange, ...] = ()
    exit_code: int | None = None
    changes_state: bool = False
    thought: Text | None = None
    started_utc: datetime | None = None
    ended_utc: datetime | None = None


class RunEnd(StrEnum):
    """How a run ended, as far as its transcript tells."""

    FINISHED = "finished"
    SUBMITTED = "submitted"
    GAVE_UP = "gave_up"
    LIMIT = "limit"
    ABORTED = "aborted"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Opened:
    """A session, or a sub-agent's thread in it, begins (or is named again: no harm).

    `agent` is the name that the agent keeps over its runs; "" where the format knows
    only sessions, each of which then is an agent of its own.
    """

    thread: str
    session: str
    cwd: str = ""
    model: str = ""
    parent: str = ""
    branch: str = ""
    at_utc: datetime | None = None
    agent: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """A person (or the parent agent) spoke: the first one states the goal."""

    thread: str
    text: str
    at_utc: datetime | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """The agent spoke without acting. `final`: it ended its turn with this."""

    thread: str
    text: str
    final: bool = False
    at_utc: datetime | None = None


@dataclass(frozen=True, slots=True)
class Acted:
    """A step is complete."""

    thread: str
    step: Step


@dataclass(frozen=True, slots=True)
class Spent:
    """A model call was paid for; each call is reported once."""

    thread: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Waiting:
    """The agent waits for something outside: "human", "permission", "rate_limit"."""

    thread: str
    on: str
    at_utc: datetime | None = None


@dataclass(frozen=True, slots=True)
class Compacted:
    """The agent's own context was summarised and cut."""

    thread: str
    at_utc: datetime | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over. `claim`: what the agent or its harness said at the end."""

    thread: str
    end: RunEnd
    claim: str = ""
    at_utc: datetime | None = None


@dataclass(frozen=True, slots=True)
class Unread:
    """A record that the adapter does not know, or that is garbled: counted by `what`."""

    what: str


TranscriptEvent = Opened | Asked | Said | Acted | Spent | Waiting | Compacted | Ended | Unread
