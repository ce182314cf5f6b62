"""Who is dead comes back, once; who is well, held or not known is left alone."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import pytest
import trio
import trio.testing
from tests.contracts import store_values as some
from tests.services.restart_stage import (
    ADA,
    BOB,
    CYD,
    Cuts,
    Daemon,
    Machine,
    PowerCut,
    limits,
)

from custosd.adapters.memory_actions import MemoryActions
from custosd.core.acts import ActOutcome
from custosd.core.agents import AgentId, AgentRef, AgentState, RunId
from custosd.core.errors import StoreUnavailable
from custosd.core.evidence import Exit
from custosd.core.facts import (
    ConcernResolved,
    Escalated,
    HoldLifted,
    HoldPlaced,
    RestartChanged,
    RestartWithheld,
    TrajectoryAdvanced,
)
from custosd.core.holds import FLEET, Hold, HoldKind
from custosd.core.restart_policy import Move
from custosd.core.restarts import Cause, RestartState
from custosd.services.restarter import RestarterSettings, Supervised

NowUtc = Callable[[], datetime]
Clock = trio.testing.MockClock
S, K = RestartState, HoldKind
ALL = {agent: Supervised("h1", "acct") for agent in (ADA, BOB, CYD)}
CRASH = Exit(code=3)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def daemon(machine: Machine, now_utc: NowUtc) -> Daemon:
    return another(machine, now_utc)


def another(
    machine: Machine,
    now_utc: NowUtc,
    agents: int = 3,
    settings: RestarterSettings | None = None,
) -> Daemon:
    names = [*ALL, *(AgentId(f"agent-{n}") for n in range(agents - 3))]
    for agent in names:
        machine.start(agent)
    everybody = {agent: Supervised("h1", "acct") for agent in names}
    store = MemoryActions(now_utc)
    return Daemon(machine, store, now_utc, everybody, settings or RestarterSettings())


def spread_over(daemon: Daemon, hosts: int) -> dict[str, list[AgentId]]:
    """Have its agents run on so many hosts; returns who is on which."""
    on: dict[str, list[AgentId]] = {f"h{n + 1}": [] for n in range(hosts)}
    for number, agent in enumerate(daemon.agents):
        on[f"h{number % hosts + 1}"].append(agent)
    told = {agent: Supervised(host, "acct") for host, agents in on.items() for agent in agents}
    daemon.agents = told
    daemon.restarter = daemon.make_restarter()
    return on


def started(machine: Machine) -> list[AgentId]:
    return [agent for agent, _, _ in machine.starts]


def concerns(daemon: Daemon) -> dict[str, str]:
    return {name: concern.reason for name, concern in daemon.view.value.hands.concerns.items()}


async def test_a_dead_agent_is_back_within_seconds(
    daemon: Daemon, machine: Machine, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(daemon.run)
    machine.end(ADA)
    await trio.sleep(15)
    (row,) = await daemon.rows()
    assert (row.state, row.cause, row.epoch, row.next_epoch) == (S.SUCCEEDED, Cause.KILLED, 0, 1)
    assert row.evidence
    assert machine.starts == [(ADA, row.id, 1)]
    assert daemon.view.value.hands.lives[ADA].state is AgentState.RUNNING
    assert daemon.view.value.hands.restarting == {}
    states = [f.state for f in daemon.told if isinstance(f, RestartChanged)]
    assert states == [S.INTENDED, S.RUNNING, S.SUCCEEDED]


async def test_nothing_is_done_to_agents_that_are_well(
    daemon: Daemon, machine: Machine, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(daemon.run)
    await trio.sleep(3600)
    assert (machine.calls, await daemon.rows(), concerns(daemon)) == ([], (), {})


async def test_a_frozen_agent_is_interrupted_and_then_replaced(
    daemon: Daemon, machine: Machine, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(daemon.run)
    machine.workers[ADA].frozen = True
    await trio.sleep(300)
    (row,) = await daemon.rows()
    assert (row.state, row.cause) == (S.SUCCEEDED, Cause.HANG)
    assert [call for call, _ in machine.calls] == ["interrupt", "stop", "spawn"]


async def test_who_is_silent_and_cannot_be_seen_is_a_persons_business(
    daemon: Daemon, machine: Machine, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """Unknown stops nothing, for however long; when it is heard again the matter is over."""
    await nursery.start(daemon.run)
    machine.mute.add(ADA)
    machine.blind.add(ADA)
    await trio.sleep(7200)
    assert machine.calls == []
    assert list(concerns(daemon)) == ["life:ada"]
    machine.mute.clear()
    machine.blind.clear()
    await trio.sleep(60)
    assert concerns(daemon) == {}
    assert machine.calls == []


async def test_an_agent_without_control_is_escalated_once_and_resolved(
    daemon: Daemon, machine: Machine, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    daemon.uncontrolled = frozenset({ADA})
    daemon.restarter = daemon.make_restarter()
    await nursery.start(daemon.run)
    machine.end(ADA)
    await trio.sleep(600)
    assert machine.calls == []
    machine.start(ADA)
    await trio.sleep(60)
    told = daemon.of(Escalated, ConcernResolved)
    assert told == [
        Escalated("life:ada", "life", ADA, "no_control"),
        ConcernResolved("life:ada", "well_again"),
    ]


async def test_observing_tells_and_does_nothing(
    daemon: Daemon, machine: Machine, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    daemon.settings = replace(daemon.settings, acting=False)
    daemon.restarter = daemon.make_restarter()
    await nursery.start(daemon.run)
    machine.end(ADA)
    await trio.sleep(600)
    assert (machine.calls, await daemon.rows()) == ([], ())
    (told,) = daemon.of(RestartWithheld)
    assert isinstance(told, RestartWithheld)
    assert (told.agent, told.why) == (ADA, "observing")
    assert concerns(daemon) == {"life:ada": "observing"}
    daemon.restarter.adopt(replace(daemon.settings, acting=True))
    await trio.sleep(15)
    assert started(machine) == [ADA]


@pytest.mark.parametrize(
    ("kind", "subject"), [(K.ESTOP, FLEET), (K.PAUSE, "ada"), (K.QUARANTINE, "ada")]
)
async def test_what_is_held_is_not_restarted_until_it_is_let_go(
    daemon: Daemon,
    machine: Machine,
    kind: HoldKind,
    subject: str,
    autojump_clock: Clock,
    nursery: trio.Nursery,
) -> None:
    await nursery.start(daemon.run)
    await daemon.holds.place(Hold(kind, subject, "eve", "", daemon.now_utc()))
    machine.end(ADA)
    await trio.sleep(600)
    assert machine.calls == []
    assert [f.why for f in daemon.told if isinstance(f, RestartWithheld)] == [str(kind)]
    answer = await daemon.restarter.order(ADA, "eve", "")
    assert answer.outcome is ActOutcome.REFUSED
    await daemon.holds.lift(kind, subject, "eve")
    await trio.sleep(15)
    assert started(machine) == [ADA]


async def test_an_emergency_stop_in_mid_procedure_stops_it_and_a_thaw_begins_anew(
    daemon: Daemon, machine: Machine, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(daemon.run)
    machine.deaf.add(ADA)
    await daemon.restarter.order(ADA, "eve", "new version")
    await trio.sleep(5)
    assert machine.calls == [("stop", ADA)]
    await daemon.holds.place(Hold(K.ESTOP, FLEET, "eve", "", daemon.now_utc()))
    await trio.sleep(600)
    assert machine.calls == [("stop", ADA)]
    (row,) = await daemon.rows()
    assert (row.state, row.steps[-1].result) == (S.ABANDONED, "estop")
    assert daemon.view.value.hands.lives[ADA].state is AgentState.RUNNING


async def test_told_to_observe_from_now_on_it_leaves_off_what_has_stopped_nobody_yet(
    daemon: Daemon, machine: Machine, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """It is looking at the dead one already, and has not laid hands on it."""
    await nursery.start(daemon.run)
    machine.end(ADA)
    await trio.sleep(2)
    assert list(daemon.view.value.hands.restarting) == [ADA]
    daemon.restarter.adopt(replace(daemon.settings, acting=False))
    await trio.sleep(600)
    assert machine.calls == []
    (row,) = await daemon.rows()
    assert (row.state, row.steps[-1].result) == (S.ABANDONED, "observing")


async def test_a_crash_loop_backs_off_ends_in_quarantine_and_a_release_counts_anew(
    daemon: Daemon, machine: Machine, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(daemon.run)
    dead_at = trio.current_time()
    for pause_s in (0, 30, 60, 120, 240):
        machine.end(ADA, CRASH)
        await trio.sleep(pause_s + 10)
    assert machine.started_at[0] - dead_at < 5
    pauses = [later - there for there, later in itertools.pairwise(machine.started_at)]
    assert pauses == pytest.approx([30, 60, 120, 240], abs=15)
    machine.end(ADA, CRASH)
    await trio.sleep(3600)
    assert len(machine.starts) == 5
    hold = daemon.holds.get(K.QUARANTINE, "ada")
    assert hold is not None
    assert (hold.by, hold.reason) == ("custosd", "crash_loop")
    assert daemon.view.value.hands.lives[ADA].state is AgentState.QUARANTINED
    assert concerns(daemon) == {"quarantine:ada": "crash_loop"}
    await daemon.holds.lift(K.QUARANTINE, "ada", "eve")
    daemon.restarter.released(ADA)
    await trio.sleep(15)
    assert len(machine.starts) == 6
    assert (await daemon.rows())[-1].reason == "released"
    assert concerns(daemon) == {}
    machine.end(ADA, CRASH)
    await trio.sleep(60)
    assert len(machine.starts) == 7


async def test_a_quarantine_and_its_count_outlive_the_daemon(
    daemon: Daemon, machine: Machine, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(daemon.run)
    for _ in range(3):
        machine.end(ADA, CRASH)
        await trio.sleep(80)
    assert len(machine.starts) == 3
    daemon.scope.cancel()
    await trio.sleep(5)
    second = Daemon(machine, daemon.store, daemon.now_utc, daemon.agents, owner="second")
    await nursery.start(second.run)
    for pause_s in (130, 250, 60):
        machine.end(ADA, CRASH)
        await trio.sleep(pause_s)
    assert len(machine.starts) == 5
    assert second.holds.get(K.QUARANTINE, "ada") is not None
    second.scope.cancel()
    await trio.sleep(5)
    third = Daemon(machine, daemon.store, daemon.now_utc, daemon.agents, owner="third")
    await nursery.start(third.run)
    await trio.sleep(3600)
    assert len(machine.starts) == 5
    assert third.view.value.hands.lives[ADA].state is AgentState.QUARANTINED


async def test_a_task_that_kills_whoever_works_on_it_is_held_to_be_the_cause(
    daemon: Daemon, machine: Machine, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    daemon.tasks = {ADA: "t1", BOB: "t1", CYD: "t1"}
    await nursery.start(daemon.run)
    await trio.sleep(30)
    for agent in (ADA, BOB, CYD):
        machine.end(agent, CRASH)
        await trio.sleep(400)
    assert len(machine.starts) == 3
    machine.end(ADA, CRASH)
    await trio.sleep(600)
    assert len(machine.starts) == 3
    hold = daemon.holds.get(K.QUARANTINE, "ada")
    assert hold is not None
    assert hold.reason == "poison_task"


async def test_agents_that_fail_alike_are_one_incident_and_one_of_them_goes_first(
    machine: Machine, now_utc: NowUtc, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    daemon = another(machine, now_utc, agents=20)
    await nursery.start(daemon.run)
    dead = [AgentId(f"agent-{n}") for n in range(4)]
    for agent in dead:
        machine.end(agent, CRASH)
    await trio.sleep(50)
    assert len(machine.starts) == 1
    (incident,) = [h for h in daemon.holds.all() if h.kind is K.INCIDENT]
    assert incident.subject == "crash/exit_3@acct"
    assert set(incident.agents) == set(dead)
    assert concerns(daemon) == {f"incident:{incident.subject}": "agents_fail_alike"}
    await trio.sleep(70)
    assert sorted(started(machine)) == sorted(dead)
    assert concerns(daemon) == {}
    assert [f.subject for f in daemon.told if isinstance(f, HoldLifted)] == [incident.subject]


async def test_whoever_is_on_the_way_when_a_common_cause_shows_waits_too(
    machine: Machine, now_utc: NowUtc, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """Two are being looked at already when the third dies of the same: one of them goes on."""
    daemon = another(machine, now_utc, agents=20)
    await nursery.start(daemon.run)
    for agent, pause_s in ((ADA, 0), (BOB, 1.5), (CYD, 48)):
        machine.end(agent, CRASH)
        await trio.sleep(pause_s)
    assert len(machine.starts) == 1
    await trio.sleep(120)
    assert sorted(started(machine)) == [ADA, BOB, CYD]


async def test_when_the_one_that_goes_first_is_held_the_next_one_goes(
    machine: Machine, now_utc: NowUtc, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    daemon = another(machine, now_utc, agents=20)
    await nursery.start(daemon.run)
    for agent in (ADA, BOB, CYD):
        machine.end(agent, CRASH)
    await trio.sleep(2)
    (row,) = await daemon.rows()
    await daemon.holds.place(Hold(K.PAUSE, row.agent, "eve", "", daemon.now_utc()))
    await trio.sleep(10)
    (other,) = started(machine)
    assert other != row.agent


async def test_while_the_one_that_goes_first_fails_the_others_wait(
    machine: Machine, now_utc: NowUtc, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    daemon = another(machine, now_utc, agents=20)
    await nursery.start(daemon.run)
    dead = [AgentId(f"agent-{n}") for n in range(4)]
    machine.stillborn |= set(dead)
    for agent in dead:
        machine.end(agent, CRASH)
    await trio.sleep(600)
    tries = started(machine)
    assert 2 <= len(tries) <= 6
    assert concerns(daemon)["incident:crash/exit_3@acct"]
    machine.stillborn.clear()
    await trio.sleep(1800)
    assert all(agent in machine.workers for agent in dead)


async def test_an_incident_outlives_the_daemon_and_a_person_may_end_it(
    machine: Machine, now_utc: NowUtc, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    daemon = another(machine, now_utc, agents=20)
    await nursery.start(daemon.run)
    dead = [AgentId(f"agent-{n}") for n in range(4)]
    machine.stillborn |= set(dead)
    for agent in dead:
        machine.end(agent, CRASH)
    await trio.sleep(20)
    daemon.scope.cancel()
    await trio.sleep(1)
    machine.stillborn.clear()
    second = Daemon(machine, daemon.store, now_utc, daemon.agents, owner="second")
    await nursery.start(second.run)
    await trio.sleep(10)
    name = "crash/exit_3@acct"
    assert second.holds.get(K.INCIDENT, name) is not None
    await second.holds.lift(K.INCIDENT, name, "eve")
    await trio.sleep(200)
    assert all(agent in machine.workers for agent in dead)
    assert len(machine.doubled) == 0


async def test_a_mass_death_is_healed_at_the_pace_of_the_budget(
    machine: Machine, now_utc: NowUtc, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """No more than the burst at once, then no more than the refill a minute; all come back."""
    settings = limits(RestarterSettings(), common_cause=1000)
    daemon = another(machine, now_utc, agents=30, settings=settings)
    await nursery.start(daemon.run)
    start = trio.current_time()
    for agent in list(machine.workers):
        machine.end(agent)
    await trio.sleep(3600)
    begun_at = machine.started_at
    for n, at in enumerate(begun_at):
        allowed = 5 + (at - start) / 60
        assert n + 1 <= allowed + 0.01
    # Dead agents are silent, too: the breaker opens once, until one has shown that it works.
    assert 25 * 60 <= begun_at[-1] - start <= 25 * 60 + 180
    assert sorted(started(machine)) == sorted(daemon.agents)
    why = {f.why for f in daemon.told if isinstance(f, RestartWithheld)}
    assert "fleet_budget" in why


async def test_however_many_hands_are_free_the_fleets_burst_is_all_that_is_started(
    machine: Machine, now_utc: NowUtc, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """No host has used up its own budget."""
    settings = limits(RestarterSettings(), common_cause=1000, concurrency=100)
    daemon = another(machine, now_utc, agents=30, settings=settings)
    spread_over(daemon, 3)
    await nursery.start(daemon.run)
    for agent in list(machine.workers)[:9]:
        machine.end(agent)
    await trio.sleep(40)
    assert len(machine.starts) == 5


async def test_a_host_that_has_used_up_its_budget_holds_no_other_host_up(
    machine: Machine, now_utc: NowUtc, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """The fleet may start ten at once, each of its two hosts five."""
    settings = limits(RestarterSettings(), common_cause=1000, concurrency=100, fleet_share=0.25)
    daemon = another(machine, now_utc, agents=40, settings=settings)
    hosts = spread_over(daemon, 2)
    await nursery.start(daemon.run)
    for agent in [*hosts["h1"][:7], *hosts["h2"][:2]]:
        machine.end(agent)
    await trio.sleep(8)
    on_host = sorted(daemon.agents[agent].host for agent in started(machine))
    assert on_host == ["h1"] * 5 + ["h2"] * 2
    why = {f.why for f in daemon.told if isinstance(f, RestartWithheld)}
    assert why == {"host_budget"}
    await trio.sleep(60)
    assert len(machine.starts) == 9


async def test_who_waits_for_the_fleets_budget_is_told_of_though_all_hands_are_busy(
    machine: Machine, now_utc: NowUtc, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    settings = limits(RestarterSettings(), common_cause=1000, fleet_burst=2, concurrency=2)
    daemon = another(machine, now_utc, agents=30, settings=settings)
    await nursery.start(daemon.run)
    dead = list(machine.workers)[:4]
    machine.mute |= set(dead)  # so that a restart takes as long as it may
    for agent in dead:
        machine.end(agent)
    await trio.sleep(10)
    assert len(daemon.view.value.hands.restarting) == 2
    told = [f for f in daemon.told if isinstance(f, RestartWithheld)]
    assert {f.why for f in told} == {"fleet_budget"}
    assert sorted(f.agent for f in told) == sorted({*dead} - {*started(machine)})


async def test_no_more_restarts_than_hands(
    machine: Machine, now_utc: NowUtc, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    settings = limits(RestarterSettings(), common_cause=1000, fleet_burst=1000, concurrency=2)
    daemon = another(machine, now_utc, agents=12, settings=settings)
    await nursery.start(daemon.run)
    for agent in list(machine.workers):
        machine.end(agent)
    most = 0
    for _ in range(400):
        await trio.sleep(0.25)
        most = max(most, len(daemon.view.value.hands.restarting))
    assert most == 2
    assert len(machine.starts) == 12


async def test_so_many_suspects_at_once_are_no_reason_to_stop_any_of_them(
    machine: Machine, now_utc: NowUtc, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """The fleet breaker: what still runs is left alone, and a person is told once."""
    settings = limits(RestarterSettings(), common_cause=1000)
    daemon = another(machine, now_utc, agents=12, settings=settings)
    await nursery.start(daemon.run)
    for worker in machine.workers.values():
        worker.frozen = True
    breaker_seen = False
    for _ in range(110):
        await trio.sleep(1)
        if daemon.lives.breakers(trio.current_time()):
            breaker_seen = True
            assert not [call for call, _ in machine.calls if call != "interrupt"]
    assert breaker_seen
    told = [f.concern for f in daemon.told if isinstance(f, Escalated)]
    assert set(told) <= {"incident:breaker/h1", "incident:breaker/fleet"}
    assert told


def says(daemon: Daemon, agent: AgentId, text: str, waiting_on: str) -> None:
    digest = replace(some.digest(), claim=text, waiting_on=waiting_on, end=None)
    ref = AgentRef(agent, RunId(f"{agent}-run"))
    daemon.facts_in.send_nowait(TrajectoryAdvanced(ref, digest, 1, daemon.now_utc()))


async def test_a_usage_limit_waits_for_its_end_and_then_goes_on(
    daemon: Daemon, machine: Machine, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(daemon.run)
    says(daemon, ADA, "You've hit your limit. Try again in 2 hours 30 minutes.", "rate_limit")
    machine.end(ADA, Exit(code=1))
    await trio.sleep(9_000 - 30)
    assert machine.calls == []
    assert concerns(daemon) == {"life:ada": "usage_limit"}
    await trio.sleep(60)
    assert started(machine) == [ADA]
    assert (await daemon.rows())[0].cause is Cause.USAGE_LIMIT


async def test_a_refused_key_is_a_persons_business_whose_order_is_carried_out(
    daemon: Daemon, machine: Machine, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(daemon.run)
    says(daemon, ADA, "API Error: 401 invalid x-api-key. Please run /login", "human")
    machine.end(ADA, Exit(code=1))
    await trio.sleep(3600)
    assert machine.calls == []
    assert concerns(daemon) == {"life:ada": "auth"}
    answer = await daemon.restarter.order(ADA, "eve", "new key")
    assert answer.outcome is ActOutcome.DONE
    await trio.sleep(30)
    assert started(machine) == [ADA]
    assert concerns(daemon) == {}


async def test_an_order_is_in_writing_when_it_is_answered_and_then_carried_out(
    daemon: Daemon, machine: Machine, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(daemon.run)
    tried = await daemon.restarter.order(ADA, "eve", "", dry_run=True)
    assert (tried.outcome, await daemon.rows()) == (ActOutcome.WOULD_BE_DONE, ())
    answer = await daemon.restarter.order(ADA, "eve", "new version")
    (row,) = await daemon.rows()
    assert answer.outcome is ActOutcome.DONE
    assert answer.detail["restart"] == row.id
    assert (row.cause, row.requested_by, row.reason) == (Cause.REQUESTED, "eve", "new version")
    again = await daemon.restarter.order(ADA, "eve", "")
    assert again.outcome is ActOutcome.NOTHING_TO_DO
    await trio.sleep(30)
    assert [call for call, _ in machine.calls] == ["stop", "spawn"]
    assert (await daemon.rows())[0].state is S.SUCCEEDED


async def test_an_order_that_the_store_does_not_take_is_said_to_have_failed(
    daemon: Daemon, machine: Machine, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(daemon.run)
    daemon.store.fail_with(StoreUnavailable("away"))
    answer = await daemon.restarter.order(ADA, "eve", "")
    assert answer.outcome is ActOutcome.FAILED
    daemon.store.fail_with(None)
    await trio.sleep(600)
    assert machine.calls == []


async def test_while_the_store_is_away_nobody_is_touched_and_then_the_dead_come_back(
    daemon: Daemon, machine: Machine, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(daemon.run)

    away = MemoryActions.fail_with
    away(daemon.store, StoreUnavailable("away"))

    machine.end(ADA)
    await trio.sleep(600)
    assert machine.calls == []
    away(daemon.store, None)
    await trio.sleep(30)
    assert started(machine) == [ADA]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", [1, 2, 4, 5, 7, 9, 12, 15, 16, 18, 20])
async def test_a_daemon_that_dies_in_mid_restart_is_followed_by_one_that_ends_it(
    machine: Machine,
    now_utc: NowUtc,
    autojump_clock: Clock,
    nursery: trio.Nursery,
    *,
    at: int,
    after: bool,
) -> None:
    """Exactly one new incarnation, nothing open, nobody else touched."""
    first = another(machine, now_utc)
    machine.forgetful = True
    first.cuts = Cuts(at, after=after)
    first.restarter = first.make_restarter()

    async def until_the_cut() -> None:
        try:
            await first.run()
        except* PowerCut:
            pass

    nursery.start_soon(until_the_cut)
    await trio.sleep(30)
    machine.end(ADA)
    await trio.sleep(10)
    first.scope.cancel()
    await trio.sleep(1)
    second = Daemon(machine, first.store, now_utc, first.agents, owner="second")
    await nursery.start(second.run)
    await trio.sleep(400)
    rows = await second.rows()
    assert [agent for agent, _, _ in machine.starts] == [ADA], first.cuts.calls
    assert machine.doubled == []
    assert all(row.ended for row in rows)
    assert not machine.destroyed(BOB)
    assert machine.workers[ADA].epoch == max(row.next_epoch for row in rows)
    assert second.view.value.hands.lives[ADA].state is AgentState.RUNNING


async def test_the_lease_of_a_daemon_that_is_no_more_holds_nobody_up(
    machine: Machine, now_utc: NowUtc, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """Its agent is down already: it comes back at once, and not when the lease runs out."""
    first = another(machine, now_utc)
    first.cuts = Cuts(12, after=True)
    first.restarter = first.make_restarter()

    async def until_the_cut() -> None:
        try:
            await first.run()
        except* PowerCut:
            pass

    nursery.start_soon(until_the_cut)
    await trio.sleep(30)
    machine.end(ADA)
    await trio.sleep(10)
    first.scope.cancel()
    await trio.sleep(1)
    assert ADA not in machine.workers
    second = Daemon(
        machine,
        first.store,
        now_utc,
        first.agents,
        owner="second",
        predecessors=frozenset({"first"}),
    )
    await nursery.start(second.run)
    await trio.sleep(15)
    assert started(machine) == [ADA]
    assert second.view.value.hands.lives[ADA].state is AgentState.RUNNING


async def test_two_daemons_on_one_store_restart_an_agent_once(
    daemon: Daemon, machine: Machine, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(daemon.run)
    second = Daemon(machine, daemon.store, daemon.now_utc, daemon.agents, owner="second")
    await nursery.start(second.run)
    told = machine.on_end

    def both(agent: AgentId, worker: object, exit_: Exit) -> None:
        daemon.ended(agent, worker, exit_)  # type: ignore[arg-type]
        told(agent, worker, exit_)  # type: ignore[arg-type]

    machine.on_end = both
    machine.end(ADA)
    await trio.sleep(400)
    assert started(machine) == [ADA]
    assert all(row.ended for row in await daemon.rows())
    assert [row.state for row in await daemon.rows()].count(S.SUCCEEDED) == 1


async def test_what_comes_next_is_said_with_its_time_and_setting(
    daemon: Daemon, machine: Machine, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(daemon.run)
    told = daemon.restarter.forecast(ADA, trio.current_time())
    assert told is not None
    assert (told.move, told.supposing, told.in_s) == (Move.RESTART, "it_died_now", 0.0)
    machine.end(ADA, CRASH)
    await trio.sleep(30)
    machine.end(ADA, CRASH)
    await trio.sleep(1)
    told = daemon.restarter.forecast(ADA, trio.current_time())
    assert told is not None
    assert (told.move, told.why, told.setting) == (Move.WAIT, "backoff", "restarts.backoff")
    assert told.in_s is not None
    due_at = trio.current_time() + told.in_s
    await trio.sleep(told.in_s + 60)
    assert machine.started_at[1] == pytest.approx(due_at, abs=4)
    assert daemon.restarter.forecast(AgentId("nobody"), trio.current_time()) is None


async def test_a_hold_that_the_daemon_placed_names_the_daemon(
    daemon: Daemon, machine: Machine, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    settings = limits(daemon.settings, burst=1)
    daemon.settings = settings
    daemon.restarter = daemon.make_restarter()
    await nursery.start(daemon.run)
    machine.end(ADA, CRASH)
    await trio.sleep(30)
    machine.end(ADA, CRASH)
    await trio.sleep(60)
    placed = [f.hold for f in daemon.told if isinstance(f, HoldPlaced)]
    assert [(hold.kind, hold.subject, hold.by) for hold in placed] == [
        (K.QUARANTINE, "ada", "custosd")
    ]
