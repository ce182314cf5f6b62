"""SWE-agent: a `.traj` document, one element of `trajectory` a step.

`state` is JSON in a string and tells the file open before the action (0.x), or an object
that tells the one open after it (1.x, recognised by `execution_time`). Errors stand in
the observation's text only. What the run cost is told once, with its end: before that the
totals change with each writing of the file.
"""

import re
from collections.abc import Sequence
from typing import Any

from custosd.adapters.transcripts.editor import (
    ToolCall,
    line_count,
    read_editor,
    snippet_range,
    tool_outcome,
)
from custosd.adapters.transcripts.fields import (
    Record,
    amount,
    count,
    decoded,
    prose,
    record,
    rows,
    text,
)
from custosd.adapters.transcripts.format import DocumentFormat, GarbledRecord, Sample
from custosd.core.commands import read_command
from custosd.core.effects import outcome, text_of
from custosd.core.shell import simple_commands
from custosd.core.transcript import (
    Acted,
    Asked,
    EditRange,
    Ended,
    Opened,
    Result,
    RunEnd,
    Spent,
    Step,
    StepKind,
    TranscriptEvent,
    Unread,
    Usage,
    digest_of,
)

_LOOKING = {
    "open": StepKind.READ,
    "goto": StepKind.READ,
    "scroll_up": StepKind.READ,
    "scroll_down": StepKind.READ,
    "set_cursors": StepKind.READ,
    "search_file": StepKind.SEARCH,
    "search_dir": StepKind.SEARCH,
    "find_file": StepKind.SEARCH,
    "filemap": StepKind.READ,
    "view_image": StepKind.READ,
}
_ENDS = {
    "submitted": RunEnd.SUBMITTED,
    "exit_cost": RunEnd.LIMIT,
    "exit_context": RunEnd.LIMIT,
    "exit_total_execution_time": RunEnd.LIMIT,
    "exit_forfeit": RunEnd.GAVE_UP,
    "exit_format": RunEnd.ERROR,
    "exit_command_timeout": RunEnd.ERROR,
    "exit_api": RunEnd.ERROR,
    "exit_environment_error": RunEnd.ERROR,
    "exit_error": RunEnd.ERROR,
    "early_exit": RunEnd.ABORTED,
}
_SUBMITTED_BY_HARNESS = re.compile(r"submitted \((\w+)\)")
_EDIT_HEAD = re.compile(r"(\d{1,7}):(\d{1,7})[ \t]*\n?")
_SHOWN_FILE = re.compile(r"\[File: (.{1,400}?) \(\d+ lines total\)\]")
_COMPLETED = "Your command ran successfully and did not produce any output."
_CLAIM_CHARS = 2_000


def read_document(data: bytes) -> Sequence[TranscriptEvent]:
    """All events of a `.traj`; `GarbledRecord` when it is no object with a trajectory."""
    value = decoded(data, "swe-agent")
    if not isinstance(value, dict) or not ("trajectory" in value or "history" in value):
        raise GarbledRecord("swe-agent: neither a trajectory nor a history in it")
    events: list[TranscriptEvent] = []
    trajectory = rows(value.get("trajectory"))
    first = record(trajectory[0]) if trajectory else {}
    model = _model_of(value.get("replay_config"))
    events.append(Opened("", "", cwd=_state_of(first)[1], model=model))
    if goal := _goal_of(value, first):
        events.append(Asked("", goal))
    for number, element in enumerate(trajectory):
        if isinstance(element, dict):
            events.append(Acted("", _step(str(number), element)))
        else:
            events.append(Unread("swe-agent: step that is no object"))
    events.extend(_end_of(record(value.get("info"))))
    return events


def _goal_of(document: Record, first: Record) -> str:
    """The first message of a user that is no demonstration."""
    for messages in (document.get("history"), first.get("messages"), first.get("query")):
        for message in rows(messages):
            entry = record(message)
            content = prose(entry.get("content"))
            if entry.get("role") != "user" or not content:
                continue
            if entry.get("is_demo") is True or entry.get("message_type") == "demonstration":
                continue
            return content
    return text(document.get("problem_statement"))


def _model_of(replay_config: Any) -> str:
    try:
        config = decoded(replay_config, "") if isinstance(replay_config, str) else replay_config
    except GarbledRecord:
        return ""
    return text(record(record(record(config).get("agent")).get("model")).get("name"))


def _state_of(element: Record) -> tuple[str, str]:
    """The open file ("" for none) and the working directory."""
    state = element.get("state")
    if isinstance(state, str):
        try:
            state = decoded(state, "")
        except GarbledRecord:
            return "", ""
    open_file = text(record(state).get("open_file"))
    return ("" if open_file == "n/a" else open_file), text(record(state).get("working_dir"))


def _end_of(info: Record) -> list[TranscriptEvent]:
    status = text(info.get("exit_status"))
    if not status:
        return []
    end = _ENDS.get(status, RunEnd.ERROR)
    if by_harness := _SUBMITTED_BY_HARNESS.match(status):
        end = _ENDS.get(by_harness[1], RunEnd.LIMIT)
    stats = record(info.get("model_stats"))
    usage = Usage(
        count(stats.get("tokens_sent")),
        count(stats.get("tokens_received")),
        0,
        amount(stats.get("instance_cost")),
    )
    claim = text(info.get("submission")).strip()[:_CLAIM_CHARS] or status
    spent: list[TranscriptEvent] = [Spent("", usage)] if usage != Usage() else []
    return [*spent, Ended("", end, claim)]


# --- Steps ------------------------------------------------------------------------------


