"""OpenHands: event streams, and the records that its evaluation and resolver write.

Three shapes, one vocabulary of events. An *event stream* is an array of events, action
and observation joined by `cause`. A *record* is one run: instruction, history, metrics,
error. An *output* file has a record a line, each a run of its own: its instance id is
the thread. The oldest histories are pairs of action and observation, without ids.

Timestamps name no zone; they are read as UTC, which is what the containers run in.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from custosd.adapters.transcripts.editor import read_editor, tool_outcome
from custosd.adapters.transcripts.fields import (
    Record,
    amount,
    count,
    decoded,
    exit_code_of,
    moment,
    name,
    record,
    rows,
    text,
)
from custosd.adapters.transcripts.format import DocumentFormat, GarbledRecord, LineFormat, Sample
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

_SILENT_ACTIONS = frozenset(
    ("system", "recall", "change_agent_state", "null", "start", "initialize")
)
_SILENT_OBSERVATIONS = frozenset(("recall", "null", "user_rejected", "system"))
_TOOL_KINDS = {
    "browse": StepKind.BROWSE,
    "browse_interactive": StepKind.BROWSE,
    "delegate": StepKind.DELEGATE,
    "think": StepKind.PLAN,
    "add_task": StepKind.PLAN,
    "modify_task": StepKind.PLAN,
    "task_tracking": StepKind.PLAN,
}
_WAITS = {
    "awaiting_user_input": "human",
    "awaiting_user_confirmation": "permission",
    "rate_limited": "rate_limit",
    "paused": "human",
}
_STATE_ENDS = {"error": RunEnd.ERROR, "stopped": RunEnd.ABORTED, "rejected": RunEnd.GAVE_UP}


@dataclass(slots=True)
class _Run:
    """One run while it is read: calls not yet answered, and what was paid so far."""

    thread: str
    events: list[TranscriptEvent] = field(default_factory=list)
    pending: dict[str, tuple[Record, Record]] = field(default_factory=dict)
    paid: Usage = Usage()
    paid_calls: set[str] = field(default_factory=set)
    steps: int = 0
    ended: bool = False
    asked: bool = False


def read_history(history: Sequence[Any], run: _Run) -> None:
    """Read the events of one run, in order; unanswered calls come out at the end."""
    for entry in history:
        if isinstance(entry, list):  # the oldest form: [action, observation]
            for part in entry:
                _read_event(part, run)
        else:
            _read_event(entry, run)
    for key in list(run.pending):
        _answer(run, key, None)


def _read_event(event: Any, run: _Run) -> None:
    if not isinstance(event, dict):
        run.events.append(Unread("openhands: event that is no object"))
        return
    _pay(event, run)
    if "observation" in event and text(event.get("observation")):
        _read_observation(event, run)
    elif text(event.get("action")):
        _read_action(event, run)
    elif event.get("role") is None and "message" not in event:
        run.events.append(Unread("openhands: neither action nor observation"))


# --- Actions ----------------------------------------------------------------------------


def _read_action(event: Record, run: _Run) -> None:
    action = text(event.get("action"))
    # the oldest form has the arguments beside the action's name
    args = record(event.get("args")) if "args" in event else event
    at = moment(event.get("timestamp"))
    if action in _SILENT_ACTIONS:
        return
    if action == "message":
        _read_message(event, args, at, run)
    elif action in ("finish", "reject"):
        _read_finish(action, args, at, run)
    elif action.startswith("condensation") or action == "summarize_context":
        run.events.append(Compacted(run.thread, at))
    else:
        if text(args.get("confirmation_state")) == "awaiting_confirmation":
            run.events.append(Waiting(run.thread, "permission", at))
        run.pending[_key(event, run)] = (event, args)


def _key(event: Record, run: _Run) -> str:
    number = event.get("id")
    return str(number) if isinstance(number, int) else f"+{run.steps + len(run.pending)}"


def _read_message(event: Record, args: Record, at: datetime | None, run: _Run) -> None:
    content = text(args.get("content")) or text(event.get("message"))
    source = text(event.get("source"))
    if source == "user" or (not source and not run.asked):
        run.asked = True
        run.ended = False
        run.events.append(Asked(run.thread, content, at))
        return
    waits = args.get("wait_for_response") is True
    run.events.append(Said(run.thread, content, final=waits, at_utc=at))
    if waits:
        run.events.append(Waiting(run.thread, "human", at))


def _read_finish(action: str, args: Record, at: datetime | None, run: _Run) -> None:
    claim = text(args.get("final_thought")) or text(args.get("thought"))
    claim = claim or text(record(args.get("outputs")).get("content"))
    gave_up = action == "reject" or text(args.get("task_completed")) == "false"
    _end(run, RunEnd.GAVE_UP if gave_up else RunEnd.FINISHED, claim, at)


def _end(run: _Run, end: RunEnd, claim: str, at: datetime | None = None) -> None:
    if run.ended:
        return
    for key in list(run.pending):
        _answer(run, key, None)
    run.ended = True
    run.events.append(Ended(run.thread, end, claim, at))


# --- Observations -----------------------------------------------------------------------


def _read_observation(event: Record, run: _Run) -> None:
    observation = text(event.get("observation"))
    if observation == "agent_state_changed":
        _read_state(event, run)
        return
    cause = event.get("cause")
    if isinstance(cause, int) and str(cause) in run.pending:
        _answer(run, str(cause), event)
    elif cause is None and "id" not in event and run.pending:
        _answer(run, next(reversed(run.pending)), event)  # the oldest form: the call before it
    elif observation == "error":
        _refused_call(event, run)
    elif observation not in _SILENT_OBSERVATIONS and "cause" not in event and "id" in event:
        run.events.append(Unread("openhands: observation without a call"))


def _read_state(event: Record, run: _Run) -> None:
    state = text(record(event.get("extras")).get("agent_state"))
    at = moment(event.get("timestamp"))
    if on := _WAITS.get(state):
        run.events.append(Waiting(run.thread, on, at))
    elif end := _STATE_ENDS.get(state):
        reason = text(record(event.get("extras")).get("reason")) or text(event.get("content"))
        _end(run, _end_of_error(reason) if end is RunEnd.ERROR else end, reason, at)


def _refused_call(event: Record, run: _Run) -> None:
    """The model's call was not even an action: an attempt that came to nothing."""
    content = text(event.get("content"))
    at = moment(event.get("timestamp"))
    run.steps += 1
    run.events.append(
        Acted(
            run.thread,
            Step(
                key=str(event.get("id", f"+{run.steps}")),
                kind=StepKind.OTHER,
                tool="invalid_call",
                verb="invalid_call",
                action=text_of(""),
                observation=text_of(content),
                result=Result.ERROR,
                error=ErrorClass.TOOL_MISUSE,
                ended_utc=at,
            ),
        )
    )


