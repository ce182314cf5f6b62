"""Watches lives: hears, looks, keeps the deadlines, and knows when it could not.

    BeatRegister ─┐
    ProcessWatch ─┼─► [ core.liveness.Lives ] ─► facts ─► board
    FleetView ────┤            │
    Prober ◄──────┴── suspects ┘

Laws:

1. Everything is judged in `core.liveness`; here is only waiting, looking and telling.
2. Before a deadline is kept, what was heard by then is taken in, and a stand-still of our own
   that made it late is found.
3. What is known of lives is stored from time to time, never before it is acted upon: it is
   made anew by the next beats. What must not be lost is the restarter's (see there).
"""

import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime

import structlog
import trio

from custosd.core.agents import AgentId, AgentState
from custosd.core.beats import BeatStatus, ReceivedBeat, Refusal
from custosd.core.errors import StoreConflict, StoreRefused, StoreUnavailable
from custosd.core.evidence import Observation, ProcessIdentity, Source, Value
from custosd.core.facts import BeatsRefused, BeatsSuperseded, Fact, LifeChanged
from custosd.core.liveness import LivenessLimits, Lives, Watched
from custosd.core.lives import LifeRecord
from custosd.core.own_pace import HEARD_S, OwnPace
from custosd.core.view import FleetView
from custosd.flow.bounded import for_each
from custosd.flow.latest import Latest
from custosd.flow.monitor import Kind, operation
from custosd.flow.pulse import Pulse, Pulses
from custosd.flow.rounds import Rounds
from custosd.flow.work_queue import WorkNotDone, WorkQueue
from custosd.ports import ActionStore, Prober, ProcessWatch
from custosd.services.beats import BeatRegister

log = structlog.get_logger()

TICK_S = 1.0
"""How often the time is looked at, at least: a stall is seen by its lateness."""

GROWTH_S = 1.0
"""How soon the growth of transcripts counts as a sign of life."""

COUNTS_S = 60.0
"""How often refusals are told, and strangers let go."""

LATE_S = 5.0
"""A deadline kept later than this, beyond our own stalls, was lost."""

AT_ONCE = 500
"""Beats and agents that are gone through before others get their turn: some milliseconds."""

MOST_HEARD = 5_000
"""Lives stored in one flush of which nothing has changed but when they were heard."""

LAST_FLUSH_S = 2.0
"""How long what is known of lives may take to be stored at the end."""

FORGET_S = 24 * 3600.0
"""After how much silence an agent is let go that nobody has configured."""

MOST_LOOKS = 1_000_000
"""Looks that wait at most: one of each life, and another of those whose look got lost."""

MOST_REFUSED = 20
"""Lives that are refused one by one in a flush; then it is no matter of single ones."""

_TOLD = {
    AgentState.RUNNING: BeatStatus.RUNNING,
    AgentState.IDLE: BeatStatus.IDLE,
    AgentState.WAITING: BeatStatus.WAITING,
}
"""What a transcript can say of an agent that does not beat."""


@dataclass(frozen=True, slots=True)
class LivenessSettings:
    """`stall_s` is the lateness of ourselves from which on agents get an amnesty."""

    limits: LivenessLimits = field(default_factory=LivenessLimits)
    probe_timeout_s: float = 10.0
    probe_concurrency: int = 20
    stall_s: float = 5.0
    flush_s: float = 10.0
    health_s: float = 30.0


@dataclass(frozen=True, slots=True)
class _Look:
    """A suspect to look at, and since when it waits for its turn (trio clock)."""

    agent: AgentId
    asked_at: float


def _look_failed(_look: _Look, error: Exception) -> None:
    # What was not looked at when we end is looked at by whoever comes next (`looks_lost`).
    if not isinstance(error, WorkNotDone):
        raise error


def _stranger(agent: AgentId) -> Watched | None:
    return Watched(agent, sources=frozenset({Source.BEAT, Source.PROCESS}), stranger=True)


