"""aider: the markdown history of chats, appended to one file in a repository.

"#### " lines are the person's, "> " lines the tool's, the rest is the model's reply; all
but the first words of a chat carry no time, and that one names no zone. Each "# aider
chat started at" opens a new session of the same agent, named by its start and number.

A SEARCH/REPLACE block is a step; its answer are the tool's lines after the reply. A step
comes out as soon as it is answered ("Applied edit to"), else with the end of the tool's
lines. A reply without blocks is `Said`, final when nothing follows of itself.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from custosd.adapters.transcripts.format import LineFormat, Sample
from custosd.core.commands import CommandReading, read_command
from custosd.core.effects import error_class, outcome, text_of
from custosd.core.transcript import (
    Acted,
    Asked,
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
    Usage,
    Waiting,
    digest_of,
)

KEPT_CHARS = 100_000
"""Of a question, a reply or a block, what lies beyond is not kept."""
OUTPUT_CHARS = 64_000
"""Of the tool's output, head and tail of this size together are kept."""
MAX_BLOCKS = 200


@dataclass(slots=True)
class Lines:
    """Lines of text being gathered, bounded."""

    lines: list[str] = field(default_factory=list)
    chars: int = 0

    def add(self, line: str) -> None:
        """Keep the head."""
        if self.chars < KEPT_CHARS:
            self.lines.append(line)
            self.chars += len(line) + 1

    def add_tail(self, line: str) -> None:
        """Keep head and tail: what is dropped is in the middle."""
        self.lines.append(line[:OUTPUT_CHARS])
        self.chars += len(self.lines[-1]) + 1
        if self.chars > 2 * OUTPUT_CHARS:
            whole = "\n".join(self.lines)
            half = OUTPUT_CHARS // 2
            self.lines = [whole[:half], whole[-half:]]
            self.chars = 2 * half

    def take(self) -> str:
        """All lines as one text; nothing is left."""
        whole = "\n".join(self.lines)
        self.lines = []
        self.chars = 0
        return whole


@dataclass(slots=True)
class AiderState:
    """Where in the file we are. `mode` is "", "user", "reply" or "tool".

    `blocks` are the steps of a reply that have no answer yet.
    """

    chats: int = 0
    session: str = ""
    mode: str = ""
    steps: int = 0
    asked: Lines = field(default_factory=Lines)
    reply: Lines = field(default_factory=Lines)
    fenced: bool = False
    path: str = ""
    in_block: str = ""
    search: Lines = field(default_factory=Lines)
    search_lines: int = 0
    replace: Lines = field(default_factory=Lines)
    blocks: list[Step] = field(default_factory=list)
    had_blocks: bool = False
    output: Lines = field(default_factory=Lines)
    command: str = ""
    command_is_test: bool = False
    rejected: bool = False
    others_applied: bool = False
    refused_paths: list[str] = field(default_factory=list)
    goes_on: bool = False


_CHAT = re.compile(r"# aider chat started at (\S{1,40}(?: \S{1,40})?)\s*$")
_TRAILER = "  "


def read(line: str, state: AiderState) -> Sequence[TranscriptEvent]:
    """Read one line of the file; never raises."""
    line = line.rstrip("\r\n")
    events: list[TranscriptEvent] = []
    if line.startswith("# aider chat started at ") and (chat := _CHAT.match(line)):
        _open(chat[1], state, events)
    elif (state.fenced or state.in_block) and not _leaves_fence(line):
        _read_reply(line, state, events)
    elif line.startswith("#### ") or line == "####":
        _read_person(line[5:].rstrip(), state, events)
    elif line.startswith("> ") or line == ">":
        _read_tool(line[2:].removesuffix(_TRAILER), state, events)
    elif line:
        _read_reply(line, state, events)
    else:
        _read_blank(state, events)
    return events


def settle(state: AiderState) -> Sequence[TranscriptEvent]:
    """What was held back: the last question or reply, blocks never answered."""
    events: list[TranscriptEvent] = []
    _close(state, events)
    return events


