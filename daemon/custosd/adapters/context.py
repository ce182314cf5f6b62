"""What a judge should know beside the trajectory, from this machine's files."""

import os
import re
from functools import partial

from custosd.adapters.transcripts.opening import FileGone, FileRefused, opened
from custosd.core.view import AgentView
from custosd.flow.threads import Threads
from custosd.ports import ContextPart

TAIL_BYTES = 16_384
"""How much of a transcript's end a judge is shown."""

_THREADS = 32

_DOUBTFUL_BYTES = 64
_LONGEST_WORD = 1_024
_WORD_ENDS = re.compile(rb"[\s\"',;]")

LARGEST_LISTING = 50
"""How many changed files are named at most."""


class LocalContext:
    """`ContextSource` over the local file system; every read is bounded and in a thread.

    In one of its own: a file system that hangs takes none from the rest of the daemon.
    """

    def __init__(self) -> None:
        self._threads = Threads(_THREADS)

    async def part(self, name: str, agent: AgentView) -> ContextPart:
        """See the port; a name that is not known is absent too."""
        match name:
            case "transcript_tail":
                return await self._threads.run(partial(transcript_tail, agent.path))
            case "changed_files":
                files = agent.digest.written if agent.digest else ()
                return await self._threads.run(partial(_changed, files))
            case _:
                return ContextPart(name, None, "unknown_part")


def transcript_tail(path: str) -> ContextPart:
    """The end of a transcript, or why there is none. Blocks as a file does."""
    try:
        # Transcripts are known by their real paths: whoever made a link of a folder on the
        # way since then leads elsewhere.
        with opened(path, os.path.dirname(path)) as (fd, status):  # noqa: PTH120 - of a text
            begins = max(0, status.st_size - TAIL_BYTES)
            data = _from_a_word(os.pread(fd, TAIL_BYTES, begins), cut=begins > 0)
    except FileGone:
        return ContextPart("transcript_tail", None, "gone")
    except FileRefused as refused:
        return ContextPart("transcript_tail", None, refused.kind.value)
    except (OSError, ValueError) as error:
        return ContextPart("transcript_tail", None, type(error).__name__)
    return ContextPart("transcript_tail", data.decode("utf-8", "replace"))


def _from_a_word(data: bytes, *, cut: bool) -> bytes:
    """Without the word that a cut divided, and what stands close behind it.

    Half a secret, or one whose name was cut off, is none to a detector.
    """
    if not cut:
        return data
    found = _WORD_ENDS.search(data, _DOUBTFUL_BYTES, _LONGEST_WORD)
    return data[found.end() if found else _LONGEST_WORD :]


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
