"""What a judge should know beside the trajectory, from this machine's files."""

import os
from pathlib import Path

import trio

from custosd.core.view import AgentView
from custosd.ports import ContextPart

TAIL_BYTES = 16_384
"""How much of a transcript's end a judge is shown."""

LARGEST_LISTING = 50
"""How many changed files are named at most."""


class LocalContext:
    """`ContextSource` over the local file system; every read is bounded and in a thread."""

    async def part(self, name: str, agent: AgentView) -> ContextPart:
        """See the port; a name that is not known is absent too."""
        match name:
            case "transcript_tail":
                return await trio.to_thread.run_sync(
                    _tail, Path(agent.path), abandon_on_cancel=True
                )
            case "changed_files":
                files = agent.digest.written if agent.digest else ()
                return await trio.to_thread.run_sync(_changed, files, abandon_on_cancel=True)
            case _:
                return ContextPart(name, None, "unknown_part")


def _tail(path: Path) -> ContextPart:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode("utf-8", "replace")
    except OSError as error:
        return ContextPart("transcript_tail", None, type(error).__name__)
    return ContextPart("transcript_tail", text)


def _changed(files: tuple[str, ...]) -> ContextPart:
    lines = []
    for name in files[-LARGEST_LISTING:]:
        try:
            size = f"{Path(name).stat().st_size} bytes"
        except (OSError, ValueError) as error:
            size = type(error).__name__
        lines.append(f"{name}: {size}")
    return ContextPart("changed_files", "\n".join(lines))