def _leaves_fence(line: str) -> bool:
    """Within a fence, only what aider itself writes (two blanks at its end) ends the reply."""
    return line.startswith(("#### ", "> ")) and line.endswith(_TRAILER)


def _open(started: str, state: AiderState, events: list[TranscriptEvent]) -> None:
    _close(state, events)
    state.chats += 1
    state.steps = 0
    state.session = f"{started} #{state.chats}"
    events.append(Opened("", state.session))


def _read_blank(state: AiderState, events: list[TranscriptEvent]) -> None:
    if state.mode == "reply":
        state.reply.add("")
    elif state.mode == "user":
        _close_question(state, events)
    elif state.mode == "tool":
        _close_tool(state, events)


# --- The person -------------------------------------------------------------------------

_COMMAND = re.compile(
    r"\s*(?:(?P<bang>!)\s*|/(?P<name>[a-z-]{1,20})(?:\s+|$))(?P<rest>.*)", re.DOTALL
)
_TALKS = frozenset(("ask", "code", "architect", "chat-mode", "context"))


def _read_person(said: str, state: AiderState, events: list[TranscriptEvent]) -> None:
    if state.mode != "user":
        _close(state, events)
        state.mode = "user"
    state.asked.add(said)


def _close_question(state: AiderState, events: list[TranscriptEvent]) -> None:
    state.mode = ""
    question = state.asked.take().strip()
    if not question:
        return
    command = _COMMAND.match(question)
    if command is None:
        events.append(Asked("", question))
    elif command["bang"] or command["name"] in ("run", "test", "lint"):
        state.command = command["rest"].strip() or (command["name"] or "")
        state.command_is_test = command["name"] == "test"
    elif command["name"] in ("exit", "quit"):
        events.append(Ended("", RunEnd.FINISHED))
    elif command["name"] == "undo":
        reading = CommandReading(StepKind.EDIT, "undo", changes_state=True)
        events.append(_acted(state, "undo", reading, "/undo", "", Result.UNKNOWN, None))
    elif command["name"] in _TALKS and command["rest"].strip():
        events.append(Asked("", command["rest"].strip()))


# --- The reply --------------------------------------------------------------------------

_PATH_NOISE = "`*#: \t"


def _read_reply(line: str, state: AiderState, events: list[TranscriptEvent]) -> None:
    if state.mode != "reply":
        _close(state, events)
        state.mode = "reply"
    if state.in_block == "search":
        if line.startswith("======="):
            state.in_block = "replace"
        else:
            state.search.add(line)
            state.search_lines += 1
    elif state.in_block == "replace":
        if line.startswith(">>>>>>> "):
            _close_block(state)
        else:
            state.replace.add(line)
    elif line.startswith("<<<<<<< ") and "SEARCH" in line:
        state.in_block = "search"
        state.search_lines = 0
    elif line.lstrip().startswith("```"):
        state.fenced = not state.fenced
        named = line.strip().lstrip("`").strip()
        if "/" in named and " " not in named:  # some models put the path behind the fence
            state.path = named[:400]
    else:
        if path := _path_in(line):
            state.path = path
        state.reply.add(line)


def _path_in(line: str) -> str:
    """A line that is nothing but a file's name."""
    name = line.strip(_PATH_NOISE)
    if not name or len(name) > 400 or " " in name:  # noqa: PLR2004 - no path is longer
        return ""
    return name if "." in name[1:-1] or "/" in name[1:-1] else ""


