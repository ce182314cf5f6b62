"""Lets beats in, or says why not; keeps the newest of each agent until it is looked at.

    doors ──offer──► [ BeatRegister ] ──next_batch──► liveness

Laws:

1. (epoch, sequence) of an agent only grows; a sequence starts anew with its epoch. A newer
   epoch is let in only where a restart gave it, or where nothing is known of the agent yet.
2. Nothing waits and nothing grows without bound: of each agent one beat is kept, the newest;
   what gave way to it is counted, and so is everything that is refused. Agents that nobody
   has configured never take the place of one that somebody has.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

import trio

from custosd.core.agents import AgentId
from custosd.core.beats import Beat, ReceivedBeat, Refusal
from custosd.core.lives import LifeRecord

MOST_COUNTED = 1_000
"""Agents that refusals are counted apart for; the others are counted together."""

_NONE_YET = -1
"""Before any sequence."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What was refused and superseded since the last time this was asked."""

    refused: dict[tuple[Refusal, AgentId | None], int] = field(default_factory=dict)
    superseded: int = 0


class BeatRegister:
    """The one place that knows which incarnation may speak, and how far it has spoken.

    `known` says whether beats of an agent are taken at all. There is room for `most_agents`,
    and for every one that is `configured`, however many others came before it.
    """

    def __init__(
        self,
        known: Callable[[AgentId], bool],
        most_agents: int = 20_000,
        configured: Callable[[AgentId], bool] = lambda _: False,
    ) -> None:
        self._known = known
        self._configured = configured
        self._most_agents = most_agents
        self._last: dict[AgentId, tuple[int, int]] = {}
        self._expected: dict[AgentId, int] = {}
        self._waiting: dict[AgentId, ReceivedBeat] = {}
        self._refused: dict[tuple[Refusal, AgentId | None], int] = {}
        self._superseded = 0
        self._some = trio.Event()
        self.accepted = 0
        """How many beats were let in since the start."""

    def restore(self, records: Iterable[LifeRecord]) -> None:
        """Go on where a daemon before this one left off: what it heard is not new.

        An agent that was never heard, and was given no epoch, says itself which one it has.
        """
        for record in records:
            if record.heard_utc is None and not record.epoch:
                continue
            heard = record.heard_utc is not None
            self._last[record.agent] = (record.epoch, record.sequence if heard else _NONE_YET)

    def offer(self, beat: Beat, door: str) -> Refusal | None:
        """Let a beat in (None), or say why not; never waits."""
        refusal = self._refusal(beat)
        if refusal is not None:
            self.refuse(refusal, beat.agent)
            return refusal
        self._last[beat.agent] = (beat.epoch, beat.sequence)
        if self._expected.get(beat.agent) == beat.epoch:
            del self._expected[beat.agent]
        # Taken out first, so that the order of the batch is that of the newest beats.
        if self._waiting.pop(beat.agent, None) is not None:
            self._superseded += 1
        self._waiting[beat.agent] = ReceivedBeat(beat, trio.current_time(), door)
        self.accepted += 1
        self._some.set()
        return None

    def _refusal(self, beat: Beat) -> Refusal | None:
        if not self._known(beat.agent):
            return Refusal.UNKNOWN_AGENT
        last = self._last.get(beat.agent)
        if last is None:
            full = len(self._last) >= self._most_agents and not self._configured(beat.agent)
            return Refusal.FULL if full else None
        epoch, sequence = last
        if beat.epoch < epoch:
            return Refusal.OLD_EPOCH
        if beat.epoch > epoch:
            expected = self._expected.get(beat.agent)
            return None if beat.epoch == expected else Refusal.FUTURE_EPOCH
        return Refusal.REPLAYED if beat.sequence <= sequence else None

    def refuse(self, refusal: Refusal, agent: AgentId | None = None) -> None:
        """Count what was refused, here or at a door."""
        key = (refusal, agent)
        if key not in self._refused and len(self._refused) >= MOST_COUNTED:
            key = (refusal, None)
        self._refused[key] = self._refused.get(key, 0) + 1

    def expect(self, agent: AgentId, epoch: int) -> None:
        """Let in beats of this incarnation, too, which is about to begin."""
        self._expected[agent] = epoch

    def fence(self, agent: AgentId, epoch: int) -> None:
        """Refuse whatever is older than this incarnation from now on."""
        known = self._last.get(agent)
        if known is None or known[0] < epoch:
            self._last[agent] = (epoch, _NONE_YET)
            if self._expected.get(agent, epoch) <= epoch:
                self._expected.pop(agent, None)
            waiting = self._waiting.get(agent)
            if waiting is not None and waiting.beat.epoch < epoch:
                del self._waiting[agent]

    def forget(self, agent: AgentId) -> None:
        """Let go of an agent that is not watched any more."""
        self._last.pop(agent, None)
        self._expected.pop(agent, None)
        self._waiting.pop(agent, None)

    async def next_batch(self, most: int | None = None) -> list[ReceivedBeat]:
        """Wait for beats; the newest of each agent, each once. A cancelled wait loses none.

        At most `most` of them; the others stay for the next call.
        """
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            self._some = trio.Event()
            await self._some.wait()
        return self.take(most)

    def take(self, most: int | None = None) -> list[ReceivedBeat]:
        """What `next_batch` would return, without waiting; [] where nothing is there."""
        if most is None or most >= len(self._waiting):
            batch = list(self._waiting.values())
            self._waiting.clear()
            return batch
        agents = list(islice(self._waiting, most))
        return [self._waiting.pop(agent) for agent in agents]

    def take_counts(self) -> Counts:
        """What was refused and superseded since the last call."""
        counts = Counts(self._refused, self._superseded)
        self._refused, self._superseded = {}, 0
        return counts
