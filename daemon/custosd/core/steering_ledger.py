"""What is known of all interventions, open and past, by everything that is asked of them.

Laws:

1. It is a copy of what the store has: an intervention is put here after it was stored.
2. It is bounded: what is closed goes when it is old, or when there is too much of it.
"""

import heapq
from collections.abc import Iterable
from datetime import datetime, timedelta

from custosd.core.agents import AgentId
from custosd.core.steering import CLOSED, Intervention, by_person
from custosd.core.steering_policy import is_dead_letter, spoken_utc, started_utc
from custosd.core.uplift import Uplift, uplifts
from custosd.core.verdicts import SteeringKind, SteeringReason


class SteeringLedger:
    """All interventions that matter still; every look-up costs what it returns."""

    def __init__(self) -> None:
        self._items: dict[str, Intervention] = {}
        self._of: dict[AgentId, dict[str, None]] = {}
        self._open: dict[str, None] = {}
        self._unmeasured: dict[str, None] = {}
        self._dead: dict[str, None] = {}
        self._sent: dict[str, datetime] = {}
        self._over: list[tuple[datetime, str]] = []
        """A heap of what ended and was measured, by age; what is not so any more is passed over."""
        self._in_heap: set[str] = set()
        self._uplifts: dict[tuple[SteeringKind, SteeringReason], Uplift] | None = None

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._items)

    def get(self, intervention_id: str) -> Intervention | None:
        """One by its id."""
        return self._items.get(intervention_id)

    def all(self) -> tuple[Intervention, ...]:
        """All that are kept, oldest first."""
        return tuple(sorted(self._items.values(), key=lambda item: item.proposed_utc))

    def of(self, agent: AgentId) -> tuple[Intervention, ...]:
        """Those to one agent."""
        return tuple(self._items[name] for name in self._of.get(agent, ()))

    def open(self) -> tuple[Intervention, ...]:
        """Those that have not ended."""
        return tuple(self._items[name] for name in self._open)

    def unmeasured(self) -> tuple[Intervention, ...]:
        """Those whose effect has yet to be measured."""
        return tuple(self._items[name] for name in self._unmeasured)

    def put(self, item: Intervention) -> None:
        """Note one as it stands now."""
        self._items[item.id] = item
        self._of.setdefault(item.agent, {})[item.id] = None
        _mark(self._open, item.id, holds=item.state not in CLOSED)
        began = started_utc(item) is not None
        _mark(self._unmeasured, item.id, holds=began and item.measured_utc is None)
        _mark(self._dead, item.id, holds=is_dead_letter(item))
        if self._is_over(item.id) and item.id not in self._in_heap:
            heapq.heappush(self._over, (item.proposed_utc, item.id))
            self._in_heap.add(item.id)
        if item.delivered_utc is not None and not by_person(item):
            self._sent[item.id] = item.delivered_utc
        if item.measured_utc is not None:
            self._uplifts = None

    def letters(self, now_utc: datetime, letter_s: float) -> tuple[Intervention, ...]:
        """The dead letters of the last `letter_s`, but those that a later message made up for."""
        since_utc = now_utc - timedelta(seconds=letter_s)
        dead = (self._items[name] for name in self._dead)
        return tuple(item for item in dead if self._is_lost_since(since_utc, item))

    def _is_lost_since(self, since_utc: datetime, item: Intervention) -> bool:
        closed_utc = item.closed_utc
        if closed_utc is None or closed_utc <= since_utc:
            return False
        arrived = (other.delivered_utc for other in self.of(item.agent))
        return not any(at is not None and at > closed_utc for at in arrived)

    def sent_utc(self, now_utc: datetime, period_s: float) -> tuple[datetime, ...]:
        """When messages of our own were delivered in the last `period_s`."""
        since_utc = now_utc - timedelta(seconds=period_s)
        self._sent = {name: at for name, at in self._sent.items() if at > since_utc}
        return tuple(at for at in self._sent.values() if at <= now_utc)

    def spoken_utc(self, agent: AgentId) -> datetime | None:
        """When an agent was last told something, or would have been but for the hold-out."""
        return spoken_utc(self.of(agent))

    def uplifts(self) -> dict[tuple[SteeringKind, SteeringReason], Uplift]:
        """What each kind of message is good for, by all that has been measured."""
        if self._uplifts is None:
            self._uplifts = uplifts(self._items.values())
        return self._uplifts

    def prune(self, now_utc: datetime, history_s: float, most: int) -> int:
        """Forget what ended and is older than `history_s`, or too much; returns how many.

        Costs what it forgets.
        """
        since_utc = now_utc - timedelta(seconds=history_s)
        surplus = len(self._items) - most
        gone: list[Intervention] = []
        while self._over and (len(gone) < surplus or self._over[0][0] < since_utc):
            _, name = heapq.heappop(self._over)
            self._in_heap.discard(name)
            if self._is_over(name):
                gone.append(self._items[name])
        self._forget(gone)
        return len(gone)

    def _is_over(self, name: str) -> bool:
        return name not in self._open and name not in self._unmeasured

    def _forget(self, items: Iterable[Intervention]) -> None:
        for item in items:
            del self._items[item.id]
            self._dead.pop(item.id, None)
            self._sent.pop(item.id, None)
            ids = self._of[item.agent]
            del ids[item.id]
            if not ids:
                del self._of[item.agent]
            self._uplifts = None


def _mark(names: dict[str, None], name: str, *, holds: bool) -> None:
    if holds:
        names[name] = None
    else:
        names.pop(name, None)
