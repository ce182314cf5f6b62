"""pi: session files of typed entries, with the clearest turn ends of all makers.

Laws:

1. Entries form a tree (`parentId`); the file's order is the order of doing. A branch is
   the same agent going on from an earlier place: no thread of its own.
2. A command that a person ran in the agent's shell (`bashExecution`) is something they
   said, not a step of the agent.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from custosd.adapters.transcripts.calls import SPEECH_CHARS, Call, Calls, Tool, answered, begun
from custosd.adapters.transcripts.fields import (
    Record,
    amount,
    count,
    decoded,
    exit_code_of,
    moment,
    prose,
    record,
    rows,
    text,
)
from custosd.adapters.transcripts.format import LineFormat, Sample
from custosd.adapters.transcripts.sampling import first_records, unread
from custosd.core.effects import bounded, text_of
from custosd.core.transcript import (
    Asked,
    Compacted,
    EditRange,
    Opened,
    Result,
    Said,
    Spent,
    StepKind,
    TranscriptEvent,
    Usage,
    Waiting,
)

NAME = "pi"

_S = StepKind
TOOLS = {
    "bash": Tool(_S.RUN, "shell", command="command"),
    "shell_exec": Tool(_S.RUN, "shell", command="command"),
    "exec": Tool(_S.RUN, "shell", command="command"),
    "read": Tool(_S.READ),
    "write": Tool(_S.EDIT, creates=True),
    "edit": Tool(_S.EDIT),
    "grep": Tool(_S.SEARCH),
    "find": Tool(_S.SEARCH),
    "ls": Tool(_S.SEARCH),
    "web_search": Tool(_S.BROWSE),
    "web_fetch": Tool(_S.BROWSE),
}

_EXIT_CODE = re.compile(r"(?:Command exited with code|[Ee]xit code:?) (\d{1,9})\s*\Z")
_TAIL_CHARS = 200
_LIMIT = re.compile(r"rate.?limit|usage.?limit|\b429\b|\b529\b|overloaded|quota", re.IGNORECASE)
_CHANGED_ROW = re.compile(r"^([+-])\s*(\d{1,9}) ", re.MULTILINE)
_ROWS_LOOKED_AT = 5_000


@dataclass(slots=True)
class PiState:
    """What is remembered of a session."""

    session: str = ""
    cwd: str = ""
    model: str = ""
    goal_known: bool = False
    calls: Calls = field(default_factory=Calls)


def matches(sample: Sample) -> bool:
    """Its first entry is the session with its folder."""
    for found in first_records(sample):
        if found.get("type") == "session":
            return "id" in found and "cwd" in found and "timestamp" in found
    return False


def read(line: str, state: PiState) -> Sequence[TranscriptEvent]:
    """Read one entry; raises `GarbledRecord` where it is no JSON."""
    found = record(decoded(line, NAME))
    kind = found.get("type")
    reader = _ENTRIES.get(kind) if isinstance(kind, str) else None
    if reader is None:
        return [unread(NAME, kind)]
    return reader(found, state, moment(found.get("timestamp")))


def settle(state: PiState) -> Sequence[TranscriptEvent]:
    """The calls that nobody answered."""
    return state.calls.drop(None, Result.UNANSWERED)


def _read_message(
    found: Record, state: PiState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    message = record(found.get("message"))
    role = message.get("role")
    reader = _ROLES.get(role) if isinstance(role, str) else None
    return reader(message, state, at_utc) if reader else [unread(NAME, role, "role")]


def _open(found: Record, state: PiState, at_utc: datetime | None) -> Sequence[TranscriptEvent]:
    session = text(found.get("id"))[:200]
    if state.session or not session:
        return ()
    state.session, state.cwd = session, text(found.get("cwd"))[:1_000]
    state.model = text(found.get("modelId"))[:100]
    return [Opened("", session, state.cwd, state.model, at_utc=at_utc)]


def _change_model(
    found: Record, state: PiState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    model = text(found.get("modelId"))[:100]
    if not model or model == state.model or not state.session:
        return ()
    state.model = model
    return [Opened("", state.session, state.cwd, model, at_utc=at_utc)]


def _read_user(
    message: Record, state: PiState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    said = prose(message.get("content")).strip()
    if not said:
        return ()
    state.goal_known = True
    lost = state.calls.drop("", Result.UNANSWERED)
    return [*lost, Asked("", bounded(said, SPEECH_CHARS), at_utc)]


def _read_own_command(
    message: Record, state: PiState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    """A person's own command: it moves the matter on, but it does not state the goal."""
    command = text(message.get("command"))
    if not (command and state.goal_known):
        return ()
    return [Asked("", bounded(f"! {command}", SPEECH_CHARS), at_utc)]


