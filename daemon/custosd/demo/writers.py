"""Writes transcripts as the makers' own agents do, so that the demonstration is a real one.

Each writer takes the same five calls and appends (or, for Gemini CLI, rewrites) one file
in its maker's format. Standard library only: the demonstration's agents are strangers to
the daemon, and share nothing with it but these files.
"""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Protocol


class Writer(Protocol):
    """One agent's transcript."""

    def asked(self, text: str) -> None:
        """A person said this."""
        ...

    def said(self, text: str, *, final: bool = False) -> None:
        """The agent said this; `final`: and ended its turn."""
        ...

    def called(self, call: str, tool: str, arguments: dict[str, Any]) -> None:
        """The agent began an action."""
        ...

    def answered(self, call: str, output: str, exit_code: int | None) -> None:
        """The action ended; `exit_code` is None for what is no command."""
        ...


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Lines:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def append(self, record: dict[str, Any]) -> None:
        # One write a line: a reader sees whole lines, or one that is not finished yet.
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


class CustosdWriter:
    """custosd's own format; see daemon/TRANSCRIPTS.md."""

    def __init__(self, folder: Path, name: str, workspace: Path) -> None:
        self._file = _Lines(folder / f"{name}.jsonl")
        self._name = name
        self._workspace = workspace
        self._open = False

    def asked(self, text: str) -> None:
        """See `Writer`."""
        if not self._open:
            self._open = True
            self._file.append(
                {
                    "custosd": 1,
                    "session": f"{self._name}-1",
                    "agent": self._name,
                    "cwd": str(self._workspace),
                    "goal": text,
                    "at": _now(),
                }
            )
        else:
            self._file.append({"type": "ask", "text": text, "at": _now()})

    def said(self, text: str, *, final: bool = False) -> None:
        """See `Writer`."""
        self._file.append({"type": "say", "text": text, "final": final, "at": _now()})

    def called(self, call: str, tool: str, arguments: dict[str, Any]) -> None:
        """See `Writer`."""
        self._file.append({"type": "call", "id": call, "tool": tool, "at": _now(), **arguments})

    def answered(self, call: str, output: str, exit_code: int | None) -> None:
        """See `Writer`."""
        answer = {"type": "answer", "id": call, "output": output, "at": _now()}
        self._file.append(answer if exit_code is None else {**answer, "exit_code": exit_code})


class CodexWriter:
    """A Codex rollout."""

    def __init__(self, folder: Path, name: str, workspace: Path) -> None:
        day = datetime.now(UTC)
        stamp = day.strftime("%Y-%m-%dT%H-%M-%S")
        self._file = _Lines(folder / day.strftime("%Y/%m/%d") / f"rollout-{stamp}-{name}.jsonl")
        meta = {
            "id": name,
            "timestamp": _now(),
            "cwd": str(workspace),
            "originator": "codex_cli_rs",
            "cli_version": "0.40.0",
        }
        self._record("session_meta", meta)
        self._record("turn_context", {"cwd": str(workspace), "model": "demonstration"})

    def _record(self, kind: str, payload: dict[str, Any]) -> None:
        self._file.append({"timestamp": _now(), "type": kind, "payload": payload})

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

    def called(self, call: str, tool: str, arguments: dict[str, Any]) -> None:
        """See `Writer`."""
        if tool == "shell":
            arguments = {"command": ["bash", "-lc", arguments["command"]]}
        self._record(
            "response_item",
            {
                "type": "function_call",
                "name": tool,
                "call_id": call,
                "arguments": json.dumps(arguments),
            },
        )

    def answered(self, call: str, output: str, exit_code: int | None) -> None:
        """See `Writer`."""
        told = {
            "output": output,
            "metadata": {"exit_code": exit_code or 0, "duration_seconds": 0.1},
        }
        self._record(
            "response_item",
            {"type": "function_call_output", "call_id": call, "output": json.dumps(told)},
        )


