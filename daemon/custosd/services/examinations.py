"""Agents that somebody wants judged now: handed to the guardian, and its word handed back.

    emergency ──examine──► [ Examinations ] ──attend──► guardian
                  └── Examination ◄─────────┘

Laws:

1. It lives longer than a guardian's run: who waits while the guardian is run anew is served by the
   next one.
2. Of one agent there is one examination at a time; all who ask meanwhile get its result.
3. What nobody waits for any more is not begun; what has begun goes on to its end.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from custosd.core.agents import AgentId
from custosd.core.verdicts import Verdict

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Examination:
    """What came of analysing one agent at once: its verdict, or a short code of why not.

    `why` is "unknown_agent", "no_transcript", "store_unavailable" (what it did is not to be had
    now), "defect" (see the log) or "" with a verdict, which may be "unknown" itself. `graced`: it
    would ask for steering, were the agent not so young.
    """

    agent: AgentId
    verdict: Verdict | None = None
    why: str = ""
    graced: bool = False


Tell = Callable[[Examination], None]
Examine = Callable[[Sequence[AgentId], Tell], Awaitable[None]]
"""Judges agents at once, and tells of each as it ends."""


@dataclass(eq=False, slots=True)
class _Asked:
    begun: bool = False
    waiting: int = 0
    done: trio.Event = field(default_factory=trio.Event)
    examination: Examination | None = None


class Examinations:
    """Who is to be examined, and who waits for that."""

    def __init__(self) -> None:
        self._asked: dict[AgentId, _Asked] = {}
        self._wake = trio.Event()

    def want(self, agents: Iterable[AgentId]) -> None:
        """Say who will be asked about: so they are judged together, on one look at the store."""
        for agent in agents:
            self._asked.setdefault(agent, _Asked())
        self._wake.set()

    async def examine(self, agent: AgentId) -> Examination:
        """Have one agent judged now; waits for as long as that takes."""
        self.want([agent])
        asked = self._asked[agent]
        asked.waiting += 1
        try:
            await asked.done.wait()
        finally:
            asked.waiting -= 1
            if not asked.waiting and not asked.begun:
                self._drop(agent, asked)
        assert asked.examination is not None  # noqa: S101 - it is done
        return asked.examination

    async def attend(self, examine: Examine) -> None:
        """Hand on what is asked for; until cancelled. Raises nothing of its own."""
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                wanted = {name: asked for name, asked in self._asked.items() if not asked.begun}
                if wanted:
                    for asked in wanted.values():
                        asked.begun = True
                    nursery.start_soon(self._attend, wanted, examine)
                await self._wake.wait()

    async def _attend(self, wanted: dict[AgentId, _Asked], examine: Examine) -> None:
        def tell(examination: Examination) -> None:
            asked = wanted[examination.agent]
            asked.examination = examination
            asked.done.set()
            self._drop(examination.agent, asked)

        try:
            await examine(list(wanted), tell)
        except Exception:
            # What a person asked for besides must not end the watch over all agents.
            log.exception("examination.failed", agents=len(wanted))
            for name, asked in wanted.items():
                if not asked.done.is_set():
                    tell(Examination(name, why="defect"))
        finally:
            for name, asked in wanted.items():
                asked.begun = False
                if not asked.waiting:
                    self._drop(name, asked)

    def _drop(self, agent: AgentId, asked: _Asked) -> None:
        if self._asked.get(agent) is asked:
            del self._asked[agent]
