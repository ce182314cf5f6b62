"""What a judge should know beside the trajectory, from this machine's files."""

import os
import re
from collections.abc import Callable
from functools import partial

from custosd.adapters.transcripts.opening import FileGone, FileRefused, opened
from custosd.core.agents import AgentId
from custosd.core.errors import WorkspaceError
from custosd.core.view import AgentView
from custosd.core.workspaces import Changes, Gap, WorkspacePart, work_place
from custosd.flow.threads import Threads
from custosd.ports import ContextPart, Workspaces

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
    `folder_of` is where an agent works as configured, "" where that is not; without
    `workspaces` no folder is looked into.
    """

    def __init__(
        self,
        workspaces: Workspaces | None = None,
        folder_of: Callable[[AgentId], str] = lambda _agent: "",
    ) -> None:
        self._threads = Threads(_THREADS)
        self._workspaces = workspaces
        self._folder_of = folder_of

    async def part(self, name: str, agent: AgentView) -> ContextPart:
        """See the port; a name that is not known is absent too."""
        match name:
            case "transcript_tail":
                return await self._threads.run(partial(transcript_tail, agent.path))
            case "changed_files":
                return await self._changed(agent)
            case _:
                return ContextPart(name, None, "unknown_part")

    async def _changed(self, agent: AgentView) -> ContextPart:
        """What the agent says that it wrote, and what did change where it works."""
        files = agent.digest.written if agent.digest else ()
        place = work_place(agent, agent.ref.agent, self._folder_of(agent.ref.agent))
        if self._workspaces is None or place is None:
            return await self._threads.run(partial(_changed, files))
        [seen] = await self._workspaces.look([place], {WorkspacePart.CHANGES})
        if isinstance(seen, WorkspaceError):
            if place.claimed_by and seen.reason in _NO_PLACE:
                # It works nowhere that is known: there is nothing that could not be seen.
                return await self._threads.run(partial(_changed, files))
            return ContextPart("changed_files", None, seen.reason)
        named = await self._threads.run(partial(_changed, files))
        found = _found(seen.changes, seen.gaps) if seen.changes else ""
        return ContextPart("changed_files", f"{named.text}\n\n{found}".strip())


_NO_PLACE = frozenset({"gone", "not_absolute", "not_a_folder", "not_owned"})
"""Of a folder that only the transcript names: it is not the agent's, or none at all."""


def _found(changes: Changes, gaps: tuple[Gap, ...]) -> str:
    """What changed in a folder, for a judge; also that not everything was seen."""
    head = f"in its folder {changes.count} files changed since {changes.since_utc:%H:%M:%SZ}"
    lines = [f"{head}{':' if changes.files else ''}"]
    lines += [f"{file.path}: {file.size_bytes} bytes" for file in changes.files]
    if changes.count > len(changes.files):
        lines.append(f"and {changes.count - len(changes.files)} more")
    lines += [f"not all was seen: {reason}" for reason in sorted({gap.reason for gap in gaps})]
    return "\n".join(lines)


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
