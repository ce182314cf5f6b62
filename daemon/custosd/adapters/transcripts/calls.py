"""Calls of tools: read by a table when they are made, joined with their answers by id.

A format names its maker's tools in one `Tools` table; `begun` turns a call into an
unanswered step, `Calls` keeps it (in the format's state) until `answered` completes it.

Laws:

1. A call becomes one step, whatever comes: answered, dropped, or pushed out by
   `MAX_WAITING` younger ones.
2. Total: any decoded JSON is a possible call, and any string a possible answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import msgspec

from custosd.adapters.transcripts.fields import Record, record, rows, text
from custosd.core.commands import MAX_FILES, read_command
from custosd.core.effects import outcome, text_of
from custosd.core.transcript import (
    Acted,
    EditRange,
    ErrorClass,
    Result,
    Step,
    StepKind,
    Text,
    digest_of,
)

MAX_WAITING = 256
"""Calls without an answer that are remembered; the oldest then counts as unanswered."""

SPEECH_CHARS = 20_000
"""The most that is kept of what a person or the agent said: head and tail."""

MAX_NAME_CHARS = 200
MAX_PATH_CHARS = 1_000

NO_TEXT = text_of("")

_PATH_ARGUMENTS = (
    "file_path",
    "path",
    "filePath",
    "absolute_path",
    "notebook_path",
    "filename",
    "file",
    "file_name",
    "directory",
    "dir_path",
    "relative_path",
    "target_file",
)
_PATH_LISTS = ("paths", "files", "file_paths")
_WRITTEN_ARGUMENTS = (
    "new_string",
    "content",
    "new_str",
    "newText",
    "new_source",
    "file_text",
    "new_text",
)
_PLAIN_RESULTS = frozenset((Result.OK, Result.UNKNOWN, Result.UNANSWERED))

_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Tool:
    """What a maker's tool does.

    `verb` is its operation, "" for the tool's own name. `command` names the argument
    that holds a shell line. `creates`: what it writes is the whole file. `acts`: it
    changes the world in another way than by an edit.
    """

    kind: StepKind
    verb: str = ""
    command: str = ""
    creates: bool = False
    acts: bool = False


Tools = Mapping[str, Tool]
"""A maker's tools by name, in lower case."""

_UNKNOWN_TOOL = Tool(StepKind.OTHER)


@dataclass(slots=True)
class Call:
    """A call that waits for its answer.

    `by_shell`: what it changed is not undone by its failing. `named` says that its key is
    the maker's id; an answer without id belongs to the oldest call without one.
    """

    thread: str
    step: Step
    by_shell: bool = False
    named: bool = True
    child: str = ""


@dataclass(slots=True)
class Calls:
    """The calls that wait for an answer, oldest first; `made` counts all there were."""

    made: int = 0
    waiting: dict[str, Call] = field(default_factory=dict)

    def add(self, call: Call) -> list[Acted]:
        """Remember a call; returns those that it pushes out."""
        self.made += 1
        self.waiting[call.step.key] = call
        if len(self.waiting) <= MAX_WAITING:
            return []
        oldest = self.waiting.pop(next(iter(self.waiting)))
        return [_without_answer(oldest, Result.UNANSWERED)]

    def take(self, key: str, thread: str = "", tool: str = "") -> Call | None:
        """The call that an answer belongs to; it no longer waits."""
        if key:
            return self.waiting.pop(key, None)
        for found, call in self.waiting.items():
            if not call.named and call.thread == thread and tool in ("", call.step.tool):
                return self.waiting.pop(found)
        return None

    def drop(self, thread: str | None, result: Result) -> list[Acted]:
        """End all calls of a thread (None: of all threads) that were not answered."""
        if not self.waiting:
            return []
        keys = [k for k, call in self.waiting.items() if thread is None or call.thread == thread]
        ended = [self.waiting.pop(key) for key in keys]
        return [_without_answer(call, result) for call in ended]