def _answer(run: _Run, key: str, event: Record | None) -> None:
    action, args = run.pending.pop(key)
    run.steps += 1
    run.events.append(Acted(run.thread, _step(key, action, args, event)))


# --- Steps ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Call:
    """What an action and its answer say, before it becomes a step."""

    reading: CommandReading
    action: str
    result: Result
    error: ErrorClass | None
    exit_code: int | None = None


def _step(key: str, action: Record, args: Record, event: Record | None) -> Step:
    name = text(action.get("action"))
    answer = event or {}
    content = text(answer.get("content"))
    call = _CALLS.get(name, _other_call)(name, args, answer if event else None)
    thought = text(args.get("thought"))
    tool = text(record(action.get("tool_call_metadata")).get("function_name")) or name
    return Step(
        key=key,
        kind=call.reading.kind,
        tool=tool,
        verb=call.reading.verb,
        action=text_of(call.action),
        observation=text_of(content),
        result=call.result if event else Result.UNANSWERED,
        error=call.error,
        files=call.reading.files,
        edits=call.reading.edits,
        exit_code=call.exit_code,
        changes_state=call.reading.changes_state,
        thought=text_of(thought) if thought else None,
        started_utc=moment(action.get("timestamp")),
        ended_utc=moment(answer.get("timestamp")),
    )


def _run_call(_: str, args: Record, answer: Record | None) -> _Call:
    command = text(args.get("command"))
    reading = read_command(command)
    answer = answer or {}
    extras = record(answer.get("extras"))
    code = exit_code_of(record(extras.get("metadata")).get("exit_code"))
    for place in (extras, answer):
        code = exit_code_of(place.get("exit_code")) if code is None else code
    if text(answer.get("observation")) == "error":
        return _failed(reading, command, answer)
    if code == -1:  # still running, or its time was up: the text says which
        code = None
    result, error = outcome(text(answer.get("content")), code, reading.kind)
    return _Call(reading, command, result, error, code)


def _python_call(_: str, args: Record, answer: Record | None) -> _Call:
    code = text(args.get("code"))
    reading = read_command(f"python - <<'END_OF_CELL'\n{code}\nEND_OF_CELL")
    if text((answer or {}).get("observation")) == "error":
        return _failed(reading, code, answer or {})
    result, error = outcome(text((answer or {}).get("content")), None, reading.kind)
    return _Call(reading, code, result, error)


