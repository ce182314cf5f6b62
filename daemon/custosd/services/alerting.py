"""Tells persons what concerns them, and when it is over.

    FleetView.hands.concerns --> [ silenced? known? told? ] --> [ Pace ] --> Notifier
                                                                  └── Notified, HoldKind.NOTIFIED

Laws:

1. Each concern is told once by each way, over restarts too: the ways that it was told by
   stand in its NOTIFIED hold, which is placed after the telling, and stored after that. A
   crash before it is stored tells it twice, never not at all.
2. Its end is told by the ways that told it, and by no other; then the hold is lifted, and an
   ACK with it, so that the same concern is news when it comes again.
3. One notice at a time by each way. A way that fails holds up no other, and is tried again for
   as long as the concern lasts. No notice waits for the store, whatever it is at.
4. A storm costs the store as many calls as one concern.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import structlog
import trio

from custosd.core.agents import AgentId
from custosd.core.alerts import AlertLimits, Matter, Pace, pause_s, text_of
from custosd.core.errors import NotifyError, StoreError
from custosd.core.facts import Fact, Notified
from custosd.core.holds import Hold, HoldKind
from custosd.core.view import Concern, FleetView
from custosd.flow.alarm import Alarm
from custosd.flow.latest import Latest
from custosd.flow.monitor import Kind, operation
from custosd.flow.pulse import Pulse
from custosd.ports import Notice, Notifier
from custosd.services.holds import Holds

log = structlog.get_logger()

BY = "alerting"
LONGEST_WAIT_S = 60.0
STORE_RETRY_S = 5.0

LOOK_S = 0.2
"""The least time between two looks: what is told of a storm changes a hold for each concern."""


@dataclass(slots=True)
class _Way:
    """One notifier, and how it has been doing. `complained`: its failures that were told."""

    notifier: Notifier
    pace: Pace
    alarm: Alarm
    failures: int = 0
    complained: set[str] = field(default_factory=set[str])

    @property
    def name(self) -> str:
        return self.notifier.name


class _Alerting:
    """The concerns, against what has been told of them."""

    def __init__(
        self,
        view: Latest[FleetView],
        holds: Holds,
        notifiers: Sequence[Notifier],
        facts: trio.MemorySendChannel[Fact],
        limits: AlertLimits,
        now_utc: Callable[[], datetime],
    ) -> None:
        self._view = view
        self._holds = holds
        self._facts = facts
        self._limits = limits
        self._now_utc = now_utc
        self._ways = [_Way(n, Pace(limits), Alarm(LONGEST_WAIT_S)) for n in notifiers]
        self._names = frozenset(way.name for way in self._ways)
        self._alarm = Alarm(LONGEST_WAIT_S)
        self._settled_at = trio.current_time() + limits.settle_s
        self._seen: set[str] = set()
        self._over: dict[str, datetime] = {}
        self._lifting: set[str] = set()

    async def run(self, pulse: Pulse, task_status: trio.TaskStatus[None]) -> None:
        """See `keep_alerts`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_view)
            nursery.start_soon(self._watch_holds)
            self._look()
            for way in self._ways:
                nursery.start_soon(self._keep_telling, way)
            task_status.started()
            while True:
                self._alarm.rewind()
                self._look()
                with pulse.waiting():
                    await self._lift()
                pulse.beat()
                with pulse.waiting():
                    await self._alarm.wait()

    def _ring(self) -> None:
        self._alarm.ring()
        for way in self._ways:
            way.alarm.ring()

    async def _watch_view(self) -> None:
        concerns: Mapping[str, Concern] | None = None
        async for view in self._view:
            if view.hands.concerns is not concerns:
                concerns = view.hands.concerns
                self._look()
                self._ring()
                await trio.sleep(LOOK_S)

    async def _watch_holds(self) -> None:
        while True:
            changed = self._holds.changed
            self._ring()
            await trio.sleep(LOOK_S)
            await changed.wait()

    def _look(self) -> None:
        """Compare what is with what was told; note what is over."""
        present = self._view.value.hands.concerns
        self._seen |= present.keys()
        for name in self._over.keys() & present.keys():
            del self._over[name]
        settled = trio.current_time() >= self._settled_at
        if not settled:
            self._alarm.after(self._settled_at - trio.current_time())
        for hold in self._holds.all():
            name = hold.subject
            gone = hold.kind is HoldKind.NOTIFIED and name not in present
            if not gone or name in self._lifting or not (settled or name in self._seen):
                continue
            if name not in self._over:
                self._over[name] = self._now_utc()
            agent = AgentId(hold.agents[0]) if hold.agents else None
            if self._is_quiet(name, agent) or not self._names & _ways_of(hold):
                self._done_with(name)
        for name in self._seen - present.keys():
            if self._holds.get(HoldKind.NOTIFIED, name) is None:
                # Over before anybody was told; a person may have known of it all the same.
                self._done_with(name)

    def _done_with(self, name: str) -> None:
        self._over.pop(name, None)
        self._seen.discard(name)
        if any(self._holds.get(kind, name) for kind in (HoldKind.NOTIFIED, HoldKind.ACK)):
            self._lifting.add(name)
            self._alarm.ring()

    async def _lift(self) -> None:
        names = frozenset(self._lifting)
        if not names:
            return
        keys = [(kind, name) for name in names for kind in (HoldKind.ACK, HoldKind.NOTIFIED)]
        try:
            await self._holds.lift_all(keys, BY, "resolved")
        except StoreError as error:
            log.warning(
                "store.lost", during="alerting", error=str(error), waiting=len(self._lifting)
            )
            self._alarm.after(STORE_RETRY_S)
        else:
            self._lifting -= names
            self._ring()

    def _is_quiet(self, concern: str, agent: AgentId | None) -> bool:
        """Whether a person knows already, or does not want to."""
        return (
            self._holds.get(HoldKind.ACK, concern) is not None
            or self._holds.get(HoldKind.SILENCE, concern) is not None
            or self._holds.holding(agent or "", HoldKind.SILENCE) is not None
        )

    def _raised(self, way: _Way) -> list[Matter]:
        """What is to be told by this way, in the order in which it came up."""
        found = []
        for concern in self._view.value.hands.concerns.values():
            if concern.id in self._lifting or self._is_quiet(concern.id, concern.agent):
                continue
            hold = self._holds.get(HoldKind.NOTIFIED, concern.id)
            if hold is None or way.name not in _ways_of(hold):
                found.append(_matter(concern))
        return sorted(found, key=lambda matter: (matter.at_utc, matter.concern))

    def _resolved(self, way: _Way) -> list[Matter]:
        """The ends that are to be told by this way."""
        found = []
        for name, at_utc in self._over.items():
            hold = self._holds.get(HoldKind.NOTIFIED, name)
            if hold is not None and name not in self._lifting and way.name in _ways_of(hold):
                agent = AgentId(hold.agents[0]) if hold.agents else None
                found.append(Matter(name, name.partition(":")[0], agent, "", at_utc))
        return found

    async def _keep_telling(self, way: _Way) -> None:
        while True:
            way.alarm.rewind()
            told = False
            for resolved in (False, True):
                waiting = self._resolved(way) if resolved else self._raised(way)
                now_at = trio.current_time()
                matters, free_at = way.pace.next(waiting, now_at, resolved=resolved)
                if free_at is not None:
                    way.alarm.after(free_at - now_at)
                if matters:
                    told = True
                    await self._tell(way, matters, resolved=resolved)
                    break
            if not told:
                await way.alarm.wait()

    async def _tell(self, way: _Way, matters: Sequence[Matter], *, resolved: bool) -> None:
        notice = _notice(matters, resolved=resolved)
        try:
            async with operation(Kind.NETWORK, "notice"):
                with trio.fail_after(self._limits.timeout_s):
                    await way.notifier.notify(notice)
        except trio.TooSlowError:
            await self._failed(way, notice, NotifyError("timeout"))
        except NotifyError as error:
            await self._failed(way, notice, error)
        else:
            way.failures = 0
            way.complained.discard(notice.concern)
            way.pace.told(len(matters), trio.current_time(), resolved=resolved)
            await self._mark(way, matters, resolved=resolved)
            for matter in matters:
                await self._facts.send(Notified(matter.concern, way.name, resolved))

    async def _failed(self, way: _Way, notice: Notice, error: NotifyError) -> None:
        way.failures += 1
        again_in_s = pause_s(way.failures, self._limits)
        log.warning(
            "notice.failed",
            way=way.name,
            concern=notice.concern,
            resolved=notice.resolved,
            reason=error.reason,
            error=str(error),
            attempt=way.failures,
            again_in_s=again_in_s,
        )
        if notice.concern not in way.complained:
            way.complained &= self._view.value.hands.concerns.keys()
            way.complained.add(notice.concern)
            failed = Notified(notice.concern, way.name, notice.resolved, error.reason)
            await self._facts.send(failed)
        await trio.sleep(again_in_s)

    async def _mark(self, way: _Way, matters: Sequence[Matter], *, resolved: bool) -> None:
        """Note in the holds what has been told."""
        noted: list[Hold] = []
        for matter in matters:
            hold = self._holds.get(HoldKind.NOTIFIED, matter.concern)
            ways = _ways_of(hold) if hold is not None else frozenset[str]()
            # It may have been over before this was told: then its end is still to be.
            self._seen.add(matter.concern)
            if not resolved:
                noted.append(self._notified(matter, ways | {way.name}))
            elif ways & self._names - {way.name}:
                noted.append(self._notified(matter, ways - {way.name}))
            else:
                self._done_with(matter.concern)
        # Nothing has been awaited since they were read: other ways note in the same holds.
        await self._holds.place_all(noted)

    def _notified(self, matter: Matter, ways: Collection[str]) -> Hold:
        agents = (matter.agent,) if matter.agent is not None else ()
        written = " ".join(sorted(ways))
        since_utc = self._now_utc()
        return Hold(HoldKind.NOTIFIED, matter.concern, BY, written, since_utc, agents=agents)


