"""The stream of `codex exec --json`: one turn without a person, told item by item.

Laws:

1. An item is told when it is completed; what was started and never completed is an
   unanswered call. Item ids count from 0 in each turn, so keys carry the turn's number.
2. A completed turn is the end of the run: nobody is there to ask for another. The
   stream holds no prompt, hence no goal.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from custosd.adapters.transcripts.calls import SPEECH_CHARS, Call, Calls, Tool, answered, begun
from custosd.adapters.transcripts.codex import change_edits, growth, usage_of
from custosd.adapters.transcripts.fields import (
    Record,
    decoded,
    exit_code_of,
    prose,
    record,
    rows,
    text,
)
from custosd.adapters.transcripts.format import LineFormat, Sample
from custosd.adapters.transcripts.sampling import first_records, unread
from custosd.core.effects import bounded, text_of
from custosd.core.transcript import (
    Acted,
    Ended,
    Opened,
    Result,
    RunEnd,
    Said,
    Spent,
    StepKind,
    Text,
    TranscriptEvent,
    Usage,
    Waiting,
)

NAME = "codex-exec"

_S = StepKind
TOOLS = {
    "command_execution": Tool(_S.RUN, "shell", command="command"),
    "file_change": Tool(_S.EDIT, "apply_patch"),
    "web_search": Tool(_S.BROWSE),
    "todo_list": Tool(_S.PLAN),
    "collab_tool_call": Tool(_S.DELEGATE),
    "mcp_tool_call": Tool(_S.OTHER),
}

_LIMIT = re.compile(r"usage.?limit|rate.?limit|\b429\b|overloaded", re.IGNORECASE)
_WRAPPED = re.compile(r"(?:/\S*/)?(?:ba|z|da|k)?sh -l?c (.+)\Z", re.DOTALL)
_RESULTS = {"declined": Result.REJECTED, "in_progress": Result.UNANSWERED}


@dataclass(slots=True)
class CodexExecState:
    """What is remembered of a stream."""

    turns: int = 0
    said: str = ""
    thought: Text | None = None
    total: Usage = field(default_factory=Usage)
    calls: Calls = field(default_factory=Calls)


def matches(sample: Sample) -> bool:
    """It begins with the thread's id, or tells of items."""
    return any(
        (found.get("type") == "thread.started" and "thread_id" in found)
        or (found.get("type") in ("item.started", "item.completed") and "item" in found)
        for found in first_records(sample)
    )


def read(line: str, state: CodexExecState) -> Sequence[TranscriptEvent]:
    """Read one event of the stream; raises `GarbledRecord` where it is no JSON."""
    found = record(decoded(line, NAME))
    kind = found.get("type")
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    return reader(found, state) if reader else [unread(NAME, kind)]


def settle(state: CodexExecState) -> Sequence[TranscriptEvent]:
    """The calls that were never completed."""
    return state.calls.drop(None, Result.UNANSWERED)


def _open(found: Record, _: CodexExecState) -> Sequence[TranscriptEvent]:
    return [Opened("", text(found.get("thread_id"))[:200])]


def _start_turn(_: Record, state: CodexExecState) -> Sequence[TranscriptEvent]:
    state.turns += 1
    state.said = ""
    return ()


def _complete_turn(found: Record, state: CodexExecState) -> Sequence[TranscriptEvent]:
    return _end(RunEnd.FINISHED, state.said, record(found.get("usage")), state)


def _fail(found: Record, state: CodexExecState) -> Sequence[TranscriptEvent]:
    said = text(record(found.get("error")).get("message")) or text(found.get("message"))
    if found.get("type") == "error" and "reconnect" in said[:100].lower():
        return ()
    limited = [Waiting("", "rate_limit")] if _LIMIT.search(said[:500]) else []
    return [*limited, *_end(RunEnd.ERROR, said, {}, state)]


def _skip(_: Record, __: CodexExecState) -> Sequence[TranscriptEvent]:
    return ()


