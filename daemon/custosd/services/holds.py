"""Keeps the holds: what stands between the daemon and an act.

Laws:

1. A hold is in force here the moment that somebody placed it, before it is stored: an
   emergency stop does not wait for a database. It is stored all the same, and told.
2. Lifting is the opposite: in the store first, then here. A hold that could not be lifted in
   the store would come back with the next start.
3. Whoever acts asks `holding` right before the act, not the view: that one is a moment old.
4. The store is told one thing after the other, and what holds then: a hold that was placed
   while another of its key was lifted, or stored, stays.
5. Many holds cost the store no more calls than one: those that are not stored yet go there
   together.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from datetime import datetime

import structlog
import trio

from custosd.core.errors import StoreError, StoreRefused, StoreUnavailable
from custosd.core.facts import Fact, HoldLifted, HoldPlaced
from custosd.core.holds import FLEET, Hold, HoldKind, holding
from custosd.flow.pulse import Pulse
from custosd.ports import ActionStore
from custosd.services.store_absence import past_conflicts

log = structlog.get_logger()

RETRY_S = 5.0
"""How often a hold is offered again to a store that was away."""

PATIENCE_S = 5.0
"""How long whoever places a hold waits for it to be stored; it is in force before that."""

LONGEST_WAIT_S = 60.0
"""Holds end by the wall clock, which may be set: it is read at least this often."""

_MOST_ATTEMPTS = 21
"""So many times in a row a lifting is tried that other transactions are in the way of."""

_Key = tuple[HoldKind, str]


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
        self._held: dict[_Key, Hold] = {}
        self._naming: dict[_Key, Hold] = {}
        self._unsaved: set[_Key] = set()
        self._refused: set[_Key] = set()
        for hold in restored:
            self._put(hold)
        self._storing = trio.Lock()
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
        # Not over all of them: there may be one for each concern of a large fleet.
        for kind in kinds:
            for subject in (agent, FLEET):
                if (hold := self.get(kind, subject)) is not None:
                    return hold
        return holding(self._naming.values(), agent, kinds, self._now_utc())

    def get(self, kind: HoldKind, subject: str) -> Hold | None:
        """The hold of this key, if it is in force."""
        hold = self._held.get((kind, subject))
        return hold if hold is not None and hold.in_force(self._now_utc()) else None

    async def place(self, hold: Hold) -> bool:
        """Place a hold; False: it is in force and could not be stored yet."""
        await self.place_all([hold])
        with trio.move_on_after(PATIENCE_S), suppress(StoreError):
            await self._save([hold.key])
        return hold.key not in self._unsaved and hold.key not in self._refused

    async def place_all(self, holds: Sequence[Hold]) -> None:
        """Place holds and leave it to `keep` to store them, together.

        All are in force before anything is awaited; waits for room in the facts, never for
        the store.
        """
        for hold in holds:
            self._put(hold)
            self._unsaved.add(hold.key)
            log.info("hold.placed", kind=hold.kind, subject=hold.subject, by=hold.by)
        self._wake()
        for hold in holds:
            await self._facts.send(HoldPlaced(hold))

    async def lift(self, kind: HoldKind, subject: str, by: str, reason: str = "") -> bool:
        """Lift a hold; False: there is none. Raises `StoreError`: it is still in force.

        One that was placed anew meanwhile stays; the other one has ended all the same.
        """
        return await self.lift_all([(kind, subject)], by, reason) > 0

    async def lift_all(self, keys: Collection[_Key], by: str, reason: str = "") -> int:
        """Lift those that there are, all or none; returns how many. As `lift` otherwise."""

        def there() -> list[Hold]:
            return [hold for key in keys if (hold := self._held.get(key)) is not None]

        return await self._lift(there, by, reason)

    async def _lift(self, chosen: Callable[[], list[Hold]], by: str, reason: str) -> int:
        """Lift what is chosen once the store may be told."""
        async with self._storing:
            holds = chosen()
            if not holds:
                return 0
            await self._lift_stored([hold.key for hold in holds])
            # Where another one holds by now, it is not stored yet, and stays.
            lifted = [hold for hold in holds if self._held.get(hold.key) is hold]
            for hold in lifted:
                del self._held[hold.key]
                self._naming.pop(hold.key, None)
                self._unsaved.discard(hold.key)
                self._refused.discard(hold.key)
        if lifted:
            self._wake()
        for hold in lifted:
            log.info("hold.lifted", kind=hold.kind, subject=hold.subject, by=by)
        for hold in lifted:
            await self._facts.send(HoldLifted(hold.kind, hold.subject, by, reason))
        return len(holds)

    async def _lift_stored(self, keys: Sequence[_Key]) -> None:
        async def lift() -> None:
            if len(keys) == 1:
                await self._store.lift_hold(*keys[0])
            else:
                await self._store.lift_holds(keys)

        await past_conflicts(lift, _MOST_ATTEMPTS)

    def _put(self, hold: Hold) -> None:
        self._held[hold.key] = hold
        self._refused.discard(hold.key)
        self._naming.pop(hold.key, None)
        if hold.agents:
            self._naming[hold.key] = hold

    def _wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def _save(self, keys: Collection[_Key]) -> None:
        """Store what holds now under these keys, if it is not; raises `StoreError`: not stored."""
        async with self._storing:
            while unsaved := [self._held[key] for key in keys if key in self._unsaved]:
                await self._store_together(unsaved)

    async def _store_together(self, holds: Sequence[Hold]) -> None:
        """Store them in one unit; one that is refused keeps no other from being stored."""
        key = holds[0].key
        try:
            if len(holds) == 1:
                await self._store.place_hold(holds[0])
            else:
                await self._store.place_holds(holds)
        except StoreRefused as error:
            if len(holds) > 1:
                middle = len(holds) // 2
                await self._store_together(holds[:middle])
                await self._store_together(holds[middle:])
                return
            # In force until this process ends; offering it again would change nothing.
            log.error("hold.refused", kind=key[0], subject=key[1], error=str(error))
            self._unsaved.discard(key)
            self._refused.add(key)
        except StoreError as error:
            log.warning("hold.unsaved", kind=key[0], subject=key[1], error=str(error))
            raise
        else:
            for hold in holds:
                if self._held[hold.key] is hold:
                    self._unsaved.discard(hold.key)

    async def _tend(self) -> None:
        """Lift what ran out and store what is not; leaves off when the store is away."""
        now = self._now_utc()
        ended = [hold for hold in self._held.values() if not hold.in_force(now)]
        try:
            for hold in ended:
                await self._lift_ended(hold)
            await self._save(sorted(self._unsaved))
        except StoreError:
            return  # told of where it was raised

    async def _lift_ended(self, hold: Hold) -> None:
        def still_there() -> list[Hold]:
            return [hold] if self._held.get(hold.key) is hold else []

        try:
            await self._lift(still_there, "time", "ran_out")
        except StoreError as error:
            log.warning("hold.unsaved", kind=hold.kind, subject=hold.subject, error=str(error))
            if isinstance(error, StoreUnavailable):
                raise

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
            # How long this takes is the store's to say: each of its steps is bounded there.
            with pulse.waiting():
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
