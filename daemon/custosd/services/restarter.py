"""Brings back the dead and the hung: decides who, when, and carries it out.

    FleetView.hands.lives ─► [ decide ] ─► RestartWithheld, Escalated, quarantine
    holds, a person's order ───┘   └─► line ─► Procedure ─► ActionStore, AgentControl

Who is restarted, and when, is decided in `custosd.core.restart_policy`; what agents have in
common in `core.incidents`; one restart is carried out by `services.procedure`. This module
asks, keeps the line, and tells.

Laws:

1. Levels are watched: an agent is looked at when its life or a hold has changed, or its time
   has come. A change that was missed or comes twice does no harm.
2. All that outlives this process is in the store before it matters: restarts as rows,
   quarantines and incidents as holds. Budgets are folded from the rows at each start.
3. What is known to be bad and is not acted upon is told, or a person is asked.
"""

import heapq
import math
import random
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

import structlog
import trio

from custosd.core.acts import ActAnswer, ActOutcome
from custosd.core.agents import AgentId, AgentState
from custosd.core.diagnosis import LastWords, classify, fingerprint, finished
from custosd.core.errors import StoreError, StoreRefused, StoreUnavailable
from custosd.core.evidence import Condition, Exit, Value
from custosd.core.facts import Fact
from custosd.core.holds import FLEET, Hold, HoldKind
from custosd.core.incidents import IncidentNews, Incidents
from custosd.core.restart_budget import (
    RELEASED,
    RestartHistory,
    RestartLimits,
    past_of,
)
from custosd.core.restart_policy import (
    HOLDS,
    Case,
    Decision,
    Forecast,
    Move,
    decide,
    forecast,
    own_decision,
)
from custosd.core.restarts import Cause, Restart, RestartState, stop_begun
from custosd.core.view import FleetView
from custosd.flow.alarm import Alarm
from custosd.flow.latest import Latest
from custosd.flow.monitor import Kind, operation
from custosd.flow.pulse import Pulse
from custosd.ports import ActionStore, AgentControl, HandOver, Prober
from custosd.services.holds import Holds
from custosd.services.procedure import (
    LeaseLost,
    LivesOfAgents,
    Procedure,
    ProcedureLimits,
    ProcedurePorts,
    changed,
)
from custosd.services.restart_concerns import (
    US,
    IncidentDesk,
    RestartConcerns,
    reason_of,
)
from custosd.services.store_absence import STORE_RETRIES, past_conflicts, until_answered

log = structlog.get_logger()

LONGEST_WAIT_S = 60.0
SHORTEST_WAIT_S = 0.05
STORE_RETRY_S = 5.0
"""How soon a restart that could not be written down is tried again."""

ORDER_LAPSES_S = 600.0
"""How old an order may be that nobody began: after our own absence nobody waits for it."""

LEASE_RETRY_S = 5.0
"""How soon a restart that another daemon carries out is looked at again."""

BREAKER_LOOK_S = 15.0
"""How often an open breaker is looked at: it closes by the time that passes alone."""

REFUSED_RETRY_S = 600.0
"""How soon, where the store refused it: that is a defect, or bad data, and seldom passes."""

_BUDGETS = frozenset({"fleet_budget", "host_budget"})

_AT_ONCE = 256
"""Agents that are looked at before others get their turn: some milliseconds."""

_UNCLEAR = frozenset({"not_known", "not_seen", "still_there"})
"""Ends of a restart after which it is not known how the agent is: a person should look."""


class WatchedLives(LivesOfAgents, Protocol):
    """What the restarter asks of those who watch lives, beside what a restart does."""

    def epoch(self, agent: AgentId) -> int:
        """The incarnation that lives now, or lived last."""
        ...

    def exit_of(self, agent: AgentId) -> Exit | None:
        """How the last process ended, where that was seen."""
        ...

    def task(self, agent: AgentId) -> str:
        """What the agent says it works on; "" where it does not."""
        ...

    def breakers(self, now: float) -> Collection[str]:
        """Where too many are suspected at once: names of hosts, or `FLEET`."""
        ...

    def quarantined(self, agent: AgentId, now: float) -> Sequence[Fact]:
        """An agent is in quarantine from now on; no facts where it was already."""
        ...

    def released(self, agent: AgentId, now: float) -> Sequence[Fact]:
        """An agent is out of quarantine; no facts where it was not in it."""
        ...


@dataclass(frozen=True, slots=True)
class Supervised:
    """What the configuration says of one agent, as far as restarts go."""

    host: str = ""
    account: str = ""
    beats: bool = True


