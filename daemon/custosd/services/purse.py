"""Gives money for calls of models, and keeps what they cost on record.

    Till ──reserve──► Ledger ──► SpendStore (before the call)
     └────settle────►   │  └───► SpendStore (soon after)
    Ladder ──rung───►   └─ BudgetReached, AnalysisSkipped, concerns ─► board ─► people

Laws:

1. The memory holds the truth; the store is written so that the next start knows it. A
   reservation is stored before its call is made, all that came up at once in one statement;
   what it cost is stored after, and nobody waits for that.
2. A store that is away stops no call, and makes none free: what it did not take is kept, and
   written when it is back. Only a crash before that loses it: what was spent since the store
   went away.
3. What was reserved and never settled, because of a crash, counts as it was reserved.
4. Who finds no room only because of what is under way waits for that, not long.
5. A limit that is reached is a concern until its window is over, and each rung a fact once a
   window; an agent that was judged by another than it should be is one once a limit and window.
"""

import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

import structlog
import trio

from custosd.core.agents import AgentId, AgentRef
from custosd.core.errors import StoreError, StoreRefused
from custosd.core.facts import (
    AnalysisSkipped,
    BudgetReached,
    BudgetRenewed,
    ConcernResolved,
    Escalated,
    Fact,
)
from custosd.core.money import (
    CONDUCTOR,
    LONGEST_S,
    NO_LIMITS,
    SPAN_S,
    BudgetLine,
    BudgetNews,
    Budgets,
    Ledger,
    Limit,
    NoMoney,
    Reservation,
    Rung,
    Scope,
    Span,
    Spend,
)
from custosd.core.money_words import MoneyShown, reached_words
from custosd.core.view import FleetView
from custosd.flow.alarm import Alarm
from custosd.flow.pulse import Pulse
from custosd.ports import SpendStore
from custosd.services.store_absence import StoreAbsence, past_conflicts

log = structlog.get_logger()

LOOK_S = 10.0
"""How often what agents spend is looked at, and whether a window is over."""

WRITE_S = 1.0
"""How long a call waits for its reservation to be stored."""

WRITE_TIMEOUT_S = 10.0
STORE_RETRY_S = 5.0

WAIT_S = 20.0
"""How long a call waits for money that others have under way."""

LONGEST_CALL_S = 3_600.0
"""How long after it was reserved money may be settled."""

KEPT_S = 35 * 86_400.0
"""How long the store keeps what single calls cost."""

PRUNE_EACH_S = 6 * 3_600.0
CONFLICTS = 5

MOST_REFUSED = 20
"""So many are looked for one by one in a batch that was refused."""


@dataclass(slots=True)
class _Unwritten:
    """What the store does not know yet of a call; `written` is set when it does, or is away."""

    spend: Spend
    written: trio.Event