@dataclass(frozen=True, slots=True)
class LivenessPorts:
    """What lives are watched with.

    `identify` is the process that has an id now, None where there is none; `boottime` goes
    on while the machine sleeps, unlike trio's clock. `stranger` says how an agent is watched
    that beats and is not watched yet (None: not at all), and is marked as one there.
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
    stranger: Callable[[AgentId], Watched | None] = _stranger


class LivenessWatch:
    """The service's moving parts; `lives` is shared with those who act."""

    def __init__(self, lives: Lives, ports: LivenessPorts, settings: LivenessSettings) -> None:
        self.lives = lives
        self._ports = ports
        self._settings = settings
        self._changed: set[AgentId] = set()
        self._heard: dict[AgentId, None] = {}
        self._strangers: dict[AgentId, float] = {}
        self._watched: dict[AgentId, ProcessIdentity] = {}
        self._unfound: dict[AgentId, int] = {}
        self._grown: dict[AgentId, datetime] = {}
        self._planned_at = -math.inf
        self._sooner = trio.Event()
        self._telling = trio.Lock()
        self._store_away_at: float | None = None
        self._pace = self._new_pace()
        self._flushes = Rounds[None]("heartbeats", ports.now_utc)
        self._healths = Rounds[None]("health", ports.now_utc)
        self._told_beats = 0

    async def run(
        self, pulses: Pulses, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Watch until cancelled; what is known is stored a last time then, for a short while.

        Started: when everything listens. Raises nothing of its own.
        """
        now = trio.current_time()
        # Whoever looked before this looks no more, and knew strangers that are watched still.
        self.lives.looks_lost(now)
        self._strangers = {agent: now for agent in self.lives if self._is_stranger(agent)}
        try:
            async with (
                trio.open_nursery() as nursery,
                WorkQueue(
                    self._look_at,
                    _look_failed,
                    workers=self._settings.probe_concurrency,
                    room=MOST_LOOKS,
                ) as looks,
            ):
                for name, part in (
                    ("liveness.hear", self._hear),
                    ("liveness.mourn", self._mourn),
                    ("liveness.follow", self._follow),
                    ("liveness.flush", self._flush),
                    ("liveness.count", self._count),
                    ("liveness.health", self._health),
                ):
                    nursery.start_soon(_pulsed, pulses, name, part, name=name)
                await self._watch_processes()
                task_status.started()
                with pulses.watched("liveness.time") as pulse:
                    await self._keep_time(pulse, looks)
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(LAST_FLUSH_S):
                await self._save(everything=True)

    # --- what comes in ----------------------------------------------------------------------

    async def _hear(self, pulse: Pulse) -> None:
        while True:
            with pulse.waiting():
                batch = await self._ports.register.next_batch(AT_ONCE)
            await self._tell(self._take_in(batch))

    def _take_in(self, batch: Sequence[ReceivedBeat]) -> list[Fact]:
        return [fact for received in batch for fact in self._take_beat(received)]

    def _take_beat(self, received: ReceivedBeat) -> Sequence[Fact]:
        beat = received.beat
        if beat.agent not in self.lives:
            watched = self._ports.stranger(beat.agent)
            if watched is None:
                return ()
            self.lives.watch(watched, received.at)
            if watched.stranger:
                self._strangers[beat.agent] = received.at
        elif beat.agent in self._strangers:
            self._strangers[beat.agent] = received.at
        facts = list(self.lives.beat(received))
        self._heard[beat.agent] = None
        # Ids of processes mean something on this machine alone.
        if beat.pid and received.door == "socket":
            facts += self._identify(beat.agent, beat.pid)
        return facts

    def _is_stranger(self, agent: AgentId) -> bool:
        watched = self.lives.watched(agent)
        return watched is not None and watched.stranger

    def _identify(self, agent: AgentId, pid: int) -> Sequence[Fact]:
        if not self.lives.lacks_process(agent, pid) or self._unfound.get(agent) == pid:
            return ()
        process = self._ports.identify(pid)
        if process is None:
            self._unfound[agent] = pid
            return ()
        seen = Observation(Source.PROCESS, Value.OK, "process_there", None, process)
        facts = self.lives.observed(agent, seen, trio.current_time())
        self._watch_process(agent)
        return facts

    async def _watch_processes(self) -> None:
        """Watch what was known at our start: some may have ended meanwhile."""
        for number, agent in enumerate(tuple(self.lives), 1):
            self._watch_process(agent)
            if number % AT_ONCE == 0:
                await trio.lowlevel.checkpoint()

    def _watch_process(self, agent: AgentId) -> None:
        process = self.lives.process(agent)
        if process is None or self._watched.get(agent) == process:
            return
        yes = self._ports.watch.watch(agent, process)
        if yes:
            self._watched[agent] = process
        else:
            self._watched.pop(agent, None)
        self.lives.attended(agent, yes=yes, now=trio.current_time())

    async def _mourn(self, pulse: Pulse) -> None:
        while True:
            with pulse.waiting():
                deaths = await self._ports.watch.next_deaths()
            now = trio.current_time()
            facts: list[Fact] = []
            for death in deaths:
                # It stays in `_watched`: watched again, it would only be mourned again, and
                # every death is looked into at once.
                self._unfound.pop(death.agent, None)
                facts += self.lives.died(death.agent, death.process, death.exit, now)
            await self._tell(facts)

    async def _follow(self, pulse: Pulse) -> None:
        seen, agents = -1, None
        while True:
            with pulse.waiting():
                published = await self._ports.view.wait_changed(seen)
            seen = published.version
            if published.value.agents is not agents:
                agents = published.value.agents
                await self._tell(self._growth(published.value))
            await pulse.sleep(GROWTH_S)

    def _growth(self, view: FleetView) -> list[Fact]:
        facts: list[Fact] = []
        now = trio.current_time()
        fewer: Iterable[AgentId] = view.agents if len(view.agents) < len(self.lives) else self.lives
        for agent in tuple(fewer):
            known = view.agents.get(agent)
            if known is None or known.grown_utc is None or agent not in self.lives:
                continue
            if self._grown.get(agent) != known.grown_utc:
                # Growth that was there before we looked is no sign of life now.
                if agent in self._grown:
                    facts += self.lives.grown(agent, now, _TOLD.get(known.state))
                self._grown[agent] = known.grown_utc
        return facts

    # --- time -------------------------------------------------------------------------------

    async def _keep_time(self, pulse: Pulse, looks: WorkQueue[_Look, None]) -> None:
        self._pace = self._new_pace()
        while True:
            facts, look_at = self._turn()
            for agent in look_at:
                looks.put_nowait(_Look(agent, trio.current_time()))
            await self._tell(facts)
            pulse.beat()
            self._sooner = trio.Event()
            self._planned_at = min(self.lives.next_at(), self._pace.now + TICK_S)
            with trio.move_on_at(self._planned_at):
                await self._sooner.wait()

    def _new_pace(self) -> OwnPace:
        now, boottime = trio.current_time(), self._ports.boottime()
        return OwnPace(TICK_S, self._settings.stall_s, now, boottime)

    def _turn(self) -> tuple[list[Fact], Sequence[AgentId]]:
        """One turn; nothing in it waits, so nothing comes between hearing and judging."""
        now = trio.current_time()
        gap = self._pace.turn(now, self._ports.boottime())
        facts = self._take_in(self._ports.register.take())
        if gap is not None:
            facts += self._excuse(gap.reason, gap.length_s)
        away = self._store_away_at is not None
        self.lives.slowness(self._pace.slowness(store_away=away))
        due = self.lives.due(now)
        return [*facts, *due.facts], due.look_at

    def _excuse(self, reason: str, gap_s: float) -> Sequence[Fact]:
        log.warning("amnesty.granted", reason=reason, gap_s=round(gap_s, 3), agents=len(self.lives))
        return self.lives.amnesty(reason, gap_s, trio.current_time())

    async def _look_at(self, look: _Look) -> None:
        if look.agent in self.lives:
            queued_s = trio.current_time() - look.asked_at
            async with operation(Kind.BACKGROUND, "look", queued_s):
                await self._look(look.agent, self.lives.to_look_at(look.agent))

    async def _look(self, agent: AgentId, sources: frozenset[Source]) -> None:
        """Look by all sources at once; one that does not answer in time keeps none other."""
        since = trio.current_time()
        process = self.lives.process(agent)
        seen: list[Observation] = []

        async def look(source: Source) -> None:
            with trio.move_on_after(self._settings.probe_timeout_s):
                seen.extend(await self._ports.prober.probe(agent, process, frozenset({source})))
                return
            seen.append(Observation(source, Value.UNKNOWN, "look_timed_out"))

        await for_each(sorted(sources), look)
        now = trio.current_time()
        seen.sort(key=lambda one: one.source)
        facts = [*self.lives.saw(agent, seen, now, since), *self.lives.looked(agent, now)]
        self._watch_process(agent)
        await self._tell(facts)

    async def _tell(self, facts: Sequence[Fact]) -> None:
        if self.lives.next_at() < self._planned_at:
            self._sooner.set()
        # In the order in which it came about: several parts tell, and the last word about an
        # agent is what the board believes. The lock is taken in the order of asking.
        async with self._telling:
            for fact in facts:
                if isinstance(fact, LifeChanged):
                    _log_change(fact)
                await self._ports.facts.send(fact)

    # --- what is stored and told from time to time ------------------------------------------

    async def _flush(self, pulse: Pulse) -> None:
        async def flush(coalesced: int) -> None:
            began_at, accepted = trio.current_time(), self._ports.register.accepted
            beats, self._told_beats = accepted - self._told_beats, accepted
            heard = len(self._heard)
            stored = await self._save(pulse)
            log.log(
                logging.INFO if beats or stored else logging.DEBUG,
                "heartbeats.swept",
                agents=len(self.lives),
                heard=heard,
                beats=beats,
                stored=stored,
                unstored=len(self._changed) + len(self._heard),
                coalesced=coalesced,
                duration_s=round(trio.current_time() - began_at, 4),
            )

        await self._flushes.run(self._settings.flush_s, flush, pulse)

    async def _health(self, pulse: Pulse) -> None:
        async def sweep(coalesced: int) -> None:
            await self._sweep_health(coalesced)

        await self._healths.run(self._settings.health_s, sweep, pulse)

    async def _sweep_health(self, coalesced: int) -> None:
        """Look at every life once: how they stand, and whether a deadline of one was lost.

        The store is not asked: it knows no deadline, and of lives only what was held here.
        """
        began_at = trio.current_time()
        counts = dict.fromkeys(Value, 0)
        for number, agent in enumerate(tuple(self.lives), 1):
            counts[self.lives.health(agent, trio.current_time()).value] += 1
            if number % AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        lost = self.lives.overdue(trio.current_time(), LATE_S)
        if lost:
            log.error("deadline.lost", agents=len(lost), first=lost[0])
            self._sooner.set()
        agents = sum(counts.values())
        known = agents - counts[Value.UNKNOWN]
        log.info(
            "health.swept",
            agents=agents,
            ok=counts[Value.OK],
            bad=counts[Value.BAD],
            unknown=counts[Value.UNKNOWN],
            lost=len(lost),
            coverage=round(known / agents, 4) if agents else None,
            coalesced=coalesced,
            duration_s=round(trio.current_time() - began_at, 4),
        )

    async def _save(self, pulse: Pulse | None = None, *, everything: bool = False) -> int:
        """Store what has changed, and of those who were only heard the longest unstored.

        Returns how many lives the store took; 0 where it is away.
        """
        self._changed |= self.lives.take_changed()
        most = len(self._heard) if everything else MOST_HEARD
        heard = [agent for agent, _ in zip(self._heard, range(most), strict=False)]
        taken, self._changed = self._changed, set()
        # Before the wait: whoever is heard meanwhile has to be stored again.
        for agent in heard:
            del self._heard[agent]
        agents = sorted(taken.union(heard))
        now, now_utc = trio.current_time(), self._ports.now_utc()
        found = [self.lives.record(agent, now, now_utc) for agent in agents]
        records = [record for record in found if record is not None]
        if not records and self._store_away_at is None:
            return 0
        try:
            with nullcontext() if pulse is None else pulse.waiting():
                await self._store_lives(records)
        except StoreConflict:
            self._put_back(taken, heard)
            return 0
        except StoreUnavailable as error:
            self._put_back(taken, heard)
            if self._store_away_at is None:
                self._store_away_at = now
                log.warning("store.lost", during="lives", error=str(error), waiting=len(records))
            return 0
        except trio.Cancelled:
            self._put_back(taken, heard)
            raise
        await self._store_answered(now)
        return len(records)

    async def _store_lives(self, records: Sequence[LifeRecord]) -> None:
        """One that is refused is left out, and costs no other: halve until it stands alone.

        Repeating it would be refused again; its next change is tried anew. Where many are
        refused, all that is left of a half goes with them.
        """
        parts, alone = [records], 0
        while parts:
            part = parts.pop()
            try:
                await self._ports.store.save_lives(part)
            except StoreRefused as error:
                if len(part) > 1 and alone < MOST_REFUSED:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
                    continue
                alone += 1
                first = part[0].agent if part else ""
                log.error("lives.refused", count=len(part), first=first, error=str(error))

    def _put_back(self, taken: set[AgentId], heard: Sequence[AgentId]) -> None:
        self._changed |= taken
        # They go to the front again: they have waited for longest.
        self._heard = dict.fromkeys([*heard, *self._heard])

    async def _store_answered(self, now: float) -> None:
        if self._store_away_at is None:
            return
        away_s, self._store_away_at = now - self._store_away_at, None
        log.info("store.returned", during="lives")
        if away_s > self._settings.limits.shortest_deadline_s:
            await self._tell(self._excuse("database_gap", away_s))

    async def _count(self, pulse: Pulse) -> None:
        while True:
            for _ in range(round(COUNTS_S / HEARD_S)):
                await pulse.sleep(HEARD_S)
                self._pace.heard(self._ports.register.accepted)
            await self._tell_counts()
            await self._let_strangers_go()

    async def _tell_counts(self) -> None:
        counts = self._ports.register.take_counts()
        totals: dict[Refusal, int] = {}
        for (refusal, _), count in counts.refused.items():
            totals[refusal] = totals.get(refusal, 0) + count
        for refusal, count in totals.items():
            log.warning("beats.refused", reason=str(refusal), count=count)
        for (refusal, agent), count in counts.refused.items():
            await self._ports.facts.send(BeatsRefused(refusal, count, agent))
        if counts.superseded:
            log.info("beats.superseded", count=counts.superseded)
            await self._ports.facts.send(BeatsSuperseded(counts.superseded))

    async def _let_strangers_go(self) -> None:
        now = trio.current_time()
        for agent, heard_at in tuple(self._strangers.items()):
            if not self._is_stranger(agent):
                del self._strangers[agent]  # it was configured, or dismissed, meanwhile
                continue
            ended = self.lives.state(agent) is AgentState.TERMINATED
            if now - heard_at < (COUNTS_S if ended else FORGET_S):
                continue
            del self._strangers[agent]
            facts = self.lives.let_go(agent, now)
            self._ports.watch.forget(agent)
            self._ports.register.forget(agent)
            await self._tell(facts)
        for kept in (self._watched, self._unfound, self._grown):
            for agent in kept.keys() - set(self.lives):
                del kept[agent]


async def _pulsed(pulses: Pulses, name: str, part: Callable[[Pulse], Awaitable[None]]) -> None:
    with pulses.watched(name) as pulse:
        await part(pulse)


def _log_change(fact: LifeChanged) -> None:
    log.log(
        logging.WARNING if fact.value is Value.BAD else logging.INFO,
        "life.changed",
        agent=fact.agent,
        epoch=fact.epoch,
        before=str(fact.before),
        after=str(fact.after),
        condition=str(fact.condition),
        value=str(fact.value),
        reason=fact.reason,
    )
