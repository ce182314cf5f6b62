"""Money: what may be spent on judging, what has been, and what follows from that.

    reserve ─► call ─► settle          limit:  agent/day  fleet/day  share/day
       │                └► release             model/5h   model/week
       └► NoMoney

Laws:

1. Reserved money counts as spent until it is settled or released, and for ever where neither
   happens. A reservation is given only where what is spent, what is reserved and its own
   estimate are within every limit that it concerns.
2. Settling tells what it really cost: also more than was reserved, which the next reservation
   sees. A reservation is settled or released once; whatever is said of it later is ignored.
3. A day is a calendar day in UTC. A provider's window is rolling: nobody tells us when theirs
   began, and what fits into the last five hours fits into any five hours that end now.
4. Money is counted in pieces of `BUCKET_S`; one leaves a rolling window as a whole, once all
   of it is out: late, never early.
5. A clock that steps back undoes nothing: what was stamped with a time that is in the future
   now counts as of now.
6. What a limit comes to is told once a window: see `Ledger.news`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from math import inf, isfinite
from types import MappingProxyType

from custosd.core.agents import AgentId

BUCKET_S = 300
DAY_S = 86_400
EPSILON_USD = 1e-9
"""Less than that is no money: sums of fractions are not exact."""

RENEWED_SHARE = 0.9
"""A rolling limit is over when less than this part of what is warned at is spent."""

_AGENT_KEPT_S = 2 * DAY_S
_STEP_S = 3_600
"""A clock that went on by more has jumped, and may jump back: nothing is forgotten for a day."""


CONDUCTOR = AgentId("custosd:conductor")
"""For whom questions about pairs of agents are paid: the fleet, and no agent of it."""


class Span(StrEnum):
    """Over what time a limit counts; see the module's law 3."""

    DAY = "day"
    FIVE_HOURS = "5h"
    WEEK = "week"


SPAN_S = {Span.DAY: DAY_S, Span.FIVE_HOURS: 5 * 3_600, Span.WEEK: 7 * DAY_S}
LONGEST_S = 7 * DAY_S + BUCKET_S
"""What is older counts for no limit."""


class Scope(StrEnum):
    """Whose spending a limit bounds. `SHARE` is the fleet's, against what agents spend."""

    AGENT = "agent"
    FLEET = "fleet"
    SHARE = "share"
    MODEL = "model"


class Rung(StrEnum):
    """How far down the ladder: the judge that was asked for, a smaller one, or rules alone."""

    AS_ASKED = "as_asked"
    SMALLER = "smaller"
    RULES = "rules"


_ORDER = (Rung.AS_ASKED, Rung.SMALLER, Rung.RULES)


@dataclass(frozen=True, slots=True)
class Limit:
    """At most so many dollars; `subject` is an agent's or a model's name, "" for the fleet."""

    scope: Scope
    span: Span
    most_usd: float
    subject: str = ""

    @property
    def id(self) -> str:
        """As it is called in facts: "fleet/day", "model/5h/sonnet"."""
        return "/".join(filter(None, (self.scope.value, self.span.value, self.subject)))


@dataclass(frozen=True, slots=True)
class ModelBudget:
    """What one model may cost in its provider's windows; 0 is no limit."""

    window_5h_usd: float = 0.0
    window_week_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Budgets:
    """What may be spent; 0 is no limit.

    `share` of what the agents spend in a day, where that is known, and `share_floor_usd` at
    least. From `warn_share` (0..1) of any limit on, a smaller model is asked.
    """

    agent_day_usd: float = 0.0
    fleet_day_usd: float = 0.0
    share: float = 0.0
    share_floor_usd: float = 0.0
    warn_share: float = 0.8
    models: Mapping[str, ModelBudget] = field(default_factory=lambda: MappingProxyType({}))


NO_LIMITS = Budgets()
"""Everything is counted, and nothing bounded."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money kept for one call; `usd` is the estimate, 0 for what costs nothing."""

    id: str
    at_utc: datetime
    agent: AgentId
    model: str
    usd: float


@dataclass(frozen=True, slots=True)
class NoMoney:
    """No money: which limit, and what was left of it beside what is under way.

    `resets_at_utc`: when it would fit at the latest; None: never, the limit is lower than one
    call. `passing`: only what is under way is in its way, some of which may come back.
    """

    limit: Limit
    estimate_usd: float
    left_usd: float
    resets_at_utc: datetime | None
    passing: bool = False