@dataclass(frozen=True, slots=True)
class RestarterSettings:
    """Budgets, times, and whether anything is done at all (`acting`), or only told."""

    limits: RestartLimits = field(default_factory=RestartLimits)
    steps: ProcedureLimits = field(default_factory=ProcedureLimits)
    acting: bool = True


@dataclass(frozen=True, slots=True)
class RestarterPorts:
    """What a restarter works with. `jitter` gives numbers in [0, 1), `new_id` names restarts.

    `ended`: see `procedure.ProcedurePorts`.
    """

    store: ActionStore
    controls: Mapping[AgentId, AgentControl]
    prober: Prober
    lives: WatchedLives
    holds: Holds
    facts: trio.MemorySendChannel[Fact]
    now_utc: Callable[[], datetime]
    jitter: Callable[[], float] = random.random
    new_id: Callable[[], str] = lambda: uuid.uuid4().hex
    ended: Callable[[str], bool] = lambda _owner: False


_NO_AGENT = Supervised()


class Restarter:
    """Everything that is known of restarts, and what people may ask; `keep_restarts` runs it.

    `owner` names this daemon in leases: no two that run at the same time may have one name.
    Agents without a control are never acted upon, a person is asked instead.
    """

    def __init__(
        self,
        ports: RestarterPorts,
        view: Latest[FleetView],
        agents: Mapping[AgentId, Supervised],
        settings: RestarterSettings,
        owner: str,
    ) -> None:
        self._ports = ports
        self._view = view
        self._agents = agents
        self._settings = settings
        self._owner = owner
        self._alarm = Alarm(LONGEST_WAIT_S, SHORTEST_WAIT_S)
        self._history = RestartHistory(settings.limits)
        self._incidents = Incidents(settings.limits)
        self._concerns = RestartConcerns(ports.facts)
        self._desk = self._new_desk()
        self._seen: FleetView | None = None
        self._bad_at: dict[AgentId, float] = {}
        self._late_at: dict[AgentId, float] = {}
        self._released_at: dict[AgentId, float] = {}
        self._quarantined: set[AgentId] = set()
        self._running: dict[AgentId, Restart] = {}
        self._open: dict[AgentId, tuple[float, Restart]] = {}
        self._orders: dict[AgentId, Restart] = {}
        self._gone: list[AgentId] = []
        self._unanswered: set[str] = set()
        self._line: set[AgentId] = set()
        self._due: list[tuple[float, AgentId]] = []
        self._all_due = True
        self._swept_at = -math.inf
        self._news: list[IncidentNews] = []

    def _new_desk(self) -> IncidentDesk:
        return IncidentDesk(self._incidents, self._ports.holds, self._concerns, self._ports.now_utc)

    # --- what people, and programs for them, ask for ---------------------------------------

    def adopt(
        self, settings: RestarterSettings, agents: Mapping[AgentId, Supervised] | None = None
    ) -> None:
        """Go by other settings from now on; a restart that is under way keeps its own."""
        self._settings = settings
        self._history.limits = settings.limits
        self._incidents.limits = settings.limits
        self._agents = self._agents if agents is None else agents
        self._look_at_all()

    def released(self, agent: AgentId) -> None:
        """Forget what an agent's restarts had come to: a person let it go on."""
        self._released_at[agent] = trio.current_time()
        self._look_at_all()

    async def order(
        self, agent: AgentId, by: str, reason: str, *, dry_run: bool = False
    ) -> ActAnswer:
        """Restart an agent because a person wants it; returns when that is in writing.

        An order asks for no evidence and no budget; holds go before it all the same.
        """
        if (refused := self._refusal(agent)) is not None:
            return refused
        if dry_run:
            words = f"{agent} would be asked to end, killed if it does not, and started again"
            return ActAnswer(ActOutcome.WOULD_BE_DONE, words)
        restart = self._intent(agent, Cause.REQUESTED, by, reason)
        # Whoever looks at the agent meanwhile sees that something is under way.
        self._running[agent] = restart
        try:
            stored = await self._ports.store.intend_restart(restart)
        except StoreError as error:
            # It may be in writing all the same; then it is an order like any other.
            self._unanswered.add(restart.id)
            self._put_back(restart, STORE_RETRY_S)
            words = f"the database did not answer; if it has the order, it is carried out: {error}"
            return ActAnswer(ActOutcome.FAILED, words)
        except trio.Cancelled:
            # Whoever asked has gone; in writing, it is an order like any other all the same.
            self._unanswered.add(restart.id)
            self._put_back(restart, STORE_RETRY_S)
            raise
        finally:
            del self._running[agent]
            self._alarm.ring()
        if stored is None:
            self._open[agent] = (trio.current_time(), restart)
            return ActAnswer(ActOutcome.NOTHING_TO_DO, f"{agent} is being restarted already")
        self._orders[agent] = stored
        self._remember(stored)
        await self._ports.facts.send(changed(stored))
        detail = {"restart": stored.id, "next_epoch": stored.next_epoch}
        return ActAnswer(ActOutcome.DONE, f"{agent} is being restarted", detail)

    def forecast(self, agent: AgentId, now: float) -> Forecast | None:
        """What will happen to an agent, and when; None: it has no life that is watched."""
        lives = self._view.value.hands.lives
        if agent not in lives and agent not in self._agents and agent not in self._ports.controls:
            return None
        now_utc = self._ports.now_utc()
        case = self._case(agent, now, now_utc)
        return forecast(case, self._history, self._incidents, now, now_utc, len(self._bad_at))

    def _refusal(self, agent: AgentId) -> ActAnswer | None:
        hold = self._ports.holds.holding(agent, *HOLDS)
        if agent not in self._ports.controls:
            words = f"{agent} cannot be restarted: set control in its [[agent]] table"
        elif not self._settings.acting:
            words = 'nothing is restarted while restarts.mode is "observe"'
        elif hold is not None:
            words = f"{agent} is held ({hold.kind} by {hold.by}): lift that first"
        elif self._is_under_way(agent):
            return ActAnswer(ActOutcome.NOTHING_TO_DO, f"{agent} is being restarted already")
        else:
            return None
        return ActAnswer(ActOutcome.REFUSED, words)

    # --- the service -----------------------------------------------------------------------

    async def run(self, pulse: Pulse, task_status: trio.TaskStatus[None]) -> None:
        """See `keep_restarts`."""
        await self._load(pulse)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_view)
            nursery.start_soon(self._follow_holds)
            started = False
            while True:
                self._alarm.rewind()
                await self._look(nursery)
                pulse.beat()
                if not started:
                    started = True
                    task_status.started()
                with pulse.waiting():
                    await self._alarm.wait()

    async def _follow_view(self) -> None:
        async for view in self._view:
            if self._seen is None or view.hands is not self._seen.hands:
                self._alarm.ring()

    async def _follow_holds(self) -> None:
        while True:
            changed_event = self._ports.holds.changed
            self._look_at_all()
            await changed_event.wait()

    def _look_at_all(self) -> None:
        self._all_due = True
        self._alarm.ring()

    async def _load(self, pulse: Pulse) -> None:
        """Fold what is stored: budgets, incidents, and the restarts that were cut short."""
        now, now_utc = trio.current_time(), self._ports.now_utc()
        remember = timedelta(seconds=self._settings.limits.remember_s)
        rows = await self._read_restarts(now_utc - remember, pulse)
        self._concerns = RestartConcerns(self._ports.facts, self._view.value.hands.concerns)
        self._incidents = Incidents(self._settings.limits)
        self._desk = self._new_desk()
        self._history = RestartHistory(self._settings.limits)
        self._count_agents()
        self._seen, self._all_due = None, True
        self._open.clear()
        self._orders.clear()
        self._line.clear()
        self._desk.restore(now)
        await self._escalate_again()
        for row in rows:
            self._remember(row)
            if not row.ended and not await self._lapsed(row, now_utc):
                self._open[row.agent] = (now, row)
        self._news += self._replay(rows, now, now_utc)
        for agent, life in self._view.value.hands.lives.items():
            # Its restart was over, and we were too before we could say so.
            if life.state is AgentState.RESTARTING and agent not in self._open:
                await self._tell(self._ports.lives.restart_ended(agent, False, now))  # noqa: FBT003 - the port's

    async def _escalate_again(self) -> None:
        """Concerns are not stored; the holds that they are about are."""
        for hold in self._ports.holds.all():
            if hold.by != US:
                continue
            if hold.kind is HoldKind.QUARANTINE:
                await self._concerns.escalate("quarantine", hold.subject, hold.reason)
            elif hold.kind is HoldKind.INCIDENT:
                await self._concerns.escalate("incident", hold.subject, reason_of(hold.subject))

    async def _lapsed(self, row: Restart, now_utc: datetime) -> bool:
        """Whether it is an order that nobody began and nobody waits for any more; it ends then."""
        age_s = (now_utc - row.intended_utc).total_seconds()
        begun = row.state is not RestartState.INTENDED
        if begun or row.cause is not Cause.REQUESTED or age_s < ORDER_LAPSES_S:
            return False
        over = replace(row, state=RestartState.ABANDONED, ended_utc=now_utc)
        log.warning("restart.lapsed", agent=row.agent, restart=row.id, age_s=round(age_s))
        try:
            await self._ports.store.save_restart(over)
        except StoreError as error:
            log.warning("store.lost", during="restart", error=str(error), waiting=1)
            return False
        self._remember(over)
        return True

    async def _read_restarts(self, since_utc: datetime, pulse: Pulse) -> tuple[Restart, ...]:
        return await until_answered(
            lambda: self._ports.store.restarts(since_utc),
            "restarts",
            waiting=lambda: 0,
            policy=replace(
                STORE_RETRIES, first_delay_s=STORE_RETRY_S, longest_delay_s=STORE_RETRY_S
            ),
            pause=pulse.sleep,
        )

    def _replay(
        self, rows: Iterable[Restart], now: float, now_utc: datetime
    ) -> tuple[IncidentNews, ...]:
        """What the latest restarts say of common causes, as if we had been there."""
        limits = self._settings.limits
        news: list[IncidentNews] = []
        for row in rows:
            past = past_of(row, "", now, now_utc, 0.0)
            if not row.fingerprint or now - past.at > limits.common_period_s:
                continue
            news += self._incidents.strike(
                row.agent, row.fingerprint, past.at, self._alike(row.cause)
            )
            if row.ended and past.ended_at is not None:
                news += self._incidents.restarted(
                    row.agent,
                    past.ended_at,
                    succeeded=row.state is RestartState.SUCCEEDED,
                    abandoned=row.state is RestartState.ABANDONED,
                )
        return tuple(news)

    # --- one look --------------------------------------------------------------------------

    async def _look(self, nursery: trio.Nursery) -> None:
        now, now_utc = trio.current_time(), self._ports.now_utc()
        agents = self._take_due(now)
        for agent in self._take_gone():
            self._news += await self._take_leave(agent)
        await self._follow_quarantines(now)
        news = [*self._news, *await self._desk.follow()]
        self._news.clear()
        for number, agent in enumerate(agents, 1):
            news += await self._track(agent, now, now_utc)
            if number % _AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        news += self._follow_breakers(now)
        news += self._incidents.tick(now)
        await self._desk.tell(news)
        if news:
            agents = sorted({*agents, *self._bad_at})
        for number, agent in enumerate(agents, 1):
            await self._follow(agent)
            if number % _AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        await self._serve(nursery)
        self._set_alarm()

    def _take_due(self, now: float) -> list[AgentId]:
        """Whoever has to be looked at: changed since the last look, or due."""
        view, before = self._view.value, self._seen
        lives = view.hands.lives
        due: set[AgentId] = set()
        if self._all_due or before is None:
            self._all_due = False
            due |= {*lives, *self._bad_at}
        elif now - self._swept_at >= LONGEST_WAIT_S:
            # Whoever waits for a change that nobody told of, or for a clock that was set.
            self._swept_at = now
            due |= {*self._bad_at, *self._late_at}
            self._history.forget(now - self._settings.limits.remember_s)
        if before is not None and view.hands is not before.hands:
            known = before.hands.lives
            due |= {agent for agent, life in lives.items() if known.get(agent) is not life}
        while self._due and self._due[0][0] <= now:
            due.add(heapq.heappop(self._due)[1])
        if before is None or len(lives) != len(before.hands.lives):
            self._count_agents()
        if before is not None and lives is not before.hands.lives:
            self._gone += before.hands.lives.keys() - lives.keys()
        self._seen = view
        return sorted(due)

    def _take_gone(self) -> list[AgentId]:
        gone, self._gone = sorted(set(self._gone)), []
        return gone

    async def _take_leave(self, agent: AgentId) -> tuple[IncidentNews, ...]:
        """An agent is watched no longer: nobody is asked about it, and it fails with nobody."""
        self._bad_at.pop(agent, None)
        self._late_at.pop(agent, None)
        self._line.discard(agent)
        self._concerns.no_longer_withheld(agent)
        await self._concerns.resolve("life", agent, "dismissed")
        return self._incidents.recovered(agent)

    def _count_agents(self) -> None:
        counts: dict[str, int] = {}
        for agent in {*self._agents, *self._view.value.hands.lives}:
            host = self._of(agent).host
            counts[host] = counts.get(host, 0) + 1
        self._history.agents = counts

    async def _follow_quarantines(self, now: float) -> None:
        """Bring lives and concerns in line with the quarantines that are in force."""
        held = {
            AgentId(hold.subject)
            for hold in self._ports.holds.all()
            if hold.kind is HoldKind.QUARANTINE
        }
        for agent in sorted(held - self._quarantined):
            await self._tell(self._ports.lives.quarantined(agent, now))
        over = {AgentId(name) for name in self._concerns.of_kind("quarantine")} - held
        for agent in sorted((self._quarantined - held) | over):
            await self._tell(self._ports.lives.released(agent, now))
            await self._concerns.resolve("quarantine", agent, "released")
            self._released_at[agent] = now
        self._quarantined = held

    async def _track(
        self, agent: AgentId, now: float, now_utc: datetime
    ) -> tuple[IncidentNews, ...]:
        """Note whether an agent is bad, since when, and with whom it has that in common."""
        health = self._ports.lives.health(agent, now)
        if health.authorises_restart:
            self._bad_at.setdefault(agent, now)
            case = self._case(agent, now, now_utc)
            if self._is_under_way(agent) or case.finished:
                return ()
            cause = case.diagnosis.cause
            return self._incidents.strike(agent, self._fingerprint(case), now, self._alike(cause))
        if health.condition is Condition.LATE:
            self._late_at.setdefault(agent, now)
        else:
            self._late_at.pop(agent, None)
        if health.value is not Value.OK:
            return ()
        self._line.discard(agent)
        self._concerns.no_longer_withheld(agent)
        await self._concerns.resolve("life", agent, "well_again")
        if self._bad_at.pop(agent, None) is None and not self._incidents.names(agent):
            return ()
        return self._incidents.recovered(agent)

    def _follow_breakers(self, now: float) -> list[IncidentNews]:
        open_ones = frozenset(self._ports.lives.breakers(now))
        news: list[IncidentNews] = []
        for scope in sorted(open_ones | self._incidents.breakers()):
            members = frozenset(
                agent for agent in self._bad_at if scope in (FLEET, self._of(agent).host)
            )
            news += self._incidents.breaker(scope, members, now, is_open=scope in open_ones)
        if self._incidents.breakers():
            # Suspicions run out without a word.
            self._alarm.after(BREAKER_LOOK_S)
        return news

    async def _follow(self, agent: AgentId) -> None:
        """Do what is decided about one agent, but for starting its restart."""
        now, now_utc = trio.current_time(), self._ports.now_utc()
        case = self._case(agent, now, now_utc)
        decision = own_decision(case, self._history, self._incidents, now, now_utc)
        self._line.discard(agent)
        if decision.until_at is not None:
            self._look_later(agent, decision.until_at)
        match decision.move:
            case Move.RESTART:
                self._line.add(agent)
            case Move.QUARANTINE:
                await self._quarantine(agent, decision.why)
            case Move.ESCALATE:
                await self._concerns.escalate("life", agent, decision.why)
            case Move.WAIT | Move.WITHHOLD:
                await self._withhold(case, decision, now)
            case Move.NOTHING:
                if decision.why == "finished":
                    await self._concerns.resolve("life", agent, "finished")

    async def _withhold(self, case: Case, decision: Decision, now: float) -> None:
        until_s = None if decision.until_at is None else decision.until_at - now
        epoch = self._ports.lives.epoch(case.agent)
        cause = case.diagnosis.cause
        await self._concerns.withhold(case.agent, epoch, cause, decision.why, until_s)
        most_s = self._settings.limits.escalate_wait_s
        # A budget says when the next token comes, not whose it will be.
        waits_long = decision.why in _BUDGETS and now - case.bad_at > most_s
        long = waits_long or (until_s is not None and until_s > most_s)
        if decision.why == "observing" or (long and not decision.why.startswith("incident:")):
            await self._concerns.escalate("life", case.agent, decision.why)

    async def _quarantine(self, agent: AgentId, why: str) -> None:
        self._quarantined.add(agent)
        now, now_utc = trio.current_time(), self._ports.now_utc()
        await self._ports.holds.place(Hold(HoldKind.QUARANTINE, agent, US, why, now_utc))
        await self._tell(self._ports.lives.quarantined(agent, now))
        await self._concerns.escalate("quarantine", agent, why)

    # --- the line --------------------------------------------------------------------------

    async def _serve(self, nursery: trio.Nursery) -> None:
        """Start as many restarts as hands and budgets allow: open ones, orders, the line."""
        now = trio.current_time()
        for agent, (at, restart) in sorted(self._open.items()):
            if at > now:
                self._alarm.after(at - now)
            elif self._may_start(agent):
                del self._open[agent]
                self._start(nursery, restart, known=False)
        for agent, restart in list(self._orders.items()):
            if self._may_start(agent):
                del self._orders[agent]
                self._start(nursery, restart, known=True)
        if self._line:
            await self._serve_line(nursery, now)

    async def _serve_line(self, nursery: trio.Nursery, now: float) -> None:
        ready_at = self._history.fleet_ready_at(now)
        if ready_at > now:
            await self._tell_line(ready_at, now)
            return
        for agent in sorted(self._line, key=self._place_in_line):
            if not self._may_start(agent):
                return  # whoever ends rings
            if not await self._serve_one(nursery, agent, now):
                return

    def _place_in_line(self, agent: AgentId) -> tuple[int, float, str]:
        """Who was restarted less goes first: one bad agent must not stand for all others."""
        return len(self._history.of(agent)), self._bad_at.get(agent, 0.0), agent

    async def _serve_one(self, nursery: trio.Nursery, agent: AgentId, now: float) -> bool:
        """Start an agent's restart if it may be; False: nobody may, by the fleet's budget."""
        case = self._case(agent, now, self._ports.now_utc())
        decision = decide(case, self._history, self._incidents, now, self._ports.now_utc())
        if decision.move is Move.RESTART:
            self._line.discard(agent)
            self._incidents.began(agent)
            self._start(nursery, self._intent_of(case), known=False)
            return True
        if decision.why == "fleet_budget" and decision.until_at is not None:
            await self._tell_line(decision.until_at, now)
            return False
        if decision.until_at is not None:
            self._alarm.after(decision.until_at - now)
        if decision.move in (Move.WAIT, Move.WITHHOLD):
            await self._withhold(case, decision, now)
        return True

    async def _tell_line(self, ready_at: float, now: float) -> None:
        """All that stand in line wait for the fleet's budget; each is told of once."""
        self._alarm.after(ready_at - now)
        decision = Decision(Move.WAIT, "fleet_budget", ready_at, "restarts.fleet_share")
        for agent in sorted(self._concerns.untold(self._line, decision.why)):
            await self._withhold(self._case(agent, now, self._ports.now_utc()), decision, now)
        limits = self._settings.limits
        for place, agent in enumerate(sorted(self._line, key=self._place_in_line)):
            turn_s = ready_at - now + place / limits.per_s(self._history.fleet)
            if turn_s > limits.escalate_wait_s:
                await self._concerns.escalate("life", agent, decision.why)

    def _may_start(self, agent: AgentId) -> bool:
        free = len(self._running) < self._settings.limits.concurrency
        return free and agent not in self._running

    def _start(self, nursery: trio.Nursery, restart: Restart, *, known: bool) -> None:
        self._running[restart.agent] = restart
        self._remember(restart)
        nursery.start_soon(self._carry_out, restart, known)

    async def _carry_out(self, restart: Restart, known: bool) -> None:  # noqa: FBT001 - started by a nursery
        """One restart from its intent to its end; whatever happens, its place is free then."""
        agent = restart.agent
        try:
            # It has limits of its own for each of its steps.
            async with operation(Kind.PIPELINE, "restart", slow_s=math.inf):
                stored = restart if known else await self._write(restart)
                if stored is not None:
                    await self._run(stored)
        except LeaseLost as error:
            log.info("restart.left", agent=agent, restart=restart.id, reason=str(error))
            self._put_back(restart, LEASE_RETRY_S)
        except StoreUnavailable as error:
            log.warning("store.lost", during="restart", error=str(error), waiting=1)
            self._put_back(restart, STORE_RETRY_S)
        except StoreRefused as error:
            log.error("restart.refused", agent=agent, restart=restart.id, error=str(error))
            await self._concerns.escalate("life", agent, "store_refused")
            self._put_back(restart, REFUSED_RETRY_S)
        finally:
            self._running.pop(agent, None)
            self._look_later(agent, trio.current_time())
            self._alarm.ring()

    def _put_back(self, restart: Restart, after_s: float) -> None:
        """Try again later, by what is in the store then."""
        self._open[restart.agent] = (trio.current_time() + after_s, restart)

    async def _write(self, restart: Restart) -> Restart | None:
        """The restart as it is stored; None: there is another one, or it is over."""
        if restart.id in self._unanswered:
            self._unanswered.discard(restart.id)
            if not await self._is_stored(restart):
                self._forget(restart)
                return None
        stored = await self._intended(restart)
        if stored is None and (stored := await self._open_row(restart.agent)) is None:
            # One of this key was done already, longer ago than is remembered.
            stored = await self._intended(replace(restart, key=f"{restart.key}/{restart.id}"))
        if stored is None or stored.id != restart.id:
            self._forget(restart)
        if stored is None:
            return None
        if stored.ended:
            self._after(stored, "")
            return None
        if stored.id == restart.id and stored.state is RestartState.INTENDED:
            await self._ports.facts.send(changed(stored))
        self._remember(stored)
        return stored

    async def _open_row(self, agent: AgentId) -> Restart | None:
        rows = await self._ports.store.restarts(self._ports.now_utc())
        return next((row for row in rows if row.agent == agent and not row.ended), None)

    async def _is_stored(self, restart: Restart) -> bool:
        rows = await self._ports.store.restarts(self._ports.now_utc())
        return any(row.id == restart.id for row in rows)

    async def _intended(self, restart: Restart) -> Restart | None:
        return await past_conflicts(lambda: self._ports.store.intend_restart(restart))

    async def _run(self, restart: Restart) -> None:
        agent = restart.agent
        self._running[agent] = restart
        control = self._ports.controls.get(agent)
        if control is None:
            # It lost its control, by a change of the configuration, while this was open.
            await self._concerns.escalate("life", agent, "no_control")
            self._put_back(restart, REFUSED_RETRY_S)
            return
        ports = ProcedurePorts(
            self._ports.store,
            control,
            self._ports.prober,
            self._ports.lives,
            self._ports.facts,
            self._ports.now_utc,
            self._withheld,
            self._hand_over,
            self._of(agent).beats,
            self._ports.ended,
        )
        procedure = Procedure(restart, ports, self._settings.steps, self._owner)
        ended = await procedure.run()
        self._after(ended, procedure.code)
        if ended.state is RestartState.FAILED:
            await self._concerns.escalate("life", agent, f"restart_failed_{procedure.code}")
        elif procedure.code in _UNCLEAR and self._gave_up_twice(agent):
            await self._concerns.escalate("life", agent, f"restart_abandoned_{procedure.code}")

    def _gave_up_twice(self, agent: AgentId) -> bool:
        """Once may be the moment, as right after our own start; twice is a person's business."""
        last = self._history.of(agent)[-2:]
        return len(last) > 1 and not any(one.counts for one in last)

    def _after(self, ended: Restart, code: str) -> None:
        agent, now = ended.agent, trio.current_time()
        self._remember(ended)
        succeeded = ended.state is RestartState.SUCCEEDED
        if succeeded or code == "came_back":
            self._bad_at.pop(agent, None)
        self._news += self._incidents.restarted(
            agent, now, succeeded=succeeded, abandoned=ended.state is RestartState.ABANDONED
        )
        if self._incidents.open_ones():
            self._look_at_all()  # somebody else may go first now

    # --- what is known of one agent --------------------------------------------------------

    def _case(self, agent: AgentId, now: float, now_utc: datetime) -> Case:
        lives = self._ports.lives
        health = lives.health(agent, now)
        life = self._view.value.hands.lives.get(agent)
        words, seen = self._last_words(agent), lives.exit_of(agent)
        hold = self._ports.holds.holding(agent, *HOLDS)
        return Case(
            agent,
            health,
            AgentState.STARTING if life is None else life.state,
            classify(health.condition, seen, words, now_utc),
            self._bad_at.get(agent, self._late_at.get(agent, now)),
            self._of(agent).host,
            lives.task(agent),
            controlled=agent in self._ports.controls,
            acting=self._settings.acting,
            under_way=self._is_under_way(agent),
            finished=finished(seen, words),
            held=None if hold is None else hold.kind,
            released_at=self._released_at.get(agent, -math.inf),
        )

    def _last_words(self, agent: AgentId) -> LastWords:
        run = self._view.value.agents.get(agent)
        if run is None or run.digest is None:
            return LastWords()
        return LastWords(run.digest.claim, run.digest.waiting_on, run.digest.end, run.grown_utc)

    def _of(self, agent: AgentId) -> Supervised:
        return self._agents.get(agent, _NO_AGENT)

    def _fingerprint(self, case: Case) -> str:
        return fingerprint(case.diagnosis, self._of(case.agent).account, case.host)

    def _alike(self, cause: Cause) -> int:
        # A provider that cannot be reached is common to all who use it: one is enough.
        outside = cause is Cause.PROVIDER_OUTAGE
        return 1 if outside else self._settings.limits.alike(self._history.fleet)

    def _is_under_way(self, agent: AgentId) -> bool:
        return agent in self._running or agent in self._open or agent in self._orders

    def _intent_of(self, case: Case) -> Restart:
        released = case.agent in self._released_at
        reason = RELEASED if released else case.health.reason
        restart = self._intent(case.agent, case.diagnosis.cause, US, reason)
        known = self._history.of(case.agent)
        after = known[-1].id if known else "first"
        return replace(
            restart,
            key=f"{restart.epoch}/{after}",
            fingerprint=self._fingerprint(case),
            task=case.task,
            evidence=case.health.evidence,
        )

    def _intent(self, agent: AgentId, cause: Cause, by: str, reason: str) -> Restart:
        epoch, name = self._ports.lives.epoch(agent), self._ports.new_id()
        now_utc = self._ports.now_utc()
        return Restart(name, agent, name, cause, reason, by, epoch, epoch + 1, now_utc)

    def _remember(self, restart: Restart) -> None:
        now, now_utc = trio.current_time(), self._ports.now_utc()
        known = {one.id: one for one in self._history.of(restart.agent)}
        before = known.get(restart.id)
        jitter = self._ports.jitter() if before is None else before.jitter
        past = past_of(restart, self._of(restart.agent).host, now, now_utc, jitter)
        # What began here keeps its time on our clock, whatever the wall clock did since.
        self._history.add(past if before is None else replace(past, at=before.at))
        if past.anew and restart.agent in self._released_at and past.counts and restart.ended:
            del self._released_at[restart.agent]

    def _forget(self, restart: Restart) -> None:
        """It was never stored: it costs nothing."""
        now_utc = self._ports.now_utc()
        self._remember(replace(restart, state=RestartState.ABANDONED, ended_utc=now_utc))
        self._news += self._incidents.restarted(
            restart.agent, trio.current_time(), succeeded=False, abandoned=True
        )

    def _withheld(self, restart: Restart) -> str:
        """Why a restart that is under way may not go on right now; "" where it may."""
        agent = restart.agent
        hold = self._ports.holds.holding(agent, *HOLDS)
        if hold is not None:
            return str(hold.kind)
        if restart.cause is Cause.REQUESTED or stop_begun(restart):
            return ""  # what we have stopped, we start again
        if not self._settings.acting:
            return "observing"
        now = trio.current_time()
        gate = self._incidents.gate(agent, self._ports.lives.health(agent, now).condition, now)
        if gate.open and gate.probe:
            self._incidents.began(agent)
        return "" if gate.open else "incident"

    def _hand_over(self, restart: Restart) -> HandOver:
        run = self._view.value.agents.get(restart.agent)
        if run is None or run.digest is None:
            return HandOver(restart.agent, restart.next_epoch, restart.cause, task=restart.task)
        rules = tuple(rule.text for rule in run.digest.constraints if rule.lifted_step is None)
        summary = run.digest.claim
        if run.verdict is not None:
            summary = run.verdict.judgement.summary or summary
        return HandOver(
            restart.agent,
            restart.next_epoch,
            restart.cause,
            summary,
            run.digest.goal,
            restart.task,
            rules,
        )

    def _look_later(self, agent: AgentId, at: float) -> None:
        heapq.heappush(self._due, (at, agent))

    def _set_alarm(self) -> None:
        now = trio.current_time()
        times = [self._incidents.next_at(now), *(at for at, _ in self._due[:1])]
        for at in times:
            if at < math.inf:
                self._alarm.after(at - now)

    async def _tell(self, facts: Sequence[Fact]) -> None:
        for fact in facts:
            await self._ports.facts.send(fact)


async def keep_restarts(
    restarter: Restarter,
    pulse: Pulse,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Follow lives and holds and bring agents back; never returns unless cancelled.

    Started: when what is stored is folded, the restarts that were cut short go on, and
    everybody was looked at once. A store that is away is told of and waited for. Back-pressure:
    waits for room in the facts. Cancellation leaves restarts open, for the next start.
    Raises `StoreRefused` where restarts cannot be read at all.
    """
    await restarter.run(pulse, task_status)
