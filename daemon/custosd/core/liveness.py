"""Whether agents live: every sign of life folded, every deadline kept, and no clock read.

    beats, looks, growth, deaths ──► [ Lives ] ──► Health (at any time), facts, the next deadline

Laws:

1. Misses are counted in elapsed intervals since an agent was last heard, not in looks; each
   rung of the ladder is told once a silence. Silence alone is never worse than a suspicion.
2. Bad takes positive evidence: a process seen to be gone (at once), or at least two kinds of
   sources that agree that nothing moves while none says that something does.
3. "Nothing moves" is said of a source only when two looks at it, `hang_after_s` apart or
   more, measured the same, or when its process is stopped. A claim to work is no work.
4. Whatever kept us from hearing (a start, a stall, a suspend) is nobody's silence: `amnesty`
   starts every silence anew.
5. Cost: O(log n) a sign of life or deadline; nothing looks at all lives but `amnesty`,
   `overdue` and `records`.
"""

import heapq
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from custosd.core.agents import AgentId, AgentState, path_to
from custosd.core.beats import (
    LONGEST_INTERVAL_S,
    LONGEST_WAIT_S,
    Beat,
    BeatStatus,
    ReceivedBeat,
    WaitKind,
)
from custosd.core.evidence import (
    Condition,
    Evidence,
    Exit,
    Health,
    Observation,
    ProcessIdentity,
    Source,
    Value,
)
from custosd.core.explanations import LifeExplained, Outlook
from custosd.core.facts import AmnestyGranted, BeatMissed, Fact, LifeChanged
from custosd.core.lives import LifeRecord

WARN, DEGRADE, SUSPECT = 1, 2, 3
"""The rungs of the ladder."""

GONE = frozenset({"process_gone", "unit_failed", "unit_gone"})
"""What an observation says of a process that is no more, for whatever reason."""

CLEAN = "unit_inactive"
"""A unit that was stopped or ended by itself, without a fault."""

STOPPED = "process_stopped"

LOOK_AGAIN_S = 30.0
"""How long after one look at a silent agent the next one follows."""

FIRST_LOOK_S = 2.0
"""How soon after its start an agent is looked at for the first time."""

BUSY_SHARE = 0.02
"""The share of a processor below which its use is no sign of work: a thread that only beats."""

FOR_EVER = math.inf

_EXPECTED_STATE = {
    BeatStatus.STARTING: AgentState.STARTING,
    BeatStatus.IDLE: AgentState.IDLE,
    BeatStatus.RUNNING: AgentState.RUNNING,
    BeatStatus.WAITING: AgentState.WAITING,
    BeatStatus.MONITORING: AgentState.RUNNING,
    BeatStatus.STOPPING: AgentState.RUNNING,
    BeatStatus.FINISHED: AgentState.TERMINATED,
}

_WORKING = frozenset({BeatStatus.RUNNING, BeatStatus.MONITORING, BeatStatus.STARTING})
_ENDING = frozenset({BeatStatus.STOPPING, BeatStatus.FINISHED})


@dataclass(frozen=True, slots=True)
class LivenessLimits:
    """Seconds, counts and shares; see the section `liveness` of the configuration."""

    idle_interval_s: float = 30.0
    running_interval_s: float = 15.0
    monitor_interval_s: float = 5.0
    margin_s: float = 5.0
    gaps: int = 200
    quantile: float = 0.985
    shortest_deadline_s: float = 50.0
    longest_deadline_s: float = 300.0
    startup_grace_s: float = 60.0
    recover_beats: int = 2
    hang_after_s: float = 900.0
    busy_limit_s: float = 3600.0
    breaker_agents: int = 5
    breaker_share: float = 0.05
    breaker_period_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Watched:
    """What can be known of an agent. `interval_s` None: by its status, or as it declares.

    `hang_after_s` None: as for all. `beats`: whether it is expected to beat.
    """

    agent: AgentId
    host: str = ""
    sources: frozenset[Source] = frozenset({Source.BEAT})
    beats: bool = True
    interval_s: float | None = None
    hang_after_s: float | None = None


class Fences(Protocol):
    """Whoever lets beats in, and must know which incarnations may speak."""

    def expect(self, agent: AgentId, epoch: int) -> None:
        """Let in beats of this incarnation, too, which is about to begin."""
        ...

    def fence(self, agent: AgentId, epoch: int) -> None:
        """Refuse whatever is older than this incarnation."""
        ...


@dataclass(frozen=True, slots=True)
class _Measure:
    """A measure of progress: its value, since when it has it, and when it was last looked at."""

    value: float
    since: float
    looked_at: float


