"""Writes transcripts as the makers' own agents do, so that the demonstration is a real one.

Each writer takes the same four calls and appends to (or, for Gemini CLI, rewrites) one file
in its maker's format. Standard library only: the demonstration's agents are strangers to
the daemon, and share nothing with it but these files.
"""

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Action:
    """What an agent does, in no maker's words.

    "shell" runs `command`; "read" shows the file at `path`; "write" makes it anew with
    `text`; "extend" puts `text` behind its `lines` lines, of which `last` is the last one.
    """

    key: str
    tool: Literal["shell", "read", "write", "extend"]
    command: str = ""
    path: str = ""
    text: str = ""
    lines: int = 0
    last: str = ""

    @property
    def added(self) -> list[str]:
        """The lines of `text`."""
        return self.text.splitlines()


class Writer(Protocol):
    """One agent's transcript."""

    def asked(self, text: str) -> None:
        """A person said this."""
        ...

    def said(self, text: str, *, final: bool = False) -> None:
        """The agent said this; `final`: and ended its turn."""
        ...

    def began(self, action: Action) -> None:
        """The agent began an action."""
        ...

    def answered(self, action: Action, output: str, exit_code: int | None) -> None:
        """The action ended; `exit_code` is None for what is no command."""
        ...


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Lines:
    """A file that grows by records, one a line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def append(self, record: Json) -> None:
        """Add a line. One write: a reader sees whole lines, or one that is not finished yet."""
        with self.path.open("ab", buffering=0) as file:
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


class CustosdWriter:
    """custosd's own format; see daemon/TRANSCRIPTS.md."""

    def __init__(self, folder: Path, name: str, workspace: Path) -> None:
        self.file = Lines(folder / f"{name}.jsonl")
        self._name = name
        self._workspace = workspace
        self._open = False

    def asked(self, text: str) -> None:
        """See `Writer`. The first thing asked is the goal, in the header."""
        if self._open:
            self.file.append({"type": "ask", "text": text, "at": _now()})
            return
        self._open = True
        header = {"custosd": 1, "session": f"{self._name}-1", "agent": self._name, "goal": text}
        self.file.append(header | {"cwd": str(self._workspace), "at": _now()})

    def said(self, text: str, *, final: bool = False) -> None:
        """See `Writer`."""
        self.file.append({"type": "say", "text": text, "final": final, "at": _now()})

    def began(self, action: Action) -> None:
        """See `Writer`."""
        call: Json = {"type": "call", "id": action.key, "tool": action.tool, "at": _now()}
        match action.tool:
            case "shell":
                more: Json = {"action": action.command}
            case "read":
                more = {"action": {"path": action.path}, "kind": "read", "files": [action.path]}
            case "write":
                edit: Json = {"path": action.path, "created": True, "content": action.text}
                more = {"action": {"path": action.path}, "kind": "edit", "edits": [edit]}
            case "extend":
                first, last = action.lines + 1, action.lines + len(action.added)
                edit = {"path": action.path, "first_line": first, "last_line": last}
                edit["content"] = action.text
                more = {"action": {"path": action.path}, "kind": "edit", "edits": [edit]}
        self.file.append(call | more)

    def answered(self, action: Action, output: str, exit_code: int | None) -> None:
        """See `Writer`."""
        answer: Json = {"type": "answer", "id": action.key, "observation": output}
        outcome: Json = {"ok": True} if exit_code is None else {"exit_code": exit_code}
        self.file.append(answer | outcome | {"at": _now()})


