"""Codex rollouts: `sessions/…/rollout-*.jsonl` of all versions.

Laws:

1. What a person or the agent said stands twice in a rollout, as an event and as an item
   for the model. It is told once, by whichever comes first; once a rollout has shown
   such events, the items are known to be the echo (and hold injected context besides).
2. Token counts are totals: what is told is how much they grew.
3. An aborted turn interrupts its open calls and leaves the agent waiting for a person;
   the run goes on with the next prompt.

Before 0.32 records had no envelope: an item is a record of its own. Early builds wrote
calls without an id: their answers belong to the oldest open call of that name.
"""

import re
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from custosd.adapters.transcripts.calls import (
    SPEECH_CHARS,
    Call,
    Calls,
    Tool,
    answered,
    begun,
    whole_file,
)
from custosd.adapters.transcripts.fields import (
    Record,
    count,
    decoded,
    exit_code_of,
    moment,
    prose,
    record,
    rows,
    text,
)
from custosd.adapters.transcripts.format import GarbledRecord, LineFormat, Sample
from custosd.adapters.transcripts.patches import diff_edits, envelope_edits
from custosd.adapters.transcripts.sampling import first_records, unread
from custosd.core.effects import bounded, text_of
from custosd.core.transcript import (
    Asked,
    Compacted,
    EditRange,
    Opened,
    Result,
    Said,
    Spent,
    StepKind,
    Text,
    TranscriptEvent,
    Usage,
    Waiting,
    digest_of,
)

NAME = "codex"

MAX_ECHOES = 16

_S = StepKind
TOOLS = {
    "shell": Tool(_S.RUN),
    "container.exec": Tool(_S.RUN, "shell"),
    "local_shell": Tool(_S.RUN, "shell"),
    "shell_command": Tool(_S.RUN, "shell", command="command"),
    "run_shell_command": Tool(_S.RUN, "shell", command="command"),
    "exec_command": Tool(_S.RUN, "shell", command="cmd"),
    "unified_exec": Tool(_S.RUN, "shell", command="cmd"),
    "write_stdin": Tool(_S.RUN, acts=True),
    "apply_patch": Tool(_S.EDIT),
    "view_image": Tool(_S.READ),
    "read_file": Tool(_S.READ),
    "list_dir": Tool(_S.SEARCH),
    "grep_files": Tool(_S.SEARCH),
    "tool_search": Tool(_S.SEARCH),
    "web_search": Tool(_S.BROWSE),
    "update_plan": Tool(_S.PLAN),
    "spawn_agent": Tool(_S.DELEGATE),
    "send_input": Tool(_S.DELEGATE),
    "wait": Tool(_S.DELEGATE),
    "wait_agent": Tool(_S.DELEGATE),
    "close_agent": Tool(_S.DELEGATE),
    "resume_agent": Tool(_S.DELEGATE),
    "request_user_input": Tool(_S.ASK),
}

_ENVELOPES = frozenset(
    (
        *("session_meta", "turn_context", "response_item", "event_msg", "compacted", "world_state"),
        *("inter_agent_communication_metadata",),
    )
)
_SHELLS = re.compile(r"(?:/\S*/)?(?:ba|z|da|k)?sh\Z")
_INJECTED = re.compile(r"<[a-z_ -]{3,40}>|<INSTRUCTIONS>|# AGENTS\.md instructions|Caveat: ")
_EXIT_CODE = re.compile(
    r"(?:Process exited with code|[Ee]xit code:?)[ ]{0,3}(-?\d{1,9})\b", re.MULTILINE
)
_SANDBOX = re.compile(r"failed in sandbox .{0,200}?exit code: (\d{1,9}), stdout: ", re.DOTALL)
_REFUSED = re.compile(
    r"(?:patch|exec command|command|tool call|user)? ?(?:rejected|denied|declined) by (?:the )?user"
    r"|user rejected|aborted by user before approval"
)
_ABORTED = re.compile(r"aborted\b|.{0,60}aborted by user", re.DOTALL)
_LIMIT = re.compile(r"usage.?limit|rate.?limit|\b429\b|overloaded|too many requests", re.IGNORECASE)
_REQUEST_MARK = "\n## My request for Codex:"
_HEAD_CHARS = 400
"""How far into an answer its own preamble (exit code, wall time) reaches."""


