"""Whether agents live: every sign of life folded, every deadline kept, and no clock read.

    beats, looks, growth, deaths ──► [ Lives ] ──► Health (at any time), facts, the next deadline

What is known of one agent, and the verdict, is in `core.ledger`; when a silence means what in
`core.ladder`; what comes next for it in `core.appointments`.

Laws:

1. Misses are counted in elapsed intervals since an agent was last heard, not in looks; each
   rung of the ladder is told once a silence. Silence alone is never worse than a suspicion.
2. Whatever kept us from hearing (a start, a stall, a suspend) is nobody's silence: `amnesty`
   gives everybody a full deadline from then on.
3. States follow `core.agents.TRANSITIONS`, and every change of state or verdict is a fact.
4. Cost: O(log n) a sign of life or deadline, and most beats are O(1); nothing looks at all
   lives but `amnesty`, `overdue`, `records` and `restore`.
"""

import heapq
import math
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from custosd.core.agents import AgentId, AgentState, path_to
from custosd.core.appointments import listens, look_at, next_rung_at, rung_at, turn_at
from custosd.core.beats import LONGEST_WAIT_S, Beat, BeatStatus, ReceivedBeat
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
from custosd.core.facts import AgentDismissed, AmnestyGranted, BeatMissed, Fact, LifeChanged
from custosd.core.holds import FLEET
from custosd.core.ladder import (
    DEGRADE,
    SLOWEST,
    SUSPECT,
    Gaps,
    LivenessLimits,
    breaker_open,
    slowness_of,
)
from custosd.core.ledger import (
    AFTERGLOW_S,
    ENDED_AS_TOLD,
    ENDING,
    ENDS,
    FINISHED,
    INACTIVE,
    NEVER,
    PRESENCE,
    WORKING,
    Ledger,
    Watched,
    judge,
)
from custosd.core.life_accounts import LifeAccount, account
from custosd.core.lives import LifeRecord

__all__ = [
    "Due",
    "Fences",
    "LivenessLimits",
    "Lives",
    "Watched",
    "breaker_open",
    "slowness_of",
]

SLOW_RECHECK_S = 5.0
"""A deadline that our own slowness put off is looked at again this soon: slowness may pass."""

LOOK_LOST_S = 300.0
"""A round of looks that takes longer than this was lost; it is begun anew."""

STORED_GAPS = 32
"""So many of an agent's last gaps outlive the process."""

_STATES = {
    BeatStatus.STARTING: AgentState.STARTING,
    BeatStatus.IDLE: AgentState.IDLE,
    BeatStatus.RUNNING: AgentState.RUNNING,
    BeatStatus.WAITING: AgentState.WAITING,
    BeatStatus.MONITORING: AgentState.RUNNING,
    BeatStatus.STOPPING: AgentState.RUNNING,
    BeatStatus.FINISHED: AgentState.TERMINATED,
}

_STATUSES = {
    AgentState.IDLE: BeatStatus.IDLE,
    AgentState.WAITING: BeatStatus.WAITING,
    AgentState.STARTING: BeatStatus.STARTING,
    AgentState.TERMINATED: BeatStatus.FINISHED,
}


_SUSPECTS = frozenset({Condition.LATE, Condition.HUNG})


class Fences(Protocol):
    """Whoever lets beats in, and must know which incarnations may speak."""

    def expect(self, agent: AgentId, epoch: int) -> None:
        """Let in beats of this incarnation, too, which is about to begin."""
        ...

    def fence(self, agent: AgentId, epoch: int) -> None:
        """Refuse whatever is older than this incarnation."""
        ...


@dataclass(slots=True)
class Life(Ledger):
    """One agent's ledger, and how it stands. `next_at`: its valid entry in the heap."""

    state: AgentState = AgentState.STARTING
    since: float = 0.0
    condition: Condition = Condition.UNKNOWN
    value: Value = Value.UNKNOWN
    reason: str = ""
    good_beats: int = 0
    quarantined: bool = False
    next_at: float = math.inf
    turns_at: float = math.inf


@dataclass(frozen=True, slots=True)
class Due:
    """What came of the deadlines that passed: facts, and agents that must be looked at."""

    facts: tuple[Fact, ...] = ()
    look_at: tuple[AgentId, ...] = ()


