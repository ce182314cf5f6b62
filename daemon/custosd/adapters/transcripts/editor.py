"""The view / create / str_replace / insert tool that several agents share, and its answers.

Line numbers come from the numbered snippet with which the tool answers, since the call
itself only states texts.
"""

import re
from dataclasses import dataclass
from itertools import islice

from custosd.adapters.transcripts.fields import Record, count, rows, text
from custosd.adapters.transcripts.patches import replacing
from custosd.core.effects import outcome
from custosd.core.transcript import EditRange, ErrorClass, Result, StepKind, digest_of

_DONE = (Result.OK, Result.UNKNOWN)
_ROW = re.compile(r"^ *(\d{1,7})(?:\t|:|: )(.*?)\r?$", re.MULTILINE)
_ROWS_COMPARED = 1_000
_REJECTED = re.compile(
    r"No replacement was performed|did not appear verbatim|Multiple occurrences of"
    r"|must be different|Your proposed edit has introduced|String to replace not found"
    r"|Text .{0,200} not found in displayed lines|syntax errors? introduced",
)
_COMPLAINT = re.compile(
    r"\s*(?:ERROR\b|Error\b|\[?Error|Invalid|The path \S+ does not exist|File \S+ not found"
    r"|Parameter|usage:|Usage:|No file open|No edit history|There is no)"
)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of the tool, read."""

    kind: StepKind
    verb: str
    files: tuple[str, ...] = ()
    edits: tuple[EditRange, ...] = ()
    result: Result = Result.UNKNOWN
    error: ErrorClass | None = None
    changes_state: bool = False


def read_editor(args: Record, observation: str | None) -> ToolCall:
    """Read a call by its arguments and its answer (None: there is no answer yet)."""
    verb = text(args.get("command")) or ("str_replace" if "old_str" in args else "view")
    path = text(args.get("path"))
    files = (path,) if path else ()
    if verb == "view":
        result, error = tool_outcome(observation, StepKind.READ)
        return ToolCall(StepKind.READ, verb, files, (), result, error)
    result, error = tool_outcome(observation, StepKind.EDIT)
    done = result in _DONE
    edits = _edits(verb, path, args, observation or "") if done else ()
    return ToolCall(StepKind.EDIT, verb, files, edits, result, error, changes_state=done)


def tool_outcome(
    observation: str | None, kind: StepKind, exit_code: int | None = None
) -> tuple[Result, ErrorClass | None]:
    """How a file tool's call ended: its refusal stands at the start of its answer."""
    if observation is None:
        return Result.UNANSWERED, None
    head = observation[:600]
    if kind is StepKind.EDIT and _REJECTED.search(head):
        return Result.REJECTED, ErrorClass.EDIT_REJECTED
    if _COMPLAINT.match(head):
        _, error = outcome(head, exit_code, StepKind.READ, failed=True)
        named = error if error not in (None, ErrorClass.OTHER) else ErrorClass.TOOL_MISUSE
        return Result.ERROR, named
    return Result.OK, None


def _edits(verb: str, path: str, args: Record, observation: str) -> tuple[EditRange, ...]:
    if not path:
        return ()
    if verb == "create" or (verb == "edit" and "file_text" in args):
        content = text(args.get("file_text")) or text(args.get("content"))
        return (EditRange(path, 1, line_count(content), created=True, digest=digest_of(content)),)
    content = text(args.get("new_str"))
    first, last = 0, 0
    if verb == "insert":
        first = count(args.get("insert_line")) + 1
        last = first + max(0, line_count(content) - 1)
    elif verb == "str_replace":
        first, last = snippet_range(observation, content)
    old = text(args.get("old_str")) if verb == "str_replace" else ""
    return (
        EditRange(
            path,
            first,
            last,
            digest=digest_of(content) if content else "",
            changes=replacing(first, old, content),
        ),
    )


def line_count(content: str) -> int:
    """How many lines a text has; an end of line at its end opens no new one."""
    return content.count("\n") + (not content.endswith("\n")) if content else 0


def snippet_range(observation: str, content: str) -> tuple[int, int]:
    """Where `content` stands in a numbered snippet (`  12<tab>text`); 0, 0 where unknown."""
    wanted = [line.strip() for line in content.splitlines()]
    if not any(wanted) or len(wanted) > _ROWS_COMPARED:
        return 0, 0
    matches = islice(_ROW.finditer(observation), _ROWS_COMPARED)
    shown = [(int(match[1]), match[2].strip()) for match in matches]
    for at in range(len(shown) - len(wanted) + 1):
        if all(shown[at + i][1] == line for i, line in enumerate(wanted)):
            return shown[at][0], shown[at + len(wanted) - 1][0]
    return 0, 0


def view_range(args: Record) -> tuple[int, int]:
    """The lines that a view asks for; 0, 0 for the whole file."""
    asked = rows(args.get("view_range"))
    if len(asked) != 2:  # noqa: PLR2004 - first and last
        return 0, 0
    return count(asked[0]), count(asked[1])