@dataclass(slots=True)
class CodexState:
    """What is remembered of a rollout; below 20 KiB, a few more for each open call.

    `heard_events` and `said_events`: the rollout tells what people, and what the agent,
    says by events. `echoes` are digests of what was told and may still be repeated.
    """

    session: str = ""
    cwd: str = ""
    model: str = ""
    branch: str = ""
    heard_events: bool = False
    said_events: bool = False
    said: str = ""
    compacted: str = ""
    thought: Text | None = None
    total: Usage = field(default_factory=Usage)
    echoes: dict[str, str] = field(default_factory=dict)
    calls: Calls = field(default_factory=Calls)


def matches(sample: Sample) -> bool:
    """An envelope with a payload, or the bare items of the first versions."""
    return any(_is_codex(found) for found in first_records(sample))


def _is_codex(found: Record) -> bool:
    kind = found.get("type")
    if isinstance(kind, str) and kind in _ENVELOPES:
        return isinstance(found.get("payload"), dict)
    if found.get("record_type") == "state":
        return True
    dated = "timestamp" in found or "created_at" in found
    if kind is None:
        begins = "instructions" in found and "id" in found and "timestamp" in found
        early = found.get("role") == "user" and "model" in found and dated
        return begins or early
    if kind == "message" and isinstance(found.get("content"), list):
        parts = [record(part).get("type") for part in found["content"]]
        return "role" in found and bool({"input_text", "output_text"}.intersection(parts))
    return kind == "function_call" and "arguments" in found and "call_id" in found


def read(line: str, state: CodexState) -> Sequence[TranscriptEvent]:
    """Read one record; raises `GarbledRecord` where it is no JSON."""
    found = decoded(line, NAME)
    if not isinstance(found, dict):
        return [unread(NAME, "record")]
    at_utc = moment(found.get("timestamp") or found.get("created_at"))
    kind, payload = found.get("type"), found.get("payload")
    if not (isinstance(kind, str) and kind in _ENVELOPES and isinstance(payload, dict)):
        return _read_bare(found, state, at_utc)
    what = payload.get("type")
    if kind == "response_item":
        reader = _ITEMS.get(what) if isinstance(what, str) else None
    elif kind == "event_msg":
        reader = _EVENTS.get(what) if isinstance(what, str) else None
    else:
        reader, what = _RECORDS[kind], kind
    if reader is None:
        return [unread(NAME, what, "event" if kind == "event_msg" else "item")]
    return reader(payload, state, at_utc)


def settle(state: CodexState) -> Sequence[TranscriptEvent]:
    """The text that turned out to be the last, and the calls that nobody answered."""
    events: list[TranscriptEvent] = []
    if state.said:
        events.append(Said("", state.said, final=True))
        state.said = ""
    return [*events, *state.calls.drop(None, Result.UNANSWERED)]