@dataclass(frozen=True, slots=True)
class Spend:
    """One call's money as it is stored; `at_utc` is when it was reserved.

    `settled_usd` None: not known, `reserved_usd` counts; else it counts as of `settled_utc`.
    """

    id: str
    at_utc: datetime
    agent: AgentId
    model: str
    reserved_usd: float
    settled_usd: float | None = None
    settled_utc: datetime | None = None

    @property
    def counts(self) -> tuple[datetime, float]:
        """When and what it counts as spent."""
        if self.settled_usd is None or self.settled_utc is None:
            return self.at_utc, self.reserved_usd
        return self.settled_utc, self.settled_usd


@dataclass(frozen=True, slots=True)
class Spent:
    """What was spent on an agent with a model around a time: some stored calls, added up."""

    at_utc: datetime
    agent: AgentId
    model: str
    usd: float


@dataclass(frozen=True, slots=True)
class BudgetLine:
    """How one limit stands. `resets_at_utc`: when money comes back; None: there is none away."""

    limit: Limit
    spent_usd: float
    reserved_usd: float
    rung: Rung
    resets_at_utc: datetime | None

    @property
    def left_usd(self) -> float:
        """What can still be reserved; never negative."""
        return max(0.0, self.limit.most_usd - self.spent_usd - self.reserved_usd)

    @property
    def used_share(self) -> float:
        """Spent and reserved, as a part of the limit; above 1 where a call cost more."""
        used_usd = self.spent_usd + self.reserved_usd
        return used_usd / self.limit.most_usd if self.limit.most_usd > 0 else inf


@dataclass(frozen=True, slots=True)
class BudgetNews:
    """A limit came to a lower rung, which is told once a window; or (`over`) is free again.

    `until_utc`: when its window ends, or money comes back; None: not at a known time.
    """

    limit: Limit
    rung: Rung
    spent_usd: float
    until_utc: datetime | None
    over: bool = False


def rung_of(spent_usd: float, most_usd: float, warn_share: float) -> Rung:
    """The rung at which a limit stands, by what is spent of it and no longer under way."""
    if spent_usd >= most_usd - EPSILON_USD:
        return Rung.RULES
    return Rung.SMALLER if spent_usd >= warn_share * most_usd else Rung.AS_ASKED


class _Tally:
    """Money by bucket (seconds of the epoch / `BUCKET_S`)."""

    __slots__ = ("buckets",)

    def __init__(self) -> None:
        self.buckets: dict[int, float] = {}

    def add(self, bucket: int, usd: float) -> None:
        self.buckets[bucket] = self.buckets.get(bucket, 0.0) + usd

    def since(self, bucket: int) -> float:
        return sum(usd for at, usd in self.buckets.items() if at >= bucket)

    def fold_future(self, bucket: int) -> None:
        for at in [at for at in self.buckets if at > bucket]:
            self.add(bucket, self.buckets.pop(at))

    def forget_before(self, bucket: int) -> None:
        for at in [at for at in self.buckets if at < bucket]:
            del self.buckets[at]


@dataclass(slots=True)
class _Told:
    """What was told of a limit: the lowest rung, in which day; `open`: and it is not over."""

    limit: Limit
    rung: Rung
    day: int
    open: bool


