"""Claude Code: session files `<session>.jsonl`, their sub-agents, and `stream-json` output.

Laws:

1. A thread's name is stable over restarts: the `agentId` of a sub-agent with a file of
   its own, the first uuid of a side chain within the session's file, the id of the
   call that started it in `stream-json`.
2. One message of the model is spread over several records with one `message.id`; what
   it cost is told once, later records only add what they claim more.
3. A text without a call is told when it is read, `final` only where the record says so
   (`stop_reason` is null in most sessions before 2.1). Where a later record, or
   `settle`, shows that the turn had ended with it, it is told again as final.

A resumed or forked session is a new file that begins with a copy of the old records,
uuids included. Here they are records like any other: who keeps sessions apart does so
by `Opened.session`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from custosd.adapters.transcripts.calls import (
    SPEECH_CHARS,
    Call,
    Calls,
    answered,
    begun,
)
from custosd.adapters.transcripts.claude_records import (
    TOOLS,
    ClaudeRecord,
    StructuredResult,
    record_in,
    structured_result,
)
from custosd.adapters.transcripts.fields import (
    amount,
    count,
    exit_code_of,
    moment,
    prose,
    record,
    rows,
    text,
)
from custosd.adapters.transcripts.format import LineFormat, Sample
from custosd.adapters.transcripts.patches import hunk_edits
from custosd.adapters.transcripts.sampling import first_records, unread
from custosd.core.effects import bounded, text_of
from custosd.core.transcript import (
    Asked,
    Compacted,
    EditRange,
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
    digest_of,
)

NAME = "claude-code"

MAX_THREADS = 64
MAX_OWNERS = 1_000
"""Side chain records whose thread is remembered, so that their children find it."""

MAX_PAID = 64
"""Messages whose cost may still grow by a later record."""

_SILENT = frozenset(
    (
        *(
            "file-history-snapshot",
            "queue-operation",
            "summary",
            "progress",
            "permission-mode",
            "mode",
        ),
        *("agent-name", "agent-color", "agent-setting", "custom-title", "ai-title", "last-prompt"),
        *("frame-link", "pr-link", "started", "result", "relocated", "worktree-state", "tag"),
        *("bridge-session", "atis-latch", "stream_event", "tool_progress", "auth_status"),
        *("file-history-delta", "attribution-snapshot", "content-replacement", "rate_limit_event"),
        *("task-summary", "speculation-accept", "marble-origami-commit", "control_request"),
        *("control_response", "keep_alive", "saved_hook_context", "tool_use_summary"),
    )
)
"""Records that say nothing of what the agent does."""

_SILENT_BLOCKS = frozenset(
    (
        *(
            "redacted_thinking",
            "image",
            "document",
            "fallback",
            "server_tool_use",
            "tool_reference",
        ),
        *("web_search_tool_result", "web_fetch_tool_result", "container_upload", "compaction"),
    )
)
_INJECTED = (
    "<local-command-",
    "<command-message>",
    "<bash-stdout>",
    "<bash-stderr>",
    "Caveat: The messages",
    "<task-notification>",
    "<user-memory-input>",
    "<user-prompt-submit-hook>",
    "<bash-input>",
)
_REMINDER = re.compile(r"<system-reminder>.*?(?:</system-reminder>|\Z)", re.DOTALL)
_COMMAND = re.compile(r"<command-name>\s*([^<]{1,200}?)\s*</command-name>")
_COMMAND_ARGS = re.compile(r"<command-args>(.*?)</command-args>", re.DOTALL)
_EXIT_CODE = re.compile(r"(?:Error: )?Exit code (\d{1,9})\b")
_REFUSED = re.compile(
    r"(?:Error: )?(?:The user doesn't want to (?:proceed|take this action)|User rejected"
    r"|Claude requested permissions? to|Permission to use \S{1,80} has been denied)"
)
_INTERRUPTED = "[Request interrupted by user"
_LIMIT = re.compile(
    r"usage limit|rate.?limit|hit your .{0,20}limit|\b429\b|\b529\b|[Oo]verloaded", re.IGNORECASE
)
_FINAL_STOPS = frozenset(("end_turn", "stop_sequence", "refusal"))
_RUN_ENDS = {"success": RunEnd.FINISHED, "error_max_turns": RunEnd.LIMIT}
_NO_ANSWER_MODEL = "<synthetic>"


@dataclass(slots=True)
class ClaudeThread:
    """What is remembered of one thread, to read its next record.

    `message` is being read; `thought` is what it said before its first call. `said` is
    the last text, while nothing followed it. `goal` is the digest of the first text.
    """

    message: str = ""
    model: str = ""
    thought: Text | None = None
    said: str = ""
    goal: str = ""


@dataclass(slots=True)
class ClaudeState:
    """What is remembered of a file; below 100 KiB in practice, 2 MiB at the very most."""

    session: str = ""
    branch: str = ""
    command: str = ""
    compacted: bool = False
    cost_usd: float = 0.0
    side: str = ""
    threads: dict[str, ClaudeThread] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    paid: dict[str, Usage] = field(default_factory=dict)
    calls: Calls = field(default_factory=Calls)


def matches(sample: Sample) -> bool:
    """Records with a session and a message of blocks (Qwen's have parts)."""
    return any(_is_claude(found) for found in first_records(sample))


def _is_claude(found: dict[str, Any]) -> bool:
    kind = found.get("type")
    if kind in ("user", "assistant"):
        said = found.get("message")
        session = "sessionId" in found or ("session_id" in found and "message" in found)
        return session and not (isinstance(said, dict) and "parts" in said)
    if kind == "system" and found.get("subtype") == "init":
        return "session_id" in found and "tools" in found and "mcp_servers" in found
    if kind == "summary":
        return "leafUuid" in found
    return kind == "file-history-snapshot" and "messageId" in found


def read(line: str, state: ClaudeState) -> Sequence[TranscriptEvent]:
    """Read one record; raises `GarbledRecord` where it is no JSON."""
    rec = record_in(line, NAME)
    if rec is None:
        return [unread(NAME, "record")]
    reader = _READERS.get(rec.type) if isinstance(rec.type, str) else None
    if reader is None:
        if isinstance(rec.type, str) and rec.type in _SILENT:
            _follow_silently(rec, state)
            return ()
        return [unread(NAME, rec.type)]
    events: list[TranscriptEvent] = []
    thread = _thread_of(rec, state, events)
    reader(rec, thread, state, events)
    return events


def settle(state: ClaudeState) -> Sequence[TranscriptEvent]:
    """The texts that turned out to be the last, and the calls that nobody answered."""
    events: list[TranscriptEvent] = []
    for name, thread in state.threads.items():
        if thread.said:
            events.append(Said(name, thread.said, final=True))
            thread.said = ""
    events.extend(state.calls.drop(None, Result.UNANSWERED))
    return events


# --- Threads ----------------------------------------------------------------------------


def _thread_of(rec: ClaudeRecord, state: ClaudeState, events: list[TranscriptEvent]) -> str:
    """The name of the record's thread; opens it when it is new."""
    if rec.side is True:
        name = text(rec.agent)[:100] or _side_chain(rec, state, events)
    elif isinstance(rec.caller, str) and rec.caller:
        name = rec.caller[:100]
    else:
        name = ""
    session = text(rec.session) or text(rec.stream_session)
    if name not in state.threads or (not name and session and not state.session):
        _open(name, session, rec, state, events)
    if name:
        state.side = name
    return name


def _open(
    name: str, session: str, rec: ClaudeRecord, state: ClaudeState, events: list[TranscriptEvent]
) -> None:
    state.session = state.session or session[:200]
    state.branch = state.branch or text(rec.branch)[:200]
    state.threads.setdefault(name, ClaudeThread())
    if len(state.threads) > MAX_THREADS:
        oldest = next(key for key in state.threads if key and key != name)
        del state.threads[oldest]
    if state.session:
        events.append(
            Opened(
                name, state.session, text(rec.cwd)[:1_000],
                branch=text(rec.branch)[:200], at_utc=moment(rec.timestamp),
            )
        )  # fmt: skip


def _side_chain(rec: ClaudeRecord, state: ClaudeState, events: list[TranscriptEvent]) -> str:
    uuid, parent = text(rec.uuid)[:100], text(rec.parent)[:100]
    name = state.owners.get(parent, "") if parent else uuid
    if not name:
        # A prompt with a parent outside the side chain begins one, as do all in some versions.
        begins = rec.type == "user" and isinstance(record(rec.message).get("content"), str)
        name = uuid if begins or not state.side else state.side
        if name != uuid:
            events.append(unread(NAME, "orphan"))
    if not name:
        name = "sidechain"
    if uuid:
        state.owners[uuid] = name
        if len(state.owners) > MAX_OWNERS:
            del state.owners[next(iter(state.owners))]
    return name


def _follow_silently(rec: ClaudeRecord, state: ClaudeState) -> None:
    """Records that say nothing still are links in a side chain."""
    if rec.side is True and isinstance(rec.uuid, str) and isinstance(rec.parent, str):
        owner = state.owners.get(rec.parent[:100])
        if owner:
            state.owners[rec.uuid[:100]] = owner


# --- What people say --------------------------------------------------------------------


def _read_user(
    rec: ClaudeRecord, name: str, state: ClaudeState, events: list[TranscriptEvent]
) -> None:
    at_utc = moment(rec.timestamp)
    message = rec.message if isinstance(rec.message, dict) else None
    if message is None or "content" not in message:
        events.append(unread(NAME, "user-content"))
        return
    content = message["content"]
    if isinstance(content, str):
        _hear(content, rec, name, state, events, at_utc)
        return
    texts: list[str] = []
    for block in rows(content):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_result":
            _take_answer(block, rec, name, state, events, at_utc)
        elif kind == "text":
            texts.append(text(block.get("text")))
        elif not (isinstance(kind, str) and kind in _SILENT_BLOCKS):
            events.append(unread(NAME, kind, "block"))
    if texts:
        _hear("\n".join(texts), rec, name, state, events, at_utc)


def _hear(
    said: str,
    rec: ClaudeRecord,
    name: str,
    state: ClaudeState,
    events: list[TranscriptEvent],
    at_utc: datetime | None,
) -> None:
    """A text in a person's place: theirs, the parent agent's, or the program's own."""
    said = _without_reminders(said)
    if not said:
        return
    if rec.is_summary is True:
        state.command = ""
        if not state.compacted:
            events.append(Compacted(name, at_utc))
        state.compacted = False
    elif said.startswith(_INTERRUPTED):
        state.threads[name].said = ""
        events.extend(state.calls.drop(name, Result.INTERRUPTED))
        events.append(Waiting(name, "human", at_utc))
    elif (command := _slash_command(said)) != "":
        state.command = command
    elif said.startswith(_INJECTED):
        state.command = ""
    elif rec.is_meta is True:
        if state.command:
            _ask(f"{state.command}\n\n{said}", name, state, events, at_utc)
    elif record(rec.origin).get("kind") != "task-notification":
        _ask(said, name, state, events, at_utc)


def _without_reminders(said: str) -> str:
    return (_REMINDER.sub("", said) if "<system-reminder>" in said else said).strip()


def _slash_command(said: str) -> str:
    """`/name arguments`, of the record that a person's slash command leaves; "" of others."""
    command = _COMMAND.search(said, 0, 2_000) if "<command-name>" in said else None
    if command is None:
        return ""
    args = _COMMAND_ARGS.search(said)
    slash = command[1] if command[1].startswith("/") else f"/{command[1]}"
    return bounded(f"{slash} {args[1].strip() if args else ''}".strip())


def _ask(
    said: str,
    name: str,
    state: ClaudeState,
    events: list[TranscriptEvent],
    at_utc: datetime | None,
) -> None:
    thread = state.threads[name]
    state.command = ""
    thread.said, thread.thought = "", None
    # No call is open in a model's context when a person speaks: what was is lost.
    events.extend(state.calls.drop(name, Result.UNANSWERED))
    thread.goal = thread.goal or digest_of(said)
    events.append(Asked(name, bounded(said, SPEECH_CHARS), at_utc))


def _read_attachment(
    rec: ClaudeRecord, name: str, state: ClaudeState, events: list[TranscriptEvent]
) -> None:
    """A message that a person typed while the agent was working; all else is context."""
    found = record(rec.attachment)
    if found.get("type") == "queued_command" and found.get("commandMode", "prompt") == "prompt":
        said = prose(found.get("prompt")).strip()
        if said and not said.startswith(_INJECTED):
            state.threads[name].said = ""
            events.append(Asked(name, bounded(said, SPEECH_CHARS), moment(rec.timestamp)))


# --- What tools answer ------------------------------------------------------------------


def _take_answer(
    block: dict[str, Any],
    rec: ClaudeRecord,
    name: str,
    state: ClaudeState,
    events: list[TranscriptEvent],
    at_utc: datetime | None,
) -> None:
    call = state.calls.take(text(block.get("tool_use_id"))[:200], name)
    if call is None:
        events.append(unread(NAME, "answer-to-nothing"))
        return
    state.threads[name].said = ""
    observation = _answer_text(block.get("content"))
    structured = structured_result(rec.outcome)
    failed = block.get("is_error") is True or observation.startswith("<tool_use_error>")
    result, code = None, exit_code_of(structured.exit_code)
    if failed and _REFUSED.match(observation):
        result = Result.REJECTED
    elif structured.interrupted is True or observation.startswith(_INTERRUPTED):
        result = Result.INTERRUPTED
    elif call.by_shell and code is None:
        code = _exit_code(observation, structured, failed=failed)
    events.append(
        answered(
            call,
            observation,
            failed=failed,
            exit_code=code,
            result=result,
            edits=_edits(call, structured),
            at_utc=at_utc,
        )
    )
    if call.child and structured.status != "async_launched":
        _end_child(call, observation, state, events, at_utc, failed=failed)


def _answer_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = []
    for part in rows(content):
        shown = record(part)
        parts.append(text(shown.get("text")) or f"[{text(shown.get('type'))[:40]}]")
    return "\n".join(parts)


def _exit_code(observation: str, structured: StructuredResult, *, failed: bool) -> int | None:
    if failed:
        found = _EXIT_CODE.match(observation)
        return exit_code_of(int(found[1])) if found else None
    if structured.interrupted is None or structured.background or structured.reading:
        return None
    return 0


def _edits(call: Call, structured: StructuredResult) -> tuple[EditRange, ...]:
    """Where the patch says that lines were written; a whole file stays a whole file."""
    planned = call.step.edits
    if call.step.kind is not StepKind.EDIT or call.by_shell or (planned and planned[0].created):
        return ()
    return hunk_edits(text(structured.path), structured.hunks)


def _end_child(
    call: Call,
    claim: str,
    state: ClaudeState,
    events: list[TranscriptEvent],
    at_utc: datetime | None,
    *,
    failed: bool,
) -> None:
    """A call that started a sub-agent in the same file is answered: that one is done."""
    for name, thread in state.threads.items():
        if name and (name == call.step.key or thread.goal == call.child):
            thread.said = ""
            events.extend(state.calls.drop(name, Result.UNANSWERED))
            end = RunEnd.ERROR if failed else RunEnd.FINISHED
            events.append(Ended(name, end, bounded(claim), at_utc))
            thread.goal = "ended"
            return


# --- What the agent says and does -------------------------------------------------------


def _read_assistant(
    rec: ClaudeRecord, name: str, state: ClaudeState, events: list[TranscriptEvent]
) -> None:
    message, at_utc = record(rec.message), moment(rec.timestamp)
    if "content" not in message:
        events.append(unread(NAME, "assistant-content"))
        return
    thread = state.threads[name]
    ident = (text(message.get("id")) or text(rec.request) or text(rec.uuid))[:200]
    if ident != thread.message or not ident:
        thread.message, thread.thought = ident, None
    model = text(message.get("model"))[:100]
    if state.command and not name and model != _NO_ANSWER_MODEL:
        _ask(state.command, name, state, events, at_utc)
    if model and model not in (thread.model, _NO_ANSWER_MODEL):
        thread.model = model
        if state.session:
            cwd = text(rec.cwd)[:1_000]
            events.append(Opened(name, state.session, cwd, model, "", state.branch, at_utc))
    _pay(ident, name, record(message.get("usage")), amount(rec.cost), state, events)
    if rec.is_api_error is True:
        _take_api_error(_answer_text(message["content"]), rec, name, state, events)
    elif model != _NO_ANSWER_MODEL:
        _read_blocks(message, name, state, events, at_utc)


def _read_blocks(
    message: dict[str, Any],
    name: str,
    state: ClaudeState,
    events: list[TranscriptEvent],
    at_utc: datetime | None,
) -> None:
    content, thread = message["content"], state.threads[name]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else rows(content)
    texts: list[str] = []
    thinking = ""
    acts = False
    for block in blocks:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_use":
            words = "\n".join(texts) or ("" if thread.thought else thinking)
            if words and not acts:
                thread.thought = text_of(words)
            _make_call(block, name, state, events, at_utc)
            acts = True
        elif kind == "text":
            texts.append(text(block.get("text")))
        elif kind == "thinking":
            thinking = text(block.get("thinking"))
        elif not (isinstance(kind, str) and kind in _SILENT_BLOCKS):
            events.append(unread(NAME, kind, "block"))
    said = "\n".join(texts).strip()
    if acts:
        thread.thought, thread.said = None, ""
    elif said:
        thread.thought = text_of(said)
        _say(said, text(message.get("stop_reason")), name, state, events, at_utc)
    elif thinking and thread.thought is None:
        thread.thought = text_of(thinking)


def _say(
    said: str,
    stop: str,
    name: str,
    state: ClaudeState,
    events: list[TranscriptEvent],
    at_utc: datetime | None,
) -> None:
    if stop == "tool_use":
        return  # the call is in a record to come, with this as its thought
    thread, final = state.threads[name], stop in _FINAL_STOPS
    shown = bounded(said, SPEECH_CHARS)
    events.append(Said(name, shown, final, at_utc))
    thread.said = "" if final else bounded(said)
    if final and name:
        events.append(Ended(name, RunEnd.FINISHED, bounded(said), at_utc))
        thread.goal = "ended"


def _make_call(
    block: dict[str, Any],
    name: str,
    state: ClaudeState,
    events: list[TranscriptEvent],
    at_utc: datetime | None,
) -> None:
    tool, args = text(block.get("name")), block.get("input")
    thread = state.threads[name]
    call = begun(
        TOOLS, tool, args, text(block.get("id")),
        thread=name, made=state.calls.made, thought=thread.thought, at_utc=at_utc,
    )  # fmt: skip
    thread.thought = None
    if call.step.kind is StepKind.DELEGATE:
        call.child = digest_of(text(record(args).get("prompt")).strip())
    events.extend(state.calls.add(call))
    if call.step.kind is StepKind.ASK:
        events.append(Waiting(name, "human", at_utc))


def _pay(
    ident: str,
    name: str,
    usage: dict[str, Any],
    cost_usd: float,
    state: ClaudeState,
    events: list[TranscriptEvent],
) -> None:
    """Tell what this record says beyond what its message was already told to cost."""
    read_tokens = count(usage.get("cache_read_input_tokens"))
    fresh = count(usage.get("input_tokens")) + count(usage.get("cache_creation_input_tokens"))
    written = count(usage.get("output_tokens"))
    if not (read_tokens or fresh or written or cost_usd):
        return
    told = state.paid.pop(ident, Usage())
    more = Usage(
        max(0, fresh + read_tokens - told.input_tokens),
        max(0, written - told.output_tokens),
        max(0, read_tokens - told.cached_tokens),
        max(0.0, cost_usd - told.cost_usd),
    )
    if ident:
        state.paid[ident] = told + more
        if len(state.paid) > MAX_PAID:
            del state.paid[next(iter(state.paid))]
    if more != Usage():
        events.append(Spent(name, more))


def _take_api_error(
    said: str, rec: ClaudeRecord, name: str, state: ClaudeState, events: list[TranscriptEvent]
) -> None:
    """The model could not be reached: a limit passes by itself, the rest needs a person."""
    limited = _LIMIT.search(said[:500]) or text(rec.error) in ("rate_limit", "overloaded")
    at_utc = moment(rec.timestamp)
    state.threads[name].said = ""
    events.append(Said(name, bounded(said, SPEECH_CHARS), at_utc=at_utc))
    events.append(Waiting(name, "rate_limit" if limited else "human", at_utc))


# --- What the program says --------------------------------------------------------------


def _read_system(
    rec: ClaudeRecord, name: str, state: ClaudeState, events: list[TranscriptEvent]
) -> None:
    at_utc = moment(rec.timestamp)
    if rec.subtype == "compact_boundary":
        state.compacted = True
        events.append(Compacted(name, at_utc))
    elif rec.subtype in ("turn_duration", "stop_hook_summary"):
        thread = state.threads[name]
        if thread.said:
            events.append(Said(name, thread.said, final=True, at_utc=at_utc))
            thread.said = ""
    elif rec.subtype in ("api_error", "error"):
        error = record(rec.error)
        if count(error.get("status")) in (429, 529) or _LIMIT.search(text(error.get("message"))):
            events.append(Waiting(name, "rate_limit", at_utc))
    elif rec.subtype == "init" and text(rec.model) and state.session:
        model = state.threads[name].model = text(rec.model)[:100]
        events.append(Opened(name, state.session, text(rec.cwd)[:1_000], model, at_utc=at_utc))


def _read_result(
    rec: ClaudeRecord, name: str, state: ClaudeState, events: list[TranscriptEvent]
) -> None:
    """The last record of `stream-json`: the run is over. Those without subtype are a cache's."""
    if not isinstance(rec.subtype, str):
        return
    claim, total = text(rec.result), amount(rec.total_cost)
    if total > state.cost_usd:
        events.append(Spent(name, Usage(cost_usd=total - state.cost_usd)))
        state.cost_usd = total
    state.threads[name].said = ""
    events.extend(state.calls.drop(None, Result.UNANSWERED))
    if claim:
        events.append(Said(name, bounded(claim, SPEECH_CHARS), final=True))
    end = _RUN_ENDS.get(rec.subtype, RunEnd.ERROR)
    events.append(Ended(name, end, bounded(claim or rec.subtype), moment(rec.timestamp)))


def _read_loose_call(
    rec: ClaudeRecord, name: str, state: ClaudeState, events: list[TranscriptEvent]
) -> None:
    """A call as a record of its own, as early versions wrote it."""
    block = {"name": rec.name, "input": rec.input}
    _make_call(block, name, state, events, moment(rec.timestamp))


def _read_loose_answer(
    rec: ClaudeRecord, name: str, state: ClaudeState, events: list[TranscriptEvent]
) -> None:
    _take_answer({"content": rec.output}, rec, name, state, events, moment(rec.timestamp))


_Reader = Callable[[ClaudeRecord, str, ClaudeState, list[TranscriptEvent]], None]

_READERS: dict[str, _Reader] = {
    "user": _read_user,
    "assistant": _read_assistant,
    "system": _read_system,
    "attachment": _read_attachment,
    "result": _read_result,
    "tool_use": _read_loose_call,
    "tool_result": _read_loose_answer,
}

FORMAT = LineFormat(NAME, matches, ClaudeState, ClaudeState, read, settle)
