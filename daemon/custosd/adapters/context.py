"""What a judge should know beside the trajectory, from this machine's files."""

import os

import trio

from custosd.adapters.transcripts.opening import FileGone, FileRefused, opened
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
                return await trio.to_thread.run_sync(_tail, agent.path, abandon_on_cancel=True)
            case "changed_files":
                files = agent.digest.written if agent.digest else ()
                return await trio.to_thread.run_sync(_changed, files, abandon_on_cancel=True)
            case _:
                return ContextPart(name, None, "unknown_part")


def _tail(path: str) -> ContextPart:
    try:
        # Transcripts are known by their real paths: whoever made a link of a folder on the
        # way since then leads elsewhere.
        with opened(path, os.path.dirname(path)) as (fd, status):  # noqa: PTH120 - of a text
            data = os.pread(fd, TAIL_BYTES, max(0, status.st_size - TAIL_BYTES))
    except FileGone:
        return ContextPart("transcript_tail", None, "gone")
    except FileRefused as refused:
        return ContextPart("transcript_tail", None, refused.kind.value)
    except (OSError, ValueError) as error:
        return ContextPart("transcript_tail", None, type(error).__name__)
    return ContextPart("transcript_tail", data.decode("utf-8", "replace"))


def _changed(files: tuple[str, ...]) -> ContextPart:
    return ContextPart("changed_files", "\n".join(map(_looked_at, files[-LARGEST_LISTING:])))


def _looked_at(name: str) -> str:
    # A relative path is relative to the agent's folder, which is not ours.
    if not os.path.isabs(name):  # noqa: PTH117 - of a text
        return name
    try:
        return f"{name}: {os.lstat(name).st_size} bytes"
    except (OSError, ValueError) as error:
        return f"{name}: {type(error).__name__}"