def _close_block(state: AiderState) -> None:
    search, replace = state.search.take(), state.replace.take()
    path = state.path
    state.in_block = ""
    state.had_blocks = True
    if len(state.blocks) >= MAX_BLOCKS:
        return
    replaced = replace.count("\n") + 1 if replace else 0
    action = f"{path}: {state.search_lines} lines become {replaced}\n{search}\n=======\n{replace}"
    edit = EditRange(path, created=not search.strip(), digest=digest_of(replace))
    files, edits = ((path,), (edit,)) if path else ((), ())
    reading = CommandReading(StepKind.EDIT, "search_replace", files, edits)
    # the first block's step carries the words of the reply
    thought = state.reply.take().strip()
    state.blocks.append(
        _step(state, "search_replace", reading, action, "", Result.UNANSWERED, None, thought)
    )


# --- The tool ---------------------------------------------------------------------------

_TOKENS_OLD = re.compile(
    r"(\d{1,12}) prompt tokens, (\d{1,12}) completion tokens(?:, \$(\d{1,9}\.\d{1,9}) cost)?"
)
_TOKENS = re.compile(
    r"Tokens: ([\d.,]{1,12}[kM]?) sent,(?: [\d.,]{1,12}[kM]? cache write,)?"
    r"(?: ([\d.,]{1,12}[kM]?) cache hit,)? ([\d.,]{1,12}[kM]?) received\.?"
    r"(?: Cost: \$(\d{1,9}\.\d{1,9}) message)?"
)
_APPLIED = re.compile(r"Applied edit to (.{1,400})$")
_ADD_FILES = re.compile(r"Add (?:these files|file|.{1,300}) to the chat\?\s*(.*)$")
_FIX = re.compile(r"Attempt to fix (lint|test) errors\?\s*(.*)$")
_RUNNING = re.compile(r"Running (.{1,2000})$")
_MODEL = re.compile(r"(?:Main m|M)odels?: (\S{1,200})")
_REFUSED = re.compile(r"failed to exactly match lines in (.{1,400})$")
_NO_MORE = re.compile(r"Only \d+ reflections allowed, stopping\.")
_STATUS = re.compile(
    r"Aider v|Git repo:|Repo-map:|Warning:|Commit [0-9a-f]{6,40} |For more info see:"
    r"|Added .* to the chat|Use /help|Weak model:|Editor model:|Restored previous"
    r"|Run shell command\?|Add .* output to the chat"
)


def _read_tool(said: str, state: AiderState, events: list[TranscriptEvent]) -> None:
    if state.mode == "user":
        _close_question(state, events)
    state.fenced = False
    state.in_block = ""
    state.mode = "tool"
    reader = _TOOL_LINES.get(said.partition(" ")[0])
    if reader is None and said[:1].isdigit():
        reader = _read_old_tokens
    if reader is not None and reader(said, state, events):
        return
    if "to the chat? " in said and _read_add(said, state, events):
        return
    _read_trouble(said, state, events)
    if not _STATUS.match(said):
        state.output.add_tail(said)


def _read_trouble(said: str, state: AiderState, events: list[TranscriptEvent]) -> None:
    if "did not conform" in said or "failed to match" in said or "failed to exactly" in said:
        state.rejected = True
        if refused := _REFUSED.search(said):
            state.refused_paths.append(refused[1].strip())
            del state.refused_paths[:-MAX_BLOCKS]
    elif "applied successfully" in said:
        state.others_applied = True
    elif said.startswith("litellm.RateLimitError"):
        events.append(Waiting("", "rate_limit"))


def _read_old_tokens(said: str, _: AiderState, events: list[TranscriptEvent]) -> bool:
    if tokens := _TOKENS_OLD.match(said):
        cost = float(tokens[3]) if tokens[3] else 0.0
        events.append(Spent("", Usage(int(tokens[1]), int(tokens[2]), 0, cost)))
    return tokens is not None


def _read_tokens(said: str, _: AiderState, events: list[TranscriptEvent]) -> bool:
    if tokens := _TOKENS.match(said):
        cached = _number(tokens[2]) if tokens[2] else 0
        cost = float(tokens[4]) if tokens[4] else 0.0
        events.append(Spent("", Usage(_number(tokens[1]), _number(tokens[3]), cached, cost)))
    return tokens is not None


