"""Keeps the store's and our own idea of all interventions the same, and tells what changed.

Laws:

1. Here an intervention changes after it did in the store, and is told of after that.
2. Where the two may differ (a write without an answer, because the store failed or whoever
   wrote was cancelled; a state that is another by now) all is read again before anything else
   is done, and the store is right.
3. What changed is told, also where whoever changed it was cancelled before it could: then
   with the next turn, in its order.
"""

from collections import deque
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta

import structlog
import trio

from custosd.core.agents import AgentId
from custosd.core.errors import StoreRefused
from custosd.core.facts import Fact, InterventionChanged
from custosd.core.steering import Intervention, InterventionState, end_of, way
from custosd.core.steering_ledger import SteeringLedger
from custosd.flow.pulse import Pulse
from custosd.ports import ActionStore
from custosd.services.store_absence import past_conflicts

log = structlog.get_logger()

MOST_ATTEMPTS = 11
"""Times that a write is tried which other transactions get in the way of."""

_BY_LEAVE = frozenset({InterventionState.APPROVED, InterventionState.QUEUED})


class SteeringRecord:
    """The ledger of interventions, written by way of the store only.

    `stale`: it has to be read again. `refused` are those that the store would not take, as
    they stand there; they go no further. A `pulse` is that of the task which waits for the
    store.
    """

    def __init__(self, store: ActionStore, facts: trio.MemorySendChannel[Fact]) -> None:
        self.ledger = SteeringLedger()
        self.stale = True
        self.loaded = False
        self.refused: dict[str, Intervention] = {}
        self.changed = trio.Event()
        """Set, and replaced by a new one, whenever an intervention changed."""
        self._store = store
        self._facts = facts
        self._unanswered: set[str] = set()
        self._untold: deque[InterventionChanged] = deque()
        self._telling = trio.Lock()

    async def load(
        self,
        now_utc: datetime,
        history_s: float,
        busy: Collection[AgentId],
        pulse: Pulse | None = None,
    ) -> None:
        """Read all that is open or not older than `history_s`; raises `StoreError`.

        What changed here while the store spoke, or is on its way to a `busy` agent, stays.
        """
        before = {item.id: item for item in self.ledger.all()}
        unanswered = frozenset(self._unanswered)
        self.stale = False
        try:
            with _waiting(pulse):
                stored = await self._store.interventions(now_utc - timedelta(seconds=history_s))
        except BaseException:
            self.stale = True
            raise
        for item in stored:
            old = self.ledger.get(item.id)
            if old is not before.get(item.id) or item.agent in busy or old == item:
                continue
            if old is not None:
                self._note(old, item, "store")
            elif item.id in unanswered:
                self._note(None, item, item.proposed_by)
            else:
                self.ledger.put(item)
        self._unanswered -= unanswered
        self.loaded = True
        self._wake()
        await self.tell()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def propose(self, item: Intervention, pulse: Pulse | None = None) -> bool:
        """Store a new one; False: there is one of its id or key. Raises `StoreError`."""
        try:
            with _waiting(pulse):
                stored = await self._proposed(item)
        except StoreRefused as error:
            log.error("intervention.refused", intervention=item.id, error=str(error))
            raise
        except BaseException:
            self.stale = True
            self._unanswered.add(item.id)
            raise
        if stored:
            self._note(None, item, item.proposed_by)
            await self.tell()
        return stored

    async def _proposed(self, item: Intervention) -> bool:
        return await past_conflicts(lambda: self._store.propose(item), MOST_ATTEMPTS)

    async def save(self, item: Intervention, by: str, pulse: Pulse | None = None) -> bool:
        """Store a change and tell of it. False: it was not stored, and will not be so.

        Raises `StoreError`: it is not known whether it was.
        """
        old = self.ledger.get(item.id)
        if old is None or item.id in self.refused:
            return False
        try:
            with _waiting(pulse):
                saved = await self._saved(item, old)
        except StoreRefused as error:
            log.error("intervention.refused", intervention=item.id, error=str(error))
            self.refused[item.id] = old
            return False
        except BaseException:
            self.stale = True
            raise
        if saved:
            self._note(old, item, by)
            await self.tell()
        else:
            self.stale = True
        return saved

    async def _saved(self, item: Intervention, old: Intervention) -> bool:
        return await past_conflicts(
            lambda: self._store.save_intervention(item, old.state), MOST_ATTEMPTS
        )

    def _note(self, old: Intervention | None, new: Intervention, by: str) -> None:
        """Take in what is stored, and each state that was entered as what is to be told."""
        self.ledger.put(new)
        self._wake()
        before = old.state if old is not None else None
        why = end_of(new) or (new.reason or "")
        for after in way(before, new.state):
            author = new.approved_by if after in _BY_LEAVE else by
            log.info(
                "intervention.changed",
                intervention=new.id,
                agent=new.agent,
                before=before,
                after=after,
                by=author,
                why=why,
                hold_out=new.hold_out,
            )
            self._untold.append(
                InterventionChanged(new.id, new.agent, before, after, author, why, new.hold_out)
            )
            before = after

    async def tell(self) -> None:
        """Tell what has not been told yet; waits for room."""
        async with self._telling:
            while self._untold:
                # A send that is cancelled has sent nothing.
                await self._facts.send(self._untold[0])
                self._untold.popleft()


def _waiting(pulse: Pulse | None) -> AbstractContextManager[None]:
    return nullcontext() if pulse is None else pulse.waiting()