class CodexWriter:
    """A Codex rollout. Whatever it does with files, it does in its shell."""

    def __init__(self, folder: Path, name: str, workspace: Path) -> None:
        day = datetime.now(UTC)
        stamp = day.strftime("%Y-%m-%dT%H-%M-%S")
        self.file = Lines(folder / day.strftime("%Y/%m/%d") / f"rollout-{stamp}-{name}.jsonl")
        meta = {
            "id": name,
            "timestamp": _now(),
            "cwd": str(workspace),
            "originator": "codex_cli_rs",
            "cli_version": "0.40.0",
        }
        self._record("session_meta", meta)
        self._record("turn_context", {"cwd": str(workspace), "model": "demonstration"})

    def _record(self, kind: str, payload: Json) -> None:
        self.file.append({"timestamp": _now(), "type": kind, "payload": payload})

    def asked(self, text: str) -> None:
        """See `Writer`."""
        content = [{"type": "input_text", "text": text}]
        self._record("response_item", {"type": "message", "role": "user", "content": content})
        self._record("event_msg", {"type": "user_message", "message": text})

    def said(self, text: str, *, final: bool = False) -> None:
        """See `Writer`."""
        content = [{"type": "output_text", "text": text}]
        message = {"type": "message", "role": "assistant", "content": content}
        self._record("event_msg", {"type": "agent_message", "message": text})
        self._record("response_item", message)
        if final:
            self._record("event_msg", {"type": "task_complete", "last_agent_message": text})

    def began(self, action: Action) -> None:
        """See `Writer`."""
        match action.tool:
            case "shell":
                line = action.command
            case "read":
                line = f"cat {action.path}"
            case "write":
                line = _patch(f"Add File: {action.path}", action.added)
            case "extend":
                line = _patch(f"Update File: {action.path}", action.added, f"@@\n {action.last}\n")
        arguments = json.dumps({"command": ["bash", "-lc", line]})
        call = {"type": "function_call", "name": "shell", "call_id": action.key}
        self._record("response_item", call | {"arguments": arguments})

    def answered(self, action: Action, output: str, exit_code: int | None) -> None:
        """See `Writer`."""
        metadata = {"exit_code": exit_code or 0, "duration_seconds": 0.1}
        answer = {"type": "function_call_output", "call_id": action.key}
        told = json.dumps({"output": output, "metadata": metadata})
        self._record("response_item", answer | {"output": told})


def _patch(section: str, added: list[str], context: str = "") -> str:
    lines = "".join(f"+{line}\n" for line in added)
    patch = f"*** Begin Patch\n*** {section}\n{context}{lines}*** End Patch\n"
    return f"apply_patch <<'EOF'\n{patch}EOF"


class ClaudeCodeWriter:
    """A Claude Code session."""

    _TOOLS: ClassVar = {"shell": "Bash", "read": "Read", "write": "Write", "extend": "Edit"}

    def __init__(self, folder: Path, name: str, workspace: Path) -> None:
        self.file = Lines(folder / "-demonstration" / f"{name}.jsonl")
        self._common = {
            "sessionId": name,
            "cwd": str(workspace),
            "version": "2.0.29",
            "isSidechain": False,
            "userType": "external",
            "gitBranch": "",
        }
        self._parent: str | None = None
        self._count = 0

    def _record(self, kind: str, message: Json, **more: Any) -> None:
        self._count += 1
        uuid = f"{self._common['sessionId']}-{self._count:06}"
        links = {"type": kind, "uuid": uuid, "parentUuid": self._parent, "timestamp": _now()}
        self.file.append(links | self._common | {"message": message} | more)
        self._parent = uuid

    def _assistant(self, block: Json, stop_reason: str | None) -> None:
        message = {
            "id": f"msg_{self._count:06}",
            "type": "message",
            "role": "assistant",
            "model": "demonstration",
            "content": [block],
            "stop_reason": stop_reason,
            "usage": {"input_tokens": 900, "output_tokens": 60},
        }
        self._record("assistant", message)

    def asked(self, text: str) -> None:
        """See `Writer`."""
        self._record("user", {"role": "user", "content": text})

    def said(self, text: str, *, final: bool = False) -> None:
        """See `Writer`."""
        self._assistant({"type": "text", "text": text}, "end_turn" if final else None)

    def began(self, action: Action) -> None:
        """See `Writer`."""
        match action.tool:
            case "shell":
                given = {"command": action.command}
            case "read":
                given = {"file_path": action.path}
            case "write":
                given = {"file_path": action.path, "content": action.text}
            case "extend":
                given = {"file_path": action.path, "old_string": action.last}
                given["new_string"] = f"{action.last}\n{action.text}"
        call = {"type": "tool_use", "id": action.key, "name": self._TOOLS[action.tool]}
        self._assistant(call | {"input": given}, None)

    def answered(self, action: Action, output: str, exit_code: int | None) -> None:
        """See `Writer`. Claude Code puts the exit code of a failure before what was said."""
        if exit_code:
            output = f"Exit code {exit_code}\n{output}"
        block: Json = {"type": "tool_result", "tool_use_id": action.key, "content": output}
        message = {"role": "user", "content": [block | {"is_error": bool(exit_code)}]}
        if action.tool != "extend":
            self._record("user", message)
            return
        hunk = {
            "oldStart": action.lines,
            "oldLines": 1,
            "newStart": action.lines,
            "newLines": 1 + len(action.added),
            "lines": [f" {action.last}", *(f"+{line}" for line in action.added)],
        }
        result = {"filePath": action.path, "structuredPatch": [hunk]}
        self._record("user", message, toolUseResult=result)