def _number(written: str) -> int:
    """A number as aider writes it: 3.2k is 3,200; what is no number is 0."""
    scale = {"k": 1_000, "M": 1_000_000}.get(written[-1:], 1)
    try:
        return int(float(written.rstrip("kM").replace(",", "")) * scale)
    except ValueError:
        return 0


def _read_applied(said: str, state: AiderState, events: list[TranscriptEvent]) -> bool:
    applied = _APPLIED.match(said)
    if applied is None:
        return False
    path = applied[1].strip()
    mine = [step for step in state.blocks if _is_for(step, path)]
    state.blocks = [step for step in state.blocks if not _is_for(step, path)]
    events.extend(_edited(step, said, Result.OK) for step in mine)
    if not mine:  # a whole file or a diff: its text is not told apart from the reply's
        reading = CommandReading(StepKind.EDIT, "edit", (path,), (EditRange(path),), True)  # noqa: FBT003 - as it is read
        events.append(_acted(state, "edit", reading, path, said, Result.OK, None))
    state.output.take()
    return True


def _is_for(step: Step, applied: str) -> bool:
    named = step.files[0] if step.files else ""
    return (
        named == applied
        or (bool(named) and applied.endswith(f"/{named}"))
        or named.endswith(f"/{applied}")
    )


def _read_fix(said: str, state: AiderState, events: list[TranscriptEvent]) -> bool:
    asked = _FIX.match(said)
    if asked is None:
        return False
    kind = StepKind.TEST if asked[1] == "test" else StepKind.RUN
    output = state.output.take().strip()
    error = error_class(output, 1, kind)
    if error in (None, ErrorClass.EXIT_CODE):
        error = ErrorClass.TEST_FAILURE if kind is StepKind.TEST else ErrorClass.OTHER
    reading = CommandReading(kind, asked[1])
    events.append(_acted(state, f"auto-{asked[1]}", reading, asked[1], output, Result.ERROR, error))
    state.goes_on = _agreed(asked[2])
    if not asked[2].strip():
        events.append(Waiting("", "human"))
    return True


def _agreed(answer: str) -> bool:
    return answer.strip().rsplit(" ", 1)[-1].lower().startswith("y")


def _read_add(said: str, state: AiderState, events: list[TranscriptEvent]) -> bool:
    """The model asked for files: looking at them is its step."""
    asked = _ADD_FILES.match(said)
    if asked is None or " output " in said:
        return False
    _say(state, events, final=False)
    named = tuple(filter(None, map(_path_in, state.output.take().splitlines()[-50:])))
    agreed = _agreed(asked[1])
    state.goes_on = state.goes_on or agreed
    result = Result.OK if agreed else Result.REJECTED
    if not asked[1].strip():
        events.append(Waiting("", "human"))
        result = Result.UNANSWERED
    reading = CommandReading(StepKind.READ, "add_files", named)
    events.append(_acted(state, "add_files", reading, " ".join(named), said, result, None))
    return True


def _read_running(said: str, state: AiderState, _: list[TranscriptEvent]) -> bool:
    running = _RUNNING.match(said)
    if running is None or state.command or state.output.lines or said.endswith(":"):
        return False  # the words of a program, not of aider
    state.command = running[1]
    state.command_is_test = False
    state.output.take()
    return True


def _read_model(said: str, state: AiderState, events: list[TranscriptEvent]) -> bool:
    model = _MODEL.match(said)
    if model is not None and state.session and not state.steps:
        events.append(Opened("", state.session, model=model[1]))
    return model is not None


def _read_stop(said: str, _: AiderState, events: list[TranscriptEvent]) -> bool:
    if _NO_MORE.match(said):
        events.append(Waiting("", "human"))
        return True
    return False