class Lives:
    """All lives. Methods take `now` (trio's clock) and return what happened, as facts.

    Nothing waits. What is said of an agent that is not watched changes nothing.
    """

    def __init__(self, limits: LivenessLimits, fences: Fences | None = None) -> None:
        self._limits = limits
        self._fences = fences
        self._lives: dict[AgentId, Life] = {}
        self._heap: list[tuple[float, AgentId]] = []
        self._slowness = 1.0
        self._suspected: dict[AgentId, float] = {}
        self._on_host: dict[str, int] = {}
        self._open_breakers: frozenset[str] = frozenset()
        self._untold: list[Fact] = []
        self._changed: set[AgentId] = set()

    @property
    def limits(self) -> LivenessLimits:
        """What is gone by; replaced as a whole, every deadline is then reckoned anew."""
        return self._limits

    @limits.setter
    def limits(self, limits: LivenessLimits) -> None:
        if limits == self._limits:
            return
        self._limits = limits
        for life in self._lives.values():
            if life.gaps is not None:
                life.gaps.reckon(limits)
            self._look_over(life)

    # Who is watched

    def watch(self, watched: Watched, now: float) -> None:
        """Watch an agent from now on, or with other sources; a new one has its start-up grace.

        How it stands is told by the next `due`.
        """
        life = self._lives.get(watched.agent)
        if life is None:
            life = self._lives[watched.agent] = Life(watched, since=now)
            life.begin(now, self._limits)
        else:
            self._count(life.watched.host, -1)
            life.watched = watched
        self._count(watched.host, 1)
        self._look_over(life)

    def unwatch(self, agent: AgentId) -> None:
        """Watch an agent no longer; nothing is held of it any more."""
        life = self._lives.pop(agent, None)
        if life is not None:
            self._count(life.watched.host, -1)
            self._suspected.pop(agent, None)
            self._changed.discard(agent)

    def let_go(self, agent: AgentId, now: float) -> tuple[Fact, ...]:
        """Watch an agent no longer, and tell that nothing more is to come of it."""
        life = self._lives.get(agent)
        if life is None:
            return ()
        life.ended = life.ended or ENDED_AS_TOLD
        facts = self._settled(life, now, plan=False)
        self.unwatch(agent)
        return (*facts, AgentDismissed(agent))

    def dismiss(self, agent: AgentId) -> None:
        """Watch an agent no longer, whatever becomes of it; the next `due` tells so."""
        if agent in self._lives:
            self.unwatch(agent)
            self._untold.append(AgentDismissed(agent))

    def lacks_process(self, agent: AgentId, pid: int) -> bool:
        """Whether a process of this id, which speaks for an agent, is not known to live."""
        life = self._lives.get(agent)
        if life is None:
            return False
        return life.process is None or life.process.pid != pid or life.gone is not None

    def _look_over(self, life: Life) -> None:
        """Have the next `due` reckon everything about this life."""
        life.next_at = NEVER
        heapq.heappush(self._heap, (NEVER, life.watched.agent))

    def _count(self, host: str, by: int) -> None:
        self._on_host[host] = self._on_host.get(host, 0) + by
        if not self._on_host[host]:
            del self._on_host[host]

    def __contains__(self, agent: AgentId) -> bool:
        return agent in self._lives

    def __len__(self) -> int:
        return len(self._lives)

    def __iter__(self) -> Iterator[AgentId]:
        return iter(self._lives)

    # What is known of one

    def watched(self, agent: AgentId) -> Watched | None:
        """What can be known of an agent; None for one that is not watched."""
        life = self._lives.get(agent)
        return life.watched if life else None

    def state(self, agent: AgentId) -> AgentState | None:
        """Where an agent stands in its life; None for one that is not watched."""
        life = self._lives.get(agent)
        return life.state if life else None

    def process(self, agent: AgentId) -> ProcessIdentity | None:
        """The process that is known to work for an agent."""
        life = self._lives.get(agent)
        return life.process if life else None

    def exit_of(self, agent: AgentId) -> Exit | None:
        """How the agent's last process ended, where that was seen."""
        life = self._lives.get(agent)
        return life.exit if life else None

    def task(self, agent: AgentId) -> str:
        """What the agent says it works on; "" where it does not."""
        life = self._lives.get(agent)
        return life.task if life else ""

    def epoch(self, agent: AgentId) -> int:
        """The present incarnation."""
        life = self._lives.get(agent)
        return life.epoch if life else 0

    def heard(self, agent: AgentId, epoch: int) -> bool:
        """Whether a beat of this incarnation was taken in."""
        life = self._lives.get(agent)
        return life is not None and life.heard_epoch == epoch

    def health(self, agent: AgentId, now: float) -> Health:
        """The liveness verdict over all evidence, now; unknown for one that is not watched."""
        life = self._lives.get(agent)
        if life is None:
            return Health(Condition.UNKNOWN, Value.UNKNOWN, "not_watched")
        return judge(life, self._limits, now)

    def explain(self, agent: AgentId, now: float) -> LifeAccount | None:
        """Everything that `why` and `forecast` say of a life; None: it is not watched."""
        life = self._lives.get(agent)
        if life is None:
            return None
        health = judge(life, self._limits, now)
        return account(life, life.state, health, self._limits, self._slowness, now)

    # Signs of life

    def beat(self, received: ReceivedBeat) -> tuple[Fact, ...]:
        """Take in a beat that was let in; one of an earlier incarnation is nothing."""
        beat, at = received.beat, received.at
        life = self._lives.get(beat.agent)
        if life is None or beat.epoch < life.epoch or at < life.heard_at:
            return ()
        usual = (
            life.reason == "heard"
            and life.rung == 0
            and beat.status is life.status
            and beat.epoch == life.epoch
            and beat.wait is None
            and life.wait_kind is None
            and beat.interval_s == life.declared_s
            and life.gone is None
            and life.good_beats >= self._limits.recover_beats
            and not (life.ended or life.restarting or life.quarantined)
        )
        if usual:
            # Nothing but time has changed, and the next deadline only moves on.
            self._hear(life, beat, at)
            self._take_process(life, beat)
            return ()
        self._changed.add(beat.agent)
        return self._take_beat(life, beat, at)

    def _take_beat(self, life: Life, beat: Beat, at: float) -> tuple[Fact, ...]:
        if beat.epoch != life.epoch:
            self._enter_epoch(life, beat.epoch, at)
        self._hear(life, beat, at)
        life.rung, life.suspect_at = 0, NEVER
        self._suspected.pop(beat.agent, None)
        self._take_status(life, beat, at)
        self._take_process(life, beat)
        life.protest(at, self._limits)
        return self._settled(life, at)

    def _hear(self, life: Life, beat: Beat, at: float) -> None:
        if life.heard_at > NEVER and life.quiet_from == life.heard_at:
            if life.gaps is None:
                life.gaps = Gaps()
            life.gaps.add(at - life.heard_at, self._limits)
        life.heard_epoch, life.sequence = beat.epoch, beat.sequence
        life.heard_at = life.quiet_from = at
        life.good_beats += 1
        if beat.task != life.task:
            life.task = beat.task
        if beat.progress != life.claim:
            life.claim, life.claimed_at = beat.progress, at

    def _take_status(self, life: Life, beat: Beat, at: float) -> None:
        begins = beat.status in WORKING and life.status not in WORKING
        if begins or (beat.status is BeatStatus.RUNNING and life.status is BeatStatus.STARTING):
            # Work begins now: what was not done while it rested is no lack of progress.
            life.rest(at)
        life.status, life.declared_s = beat.status, beat.interval_s
        if life.wait_kind is not None:
            # Whatever it waited for, it is back: it has been expected not to work until now.
            life.rested_at = at
            life.wait_kind, life.wait_until = None, NEVER
        if beat.wait is not None:
            life.wait_kind = beat.wait.kind
            life.wait_until = at + min(max(beat.wait.expected_s, 0.0), LONGEST_WAIT_S)
            life.quiet_from = life.wait_until
            life.rest(life.wait_until)
        if life.restarting:
            return  # whatever it says of its end is our doing
        if beat.status not in ENDING:
            life.ours = False  # told to end, it may say so; whoever says more goes on
        if beat.status is BeatStatus.FINISHED:
            life.ended = FINISHED
        elif life.ended == FINISHED and beat.status not in ENDING:
            life.ended = ""

    @staticmethod
    def _take_process(life: Life, beat: Beat) -> None:
        if life.process is not None and beat.pid and beat.pid != life.process.pid:
            # Another process speaks for it: it must be found before anything is held of it.
            life.process, life.exit, life.gone = None, None, None
            life.looks.pop(Source.PROCESS, None)
            life.attended = False

    def grown(
        self, agent: AgentId, now: float, status: BeatStatus | None = None
    ) -> tuple[Fact, ...]:
        """The agent's transcript grew: work was done.

        `status` is what the transcript says it is doing; heard only of one that does not beat.
        """
        life = self._lives.get(agent)
        if life is None:
            return ()
        if status is not None and not life.watched.beats:
            if status in WORKING and life.status not in WORKING:
                life.rest(now)
            life.status = status
        life.worked(now)
        life.grown_at = max(life.grown_at, now)
        if now > life.gone_since + AFTERGLOW_S:
            life.protest(now, self._limits)
            if not life.watched.beats:
                life.ended = ""
        return self._settled(life, now)

    def observed(
        self, agent: AgentId, seen: Observation, now: float, since: float | None = None
    ) -> tuple[Fact, ...]:
        """Take in what a look saw that began at `since` (None: now).

        What was looked at before the present incarnation began says nothing of it.
        """
        return self.saw(agent, (seen,), now, since)

    def saw(
        self, agent: AgentId, seen: Iterable[Observation], now: float, since: float | None = None
    ) -> tuple[Fact, ...]:
        """Take in all that one look saw: it is judged as a whole."""
        life = self._lives.get(agent)
        at = now if since is None else min(since, now)
        if life is None or at < life.began_at:
            return ()
        before = life.process
        for one in seen:
            life.take_look(one, at, self._limits)
        if life.process != before:
            self._changed.add(agent)
        return self._settled(life, now)

    def looked(self, agent: AgentId, now: float) -> tuple[Fact, ...]:
        """The looks at an agent that `due` asked for are over, whatever came of them."""
        life = self._lives.get(agent)
        if life is None:
            return ()
        begun_at, life.looking_since = life.looking_since, None
        life.looked_at = max(life.looked_at, now if begun_at is None else begun_at)
        return self._settled(life, now)

    def to_look_at(self, agent: AgentId) -> frozenset[Source]:
        """By what sources to look at an agent; one that has ended could only be there again."""
        life = self._lives.get(agent)
        if life is None:
            return frozenset()
        return (
            (life.watched.sources & PRESENCE)
            if life.ended
            else life.watched.sources - {Source.BEAT}
        )

    def looks_lost(self, now: float) -> None:
        """Nobody looks any more, as after a new start of those who do: what is due is due again."""
        for life in self._lives.values():
            if life.looking_since is not None:
                life.looking_since = None
                self._plan(life, now)

    def attended(self, agent: AgentId, *, yes: bool, now: float) -> None:
        """Whether the end of the agent's process will be told the moment it happens."""
        life = self._lives.get(agent)
        if life is not None and life.attended is not yes:
            life.attended = yes
            self._plan(life, now)

    def died(
        self, agent: AgentId, process: ProcessIdentity, exit_: Exit | None, now: float
    ) -> tuple[Fact, ...]:
        """A watched process ended; nothing if another one works for the agent by now."""
        life = self._lives.get(agent)
        if life is None or life.process != process:
            return ()
        life.exit = exit_ or life.exit
        life.attended = False
        life.is_gone(Evidence(Source.PROCESS, Value.BAD, now, math.inf, "process_gone"))
        # Its unit may say that it was stopped on purpose.
        life.looked_at = NEVER
        return self._settled(life, now)

    # What the actors did

    def expect(self, agent: AgentId, epoch: int) -> None:
        """Let in beats of this incarnation, which is about to begin."""
        if self._fences is not None:
            self._fences.expect(agent, epoch)

    def restart_began(self, agent: AgentId, now: float) -> tuple[Fact, ...]:
        """From now on the silence of an agent, and its end, are our doing."""
        life = self._lives.get(agent)
        if life is None:
            return ()
        life.restarting = life.ours = True
        self._suspected.pop(agent, None)
        return self._settled(life, now)

    def spawned(self, agent: AgentId, epoch: int, now: float) -> tuple[Fact, ...]:
        """A new incarnation was started: nothing of the old one counts any more."""
        life = self._lives.get(agent)
        if life is None:
            return ()
        if epoch > life.epoch:
            self._enter_epoch(life, epoch, now)
        return self._settled(life, now)

    def restart_ended(self, agent: AgentId, ok: bool, now: float) -> tuple[Fact, ...]:  # noqa: FBT001 - the outcome, not an option
        """The restart is over; `ok`: the new incarnation is up."""
        life = self._lives.get(agent)
        if life is None:
            return ()
        life.restarting = False
        if ok:
            life.rung, life.suspect_at, life.ours = 0, NEVER, False
            life.quiet_from = max(life.quiet_from, now)
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
        """Nobody's silence counts until a full deadline from now; rungs stay told.

        The gap is left out of every time in which nothing moved.
        """
        grace_s = 0.0
        facts: list[Fact] = []
        for life in self._lives.values():
            life.credit(gap_s, now)
            if listens(life):
                grace_s = max(grace_s, life.suspect_s(self._limits))
            facts += self._settled(life, now)
        self._suspected.clear()
        return (AmnestyGranted(reason, gap_s, grace_s, len(self._lives)), *facts)

    def slowness(self, multiplier: float) -> None:
        """Multiply deadlines (1..4) as they come up: we are slow, or hear less than usual."""
        self._slowness = min(max(1.0, multiplier), SLOWEST)

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
        facts, self._untold = self._untold, []
        looks: list[AgentId] = []
        while self.next_at() <= now:
            agent = heapq.heappop(self._heap)[1]
            life = self._lives[agent]
            life.next_at = math.inf
            if life.reason and life.turns_at > now and self._next(life, now) > now:
                self._plan(life, now)  # it was heard meanwhile: nothing is due yet
                continue
            facts += self._climb(life, now)
            facts += self._settled(life, now, plan=False)
            if look_at(life, self._limits, self._slowness) <= now:
                life.looking_since = now
                looks.append(agent)
            self._plan(life, now)
        return Due(tuple(facts), tuple(looks))

    def overdue(self, now: float, late_s: float) -> tuple[AgentId, ...]:
        """Lives whose deadline was lost more than `late_s` ago: none, or a defect. O(n).

        They are planned anew. So are looks that were never said to be over.
        """
        lost = []
        for agent, life in self._lives.items():
            if life.looking_since is not None and life.looking_since < now - LOOK_LOST_S:
                life.looking_since, life.looked_at = None, now
                lost.append(agent)
            elif min(self._next(life, now), life.turns_at) < now - late_s and life.next_at > now:
                lost.append(agent)
        for agent in lost:
            self._lives[agent].next_at = math.inf
            self._plan(self._lives[agent], now)
        return tuple(lost)

    def _climb(self, life: Life, now: float) -> list[Fact]:
        facts: list[Fact] = []
        while life.rung < SUSPECT and listens(life):
            if rung_at(life, life.rung + 1, self._limits, self._slowness) > now:
                break
            life.rung += 1
            life.good_beats = 0
            if life.rung == SUSPECT:
                life.suspect_at = now
            if life.status is BeatStatus.STOPPING:
                continue  # it said that it would fall silent
            if life.rung == SUSPECT:
                self._suspected[life.watched.agent] = now
            silent_s = now - (life.heard_at if life.heard_at > NEVER else life.began_at)
            facts.append(BeatMissed(life.watched.agent, life.epoch, life.rung, round(silent_s, 3)))
        return facts

    def _next(self, life: Life, now: float) -> float:
        return min(
            next_rung_at(life, self._limits, now, self._slowness),
            look_at(life, self._limits, self._slowness),
        )

    def _plan(self, life: Life, now: float) -> None:
        life.turns_at = turn_at(life, self._limits, now)
        at = min(next_rung_at(life, self._limits, now), look_at(life, self._limits), life.turns_at)
        if at <= now < self._next(life, now):
            # Only our own slowness puts it off; that may pass.
            at = min(now + SLOW_RECHECK_S, self._next(life, now))
        # A deadline that only moves on, as with each beat, stays where it stands in the heap
        # until it comes up: then the later one is entered.
        if at == math.inf or life.next_at <= at:
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

    # The breaker

    def breakers(self, now: float) -> frozenset[str]:
        """Where too many are suspected at once: names of hosts, or `FLEET`.

        It opens by those who became suspects within the period, and stays open while so many
        of those of the last `hang_after_s` are suspects still. A host that has all agents is
        the fleet.
        """
        recent: dict[str, int] = {}
        standing: dict[str, int] = {}
        for agent, at in list(self._suspected.items()):
            if agent not in self._lives or now - at > self._limits.hang_after_s:
                del self._suspected[agent]
                continue
            for scope in (self._lives[agent].watched.host, FLEET):
                standing[scope] = standing.get(scope, 0) + 1
                if now - at <= self._limits.breaker_period_s:
                    recent[scope] = recent.get(scope, 0) + 1
        self._open_breakers = frozenset(
            scope
            for scope, count in standing.items()
            if (scope == FLEET or self._on_host[scope] < len(self._lives))
            and self._is_breaker(
                scope, count if scope in self._open_breakers else recent.get(scope, 0)
            )
        )
        return self._open_breakers

    def _is_breaker(self, scope: str, suspects: int) -> bool:
        agents = len(self._lives) if scope == FLEET else self._on_host[scope]
        return breaker_open(
            suspects, agents, self._limits.breaker_agents, self._limits.breaker_share
        )

    # Verdict and state

    def _state(self, life: Life, health: Health) -> AgentState:
        state = _STATES[life.status]
        if life.quarantined:
            state = AgentState.QUARANTINED
        elif life.restarting:
            state = AgentState.RESTARTING
        elif health.condition is Condition.DEAD:
            state = AgentState.FAILED
        elif health.reason in ENDS:
            state = AgentState.TERMINATED
        elif health.condition is Condition.HUNG:
            state = AgentState.UNRESPONSIVE
        elif health.condition is Condition.LATE or life.rung >= DEGRADE or self._recovers(life):
            state = AgentState.DEGRADED
        elif life.watched.beats and life.heard_epoch != life.epoch:
            state = AgentState.STARTING
        elif not life.watched.beats and life.status is BeatStatus.STARTING:
            state = AgentState.RUNNING if health.value is Value.OK else AgentState.STARTING
        elif state is AgentState.TERMINATED:
            state = AgentState.RUNNING  # it said that it had finished, and came back
        return state

    def _recovers(self, life: Life) -> bool:
        """Whether it was in trouble, and has not beaten often enough since."""
        trouble = life.state in (AgentState.DEGRADED, AgentState.UNRESPONSIVE)
        few = life.good_beats < self._limits.recover_beats
        return trouble and few and life.watched.beats and life.heard_at > NEVER

    def _settled(self, life: Life, now: float, *, plan: bool = True) -> tuple[Fact, ...]:
        """Bring state and verdict up to date, and tell what changed."""
        health = judge(life, self._limits, now)
        facts: list[Fact] = []
        path = _way(life.state, self._state(life, health))
        if not path and self._differs(life, health):
            path = (life.state,)
        for state in path:
            facts.append(_changed(life, state, health))
            life.state, life.since = state, now if state is not life.state else life.since
        life.condition, life.value, life.reason = health.condition, health.value, health.reason
        if life.rung < SUSPECT or health.condition not in _SUSPECTS:
            self._suspected.pop(life.watched.agent, None)
        if facts:
            self._changed.add(life.watched.agent)
        if plan:
            self._plan(life, now)
        return tuple(facts)

    @staticmethod
    def _differs(life: Life, health: Health) -> bool:
        if (life.condition, life.value) != (health.condition, health.value):
            return True
        return life.reason != health.reason and (health.value is not Value.OK or not life.reason)

    def _enter_epoch(self, life: Life, epoch: int, now: float) -> None:
        life.epoch = epoch
        if self._fences is not None:
            self._fences.fence(life.watched.agent, epoch)
        life.begin(now, self._limits)
        life.looked_at, life.attended, life.good_beats = NEVER, False, 0
        self._suspected.pop(life.watched.agent, None)

    # What outlives the process

    def take_changed(self) -> frozenset[AgentId]:
        """Agents of whom more has changed since the last call than when they were heard."""
        changed, self._changed = frozenset(self._changed), set()
        return changed

    def record(self, agent: AgentId, now: float, now_utc: datetime) -> LifeRecord | None:
        """One life as it is to be stored."""
        life = self._lives.get(agent)
        if life is None:
            return None

        def utc(at: float) -> datetime | None:
            return None if at == NEVER else now_utc + timedelta(seconds=at - now)

        return LifeRecord(
            agent,
            life.epoch,
            life.sequence,
            life.state,
            now_utc + timedelta(seconds=life.since - now),
            utc(life.heard_at),
            life.declared_s,
            life.wait_kind,
            utc(life.wait_until) if life.wait_until > now else None,
            life.process,
            () if life.gaps is None else life.gaps.last(STORED_GAPS),
            utc(life.worked_at),
        )

    def records(self, now: float, now_utc: datetime) -> tuple[LifeRecord, ...]:
        """Every life as it is to be stored. O(n)."""
        found = (self.record(agent, now, now_utc) for agent in self._lives)
        return tuple(record for record in found if record is not None)

    def restore(
        self,
        records: Iterable[LifeRecord],
        now: float,
        now_utc: datetime,
        quarantined: Callable[[AgentId], bool] = lambda _: False,
        ended_by_us: Container[AgentId] = (),
    ) -> None:
        """Go on with what was stored, for agents that are watched; all silences start anew.

        What was seen of them is not believed any more: nothing is known until it is seen
        or heard again. A restart that was under way is told of by whoever resumes it;
        `quarantined` says of whom the holds say so, `ended_by_us` whose end is our doing
        (see `core.lives`). How everybody stands is told again, by the next `due`.
        """
        gap_s = math.inf
        for record in records:
            life = self._lives.get(record.agent)
            if life is None:
                continue
            self._restore(life, record, now, now_utc)
            life.quarantined = quarantined(record.agent)
            life.ours = record.agent in ended_by_us
            gap_s = min(gap_s, now - life.heard_at)
            life.reason = ""
            self._look_over(life)
        if gap_s < math.inf:
            grace_s = max(life.suspect_s(self._limits) for life in self._lives.values())
            self._untold.append(AmnestyGranted("downtime", round(gap_s, 3), grace_s, len(self)))

    def _restore(self, life: Life, record: LifeRecord, now: float, now_utc: datetime) -> None:
        def at(then_utc: datetime | None) -> float:
            # A wall clock that was set back makes nothing happen in the future.
            return NEVER if then_utc is None else now - max(0.0, _seconds(now_utc - then_utc))

        life.epoch, life.sequence = record.epoch, record.sequence
        if self._fences is not None and (record.epoch or record.heard_utc is not None):
            self._fences.fence(record.agent, record.epoch)
        held = record.state is AgentState.RESTARTING
        life.state = AgentState.STARTING if held else record.state
        life.since, life.began_at, life.looked_at = at(record.since_utc), now, NEVER
        life.ended = _why_ended(record, life.watched)
        life.process, life.attended = record.process, False
        life.status = _STATUSES.get(record.state, BeatStatus.RUNNING)
        if life.ended == INACTIVE:
            life.status, life.gone_since = BeatStatus.RUNNING, life.since
        life.declared_s = record.interval_s
        life.heard_at = at(record.heard_utc)
        life.worked_at = life.beyond_cpu_at = at(record.progress_utc)
        if record.heard_utc is not None:
            life.heard_epoch = record.epoch
            life.quiet_from = life.rested_at = now
        if record.gaps_s:
            life.gaps = Gaps(record.gaps_s)
            life.gaps.reckon(self._limits)
        if record.wait_until_utc is not None and record.wait_until_utc > now_utc:
            life.wait_kind = record.wait_kind
            # A wall clock that was set back makes no wait longer than it was when last heard of.
            heard_utc = record.heard_utc or record.since_utc
            whole_s = max(0.0, _seconds(record.wait_until_utc - heard_utc))
            left_s = min(_seconds(record.wait_until_utc - now_utc), whole_s, LONGEST_WAIT_S)
            life.wait_until = life.quiet_from = now + left_s
            life.rest(life.wait_until)


def _why_ended(record: LifeRecord, watched: Watched) -> str:
    """Why a life that is restored is no longer expected to go on; "" it is.

    What ended with its last word said so. Of any other it was seen, and is looked at again:
    whoever stopped its unit may have started it since.
    """
    if record.state is not AgentState.TERMINATED:
        return ""
    said_so = record.heard_utc is not None and record.since_utc <= record.heard_utc
    return FINISHED if said_so or Source.UNIT not in watched.sources else INACTIVE


def _seconds(span: timedelta) -> float:
    return span / timedelta(seconds=1)


def _changed(life: Life, after: AgentState, health: Health) -> LifeChanged:
    return LifeChanged(
        life.watched.agent,
        life.epoch,
        life.state,
        after,
        health.condition,
        health.value,
        health.reason,
        health.evidence,
    )


def _way(before: AgentState, after: AgentState) -> tuple[AgentState, ...]:
    """The states to pass through; where the table has no way in two, over a restart."""
    path = path_to(before, after)
    if path or before is after:
        return path
    first = path_to(before, AgentState.RESTARTING)
    second = path_to(AgentState.RESTARTING, after)
    return (*first, *second) if first and second else ()
