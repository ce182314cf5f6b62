"""Gemini CLI: `chats/session-*.json`, rewritten as a whole, and since 0.40 `.jsonl`.

Laws:

1. Both forms are read by the same fold over messages. A message that is written again
   (with its tools' answers, its tokens) tells only what was not told of it before.
2. What a message tells keeps its order while the message grows: text, tokens, tools.
   So a rewritten document begins with the events that it had.
3. No record says that a turn has ended: `Said.final` stays False.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from custosd.adapters.transcripts.calls import SPEECH_CHARS, Calls, Tool, answered, begun
from custosd.adapters.transcripts.fields import (
    Record,
    count,
    decoded,
    moment,
    prose,
    record,
    rows,
    text,
)
from custosd.adapters.transcripts.format import (
    DocumentFormat,
    GarbledRecord,
    LineFormat,
    Sample,
)
from custosd.adapters.transcripts.patches import diff_edits
from custosd.adapters.transcripts.sampling import first_records, unread
from custosd.core.effects import bounded, text_of
from custosd.core.transcript import (
    Asked,
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

NAME = "gemini-cli"
LINES_NAME = "gemini-cli-jsonl"

MAX_MESSAGES = 64
"""Messages that may still be written again."""

MAX_TOLD_CALLS = 200

_S = StepKind
TOOLS = {
    "run_shell_command": Tool(_S.RUN, "shell", command="command"),
    "read_file": Tool(_S.READ, "read"),
    "read_many_files": Tool(_S.READ, "read"),
    "list_directory": Tool(_S.SEARCH, "ls"),
    "glob": Tool(_S.SEARCH),
    "search_file_content": Tool(_S.SEARCH, "grep"),
    "grep_search": Tool(_S.SEARCH, "grep"),
    "write_file": Tool(_S.EDIT, "write", creates=True),
    "replace": Tool(_S.EDIT, "edit"),
    "edit": Tool(_S.EDIT),
    "web_fetch": Tool(_S.BROWSE),
    "google_web_search": Tool(_S.BROWSE),
    "write_todos": Tool(_S.PLAN),
    "enter_plan_mode": Tool(_S.PLAN),
    "exit_plan_mode": Tool(_S.ASK),
    "ask_user": Tool(_S.ASK),
    "delegate_to_agent": Tool(_S.DELEGATE),
    "codebase_investigator": Tool(_S.DELEGATE),
    "invoke_subagent": Tool(_S.DELEGATE),
    "save_memory": Tool(_S.OTHER, acts=True),
}

_ANSWERED = {"success": False, "error": True, "cancelled": True}
_MARKS = (b'"sessionId"', b'"projectHash"', b'"messages"')
_OLD_MARKS = (b'"history"', b'"parts"')
_OLD_ROLE = re.compile(rb'"role"\s*:\s*"(?:gemini|model)"')
_EXIT_CODE = re.compile(r"(?:\A|\n|\\n)Exit Code: (\d{1,9})\b")
_TAIL_CHARS = 400
_REFUSED = re.compile(r"did not allow|declined|rejected|denied", re.IGNORECASE)
_LIMIT = re.compile(r"quota|rate.?limit|\b429\b|resource.?exhausted|overloaded", re.IGNORECASE)
_AUTHORS = {"model": "gemini", "assistant": "gemini"}


@dataclass(slots=True)
class GeminiMessage:
    """What was told of a message that may be written again."""

    said: bool = False
    usage: Usage = field(default_factory=Usage)
    calls: list[str] = field(default_factory=list)


@dataclass(slots=True)
class GeminiState:
    """What is remembered of a session; calls here wait for a status that is final."""

    session: str = ""
    model: str = ""
    messages: dict[str, GeminiMessage] = field(default_factory=dict)
    calls: Calls = field(default_factory=Calls)


# --- The document -----------------------------------------------------------------------


def matches_document(sample: Sample) -> bool:
    """A session with its messages in one object; the oldest form has a history of parts."""
    head = sample.head.lstrip()
    if not head.startswith(b"{"):
        return False
    if all(mark in head for mark in _MARKS):
        return not matches_lines(sample)
    return all(mark in head for mark in _OLD_MARKS) and _OLD_ROLE.search(head) is not None


def read_document(data: bytes) -> Sequence[TranscriptEvent]:
    """All events of a session; `GarbledRecord` for a file that is only half there."""
    found = decoded(data, NAME)
    if not isinstance(found, dict):
        raise GarbledRecord(f"{NAME}: an object was expected, with a session's messages")
    state = GeminiState()
    events = _open(found, state)
    turns = rows(found.get("messages")) or rows(found.get("history"))
    for number, message in enumerate(turns):
        events.extend(_read_message(record(message), state, f"#{number}"))
    return [*events, *settle(state)]


def _open(found: Record, state: GeminiState) -> list[TranscriptEvent]:
    session = text(found.get("sessionId"))[:200]
    state.model = text(record(found.get("meta")).get("model"))[:100]
    at_utc = moment(found.get("startTime") or found.get("start_time"))
    if not session or state.session:
        return []
    state.session = session
    return [Opened("", session, model=state.model, at_utc=at_utc)]


# --- The lines --------------------------------------------------------------------------


def matches_lines(sample: Sample) -> bool:
    """A first line that names session and project, and holds no messages."""
    first = next(first_records(sample), {})
    return "sessionId" in first and "projectHash" in first and "messages" not in first


def read_line(line: str, state: GeminiState) -> Sequence[TranscriptEvent]:
    """Read one record; raises `GarbledRecord` where it is no JSON."""
    found = decoded(line, LINES_NAME)
    if not isinstance(found, dict):
        return [unread(LINES_NAME, "record")]
    if "projectHash" in found:
        return _open(found, state)
    if "type" in found:
        return _read_message(found, state, "", LINES_NAME)
    changes = record(found.get("$set"))
    if "$set" not in found and "$rewindTo" not in found:
        return [unread(LINES_NAME, "record")]
    return [
        event
        for message in rows(changes.get("messages"))
        for event in _read_message(record(message), state, "", LINES_NAME)
    ]


def settle(state: GeminiState) -> Sequence[TranscriptEvent]:
    """The calls that came to no end."""
    return state.calls.drop(None, Result.UNANSWERED)


# --- Messages ---------------------------------------------------------------------------


def _read_message(
    message: Record, state: GeminiState, place: str, name: str = NAME
) -> list[TranscriptEvent]:
    author = message.get("type", message.get("role"))
    kind = _AUTHORS.get(author, author) if isinstance(author, str) else ""
    at_utc = moment(message.get("timestamp", message.get("ts")))
    ident = text(message.get("id"))[:200] or place
    told = state.messages.pop(ident, None) or GeminiMessage()
    if ident:
        state.messages[ident] = told
        if len(state.messages) > MAX_MESSAGES:
            del state.messages[next(iter(state.messages))]
    said = prose(message.get("content", message.get("parts"))).strip()
    if kind == "gemini":
        return _read_answer(message, said, ident, told, state, at_utc)
    if told.said:
        return []
    told.said = True
    match kind:
        case "user":
            lost = state.calls.drop("", Result.UNANSWERED)
            return [*lost, Asked("", bounded(said, SPEECH_CHARS), at_utc)] if said else []
        case "error":
            limited = _LIMIT.search(said[:1_000]) is not None
            return [Waiting("", "rate_limit" if limited else "human", at_utc)]
        case "info" | "warning":
            cancelled = said.startswith("Request cancelled")
            return [Waiting("", "human", at_utc)] if cancelled else []
    return [unread(name, author, "message")]


def _read_answer(
    message: Record,
    said: str,
    place: str,
    told: GeminiMessage,
    state: GeminiState,
    at_utc: datetime | None,
) -> list[TranscriptEvent]:
    events: list[TranscriptEvent] = []
    model = text(message.get("model"))[:100]
    if model and model != state.model and state.session:
        state.model = model
        events.append(Opened("", state.session, model=model, at_utc=at_utc))
    if said and not told.said:
        told.said = True
        events.append(Said("", bounded(said, SPEECH_CHARS), at_utc=at_utc))
    usage = _usage(record(message.get("tokens")))
    more = Usage(
        max(0, usage.input_tokens - told.usage.input_tokens),
        max(0, usage.output_tokens - told.usage.output_tokens),
        max(0, usage.cached_tokens - told.usage.cached_tokens),
    )
    if more != Usage():
        told.usage = told.usage + more
        events.append(Spent("", more))
    thought = said or _thoughts(message.get("thoughts"))
    for number, call in enumerate(rows(message.get("toolCalls"))):
        found = record(call)
        key = text(found.get("id"))[:200] or f"{place}.{number}"
        events.extend(_read_call(found, key, thought, told, state))
        thought = ""
    return events


def _usage(tokens: Record) -> Usage:
    written = count(tokens.get("output")) + count(tokens.get("thoughts"))
    asked = count(tokens.get("input")) + count(tokens.get("tool"))
    return Usage(asked, written, count(tokens.get("cached")))


def _thoughts(thoughts: Any) -> str:
    found = (record(thought) for thought in rows(thoughts))
    return "\n".join(text(t.get("description")) or text(t.get("subject")) for t in found).strip()


def _read_call(
    call: Record, key: str, thought: str, told: GeminiMessage, state: GeminiState
) -> list[TranscriptEvent]:
    name = text(call.get("name"))
    if key in told.calls:
        return []
    waited = state.calls.take(key)
    at_utc = moment(call.get("timestamp"))
    begins = waited or begun(
        TOOLS, name, call.get("args"), key, made=state.calls.made,
        thought=text_of(thought) if thought else None,
    )  # fmt: skip
    failed = _ANSWERED.get(text(call.get("status")))
    if failed is None:
        asks = begins.step.kind is StepKind.ASK or call.get("status") == "awaiting_approval"
        waiting = [Waiting("", "human" if begins.step.kind is StepKind.ASK else "permission")]
        return [*state.calls.add(begins), *(waiting if asks and waited is None else [])]
    if waited is None:
        state.calls.made += 1
    told.calls = [*told.calls, key][-MAX_TOLD_CALLS:]
    shown = _answer_text(call)
    code = None
    if begins.by_shell and (found := _EXIT_CODE.search(shown, max(0, len(shown) - _TAIL_CHARS))):
        code = int(found[1])
    result = None
    if call.get("status") == "cancelled":
        refused = begins.step.kind is StepKind.EDIT or _REFUSED.search(shown[:500])
        result = Result.REJECTED if refused else Result.INTERRUPTED
    edits = _edits(call, begins.step.files, begins.step.edits)
    flag = failed if failed or code is None else None
    return [
        answered(
            begins, shown, failed=flag, exit_code=code, result=result, edits=edits, at_utc=at_utc
        )
    ]


def _answer_text(call: Record) -> str:
    parts: list[str] = []
    for result in rows(call.get("result")):
        response = record(record(record(result).get("functionResponse")).get("response"))
        parts.append(text(response.get("error")) or prose(response.get("output")))
    return "\n".join(filter(None, parts)) or text(call.get("resultDisplay"))


def _edits(
    call: Record, files: tuple[str, ...], planned: tuple[EditRange, ...]
) -> tuple[EditRange, ...]:
    """Where the displayed diff says that lines were written."""
    if not files or (planned and planned[0].created):
        return ()
    return diff_edits(files[0], text(record(call.get("resultDisplay")).get("fileDiff")))


FORMAT = DocumentFormat(NAME, matches_document, read_document)
LINE_FORMAT = LineFormat(LINES_NAME, matches_lines, GeminiState, GeminiState, read_line, settle)
FORMATS = (FORMAT, LINE_FORMAT)