class Purse:
    """`ports.Purse`; lives as long as the daemon. `keep` must run for anything to be stored."""

    def __init__(
        self,
        store: SpendStore,
        now_utc: Callable[[], datetime],
        budgets: Budgets = NO_LIMITS,
        *,
        wait_s: float = WAIT_S,
    ) -> None:
        self._store = store
        self._now_utc = now_utc
        self._wait_s = wait_s
        self._ledger = Ledger(budgets, uuid.uuid4().hex[:12])
        self._unwritten: dict[str, _Unwritten] = {}
        self._facts: list[Fact] = []
        self._alarm = Alarm(LOOK_S)
        self._freed = trio.Event()
        self._absence = StoreAbsence("money")
        self._kept = False
        self._refused: dict[AgentId, NoMoney] = {}
        self._skips: dict[tuple[AgentId, str], tuple[str, datetime | None]] = {}
        self._agents = _AgentsSpending()
        self._fleet_stored_usd = -1.0
        self._pruned_at = -math.inf
        self.skips = 0
        self.spent_usd: dict[str, float] = {}
        # Since the start, what calls that were cut off are held to have cost included.
        self.judging_usd = 0.0
        self.pairs_usd = 0.0

    async def load(self) -> None:
        """Take up what was spent before. Raises `StoreError`; harmless to repeat until it does."""
        now_utc = self._now_utc()
        since_utc = now_utc - timedelta(seconds=LONGEST_S + LONGEST_CALL_S)
        spent = await self._store.spent(since_utc)
        fleet_usd = await self._store.fleet_day(now_utc)
        self._ledger.restore(now_utc, spent)
        self._agents.restore(now_utc, fleet_usd)
        self._ledger.fleet_usd = self._agents.usd(now_utc)
        self._tell(self._ledger.news(now_utc, self._ledger.all_limits()))

    def adopt(self, budgets: Budgets) -> None:
        """Take up other limits; what was spent counts for them too."""
        self._ledger.budgets = budgets
        self._free()
        self._alarm.ring()

    # --- ports.Purse -----------------------------------------------------------------------

    async def reserve(
        self, agent: AgentId, model: str, estimate_usd: float
    ) -> Reservation | NoMoney:
        """See the port."""
        given = self._ledger.reserve(self._now_utc(), agent, model, estimate_usd)
        with trio.move_on_after(self._wait_s):
            while isinstance(given, NoMoney) and given.passing:
                await self._freed.wait()
                given = self._ledger.reserve(self._now_utc(), agent, model, estimate_usd)
        if isinstance(given, NoMoney):
            self._look_at(agent, model)
            self._refused[agent] = given
            await trio.lowlevel.checkpoint()
        else:
            self._refused.pop(agent, None)
            await self._record(given)
        return given

    def settle(self, reservation: Reservation, actual_usd: float) -> None:
        """See the port."""
        spend = self._ledger.settle(self._now_utc(), reservation, actual_usd)
        if spend is None or spend.settled_usd is None:
            return
        model = reservation.model
        self.spent_usd[model] = self.spent_usd.get(model, 0.0) + spend.settled_usd
        if reservation.agent == CONDUCTOR:
            self.pairs_usd += spend.settled_usd
        else:
            self.judging_usd += spend.settled_usd
        self._put(spend)
        self._look_at(reservation.agent, model)
        self._free()

    def release(self, reservation: Reservation) -> None:
        """See the port."""
        self.settle(reservation, 0.0)

    def rung(self, agent: AgentId, model: str) -> tuple[Rung, Limit | None]:
        """See the port."""
        return self._ledger.rung(self._now_utc(), agent, model)

    def refused(self, agent: AgentId) -> Limit | None:
        """See the port."""
        refusal = self._refused.get(agent)
        return None if refusal is None else refusal.limit

    def skipped(self, agent: AgentId, judge: str, by: str, limit: Limit) -> None:
        """See the port."""
        self.skips += 1
        now_utc = self._now_utc()
        told, until_utc = self._skips.get((agent, by), ("", None))
        if told == limit.id and until_utc is not None and now_utc < until_utc:
            return
        line = self._ledger.line(now_utc, limit)
        daily = limit.span is Span.DAY and line.resets_at_utc
        over_utc = daily or now_utc + timedelta(seconds=SPAN_S[limit.span])
        self._skips[agent, by] = (limit.id, over_utc)
        log.info("analysis.skipped", agent=agent, judge=judge, by=by, limit=limit.id)
        self._facts.append(AnalysisSkipped(agent, judge, by, limit.id, line.resets_at_utc))
        self._alarm.ring()

    # --- what others are told --------------------------------------------------------------

    def shown(self) -> MoneyShown:
        """Every limit as it stands."""
        now_utc, ledger = self._now_utc(), self._ledger
        fleet = Limit(Scope.FLEET, Span.DAY, 0.0)
        return MoneyShown(
            now_utc,
            tuple(ledger.line(now_utc, limit) for limit in ledger.all_limits()),
            ledger.spent_usd(now_utc, fleet) + ledger.reserved_usd(fleet),
            ledger.fleet_usd,
            ledger.budgets.share,
            len(self._unwritten),
            self.skips,
            ledger.conductor_usd(now_utc),
        )

    def lines(self) -> Iterator[BudgetLine]:
        """The limits of the fleet and of models: few, however many agents there are."""
        now_utc = self._now_utc()
        for limit in self._ledger.all_limits():
            if limit.scope is not Scope.AGENT:
                yield self._ledger.line(now_utc, limit)

    # --- the service -----------------------------------------------------------------------

    async def keep(
        self,
        view: Callable[[], FleetView],
        facts: trio.MemorySendChannel[Fact],
        pulse: Pulse,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Write, look and tell; never returns unless cancelled. Closes `facts`.

        Started: after the first look. Back-pressure: waits for room in `facts`.
        """
        self._kept = True
        try:
            async with facts:
                while True:
                    self._alarm.rewind()
                    self._look(view())
                    await self._tell_all(facts)
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
                    with pulse.waiting():
                        await self._write()
                        await self._prune()
                    pulse.beat()
                    with pulse.waiting():
                        await self._alarm.wait()
        finally:
            self._kept = False
            self._let_go()

    async def flush(self) -> None:
        """Write what is left, once; what the store does not take is lost, and told."""
        await self._write()

    async def _tell_all(self, facts: trio.MemorySendChannel[Fact]) -> None:
        while self._facts:
            # Taken away only when it was told: a cancelled send has told nothing.
            await facts.send(self._facts[0])
            del self._facts[0]

    def _look(self, view: FleetView) -> None:
        now_utc = self._now_utc()
        self._agents.look(now_utc, view)
        self._ledger.fleet_usd = self._agents.usd(now_utc)
        self._tell(self._ledger.renewed(now_utc))
        for key, (_, until_utc) in list(self._skips.items()):
            if until_utc is not None and now_utc >= until_utc:
                del self._skips[key]
        for agent in [agent for agent in self._refused if agent not in view.agents]:
            del self._refused[agent]
        self._free()

    def _look_at(self, agent: AgentId, model: str) -> None:
        self._tell(self._ledger.news(self._now_utc(), self._ledger.limits_of(agent, model)))

    def _tell(self, news: Iterable[BudgetNews]) -> None:
        for one in news:
            self._facts += _facts_of(one, self._now_utc())
            self._alarm.ring()

    def _free(self) -> None:
        self._freed.set()
        self._freed = trio.Event()

    # --- the store -------------------------------------------------------------------------

    async def _record(self, given: Reservation) -> None:
        """Have a reservation stored before its call is made; given back if that is cut off."""
        if given.usd <= 0:
            await trio.lowlevel.checkpoint()
            return
        spend = Spend(given.id, given.at_utc, given.agent, given.model, given.usd)
        written = self._put(spend)
        try:
            if self._kept and not self._absence.away:
                with trio.move_on_after(WRITE_S):
                    await written.wait()
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            self.release(given)
            raise

    def _put(self, spend: Spend) -> trio.Event:
        before = self._unwritten.get(spend.id)
        written = before.written if before is not None else trio.Event()
        if spend.reserved_usd > 0 or spend.settled_usd:
            self._unwritten[spend.id] = _Unwritten(spend, written)
            self._alarm.ring()
        return written

    async def _write(self) -> None:
        batch = dict(self._unwritten)
        now_utc = self._now_utc()
        fleet_usd = self._agents.usd(now_utc)
        try:
            with trio.fail_after(WRITE_TIMEOUT_S):
                await self._save([one.spend for one in batch.values()])
                if fleet_usd is not None and fleet_usd != self._fleet_stored_usd:
                    await self._save_day(now_utc, fleet_usd)
                    self._fleet_stored_usd = fleet_usd
        except (StoreError, trio.TooSlowError) as error:
            self._absence.lost(error, len(batch))
            self._alarm.after(STORE_RETRY_S)
            self._let_go()
            return
        else:
            self._absence.answered()
        for id_, one in batch.items():
            one.written.set()
            if self._unwritten.get(id_) is one:
                del self._unwritten[id_]

    async def _save(self, spends: Sequence[Spend]) -> None:
        """One that is refused is left out, and costs no other: halve until it stands alone.

        It counts in memory; what the store will never take is not written for ever. Where many
        are refused, all that is left of a half goes with them.
        """
        parts, alone = [spends] if spends else [], 0
        while parts:
            part = parts.pop()
            try:
                await past_conflicts(partial(self._store.save_spends, part), CONFLICTS)
            except StoreRefused as error:
                if len(part) > 1 and alone < MOST_REFUSED:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
                    continue
                alone += 1
                log.error("spends.refused", count=len(part), error=str(error))

    async def _save_day(self, now_utc: datetime, fleet_usd: float) -> None:
        try:
            await self._store.save_fleet_day(now_utc, fleet_usd)
        except StoreRefused as error:
            # Of no call: the next amount is tried anew.
            log.error("spends.refused", count=0, error=str(error))

    def _let_go(self) -> None:
        for one in self._unwritten.values():
            one.written.set()

    async def _prune(self) -> None:
        now_at = trio.current_time()
        if now_at - self._pruned_at < PRUNE_EACH_S or self._absence.away:
            return
        self._pruned_at = now_at
        try:
            await self._store.prune_spends(self._now_utc() - timedelta(seconds=KEPT_S))
        except StoreError as error:
            log.warning("record.prune_failed", error=str(error))


class _AgentsSpending:
    """What the agents themselves spend in a day, by what their transcripts tell.

    What a run had cost when it was first seen here counts for no day: nobody knows for which
    it was. So this is less than the truth, never more.
    """

    def __init__(self) -> None:
        self._known: dict[AgentRef, float] = {}
        self._day: object = None
        self._usd = 0.0
        self._is_known = False

    def restore(self, now_utc: datetime, usd: float | None) -> None:
        """Go on from what was stored of this day."""
        self._day = now_utc.astimezone(UTC).date()
        self._usd, self._is_known = usd or 0.0, usd is not None

    def look(self, now_utc: datetime, view: FleetView) -> None:
        """Add what came since the last look."""
        if self._day != (today := now_utc.astimezone(UTC).date()):
            self._day, self._usd = today, 0.0
        known: dict[AgentRef, float] = {}
        for agent in view.agents.values():
            cost_usd = 0.0 if agent.digest is None else agent.digest.usage.cost_usd
            if cost_usd > 0 and math.isfinite(cost_usd):
                known[agent.ref] = cost_usd
                self._usd += max(0.0, cost_usd - self._known.get(agent.ref, cost_usd))
            elif agent.digest is not None:
                known[agent.ref] = 0.0
        self._known = known
        self._is_known = self._is_known or any(cost_usd > 0 for cost_usd in known.values())

    def usd(self, now_utc: datetime) -> float | None:
        """What they spent today, as far as it was seen; None: no transcript tells any cost."""
        if not self._is_known:
            return None
        return self._usd if self._day == now_utc.astimezone(UTC).date() else 0.0


def _facts_of(news: BudgetNews, now_utc: datetime) -> list[Fact]:
    limit = news.limit
    agent = AgentId(limit.subject) if limit.scope is Scope.AGENT else None
    # As other concerns about an agent: by its name.
    concern = f"budget:{agent or limit.id}"
    if news.over:
        log.info("budget.renewed", limit=limit.id)
        return [BudgetRenewed(limit.id, agent), ConcernResolved(concern, "renewed")]
    until_utc = None if news.until_utc is None else news.until_utc.isoformat()
    spent_usd, most_usd = round(news.spent_usd, 6), round(limit.most_usd, 6)
    fact = BudgetReached(limit.id, news.rung, spent_usd, most_usd, news.until_utc, agent)
    if news.rung is not Rung.RULES:
        log.warning(
            "budget.warned",
            limit=limit.id,
            spent_usd=spent_usd,
            most_usd=most_usd,
            until_utc=until_utc,
        )
        return [fact]
    log.warning(
        "budget.reached",
        limit=limit.id,
        spent_usd=spent_usd,
        most_usd=most_usd,
        until_utc=until_utc,
    )
    return [fact, Escalated(concern, "budget", agent, reached_words(news, now_utc))]