class Ledger:
    """All limits and what counts for them. `prefix` makes its reservations' ids unique.

    `fleet_usd` is what the agents themselves spent today, None where nobody knows.
    """

    def __init__(self, budgets: Budgets, prefix: str = "r") -> None:
        self.budgets = budgets
        self.open: dict[str, Reservation] = {}
        self.fleet_usd: float | None = None
        self._prefix = prefix
        self._made = 0
        self._tallies: dict[tuple[Scope, str], _Tally] = {}
        self._latest = 0
        self._steady_since = 0
        self._pruned = 0
        self._refused: dict[str, dict[str, float]] = {}
        self._told: dict[str, _Told] = {}

    def restore(self, now_utc: datetime, spent: Iterable[Spent]) -> None:
        """Count what was spent before; what never was settled counts as it was reserved."""
        now = self._clock(now_utc)
        for one in spent:
            self._count(min(_bucket(one.at_utc), now), one.agent, one.model, one.usd)

    # --- reserve, settle, release ----------------------------------------------------------

    def reserve(
        self, now_utc: datetime, agent: AgentId, model: str, estimate_usd: float
    ) -> Reservation | NoMoney:
        """Keep money for one call, or say which limit is in the way: the one that is longest.

        What costs nothing is never refused.
        """
        self._clock(now_utc)
        estimate_usd = max(0.0, estimate_usd)
        refusals = [
            refusal
            for limit in self.limits_of(agent, model)
            if (refusal := self._refusal(now_utc, limit, estimate_usd)) is not None
        ]
        if refusals and estimate_usd > 0:
            for refusal in refusals:
                if not refusal.passing:
                    by_model = self._refused.setdefault(refusal.limit.id, {})
                    by_model[model] = min(by_model.get(model, inf), estimate_usd)
            return max(refusals, key=_lasting)
        self._made += 1
        id_ = f"{self._prefix}-{self._made}"
        self.open[id_] = made = Reservation(id_, now_utc, agent, model, estimate_usd)
        return made

    def settle(
        self, now_utc: datetime, reservation: Reservation, actual_usd: float
    ) -> Spend | None:
        """Count what a call cost, as of now; None: it was settled or released before.

        A cost that makes no sense (negative, no number) counts as the estimate.
        """
        if self.open.pop(reservation.id, None) is None:
            return None
        known = isfinite(actual_usd) and actual_usd >= 0
        usd = actual_usd if known else reservation.usd
        bucket = self._clock(now_utc)
        if usd > 0:
            self._count(bucket, reservation.agent, reservation.model, usd)
        return Spend(
            reservation.id,
            reservation.at_utc,
            reservation.agent,
            reservation.model,
            reservation.usd,
            usd,
            now_utc,
        )

    def release(self, now_utc: datetime, reservation: Reservation) -> Spend | None:
        """Give the money back: nothing was bought. None: as in `settle`."""
        return self.settle(now_utc, reservation, 0.0)

    # --- limits ----------------------------------------------------------------------------

    def limits_of(self, agent: AgentId, model: str) -> tuple[Limit, ...]:
        """Every limit that a call for this agent by this model counts for; "" for none."""
        found = [*self._fleet_limits()]
        if agent and agent != CONDUCTOR and self.budgets.agent_day_usd > 0:
            found.append(Limit(Scope.AGENT, Span.DAY, self.budgets.agent_day_usd, agent))
        return (*found, *self._model_limits(model))

    def _fleet_limits(self) -> Iterator[Limit]:
        own = self.budgets
        if own.fleet_day_usd > 0:
            yield Limit(Scope.FLEET, Span.DAY, own.fleet_day_usd)
        if own.share > 0 and self.fleet_usd is not None:
            most_usd = max(own.share * self.fleet_usd, own.share_floor_usd)
            yield Limit(Scope.SHARE, Span.DAY, most_usd)

    def _model_limits(self, model: str) -> Iterator[Limit]:
        budget = self.budgets.models.get(model, ModelBudget())
        if budget.window_5h_usd > 0:
            yield Limit(Scope.MODEL, Span.FIVE_HOURS, budget.window_5h_usd, model)
        if budget.window_week_usd > 0:
            yield Limit(Scope.MODEL, Span.WEEK, budget.window_week_usd, model)

    def all_limits(self) -> tuple[Limit, ...]:
        """Those of the fleet and of models, and of every agent that anything was spent on."""
        agents = {name for scope, name in self._tallies if scope is Scope.AGENT}
        agents |= {reservation.agent for reservation in self.open.values()}
        agents.discard(CONDUCTOR)
        each = self.budgets.agent_day_usd
        return (
            *self._fleet_limits(),
            *(limit for model in self.budgets.models for limit in self._model_limits(model)),
            *(Limit(Scope.AGENT, Span.DAY, each, agent) for agent in sorted(agents) if each > 0),
        )

    def line(self, now_utc: datetime, limit: Limit) -> BudgetLine:
        """How a limit stands."""
        self._clock(now_utc)
        spent_usd = self.spent_usd(now_utc, limit)
        return BudgetLine(
            limit,
            spent_usd,
            self.reserved_usd(limit),
            self._rung(limit, spent_usd),
            self._next_reset(now_utc, limit),
        )

    def rung(self, now_utc: datetime, agent: AgentId, model: str) -> tuple[Rung, Limit | None]:
        """Where the ladder stands for such a call, and by which limit: the lowest of all.

        `RULES`: what was asked for last did not fit, nor would it now.
        """
        self._clock(now_utc)
        worst: tuple[Rung, Limit | None] = (Rung.AS_ASKED, None)
        for limit in self.limits_of(agent, model):
            rung = self._rung(limit, self.spent_usd(now_utc, limit), model)
            if _ORDER.index(rung) > _ORDER.index(worst[0]):
                worst = rung, limit
        return worst

    def conductor_usd(self, now_utc: datetime) -> float:
        """What questions about pairs cost today, with what is under way."""
        day = Limit(Scope.AGENT, Span.DAY, 0.0, CONDUCTOR)
        return self.spent_usd(now_utc, day) + self.reserved_usd(day)

    def spent_usd(self, now_utc: datetime, limit: Limit) -> float:
        """What counts as spent for a limit, without what is under way."""
        tally = self._tallies.get(_key(limit))
        return 0.0 if tally is None else tally.since(_first_bucket(now_utc, limit.span))

    def reserved_usd(self, limit: Limit) -> float:
        """What is under way and counts for a limit."""
        scope, subject = _key(limit)
        return sum(
            one.usd
            for one in self.open.values()
            if scope is Scope.FLEET or subject == (one.agent if scope is Scope.AGENT else one.model)
        )

    def _rung(self, limit: Limit, spent_usd: float, model: str | None = None) -> Rung:
        rung = rung_of(spent_usd, limit.most_usd, self.budgets.warn_share)
        left_usd = limit.most_usd - spent_usd
        by_model = self._refused.get(limit.id, {})
        for name in [name for name, usd in by_model.items() if left_usd + EPSILON_USD >= usd]:
            del by_model[name]
        if by_model.keys() if model is None else model in by_model:
            return Rung.RULES
        if not by_model:
            self._refused.pop(limit.id, None)
        return rung

    def _refusal(self, now_utc: datetime, limit: Limit, estimate_usd: float) -> NoMoney | None:
        spent_usd, reserved_usd = self.spent_usd(now_utc, limit), self.reserved_usd(limit)
        if spent_usd + reserved_usd + estimate_usd <= limit.most_usd + EPSILON_USD:
            return None
        alone_usd = spent_usd + estimate_usd
        return NoMoney(
            limit,
            estimate_usd,
            max(0.0, limit.most_usd - spent_usd - reserved_usd),
            self._fits_at(now_utc, limit, spent_usd, estimate_usd),
            passing=alone_usd <= limit.most_usd + EPSILON_USD,
        )

    def _fits_at(
        self, now_utc: datetime, limit: Limit, spent_usd: float, estimate_usd: float
    ) -> datetime | None:
        if limit.span is Span.DAY:
            # The share's limit grows with what the agents spend: it is never too low for good.
            never = estimate_usd > limit.most_usd + EPSILON_USD and limit.scope is not Scope.SHARE
            return None if never else _next_day(now_utc)
        needed_usd = spent_usd + estimate_usd - limit.most_usd
        return self._freed_at(now_utc, limit, needed_usd)

    def _freed_at(self, now_utc: datetime, limit: Limit, needed_usd: float) -> datetime | None:
        """When so much has left a rolling window; None: that much is not in it."""
        tally = self._tallies.get(_key(limit))
        first = _first_bucket(now_utc, limit.span)
        freed_usd = 0.0
        for at, usd in sorted(tally.buckets.items()) if tally else ():
            if at >= first:
                freed_usd += usd
                if freed_usd + EPSILON_USD >= needed_usd:
                    return _utc((at + 1) * BUCKET_S + SPAN_S[limit.span])
        return None

    def _next_reset(self, now_utc: datetime, limit: Limit) -> datetime | None:
        if limit.span is Span.DAY:
            return _next_day(now_utc)
        return self._freed_at(now_utc, limit, 0.0)

    # --- news ------------------------------------------------------------------------------

    def news(self, now_utc: datetime, limits: Iterable[Limit]) -> list[BudgetNews]:
        """What is to be told of these limits: a lower rung than any that was, in this window.

        Of a day, each rung is told once, whatever the money does meanwhile. Of a rolling
        window it is told again once it has been over (see `renewed`).
        """
        found = []
        for limit in limits:
            told = self._told.get(limit.id)
            if told is not None:
                found += self._renewals(now_utc, told, limit)
                told = self._told.get(limit.id)
            line = self.line(now_utc, limit)
            before = Rung.AS_ASKED if told is None else told.rung
            if _ORDER.index(line.rung) > _ORDER.index(before):
                is_reached = line.rung is Rung.RULES
                self._told[limit.id] = _Told(limit, line.rung, _day(now_utc), open=is_reached)
                found.append(BudgetNews(limit, line.rung, line.spent_usd, line.resets_at_utc))
        return found

    def renewed(self, now_utc: datetime) -> list[BudgetNews]:
        """Limits that were reached and are free again, or are no more: once each."""
        current = {limit.id: limit for limit in self.all_limits()} if self._told else {}
        return [
            news
            for id_, told in list(self._told.items())
            for news in self._renewals(now_utc, told, current.get(id_))
        ]

    def _renewals(self, now_utc: datetime, told: _Told, limit: Limit | None) -> list[BudgetNews]:
        """Zero or one: forgets what was told where it is to be told again."""
        id_ = told.limit.id
        daily = told.limit.span is Span.DAY
        # Of an agent on whom nothing was spent there is a limit all the same.
        same_usd = self.budgets.agent_day_usd == told.limit.most_usd
        gone = limit is None and not (told.limit.scope is Scope.AGENT and same_usd)
        if gone:
            self._refused.pop(id_, None)
        line = self.line(now_utc, limit or told.limit)
        new_day = daily and told.day != _day(now_utc)
        # The share's limit is another one with each dollar that agents spend.
        changed = limit is not None and limit.most_usd != told.limit.most_usd
        changed = gone or (changed and told.limit.scope is not Scope.SHARE)
        warned_usd = line.limit.most_usd * self.budgets.warn_share
        free = line.spent_usd < RENEWED_SHARE * warned_usd and line.rung is Rung.AS_ASKED
        if new_day or changed or (free and not daily):
            del self._told[id_]
        if not told.open or not (new_day or free or changed):
            return []
        told.open = False
        return [BudgetNews(line.limit, Rung.AS_ASKED, line.spent_usd, None, over=True)]

    # --- counting --------------------------------------------------------------------------

    def _count(self, bucket: int, agent: AgentId, model: str, usd: float) -> None:
        for key in ((Scope.FLEET, ""), (Scope.AGENT, str(agent)), (Scope.MODEL, model)):
            self._tallies.setdefault(key, _Tally()).add(bucket, usd)

    def _clock(self, now_utc: datetime) -> int:
        """The present bucket; undoes what a clock has said that was ahead, forgets what is old."""
        now = _bucket(now_utc)
        if now < self._latest:
            for tally in self._tallies.values():
                tally.fold_future(now)
        if not 0 <= now - self._latest <= _STEP_S // BUCKET_S:
            self._steady_since = now
        self._latest = now
        hour = now * BUCKET_S // 3_600
        if hour != self._pruned and (now - self._steady_since) * BUCKET_S >= DAY_S:
            self._pruned = hour
            for key, tally in list(self._tallies.items()):
                kept_s = _AGENT_KEPT_S if key[0] is Scope.AGENT else LONGEST_S
                tally.forget_before(now - kept_s // BUCKET_S)
                if not tally.buckets:
                    del self._tallies[key]
        return now


def _key(limit: Limit) -> tuple[Scope, str]:
    return (Scope.FLEET, "") if limit.scope is Scope.SHARE else (limit.scope, limit.subject)


def _lasting(refusal: NoMoney) -> tuple[bool, float]:
    at_utc = refusal.resets_at_utc
    return not refusal.passing, inf if at_utc is None else at_utc.timestamp()


def _bucket(at_utc: datetime) -> int:
    return int(at_utc.timestamp() // BUCKET_S)


def _first_bucket(now_utc: datetime, span: Span) -> int:
    """The oldest bucket that still counts; of a rolling window, the one that it begins in."""
    if span is Span.DAY:
        return _day(now_utc) * DAY_S // BUCKET_S
    return int((now_utc.timestamp() - SPAN_S[span]) // BUCKET_S)


def _day(at_utc: datetime) -> int:
    return int(at_utc.timestamp() // DAY_S)


def _next_day(now_utc: datetime) -> datetime:
    return _utc((_day(now_utc) + 1) * DAY_S)


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
