"""A record of Claude Code as it stands in its files, and the tools that it calls.

Only the fields that are looked at are decoded. The structured double of a tool's answer
(`toolUseResult`), half of a file's bytes, stays undecoded until its few fields are wanted.
"""

from typing import Any

import msgspec

from custosd.adapters.transcripts.calls import Tool
from custosd.adapters.transcripts.fields import decoded
from custosd.core.transcript import StepKind

_S = StepKind
TOOLS = {
    "bash": Tool(_S.RUN, command="command"),
    "bashoutput": Tool(_S.READ),
    "taskoutput": Tool(_S.READ),
    "killbash": Tool(_S.RUN, "kill", acts=True),
    "killshell": Tool(_S.RUN, "kill", acts=True),
    "taskstop": Tool(_S.RUN, "kill", acts=True),
    "read": Tool(_S.READ),
    "notebookread": Tool(_S.READ, "read"),
    "edit": Tool(_S.EDIT),
    "multiedit": Tool(_S.EDIT, "edit"),
    "notebookedit": Tool(_S.EDIT, "edit"),
    "write": Tool(_S.EDIT, creates=True),
    "glob": Tool(_S.SEARCH),
    "grep": Tool(_S.SEARCH),
    "ls": Tool(_S.SEARCH),
    "lsp": Tool(_S.SEARCH),
    "toolsearch": Tool(_S.SEARCH),
    "webfetch": Tool(_S.BROWSE),
    "websearch": Tool(_S.BROWSE),
    "todowrite": Tool(_S.PLAN),
    "todoread": Tool(_S.PLAN),
    "taskcreate": Tool(_S.PLAN),
    "taskupdate": Tool(_S.PLAN),
    "taskget": Tool(_S.PLAN),
    "tasklist": Tool(_S.PLAN),
    "enterplanmode": Tool(_S.PLAN),
    "task": Tool(_S.DELEGATE),
    "agent": Tool(_S.DELEGATE),
    "sendmessage": Tool(_S.DELEGATE),
    "exitplanmode": Tool(_S.ASK),
    "askuserquestion": Tool(_S.ASK),
}


class ClaudeRecord(msgspec.Struct, gc=False):
    """The fields of a record that are looked at; the others are not even decoded."""

    type: Any = None
    subtype: Any = None
    uuid: Any = None
    parent: Any = msgspec.field(default=None, name="parentUuid")
    side: Any = msgspec.field(default=None, name="isSidechain")
    agent: Any = msgspec.field(default=None, name="agentId")
    caller: Any = msgspec.field(default=None, name="parent_tool_use_id")
    session: Any = msgspec.field(default=None, name="sessionId")
    stream_session: Any = msgspec.field(default=None, name="session_id")
    timestamp: Any = None
    cwd: Any = None
    branch: Any = msgspec.field(default=None, name="gitBranch")
    message: Any = None
    outcome: Any = msgspec.field(default=None, name="toolUseResult")
    is_meta: Any = msgspec.field(default=None, name="isMeta")
    is_summary: Any = msgspec.field(default=None, name="isCompactSummary")
    is_api_error: Any = msgspec.field(default=None, name="isApiErrorMessage")
    request: Any = msgspec.field(default=None, name="requestId")
    cost: Any = msgspec.field(default=None, name="costUSD")
    total_cost: Any = msgspec.field(default=None, name="total_cost_usd")
    origin: Any = None
    attachment: Any = None
    error: Any = None
    model: Any = None
    result: Any = None
    name: Any = None
    input: Any = None
    output: Any = None


class _Strict(ClaudeRecord, gc=False):
    """As decoded at once: the bulky double of the result stays undecoded."""

    outcome: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="toolUseResult")


class StructuredResult(msgspec.Struct, gc=False):
    """What `toolUseResult` says beyond the text that the agent saw."""

    hunks: Any = msgspec.field(default=None, name="structuredPatch")
    path: Any = msgspec.field(default=None, name="filePath")
    interrupted: Any = None
    status: Any = None
    exit_code: Any = msgspec.field(default=None, name="exitCode")
    background: Any = msgspec.field(default=None, name="backgroundTaskId")
    reading: Any = msgspec.field(default=None, name="returnCodeInterpretation")


_decoder = msgspec.json.Decoder(_Strict)
# Not used itself: with it `convert` knows the type before several threads ask at once.
_loose_decoder = msgspec.json.Decoder(ClaudeRecord)
_structured_decoder = msgspec.json.Decoder(StructuredResult)
_NOT_STRUCTURED = StructuredResult()


def record_in(line: str, what: str) -> ClaudeRecord | None:
    """The record in a line; None for JSON that is no object; raises `GarbledRecord`."""
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, ValueError, RecursionError):
        loose = decoded(line, what)
        return msgspec.convert(loose, ClaudeRecord) if isinstance(loose, dict) else None


def structured_result(outcome: Any) -> StructuredResult:
    """The structured double of an answer; empty where it is a text, or none."""
    if isinstance(outcome, msgspec.Raw):
        try:
            return _structured_decoder.decode(outcome)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return _NOT_STRUCTURED
    if isinstance(outcome, dict):
        return msgspec.convert(outcome, StructuredResult)
    return _NOT_STRUCTURED