def _step(key: str, element: Record) -> Step:
    action = text(element.get("action"))
    answered = isinstance(element.get("observation"), str)
    observation = text(element.get("observation"))
    thought = text(element.get("thought"))
    call = read_action(action, observation if answered else None, _state_of(element)[0])
    return Step(
        key=key,
        kind=call.kind,
        tool=call.verb,
        verb=call.verb,
        action=text_of(action),
        observation=text_of(observation),
        result=call.result,
        error=call.error,
        files=call.files,
        edits=call.edits,
        changes_state=call.changes_state,
        thought=text_of(thought) if thought else None,
    )


def read_action(action: str, observation: str | None, open_file: str) -> ToolCall:
    """Read an action line: a command of SWE-agent's own tools, or a shell command."""
    head, _, body = action.partition("\n")
    verb = head.split(" ", 1)[0].strip()
    match verb:
        case "edit" | "insert" | "create" | "append":
            return _edit(verb, head, body, observation, open_file)
        case "str_replace_editor" | "edit_anthropic" | "str_replace_based_edit_tool":
            return read_editor(_editor_args(action), observation)
        case "submit" | "exit_forfeit" | "skip":
            result = Result.UNANSWERED if observation is None else Result.OK
            refused = observation is not None and observation.strip() == "Wrong flag!"
            return ToolCall(StepKind.SUBMIT, verb, result=Result.ERROR if refused else result)
    if kind := _LOOKING.get(verb):
        return _look(verb, kind, head, observation, open_file)
    return _shell(action, observation)


def _look(
    verb: str, kind: StepKind, head: str, observation: str | None, open_file: str
) -> ToolCall:
    words = _words(head)
    if verb == "open":
        files = tuple(words[:1])
    elif verb in ("search_file", "search_dir", "find_file"):
        files = tuple(words[1:2]) or ((open_file,) if verb == "search_file" and open_file else ())
    else:
        files = (open_file,) if open_file else ()
    result, error = tool_outcome(observation, kind)
    return ToolCall(kind, verb, files, (), result, error)


def _edit(verb: str, head: str, body: str, observation: str | None, open_file: str) -> ToolCall:
    result, error = tool_outcome(observation, StepKind.EDIT)
    shown = _SHOWN_FILE.search(observation or "")
    path = open_file or (shown[1] if shown else "")
    if verb == "create":
        path = next(iter(_words(head)), "")
        edits = (EditRange(path, created=True),)
    else:
        edits = (_edited(verb, path, head, body, observation or ""),)
    done = result is Result.OK and bool(path)
    return ToolCall(
        StepKind.EDIT,
        verb,
        (path,) if path else (),
        edits if done else (),
        result,
        error,
        changes_state=done,
    )


def _edited(verb: str, path: str, head: str, body: str, observation: str) -> EditRange:
    """The lines that `edit 10:20` with a body, or `edit 'old' 'new'`, or `insert` wrote."""
    rest = head.partition(" ")[2]
    if lines := _EDIT_HEAD.match(rest):
        content = body.removesuffix("\n").removesuffix("end_of_edit")
        first = int(lines[1])
        last = max(first, first + line_count(content) - 1)
        return EditRange(path, first, last, digest=digest_of(content))
    words = _words(f"{head}\n{body}") if rest else []
    if verb == "insert":
        content = words[0] if words else body
        given = int(words[1][:9]) if len(words) > 1 and words[1].isdigit() else 0
        if given:  # after this line
            last = given + max(1, line_count(content))
            return EditRange(path, given + 1, last, digest=digest_of(content))
    else:
        content = (
            words[1] if len(words) > 1 else body.removesuffix("\n").removesuffix("end_of_edit")
        )
    first, last = snippet_range(observation, content.rstrip("\n"))
    return EditRange(path, first, last, digest=digest_of(content))


def _words(line: str) -> list[str]:
    """The arguments of a tool's line, unquoted."""
    commands = simple_commands(line)
    return list(commands[0].words[1:]) if commands else []


def _editor_args(action: str) -> Record:
    """`str_replace_editor COMMAND PATH --old_str '…' --view_range 1 50` as an object."""
    commands = simple_commands(action)
    words = list(commands[0].words[1:]) if commands else []
    args: Record = {"command": words[0] if words else "", "path": words[1] if words[1:] else ""}
    name = ""
    for word in words[2:]:
        if word.startswith("--"):
            name = word[2:]
            args[name] = [] if name == "view_range" else ""
        elif name == "view_range":
            args[name].append(int(word[:9]) if word.isdigit() else 0)
        elif name == "insert_line":
            args[name] = int(word[:9]) if word.isdigit() else 0
        elif name:
            args[name] = word
    return args


def _shell(action: str, observation: str | None) -> ToolCall:
    reading = read_command(action)
    if observation is None:
        result, error = Result.UNANSWERED, None
    elif observation.strip() == _COMPLETED:
        result, error = Result.OK, None
    else:
        result, error = outcome(observation, None, reading.kind)
    return ToolCall(
        reading.kind,
        reading.verb,
        reading.files,
        reading.edits,
        result,
        error,
        changes_state=reading.changes_state,
    )


_KEYS = re.compile(rb'\s*\{\s*"(?:environment|trajectory|history|info|replay_config)"\s*:')


def _matches(sample: Sample) -> bool:
    if _KEYS.match(sample.head) is None:
        return False
    return sample.path.endswith(".traj") or (
        b'"trajectory"' in sample.head and b'"observation"' in sample.head
    )


FORMAT = DocumentFormat("swe-agent", _matches, read_document)