class ClaudeCodeWriter:
    """A Claude Code session."""

    _TOOLS: ClassVar = {"shell": "Bash", "read": "Read", "write": "Write"}

    def __init__(self, folder: Path, name: str, workspace: Path) -> None:
        self._file = _Lines(folder / "-demonstration" / f"{name}.jsonl")
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

    def _record(self, kind: str, message: dict[str, Any]) -> None:
        self._count += 1
        uuid = f"{self._common['sessionId']}-{self._count:06}"
        self._file.append(
            {
                "type": kind,
                "uuid": uuid,
                "parentUuid": self._parent,
                "timestamp": _now(),
                **self._common,
                "message": message,
            }
        )
        self._parent = uuid

    def _assistant(self, block: dict[str, Any], stop_reason: str | None) -> None:
        self._record(
            "assistant",
            {
                "id": f"msg_{self._count:06}",
                "type": "message",
                "role": "assistant",
                "model": "demonstration",
                "content": [block],
                "stop_reason": stop_reason,
                "usage": {"input_tokens": 900, "output_tokens": 60},
            },
        )

    def asked(self, text: str) -> None:
        """See `Writer`."""
        self._record("user", {"role": "user", "content": text})

    def said(self, text: str, *, final: bool = False) -> None:
        """See `Writer`."""
        self._assistant({"type": "text", "text": text}, "end_turn" if final else None)

    def called(self, call: str, tool: str, arguments: dict[str, Any]) -> None:
        """See `Writer`."""
        given = dict(arguments)
        if "path" in given:
            given["file_path"] = given.pop("path")
        name = self._TOOLS.get(tool, tool)
        self._assistant({"type": "tool_use", "id": call, "name": name, "input": given}, None)

    def answered(self, call: str, output: str, exit_code: int | None) -> None:
        """See `Writer`."""
        block = {
            "type": "tool_result",
            "tool_use_id": call,
            "content": output,
            "is_error": bool(exit_code),
        }
        self._record("user", {"role": "user", "content": [block]})


class GeminiCliWriter:
    """A Gemini CLI chat: one JSON document, rewritten at each change."""

    _TOOLS: ClassVar = {"shell": "run_shell_command", "read": "read_file", "write": "write_file"}

    def __init__(self, folder: Path, name: str, workspace: Path) -> None:
        self._path = folder / "demonstration" / "chats" / f"session-{name}.json"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._workspace = workspace
        self._chat: dict[str, Any] = {
            "sessionId": name,
            "projectHash": "demonstration",
            "startTime": _now(),
            "lastUpdated": _now(),
            "messages": [],
        }

    def _message(self, kind: str, content: str, **more: Any) -> None:
        messages = self._chat["messages"]
        messages.append(
            {
                "id": f"m{len(messages)}",
                "timestamp": _now(),
                "type": kind,
                "content": content,
                **more,
            }
        )
        self._write()

    def _write(self) -> None:
        self._chat["lastUpdated"] = _now()
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self._chat, indent=2), encoding="utf-8")
        part.replace(self._path)

    def asked(self, text: str) -> None:
        """See `Writer`."""
        self._message("user", text)

    def said(self, text: str, *, final: bool = False) -> None:
        """See `Writer`. The format does not mark the end of a turn."""
        del final
        self._message("gemini", text, thoughts=[], tokens=None, model="demonstration")

    def called(self, call: str, tool: str, arguments: dict[str, Any]) -> None:
        """See `Writer`. A call is written down when it is answered, as the maker does."""
        given = dict(arguments)
        if "path" in given:
            given["file_path"] = os.fspath(self._workspace / given.pop("path"))
        self._pending = {"id": call, "name": self._TOOLS.get(tool, tool), "args": given}

    def answered(self, call: str, output: str, exit_code: int | None) -> None:
        """See `Writer`."""
        response = {"functionResponse": {"id": call, "response": {"output": output}}}
        status = "error" if exit_code else "success"
        done = {
            **self._pending,
            "result": [response],
            "status": status,
            "timestamp": _now(),
            "resultDisplay": output,
        }
        self._message("gemini", "", toolCalls=[done], thoughts=[], model="demonstration")


class PiWriter:
    """A pi session."""

    def __init__(self, folder: Path, name: str, workspace: Path) -> None:
        self._file = _Lines(folder / f"{name}.jsonl")
        self._file.append(
            {
                "type": "session",
                "id": name,
                "timestamp": _now(),
                "cwd": str(workspace),
                "provider": "demonstration",
                "modelId": "demonstration",
            }
        )

    def _message(self, message: dict[str, Any]) -> None:
        self._file.append({"type": "message", "timestamp": _now(), "message": message})

    def asked(self, text: str) -> None:
        """See `Writer`."""
        self._message({"role": "user", "content": [{"type": "text", "text": text}]})

    def said(self, text: str, *, final: bool = False) -> None:
        """See `Writer`."""
        stop = "stop" if final else "toolUse"
        self._assistant([{"type": "text", "text": text}], stop)

    def _assistant(self, content: list[dict[str, Any]], stop: str) -> None:
        usage = {
            "input": 700,
            "output": 50,
            "cacheRead": 0,
            "cacheWrite": 0,
            "cost": {"total": 0.001},
        }
        self._message({"role": "assistant", "content": content, "stopReason": stop, "usage": usage})

    def called(self, call: str, tool: str, arguments: dict[str, Any]) -> None:
        """See `Writer`."""
        name = "bash" if tool == "shell" else tool
        block = {"type": "toolCall", "id": call, "name": name, "arguments": arguments}
        self._assistant([block], "toolUse")

    def answered(self, call: str, output: str, exit_code: int | None) -> None:
        """See `Writer`."""
        self._message(
            {
                "role": "toolResult",
                "toolCallId": call,
                "isError": bool(exit_code),
                "content": [{"type": "text", "text": output}],
            }
        )