def _read_bare(
    found: Record, state: CodexState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    """A record without envelope: an item, or the file's head."""
    kind = found.get("type")
    if "record_type" in found:
        return ()
    if kind is None and "role" in found:
        kind = "message"
        content = found.get("content", found.get("message"))
        found = {"role": found["role"], "content": content}
    elif kind is None and isinstance(found.get("id"), str):
        return _read_meta(found, state, at_utc)
    reader = _ITEMS.get(kind) if isinstance(kind, str) else None
    if reader is None and isinstance(kind, str):
        reader = _EVENTS.get(kind) if kind == "error" else None
    if reader is None:
        return [unread(NAME, kind)]
    return reader(found, state, at_utc)


# --- The session ------------------------------------------------------------------------


def _read_meta(
    payload: Record, state: CodexState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    """The first names the session; those after it are of the session it was forked from."""
    if state.session:
        return ()
    state.session = text(payload.get("id"))[:200]
    state.cwd = text(payload.get("cwd"))[:1_000]
    state.branch = text(record(payload.get("git")).get("branch"))[:200]
    spawned = record(record(record(payload.get("source")).get("subagent")).get("thread_spawn"))
    parent = text(spawned.get("parent_thread_id"))[:200]
    if not state.session:
        return [unread(NAME, "session_meta")]
    return [Opened("", state.session, state.cwd, "", parent, state.branch, at_utc)]


def _read_turn_context(
    payload: Record, state: CodexState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    model = text(payload.get("model"))[:100]
    if not model or model == state.model or not state.session:
        return ()
    state.model = model
    cwd = text(payload.get("cwd"))[:1_000] or state.cwd
    return [Opened("", state.session, cwd, model, "", state.branch, at_utc)]


def _compacted(
    source: str, state: CodexState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    """A compaction is a record, and of late an event too; a pair is one."""
    if state.compacted not in ("", source):
        state.compacted = ""
        return ()
    state.compacted = source
    return [Compacted("", at_utc)]


def _read_compacted_record(
    _: Record, state: CodexState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    return _compacted("record", state, at_utc)


def _read_compacted_event(
    _: Record, state: CodexState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    return _compacted("event", state, at_utc)


def _skip(_: Record, __: CodexState, ___: datetime | None) -> Sequence[TranscriptEvent]:
    return ()


# --- What is said -----------------------------------------------------------------------


def _told(said: str, source: str, state: CodexState) -> bool:
    """Whether the same was told from the other source, just before."""
    digest = digest_of(said)
    if state.echoes.get(digest, source) != source:
        del state.echoes[digest]
        return True
    state.echoes[digest] = source
    if len(state.echoes) > MAX_ECHOES:
        del state.echoes[next(iter(state.echoes))]
    return False


def _read_message(
    payload: Record, state: CodexState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    said = prose(payload.get("content")).strip()
    role = payload.get("role")
    if not said:
        return ()
    if role == "assistant":
        phase = payload.get("phase")
        if phase != "final_answer" and (state.said_events or _told(said, "item", state)):
            return ()
        return _say(said, state, at_utc, final=phase == "final_answer")
    if role != "user" or state.heard_events or _INJECTED.match(said):
        return ()
    return () if _told(said, "item", state) else _ask(said, state, at_utc)


def _read_user_message(
    payload: Record, state: CodexState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    state.heard_events = True
    said = prose(payload.get("message")).strip()
    if not said or _told(said, "event", state):
        return ()
    return _ask(said, state, at_utc)


def _ask(said: str, state: CodexState, at_utc: datetime | None) -> Sequence[TranscriptEvent]:
    state.said, state.thought = "", None
    lost = state.calls.drop("", Result.UNANSWERED)
    # Editors put open tabs and selections before the request itself.
    request = said.rpartition(_REQUEST_MARK)[2].strip() or said
    return [*lost, Asked("", bounded(request, SPEECH_CHARS), at_utc)]


def _read_agent_message(
    payload: Record, state: CodexState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    state.said_events = True
    said = prose(payload.get("message")).strip()
    if not said or _told(said, "event", state):
        return ()
    return _say(said, state, at_utc)


def _say(
    said: str, state: CodexState, at_utc: datetime | None, *, final: bool = False
) -> Sequence[TranscriptEvent]:
    state.said = "" if final else bounded(said)
    state.thought = text_of(said)
    return [Said("", bounded(said, SPEECH_CHARS), final, at_utc)]


def _read_reasoning(
    payload: Record, state: CodexState, _: datetime | None
) -> Sequence[TranscriptEvent]:
    said = prose(payload.get("summary")) or text(payload.get("text"))
    if said:
        state.thought = text_of(said)
    return ()


def _read_task_complete(
    payload: Record, state: CodexState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    """The turn is over: the last message is told again, as final."""
    said = text(payload.get("last_agent_message")).strip() or state.said
    state.said = ""
    lost = state.calls.drop("", Result.UNANSWERED)
    spent = _grown(record(payload.get("usage")), state)
    if not said:
        return [*lost, *spent]
    return [*lost, *spent, Said("", bounded(said, SPEECH_CHARS), final=True, at_utc=at_utc)]


def _read_turn_aborted(
    _: Record, state: CodexState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    state.said = ""
    return [*state.calls.drop("", Result.INTERRUPTED), Waiting("", "human", at_utc)]


def _read_error(
    payload: Record, state: CodexState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    """The turn could not go on: a limit passes by itself, the rest needs a person."""
    error = record(payload.get("error"))
    said = text(payload.get("message")) or text(error.get("message")) or text(payload.get("text"))
    kind = text(payload.get("codex_error_info")) or text(error.get("kind"))
    state.said = ""
    limited = _LIMIT.search(f"{kind} {said[:500]}") is not None
    return [Waiting("", "rate_limit" if limited else "human", at_utc)]


def _read_approval(_: Record, __: CodexState, at_utc: datetime | None) -> Sequence[TranscriptEvent]:
    return [Waiting("", "permission", at_utc)]


def _read_question(_: Record, __: CodexState, at_utc: datetime | None) -> Sequence[TranscriptEvent]:
    return [Waiting("", "human", at_utc)]


# --- What it costs ----------------------------------------------------------------------


def _read_token_count(
    payload: Record, state: CodexState, _: datetime | None
) -> Sequence[TranscriptEvent]:
    info = record(payload.get("info"))
    return _grown(record(info.get("total_token_usage")) or info, state)


def _grown(usage: Record, state: CodexState) -> Sequence[TranscriptEvent]:
    """How much the total grew; a total that fell began anew."""
    total = usage_of(usage)
    more = growth(state.total, total)
    if more is None:
        return ()
    state.total = total
    return [Spent("", more)]


def usage_of(usage: Record) -> Usage:
    """Input counts what came from the cache; names of all versions."""
    return Usage(
        count(usage.get("input_tokens", usage.get("prompt"))),
        count(usage.get("output_tokens", usage.get("completion"))),
        count(usage.get("cached_input_tokens")),
    )


def growth(before: Usage, now: Usage) -> Usage | None:
    """What a running total grew by; all of it when it began anew; None when it did not grow."""
    if now in (before, Usage()):
        return None
    more = Usage(
        now.input_tokens - before.input_tokens,
        now.output_tokens - before.output_tokens,
        now.cached_tokens - before.cached_tokens,
    )
    return now if min(more.input_tokens, more.output_tokens, more.cached_tokens) < 0 else more


# --- What is done -----------------------------------------------------------------------


def _read_call(
    payload: Record, state: CodexState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    """A call of any of its forms: arguments are an object, or a string of JSON, or free."""
    name = text(payload.get("name")) or text(record(payload.get("function")).get("name"))
    if server := text(payload.get("namespace")):
        name = f"{server}__{name}"
    args: Any = payload.get("arguments", payload.get("input", payload.get("action")))
    if isinstance(args, str) and args.lstrip().startswith("{"):
        with suppress(GarbledRecord):  # free text that happens to begin like an object
            args = decoded(args, NAME)
    key = text(payload.get("call_id")) or (text(payload.get("id")) if not name else "")
    return _add_call(name or text(payload.get("type")), args, key, state, at_utc)


def _add_call(
    name: str, args: Any, key: str, state: CodexState, at_utc: datetime | None
) -> list[TranscriptEvent]:
    tool = name.removesuffix("_call")
    call = begun(
        TOOLS, tool, args, key, command=command_line(record(args).get("command")),
        made=state.calls.made, thought=state.thought, at_utc=at_utc,
    )  # fmt: skip
    if tool == "apply_patch":
        _plan_patch(call, args)
    state.thought, state.said = None, ""
    return [*state.calls.add(call)]


def command_line(command: Any) -> str:
    """The shell line of a command: a string, a shell with its script, or words."""
    if isinstance(command, str):
        return command
    words = [word for word in rows(command) if isinstance(word, str)]
    if len(words) == 3 and words[1] in ("-lc", "-c") and _SHELLS.match(words[0]):  # noqa: PLR2004 - shell, -c, script
        return words[2]
    if len(words) == 2 and words[0] == "apply_patch":  # noqa: PLR2004 - program, patch
        return f"apply_patch <<'EOF'\n{words[1]}\nEOF"
    return shlex.join(words)


def _plan_patch(call: Call, args: Any) -> None:
    patch = args if isinstance(args, str) else text(record(args).get("input"))
    edits = envelope_edits(patch)
    files = tuple(dict.fromkeys(edit.path for edit in edits))
    call.step = replace(call.step, files=files, edits=edits)


def _read_answer(
    payload: Record, state: CodexState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    key, name = text(payload.get("call_id"))[:200], text(payload.get("name"))
    call = state.calls.take(key, tool=name[:200])
    if call is None:
        return [unread(NAME, "answer-to-nothing")]
    state.said = ""
    value = payload.get("output", payload.get("result", payload.get("tools")))
    answer = _answer_of(value)
    return [_answered(call, answer, at_utc)]


@dataclass(slots=True)
class _Answer:
    shown: str
    exit_code: int | None = None
    failed: bool | None = None


def _answer_of(value: Any) -> _Answer:
    """Of 0.2x to 0.6x a string of JSON, later plain text, an object, or a list of parts."""
    if isinstance(value, str):
        if value.startswith('{"'):
            try:
                inner = decoded(value, NAME)
            except GarbledRecord:
                return _Answer(value)
            if isinstance(inner, dict) and "output" in inner:
                return _answer_of(inner)
            return _Answer(value)
        code_said = _SANDBOX.match(value) or _EXIT_CODE.search(value, 0, _HEAD_CHARS)
        return _Answer(value, int(code_said[1]) if code_said else None)
    if isinstance(value, list):
        return _answer_of(prose(value) or "[image]") if value else _Answer("")
    found = record(value)
    meta = record(found.get("metadata"))
    code = exit_code_of(meta.get("exit_code", found.get("exit_code", found.get("exitCode"))))
    success = found.get("success")
    shown = found.get("output", found.get("content", found.get("stdout")))
    said = prose(shown) + (text(found.get("stderr")) if "stderr" in found else "")
    return _Answer(said, code, None if not isinstance(success, bool) else not success)


def _answered(call: Call, answer: _Answer, at_utc: datetime | None) -> TranscriptEvent:
    """A shell's answer without exit code was made by the program, not by the command."""
    head = answer.shown[:_HEAD_CHARS]
    result = None
    if answer.exit_code is None and _REFUSED.match(head):
        result = Result.REJECTED
    elif answer.exit_code is None and _ABORTED.match(head):
        result = Result.INTERRUPTED
    failed = answer.failed
    if failed is None and not call.by_shell:
        complains = head.startswith(("apply_patch verification failed", "failed", "Error", "err:"))
        failed = bool(answer.exit_code) or complains or "tool call error" in head
    code = answer.exit_code if answer.exit_code is not None else call.step.exit_code
    return answered(call, answer.shown, failed=failed, exit_code=code, result=result, at_utc=at_utc)


def _read_web_search(
    payload: Record, state: CodexState, at_utc: datetime | None
) -> Sequence[TranscriptEvent]:
    """A search on the provider's side: call and answer in one record."""
    key = text(payload.get("id"))
    call = begun(
        TOOLS, text(payload.get("type")).removesuffix("_call"), payload.get("action"), key,
        made=state.calls.made, thought=state.thought, at_utc=at_utc,
    )  # fmt: skip
    state.thought = None
    state.calls.made += 1
    failed = payload.get("status") not in ("completed", "open", None)
    return [answered(call, "", failed=failed, at_utc=at_utc)]


def _read_exec_end(
    payload: Record, state: CodexState, _: datetime | None
) -> Sequence[TranscriptEvent]:
    """An event that knows the exit code of a call which is about to be answered."""
    call = state.calls.waiting.get(text(payload.get("call_id"))[:200])
    code = exit_code_of(payload.get("exit_code"))
    if call is not None and code is not None:
        call.step = replace(call.step, exit_code=code)
    return ()


def _read_patch_end(
    payload: Record, state: CodexState, _: datetime | None
) -> Sequence[TranscriptEvent]:
    """An event that knows the lines which a patch wrote, before the call is answered."""
    call = state.calls.waiting.get(text(payload.get("call_id"))[:200])
    if call is None or payload.get("success") is False:
        return ()
    edits: list[EditRange] = []
    for path, change in list(record(payload.get("changes")).items())[:50]:
        edits.extend(change_edits(path[:1_000], record(change)))
    if edits:
        files = tuple(dict.fromkeys(edit.path for edit in edits))
        call.step = replace(call.step, edits=tuple(edits[:50]), files=files)
    return ()


def change_edits(path: str, change: Record) -> tuple[EditRange, ...]:
    """The edits of one file's change: {"type": "add" | "update" | "delete", …}."""
    kind = change.get("type") or change.get("kind")
    inner = record(change.get(kind)) if isinstance(kind, str) and kind in change else change
    if kind == "add":
        return (whole_file(path, text(inner.get("content"))),)
    moved = text(inner.get("move_path"))[:1_000]
    return diff_edits(moved or path, text(inner.get("unified_diff"))) or (EditRange(moved or path),)


_Reader = Callable[[Record, CodexState, datetime | None], Sequence[TranscriptEvent]]

_RECORDS: dict[str, _Reader] = {
    "session_meta": _read_meta,
    "turn_context": _read_turn_context,
    "compacted": _read_compacted_record,
    "world_state": _skip,
    "inter_agent_communication_metadata": _skip,
}
_ITEMS: dict[str, _Reader] = {
    "message": _read_message,
    "agent_message": _skip,
    "reasoning": _read_reasoning,
    "function_call": _read_call,
    "custom_tool_call": _read_call,
    "local_shell_call": _read_call,
    "tool_search_call": _read_call,
    "tool_call": _read_call,
    "function_call_output": _read_answer,
    "custom_tool_call_output": _read_answer,
    "local_shell_call_output": _read_answer,
    "tool_search_output": _read_answer,
    "mcp_tool_call_output": _read_answer,
    "tool_result": _read_answer,
    "function_result": _read_answer,
    "web_search_call": _read_web_search,
    "image_generation_call": _read_web_search,
    "ghost_snapshot": _skip,
    "compaction": _skip,
    "compaction_summary": _skip,
    "world_state": _skip,
    "session_meta": _read_meta,
    "other": _skip,
}
_EVENTS: dict[str, _Reader] = {
    "user_message": _read_user_message,
    "agent_message": _read_agent_message,
    "agent_reasoning": _skip,
    "agent_reasoning_raw_content": _skip,
    "agent_reasoning_section_break": _skip,
    "token_count": _read_token_count,
    "task_complete": _read_task_complete,
    "turn_complete": _read_task_complete,
    "turn.completed": _read_task_complete,
    "turn_aborted": _read_turn_aborted,
    "context_compacted": _read_compacted_event,
    "error": _read_error,
    "exec_approval_request": _read_approval,
    "apply_patch_approval_request": _read_approval,
    "request_permissions": _read_approval,
    "request_user_input": _read_question,
    "elicitation_request": _read_question,
    "exec_command_end": _read_exec_end,
    "patch_apply_end": _read_patch_end,
    **dict.fromkeys(
        (
            *(
                "task_started",
                "turn_started",
                "turn_diff",
                "plan_update",
                "background_event",
                "warning",
            ),
            *(
                "stream_error",
                "exec_command_begin",
                "exec_command_output_delta",
                "patch_apply_begin",
            ),
            *("mcp_tool_call_begin", "mcp_tool_call_end", "web_search_begin", "web_search_end"),
            *("image_generation_begin", "image_generation_end", "view_image_tool_call"),
            *("item_started", "item_completed", "thread_settings_applied", "thread_name_updated"),
            *("thread_goal_updated", "thread_rolled_back", "entered_review_mode"),
            *("exited_review_mode", "guardian_assessment", "sub_agent_activity", "undo_started"),
            *("undo_completed", "dynamic_tool_call_request", "dynamic_tool_call_response"),
            *("collab_agent_spawn_begin", "collab_agent_spawn_end", "collab_waiting_begin"),
            *("collab_waiting_end", "collab_close_begin", "collab_close_end", "shutdown_complete"),
            *(
                "collab_agent_interaction_begin",
                "collab_agent_interaction_end",
                "deprecation_notice",
            ),
            *("collab_resume_begin", "collab_resume_end", "session_configured", "model_reroute"),
            *("codex/event/raw_item", "account/rateLimits/updated", "raw_response_item"),
        ),
        _skip,
    ),
}

FORMAT = LineFormat(NAME, matches, CodexState, CodexState, read, settle)