@dataclass(slots=True)
class _Life:
    watched: Watched
    epoch: int = 0
    sequence: int = 0
    heard_epoch: int = -1
    state: AgentState = AgentState.STARTING
    condition: Condition = Condition.UNKNOWN
    value: Value = Value.UNKNOWN
    reason: str = "never_heard"
    since: float = 0.0
    heard_at: float | None = None
    quiet_from: float = 0.0
    """From when on silence counts: the last beat, or the end of a grace or a wait."""
    status: BeatStatus = BeatStatus.STARTING
    declared_s: float | None = None
    gaps: "array[float] | None" = None
    own_deadline_s: float = 0.0
    wait_kind: WaitKind | None = None
    wait_until: float = 0.0
    rung: int = 0
    good_beats: int = 0
    progressed_at: float = 0.0
    """When work was last seen to be done, by anything but the agent's own word."""
    beyond_cpu_at: float = 0.0
    """The same, by anything but the use of a processor."""
    claim: str = ""
    claimed_at: float = 0.0
    task: str = ""
    process: ProcessIdentity | None = None
    former: ProcessIdentity | None = None
    """The process of the incarnation before; that it is gone is no news."""
    exit: Exit | None = None
    seen: dict[Source, Evidence] = field(default_factory=dict)
    measures: dict[Source, _Measure] = field(default_factory=dict)
    looking: bool = False
    looked_at: float = -math.inf
    restarting: bool = False
    quarantined: bool = False
    ended: bool = False
    next_at: float = math.inf


@dataclass(frozen=True, slots=True)
class Due:
    """What came of the deadlines that passed: facts, and agents that must be looked at."""

    facts: tuple[Fact, ...] = ()
    look_at: tuple[AgentId, ...] = ()