def _editor_call(name: str, args: Record, answer: Record | None) -> _Call:
    call_args = {"command": "view", **args} if name == "read" else dict(args)
    if name == "write":
        call_args = {
            "command": "create",
            "path": args.get("path"),
            "file_text": args.get("content"),
        }
    elif name == "edit" and not text(args.get("command")):
        return _whole_edit(args, answer)
    observation = None if answer is None else text(answer.get("content"))
    editor = read_editor(call_args, observation)
    reading = CommandReading(
        editor.kind, editor.verb, editor.files, editor.edits, editor.changes_state
    )
    shown = msgspec.json.encode(
        {key: value for key, value in call_args.items() if key in _SHOWN and value is not None}
    ).decode()
    if answer is not None and text(answer.get("observation")) == "error":
        return _failed(reading, shown, answer)
    return _Call(reading, shown, editor.result, editor.error)


_SHOWN = ("command", "path", "file_text", "old_str", "new_str", "insert_line", "view_range")


def _whole_edit(args: Record, answer: Record | None) -> _Call:
    """The edit of lines `start` to `end` that a model wrote out."""
    path, content = text(args.get("path")), text(args.get("content"))
    first, last = count(args.get("start")), count(args.get("end"))
    edits = (EditRange(path, first, max(first, last), digest=digest_of(content)),) if path else ()
    observation = None if answer is None else text(answer.get("content"))
    result, error = tool_outcome(observation, StepKind.EDIT)
    done = result is Result.OK
    reading = CommandReading(
        StepKind.EDIT, "edit", (path,) if path else (), edits if done else (), changes_state=done
    )
    return _Call(reading, f"{path} {first}:{last}\n{content}", result, error)


def _other_call(name: str, args: Record, answer: Record | None) -> _Call:
    kind = _TOOL_KINDS.get(name, StepKind.OTHER)
    verb = text(args.get("name")) or name if name == "call_tool_mcp" else name
    shown = {key: value for key, value in args.items() if key not in ("thought", "args")}
    action = text(args.get("thought")) if name == "think" else _compact(shown)
    reading = CommandReading(kind, verb[:80], changes_state=kind is StepKind.DELEGATE)
    if answer is None:
        return _Call(reading, action, Result.UNANSWERED, None)
    if text(answer.get("observation")) == "error":
        return _failed(reading, action, answer)
    failed = record(answer.get("extras")).get("error") is True
    result, error = outcome(
        text(answer.get("content")), None, StepKind.BROWSE, failed=failed or None
    )
    return _Call(reading, action, Result.OK if result is Result.UNKNOWN else result, error)


def _compact(value: Record) -> str:
    try:
        return msgspec.json.encode(value, order="sorted").decode()
    except (TypeError, ValueError, OverflowError, RecursionError):
        return ""


def _failed(reading: CommandReading, action: str, answer: Record) -> _Call:
    content = text(answer.get("content"))
    _, error = outcome(content, None, StepKind.READ, failed=True)
    error = ErrorClass.TIMEOUT if "timed out" in content.lower() else error
    plain = CommandReading(reading.kind, reading.verb, reading.files)
    return _Call(plain, action, Result.ERROR, error)


_CALLS: dict[str, Callable[[str, Record, Record | None], _Call]] = {
    "run": _run_call,
    "run_ipython": _python_call,
    "read": _editor_call,
    "edit": _editor_call,
    "write": _editor_call,
}

# --- What was paid ----------------------------------------------------------------------


def _pay(event: Record, run: _Run) -> None:
    """Each model call once: from running totals where they stand, else by the reply's id."""
    totals = record(event.get("llm_metrics"))
    if totals:
        _pay_up_to(_usage_of_totals(totals), run)
        return
    reply = record(record(event.get("tool_call_metadata")).get("model_response"))
    key = text(reply.get("id"))
    if not key or key in run.paid_calls:
        return
    run.paid_calls.add(key)
    usage = record(reply.get("usage"))
    details = record(usage.get("prompt_tokens_details"))
    spent = Usage(
        count(usage.get("prompt_tokens")),
        count(usage.get("completion_tokens")),
        count(details.get("cached_tokens")),
    )
    if spent != Usage():
        run.paid += spent
        run.events.append(Spent(run.thread, spent))


def _usage_of_totals(totals: Record) -> Usage:
    tokens = record(totals.get("accumulated_token_usage"))
    return Usage(
        count(tokens.get("prompt_tokens")),
        count(tokens.get("completion_tokens")),
        count(tokens.get("cache_read_tokens")),
        amount(totals.get("accumulated_cost")),
    )


