"""custosd's own transcript: one JSON record a line, for any agent; see TRANSCRIPTS.md.

The first line is the header, every other line has a `type`. A field of a wrong type, or a
missing one, makes the line garbled; an unknown field is passed over, so that writers may
put more into a line than is read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated, Any

import msgspec

from custosd.adapters.transcripts.fields import (
    MAX_COUNT,
    amount,
    count,
    decoded,
    exit_code_of,
    moment,
)
from custosd.adapters.transcripts.format import GarbledRecord, LineFormat, Sample
from custosd.core.commands import CommandReading, read_command
from custosd.core.effects import outcome, text_of
from custosd.core.transcript import (
    Acted,
    Asked,
    Compacted,
    EditRange,
    Ended,
    ErrorClass,
    Opened,
    Result,
    RunEnd,
    Said,
    Spent,
    Step,
    StepKind,
    TranscriptEvent,
    Unread,
    Usage,
    Waiting,
    digest_of,
)

VERSION = 1
MAX_PENDING = 200
"""Calls that may wait for their answer; the oldest is given up for a further one."""

MAX_TOUCHED = 50
"""Files and edits of one step that are kept."""

SHELLS = frozenset(("", "shell", "bash", "sh", "zsh", "terminal", "exec", "run"))
"""Tools whose action is read as a command line."""


PATH_CHARS = 1_000

_Name = Annotated[str, msgspec.Meta(max_length=400)]
"""What names a thing: it ends in keys and log lines, so it has an end."""


class _Edit(msgspec.Struct, frozen=True):
    path: str
    first_line: int = 0
    last_line: int = 0
    created: bool = False
    content: str = ""


class _Call(msgspec.Struct, frozen=True):
    """What the agent does; `type` "call", or the first half of a "step"."""

    action: Any
    id: _Name = ""
    thread: _Name = ""
    tool: _Name = ""
    kind: StepKind | None = None
    verb: _Name = ""
    files: list[str] = []
    edits: list[_Edit] = []
    changes_state: bool | None = None
    thought: str = ""
    at: str | float | None = None


class _Answer(msgspec.Struct, frozen=True):
    """What came of it; `type` "answer", or the second half of a "step"."""

    id: _Name = ""
    thread: _Name = ""
    observation: Any = ""
    exit_code: int | None = None
    ok: bool | None = None
    result: Result | None = None
    error: ErrorClass | None = None
    ended_at: str | float | None = None
    at: str | float | None = None


class _Header(msgspec.Struct, frozen=True):
    custosd: int
    session: _Name
    agent: _Name = ""
    thread: _Name = ""
    parent: _Name = ""
    goal: str = ""
    cwd: _Name = ""
    model: _Name = ""
    branch: _Name = ""
    at: str | float | None = None


class _Say(msgspec.Struct, frozen=True):
    text: str
    thread: _Name = ""
    final: bool = False
    at: str | float | None = None


class _Wait(msgspec.Struct, frozen=True):
    on: _Name
    thread: _Name = ""
    at: str | float | None = None


class _Spend(msgspec.Struct, frozen=True):
    thread: _Name = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float = 0.0


class _Mark(msgspec.Struct, frozen=True):
    thread: _Name = ""
    at: str | float | None = None


class _End(msgspec.Struct, frozen=True):
    how: RunEnd
    claim: str = ""
    thread: _Name = ""
    at: str | float | None = None


class _Peek(msgspec.Struct, frozen=True):
    type: str = ""
    custosd: int = 0


@dataclass(slots=True)
class Pending:
    """A call as the step that it will be; `judged`: what it changes depends on its result."""

    thread: str
    step: Step
    judged: bool


@dataclass(slots=True)
class StepsState:
    """Calls without an answer, oldest first, by thread and id."""

    pending: dict[str, Pending] = field(default_factory=dict)


_PEEK = msgspec.json.Decoder(_Peek)
_CALL = msgspec.json.Decoder(_Call)
_ANSWER = msgspec.json.Decoder(_Answer)


def read(line: str, state: StepsState) -> Sequence[TranscriptEvent]:
    """Read one line; `GarbledRecord` names the field that is wrong."""
    if not line.strip():
        return ()
    peek = _decoded(_PEEK, line)
    reader = _HEADER if peek.custosd else _READERS.get(peek.type)
    if reader is None:
        return (Unread("custosd: unknown type"),)
    return reader(line, state)


def settle(state: StepsState) -> Sequence[TranscriptEvent]:
    """Steps of the calls that were never answered."""
    events = [_unanswered(pending) for pending in state.pending.values()]
    state.pending.clear()
    return events


def _decoded(decoder: Any, line: str) -> Any:
    try:
        return decoder.decode(line)
    except msgspec.ValidationError as error:
        raise GarbledRecord(f"custosd: {error}") from error
    except (msgspec.DecodeError, RecursionError, ValueError):
        pass
    try:
        return msgspec.convert(decoded(line, "custosd"), decoder.type)
    except (msgspec.ValidationError, RecursionError) as error:
        raise GarbledRecord(f"custosd: {error}") from error


def _simple(
    type_: type[Any], make: Callable[[Any], Sequence[TranscriptEvent]]
) -> Callable[[str, StepsState], Sequence[TranscriptEvent]]:
    decoder = msgspec.json.Decoder(type_)

    def read_simple(line: str, _: StepsState) -> Sequence[TranscriptEvent]:
        return make(_decoded(decoder, line))

    return read_simple


def _open(header: _Header) -> Sequence[TranscriptEvent]:
    if header.custosd != VERSION:
        raise GarbledRecord(f"custosd: format version {header.custosd}; this reads {VERSION}")
    at = moment(header.at)
    opened = Opened(
        header.thread,
        header.session,
        cwd=header.cwd,
        model=header.model,
        parent=header.parent,
        branch=header.branch,
        at_utc=at,
        agent=header.agent,
    )
    return (opened, Asked(header.thread, header.goal, at)) if header.goal else (opened,)


def _spent(spend: _Spend) -> Sequence[TranscriptEvent]:
    usage = Usage(
        count(spend.input_tokens),
        count(spend.output_tokens),
        count(spend.cached_tokens),
        amount(spend.cost_usd),
    )
    return (Spent(spend.thread, usage),)


# --- Steps ------------------------------------------------------------------------------


def _read_step(line: str, _: StepsState) -> Sequence[TranscriptEvent]:
    call, answer = _decoded(_CALL, line), _decoded(_ANSWER, line)
    return (_answered(_pending(call), answer, moment(answer.ended_at)),)


def _read_call(line: str, state: StepsState) -> Sequence[TranscriptEvent]:
    call = _decoded(_CALL, line)
    if not call.id:
        raise GarbledRecord("custosd: a call needs an `id`; or write call and answer as a step")
    key = _key(call.thread, call.id)
    pending = _pending(call)
    given_up = [state.pending.pop(key)] if key in state.pending else []
    if len(state.pending) >= MAX_PENDING:
        given_up.append(state.pending.pop(next(iter(state.pending))))
    state.pending[key] = pending
    return [_unanswered(old) for old in given_up]


def _read_answer(line: str, state: StepsState) -> Sequence[TranscriptEvent]:
    answer = _decoded(_ANSWER, line)
    pending = state.pending.pop(_key(answer.thread, answer.id), None)
    if pending is None:
        return (Unread("custosd: answer without a call"),)
    ended_utc = moment(answer.ended_at if answer.ended_at is not None else answer.at)
    return (_answered(pending, answer, ended_utc),)


def _key(thread: str, call_id: str) -> str:
    return f"{thread}\n{call_id}"


def _pending(call: _Call) -> Pending:
    action = _shown(call.action)
    shell = call.tool in SHELLS and call.kind is None
    reading = read_command(action) if shell else CommandReading(call.kind or StepKind.OTHER, "")
    edits = tuple(map(_edit, call.edits[:MAX_TOUCHED])) or reading.edits
    files = tuple(path[:PATH_CHARS] for path in call.files[:MAX_TOUCHED]) or reading.files
    changes = reading.changes_state if shell else reading.kind is StepKind.EDIT
    step = Step(
        key=call.id,
        kind=reading.kind,
        tool=call.tool or "shell",
        verb=call.verb or reading.verb or call.tool,
        action=text_of(action),
        observation=text_of(""),
        result=Result.UNANSWERED,
        files=tuple(dict.fromkeys((*files, *(edit.path for edit in edits)))),
        edits=edits,
        changes_state=changes if call.changes_state is None else call.changes_state,
        thought=text_of(call.thought) if call.thought else None,
        started_utc=moment(call.at),
    )
    return Pending(call.thread, step, judged=not shell and call.changes_state is None)


def _answered(pending: Pending, answer: _Answer, ended_utc: datetime | None) -> TranscriptEvent:
    step = pending.step
    observation = _shown(answer.observation)
    result, error = _result(answer, observation, step.kind)
    came_through = result in (Result.OK, Result.UNKNOWN)
    return Acted(
        pending.thread,
        replace(
            step,
            observation=text_of(observation),
            result=result,
            error=error,
            exit_code=exit_code_of(answer.exit_code),
            edits=step.edits if came_through or not pending.judged else (),
            changes_state=step.changes_state and (came_through or not pending.judged),
            ended_utc=ended_utc,
        ),
    )


def _unanswered(pending: Pending) -> TranscriptEvent:
    return Acted(pending.thread, pending.step)


def _result(answer: _Answer, observation: str, kind: StepKind) -> tuple[Result, ErrorClass | None]:
    code = exit_code_of(answer.exit_code)
    if answer.result is not None:
        failed = answer.result not in (Result.OK, Result.UNKNOWN)
        _, found = outcome(observation, code, kind, failed=failed)
        return answer.result, answer.error or found
    failed_flag = None if answer.ok is None else not answer.ok
    result, found = outcome(observation, code, kind, failed=failed_flag)
    if answer.error is not None and answer.ok is None and code in (None, 0):
        result = Result.ERROR
    return result, answer.error or found


def _edit(edit: _Edit) -> EditRange:
    first = max(0, min(edit.first_line, MAX_COUNT))
    last = max(first, min(edit.last_line, MAX_COUNT))
    digest = digest_of(edit.content) if edit.content else ""
    return EditRange(edit.path[:PATH_CHARS], first, last, created=edit.created, digest=digest)


def _shown(value: Any) -> str:
    """Text as it is; any other value as JSON with sorted keys."""
    if isinstance(value, str):
        return value
    return "" if value is None else msgspec.json.encode(value, order="sorted").decode()


_HEADER = _simple(_Header, _open)
_READERS: dict[str, Callable[[str, StepsState], Sequence[TranscriptEvent]]] = {
    "step": _read_step,
    "call": _read_call,
    "answer": _read_answer,
    "say": _simple(_Say, lambda say: (Said(say.thread, say.text, say.final, moment(say.at)),)),
    "ask": _simple(_Say, lambda ask: (Asked(ask.thread, ask.text, moment(ask.at)),)),
    "wait": _simple(_Wait, lambda wait: (Waiting(wait.thread, wait.on, moment(wait.at)),)),
    "spend": _simple(_Spend, _spent),
    "compact": _simple(_Mark, lambda mark: (Compacted(mark.thread, moment(mark.at)),)),
    "end": _simple(_End, lambda end: (Ended(end.thread, end.how, end.claim, moment(end.at)),)),
}


def _matches(sample: Sample) -> bool:
    head = sample.head.lstrip()
    if not head.startswith(b"{"):
        return False
    try:
        return _PEEK.decode(head.split(b"\n", 1)[0]).custosd > 0
    except (msgspec.DecodeError, RecursionError, ValueError):
        return False


FORMAT = LineFormat("custosd", _matches, StepsState, StepsState, read, settle)