def _begin(found: Record, state: CodexExecState) -> Sequence[TranscriptEvent]:
    item = record(found.get("item"))
    if text(item.get("type")) not in TOOLS:
        return ()
    return state.calls.add(_call(item, state))


def _call(item: Record, state: CodexExecState) -> Call:
    kind = text(item.get("type"))
    name, args = kind, {key: item[key] for key in item if key not in _RESULT_FIELDS}
    if kind == "mcp_tool_call":
        name = f"{text(item.get('server'))}__{text(item.get('tool'))}"
        args = record(item.get("arguments"))
    line = text(item.get("command"))
    wrapped = _WRAPPED.match(line)
    call = begun(
        TOOLS, name, args, _key(item, state), command=_unquoted(wrapped[1]) if wrapped else line,
        made=state.calls.made, thought=state.thought,
    )  # fmt: skip
    state.thought = None
    if kind == "file_change":
        changes = [record(change) for change in rows(item.get("changes"))[:50]]
        edits = tuple(
            edit for c in changes for edit in change_edits(text(c.get("path"))[:1_000], c)
        )
        call.step = replace(call.step, files=tuple(e.path for e in edits), edits=edits)
    return call


_RESULT_FIELDS = frozenset(("id", "type", "status", "aggregated_output", "exit_code", "result"))


def _key(item: Record, state: CodexExecState) -> str:
    key = text(item.get("id"))
    return f"{state.turns}.{key}" if key and state.turns > 1 else key


def _unquoted(script: str) -> str:
    """The script of `bash -lc '…'` without its quotes."""
    if len(script) > 1 and script[0] == script[-1] == "'":
        return script[1:-1].replace("'\\''", "'").replace("'\"'\"'", "'")
    return script


def _complete(found: Record, state: CodexExecState) -> Sequence[TranscriptEvent]:
    item = record(found.get("item"))
    kind = text(item.get("type"))
    if kind == "agent_message":
        said = text(item.get("text")).strip()
        if not said:
            return ()
        state.said = bounded(said, SPEECH_CHARS)
        state.thought = text_of(said)
        return [Said("", state.said)]
    if kind == "reasoning":
        state.thought = text_of(text(item.get("text")))
        return ()
    if kind == "error":
        return ()
    if kind not in TOOLS:
        return [unread(NAME, kind, "item")]
    begun_before = state.calls.take(_key(item, state)[:200])
    if begun_before is None:
        state.calls.made += 1
    state.said = ""
    return [_answered(begun_before or _call(item, state), item)]


def _answered(call: Call, item: Record) -> Acted:
    status = text(item.get("status"))
    error = record(item.get("error"))
    result = record(item.get("result"))
    shown = text(item.get("aggregated_output")) or text(error.get("message"))
    return answered(
        call,
        shown or prose(result.get("content")),
        failed=None if call.by_shell else status == "failed" or bool(error),
        exit_code=exit_code_of(item.get("exit_code")),
        result=_RESULTS.get(status),
    )


def _end(
    end: RunEnd, claim: str, usage: Record, state: CodexExecState
) -> Sequence[TranscriptEvent]:
    events: list[TranscriptEvent] = [*state.calls.drop(None, Result.UNANSWERED)]
    total = usage_of(usage)
    if more := growth(state.total, total):
        state.total = total
        events.append(Spent("", more))
    if end is RunEnd.FINISHED and claim:
        events.append(Said("", claim, final=True))
    state.said = ""
    return [*events, Ended("", end, bounded(claim))]


_READERS: dict[str, Callable[[Record, CodexExecState], Sequence[TranscriptEvent]]] = {
    "thread.started": _open,
    "turn.started": _start_turn,
    "item.started": _begin,
    "item.updated": _skip,
    "item.completed": _complete,
    "turn.completed": _complete_turn,
    "turn.failed": _fail,
    "error": _fail,
}

FORMAT = LineFormat(NAME, matches, CodexExecState, CodexExecState, read, settle)
