"""A person hears of each concern once, of its end once, and of a storm in one line."""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from custosd.adapters.memory_actions import MemoryActions
from custosd.adapters.notify.recorded import RecordedNotifier
from custosd.core.agents import AgentId
from custosd.core.alerts import AlertLimits, Matter, Pace, pause_s, text_of
from custosd.core.errors import NotifyError, StoreUnavailable
from custosd.core.facts import ConcernResolved, Entry, Escalated, Fact, Notified
from custosd.core.holds import FLEET, Hold, HoldKind
from custosd.core.view import FleetView
from custosd.flow.clock import VIRTUAL_START_UTC
from custosd.flow.latest import Latest
from custosd.flow.pulse import Pulse
from custosd.ports import Notifier
from custosd.services.alerting import keep_alerts
from custosd.services.holds import Holds

Clock = trio.testing.MockClock
Wall = Callable[[], datetime]
LIMITS = AlertLimits()
AWAY = NotifyError("status_503")


@dataclass
class Desk:
    """The alerting of one daemon, and what outlives it: the store and the notifiers."""

    now_utc: Wall
    notifiers: Sequence[Notifier]
    limits: AlertLimits = LIMITS
    store: MemoryActions = field(default_factory=MemoryActions)
    told: list[Fact] = field(default_factory=list)
    view: Latest[FleetView] = field(default_factory=lambda: Latest(FleetView()))
    pulse: Pulse = field(default_factory=lambda: Pulse("alerting", 0.0))

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Desk"]:
        """The service at work on what the store remembers; left, the daemon is gone."""
        self.view = Latest(FleetView())
        facts_in, facts_out = trio.open_memory_channel[Fact](10_000)
        self.holds = Holds(self.store, facts_in.clone(), self.now_utc, await self.store.holds())

        async def board() -> None:
            async for fact in facts_out:
                self.tell(fact)

        async def alerts(task_status: trio.TaskStatus[None]) -> None:
            self.pulse = Pulse("alerting", trio.current_time())
            await keep_alerts(
                self.view,
                self.holds,
                self.notifiers,
                facts_in,
                self.limits,
                self.now_utc,
                self.pulse,
                task_status=task_status,
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(board)
            await nursery.start(self.holds.keep, Pulse("holds", trio.current_time()))
            await nursery.start(alerts)
            yield self
            nursery.cancel_scope.cancel()

    def tell(self, *facts: Fact) -> None:
        self.told += facts
        entries = [Entry(f"e{len(self.told)}", self.now_utc(), fact) for fact in facts]
        self.view.publish(self.view.value.after(entries))

    def raise_(self, *names: str, kind: str = "standing") -> None:
        agents = [AgentId(name) for name in names]
        self.tell(*(Escalated(f"{kind}:{agent}", kind, agent, "stuck") for agent in agents))

    def resolve(self, *names: str, kind: str = "standing") -> None:
        self.tell(*(ConcernResolved(f"{kind}:{name}", "over") for name in names))

    async def hold(self, kind: HoldKind, subject: str, for_s: float | None = None) -> None:
        until_utc = self.now_utc() + timedelta(seconds=for_s) if for_s else None
        await self.holds.place(Hold(kind, subject, "uid:0", "", self.now_utc(), until_utc))

    def notified(self) -> list[Notified]:
        return [fact for fact in self.told if isinstance(fact, Notified)]


def heard(notifier: RecordedNotifier) -> list[tuple[str, bool]]:
    return [(notice.concern, notice.resolved) for notice in notifier.notices]


@pytest.fixture
def page() -> RecordedNotifier:
    return RecordedNotifier("page")


async def test_each_concern_is_told_once_and_so_is_its_end(
    autojump_clock: Clock, now_utc: Wall, page: RecordedNotifier
) -> None:
    async with Desk(now_utc, [page]).running() as desk:
        desk.raise_("ada")
        await trio.sleep(1_000)
        assert heard(page) == [("standing:ada", False)]
        assert page.notices[0].text == "ada: standing, stuck"
        desk.resolve("ada")
        await trio.sleep(1_000)
        assert heard(page) == [("standing:ada", False), ("standing:ada", True)]
        assert page.notices[1].text == "ada: standing, is over"
        assert page.notices[1].agent == "ada"
        assert desk.holds.all() == ()
        assert [n.resolved for n in desk.notified()] == [False, True]
        desk.raise_("ada")
        await trio.sleep(1)
        assert len(page.notices) == 3


async def test_a_restart_tells_nothing_twice_and_misses_no_end(
    autojump_clock: Clock, now_utc: Wall, page: RecordedNotifier
) -> None:
    """What is raised again after the start was known; what is not is over, after a while."""
    desk = Desk(now_utc, [page])
    async with desk.running():
        desk.raise_("ada", "bob")
        await trio.sleep(10)
    async with desk.running():
        await trio.sleep(20)
        desk.raise_("ada")
        await trio.sleep(200)
        assert len(page.notices) == 2
        await trio.sleep(200)
        assert heard(page)[2:] == [("standing:bob", True)]
        desk.resolve("ada")
        await trio.sleep(10)
        assert heard(page)[3:] == [("standing:ada", True)]


async def test_what_was_over_before_it_was_told_is_not_told(
    autojump_clock: Clock, now_utc: Wall, page: RecordedNotifier
) -> None:
    page.fail_next(AWAY)
    async with Desk(now_utc, [page]).running() as desk:
        desk.raise_("ada")
        await trio.sleep(2)
        desk.resolve("ada")
        await trio.sleep(1_000)
        assert page.notices == []


async def test_what_ends_while_it_is_being_told_is_told_to_be_over(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    class Slow(RecordedNotifier):
        async def notify(self, notice: object) -> None:
            await trio.sleep(10)
            await super().notify(notice)  # type: ignore[arg-type]

    slow = Slow()
    async with Desk(now_utc, [slow]).running() as desk:
        desk.raise_("ada")
        await trio.sleep(5)
        desk.resolve("ada")
        await trio.sleep(100)
        assert heard(slow) == [("standing:ada", False), ("standing:ada", True)]


# Holds.


@pytest.mark.parametrize("subject", [FLEET, "ada", "standing:ada"])
async def test_silence_holds_notices_back_until_it_is_over(
    autojump_clock: Clock, now_utc: Wall, page: RecordedNotifier, subject: str
) -> None:
    async with Desk(now_utc, [page]).running() as desk:
        await desk.hold(HoldKind.SILENCE, subject, for_s=600)
        desk.raise_("ada")
        await trio.sleep(590)
        assert page.tried == 0
        await trio.sleep(80)
        assert heard(page) == [("standing:ada", False)]


async def test_silence_over_another_agent_is_none_here(
    autojump_clock: Clock, now_utc: Wall, page: RecordedNotifier
) -> None:
    async with Desk(now_utc, [page]).running() as desk:
        await desk.hold(HoldKind.SILENCE, "bob")
        desk.raise_("ada")
        await trio.sleep(1)
        assert len(page.notices) == 1


async def test_what_a_person_knows_is_told_no_further_and_is_news_when_it_comes_again(
    autojump_clock: Clock, now_utc: Wall, page: RecordedNotifier
) -> None:
    async with Desk(now_utc, [page]).running() as desk:
        page.fail_next(AWAY)
        desk.raise_("ada", "bob")
        await trio.sleep(2)
        await desk.hold(HoldKind.ACK, "standing:ada")
        await trio.sleep(20)
        assert heard(page) == [("standing:bob", False)]
        await desk.hold(HoldKind.ACK, "standing:bob")
        desk.resolve("ada", "bob")
        await trio.sleep(20)
        assert heard(page) == [("standing:bob", False)]
        assert desk.holds.all() == ()
        desk.raise_("ada")
        await trio.sleep(1)
        assert heard(page)[1:] == [("standing:ada", False)]


# Ways that fail.


async def test_a_way_that_fails_is_tried_again_and_holds_up_no_other(
    autojump_clock: Clock, now_utc: Wall, page: RecordedNotifier
) -> None:
    broken = RecordedNotifier("broken", [AWAY, AWAY, None, AWAY])
    with capture_logs() as logs:
        async with Desk(now_utc, [broken, page]).running() as desk:
            desk.raise_("ada")
            await trio.sleep(1)
            assert len(page.notices) == 1
            await trio.sleep(200)
            assert len(broken.notices) == len(page.notices) == 1
    pauses = [log["again_in_s"] for log in logs if log["event"] == "notice.failed"]
    assert pauses == [5, 10, 20, 40]
    failures = [(n.way, n.failure) for n in desk.notified()]
    # Which way is the first to be done is nobody's promise.
    assert sorted(failures[:2]) == [("broken", "status_503"), ("page", "")]
    assert failures[2:] == [("broken", "")]


async def test_after_a_restart_only_the_way_that_had_not_arrived_is_tried(
    autojump_clock: Clock, now_utc: Wall, page: RecordedNotifier
) -> None:
    broken = RecordedNotifier("broken", [AWAY] * 5)
    desk = Desk(now_utc, [broken, page])
    async with desk.running():
        desk.raise_("ada")
        await trio.sleep(10)
        assert (len(broken.notices), len(page.notices)) == (0, 1)
    async with desk.running():
        desk.raise_("ada")
        await trio.sleep(400)
        assert (len(broken.notices), len(page.notices)) == (1, 1)
        desk.resolve("ada")
        await trio.sleep(10)
        assert (len(broken.notices), len(page.notices)) == (2, 2)


async def test_an_end_goes_to_those_who_heard_the_beginning(
    autojump_clock: Clock, now_utc: Wall, page: RecordedNotifier
) -> None:
    broken = RecordedNotifier("broken", [AWAY] * 50)
    async with Desk(now_utc, [broken, page]).running() as desk:
        desk.raise_("ada")
        await trio.sleep(10)
        desk.resolve("ada")
        await trio.sleep(2_000)
        assert broken.notices == []
        assert len(page.notices) == 2
        assert desk.holds.all() == ()


async def test_an_end_that_did_not_arrive_is_told_again_by_that_way_only(
    autojump_clock: Clock, now_utc: Wall, page: RecordedNotifier
) -> None:
    other = RecordedNotifier("other")
    desk = Desk(now_utc, [other, page])
    async with desk.running():
        desk.raise_("ada")
        await trio.sleep(10)
        other.fail_next(AWAY, AWAY, AWAY)
        desk.resolve("ada")
        await trio.sleep(4)
        assert (len(other.notices), len(page.notices)) == (1, 2)
    async with desk.running():
        await trio.sleep(400)
        assert (len(other.notices), len(page.notices)) == (2, 2)
        assert desk.holds.all() == ()


async def test_a_store_that_is_away_keeps_no_notice_back_and_repeats_none(
    autojump_clock: Clock, now_utc: Wall, page: RecordedNotifier
) -> None:
    async with Desk(now_utc, [page]).running() as desk:
        desk.store.fail_with(StoreUnavailable("away"))
        desk.raise_("ada")
        await trio.sleep(100)
        desk.resolve("ada")
        await trio.sleep(100)
        assert heard(page) == [("standing:ada", False), ("standing:ada", True)]
        desk.store.fail_with(None)
        await trio.sleep(100)
        assert len(page.notices) == 2
        assert desk.holds.all() == await desk.store.holds() == ()


class FrozenStore(MemoryActions):
    """Counts the calls that change holds; frozen, each is let go after half a minute, undone."""

    def __init__(self, now_utc: Wall) -> None:
        super().__init__(now_utc)
        self.frozen = False
        self.calls = 0

    async def _work(self) -> None:
        self.calls += 1
        if self.frozen:
            await trio.sleep(35)
            raise StoreUnavailable("no answer")

    async def place_hold(self, hold: Hold) -> None:
        await self._work()
        await super().place_hold(hold)

    async def place_holds(self, holds: Sequence[Hold]) -> None:
        await self._work()
        await super().place_holds(holds)

    async def lift_hold(self, kind: HoldKind, subject: str) -> bool:
        await self._work()
        return await super().lift_hold(kind, subject)

    async def lift_holds(self, keys: Collection[tuple[HoldKind, str]]) -> int:
        await self._work()
        return await super().lift_holds(keys)


async def test_a_store_that_does_not_answer_holds_up_no_notice_whatever_there_is_to_store(
    autojump_clock: Clock, now_utc: Wall, page: RecordedNotifier
) -> None:
    store = FrozenStore(now_utc)
    async with Desk(now_utc, [page], store=store).running() as desk:
        store.frozen = True
        desk.raise_(*(f"a{n:03}" for n in range(100)))
        await trio.sleep(70)
        assert len(page.notices) == 1
        desk.raise_("ada")
        await trio.sleep(1)
        assert heard(page)[1:] == [("standing:ada", False)]
        desk.resolve("ada")
        await trio.sleep(1)
        assert heard(page)[2:] == [("standing:ada", True)]
        store.frozen = False
        await trio.sleep(100)
        assert len(page.notices) == 3
        assert len(await store.holds()) == 100


async def test_a_storm_costs_the_store_as_many_calls_as_one_concern(
    autojump_clock: Clock, now_utc: Wall, page: RecordedNotifier
) -> None:
    store = FrozenStore(now_utc)
    spent: list[int] = []
    async with Desk(now_utc, [page], store=store).running() as desk:
        for count in (1, 6, 300):
            before = store.calls
            names = [f"a{n:03}" for n in range(count)]
            desk.raise_(*names)
            await trio.sleep(300)
            assert len(await store.holds()) == count
            desk.resolve(*names)
            await trio.sleep(300)
            assert await store.holds() == ()
            spent.append(store.calls - before)
    assert spent == [2, 2, 2]


async def test_a_store_that_does_not_answer_is_no_stand_still_of_alerting(
    autojump_clock: Clock, now_utc: Wall, page: RecordedNotifier
) -> None:
    store = FrozenStore(now_utc)
    desk = Desk(now_utc, [page], store=store)
    async with desk.running():
        desk.raise_("ada")
        await trio.sleep(10)
        store.frozen = True
        desk.resolve("ada")
        idle = 0
        for _ in range(100):
            await trio.sleep(2.1)
            idle = max(idle, round(desk.pulse.age_s(trio.current_time())))
        assert idle == 0


# Storms.


async def test_a_storm_is_one_notice_with_counts_and_so_is_its_end(
    autojump_clock: Clock, now_utc: Wall, page: RecordedNotifier
) -> None:
    names = [f"a{n:03}" for n in range(40)]
    desk = Desk(now_utc, [page])
    async with desk.running():
        desk.raise_(*names)
        desk.raise_("m1", "m2", kind="letter")
        await trio.sleep(300)
        (notice,) = page.notices
        assert notice.kind == "storm"
        assert notice.text.startswith("42 concerns came up: 40 standing, 2 letter; among them ")
        desk.resolve(*names)
        await trio.sleep(300)
        assert len(page.notices) == 2
        assert page.notices[1].text.startswith("40 concerns are over: 40 standing")
    async with desk.running():
        desk.raise_("m1", "m2", kind="letter")
        await trio.sleep(1_000)
        assert len(page.notices) == 2


async def test_a_drizzle_that_turns_into_a_storm_is_gathered(
    autojump_clock: Clock, now_utc: Wall, page: RecordedNotifier
) -> None:
    """The first five one by one, the sixth at once, the others as one when a minute is over."""
    async with Desk(now_utc, [page]).running() as desk:
        for n in range(20):
            desk.raise_(f"a{n:02}")
            await trio.sleep(1)
        assert len(page.notices) == 6
        await trio.sleep(300)
        assert len(page.notices) == 7
        assert page.notices[-1].text.startswith("14 concerns came up")


MATTERS = st.lists(
    st.builds(
        Matter,
        st.text(max_size=200),
        st.sampled_from(["standing", "life"]),
        st.one_of(st.none(), st.text(max_size=300).map(AgentId)),
        st.text(max_size=200),
        st.just(VIRTUAL_START_UTC),
    ),
    min_size=1,
    max_size=20,
)


@given(matters=MATTERS, resolved=st.booleans())
def test_a_notice_is_short(matters: list[Matter], *, resolved: bool) -> None:
    assert 0 < len(text_of(matters, resolved=resolved)) <= 400


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 12)), max_size=60))
def test_no_pace_says_more_than_the_limit_and_none_leaves_anything_unsaid(
    arrivals: list[tuple[float, int]],
) -> None:
    """In any minute at most the singles and one gathered notice; at the end all are told."""
    pace, now, told_at, waiting = Pace(LIMITS), 0.0, list[float](), list[Matter]()
    for gap_s, count in [*arrivals, (LIMITS.storm_s, 0), (LIMITS.storm_s, 0)]:
        now += gap_s
        waiting += [Matter("c", "k", None, "", VIRTUAL_START_UTC)] * count
        while True:
            batch, free_at = pace.next(waiting, now, resolved=False)
            if not batch:
                assert not waiting or (free_at is not None and free_at > now)
                break
            waiting = waiting[len(batch) :]
            pace.told(len(batch), now, resolved=False)
            told_at.append(now)
    assert not waiting
    for start in told_at:
        window = [at for at in told_at if start <= at < start + LIMITS.storm_s]
        assert len(window) <= LIMITS.storm + 1


def test_pauses_are_doubled_up_to_the_longest() -> None:
    assert [pause_s(n, LIMITS) for n in (1, 2, 7, 99)] == [5, 10, 300, 300]