def begun(
    tools: Tools,
    name: str,
    arguments: Any,
    key: str,
    *,
    thread: str = "",
    command: str = "",
    made: int = 0,
    thought: Text | None = None,
    at_utc: datetime | None = None,
) -> Call:
    """Read a call: an unanswered step, with what it would edit.

    `command` is the shell line where the format holds it elsewhere than in a string
    argument. `made` numbers a call that has no id.
    """
    tool = tools.get(name.lower(), _UNKNOWN_TOOL)
    args = record(arguments)
    line = command or (text(args.get(tool.command)) if tool.command else "")
    named = bool(key)
    label = name[:MAX_NAME_CHARS]
    key = key[:MAX_NAME_CHARS] if named else f"{label}#{made + 1}"
    if line:
        reading = read_command(line)
        files = reading.files
        step = Step(
            key, reading.kind, label, reading.verb or tool.verb or label, text_of(line), NO_TEXT,
            Result.UNANSWERED, None, files, reading.edits, None, reading.changes_state,
            thought, at_utc,
        )  # fmt: skip
        return Call(thread, step, by_shell=True, named=named)
    files = files_in(args)
    edits = _edits(tool, args, files) if tool.kind is StepKind.EDIT else ()
    action = arguments if isinstance(arguments, str) else _json(arguments)
    step = Step(
        key, tool.kind, label, tool.verb or label.lower(), text_of(action), NO_TEXT,
        Result.UNANSWERED, None, files, edits, None, tool.acts or tool.kind is StepKind.EDIT,
        thought, at_utc,
    )  # fmt: skip
    return Call(thread, step, named=named)


def answered(
    call: Call,
    observation: str,
    *,
    failed: bool | None = None,
    exit_code: int | None = None,
    result: Result | None = None,
    edits: tuple[EditRange, ...] = (),
    at_utc: datetime | None = None,
) -> Acted:
    """Complete a call's step with its answer.

    `failed` is the maker's own flag; `result` overrides what it and the text say.
    `edits` say better than the call which lines were written.
    """
    step = call.step
    ended, error = _outcome(call, observation, failed=failed, exit_code=exit_code)
    if result is not None:
        ended = result
        error = None if result in _PLAIN_RESULTS else error
    written, changes = edits or step.edits, step.changes_state
    if ended is Result.REJECTED or (ended not in _PLAIN_RESULTS and not call.by_shell):
        written, changes = (), False
    if written and step.kind is StepKind.EDIT and not step.files:
        files = tuple(dict.fromkeys(edit.path for edit in written))[:MAX_FILES]
    else:
        files = step.files
    return Acted(
        call.thread,
        Step(
            step.key, step.kind, step.tool, step.verb, step.action, text_of(observation), ended,
            error, files, written, exit_code, changes, step.thought, step.started_utc, at_utc,
        ),
    )  # fmt: skip


def _without_answer(call: Call, result: Result) -> Acted:
    if call.by_shell:
        return Acted(call.thread, replace(call.step, result=result))
    return Acted(call.thread, replace(call.step, result=result, edits=(), changes_state=False))


def _outcome(
    call: Call, observation: str, *, failed: bool | None, exit_code: int | None
) -> tuple[Result, ErrorClass | None]:
    if failed is False and not call.by_shell:
        return Result.OK, None  # a tool that says so itself: its text is content
    return outcome(observation, exit_code, call.step.kind, failed=failed)


def files_in(args: Record) -> tuple[str, ...]:
    """The paths among a call's arguments, by the names that paths go by."""
    found = [args.get(name) for name in _PATH_ARGUMENTS if name in args]
    for name in _PATH_LISTS:
        if name in args:
            found.extend(rows(args[name])[:MAX_FILES])
    paths = (path for path in found if isinstance(path, str) and 0 < len(path) <= MAX_PATH_CHARS)
    return tuple(dict.fromkeys(paths))[:MAX_FILES]


def _edits(tool: Tool, args: Record, files: tuple[str, ...]) -> tuple[EditRange, ...]:
    if not files:
        return ()
    content = next((args[name] for name in _WRITTEN_ARGUMENTS if name in args), None)
    if tool.creates:
        return (whole_file(files[0], text(content)),)
    several = [text(record(edit).get("new_string")) for edit in rows(args.get("edits"))]
    written = "\n".join(several) if several else text(content)
    return (EditRange(files[0], digest=digest_of(written)),)


def whole_file(path: str, content: str) -> EditRange:
    """The edit that writes a file anew with this content."""
    lines = content.count("\n") + (not content.endswith("\n")) if content else 0
    return EditRange(path, min(1, lines), lines, created=True, digest=digest_of(content))


def _json(value: Any) -> str:
    try:
        return _encoder.encode(value).decode()
    except (TypeError, ValueError, RecursionError, OverflowError):
        return "(arguments that cannot be written down)"