def _pay_up_to(total: Usage, run: _Run) -> None:
    paid = run.paid
    more = Usage(
        max(0, total.input_tokens - paid.input_tokens),
        max(0, total.output_tokens - paid.output_tokens),
        max(0, total.cached_tokens - paid.cached_tokens),
        max(0.0, total.cost_usd - paid.cost_usd),
    )
    if more != Usage():
        run.paid += more
        run.events.append(Spent(run.thread, more))


# --- Records ----------------------------------------------------------------------------

_LIMIT = re.compile(
    r"maximum (?:iteration|budget)|max_iterations|budget.{0,20}exceeded", re.IGNORECASE
)


def _end_of_error(error: str) -> RunEnd:
    return RunEnd.LIMIT if _LIMIT.search(error) else RunEnd.ERROR


def _read_record(run_record: Record, thread: str) -> list[TranscriptEvent]:
    """One run of an evaluation or of the resolver: it is over when it is written."""
    issue = record(run_record.get("issue"))
    session = name(run_record.get("instance_id"))
    if not session and issue:
        session = f"{name(issue.get('repo'))}#{count(issue.get('number'))}"
    config = record(record(run_record.get("metadata")).get("llm_config"))
    run = _Run(thread)
    run.events.append(Opened(thread, session, model=text(config.get("model"))))
    history = rows(run_record.get("history"))
    instruction = text(run_record.get("instruction"))
    if instruction and not _has_goal(history):
        run.asked = True
        run.events.append(Asked(thread, instruction))
    read_history(history, run)
    metrics = record(run_record.get("metrics"))
    if metrics:
        _pay_up_to(_usage_of_totals(metrics), run)
    if error := text(run_record.get("error")):
        run.ended = False
        _end(run, _end_of_error(error), error)
    elif history:
        _end(run, RunEnd.ABORTED, "")  # written by the harness without a word of the agent
    return run.events


def _has_goal(history: list[Any]) -> bool:
    first = history[:5]
    flat = [part for entry in first for part in (entry if isinstance(entry, list) else [entry])]
    return any(
        record(event).get("action") == "message" and record(event).get("source") in ("user", None)
        for event in flat
    )


def read_document(data: bytes) -> Sequence[TranscriptEvent]:
    """An event stream (array) or one run's record (object); `GarbledRecord` for others."""
    value = decoded(data, "openhands")
    if isinstance(value, dict):
        return _read_record(value, "")
    if not isinstance(value, list):
        raise GarbledRecord("openhands: neither an event stream nor a run's record")
    run = _Run("")
    first = record(value[0]) if value else {}
    session = name(first.get("sid")) or name(first.get("session_id"))
    run.events.append(Opened("", session, at_utc=moment(first.get("timestamp"))))
    read_history(value, run)
    return run.events


# --- Output files: a record a line ------------------------------------------------------


@dataclass(slots=True)
class OutputState:
    """How many runs were read."""

    runs: int = 0


def read_output_line(line: str, state: OutputState) -> Sequence[TranscriptEvent]:
    """One run; its instance id (or its number) is the thread."""
    if not line.strip():
        return ()
    value = decoded(line, "openhands output")
    if not isinstance(value, dict):
        raise GarbledRecord("openhands output: a line that is no record")
    events = _read_record(value, name(value.get("instance_id")) or f"run {state.runs + 1}")
    state.runs += 1
    return events


def _nothing_held(_: OutputState) -> Sequence[TranscriptEvent]:
    return ()


_STREAM = re.compile(
    rb"\s*\[\s*\{(?=[^\[\]]{0,4000}?\"(?:action|observation)\"\s*:)(?=.{0,4000}?\"(?:source|args|extras)\"\s*:)",
    re.DOTALL,
)
_RECORD = re.compile(rb"\s*\{\s*\"(?:instance_id|issue)\"\s*:")
_OUR_KEYS = re.compile(
    rb"\"(?:test_result|issue_type|instruction)\"\s*:|\"agent_class\"\s*:|\"git_patch\"\s*:"
)


def _matches_document(sample: Sample) -> bool:
    if sample.path.endswith(".jsonl"):
        return False
    return _STREAM.match(sample.head) is not None or _is_record(sample.head)


def _matches_output(sample: Sample) -> bool:
    return sample.path.endswith(".jsonl") and _is_record(sample.head)


def _is_record(head: bytes) -> bool:
    return _RECORD.match(head) is not None and _OUR_KEYS.search(head) is not None


FORMATS = (
    DocumentFormat("openhands", _matches_document, read_document),
    LineFormat(
        "openhands-output",
        _matches_output,
        OutputState,
        OutputState,
        read_output_line,
        _nothing_held,
    ),
)
