"""Holds: in force at once, stored when possible, lifted only for good."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from tests.services.shelf import Shelf

from custosd.core.errors import StoreConflict, StoreRefused, StoreUnavailable
from custosd.core.facts import Fact, HoldLifted, HoldPlaced
from custosd.core.holds import FLEET, Hold, HoldKind, holding
from custosd.flow.pulse import Pulse
from custosd.services.holds import Holds

K = HoldKind
NowUtc = Callable[[], datetime]


class Bench:
    """Holds with all that they stand on."""

    def __init__(self, now_utc: NowUtc, restored: tuple[Hold, ...] = ()) -> None:
        self.shelf = Shelf()
        self.shelf.kept = {hold.key: hold for hold in restored}
        self.facts_in, self.facts = trio.open_memory_channel[Fact](100)
        self.now_utc = now_utc
        store: Any = self.shelf
        self.holds = Holds(store, self.facts_in, now_utc, restored)

    def hold(
        self,
        kind: HoldKind = K.ESTOP,
        subject: str = FLEET,
        reason: str = "",
        for_s: float | None = None,
        agents: tuple[str, ...] = (),
    ) -> Hold:
        now = self.now_utc()
        until = None if for_s is None else now + timedelta(seconds=for_s)
        return Hold(kind, subject, "ada", reason, now, until, agents)

    def told(self) -> list[Fact]:
        found: list[Fact] = []
        while True:
            try:
                found.append(self.facts.receive_nowait())
            except trio.WouldBlock:
                return found


@pytest.fixture
def bench(now_utc: NowUtc) -> Bench:
    return Bench(now_utc)


async def keep(nursery: trio.Nursery, bench: Bench) -> Pulse:
    pulse = Pulse("holds", trio.current_time())
    await nursery.start(bench.holds.keep, pulse)
    return pulse


async def test_what_is_placed_holds_is_stored_and_told(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    hold = bench.hold(reason="fire")
    changed = bench.holds.changed
    assert await bench.holds.place(hold) is True
    assert bench.holds.holding("any", K.ESTOP) == hold
    assert bench.holds.get(K.ESTOP, FLEET) == hold
    assert bench.holds.all() == (hold,)
    assert bench.shelf.kept == {hold.key: hold}
    assert bench.told() == [HoldPlaced(hold)]
    assert changed.is_set()
    assert not bench.holds.changed.is_set()


async def test_what_is_lifted_holds_no_more_is_forgotten_and_told(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    await bench.holds.place(bench.hold())
    bench.told()
    changed = bench.holds.changed
    assert await bench.holds.lift(K.ESTOP, FLEET, "bob", "out") is True
    assert bench.holds.holding("any", K.ESTOP) is None
    assert bench.shelf.kept == {}
    assert bench.told() == [HoldLifted(K.ESTOP, FLEET, "bob", "out")]
    assert changed.is_set()
    assert await bench.holds.lift(K.ESTOP, FLEET, "bob") is False
    assert bench.told() == []


async def test_an_emergency_stop_does_not_wait_for_the_database(
    bench: Bench, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """In force before the store has answered, and when it does not answer at all."""
    bench.shelf.gates = [trio.Event()]
    began = trio.current_time()
    nursery.start_soon(bench.holds.place, bench.hold())
    await trio.testing.wait_all_tasks_blocked()
    assert trio.current_time() == began
    assert bench.holds.holding("any", K.ESTOP)
    nursery.cancel_scope.cancel()


async def test_who_places_is_not_kept_waiting_by_a_frozen_store(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    bench.shelf.gates = [trio.Event()]
    began = trio.current_time()
    assert await bench.holds.place(bench.hold()) is False
    assert trio.current_time() - began == 5
    assert bench.holds.holding("any", K.ESTOP)


async def test_what_could_not_be_stored_is_stored_when_the_store_is_back(
    bench: Bench, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    await keep(nursery, bench)
    bench.shelf.error = StoreUnavailable("away")
    hold = bench.hold()
    assert await bench.holds.place(hold) is False
    await trio.sleep(60)
    assert bench.shelf.kept == {}
    assert bench.holds.get(K.ESTOP, FLEET) == hold
    bench.shelf.error = None
    await trio.sleep(5.5)
    assert bench.shelf.kept == {hold.key: hold}
    before = len(bench.shelf.calls)
    await trio.sleep(300)
    assert len(bench.shelf.calls) == before
    assert bench.told() == [HoldPlaced(hold)]
    nursery.cancel_scope.cancel()


async def test_a_store_that_is_away_is_asked_once_a_round_not_once_a_hold(
    bench: Bench, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    bench.shelf.error = StoreUnavailable("away")
    for n in range(50):
        await bench.holds.place(bench.hold(K.SILENCE, f"life:{n}"))
    bench.shelf.calls.clear()
    await keep(nursery, bench)
    await trio.sleep(11)
    assert len(bench.shelf.calls) == 3
    nursery.cancel_scope.cancel()


async def test_what_the_store_refuses_holds_and_is_not_offered_for_ever(
    bench: Bench, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """And those beside it are stored."""
    bench.shelf.errors = [StoreRefused("a bug"), None]
    with structlog.testing.capture_logs() as logged:
        await keep(nursery, bench)
        assert await bench.holds.place(bench.hold(reason="bad")) is False
        assert await bench.holds.place(bench.hold(K.PAUSE, "a", "good")) is True
        await trio.sleep(60)
    assert bench.shelf.calls == ["place bad", "place good"]
    assert bench.holds.holding("any", K.ESTOP)
    assert [line["event"] for line in logged if line["log_level"] == "error"] == ["hold.refused"]
    nursery.cancel_scope.cancel()


async def test_many_are_placed_without_waiting_and_stored_together(
    bench: Bench, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    await keep(nursery, bench)
    bench.shelf.gates = [trio.Event()]
    told = [bench.hold(K.NOTIFIED, f"life:{n}") for n in range(50)]
    began = trio.current_time()
    await bench.holds.place_all(told)
    assert bench.holds.all() == tuple(sorted(told, key=lambda hold: hold.key))
    assert bench.told() == [HoldPlaced(hold) for hold in told]
    await trio.testing.wait_all_tasks_blocked()
    bench.shelf.gates.clear()
    assert trio.current_time() == began
    assert bench.shelf.kept == {}
    nursery.cancel_scope.cancel()


async def test_of_many_the_one_that_the_store_refuses_keeps_no_other_out(
    bench: Bench, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Also when it is in the middle; and it is not offered for ever."""
    await keep(nursery, bench)
    bench.shelf.refused = "life:7"
    told = [bench.hold(K.NOTIFIED, f"life:{n}") for n in range(10)]
    with structlog.testing.capture_logs() as logged:
        await bench.holds.place_all(told)
        await trio.sleep(1)
    assert set(bench.shelf.kept.values()) == {*told} - {told[7]}
    assert set(bench.holds.all()) == {*told}
    refused = [line["subject"] for line in logged if line["event"] == "hold.refused"]
    assert refused == ["life:7"]
    before = len(bench.shelf.calls)
    await trio.sleep(300)
    assert len(bench.shelf.calls) == before
    nursery.cancel_scope.cancel()


