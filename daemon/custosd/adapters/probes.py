"""Looks at agents from outside: their processes, units, workspaces and transcripts.

    process     its state, and the processor time of it and of all below it
    unit        its control
    workspace   whatever changed below it
    transcript  whatever changed below the folders of its transcripts

Laws:

1. Whatever can not be seen is UNKNOWN; no look is ever an error, and none waits for another:
   each has its own limit of time, so that a file system that hangs hides nothing else.
2. A look that hangs in the kernel keeps its thread; it is not begun again before it has
   ended, and these threads are not those of the rest of the daemon.
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from custosd.adapters.control.command import NEVER_STARTED
from custosd.adapters.folder_looks import FolderLook, look_below
from custosd.adapters.process_identity import is_gone
from custosd.adapters.process_looks import Families, look_at_process
from custosd.core.agents import AgentId
from custosd.core.errors import ControlError
from custosd.core.evidence import Observation, ProcessIdentity, Source, Value
from custosd.flow.bounded import for_each
from custosd.flow.threads import Threads
from custosd.ports import AgentControl, Prober

LONGEST_LOOK_S = 4.0
"""How long one look at one source may take; whoever asks waits a little longer."""

_PROCESS_THREADS, _FOLDER_THREADS = 4, 8

_Look = Callable[[], Awaitable[Observation]]


@dataclass(frozen=True, slots=True)
class Probed:
    """Where one agent can be looked at; what it does not have is left out."""

    control: AgentControl | None = None
    workspace: Path | None = None
    transcripts: tuple[Path, ...] = ()


class LocalProber(Prober):
    """`ports.Prober` for agents of this machine."""

    def __init__(
        self, probed: Callable[[AgentId], Probed | None], *, longest_s: float = LONGEST_LOOK_S
    ) -> None:
        self._probed = probed
        self._longest_s = longest_s
        self._families = Families()
        self._folders = _FolderProbe()
        self._threads = Threads(_PROCESS_THREADS)

    async def probe(
        self, agent: AgentId, process: ProcessIdentity | None, sources: frozenset[Source]
    ) -> tuple[Observation, ...]:
        """See the port. All sources are looked at at once, each for `longest_s` at most."""
        probed = self._probed(agent)
        if probed is None:
            self._folders.forget(agent)
            probed = Probed()
        folders = {
            Source.WORKSPACE: (probed.workspace,) if probed.workspace else (),
            Source.TRANSCRIPT: probed.transcripts,
        }
        found: list[Observation] = []
        looks: list[Callable[[], Awaitable[object]]] = [
            partial(self._within, source, partial(self._folders.look, agent, source, wanted), found)
            for source, wanted in folders.items()
            if wanted and source in sources
        ]
        if presence := sources & {Source.PROCESS, Source.UNIT}:
            looks.append(partial(self._presence, probed.control, process, presence, found))
        await for_each(looks, lambda look: look())
        return tuple(sorted(found, key=lambda one: one.source))

    async def _presence(
        self,
        control: AgentControl | None,
        process: ProcessIdentity | None,
        sources: Collection[Source],
        found: list[Observation],
    ) -> None:
        """The unit, as its control says; and the process, which is the unit's own if need be.

        Where the process that is known is gone, its control may know of another one: the
        agent lives on, and not even for a moment is it told to be dead.
        """
        sight = None
        if control is not None:
            sight = await self._within(Source.UNIT, partial(_sight, control))
            if Source.UNIT in sources and sight.source is Source.UNIT:
                found.append(sight)
        if Source.PROCESS not in sources:
            return
        if (
            sight is not None
            and sight.process is not None
            and (process is None or is_gone(process))
        ):
            process = sight.process
        if process is not None:
            await self._within(Source.PROCESS, partial(self._process, process), found)
        elif sight is not None and sight.detail != NEVER_STARTED:
            told = (sight.value, sight.detail, sight.progress)
            found.append(Observation(Source.PROCESS, *told, exit=sight.exit))

    async def _process(self, process: ProcessIdentity) -> Observation:
        return await self._threads.run(partial(look_at_process, process, self._families))

    async def _within(
        self, source: Source, look: _Look, found: list[Observation] | None = None
    ) -> Observation:
        seen = Observation(source, Value.UNKNOWN, "look_timeout")
        with trio.move_on_after(self._longest_s):
            seen = await look()
        if found is not None:
            found.append(seen)
        return seen


async def _sight(control: AgentControl) -> Observation:
    try:
        return await control.sight()
    except ControlError as error:
        return Observation(Source.UNIT, Value.UNKNOWN, error.reason)


class _FolderProbe:
    """Looks at folders in threads of its own, and remembers what was seen of a part of them."""

    def __init__(self) -> None:
        self._threads = Threads(_FOLDER_THREADS)
        self._looking: set[tuple[AgentId, Source]] = set()
        self._newest_ns: dict[tuple[AgentId, Source], int] = {}

    def forget(self, agent: AgentId) -> None:
        """Nothing is asked about this agent any more."""
        for source in Source:
            self._newest_ns.pop((agent, source), None)

    async def look(self, agent: AgentId, source: Source, folders: tuple[Path, ...]) -> Observation:
        """Look at all below these folders; `progress` differs whenever anything has changed.

        Where a part of it can not be seen, what was not seen may have changed: only a change
        is told then, never that there was none.
        """
        asked = (agent, source)
        if asked in self._looking:
            return Observation(source, Value.UNKNOWN, "look_hangs")
        look = await self._threads.run(partial(self._looked, asked, folders))
        if not look.entries:
            return Observation(source, Value.UNKNOWN, look.why_not or "folder_absent")
        if look.whole:
            return Observation(source, Value.OK, "folder_seen", float(look.changes))
        before_ns = self._newest_ns.get(asked, look.newest_ns)
        self._newest_ns[asked] = max(look.newest_ns, before_ns)
        if look.newest_ns > before_ns:
            return Observation(source, Value.OK, "folder_changed", look.newest_ns / 1e9)
        return Observation(source, Value.UNKNOWN, look.why_not)

    def _looked(self, asked: tuple[AgentId, Source], folders: tuple[Path, ...]) -> FolderLook:
        # Marked here and not before: whoever is cancelled while waiting for a thread has begun
        # nothing.
        self._looking.add(asked)
        try:
            return look_below(folders)
        finally:
            self._looking.discard(asked)
