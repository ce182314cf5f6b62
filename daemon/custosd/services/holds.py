"""Keeps the holds: what stands between the daemon and an act.

Laws:

1. A hold is in force here the moment that somebody placed it, before it is stored: an
   emergency stop does not wait for a database. It is stored all the same, and told.
2. Lifting is the opposite: in the store first, then here. A hold that could not be lifted in
   the store would come back with the next start.
3. Whoever acts asks `holding` right before the act, not the view: that one is a moment old.
"""

from collections.abc import Callable, Iterable
from datetime import datetime

import structlog
import trio

from custosd.core.errors import StoreConflict, StoreError
from custosd.core.facts import Fact, HoldLifted, HoldPlaced
from custosd.core.holds import Hold, HoldKind, holding
from custosd.flow.pulse import Pulse
from custosd.ports import ActionStore

log = structlog.get_logger()

RETRY_S = 5.0
"""How often a hold is offered again to a store that was away."""

LONGEST_WAIT_S = 60.0
"""Holds end by the wall clock, which may be set: it is read at least this often."""


class Holds:
    """All holds that are placed; the only writer of them."""

    def __init__(
        self,
        store: ActionStore,
        facts: trio.MemorySendChannel[Fact],
        now_utc: Callable[[], datetime],
        restored: Iterable[Hold] = (),
    ) -> None:
        self._store = store
        self._facts = facts
        self._now_utc = now_utc
        self._held = {hold.key: hold for hold in restored}
        self._unsaved: set[tuple[HoldKind, str]] = set()
        self.changed = trio.Event()
        """Set, and replaced by a new one, whenever a hold comes or goes."""

    def all(self) -> tuple[Hold, ...]:
        """Every hold in force, oldest first."""
        now = self._now_utc()
        return tuple(
            sorted(
                (hold for hold in self._held.values() if hold.in_force(now)),
                key=lambda hold: (hold.since_utc, hold.key),
            )
        )

    def holding(self, agent: str, *kinds: HoldKind) -> Hold | None:
        """What of these kinds is in force for this agent, now."""
        return holding(self._held.values(), agent, kinds, self._now_utc())

    def get(self, kind: HoldKind, subject: str) -> Hold | None:
        """The hold of this key, if it is in force."""
        hold = self._held.get((kind, subject))
        return hold if hold is not None and hold.in_force(self._now_utc()) else None

    async def place(self, hold: Hold) -> bool:
        """Place a hold; False: it is in force and could not be stored yet."""
        self._held[hold.key] = hold
        self._unsaved.add(hold.key)
        self._wake()
        log.info("hold.placed", kind=hold.kind, subject=hold.subject, by=hold.by)
        await self._facts.send(HoldPlaced(hold))
        return await self._save(hold)

    async def lift(self, kind: HoldKind, subject: str, by: str, reason: str = "") -> bool:
        """Lift a hold; False: there is none. Raises `StoreError`: it is still in force."""
        key = (kind, subject)
        if key not in self._held:
            return False
        while True:
            try:
                await self._store.lift_hold(kind, subject)
            except StoreConflict:
                await trio.lowlevel.checkpoint()
            else:
                break
        self._held.pop(key, None)
        self._unsaved.discard(key)
        self._wake()
        log.info("hold.lifted", kind=kind, subject=subject, by=by)
        await self._facts.send(HoldLifted(kind, subject, by, reason))
        return True

    def _wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def _save(self, hold: Hold) -> bool:
        try:
            await self._store.place_hold(hold)
        except StoreError as error:
            log.warning("hold.unsaved", kind=hold.kind, subject=hold.subject, error=str(error))
            return False
        if self._held.get(hold.key) == hold:
            self._unsaved.discard(hold.key)
        return True

    async def _tend(self) -> None:
        now = self._now_utc()
        for hold in [h for h in self._held.values() if not h.in_force(now)]:
            try:
                await self.lift(hold.kind, hold.subject, "time", "ran_out")
            except StoreError:
                log.warning("hold.unsaved", kind=hold.kind, subject=hold.subject, error="lift")
        for key in sorted(self._unsaved):
            if (held := self._held.get(key)) is not None:
                await self._save(held)

    async def keep(
        self,
        pulse: Pulse,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Take away holds that ran out and store those that could not be; never returns.

        Started: when all that was restored has been told of. Raises nothing of its own.
        """
        for hold in self.all():
            await self._facts.send(HoldPlaced(hold))
        task_status.started()
        while True:
            changed = self.changed
            await self._tend()
            with pulse.waiting(), trio.move_on_after(self._until_next_s()):
                await changed.wait()

    def _until_next_s(self) -> float:
        now = self._now_utc()
        ends = [
            max(0.0, (hold.until_utc - now).total_seconds())
            for hold in self._held.values()
            if hold.until_utc is not None
        ]
        pause_s = RETRY_S if self._unsaved else LONGEST_WAIT_S
        # An end that lies behind us could not be stored: it is tried again like the others.
        return min([pause_s, *(end if end > 0 else RETRY_S for end in ends)])