async def test_many_are_lifted_together_or_not_at_all(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    told = [bench.hold(K.NOTIFIED, f"life:{n}") for n in range(3)]
    for hold in told:
        await bench.holds.place(hold)
    bench.told()
    bench.shelf.calls.clear()
    keys = [hold.key for hold in told[:2]]
    bench.shelf.errors = [StoreUnavailable("away")]
    with pytest.raises(StoreUnavailable):
        await bench.holds.lift_all(keys, "bob")
    assert set(bench.holds.all()) == {*told}
    assert await bench.holds.lift_all([*keys, (K.ACK, "life:0")], "bob", "over") == 2
    assert bench.holds.all() == (told[2],)
    assert bench.shelf.kept == {told[2].key: told[2]}
    assert bench.shelf.calls == ["lift 2 holds"] * 2
    assert bench.told() == [HoldLifted(*key, "bob", "over") for key in keys]
    assert await bench.holds.lift_all(keys, "bob") == 0


async def test_one_placed_anew_while_many_are_lifted_stays(
    bench: Bench, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    await keep(nursery, bench)
    old = [bench.hold(K.NOTIFIED, f"life:{n}", "old") for n in range(2)]
    for hold in old:
        await bench.holds.place(hold)
    gate = trio.Event()
    bench.shelf.gates = [gate]
    nursery.start_soon(bench.holds.lift_all, [hold.key for hold in old], "bob")
    await trio.testing.wait_all_tasks_blocked()
    fresh = bench.hold(K.NOTIFIED, "life:1", "new")
    await bench.holds.place_all([fresh])
    gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert bench.holds.all() == (fresh,)
    assert bench.shelf.kept == {fresh.key: fresh}
    nursery.cancel_scope.cancel()


async def test_what_cannot_be_lifted_in_the_store_stays_in_force(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    await bench.holds.place(bench.hold())
    bench.told()
    bench.shelf.error = StoreUnavailable("away")
    with pytest.raises(StoreUnavailable):
        await bench.holds.lift(K.ESTOP, FLEET, "bob")
    assert bench.holds.holding("any", K.ESTOP)
    assert bench.told() == []


async def test_a_conflict_is_tried_again_at_once_and_not_for_ever(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    await bench.holds.place(bench.hold())
    bench.shelf.errors = [StoreConflict("busy")] * 3
    began = trio.current_time()
    assert await bench.holds.lift(K.ESTOP, FLEET, "bob") is True
    assert trio.current_time() == began
    await bench.holds.place(bench.hold())
    bench.shelf.error = StoreConflict("always")
    with pytest.raises(StoreConflict):
        await bench.holds.lift(K.ESTOP, FLEET, "bob")
    assert bench.holds.get(K.ESTOP, FLEET)


async def test_what_is_placed_while_its_forerunner_is_lifted_stays(
    bench: Bench, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Somebody thaws and somebody else stops again: the second stop is in force and stored."""
    await bench.holds.place(bench.hold(reason="first"))
    gate = trio.Event()
    bench.shelf.gates = [gate]
    nursery.start_soon(bench.holds.lift, K.ESTOP, FLEET, "bob")
    await trio.testing.wait_all_tasks_blocked()
    second = bench.hold(reason="second")
    nursery.start_soon(bench.holds.place, second)
    await trio.testing.wait_all_tasks_blocked()
    gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert bench.holds.get(K.ESTOP, FLEET) == second
    assert bench.shelf.kept == {second.key: second}


async def test_what_is_lifted_while_it_is_being_stored_does_not_come_back(
    bench: Bench, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    gate = trio.Event()
    bench.shelf.gates = [gate]
    nursery.start_soon(bench.holds.place, bench.hold())
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(bench.holds.lift, K.ESTOP, FLEET, "bob")
    await trio.testing.wait_all_tasks_blocked()
    gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert bench.holds.get(K.ESTOP, FLEET) is None
    assert bench.shelf.kept == {}


async def test_of_two_of_one_key_the_later_is_what_the_store_has(
    bench: Bench, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Also when storing the first one takes longer."""
    gate = trio.Event()
    bench.shelf.gates = [gate]
    nursery.start_soon(bench.holds.place, bench.hold(reason="first"))
    await trio.testing.wait_all_tasks_blocked()
    second = bench.hold(reason="second")
    nursery.start_soon(bench.holds.place, second)
    await trio.testing.wait_all_tasks_blocked()
    gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert bench.shelf.kept == {second.key: second}


async def test_a_hold_ends_by_itself_on_its_minute(
    bench: Bench, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    await keep(nursery, bench)
    await bench.holds.place(bench.hold(K.SILENCE, "life:a", for_s=90))
    bench.told()
    await trio.sleep(89.9)
    assert bench.holds.get(K.SILENCE, "life:a")
    assert bench.told() == []
    await trio.sleep(0.2)
    assert bench.holds.get(K.SILENCE, "life:a") is None
    assert bench.shelf.kept == {}
    assert bench.told() == [HoldLifted(K.SILENCE, "life:a", "time", "ran_out")]
    nursery.cancel_scope.cancel()


async def test_one_that_ran_out_holds_nothing_while_the_store_is_away(
    bench: Bench, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    await keep(nursery, bench)
    await bench.holds.place(bench.hold(K.PAUSE, "a", for_s=10))
    bench.shelf.error = StoreUnavailable("away")
    await trio.sleep(30)
    assert bench.holds.holding("a", K.PAUSE) is None
    assert bench.holds.all() == ()
    bench.shelf.error = None
    await trio.sleep(6)
    assert bench.shelf.kept == {}
    nursery.cancel_scope.cancel()


async def test_a_new_end_takes_the_place_of_the_old_one(
    bench: Bench, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    await keep(nursery, bench)
    await bench.holds.place(bench.hold(K.SILENCE, "life:a", for_s=10))
    await trio.sleep(9)
    await bench.holds.place(bench.hold(K.SILENCE, "life:a", for_s=100))
    await trio.sleep(90)
    assert bench.holds.get(K.SILENCE, "life:a")
    nursery.cancel_scope.cancel()


async def test_a_new_end_placed_while_the_old_one_runs_out_stays(
    bench: Bench, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    await keep(nursery, bench)
    await bench.holds.place(bench.hold(K.ESTOP, FLEET, "old", for_s=10))
    gate = trio.Event()
    bench.shelf.gates = [gate]
    await trio.sleep(10.1)
    assert bench.shelf.calls[-1] == "lift fleet"
    fresh = bench.hold(reason="new")
    nursery.start_soon(bench.holds.place, fresh)
    await trio.testing.wait_all_tasks_blocked()
    gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert bench.holds.get(K.ESTOP, FLEET) == fresh
    assert bench.shelf.kept == {fresh.key: fresh}
    nursery.cancel_scope.cancel()


async def test_a_new_end_placed_while_another_hold_runs_out_stays(
    bench: Bench, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """What is cleared away is what had run out, not what has its name by now."""
    await keep(nursery, bench)
    for subject in ("a", "b"):
        await bench.holds.place(bench.hold(K.PAUSE, subject, "old", for_s=10))
    gate = trio.Event()
    bench.shelf.gates = [gate]
    await trio.sleep(10.1)
    (first,) = [call.split()[1] for call in bench.shelf.calls if call.startswith("lift")]
    fresh = bench.hold(K.PAUSE, {"a": "b", "b": "a"}[first], "new")
    nursery.start_soon(bench.holds.place, fresh)
    await trio.testing.wait_all_tasks_blocked()
    gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert bench.holds.all() == (fresh,)
    assert bench.shelf.kept == {fresh.key: fresh}
    nursery.cancel_scope.cancel()


async def test_what_was_stored_is_in_force_from_the_start_and_told(
    now_utc: NowUtc, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """What ran out meanwhile is not; it is cleared away."""
    then = now_utc() - timedelta(hours=1)
    stop = Hold(K.ESTOP, FLEET, "ada", "", then)
    old = Hold(K.SILENCE, "x", "ada", "", then, then + timedelta(minutes=1))
    bench = Bench(now_utc, (old, stop))
    assert bench.holds.all() == (stop,)
    await keep(nursery, bench)
    assert bench.told() == [HoldPlaced(stop)]
    await trio.testing.wait_all_tasks_blocked()
    assert bench.told() == [HoldLifted(K.SILENCE, "x", "time", "ran_out")]
    assert bench.shelf.kept == {stop.key: stop}
    nursery.cancel_scope.cancel()


async def test_a_frozen_store_is_no_stand_still_of_ours(
    bench: Bench, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """The watchdog must not end a daemon because its database does not answer."""
    pulse = await keep(nursery, bench)
    bench.shelf.gates = [trio.Event()] * 2
    nursery.start_soon(bench.holds.place, bench.hold())
    await trio.sleep(200)
    assert pulse.age_s(trio.current_time()) == 0
    nursery.cancel_scope.cancel()


def test_an_incident_holds_those_that_it_names_and_them_alone() -> None:
    facts_in, _ = trio.open_memory_channel[Fact](0)
    store: Any = Shelf()
    incident = Hold(K.INCIDENT, "i1", "restarter", "", NOW, None, ("a", "b"))
    holds = Holds(store, facts_in, lambda: NOW, [incident])
    assert holds.holding("b", K.ESTOP, K.INCIDENT) == incident
    assert holds.holding("c", K.ESTOP, K.INCIDENT) is None
    assert holds.holding("b", K.ESTOP) is None


KINDS = st.sampled_from([K.ESTOP, K.PAUSE, K.INCIDENT])
NAMES = st.sampled_from(["a", "b", "c", FLEET, "i1"])
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@given(
    st.lists(
        st.builds(
            Hold,
            KINDS,
            NAMES,
            st.just("ada"),
            st.just(""),
            st.just(NOW),
            st.sampled_from([None, NOW, NOW + timedelta(seconds=1)]),
            st.lists(NAMES, max_size=2).map(tuple),
        )
    ),
    st.sets(KINDS, min_size=1),
    st.sampled_from(["a", "b"]),
)
def test_the_quick_look_finds_what_a_look_at_all_finds(
    held: list[Hold], kinds: set[HoldKind], agent: str
) -> None:
    """Never does the short way miss a hold; which one of several it names is no matter."""
    facts_in, _ = trio.open_memory_channel[Fact](0)
    store: Any = Shelf()
    holds = Holds(store, facts_in, lambda: NOW, held)
    latest = {hold.key: hold for hold in held}.values()
    found = holds.holding(agent, *kinds)
    expected = holding(latest, agent, kinds, NOW)
    assert (found is None) == (expected is None)
    if found is not None:
        assert holding([found], agent, kinds, NOW) == found
