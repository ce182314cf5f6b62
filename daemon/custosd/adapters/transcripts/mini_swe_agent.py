"""mini-swe-agent: a `.traj.json`, chat messages with one shell command each (or a few).

Three forms: a bare list of messages; an object with `info` and `messages` whose `extra`
holds actions, return codes, costs and times (1.1); the same with a last message of role
`exit` (2.x). Before 1.1 the command is a fenced block, the answer a text with tags.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from custosd.adapters.transcripts.fields import (
    Record,
    amount,
    count,
    decoded,
    exit_code_of,
    moment,
    name,
    prose,
    record,
    rows,
    text,
)
from custosd.adapters.transcripts.format import DocumentFormat, GarbledRecord, Sample
from custosd.core.commands import CommandReading, read_command
from custosd.core.effects import outcome, text_of
from custosd.core.transcript import (
    Acted,
    Asked,
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
)

_BLOCK = re.compile(r"```(?:mswea_bash_command|bash|sh|shell)[ \t]*\r?\n(.*?)\r?\n?```", re.DOTALL)
_FINAL = re.compile(r"COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT|MINI_SWE_AGENT_FINAL_OUTPUT")
_RETURN_CODE = re.compile(r"\s*<returncode>\s*(-?\d{1,6})\s*</returncode>\s*")
_OUTPUT = re.compile(r"<output>\n?(.*?)\n?</output>", re.DOTALL)
_TIMED_OUT = re.compile(r"(?:last )?command .{0,4000}? timed out", re.DOTALL)
_ENDS = {
    "Submitted": RunEnd.SUBMITTED,
    "LimitsExceeded": RunEnd.LIMIT,
    "TimeExceeded": RunEnd.LIMIT,
    "UserInterruption": RunEnd.ABORTED,
    "KeyboardInterrupt": RunEnd.ABORTED,
}
_CLAIM_CHARS = 2_000


@dataclass(frozen=True, slots=True)
class _Call:
    """A command that waits for its answer."""

    key: str
    command: str
    thought: str
    at_utc: datetime | None


@dataclass(slots=True)
class _Run:
    """One run while it is read."""

    events: list[TranscriptEvent] = field(default_factory=list)
    pending: list[_Call] = field(default_factory=list)
    steps: int = 0
    asked: bool = False
    paid: bool = False
    malformed: bool = False
    final_output: str | None = None


def read_document(data: bytes) -> Sequence[TranscriptEvent]:
    """All events of a trajectory; `GarbledRecord` when there are no messages in it."""
    value = decoded(data, "mini-swe-agent")
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        document, messages = value, value["messages"]
    elif isinstance(value, list):
        document, messages = {}, value
    else:
        raise GarbledRecord("mini-swe-agent: no messages in it")
    info = record(document.get("info"))
    config = record(info.get("config"))
    model = text(record(config.get("model")).get("model_name"))
    cwd = text(record(config.get("environment")).get("cwd"))
    run = _Run()
    run.events.append(Opened("", name(document.get("instance_id")), cwd=cwd, model=model))
    last_exit: Record = {}
    for message in messages:
        entry = record(message)
        if entry.get("role") == "exit":
            last_exit = entry
        else:
            _read_message(message, run)
    _end(run, info, last_exit)
    return run.events


def _read_message(message: Any, run: _Run) -> None:
    entry = record(message)
    match entry.get("role"):
        case "system":
            return
        case "assistant":
            _read_reply(entry, run)
        case "user" | "tool":
            _read_answer(entry, run)
        case _:
            run.events.append(Unread("mini-swe-agent: message of no known role"))


# --- Replies ----------------------------------------------------------------------------


def _read_reply(entry: Record, run: _Run) -> None:
    _give_up_pending(run)
    extra = record(entry.get("extra"))
    _pay(extra, run)
    content = prose(entry.get("content"))
    at = moment(extra.get("timestamp"))
    commands = _commands_of(entry, extra, content)
    if not commands:
        if content:
            run.events.append(Said("", content, at_utc=at))
        run.malformed = True
        return
    thought = _BLOCK.sub("", content).strip()
    for key, command in commands:
        run.steps += 1
        run.pending.append(_Call(key or str(run.steps), command, thought, at))


def _commands_of(entry: Record, extra: Record, content: str) -> list[tuple[str, str]]:
    """(id or "", command) of each action, from the structured field, else from the text."""
    listed = [
        (text(action.get("tool_call_id")), text(action.get("command")))
        for action in map(record, rows(extra.get("actions")))
    ]
    if listed or "actions" in extra:
        return [(key, command) for key, command in listed if command]
    called: list[tuple[str, str]] = []
    for call in map(record, rows(entry.get("tool_calls"))):
        try:
            arguments = record(decoded(text(record(call.get("function")).get("arguments")), ""))
        except GarbledRecord:
            continue
        if command := text(arguments.get("command")):
            called.append((text(call.get("id")), command))
    return called or [("", block) for block in _BLOCK.findall(content)]


def _pay(extra: Record, run: _Run) -> None:
    usage = record(record(extra.get("response")).get("usage"))
    spent = Usage(
        count(usage.get("prompt_tokens")),
        count(usage.get("completion_tokens")),
        count(record(usage.get("prompt_tokens_details")).get("cached_tokens")),
        amount(extra.get("cost")),
    )
    if spent != Usage():
        run.paid = True
        run.events.append(Spent("", spent))


# --- Answers ----------------------------------------------------------------------------


def _read_answer(entry: Record, run: _Run) -> None:
    content = prose(entry.get("content"))
    extra = record(entry.get("extra"))
    at = moment(extra.get("timestamp"))
    if run.pending:
        key = text(entry.get("tool_call_id"))
        index = next((i for i, call in enumerate(run.pending) if call.key == key), 0)
        call = run.pending.pop(index)
        run.events.append(Acted("", _answered(call, content, extra, at, run)))
    elif run.malformed:
        run.malformed = False
        run.steps += 1
        run.events.append(Acted("", _refused(str(run.steps), content, at)))
    elif not run.asked or not extra:
        run.asked = True
        run.events.append(Asked("", content, at))


def _answered(call: _Call, content: str, extra: Record, at: datetime | None, run: _Run) -> Step:
    reading = read_command(call.command)
    code = exit_code_of(extra.get("returncode"))
    stated = _RETURN_CODE.match(content)
    if code is None and stated:
        code = int(stated[1])
    output = text(extra.get("raw_output"))
    if not output:
        body = content[stated.end() :] if stated else content
        inner = _OUTPUT.search(body)
        output = inner[1] if inner else body
    if _FINAL.search(call.command) and (code in (0, None)):
        run.final_output = output
        reading = CommandReading(
            StepKind.SUBMIT, "submit", reading.files, reading.edits, reading.changes_state
        )
        return _step(call, reading, output, Result.OK, None, code, at)
    if code is None and _TIMED_OUT.search(content[: _CLAIM_CHARS * 4]):
        return _step(call, reading, output, Result.ERROR, ErrorClass.TIMEOUT, None, at)
    result, error = outcome(output, code, reading.kind)
    if text(extra.get("exception_info")) and code in (-1, None):
        result, error = Result.ERROR, error or ErrorClass.OTHER
    return _step(call, reading, output, result, error, code, at)


def _step(
    call: _Call,
    reading: CommandReading,
    output: str,
    result: Result,
    error: ErrorClass | None,
    code: int | None = None,
    at: datetime | None = None,
) -> Step:
    return Step(
        key=call.key,
        kind=reading.kind,
        tool="bash",
        verb=reading.verb,
        action=text_of(call.command),
        observation=text_of(output),
        result=result,
        error=error,
        files=reading.files,
        edits=reading.edits,
        exit_code=code,
        changes_state=reading.changes_state,
        thought=text_of(call.thought) if call.thought else None,
        started_utc=call.at_utc,
        ended_utc=at,
    )


def _refused(key: str, content: str, at: datetime | None) -> Step:
    """A reply without a command, and what the harness said to it."""
    return Step(
        key=key,
        kind=StepKind.OTHER,
        tool="invalid_call",
        verb="invalid_call",
        action=text_of(""),
        observation=text_of(content),
        result=Result.ERROR,
        error=ErrorClass.TOOL_MISUSE,
        ended_utc=at,
    )


def _give_up_pending(run: _Run) -> None:
    for call in run.pending:
        step = _step(call, read_command(call.command), "", Result.UNANSWERED, None)
        run.events.append(Acted("", step))
    run.pending.clear()


# --- The end ----------------------------------------------------------------------------


def _end(run: _Run, info: Record, last_exit: Record) -> None:
    extra = record(last_exit.get("extra"))
    status = text(extra.get("exit_status")) or text(info.get("exit_status"))
    submission = text(extra.get("submission")) or text(info.get("submission"))
    if status == "Submitted" or (not status and run.final_output is not None):
        _submit_pending(run)
    _give_up_pending(run)
    if not status and not last_exit and run.final_output is None:
        return  # it still runs
    stats = record(info.get("model_stats"))
    if not run.paid and (cost := amount(stats.get("instance_cost"))):
        run.events.append(Spent("", Usage(cost_usd=cost)))
    end = _ENDS.get(status, RunEnd.ERROR if status else RunEnd.SUBMITTED)
    if last_exit and not status:
        end = RunEnd.ABORTED
    claim = submission or text(last_exit.get("content")) or run.final_output or status
    run.events.append(Ended("", end, claim.strip()[:_CLAIM_CHARS], moment(extra.get("timestamp"))))


def _submit_pending(run: _Run) -> None:
    """The submitting command gets no answer in 2.x: the run's end is its answer."""
    if run.pending and _FINAL.search(run.pending[-1].command):
        call = run.pending.pop()
        reading = CommandReading(StepKind.SUBMIT, "submit")
        run.events.append(Acted("", _step(call, reading, "", Result.OK, None)))


_MESSAGES = re.compile(
    rb'\s*(?:\[\s*\{|\{\s*"(?:info|messages|instance_id|trajectory_format)"\s*:)'
)
_OURS = re.compile(
    rb"mswea_bash_command|<returncode>|mini-swe-agent-1|mini_version|exactly ONE bash code block"
)


def _matches(sample: Sample) -> bool:
    if _MESSAGES.match(sample.head) is None or b'"role"' not in sample.head:
        return False
    return sample.path.endswith(".traj.json") or _OURS.search(sample.head) is not None


FORMAT = DocumentFormat("mini-swe-agent", _matches, read_document)