_TOOL_LINES: dict[str, Callable[[str, AiderState, list[TranscriptEvent]], bool]] = {
    "Tokens:": _read_tokens,
    "Applied": _read_applied,
    "Attempt": _read_fix,
    "Running": _read_running,
    "Models:": _read_model,
    "Model:": _read_model,
    "Main": _read_model,
    "Only": _read_stop,
}
"""By the first word of the line; a reader says whether the line was its own."""

# --- Steps and the ends of things -------------------------------------------------------


def _close(state: AiderState, events: list[TranscriptEvent]) -> None:
    """What was open is over: a person, the model or a new chat begins."""
    if state.mode == "user":
        _close_question(state, events)
    _close_tool(state, events)
    events.extend(_edited(step, "", Result.UNANSWERED) for step in state.blocks)
    state.blocks = []
    state.search.take()
    state.replace.take()
    state.reply.take()
    state.in_block = ""
    state.fenced = False
    state.had_blocks = False


def _close_tool(state: AiderState, events: list[TranscriptEvent]) -> None:
    """The tool's lines, or a reply without any, are over."""
    output = state.output.take().strip()
    if state.rejected:
        _reject(state, output, events)
    if state.command:
        _close_command(state, output, events)
    if not state.had_blocks:
        _say(state, events, final=not state.goes_on)
    state.rejected = False
    state.others_applied = False
    state.refused_paths = []
    state.goes_on = False
    state.mode = ""


def _say(state: AiderState, events: list[TranscriptEvent], *, final: bool) -> None:
    if reply := state.reply.take().strip():
        events.append(Said("", reply, final=final))


def _reject(state: AiderState, output: str, events: list[TranscriptEvent]) -> None:
    state.goes_on = True
    for step in state.blocks:
        refused = not state.others_applied or any(
            _is_for(step, path) for path in state.refused_paths
        )
        events.append(_edited(step, output, Result.REJECTED if refused else Result.OK))
    if not state.blocks and not state.had_blocks:  # not even a block
        reading = CommandReading(StepKind.EDIT, "edit")
        error = ErrorClass.EDIT_REJECTED
        events.append(_acted(state, "edit", reading, "", output, Result.REJECTED, error))
    state.blocks = []


def _close_command(state: AiderState, output: str, events: list[TranscriptEvent]) -> None:
    reading = read_command(state.command)
    if state.command_is_test:
        reading = CommandReading(StepKind.TEST, reading.verb, reading.files)
    result, error = outcome(output, None, reading.kind)
    events.append(_acted(state, "run", reading, state.command, output, result, error))
    state.command = ""
    state.command_is_test = False


def _edited(step: Step, output: str, result: Result) -> TranscriptEvent:
    done = result is Result.OK
    error = ErrorClass.EDIT_REJECTED if result is Result.REJECTED else None
    return Acted(
        "",
        replace(
            step,
            observation=text_of(output),
            result=result,
            error=error,
            edits=step.edits if done else (),
            changes_state=done,
        ),
    )


def _acted(
    state: AiderState,
    tool: str,
    reading: CommandReading,
    action: str,
    output: str,
    result: Result,
    error: ErrorClass | None,
) -> TranscriptEvent:
    return Acted("", _step(state, tool, reading, action, output, result, error))


def _step(
    state: AiderState,
    tool: str,
    reading: CommandReading,
    action: str,
    output: str,
    result: Result,
    error: ErrorClass | None,
    thought: str = "",
) -> Step:
    state.steps += 1
    return Step(
        key=f"{state.chats}.{state.steps}",
        kind=reading.kind,
        tool=tool,
        verb=reading.verb,
        action=text_of(action),
        observation=text_of(output),
        result=result,
        error=error,
        files=reading.files,
        edits=reading.edits,
        changes_state=reading.changes_state,
        thought=text_of(thought) if thought else None,
    )


_HEAD = re.compile(rb"\s*# aider chat started at \d{4}-\d\d-\d\d")


def _matches(sample: Sample) -> bool:
    return _HEAD.match(sample.head) is not None


FORMAT = LineFormat("aider", _matches, AiderState, AiderState, read, settle)