class Lives:
    """All lives. Methods take `now` (trio's clock) and return what happened, as facts."""

    def __init__(self, limits: LivenessLimits, fences: Fences | None = None) -> None:
        self.limits = limits
        self._fences = fences
        self._lives: dict[AgentId, _Life] = {}
        self._heap: list[tuple[float, AgentId]] = []
        self._slowness = 1.0
        self._suspected: dict[AgentId, float] = {}

    # Who is watched

    def watch(self, watched: Watched, now: float) -> None:
        """Watch an agent from now on, or with other sources; it has its start-up grace."""
        life = self._lives.get(watched.agent)
        if life is not None:
            life.watched = watched
        else:
            life = self._lives[watched.agent] = _Life(watched, since=now)
            self._begin(life, now)
        self._plan(life, now)

    def unwatch(self, agent: AgentId) -> None:
        """Watch an agent no longer; nothing is held of it any more."""
        self._lives.pop(agent, None)
        self._suspected.pop(agent, None)

    def __contains__(self, agent: AgentId) -> bool:
        return agent in self._lives

    def __len__(self) -> int:
        return len(self._lives)

    def __iter__(self) -> Iterator[AgentId]:
        return iter(self._lives)

    def watched(self, agent: AgentId) -> Watched | None:
        """What can be known of an agent; None for one that is not watched."""
        life = self._lives.get(agent)
        return life.watched if life else None

    def process(self, agent: AgentId) -> ProcessIdentity | None:
        """The process that is known to work for an agent."""
        life = self._lives.get(agent)
        return life.process if life else None

    def exit_of(self, agent: AgentId) -> Exit | None:
        """How the agent's process ended, where that was seen."""
        life = self._lives.get(agent)
        return life.exit if life else None

    def epoch(self, agent: AgentId) -> int:
        """The incarnation that lives now, or lived last."""
        life = self._lives.get(agent)
        return life.epoch if life else 0

    def task(self, agent: AgentId) -> str:
        """What the agent says it works on; "" where it does not."""
        life = self._lives.get(agent)
        return life.task if life else ""

    def heard(self, agent: AgentId, epoch: int) -> bool:
        """Whether a beat of this incarnation was taken in."""
        life = self._lives.get(agent)
        return life is not None and life.heard_epoch == epoch

    def expect(self, agent: AgentId, epoch: int) -> None:
        """Let in beats of this incarnation, which is about to begin."""
        if self._fences is not None:
            self._fences.expect(agent, epoch)

    # Signs of life

    def beat(self, received: ReceivedBeat) -> tuple[Fact, ...]:
        """Take in a beat that was let in; one of an agent that is not watched is nothing."""
        beat, now = received.beat, received.at
        life = self._lives.get(beat.agent)
        if life is None:
            return ()
        if beat.epoch != life.epoch:
            self._enter_epoch(life, beat.epoch, now)
        in_time = life.rung == 0
        if life.heard_at is not None and in_time and not life.wait_until:
            self._learn_gap(life, now - life.heard_at)
        life.heard_epoch, life.sequence = beat.epoch, beat.sequence
        life.heard_at = life.quiet_from = now
        life.good_beats = life.good_beats + 1 if in_time else 1
        life.rung = 0
        self._suspected.pop(beat.agent, None)
        self._take_status(life, beat, now)
        self._take_process(life, beat)
        life.seen[Source.BEAT] = Evidence(
            Source.BEAT, Value.OK, now, self._suspect_s(life), "beat_heard"
        )
        return self._settled(life, now)

    def _take_status(self, life: _Life, beat: Beat, now: float) -> None:
        if beat.status in _WORKING and life.status not in _WORKING:
            # Work begins now: what was not done while it rested is no lack of progress.
            life.progressed_at = life.beyond_cpu_at = life.claimed_at = now
            life.measures.clear()
        life.status, life.declared_s = beat.status, beat.interval_s
        life.wait_kind, life.wait_until = None, 0.0
        if beat.wait is not None:
            life.wait_kind = beat.wait.kind
            life.wait_until = now + min(beat.wait.expected_s, LONGEST_WAIT_S)
            life.quiet_from = life.wait_until
            life.progressed_at = life.beyond_cpu_at = life.claimed_at = life.wait_until
            life.measures.clear()
        life.task = beat.task or life.task
        if beat.progress != life.claim:
            life.claim, life.claimed_at = beat.progress, now
        if beat.status is BeatStatus.FINISHED:
            life.ended = True
        elif life.ended and beat.status not in _ENDING:
            life.ended = False

    def _take_process(self, life: _Life, beat: Beat) -> None:
        gone = life.seen.get(Source.PROCESS)
        if life.process is not None and beat.pid and beat.pid != life.process.pid:
            # Another process speaks for it: what was known of the old one is of no use.
            life.process, life.exit = None, None
            life.seen.pop(Source.PROCESS, None)
            life.measures.pop(Source.PROCESS, None)
            life.looked_at = -math.inf
        elif gone is not None and gone.detail in GONE and not beat.pid:
            # Words of the dead may arrive late: only another look tells.
            life.looked_at = -math.inf

    def grown(self, agent: AgentId, now: float) -> tuple[Fact, ...]:
        """The agent's transcript grew: work was done."""
        life = self._lives.get(agent)
        if life is None:
            return ()
        life.progressed_at = max(life.progressed_at, now)
        life.beyond_cpu_at = max(life.beyond_cpu_at, now)
        life.seen[Source.TRANSCRIPT] = Evidence(
            Source.TRANSCRIPT, Value.OK, now, self._hang_s(life), "transcript_grew"
        )
        # What grows is written by somebody who lives: a gone process has a successor.
        return self._settled(life, now)

    def observed(self, agent: AgentId, seen: Observation, now: float) -> tuple[Fact, ...]:
        """Take in what a probe saw."""
        life = self._lives.get(agent)
        if life is None:
            return ()
        if seen.source in (Source.PROCESS, Source.UNIT):
            self._take_presence(life, seen, now)
        else:
            fresh_s = LOOK_AGAIN_S * 4
            life.seen[seen.source] = Evidence(seen.source, seen.value, now, fresh_s, seen.detail)
        if seen.progress is not None and seen.value is not Value.UNKNOWN:
            self._measure(life, seen.source, seen.progress, now)
        return self._settled(life, now)

    def _take_presence(self, life: _Life, seen: Observation, now: float) -> None:
        if seen.value is Value.BAD and seen.detail in GONE:
            if seen.process is not None and (
                life.process not in {None, seen.process} or seen.process == life.former
            ):
                return  # an earlier process of it; the present one is another
            life.exit = seen.exit or life.exit
            life.seen[seen.source] = Evidence(seen.source, Value.BAD, now, FOR_EVER, seen.detail)
            life.ended = life.ended or life.status in _ENDING
            return
        if seen.detail == CLEAN:
            life.ended = True
        if seen.value is Value.OK and seen.process is not None:
            if life.process is not None and life.process != seen.process:
                life.measures.pop(Source.PROCESS, None)
                life.exit = None
            life.process = seen.process
            for source in (Source.PROCESS, Source.UNIT):
                known = life.seen.get(source)
                if known is not None and known.detail in GONE:
                    del life.seen[source]
            if life.ended and life.status not in _ENDING:
                life.ended = False
        fresh_s = LOOK_AGAIN_S * 4
        life.seen[seen.source] = Evidence(seen.source, seen.value, now, fresh_s, seen.detail)

    def _measure(self, life: _Life, source: Source, value: float, now: float) -> None:
        known = life.measures.get(source)
        if known is None:
            life.measures[source] = _Measure(value, max(now, life.wait_until), now)
            return
        elapsed_s = max(now - known.looked_at, 1e-6)
        if source is Source.PROCESS:
            moved = (value - known.value) / elapsed_s >= BUSY_SHARE
        else:
            moved = value != known.value
        if not moved:
            life.measures[source] = _Measure(
                value if source is Source.PROCESS else known.value, known.since, now
            )
            return
        life.measures[source] = _Measure(value, now, now)
        if source is not Source.PROCESS:
            life.beyond_cpu_at = max(life.beyond_cpu_at, now)
        if source is not Source.PROCESS or now - life.beyond_cpu_at <= self.limits.busy_limit_s:
            life.progressed_at = max(life.progressed_at, now)

    def died(
        self, agent: AgentId, process: ProcessIdentity, exit_: Exit | None, now: float
    ) -> tuple[Fact, ...]:
        """A watched process ended; nothing if another one works for the agent by now."""
        life = self._lives.get(agent)
        if life is None or life.process != process:
            return ()
        life.exit = exit_
        if exit_ is not None and exit_.code == 0 and life.status in _ENDING:
            life.ended = True
        life.ended = life.ended or life.status in _ENDING
        life.seen[Source.PROCESS] = Evidence(
            Source.PROCESS, Value.BAD, now, FOR_EVER, "process_gone"
        )
        return self._settled(life, now)

    # What the actors did

    def restart_began(self, agent: AgentId, next_epoch: int, now: float) -> tuple[Fact, ...]:
        """From now on the silence of an agent is our doing."""
        life = self._lives.get(agent)
        if life is None:
            return ()
        self.expect(agent, next_epoch)
        life.restarting = True
        self._suspected.pop(agent, None)
        return self._settled(life, now)

    def spawned(self, agent: AgentId, epoch: int, now: float) -> tuple[Fact, ...]:
        """A new incarnation was started: nothing of the old one counts any more."""
        life = self._lives.get(agent)
        if life is None:
            return ()
        if epoch != life.epoch:
            self._enter_epoch(life, epoch, now)
        return self._settled(life, now)

    def restart_ended(self, agent: AgentId, ok: bool, now: float) -> tuple[Fact, ...]:  # noqa: FBT001 - the outcome, not an option
        """The restart is over; `ok`: the new incarnation is up."""
        life = self._lives.get(agent)
        if life is None:
            return ()
        life.restarting = False
        if ok:
            life.rung = 0
        return self._settled(life, now)

    def quarantined(self, agent: AgentId, now: float) -> tuple[Fact, ...]:
        """The agent was put into quarantine."""
        return self._set_quarantine(agent, now, on=True)

    def released(self, agent: AgentId, now: float) -> tuple[Fact, ...]:
        """The agent was released from quarantine."""
        return self._set_quarantine(agent, now, on=False)

    def _set_quarantine(self, agent: AgentId, now: float, *, on: bool) -> tuple[Fact, ...]:
        life = self._lives.get(agent)
        if life is None or life.quarantined is on:
            return ()
        life.quarantined = on
        return self._settled(life, now)

    # What we could not hear

    def amnesty(self, reason: str, gap_s: float, now: float) -> tuple[Fact, ...]:
        """Start every silence anew: until a full deadline from now nobody is late."""
        grace_s = 0.0
        facts: list[Fact] = []
        for life in self._lives.values():
            life.quiet_from = max(life.quiet_from, now)
            life.rung = 0
            life.progressed_at = max(life.progressed_at, now)
            life.beyond_cpu_at = max(life.beyond_cpu_at, now)
            life.claimed_at = max(life.claimed_at, now)
            life.measures.clear()
            life.looking = False
            grace_s = max(grace_s, self._suspect_s(life))
            facts += self._settled(life, now)
        self._suspected.clear()
        return (AmnestyGranted(reason, gap_s, grace_s, len(self._lives)), *facts)

    def slowness(self, multiplier: float, now: float) -> None:
        """Multiply all deadlines (1 or more): we ourselves are slow, or hear less than usual."""
        self._slowness = max(1.0, multiplier)
        del now  # deadlines are reckoned anew as they come up: a later one costs one look

    # Deadlines

    def next_at(self) -> float:
        """When, on trio's clock, `due` should be called next; inf if never."""
        while self._heap:
            at, agent = self._heap[0]
            life = self._lives.get(agent)
            if life is not None and life.next_at == at:
                return at
            heapq.heappop(self._heap)
        return math.inf

    def due(self, now: float) -> Due:
        """Pass every deadline up to now. Agents to look at are named once until `looked`."""
        facts: list[Fact] = []
        look_at: list[AgentId] = []
        while self.next_at() <= now:
            agent = heapq.heappop(self._heap)[1]
            life = self._lives[agent]
            life.next_at = math.inf
            facts += self._climb(life, now)
            facts += self._settled(life, now, plan=False)
            if not life.looking and self._look_at(life) <= now:
                life.looking = True
                look_at.append(agent)
            self._plan(life, now)
        return Due(tuple(facts), tuple(look_at))

    def looked(self, agent: AgentId, now: float) -> tuple[Fact, ...]:
        """The looks at an agent that `due` asked for are over."""
        life = self._lives.get(agent)
        if life is None:
            return ()
        life.looking, life.looked_at = False, now
        return self._settled(life, now)

    def overdue(self, now: float, late_s: float) -> tuple[AgentId, ...]:
        """Lives whose deadline passed more than `late_s` ago and was not kept: none, or a bug."""
        lost = tuple(
            agent
            for agent, life in self._lives.items()
            if self._next(life) < now - late_s and not life.looking
        )
        for agent in lost:
            self._plan(self._lives[agent], now)
        return lost

    def _climb(self, life: _Life, now: float) -> list[Fact]:
        facts: list[Fact] = []
        while self._is_listening(life) and life.rung < SUSPECT:
            if self._rung_at(life, life.rung + 1) > now:
                break
            life.rung += 1
            life.good_beats = 0
            silent_s = now - (life.heard_at if life.heard_at is not None else life.quiet_from)
            facts.append(BeatMissed(life.watched.agent, life.epoch, life.rung, round(silent_s, 3)))
            if life.rung == SUSPECT:
                self._suspected[life.watched.agent] = now
        return facts

    def _is_listening(self, life: _Life) -> bool:
        return life.watched.beats and not (life.ended or life.restarting)

    def _interval_s(self, life: _Life) -> float:
        if life.declared_s is not None:
            return min(max(life.declared_s, 1.0), LONGEST_INTERVAL_S)
        if life.watched.interval_s is not None:
            return life.watched.interval_s
        match life.status:
            case BeatStatus.MONITORING:
                return self.limits.monitor_interval_s
            case BeatStatus.RUNNING | BeatStatus.STARTING | BeatStatus.STOPPING:
                return self.limits.running_interval_s
            case _:
                return self.limits.idle_interval_s

    def _suspect_s(self, life: _Life) -> float:
        """After how much silence an agent is a suspect (without our own slowness)."""
        interval_s, limits = self._interval_s(life), self.limits
        own_s = min(
            max(life.own_deadline_s + interval_s + limits.margin_s, limits.shortest_deadline_s),
            limits.longest_deadline_s,
        )
        return max(SUSPECT * interval_s + limits.margin_s, own_s)

    def _rung_at(self, life: _Life, rung: int) -> float:
        silent_s = rung * self._interval_s(life) + self.limits.margin_s
        if rung == SUSPECT:
            silent_s = self._suspect_s(life)
        return life.quiet_from + silent_s * self._slowness

    def _learn_gap(self, life: _Life, gap_s: float) -> None:
        if life.gaps is None:
            life.gaps = array("f")
        life.gaps.append(gap_s)
        if len(life.gaps) > self.limits.gaps:
            del life.gaps[: len(life.gaps) - self.limits.gaps]
        # The quantile of many gaps moves slowly; sorting them at each beat would not.
        if len(life.gaps) <= 16 or not len(life.gaps) % 8 or gap_s > life.own_deadline_s:  # noqa: PLR2004 - see above
            ordered = sorted(life.gaps)
            place = min(len(ordered) - 1, math.ceil(self.limits.quantile * len(ordered)) - 1)
            life.own_deadline_s = ordered[place]

    def _hang_s(self, life: _Life) -> float:
        return life.watched.hang_after_s or self.limits.hang_after_s

    def _look_at(self, life: _Life) -> float:
        """When an agent should be looked at next, whether or not it is due for other reasons."""
        looks = life.watched.sources - {Source.BEAT}
        if not looks or life.ended or life.restarting:
            return math.inf
        if life.rung >= SUSPECT or self._is_gone(life):
            return life.looked_at + LOOK_AGAIN_S
        if life.process is None and looks & {Source.PROCESS, Source.UNIT}:
            # Found once, it is watched; where it can not be found, looking often does not help.
            return life.looked_at + (LOOK_AGAIN_S if not life.seen else 4 * LOOK_AGAIN_S)
        if life.status not in _WORKING:
            return math.inf
        step_s = self._hang_s(life) / 2 * self._slowness
        first = max(life.progressed_at, life.wait_until) + step_s
        return first if life.looked_at < first else life.looked_at + min(step_s, LOOK_AGAIN_S * 4)

    def _next(self, life: _Life) -> float:
        rung_at = math.inf
        if self._is_listening(life) and life.rung < SUSPECT:
            rung_at = self._rung_at(life, life.rung + 1)
        return min(rung_at, math.inf if life.looking else self._look_at(life))

    def _plan(self, life: _Life, now: float) -> None:
        at = self._next(life)
        if at in (life.next_at, math.inf):
            life.next_at = at
            return
        # A deadline that only moves on, as with each beat, stays where it stands in the heap
        # until it comes up: then the later one is entered.
        if life.next_at <= at and life.next_at > now:
            return
        life.next_at = at
        heapq.heappush(self._heap, (at, life.watched.agent))
        if len(self._heap) > 64 + 4 * len(self._lives):
            self._heap = [
                entry
                for entry in self._heap
                if (known := self._lives.get(entry[1])) is not None and known.next_at == entry[0]
            ]
            heapq.heapify(self._heap)

    # Verdicts

    def health(self, agent: AgentId, now: float) -> Health:
        """The liveness verdict over all evidence, now; unknown for one that is not watched."""
        life = self._lives.get(agent)
        if life is None:
            return Health(Condition.UNKNOWN, Value.UNKNOWN, "not_watched")
        return self._health(life, now)

    def state(self, agent: AgentId) -> AgentState | None:
        """Where an agent stands in its life; None for one that is not watched."""
        life = self._lives.get(agent)
        return life.state if life else None

    def breakers(self, now: float) -> frozenset[str]:
        """Where too many are suspected at once: names of hosts, or "fleet".

        That is our own trouble, or a cause that they share: no reason to restart any of them.
        """
        limits = self.limits
        suspects: Counter[str] = Counter()
        for agent, at in self._suspected.items():
            if now - at <= limits.breaker_period_s:
                suspects.update((self._lives[agent].watched.host, "fleet"))
        if suspects["fleet"] <= limits.breaker_agents:
            return frozenset()
        watched = Counter(life.watched.host for life in self._lives.values())
        watched["fleet"] = len(self._lives)
        return frozenset(
            where
            for where, count in suspects.items()
            if count > max(limits.breaker_agents, limits.breaker_share * watched[where])
        )

    def _is_gone(self, life: _Life) -> bool:
        return any(
            evidence.value is Value.BAD and evidence.detail in GONE
            for evidence in life.seen.values()
        )

    def _health(self, life: _Life, now: float) -> Health:  # noqa: PLR0911 - cases in order, the first counts
        evidence = tuple(life.seen[source] for source in sorted(life.seen))
        if life.ended:
            return Health(Condition.UNKNOWN, Value.UNKNOWN, "ended", evidence)
        if self._is_gone(life):
            gone = next(e for e in evidence if e.detail in GONE and e.value is Value.BAD)
            return Health(Condition.DEAD, Value.BAD, gone.detail, evidence)
        still = self._still(life, now)
        moves = now - life.progressed_at < self._hang_s(life) and life.progressed_at > 0
        silent = life.watched.beats and life.rung >= SUSPECT
        stopped = self._is_stopped(life, now)
        told = evidence + still
        if silent:
            quiet = Evidence(Source.BEAT, Value.BAD, now, LOOK_AGAIN_S, "silent")
            told = (*(e for e in told if e.source is not Source.BEAT), quiet)
            return self._silent(life, told, still, stopped=stopped)
        if life.wait_until > now:
            kind = life.wait_kind.value if life.wait_kind else "unknown"
            return Health(Condition.ALIVE, Value.OK, f"waits_{kind}", told)
        kinds = {e.source for e in still if e.value is Value.BAD}
        if stopped:
            kinds.add(Source.PROCESS)
        working = life.status in _WORKING
        if working and len(kinds) > 1 and not moves and not self._moving(life, now):
            return Health(Condition.HUNG, Value.BAD, "no_progress", told)
        if life.watched.beats and life.heard_at is None:
            seen_ok = any(e.value_at(now) is Value.OK for e in evidence)
            value = Value.OK if seen_ok else Value.UNKNOWN
            condition = Condition.ALIVE if seen_ok else Condition.UNKNOWN
            return Health(condition, value, "never_heard", told)
        return Health(Condition.ALIVE, Value.OK, "heard" if life.watched.beats else "seen", told)

    def _silent(
        self, life: _Life, told: tuple[Evidence, ...], still: tuple[Evidence, ...], *, stopped: bool
    ) -> Health:
        now = told[-1].at
        if self._moving(life, now):
            return Health(Condition.ALIVE, Value.OK, "beats_lost_progress_seen", told)
        kinds = {e.source for e in still if e.value is Value.BAD and e.source is not Source.BEAT}
        if stopped:
            return Health(Condition.HUNG, Value.BAD, "silent_and_stopped", told)
        if kinds and life.status in _WORKING:
            # The beat's silence is one kind, what does not move is another.
            return Health(Condition.HUNG, Value.BAD, "silent_and_no_progress", told)
        if any(e.value_at(now) is Value.OK for e in told if e.source is not Source.BEAT):
            return Health(Condition.LATE, Value.UNKNOWN, "silent_but_there", told)
        if life.looked_at < life.quiet_from and life.watched.sources - {Source.BEAT}:
            return Health(Condition.LATE, Value.UNKNOWN, "silent", told)
        return Health(Condition.LATE, Value.UNKNOWN, "cannot_be_known", told)

    def _moving(self, life: _Life, now: float) -> bool:
        """Whether work was seen to be done since the agent was last heard, or not long ago."""
        since = max(self._suspect_s(life), LOOK_AGAIN_S * 2)
        return (
            life.progressed_at > 0
            and now - life.progressed_at <= since
            and bool(life.measures or Source.TRANSCRIPT in life.seen)
        )

    def _is_stopped(self, life: _Life, now: float) -> bool:
        seen = life.seen.get(Source.PROCESS)
        return seen is not None and seen.detail == STOPPED and seen.value_at(now) is Value.BAD

    def _still(self, life: _Life, now: float) -> tuple[Evidence, ...]:
        """Of each source that has a measure: that it did not move for as long as it takes."""
        hang_s = self._hang_s(life)
        found: list[Evidence] = []
        for source, measure in life.measures.items():
            if measure.looked_at - max(measure.since, life.progressed_at) >= hang_s:
                found.append(Evidence(source, Value.BAD, measure.looked_at, hang_s, "no_progress"))
        transcript = life.seen.get(Source.TRANSCRIPT)
        if (
            Source.TRANSCRIPT in life.watched.sources
            and Source.TRANSCRIPT not in life.measures
            and transcript is not None
            and now - max(transcript.at, life.progressed_at) >= hang_s
        ):
            found.append(Evidence(Source.TRANSCRIPT, Value.BAD, now, hang_s, "no_progress"))
        if life.claim and now - max(life.claimed_at, life.progressed_at) >= hang_s:
            found.append(Evidence(Source.BEAT, Value.BAD, now, hang_s, "claims_no_progress"))
        return tuple(e for e in found if e.value_at(now) is not Value.UNKNOWN)

    def _state(self, life: _Life, health: Health) -> AgentState:  # noqa: PLR0911 - cases in order, the first counts
        if life.quarantined:
            return AgentState.QUARANTINED
        if life.restarting:
            return AgentState.RESTARTING
        if life.ended:
            return AgentState.TERMINATED
        match health.condition:
            case Condition.DEAD:
                return AgentState.FAILED
            case Condition.HUNG:
                return AgentState.UNRESPONSIVE
            case _:
                pass
        recovering = (
            life.state
            in {
                AgentState.DEGRADED,
                AgentState.UNRESPONSIVE,
            }
            and life.good_beats < self.limits.recover_beats
            and life.watched.beats
        )
        if life.rung >= DEGRADE or (recovering and life.heard_at is not None):
            return AgentState.DEGRADED
        if life.watched.beats and life.heard_epoch != life.epoch:
            return AgentState.STARTING
        if not life.watched.beats:
            return AgentState.RUNNING if life.seen else AgentState.STARTING
        return _EXPECTED_STATE[life.status]

    def _settled(self, life: _Life, now: float, *, plan: bool = True) -> tuple[Fact, ...]:
        """Bring state and verdict up to date, and tell what changed."""
        health = self._health(life, now)
        wanted = self._state(life, health)
        facts: list[Fact] = []
        path = path_to(life.state, wanted) or self._detour(life.state, wanted)
        if not path and self._differs(life, health):
            path = (life.state,)
        for state in path:
            facts.append(
                LifeChanged(
                    life.watched.agent,
                    life.epoch,
                    life.state,
                    state,
                    health.condition,
                    health.value,
                    health.reason,
                    health.evidence,
                )
            )
            life.state, life.since = state, now
        life.condition, life.value, life.reason = health.condition, health.value, health.reason
        if plan:
            self._plan(life, now)
        return tuple(facts)

    @staticmethod
    def _differs(life: _Life, health: Health) -> bool:
        if (life.condition, life.value) != (health.condition, health.value):
            return True
        return health.value is not Value.OK and life.reason != health.reason

    @staticmethod
    def _detour(before: AgentState, after: AgentState) -> tuple[AgentState, ...]:
        """The way where there is none in one or two steps: over a new start, and idle."""
        if before is after:
            return ()
        for middle in (AgentState.STARTING, AgentState.IDLE):
            first, second = path_to(before, middle), path_to(middle, after)
            if first and second:
                return (*first, *second)
        return ()

    def _enter_epoch(self, life: _Life, epoch: int, now: float) -> None:
        life.epoch = epoch
        if self._fences is not None:
            self._fences.fence(life.watched.agent, epoch)
        self._begin(life, now)

    def _begin(self, life: _Life, now: float) -> None:
        """A new incarnation, or the first that is met: nothing is known, and it has its grace."""
        life.heard_at, life.rung, life.good_beats = None, 0, 0
        life.status, life.declared_s, life.claim = BeatStatus.STARTING, None, ""
        life.wait_kind, life.wait_until, life.ended = None, 0.0, False
        life.former = life.process or life.former
        life.process, life.exit = None, None
        life.seen.clear()
        life.measures.clear()
        life.quiet_from = now + self.limits.startup_grace_s
        life.progressed_at = life.beyond_cpu_at = life.claimed_at = now
        # Soon looked at, so that its process is known and can be watched.
        life.looked_at = now - LOOK_AGAIN_S + FIRST_LOOK_S
        self._suspected.pop(life.watched.agent, None)

    # What outlives the process

    def record(self, agent: AgentId, now: float, now_utc: datetime) -> LifeRecord | None:
        """One life as it is to be stored."""
        life = self._lives.get(agent)
        if life is None:
            return None

        def utc(at: float) -> datetime:
            return now_utc + timedelta(seconds=at - now)

        return LifeRecord(
            agent,
            life.epoch,
            life.sequence,
            life.state,
            utc(life.since),
            None if life.heard_at is None else utc(life.heard_at),
            life.declared_s,
            life.wait_kind,
            utc(life.wait_until) if life.wait_until > now else None,
            life.process,
            tuple(life.gaps or ()),
            utc(life.progressed_at),
        )

    def records(self, now: float, now_utc: datetime) -> tuple[LifeRecord, ...]:
        """Every life as it is to be stored."""
        found = (self.record(agent, now, now_utc) for agent in self._lives)
        return tuple(record for record in found if record is not None)

    def restore(self, records: Iterable[LifeRecord], now: float, now_utc: datetime) -> None:
        """Go on with what was stored, for agents that are watched; all silences start anew.

        What was seen of them is not believed any more: nothing is known until it is seen
        or heard again. A restart that was under way is told of by whoever resumes it.
        """
        for record in records:
            life = self._lives.get(record.agent)
            if life is None:
                continue
            life.epoch, life.sequence = record.epoch, record.sequence
            if self._fences is not None:
                self._fences.fence(record.agent, record.epoch)
            held = {AgentState.RESTARTING: AgentState.STARTING}
            life.state = held.get(record.state, record.state)
            life.ended = record.state is AgentState.TERMINATED
            life.since = now - max(0.0, (now_utc - record.since_utc).total_seconds())
            life.process = record.process
            life.declared_s = record.interval_s
            if record.heard_utc is not None:
                life.heard_epoch = record.epoch
                life.status = _status_of(record.state)
            if record.gaps_s:
                life.gaps = array("f", record.gaps_s[-self.limits.gaps :])
                ordered = sorted(life.gaps)
                place = math.ceil(self.limits.quantile * len(ordered)) - 1
                life.own_deadline_s = ordered[min(len(ordered) - 1, place)]
            if record.wait_until_utc is not None and record.wait_until_utc > now_utc:
                left_s = (record.wait_until_utc - now_utc).total_seconds()
                life.wait_kind = record.wait_kind
                life.wait_until = now + min(left_s, LONGEST_WAIT_S)
            life.quiet_from = max(now, life.wait_until)
            life.looked_at = -math.inf
            life.reason = "restored"
            life.next_at = math.inf
            self._plan(life, now)

    # What is asked

    def explain(self, agent: AgentId, now: float) -> LifeExplained | None:
        """Everything that `why` and `forecast` say of a life; None: it is not watched."""
        life = self._lives.get(agent)
        if life is None:
            return None
        health = self._health(life, now)
        return LifeExplained(
            life.epoch, life.state, health, self._keys(life), tuple(self._outlooks(life, now))
        )

    def _keys(self, life: _Life) -> tuple[str, ...]:
        keys = ["liveness.margin", "liveness.shortest_deadline", "liveness.longest_deadline"]
        if life.declared_s is None and life.watched.interval_s is not None:
            keys.insert(0, f"agent[{life.watched.agent}].beat_interval")
        elif life.declared_s is None:
            keys.insert(0, f"liveness.{self._interval_key(life)}_interval")
        if life.status in _WORKING:
            keys.append("liveness.hang_after")
        return tuple(keys)

    @staticmethod
    def _interval_key(life: _Life) -> str:
        match life.status:
            case BeatStatus.MONITORING:
                return "monitor"
            case BeatStatus.RUNNING | BeatStatus.STARTING | BeatStatus.STOPPING:
                return "running"
            case _:
                return "idle"

    def _outlooks(self, life: _Life, now: float) -> Iterator[Outlook]:
        keys = self._keys(life)
        if life.wait_until > now:
            yield Outlook("its declared wait ends", life.wait_until - now, "a beat says more")
        if self._is_listening(life) and life.rung < SUSPECT:
            words = {WARN: "a beat is missed", DEGRADE: "degraded", SUSPECT: "suspected"}
            for rung in range(life.rung + 1, SUSPECT + 1):
                at = self._rung_at(life, rung)
                yield Outlook(words[rung], max(0.0, at - now), "a beat comes", keys)
        look_at = self._look_at(life)
        if look_at < math.inf:
            yield Outlook("looked at", max(0.0, look_at - now), "", ("liveness.probe_timeout",))
        if life.status in _WORKING and life.measures and not life.ended:
            at = max(life.progressed_at, life.wait_until) + self._hang_s(life)
            yield Outlook("hung", max(0.0, at - now), "it shows progress", ("liveness.hang_after",))


def _status_of(state: AgentState) -> BeatStatus:
    match state:
        case AgentState.IDLE:
            return BeatStatus.IDLE
        case AgentState.WAITING:
            return BeatStatus.WAITING
        case AgentState.TERMINATED:
            return BeatStatus.FINISHED
        case _:
            return BeatStatus.RUNNING


def slowness_of(lag_s: float, away: bool, heard_share: float) -> float:  # noqa: FBT001 - one of three facts about ourselves
    """How much slower than usual we are: 1 to 4, after Lifeguard's local health.

    `lag_s` is how late we wake, `away` whether the store is, and `heard_share` how many
    beats come of those that should (0..1): a drop of all at once is our ear, not their voice.
    """
    score = min(1.0, lag_s) + (1.0 if away else 0.0) + (1.0 if heard_share < 0.5 else 0.0)  # noqa: PLR2004 - half
    return 1.0 + score
