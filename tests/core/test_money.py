"""Limits of what judging may cost: never passed by what could be known, whatever happens."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from custosd.core.agents import AgentId
from custosd.core.money import (
    BUCKET_S,
    BudgetNews,
    Budgets,
    Ledger,
    Limit,
    ModelBudget,
    NoMoney,
    Reservation,
    Rung,
    Scope,
    Span,
    Spend,
    Spent,
    rung_of,
)
from custosd.core.money_words import MoneyShown, money_explained

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
ADA, BOB = AgentId("ada"), AgentId("bob")

CENT = 2.0**-7
"""Not quite a cent, so that sums of it are exact."""

FLEET = Limit(Scope.FLEET, Span.DAY, 10 * CENT)


def ledger(**budgets: object) -> Ledger:
    return Ledger(Budgets(**budgets))  # type: ignore[arg-type]


def window(**windows: float) -> MappingProxyType[str, ModelBudget]:
    return MappingProxyType({"sonnet": ModelBudget(**windows)})


def reserved(of: Ledger, usd: float, agent: AgentId = ADA, at: datetime = NOON) -> Reservation:
    given = of.reserve(at, agent, "sonnet", usd)
    assert isinstance(given, Reservation), given
    return given


def refused(of: Ledger, usd: float, agent: AgentId = ADA, at: datetime = NOON) -> NoMoney:
    given = of.reserve(at, agent, "sonnet", usd)
    assert isinstance(given, NoMoney), given
    return given


def spend(of: Ledger, usd: float, agent: AgentId = ADA, at: datetime = NOON) -> None:
    of.settle(at, reserved(of, usd, agent, at), usd)


def test_reserved_money_counts_as_spent_until_it_is_settled() -> None:
    money = ledger(fleet_day_usd=10 * CENT)
    first = reserved(money, 6 * CENT)
    assert refused(money, 5 * CENT).left_usd == 4 * CENT
    money.settle(NOON, first, CENT)
    assert money.spent_usd(NOON, FLEET) == CENT
    reserved(money, 9 * CENT)


def test_what_is_released_is_there_again_and_was_never_spent() -> None:
    money = ledger(fleet_day_usd=10 * CENT)
    money.release(NOON, reserved(money, 10 * CENT))
    assert money.spent_usd(NOON, FLEET) == 0
    reserved(money, 10 * CENT)


def test_a_call_that_cost_more_than_was_reserved_is_counted_and_stops_the_next() -> None:
    money = ledger(fleet_day_usd=10 * CENT)
    money.settle(NOON, reserved(money, CENT), 30 * CENT)
    assert money.spent_usd(NOON, FLEET) == 30 * CENT
    assert refused(money, CENT).left_usd == 0


@pytest.mark.parametrize("actual", [float("nan"), float("inf"), -1.0])
def test_a_cost_that_makes_no_sense_counts_as_the_estimate(actual: float) -> None:
    money = ledger(fleet_day_usd=10 * CENT)
    money.settle(NOON, reserved(money, 3 * CENT), actual)
    assert money.spent_usd(NOON, FLEET) == 3 * CENT


def test_only_the_first_word_on_a_reservation_counts() -> None:
    money = ledger(fleet_day_usd=10 * CENT)
    one = reserved(money, CENT)
    told = money.settle(NOON, one, 2 * CENT)
    assert told == Spend(one.id, NOON, ADA, "sonnet", CENT, 2 * CENT, NOON)
    assert money.settle(NOON, one, 5 * CENT) is None
    assert money.release(NOON, one) is None
    assert money.spent_usd(NOON, FLEET) == 2 * CENT


def test_what_costs_nothing_is_never_refused() -> None:
    money = ledger(fleet_day_usd=CENT)
    spend(money, CENT)
    reserved(money, 0.0)


def test_an_agents_limit_is_its_own() -> None:
    money = ledger(agent_day_usd=2 * CENT)
    spend(money, 2 * CENT)
    assert refused(money, CENT).limit.id == "agent/day/ada"
    reserved(money, CENT, BOB)


def test_a_day_ends_at_midnight_in_utc() -> None:
    money = ledger(fleet_day_usd=CENT)
    eve = NOON.replace(hour=23, minute=59, second=59)
    spend(money, CENT, at=eve)
    assert refused(money, CENT, at=eve).resets_at_utc == NOON.replace(hour=0) + DAY
    spend(money, CENT, at=eve + timedelta(seconds=1))


def test_money_reserved_before_midnight_and_settled_after_counts_for_the_new_day() -> None:
    money = ledger(fleet_day_usd=4 * CENT)
    eve, morning = NOON + 11 * HOUR, NOON + 13 * HOUR
    one = reserved(money, CENT, at=eve)
    assert money.reserved_usd(FLEET) == CENT
    money.settle(morning, one, 3 * CENT)
    assert money.spent_usd(morning, FLEET) == 3 * CENT


@pytest.mark.parametrize(
    ("key", "span", "length"),
    [("window_5h_usd", Span.FIVE_HOURS, 5 * HOUR), ("window_week_usd", Span.WEEK, 7 * DAY)],
)
def test_a_providers_window_rolls(key: str, span: Span, length: timedelta) -> None:
    money = ledger(models=window(**{key: 2 * CENT}))
    spend(money, CENT)
    spend(money, CENT, at=NOON + HOUR)
    later = NOON + 2 * HOUR
    no = refused(money, CENT, at=later)
    assert no.limit == Limit(Scope.MODEL, span, 2 * CENT, "sonnet")
    freed = NOON + length + timedelta(seconds=BUCKET_S)
    assert no.resets_at_utc == freed
    assert not isinstance(
        money.reserve(freed - timedelta(seconds=1), ADA, "sonnet", CENT), Reservation
    )
    spend(money, CENT, at=freed)
    assert refused(money, CENT, at=freed).resets_at_utc == freed + HOUR
    assert isinstance(money.reserve(later, ADA, "haiku", CENT), Reservation)


def test_a_limit_lower_than_one_call_never_lets_one_through_and_says_so() -> None:
    money = ledger(fleet_day_usd=CENT)
    assert refused(money, 2 * CENT).resets_at_utc is None
    assert money.rung(NOON, ADA, "sonnet") == (Rung.RULES, money.limits_of(ADA, "")[0])
    assert money.rung(NOON, ADA, "haiku")[0] is Rung.AS_ASKED


def test_the_limit_that_lasts_longest_is_named() -> None:
    money = ledger(fleet_day_usd=CENT, models=window(window_5h_usd=CENT, window_week_usd=CENT))
    spend(money, CENT)
    assert refused(money, CENT).limit.span is Span.WEEK


def test_money_that_is_only_under_way_may_come_back() -> None:
    money = ledger(fleet_day_usd=3 * CENT)
    one = reserved(money, 2 * CENT)
    assert refused(money, 2 * CENT).passing
    assert money.news(NOON, money.all_limits()) == []
    money.settle(NOON, one, 2 * CENT)
    assert not refused(money, 2 * CENT).passing


def test_the_share_of_what_agents_spend_is_a_limit_where_that_is_known() -> None:
    money = ledger(share=1 / 32, share_floor_usd=2 * CENT)
    assert money.limits_of(ADA, "sonnet") == ()
    money.fleet_usd = 0.0
    spend(money, 2 * CENT)
    assert refused(money, CENT).limit.id == "share/day"
    money.fleet_usd = 32 * 3 * CENT
    spend(money, CENT)
    assert refused(money, CENT).limit.most_usd == 3 * CENT


@pytest.mark.parametrize(
    ("spent", "rung"),
    [
        (0.0, Rung.AS_ASKED),
        (0.79, Rung.AS_ASKED),
        (0.8, Rung.SMALLER),
        (0.99, Rung.SMALLER),
        (1.0, Rung.RULES),
        (7.0, Rung.RULES),
    ],
)
def test_the_ladder(spent: float, rung: Rung) -> None:
    assert rung_of(spent, 1.0, 0.8) is rung
    money = ledger(agent_day_usd=100.0, fleet_day_usd=1.0)
    if spent:
        money.restore(NOON, [Spent(NOON, BOB, "sonnet", spent)])
    assert money.rung(NOON, ADA, "sonnet")[0] is rung


def told(money: Ledger, at: datetime = NOON) -> list[tuple[str, Rung, bool]]:
    found: list[BudgetNews] = money.renewed(at) + money.news(at, money.all_limits())
    return [(news.limit.id, news.rung, news.over) for news in found]


def test_each_rung_of_a_day_is_told_once_whatever_the_money_does() -> None:
    money = ledger(fleet_day_usd=10 * CENT)
    spend(money, 8 * CENT)
    assert told(money) == [("fleet/day", Rung.SMALLER, False)]
    spend(money, CENT)
    assert told(money) == []
    for _ in range(3):
        refused(money, 2 * CENT)
        assert len(told(money)) <= 1
    spend(money, CENT)
    assert told(money) == []
    tomorrow = NOON + DAY
    assert told(money, tomorrow) == [("fleet/day", Rung.AS_ASKED, True)]
    spend(money, 10 * CENT, at=tomorrow)
    assert told(money, tomorrow) == [("fleet/day", Rung.RULES, False)]


def test_a_raised_limit_is_over_and_told_again_when_it_is_reached() -> None:
    money = ledger(fleet_day_usd=CENT)
    spend(money, CENT)
    assert told(money) == [("fleet/day", Rung.RULES, False)]
    money.budgets = Budgets(fleet_day_usd=8 * CENT)
    assert told(money) == [("fleet/day", Rung.AS_ASKED, True)]
    spend(money, 7 * CENT)
    assert told(money) == [("fleet/day", Rung.RULES, False)]
    money.budgets = Budgets()
    assert told(money) == [("fleet/day", Rung.AS_ASKED, True)]
    assert told(money) == []


def test_a_rolling_limit_is_told_again_only_when_it_had_been_over() -> None:
    money = ledger(models=window(window_5h_usd=8 * CENT))
    for hour in range(4):
        spend(money, 2 * CENT, at=NOON + hour * HOUR)
    at = NOON + 3 * HOUR
    assert told(money, at) == [("model/5h/sonnet", Rung.RULES, False)]
    back = NOON + 5 * HOUR + timedelta(seconds=BUCKET_S)
    assert told(money, back) == [], "six of eight left: not yet far enough from the limit"
    spend(money, 2 * CENT, at=back)
    assert told(money, back) == []
    quiet = NOON + 8 * HOUR + timedelta(seconds=BUCKET_S)
    assert told(money, quiet) == [("model/5h/sonnet", Rung.AS_ASKED, True)]


def test_a_clock_that_steps_back_makes_nothing_free() -> None:
    money = ledger(fleet_day_usd=2 * CENT, models=window(window_5h_usd=2 * CENT))
    spend(money, CENT)
    spend(money, CENT, at=NOON + 400 * DAY)
    # The year that never was is undone; what was spent in it counts as of now.
    later = NOON + HOUR
    assert refused(money, CENT, at=later).limit.id in {"fleet/day", "model/5h/sonnet"}
    assert money.spent_usd(later, FLEET) == 2 * CENT
    # And not for a year.
    spend(money, 2 * CENT, at=NOON + DAY)


def test_what_was_spent_before_a_restart_counts_and_the_future_counts_as_now() -> None:
    money = ledger(fleet_day_usd=10 * CENT)
    money.restore(
        NOON,
        [
            Spent(NOON - HOUR, ADA, "sonnet", 2 * CENT),
            Spent(NOON + 9 * DAY, BOB, "sonnet", 3 * CENT),
            Spent(NOON - DAY, ADA, "sonnet", 50 * CENT),
        ],
    )
    assert money.spent_usd(NOON, FLEET) == 5 * CENT


def test_what_is_long_over_is_forgotten() -> None:
    money = ledger(fleet_day_usd=10.0, agent_day_usd=10.0)
    spend(money, CENT)
    for hour in range(9 * 24):
        money.line(NOON + hour * HOUR, FLEET)
    assert not money._tallies


def test_all_of_it_is_shown_in_words_and_in_a_form() -> None:
    money = ledger(
        fleet_day_usd=10 * CENT, agent_day_usd=1.0, share=0.02, models=window(window_5h_usd=1.0)
    )
    money.fleet_usd = 4.0
    spend(money, 9 * CENT)
    reserved(money, CENT / 2)
    lines = tuple(money.line(NOON, limit) for limit in money.all_limits())
    shown = MoneyShown(NOON, lines, 9.5 * CENT, 4.0, 0.02, 1, 2)
    explained = money_explained(shown)
    text = "\n".join(explained.lines)
    assert "of which that is 1.9 % (at most 2 %)" in text
    assert "the fleet a day: 0.0703 + 0.0039 reserved of 0.0781 USD (95 %)" in text
    assert "a smaller judge, where there is one; resets in 12 h" in text
    assert "model sonnet in 5 hours" in text
    assert "ada a day" in text
    limits = explained.form["limits"]
    assert isinstance(limits, list)
    assert [one["id"] for one in limits] == [
        "fleet/day",
        "share/day",
        "model/5h/sonnet",
        "agent/day/ada",
    ]
    assert limits[0]["left_usd"] == CENT / 2
    assert limits[0]["rung"] == "smaller"


# --- any order of anything ------------------------------------------------------------------

AMOUNTS = st.integers(0, 20).map(lambda n: n * CENT)
STEPS_S = st.sampled_from(
    [0.0, 1.0, 299.0, 3_600.0, 5 * 3_600.0, 86_400.0, -60.0, -3_600.0, -90_000.0]
)
MOST = {
    "fleet": 16 * CENT,
    "agent": 8 * CENT,
    "5h": 12 * CENT,
    "week": 40 * CENT,
}
BUDGETS = Budgets(
    MOST["agent"],
    MOST["fleet"],
    models=window(window_5h_usd=MOST["5h"], window_week_usd=MOST["week"]),
)


class AnyOrder(RuleBasedStateMachine):
    """Reserve, settle, release, crash and restart, with a clock that goes where it likes.

    Beside the ledger stands what the store holds: written as the purse writes it.
    """

    taken = Bundle("taken")

    @initialize()
    def begin(self) -> None:
        self.now = NOON
        self.money = Ledger(BUDGETS, "0")
        self.lives = 0
        self.stored: dict[str, Spend] = {}
        self.open: dict[str, Reservation] = {}
        self.truth = 0.0
        self.steady = True

    @rule(seconds=STEPS_S)
    def tick(self, seconds: float) -> None:
        before = {limit.id: self.money.spent_usd(self.now, limit) for limit in self._limits()}
        self.now += timedelta(seconds=seconds)
        self.steady &= seconds >= 0
        with self._fair():
            for limit in self._limits():
                self.money.line(self.now, limit)
        if seconds < 0:
            for limit in self._limits():
                if limit.span is not Span.DAY:
                    assert self.money.spent_usd(self.now, limit) >= before[limit.id] - 1e-9

    @rule(target=taken, agent=st.sampled_from([ADA, BOB]), usd=AMOUNTS)
    def reserve(self, agent: AgentId, usd: float) -> object:
        limits = self.money.limits_of(agent, "sonnet")
        with self._fair():
            used = {
                limit.id: self.money.line(self.now, limit).spent_usd
                + self.money.reserved_usd(limit)
                for limit in limits
            }
            given = self.money.reserve(self.now, agent, "sonnet", usd)
        fits = all(used[limit.id] + usd <= limit.most_usd for limit in limits)
        assert isinstance(given, Reservation) == (fits or usd == 0)
        if isinstance(given, NoMoney):
            return multiple()
        assert given.id not in self.stored
        self.stored[given.id] = Spend(given.id, self.now, agent, "sonnet", usd)
        self.open[given.id] = given
        self.truth += usd
        return given

    @rule(one=consumes(taken), actual=AMOUNTS)
    def settle(self, one: Reservation, actual: float) -> None:
        with self._fair():
            self._end(one, self.money.settle(self.now, one, actual), actual)

    @rule(one=taken)
    def release(self, one: Reservation) -> None:
        with self._fair():
            self._end(one, self.money.release(self.now, one), 0.0)

    @rule(one=taken, actual=AMOUNTS)
    def settle_twice(self, one: Reservation, actual: float) -> None:
        with self._fair():
            self._end(one, self.money.settle(self.now, one, actual), actual)
            assert self.money.settle(self.now, one, actual) is None

    @rule()
    def crash_and_restart(self) -> None:
        """What was never settled stays reserved money for good: it was lost with the process."""
        self.lives += 1
        self.money = Ledger(BUDGETS, str(self.lives))
        self.open.clear()
        spent = [
            Spent(one.counts[0], one.agent, one.model, one.counts[1])
            for one in self.stored.values()
        ]
        self.money.restore(self.now, spent)

    @invariant()
    def no_money_is_lost_or_counted_twice(self) -> None:
        stored = sum(one.counts[1] for one in self.stored.values())
        assert stored == self.truth

    @invariant()
    def whoever_starts_anew_knows_the_same(self) -> None:
        """But for a clock that went back: then a start knows more, never less."""
        anew = Ledger(BUDGETS, "x")
        counted = [one.counts for one in self.stored.values()]
        who = list(self.stored.values())
        anew.restore(
            self.now,
            [
                Spent(at, one.agent, one.model, usd)
                for (at, usd), one in zip(counted, who, strict=True)
            ],
        )
        if self.steady:
            for limit in self._limits():
                here = self.money.spent_usd(self.now, limit)
                lost = [one for one in self.open.values() if not _counts_now(self.now, one, limit)]
                under_way = self.money.reserved_usd(limit) - sum(
                    one.usd for one in lost if limit.subject in {"", one.agent, one.model}
                )
                assert anew.spent_usd(self.now, limit) == pytest.approx(here + under_way)

    @invariant()
    def what_is_open_is_what_is_reserved(self) -> None:
        reserved = sum(one.usd for one in self.open.values())
        assert self.money.reserved_usd(FLEET) == reserved

    @invariant()
    def no_window_holds_more_than_all_there_ever_was(self) -> None:
        for limit in self._limits():
            assert 0 <= self.money.spent_usd(self.now, limit) <= self.truth + 1e-9

    def _end(self, one: Reservation, told: Spend | None, actual: float) -> None:
        known = self.open.pop(one.id, None)
        assert (told is not None) == (known is not None)
        if told is not None:
            self.stored[one.id] = told
            self.truth += actual - one.usd

    def _limits(self) -> tuple[Limit, ...]:
        return (*self.money.limits_of(ADA, "sonnet"), *self.money.limits_of(BOB, ""))

    @contextmanager
    def _fair(self) -> Iterator[None]:
        """Asking how things stand changes nothing."""
        yield
        once = [self.money.line(self.now, limit) for limit in self._limits()]
        assert once == [self.money.line(self.now, limit) for limit in self._limits()]


def _counts_now(now: datetime, one: Reservation, limit: Limit) -> bool:
    """Whether what was reserved then would count for a limit as spent now."""
    alone = Ledger(Budgets(), "y")
    alone.restore(now, [Spent(one.at_utc, one.agent, one.model, one.usd)])
    return one.usd == 0 or alone.spent_usd(now, limit) > 0


TestAnyOrder = AnyOrder.TestCase


@given(st.lists(st.tuples(AMOUNTS, st.integers(0, 1_200)), max_size=60), st.integers(0, 18_000))
def test_a_rolling_window_bounds_every_window_whenever_it_began(
    calls: list[tuple[float, int]], offset: int
) -> None:
    """Whichever moment a provider counts its five hours from, they never hold more."""
    money = ledger(models=window(window_5h_usd=16 * CENT))
    now, made = NOON, []
    for usd, pause_s in calls:
        now += timedelta(seconds=pause_s)
        given = money.reserve(now, ADA, "sonnet", usd)
        if isinstance(given, Reservation):
            money.settle(now, given, usd)
            made.append((now, usd))
    began = NOON - timedelta(seconds=offset)
    while began <= now:
        inside = sum(usd for at, usd in made if began <= at < began + 5 * HOUR)
        assert inside <= 16 * CENT
        began += 5 * HOUR
