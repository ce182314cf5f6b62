"""Landed work ends its task and tells its agent, once, whatever dies or comes twice."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from tests.contracts.store_values import MINUTE
from tests.contracts.sync_contract import commit, link, pull
from tests.services.steering_stage import ACT, ADA, OBSERVE, SUGGEST, Stage
from tests.services.sync_stage import Crash, Crew, World, landed

from custosd.adapters.memory_actions import virtual_utc
from custosd.adapters.memory_sync import MemorySync
from custosd.adapters.memory_tasks import MemoryTasks
from custosd.core.agents import AgentId
from custosd.core.errors import StoreRefused, StoreUnavailable
from custosd.core.facts import ConcernResolved, Escalated, TaskChanged, WorkLanded, WorkLinked
from custosd.core.forge import Closing, Told, WorkState
from custosd.core.steering import InterventionState
from custosd.core.steering_policy import SteeringLimits
from custosd.core.tasks import AUTHORITY, ClaimRequest, NewTask, TaskId, TaskState
from custosd.services.fleet_tasks import FleetTasks
from custosd.services.landing import RETRY_S, keep_landings
from custosd.services.tasks import TaskDesk, TaskTimes

BOB = AgentId("bob")
Clock = trio.testing.MockClock
Now = Callable[[], datetime]


async def test_merged_work_ends_its_task_and_tells_its_agent_once(
    autojump_clock: Clock,
) -> None:
    world = World(virtual_utc)
    await world.give("T-1")
    work = landed(virtual_utc(), "T-1", "T-404")
    headers, body = world.forge.signed("d1", work)
    assert await world.sync.receive("memory", headers, body) == 1
    for _ in range(3):
        await world.look()
    assert await world.state("T-1") == "succeeded"
    ((_, by, _), text), *more = world.crew.letters.items()
    assert more == []
    assert by == "sync:memory"
    assert text.startswith("Task T-1 is done: pull request 1 of ada/engine has landed")
    assert world.facts(WorkLanded) == [
        WorkLanded(TaskId("T-1"), work.repository, work.kind, "1", Told.QUEUED, ADA)
    ]
    assert [fact.task for fact in world.facts(WorkLinked)] == ["T-1"]
    (task,) = (await world.tasks.tasks({TaskId("T-1")})).values()
    assert task.result == f"landed: {work.url}"


@pytest.mark.parametrize(
    "state", [WorkState.OPEN, WorkState.CLOSED, WorkState.MERGED], ids=lambda state: state.value
)
async def test_what_has_not_landed_ends_nothing(autojump_clock: Clock, state: WorkState) -> None:
    world = World(virtual_utc)
    await world.give("T-1")
    at_utc = virtual_utc() + MINUTE
    work = pull("1", state, at_utc, links=(link("T-1"),))
    # Merged, but into no main branch.
    world.forge.put(replace(work, landed=False, landed_utc=None))
    await world.sync.sweep()
    await world.look()
    assert await world.state("T-1") == "claimed"
    assert [fact.task for fact in world.facts(WorkLinked)] == ["T-1"]


async def test_a_commit_ends_only_what_it_says_it_closes(autojump_clock: Clock) -> None:
    world = World(virtual_utc)
    await world.give("T-1")
    await world.give("T-2")
    at_utc = virtual_utc() + MINUTE
    work = replace(
        commit("c1", "main", landed=True),
        updated_utc=at_utc,
        landed_utc=at_utc,
        links=(link("T-1", closes=False), link("T-2", closes=True)),
    )
    world.forge.put(work)
    await world.sync.sweep()
    await world.look()
    assert [await world.state(task) for task in ("T-1", "T-2")] == ["claimed", "succeeded"]


async def test_what_landed_before_a_task_was_made_does_not_end_it(autojump_clock: Clock) -> None:
    world = World(virtual_utc)
    await world.give("T-1")
    world.forge.put(landed(virtual_utc(), "T-1", minutes=-1))
    await world.sync.sweep()
    await world.look()
    assert await world.state("T-1") == "claimed"


async def test_what_landed_in_the_second_in_which_a_task_was_made_ends_it(
    autojump_clock: Clock,
) -> None:
    """Forges tell whole seconds."""
    world = World(virtual_utc)
    await trio.sleep(0.75)
    await world.give("T-1")
    work = landed(virtual_utc(), "T-1")
    assert work.landed_utc is not None
    world.forge.put(replace(work, landed_utc=virtual_utc().replace(microsecond=0)))
    await world.sync.sweep()
    await world.look()
    assert await world.state("T-1") == "succeeded"


async def test_a_word_about_what_has_landed_and_was_told_does_nothing_more(
    autojump_clock: Clock,
) -> None:
    """A title that is changed, or a second task named: the end of the first is not told again."""
    world = World(virtual_utc)
    await world.give("T-1")
    work = landed(virtual_utc(), "T-1")
    world.forge.put(work)
    await world.sync.sweep()
    await world.look()
    assert len(world.facts(WorkLanded)) == 1
    completed = list(world.crew.completed)
    world.crew.letters.clear()
    later = work.updated_utc + timedelta(minutes=5)
    world.forge.put(replace(work, title="Another title", updated_utc=later))
    assert (await world.sync.sweep()).changed == 1
    await world.look()
    assert len(world.facts(WorkLanded)) == 1
    assert (world.crew.completed, world.crew.letters) == (completed, {})


async def test_who_ended_it_before_is_told_nothing(autojump_clock: Clock) -> None:
    world = World(virtual_utc)
    await world.give("T-1")
    await world.crew.complete(TaskId("T-1"), "ada", "done by myself")
    await world.give("T-2", agent=None)
    world.forge.put(landed(virtual_utc(), "T-1", "T-2"))
    await world.sync.sweep()
    await world.look()
    assert await world.state("T-2") == "succeeded"
    assert world.crew.letters == {}
    assert {fact.told for fact in world.facts(WorkLanded)} == {Told.NOBODY}


async def test_who_ends_it_meanwhile_is_told_nothing(autojump_clock: Clock) -> None:
    class Overtaken(Crew):
        async def complete(self, task: TaskId, by: str, result: str) -> bool:
            await self.store.complete(task, AUTHORITY, "done by myself")
            return await super().complete(task, by, result)

    world = World(virtual_utc)
    world.crew = Overtaken(world.tasks)
    world.hire()
    await world.give("T-1")
    world.forge.put(landed(virtual_utc(), "T-1"))
    await world.sync.sweep()
    await world.look()
    assert await world.state("T-1") == "succeeded"
    assert world.crew.letters == {}


async def test_who_claims_meanwhile_is_the_one_who_is_told(autojump_clock: Clock) -> None:
    """Between what was read of the tasks and the end of one of them another has claimed it."""

    class Overtaken(Crew):
        async def complete(self, task: TaskId, by: str, result: str) -> bool:
            if task not in self.completed:
                await self.store.claim(ClaimRequest(BOB, 600.0))
            return await super().complete(task, by, result)

    world = World(virtual_utc)
    world.crew = Overtaken(world.tasks)
    world.hire()
    await world.give("T-1", agent=None)
    world.forge.put(landed(virtual_utc(), "T-1"))
    await world.sync.sweep()
    await world.look()
    assert [agent for agent, _, _ in world.crew.letters] == [BOB]
    assert [(fact.agent, fact.told) for fact in world.facts(WorkLanded)] == [(BOB, Told.QUEUED)]
    assert [closing.agent for closing in await world.store.closings(10)] == [BOB]


async def test_after_an_outage_the_one_who_has_the_task_by_then_is_told(
    autojump_clock: Clock,
) -> None:
    """The end was written while Ada had it; her lease ran out before anybody went on."""
    world = World(virtual_utc)
    await world.give("T-1")
    world.forge.put(landed(virtual_utc(), "T-1"))
    await world.sync.sweep()
    world.fuse.at, world.fuse.after = world.fuse.steps + 1, True
    with pytest.raises(Crash):
        await world.look()
    world.fuse.at = -1
    await trio.sleep(4_000)
    await world.tasks.expire()
    await trio.sleep(60)
    assert (await world.tasks.claim(ClaimRequest(BOB, 600.0))).tasks
    world.hire()
    await world.look()
    assert [agent for agent, _, _ in world.crew.letters] == [BOB]


async def test_a_blocked_task_is_ended_and_frees_who_waited(autojump_clock: Clock) -> None:
    world = World(virtual_utc)
    await world.give("T-1", agent=None)
    new = [NewTask(TaskId(f"T-{n}"), "x", depends_on=(TaskId(f"T-{n - 1}"),)) for n in (2, 3)]
    await world.tasks.add(new, "eve")
    world.forge.put(landed(virtual_utc(), "T-2"))
    await world.sync.sweep()
    await world.look()
    states = [await world.state(f"T-{n}") for n in (1, 2, 3)]
    assert states == ["ready", "succeeded", "ready"]


async def test_who_can_not_be_told_now_is_told_later(autojump_clock: Clock) -> None:
    world = World(virtual_utc)
    await world.give("T-1")
    world.crew.answer = None
    world.forge.put(landed(virtual_utc(), "T-1"))
    async with trio.open_nursery() as nursery:
        await nursery.start(keep_landings, world.landing, world.pulse)
        with capture_logs() as lines:
            await world.sync.sweep()
            await trio.sleep(RETRY_S * 3 + 1)
        assert world.facts(WorkLanded) == []
        assert "agent.untold" in {line["event"] for line in lines}
        world.crew.answer = Told.PROPOSED
        await trio.sleep(RETRY_S)
        assert [fact.told for fact in world.facts(WorkLanded)] == [Told.PROPOSED]
        nursery.cancel_scope.cancel()


async def test_one_that_is_stuck_does_not_hold_the_others(autojump_clock: Clock) -> None:
    world = World(virtual_utc)
    await world.give("T-1")
    await world.give("T-2", agent=None)
    world.crew.answer = None
    world.forge.put(landed(virtual_utc(), "T-1", key="1"), landed(virtual_utc(), "T-2", key="2"))
    await world.sync.sweep()
    await world.look()
    assert [fact.task for fact in world.facts(WorkLanded)] == ["T-2"]


async def test_one_that_the_database_refuses_holds_up_no_other(autojump_clock: Clock) -> None:
    """It is said once, a person is told, and when it is over."""

    class Refusing(MemorySync):
        refuses = True

        async def intend(self, closing: Closing) -> Closing:
            if closing.key == "1" and self.refuses:
                raise StoreRefused("no")
            return await super().intend(closing)

    store = Refusing()
    world = World(virtual_utc, store=store)
    await world.give("T-1")
    await world.give("T-2")
    for key in ("1", "2"):
        world.forge.put(landed(virtual_utc(), f"T-{key}", key=key))
    await world.sync.sweep()
    with capture_logs() as lines:
        for _ in range(3):
            await world.look()
    assert [await world.state(task) for task in ("T-1", "T-2")] == ["claimed", "succeeded"]
    assert [line["event"] for line in lines].count("work.refused") == 1
    (told,) = world.facts(Escalated)
    store.refuses = False
    await world.look()
    assert await world.state("T-1") == "succeeded"
    assert [fact.concern for fact in world.facts(ConcernResolved)] == [told.concern]


async def test_a_database_that_is_away_is_waited_for(autojump_clock: Clock) -> None:
    world = World(virtual_utc)
    await world.give("T-1")
    world.forge.put(landed(virtual_utc(), "T-1"))
    await world.sync.sweep()
    async with trio.open_nursery() as nursery:
        world.tasks.fail_with(StoreUnavailable("gone"))
        await nursery.start(keep_landings, world.landing, world.pulse)
        await trio.sleep(20)
        assert world.facts(WorkLanded) == []
        world.tasks.fail_with(None)
        await trio.sleep(RETRY_S)
        assert len(world.facts(WorkLanded)) == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("after", [False, True])
async def test_a_kill_at_any_step_ends_and_tells_once(
    autojump_clock: Clock, *, after: bool
) -> None:
    """Killed before and after each write: of hook, link, end, letter, and what is noted."""
    for at in range(1, 30):
        world = World(virtual_utc)
        await world.give("T-1")
        hook = world.forge.signed("d1", landed(virtual_utc(), "T-1"))
        world.forge.put(landed(virtual_utc(), "T-1"))
        world.fuse.at, world.fuse.after = at, after
        killed = False
        try:
            await world.sync.receive("memory", *hook)
            await world.look()
        except Crash:
            killed = True
        # The next daemon; the same work comes by a poll, and changed once more after that.
        world.fuse.at = -1
        world.hire()
        await world.sync.sweep()
        await world.look()
        later = replace(landed(virtual_utc(), "T-1", minutes=9.0), title="said again")
        world.forge.put(replace(later, landed_utc=virtual_utc() + timedelta(minutes=1)))
        await world.sync.sweep()
        await world.look()
        assert await world.state("T-1") == "succeeded"
        assert world.crew.completed == [TaskId("T-1")]
        assert len(world.crew.letters) == 1
        assert len(await world.store.closings(10)) == 1
        if not killed:
            assert at > 5
            return
    raise AssertionError("it has more steps than were tried")


# with the real desk and the real steerer


@pytest.mark.parametrize(
    ("limits", "told", "arrives"),
    [(ACT, Told.QUEUED, True), (SUGGEST, Told.PROPOSED, False), (OBSERVE, Told.PROPOSED, False)],
    ids=["act", "suggest", "observe"],
)
async def test_agents_are_told_as_the_mode_of_steering_allows(
    autojump_clock: Clock, limits: SteeringLimits, told: Told, *, arrives: bool
) -> None:
    stage = Stage(virtual_utc, limits)
    store = MemoryTasks()
    desk = TaskDesk(store, stage.view, stage.facts_in, TaskTimes(), virtual_utc)
    fleet = FleetTasks(store, desk, stage.steerer)
    await store.add([NewTask(TaskId("T-1"), "x")], "eve")
    await store.claim(ClaimRequest(ADA, 600.0))
    async with trio.open_nursery() as nursery:
        await nursery.start(stage.run)
        stage.meet(ADA)
        assert await fleet.complete(TaskId("T-1"), "sync:github", "landed: x")
        assert await fleet.complete(TaskId("T-1"), "sync:github", "landed: x")
        for _ in range(2):
            answer = await fleet.inform(ADA, "It is done.", "sync:github", "k")
            assert answer == (told, "")
        await trio.sleep(30)
        (item,) = await stage.stored(ADA)
        assert stage.arrived() == ([item.id] if arrives else [])
        assert item.proposed_by == "sync:github"
        changed = [fact for fact in stage.told if isinstance(fact, TaskChanged)]
        assert [(fact.task, fact.after) for fact in changed] == [("T-1", TaskState.SUCCEEDED)]
        if limits is SUGGEST:
            await stage.steerer.approve(item.id, "uid:0")
            await trio.sleep(5)
            assert stage.arrived() == [item.id]
        if limits is OBSERVE:
            await trio.sleep(limits.ttl_s + 60)
            assert await stage.states(ADA) == [InterventionState.EXPIRED]
            assert stage.concerns() == set()
        nursery.cancel_scope.cancel()


async def test_an_agent_without_a_channel_is_not_waited_for(autojump_clock: Clock) -> None:
    stage = Stage(virtual_utc)
    fleet = FleetTasks(None, None, stage.steerer)
    async with trio.open_nursery() as nursery:
        await nursery.start(stage.run)
        del stage.channels[ADA]
        stage.meet(ADA)
        told, why = await fleet.inform(ADA, "It is done.", "sync:github", "k")
        assert told is Told.REFUSED
        assert "no channel" in why
        nursery.cancel_scope.cancel()
    assert await fleet.find({TaskId("T-1")}) == {}
    assert await fleet.complete(TaskId("T-1"), "sync:github", "")


async def test_before_the_steerer_knows_its_messages_nobody_is_told(
    autojump_clock: Clock,
) -> None:
    stage = Stage(virtual_utc)
    fleet = FleetTasks(None, None, stage.steerer)
    stage.meet(ADA)
    told, _ = await fleet.inform(ADA, "It is done.", "sync:github", "k")
    assert told is None
