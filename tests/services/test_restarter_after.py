"""Orders that nobody waits for, agents that are gone, and concerns after our own restart."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
import trio
import trio.testing
from tests.services.restart_stage import ADA, BOB, Daemon, Machine, limits
from tests.services.test_restarter import another, started

from custosd.core.facts import ConcernResolved, Escalated
from custosd.core.holds import HoldKind
from custosd.core.restarts import Cause, RestartState
from custosd.services.restarter import ORDER_LAPSES_S, RestarterSettings

Clock = trio.testing.MockClock
NowUtc = Callable[[], datetime]


@pytest.fixture
def machine() -> Machine:
    return Machine()


def concerns(daemon: Daemon) -> set[str]:
    return set(daemon.view.value.hands.concerns)


async def test_an_order_whose_asker_gave_up_is_carried_out_soon_or_never(
    machine: Machine, now_utc: NowUtc, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """The store has it, and answers too late: it is an order like any other, and not a mine."""
    daemon = another(machine, now_utc)
    await nursery.start(daemon.run)
    await trio.sleep(30)
    write = daemon.store.intend_restart

    async def late(restart):  # type: ignore[no-untyped-def]
        stored = await write(restart)
        await trio.sleep(60)
        return stored

    daemon.store.intend_restart = late  # type: ignore[method-assign]
    with trio.move_on_after(5):
        await daemon.restarter.order(ADA, "uid:0", "")
    daemon.store.intend_restart = write  # type: ignore[method-assign]
    await trio.sleep(120)
    assert started(machine) == [ADA]
    assert [row.state for row in await daemon.rows()] == [RestartState.SUCCEEDED]


async def test_an_order_that_nobody_began_lapses_while_we_are_away(
    machine: Machine, now_utc: NowUtc, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    first = another(machine, now_utc)
    await nursery.start(first.run)
    await trio.sleep(30)
    first.scope.cancel()
    await trio.sleep(1)
    told = first.restarter._intent(ADA, Cause.REQUESTED, "uid:0", "")
    old = replace(told, intended_utc=now_utc() - timedelta(seconds=ORDER_LAPSES_S + 1))
    assert await first.store.intend_restart(old) is not None
    second = Daemon(machine, first.store, now_utc, first.agents, owner="second")
    await nursery.start(second.run)
    await trio.sleep(300)
    assert machine.starts == []
    assert [row.state for row in await second.rows()] == [RestartState.ABANDONED]


async def test_nobody_is_asked_about_an_agent_that_is_watched_no_longer(
    machine: Machine, now_utc: NowUtc, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    daemon = another(machine, now_utc)
    daemon.uncontrolled = frozenset({ADA})
    daemon.restarter = daemon.make_restarter()
    await nursery.start(daemon.run)
    await trio.sleep(30)
    machine.end(ADA)
    await trio.sleep(120)
    assert concerns(daemon) == {f"life:{ADA}"}
    daemon.lives.dismiss(ADA)
    await trio.sleep(120)
    assert concerns(daemon) == set()
    assert ADA not in daemon.view.value.hands.lives
    assert BOB in daemon.view.value.hands.lives
    assert any(
        isinstance(fact, ConcernResolved) and fact.reason == "dismissed" for fact in daemon.told
    )


async def test_whoever_has_to_wait_long_for_a_budget_is_somebodys_business(
    machine: Machine, now_utc: NowUtc, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """Twenty die at once; five may come back at once, then one a minute."""
    daemon = another(machine, now_utc, agents=20)
    daemon.settings = limits(RestarterSettings(), common_cause=1000)
    daemon.restarter = daemon.make_restarter()
    await nursery.start(daemon.run)
    await trio.sleep(30)
    for agent in list(machine.workers):
        machine.end(agent)
    await trio.sleep(60)
    asked = {name for name in concerns(daemon) if name.startswith("life:")}
    # The next five have their turn within five minutes; nobody is asked about them.
    assert len(asked) == 20 - len(machine.starts) - 5
    await trio.sleep(20 * 60)
    assert concerns(daemon) == set()
    assert len(machine.starts) == 20


async def test_a_person_is_still_asked_about_a_quarantine_after_our_own_restart(
    machine: Machine, now_utc: NowUtc, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    first = another(machine, now_utc)
    first.settings = limits(RestarterSettings(), burst=1, common_cause=1000)
    first.restarter = first.make_restarter()
    await nursery.start(first.run)
    await trio.sleep(30)
    machine.stillborn.add(ADA)
    machine.end(ADA)
    await trio.sleep(600)
    assert first.holds.get(HoldKind.QUARANTINE, ADA) is not None
    assert f"quarantine:{ADA}" in concerns(first)
    first.scope.cancel()
    await trio.sleep(1)
    second = Daemon(machine, first.store, now_utc, first.agents, owner="second")
    await nursery.start(second.run)
    await trio.sleep(30)
    assert f"quarantine:{ADA}" in concerns(second)
    asked = [fact for fact in second.told if isinstance(fact, Escalated)]
    assert [fact.concern for fact in asked].count(f"quarantine:{ADA}") == 1