def _read_assistant(
    message: Record, state: PiState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    events: list[TranscriptEvent] = []
    usage = _usage(record(message.get("usage")))
    if usage != Usage():
        events.append(Spent("", usage))
    said, thinking = list[str](), ""
    calls: list[Record] = []
    content = message.get("content")
    for block in [{"type": "text", "text": content}] if isinstance(content, str) else rows(content):
        part = record(block)
        match part.get("type"):
            case "text":
                said.append(text(part.get("text")))
            case "thinking":
                thinking = text(part.get("thinking"))
            case "toolCall":
                calls.append(part)
            case other:
                events.append(unread(NAME, other, "block"))
    spoken = "\n".join(said).strip()
    for call in calls:
        events.extend(_call(call, spoken or thinking, state, at_utc))
        spoken = thinking = ""
    events.extend(_stop(message, spoken, state, at_utc, acts=bool(calls)))
    return events


def _stop(
    message: Record, spoken: str, state: PiState, at_utc: datetime | None, *, acts: bool
) -> list[TranscriptEvent]:
    """What the stop reason makes of the message."""
    stop, events = text(message.get("stopReason")), list[TranscriptEvent]()
    if spoken and not acts:
        final = stop == "stop"
        events.append(Said("", bounded(spoken, SPEECH_CHARS), final, at_utc))
    if stop == "aborted":
        events.extend(state.calls.drop("", Result.INTERRUPTED))
        events.append(Waiting("", "human", at_utc))
    elif stop == "error":
        events.extend(state.calls.drop("", Result.UNANSWERED))
        limited = _LIMIT.search(text(message.get("errorMessage"))[:1_000]) is not None
        events.append(Waiting("", "rate_limit" if limited else "human", at_utc))
    return events


def _usage(usage: Record) -> Usage:
    cached = count(usage.get("cacheRead"))
    return Usage(
        count(usage.get("input")) + count(usage.get("cacheWrite")) + cached,
        count(usage.get("output")),
        cached,
        amount(record(usage.get("cost")).get("total")),
    )


def _call(
    part: Record, thought: str, state: PiState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    return state.calls.add(
        begun(
            TOOLS, text(part.get("name")), part.get("arguments"), text(part.get("id")),
            made=state.calls.made, thought=text_of(thought) if thought else None, at_utc=at_utc,
        )
    )  # fmt: skip


def _read_answer(
    message: Record, state: PiState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    call = state.calls.take(text(message.get("toolCallId"))[:200])
    if call is None:
        return [unread(NAME, "answer-to-nothing")]
    shown = prose(message.get("content"))
    failed = message.get("isError") is True
    details = record(message.get("details"))
    code = exit_code_of(details.get("exitCode"))
    if call.by_shell and code is None:
        found = _EXIT_CODE.search(shown, max(0, len(shown) - _TAIL_CHARS))
        code = int(found[1]) if found else None if failed else 0
    interrupted = failed and shown.endswith(("Operation aborted", "Command aborted"))
    return [
        answered(
            call,
            shown,
            failed=failed,
            exit_code=code,
            result=Result.INTERRUPTED if interrupted else None,
            edits=_edits(call, text(details.get("diff"))),
            at_utc=at_utc,
        )
    ]


def _edits(call: Call, diff: str) -> tuple[EditRange, ...]:
    """From the first to the last numbered row (`+ 83 text`) that the diff shows as changed."""
    planned = call.step.edits
    if not diff or not planned or planned[0].created or call.by_shell:
        return ()
    found = [
        (match[1], int(match[2]))
        for _, match in zip(range(_ROWS_LOOKED_AT), _CHANGED_ROW.finditer(diff), strict=False)
    ]
    numbers = [line for mark, line in found if mark == "+"] or [line for _, line in found]
    if not numbers:
        return ()
    return (EditRange(planned[0].path, min(numbers), max(numbers), digest=planned[0].digest),)


def _compact(_: Record, __: PiState, at_utc: datetime | None) -> Sequence[TranscriptEvent]:
    return [Compacted("", at_utc)]


def _skip(_: Record, __: PiState, ___: datetime | None) -> Sequence[TranscriptEvent]:
    return ()


_Reader = Callable[[Record, PiState, datetime | None], Sequence[TranscriptEvent]]

_ENTRIES: dict[str, _Reader] = {
    "message": _read_message,
    "session": _open,
    "model_change": _change_model,
    "compaction": _compact,
    "compact": _compact,
    **dict.fromkeys(
        (
            *("thinking_level_change", "label", "custom", "custom_message", "session_info"),
            *("branch_summary", "model_select", "leaf"),
        ),
        _skip,
    ),
}
_ROLES: dict[str, _Reader] = {
    "user": _read_user,
    "assistant": _read_assistant,
    "toolResult": _read_answer,
    "bashExecution": _read_own_command,
    **dict.fromkeys(
        ("system", "custom", "hookMessage", "branchSummary", "compactionSummary"), _skip
    ),
}

FORMAT = LineFormat(NAME, matches, PiState, PiState, read, settle)