class GeminiCliWriter:
    """A Gemini CLI chat: one JSON document, rewritten at each change."""

    _TOOLS: ClassVar = {
        "shell": "run_shell_command",
        "read": "read_file",
        "write": "write_file",
        "extend": "replace",
    }

    def __init__(self, folder: Path, name: str, workspace: Path) -> None:
        self.path = folder / "demonstration" / "chats" / f"session-{name}.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._workspace = workspace
        self._chat: Json = {
            "sessionId": name,
            "projectHash": "demonstration",
            "startTime": _now(),
            "lastUpdated": _now(),
            "messages": [],
        }

    def _message(self, kind: str, content: str, **more: Any) -> None:
        messages = self._chat["messages"]
        head = {"id": f"m{len(messages)}", "timestamp": _now(), "type": kind, "content": content}
        messages.append(head | more)
        self._chat["lastUpdated"] = _now()
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self._chat, indent=2), encoding="utf-8")
        part.replace(self.path)

    def asked(self, text: str) -> None:
        """See `Writer`."""
        self._message("user", text)

    def said(self, text: str, *, final: bool = False) -> None:
        """See `Writer`. The format does not mark the end of a turn."""
        del final
        self._message("gemini", text, thoughts=[], tokens=None, model="demonstration")

    def began(self, action: Action) -> None:
        """See `Writer`. A call is written down when it is answered, as the maker does."""

    def answered(self, action: Action, output: str, exit_code: int | None) -> None:
        """See `Writer`."""
        path = os.fspath(self._workspace / action.path)
        match action.tool:
            case "shell":
                given = {"command": action.command}
            case "read":
                given = {"file_path": path}
            case "write":
                given = {"file_path": path, "content": action.text}
            case "extend":
                given = {"file_path": path, "old_string": action.last}
                given["new_string"] = f"{action.last}\n{action.text}"
        response = {"functionResponse": {"id": action.key, "response": {"output": output}}}
        call = {
            "id": action.key,
            "name": self._TOOLS[action.tool],
            "args": given,
            "result": [response],
            "status": "error" if exit_code else "success",
            "timestamp": _now(),
            "resultDisplay": output,
        }
        self._message("gemini", "", toolCalls=[call], thoughts=[], model="demonstration")


class PiWriter:
    """A pi session."""

    _TOOLS: ClassVar = {"shell": "bash", "read": "read", "write": "write", "extend": "edit"}

    def __init__(self, folder: Path, name: str, workspace: Path) -> None:
        self.file = Lines(folder / f"{name}.jsonl")
        head = {"type": "session", "id": name, "timestamp": _now(), "cwd": str(workspace)}
        self.file.append(head | {"provider": "demonstration", "modelId": "demonstration"})

    def _message(self, message: Json) -> None:
        self.file.append({"type": "message", "timestamp": _now(), "message": message})

    def _assistant(self, content: list[Json], stop: str) -> None:
        usage = {"input": 700, "output": 50, "cacheRead": 0, "cacheWrite": 0}
        usage_and_cost = usage | {"cost": {"total": 0.001}}
        message = {"role": "assistant", "content": content, "stopReason": stop}
        self._message(message | {"usage": usage_and_cost})

    def asked(self, text: str) -> None:
        """See `Writer`."""
        self._message({"role": "user", "content": [{"type": "text", "text": text}]})

    def said(self, text: str, *, final: bool = False) -> None:
        """See `Writer`."""
        self._assistant([{"type": "text", "text": text}], "stop" if final else "toolUse")

    def began(self, action: Action) -> None:
        """See `Writer`."""
        match action.tool:
            case "shell":
                given = {"command": action.command}
            case "read":
                given = {"path": action.path}
            case "write":
                given = {"path": action.path, "content": action.text}
            case "extend":
                given = {"path": action.path, "oldText": action.last}
                given["newText"] = f"{action.last}\n{action.text}"
        call = {"type": "toolCall", "id": action.key, "name": self._TOOLS[action.tool]}
        self._assistant([call | {"arguments": given}], "toolUse")

    def answered(self, action: Action, output: str, exit_code: int | None) -> None:
        """See `Writer`."""
        content = [{"type": "text", "text": output}]
        result = {"role": "toolResult", "toolCallId": action.key, "isError": bool(exit_code)}
        self._message(result | {"content": content})