async def keep_alerts(
    view: Latest[FleetView],
    holds: Holds,
    notifiers: Sequence[Notifier],
    facts: trio.MemorySendChannel[Fact],
    limits: AlertLimits,
    now_utc: Callable[[], datetime],
    pulse: Pulse,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Tell every concern by every notifier, and its end; never returns unless cancelled.

    Started: after the first look. Closes `facts`. Back-pressure: waits for room in `facts`.
    A notifier's `NotifyError`s are told and tried again; another exception is a defect.
    Names of notifiers have no white space, and no two are equal.
    """
    async with facts:
        await _Alerting(view, holds, notifiers, facts, limits, now_utc).run(pulse, task_status)


def _ways_of(hold: Hold) -> frozenset[str]:
    return frozenset(hold.reason.split())


def _matter(concern: Concern) -> Matter:
    return Matter(concern.id, concern.kind, concern.agent, concern.reason, concern.since_utc)


def _notice(matters: Sequence[Matter], *, resolved: bool) -> Notice:
    first = matters[0]
    text = text_of(matters, resolved=resolved)
    if len(matters) == 1:
        return Notice(first.concern, first.kind, first.agent or "", text, resolved, first.at_utc)
    return Notice(f"storm:{first.concern}", "storm", "", text, resolved, first.at_utc)
