"""Watches lives: hears, looks, keeps the deadlines, and knows when it could not.

    BeatRegister ─┐
    ProcessWatch ─┼─► [ core.liveness.Lives ] ─► facts ─► board
    FleetView ────┤            │
    Prober ◄──────┴── suspects ┘

Laws:

1. Everything is judged in `core.liveness`; here is only waiting, looking and telling.
2. A stand-still of our own is found before any deadline that it made late is kept.
3. What is known of lives is stored from time to time, never before it is acted upon: it is
   made anew by the next beats. What must not be lost is the restarter's (see there).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import structlog
import trio

from custosd.core.agents import AgentId
from custosd.core.errors import StoreError
from custosd.core.evidence import Observation, ProcessIdentity, Source, Value
from custosd.core.facts import BeatsRefused, BeatsSuperseded, Fact
from custosd.core.liveness import LivenessLimits, Lives, slowness_of
from custosd.core.view import FleetView
from custosd.flow.latest import Latest
from custosd.flow.pulse import Pulses
from custosd.ports import ActionStore, Prober, ProcessWatch
from custosd.services.beats import BeatRegister

log = structlog.get_logger()

TICK_S = 1.0
"""How often the time is looked at, at least: a stall is seen by its lateness."""

GROWTH_S = 1.0
"""How soon the growth of transcripts counts as a sign of life."""

COUNTS_S = 60.0
SCAN_S = 60.0
"""How often refusals are told, and all lives are looked over for a deadline that was lost."""

LATE_S = 5.0
"""A deadline kept later than this, beyond our own stalls, was lost."""

HEARD_S = 15.0
HEARD_WINDOWS = 4
FEW_BEATS = 20
"""The rate of all beats is compared with the best of the last four windows of 15 s."""


@dataclass(frozen=True, slots=True)
class LivenessSettings:
    """`stall_s` is the lateness of ourselves from which on agents get an amnesty."""

    limits: LivenessLimits = field(default_factory=LivenessLimits)
    probe_timeout_s: float = 10.0
    probe_concurrency: int = 20
    stall_s: float = 5.0
    flush_s: float = 10.0


@dataclass(frozen=True, slots=True)
class LivenessPorts:
    """What lives are watched with.

    `identify` is the process that has an id now, None where there is none; `boottime` goes
    on while the machine sleeps, unlike trio's clock.
    """

    register: BeatRegister
    watch: ProcessWatch
    prober: Prober
    store: ActionStore
    view: Latest[FleetView]
    facts: trio.MemorySendChannel[Fact]
    identify: Callable[[int], ProcessIdentity | None]
    boottime: Callable[[], float]
    now_utc: Callable[[], datetime]


class LivenessWatch:
    """The service's moving parts; `lives` is shared with those who act."""

    def __init__(self, lives: Lives, ports: LivenessPorts, settings: LivenessSettings) -> None:
        self.lives = lives
        self._ports = ports
        self._settings = settings
        self._dirty: set[AgentId] = set()
        self._watched: dict[AgentId, ProcessIdentity] = {}
        self._sooner = trio.Event()
        self._planned_at = 0.0
        self._store_away_at: float | None = None
        self._heard: list[int] = []
        self._grown: dict[AgentId, object] = {}

    async def run(
        self, pulses: Pulses, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Watch until cancelled; what is known is stored a last time then, for a short while.

        Started: when everything listens. Raises nothing of its own.
        """
        try:
            async with trio.open_nursery() as nursery:
                for name, part in (
                    ("liveness.hear", self._hear),
                    ("liveness.mourn", self._mourn),
                    ("liveness.follow", self._follow),
                    ("liveness.flush", self._flush),
                    ("liveness.count", self._count),
                ):
                    nursery.start_soon(part, pulses, name, name=name)
                nursery.start_soon(self._keep_time, pulses, "liveness.time", nursery)
                task_status.started()
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(2.0):
                await self._save()

    # What comes in

    async def _tell(self, facts: Sequence[Fact]) -> None:
        for fact in facts:
            await self._ports.facts.send(fact)
        if self.lives.next_at() < self._planned_at:
            self._sooner.set()

    async def _hear(self, pulses: Pulses, name: str) -> None:
        with pulses.watched(name) as pulse:
            while True:
                with pulse.waiting():
                    batch = await self._ports.register.next_batch()
                facts: list[Fact] = []
                for received in batch:
                    agent = received.beat.agent
                    facts += self.lives.beat(received)
                    self._dirty.add(agent)
                    if received.beat.pid:
                        facts += self._identified(agent, received.beat.pid)
                await self._tell(facts)
                pulse.beat()

    def _identified(self, agent: AgentId, pid: int) -> Sequence[Fact]:
        known = self.lives.process(agent)
        if known is not None and known.pid == pid:
            return ()
        process = self._ports.identify(pid)
        if process is None or agent not in self.lives:
            return ()
        seen = Observation(Source.PROCESS, Value.OK, "process_there", None, process)
        facts = self.lives.observed(agent, seen, trio.current_time())
        self._watch_process(agent)
        return facts

    def _watch_process(self, agent: AgentId) -> None:
        process = self.lives.process(agent)
        if process is not None and self._watched.get(agent) != process:
            if self._ports.watch.watch(agent, process):
                self._watched[agent] = process
            else:
                self._watched.pop(agent, None)

    async def _mourn(self, pulses: Pulses, name: str) -> None:
        with pulses.watched(name) as pulse:
            while True:
                with pulse.waiting():
                    deaths = await self._ports.watch.next_deaths()
                now = trio.current_time()
                facts: list[Fact] = []
                for death in deaths:
                    if self._watched.get(death.agent) == death.process:
                        del self._watched[death.agent]
                    facts += self.lives.died(death.agent, death.process, death.exit, now)
                    self._dirty.add(death.agent)
                await self._tell(facts)

    async def _follow(self, pulses: Pulses, name: str) -> None:
        with pulses.watched(name) as pulse:
            seen = -1
            while True:
                with pulse.waiting():
                    published = await self._ports.view.wait_changed(seen)
                seen = published.version
                await self._tell(self._growth(published.value))
                with pulse.waiting():
                    await trio.sleep(GROWTH_S)

    def _growth(self, view: FleetView) -> list[Fact]:
        facts: list[Fact] = []
        now = trio.current_time()
        for agent in self.lives:
            known = view.agents.get(agent)
            if known is None or known.grown_utc is None:
                continue
            if self._grown.get(agent) != known.grown_utc:
                # Growth that was there before we looked is no sign of life now.
                if agent in self._grown:
                    facts += self.lives.grown(agent, now)
                    self._dirty.add(agent)
                self._grown[agent] = known.grown_utc
        return facts

    # Time

    async def _keep_time(self, pulses: Pulses, name: str, nursery: trio.Nursery) -> None:
        limiter = trio.CapacityLimiter(self._settings.probe_concurrency)
        with pulses.watched(name) as pulse:
            boot = self._ports.boottime() - trio.current_time()
            while True:
                now = trio.current_time()
                self._planned_at = min(self.lives.next_at(), now + TICK_S)
                self._sooner = trio.Event()
                with trio.move_on_at(self._planned_at):
                    await self._sooner.wait()
                now = trio.current_time()
                lag_s = max(0.0, now - self._planned_at)
                boot_now = self._ports.boottime() - now
                slept_s, boot = boot_now - boot, boot_now
                await self._excuse(now, lag_s, slept_s)
                self.lives.slowness(
                    slowness_of(lag_s, self._store_away_at is not None, self._heard_share()), now
                )
                due = self.lives.due(now)
                for agent in due.look_at:
                    nursery.start_soon(self._look, agent, limiter)
                await self._tell(due.facts)
                pulse.beat()

    async def _excuse(self, now: float, lag_s: float, slept_s: float) -> None:
        for reason, gap_s in (("suspend", slept_s), ("stall", lag_s)):
            if gap_s > self._settings.stall_s:
                log.warning("amnesty.granted", reason=reason, gap_s=round(gap_s, 3))
                await self._tell(self.lives.amnesty(reason, gap_s, now))
                return

    def _heard_share(self) -> float:
        """How many beats come, of what came at best lately; 1 where there are too few to say."""
        if len(self._heard) < HEARD_WINDOWS + 2:
            return 1.0
        counts = [b - a for a, b in zip(self._heard, self._heard[1:], strict=False)]
        best = max(counts[:-1])
        return 1.0 if best < FEW_BEATS else min(1.0, counts[-1] / best)

    async def _look(self, agent: AgentId, limiter: trio.CapacityLimiter) -> None:
        async with limiter:
            watched = self.lives.watched(agent)
            if watched is None:
                return
            with trio.move_on_after(self._settings.probe_timeout_s):
                seen = await self._ports.prober.probe(
                    agent, self.lives.process(agent), watched.sources - {Source.BEAT}
                )
                now = trio.current_time()
                facts = [f for one in seen for f in self.lives.observed(agent, one, now)]
                self._watch_process(agent)
                self._dirty.add(agent)
                await self._tell(facts)
            await self._tell(self.lives.looked(agent, trio.current_time()))

    # What is stored and told from time to time

    async def _flush(self, pulses: Pulses, name: str) -> None:
        with pulses.watched(name) as pulse:
            while True:
                with pulse.waiting():
                    await trio.sleep(self._settings.flush_s)
                await self._save()
                pulse.beat()

    async def _save(self) -> None:
        now, now_utc = trio.current_time(), self._ports.now_utc()
        dirty, self._dirty = self._dirty, set()
        found = (self.lives.record(agent, now, now_utc) for agent in sorted(dirty))
        records = [record for record in found if record is not None]
        if not records and self._store_away_at is None:
            return
        try:
            await self._ports.store.save_lives(records)
        except StoreError as error:
            self._dirty |= dirty
            if self._store_away_at is None:
                self._store_away_at = now
                log.warning("store.lost", during="lives", error=str(error), waiting=len(records))
            return
        except trio.Cancelled:
            self._dirty |= dirty
            raise
        if self._store_away_at is not None:
            away_s, self._store_away_at = now - self._store_away_at, None
            log.info("store.returned", during="lives")
            if away_s > self._settings.limits.shortest_deadline_s:
                await self._tell(self.lives.amnesty("database_gap", away_s, trio.current_time()))

    async def _count(self, pulses: Pulses, name: str) -> None:
        with pulses.watched(name) as pulse:
            windows = 0
            while True:
                with pulse.waiting():
                    await trio.sleep(HEARD_S)
                self._heard = [*self._heard[-HEARD_WINDOWS - 1 :], self._ports.register.accepted]
                windows += 1
                if windows * HEARD_S >= COUNTS_S:
                    windows = 0
                    await self._tell_counts()
                    self._scan()

    async def _tell_counts(self) -> None:
        counts = self._ports.register.take_counts()
        for (refusal, agent), count in counts.refused.items():
            log.warning("beats.refused", reason=refusal, agent=agent, count=count)
            await self._ports.facts.send(BeatsRefused(refusal, count, agent))
        if counts.superseded:
            log.info("beats.superseded", count=counts.superseded)
            await self._ports.facts.send(BeatsSuperseded(counts.superseded))

    def _scan(self) -> None:
        lost = self.lives.overdue(trio.current_time(), LATE_S)
        if lost:
            log.error("deadline.lost", agents=len(lost), first=lost[0])
            self._sooner.set()
