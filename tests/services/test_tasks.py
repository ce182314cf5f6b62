"""The desk and the keeper of tasks: authors, leases by due time, the dead, persons told."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from tests.contracts.task_contract import new

from custosd.adapters.memory_actions import virtual_utc
from custosd.adapters.memory_tasks import MemoryTasks
from custosd.core.acts import Act, ActAnswer, ActOutcome, ActRequest
from custosd.core.agents import AgentId, AgentState
from custosd.core.errors import StoreConflict, StoreRefused, StoreUnavailable
from custosd.core.evidence import Condition, Value
from custosd.core.facts import ConcernResolved, Escalated, Fact, TaskChanged
from custosd.core.lives import LifeView
from custosd.core.task_forms import Asker
from custosd.core.tasks import FailureKind, Task, TaskChange, TaskId, TaskQuery, TaskState
from custosd.core.view import FleetView, Hands
from custosd.flow.latest import Latest
from custosd.flow.pulse import Pulse
from custosd.services.tasks import (
    LOOK_S,
    NOTICE_S,
    ActsAndTasks,
    TaskDesk,
    TaskTimes,
    gone_epochs,
    keep_tasks,
)

Clock = trio.testing.MockClock
O = ActOutcome  # noqa: E741 - as its fellows
S = TaskState
ADA = AgentId("ada")
LATEST, FIRST = "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"
"""Times that there are not in UTC."""
BOSS = Asker("uid:0 (eve)", commands=True, reads=True)
WORKER = Asker("token:ada", speaks_for=lambda agent: agent == ADA)


def life(
    epoch: int = 1,
    condition: Condition = Condition.ALIVE,
    state: AgentState = AgentState.RUNNING,
) -> LifeView:
    return LifeView(ADA, epoch, state, condition, Value.OK, "", virtual_utc())


class Bench:
    """A desk and its keeper over a memory store."""

    def __init__(self) -> None:
        self.store = MemoryTasks()
        self.view = Latest(FleetView())
        self.facts_in, self.facts = trio.open_memory_channel[Fact](1_000)
        self.desk = TaskDesk(self.store, self.view, self.facts_in, TaskTimes(), virtual_utc)

    async def add(self, *names: str, **more: Any) -> None:
        await self.store.add([new(name, **more) for name in names], "eve")

    async def __call__(self, operation: str, asker: Asker = BOSS, **form: Any) -> ActAnswer:
        return await self.desk.ask(operation, form, asker)

    async def claimed(self, **more: Any) -> dict[str, Any]:
        answer = await self("claim", agent="ada", **more)
        [task] = answer.detail["tasks"]  # type: ignore[misc]
        return task

    async def state(self, id_: str) -> TaskState:
        return (await self.store.tasks([TaskId(id_)]))[TaskId(id_)].state

    def sees(self, *lives: LifeView) -> None:
        found: Mapping[AgentId, LifeView] = {one.agent: one for one in lives}
        hands = Hands(lives=MappingProxyType(dict(found)))
        self.view.publish(replace(self.view.value, hands=hands))

    def told(self) -> list[Fact]:
        found: list[Fact] = []
        while True:
            try:
                found.append(self.facts.receive_nowait())
            except trio.WouldBlock:
                return found


@pytest.fixture
async def bench(autojump_clock: Clock) -> Bench:
    return Bench()


@pytest.fixture
async def kept(bench: Bench, nursery: trio.Nursery) -> Bench:
    """The bench with its keeper at work."""
    pulse = Pulse("tasks", trio.current_time())
    await nursery.start(keep_tasks, bench.desk, bench.view, pulse)
    await trio.testing.wait_all_tasks_blocked()
    return bench


async def test_every_change_is_told_with_its_author(bench: Bench, autojump_clock: Clock) -> None:
    tasks = [{"id": "a", "title": "A"}, {"id": "b", "title": "B", "depends_on": ["a"]}]
    assert (await bench("add", tasks=tasks)).outcome is O.DONE
    task = await bench.claimed()
    fence = task["claim"]["fence"]
    done = await bench("complete", WORKER, task="a", agent="ada", fence=fence)
    assert done.message == "a is succeeded"
    eve, worker = BOSS.author, WORKER.author
    a, b = TaskId("a"), TaskId("b")
    assert bench.told() == [
        TaskChanged(a, None, S.READY, eve),
        TaskChanged(b, None, S.BLOCKED, eve),
        TaskChanged(a, S.READY, S.CLAIMED, eve, ADA, 1),
        TaskChanged(a, S.CLAIMED, S.SUCCEEDED, worker, ADA, 1),
        TaskChanged(b, S.BLOCKED, S.READY, worker),
    ]
    again = await bench("complete", WORKER, task="a", agent="ada", fence=fence)
    assert again.detail["repeated"]
    assert bench.told() == []


@pytest.mark.parametrize(
    ("operation", "asker", "form", "error"),
    [
        ("explode", BOSS, {}, "malformed"),
        ("add", BOSS, {"tasks": []}, "malformed"),
        ("add", BOSS, {"tasks": [{"id": "x", "title": "X", "prio": "high"}]}, "malformed"),
        ("add", BOSS, {"tasks": [{"id": "x", "title": "X", "priority": "urgent"}]}, "malformed"),
        ("add", BOSS, {"tasks": [{"id": "x", "title": "X", "deadline": "noon"}]}, "malformed"),
        ("add", BOSS, {"tasks": [{"id": "x", "title": "X", "deadline": LATEST}]}, "malformed"),
        ("add", BOSS, {"tasks": [{"id": "x", "title": "X", "not_before": FIRST}]}, "malformed"),
        ("add", WORKER, {"tasks": [{"id": "x", "title": "X"}]}, "denied"),
        ("list", BOSS, {"after": "zed"}, "unknown_task"),
        ("cancel", WORKER, {"tasks": ["a"]}, "denied"),
        ("link", WORKER, {"edges": [["a", "b"]]}, "denied"),
        ("list", WORKER, {}, "denied"),
        ("claim", WORKER, {"agent": "bob"}, "denied"),
        ("claim", WORKER, {}, "denied"),
        ("claim", BOSS, {"agent": "ada", "limit": True}, "malformed"),
        ("claim", BOSS, {"agent": "ada", "limits": 1}, "malformed"),
        ("complete", WORKER, {"task": "a", "agent": "ada"}, "malformed"),
        ("complete", WORKER, {"task": "a", "agent": "bob", "fence": 1}, "denied"),
        ("complete", WORKER, {"task": "a", "agent": "ada", "fence": 1}, "lost"),
        ("fail", BOSS, {"task": "a", "kind": "timeout"}, "malformed"),
        ("show", BOSS, {"tasks": ["zed"]}, "unknown_task"),
        ("assigned", WORKER, {"agents": ["bob"]}, "denied"),
        ("link", BOSS, {"edges": [["a", "a"]]}, "cycle"),
    ],
)
async def test_what_may_not_be_done_or_makes_no_sense_changes_nothing(
    bench: Bench,
    autojump_clock: Clock,
    operation: str,
    asker: Asker,
    form: dict[str, Any],
    error: str,
) -> None:
    await bench.add("a", "b")
    answer = await bench(operation, asker, **form)
    assert answer.outcome in {O.REFUSED, O.UNKNOWN_SUBJECT}
    assert answer.detail["error"] == error
    assert bench.told() == []
    assert await bench.state("a") is S.READY


async def test_a_store_that_is_away_is_said_to_be(bench: Bench, autojump_clock: Clock) -> None:
    bench.store.fail_with(StoreUnavailable("gone"))
    answer = await bench("list")
    assert (answer.outcome, answer.detail["error"]) == (O.FAILED, "unavailable")


async def test_a_lease_that_runs_out_is_taken_back_at_its_time(
    kept: Bench, autojump_clock: Clock
) -> None:
    """And a word of the agent that lost it is refused, and says who has it by now."""
    await kept.add("a")
    task = await kept.claimed(lease_s=7)
    kept.told()
    await trio.sleep(6.9)
    assert await kept.state("a") is S.CLAIMED
    await trio.sleep(0.2)
    assert await kept.state("a") is S.READY
    [fact] = kept.told()
    assert fact == TaskChanged(
        TaskId("a"), S.CLAIMED, S.READY, "custosd", ADA, 1, FailureKind.LEASE_LOST
    )
    await trio.sleep(2)
    await kept("claim", agent="bob")
    fence = task["claim"]["fence"]
    late = await kept("complete", WORKER, task="a", agent="ada", fence=fence, result="late")
    assert (late.outcome, late.detail["error"]) == (O.REFUSED, "lost")
    assert "bob has it, under fence 2" in late.message
    assert await kept.state("a") is S.CLAIMED


async def test_a_lease_that_is_extended_in_time_stays(kept: Bench, autojump_clock: Clock) -> None:
    await kept.add("a")
    task = await kept.claimed(lease_s=7)
    for _ in range(5):
        await trio.sleep(5)
        form = {"task": "a", "agent": "ada", "fence": task["claim"]["fence"], "lease_s": 7}
        assert (await kept("extend", WORKER, **form)).outcome is O.DONE
    assert await kept.state("a") is S.CLAIMED
    await trio.sleep(7.1)
    assert await kept.state("a") is S.READY


async def test_no_lease_is_longer_than_any_may_be(kept: Bench, autojump_clock: Clock) -> None:
    """Asked for at once, or little by little."""
    longest_s = kept.desk.times.longest_lease_s
    await kept.add("a")
    task = await kept.claimed(lease_s=10 * longest_s)
    form = {"task": "a", "agent": "ada", "fence": task["claim"]["fence"]}
    await trio.sleep(longest_s - 1)
    await kept("extend", WORKER, **form, lease_s=10 * longest_s)
    await trio.sleep(longest_s - 1)
    assert await kept.state("a") is S.CLAIMED
    await trio.sleep(2)
    assert await kept.state("a") is S.READY


async def test_what_was_done_is_told_though_who_asked_is_gone(
    bench: Bench, autojump_clock: Clock
) -> None:
    """A connection that ends between the order and its facts."""
    bench.facts_in, bench.facts = trio.open_memory_channel[Fact](0)
    bench.desk = TaskDesk(bench.store, bench.view, bench.facts_in, TaskTimes(), virtual_utc)
    found: list[Fact] = []

    async def read() -> None:
        await trio.sleep(2)
        found.append(await bench.facts.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        with trio.move_on_after(1):
            await bench("add", tasks=[{"id": "a", "title": "a"}])
        nursery.cancel_scope.cancel()
    assert [fact.task for fact in found if isinstance(fact, TaskChanged)] == ["a"]


async def test_a_lease_that_another_daemon_gave_is_found(
    kept: Bench, autojump_clock: Clock
) -> None:
    await kept.add("a")
    other = TaskDesk(kept.store, kept.view, kept.facts_in, TaskTimes(), virtual_utc)
    await other.ask("claim", {"agent": "ada", "lease_s": 1}, BOSS)
    await trio.sleep(LOOK_S + 1)
    assert await kept.state("a") is S.READY


async def test_an_attempt_that_takes_too_long_is_taken_back_however_often_it_is_extended(
    kept: Bench,
    autojump_clock: Clock,
) -> None:
    await kept.add("a", timeout_s=10.0)
    task = await kept.claimed(lease_s=600)
    form = {"task": "a", "agent": "ada", "fence": task["claim"]["fence"], "lease_s": 600}
    await trio.sleep(9)
    await kept("extend", WORKER, **form)
    await trio.sleep(1.1)
    assert await kept.state("a") is S.READY
    assert FailureKind.TIMEOUT in {f.kind for f in kept.told() if isinstance(f, TaskChanged)}


async def test_the_tasks_of_an_agent_found_dead_are_free_at_once(
    kept: Bench, autojump_clock: Clock
) -> None:
    await kept.add("a", "b")
    kept.sees(life(1))
    await kept.claimed()
    kept.sees(life(1, Condition.LATE))
    await trio.sleep(1)
    assert await kept.state("a") is S.CLAIMED
    kept.sees(life(1, Condition.DEAD))
    await trio.testing.wait_all_tasks_blocked()
    assert await kept.state("a") is S.READY
    # The next incarnation claims anew, and keeps what it has when the first is seen again.
    kept.sees(life(2))
    task = await kept.claimed()
    assert task["claim"]["epoch"] == 2
    await trio.testing.wait_all_tasks_blocked()
    assert await kept.state(task["id"]) is S.CLAIMED


async def test_who_was_dead_when_we_came_is_dead_to_tasks_too(
    bench: Bench, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """A daemon killed between seeing a death and taking the tasks back: the next one does."""
    await bench.add("a")
    bench.sees(life(1))
    await bench.claimed()
    bench.sees(life(1, Condition.DEAD))
    await nursery.start(keep_tasks, bench.desk, bench.view, Pulse("tasks", 0.0))
    await trio.testing.wait_all_tasks_blocked()
    assert await bench.state("a") is S.READY


async def test_an_incarnation_that_is_over_or_in_quarantine_claims_nothing(
    bench: Bench, autojump_clock: Clock
) -> None:
    await bench.add("a")
    bench.sees(life(3))
    assert (await bench("claim", agent="ada", epoch=2)).detail["error"] == "old_epoch"
    bench.sees(life(3, state=AgentState.QUARANTINED))
    assert (await bench("claim", agent="ada")).detail["error"] == "quarantined"
    assert await bench.state("a") is S.READY


async def test_whose_incarnations_are_over(autojump_clock: Clock) -> None:
    dead, quit_ = Condition.DEAD, AgentState.TERMINATED
    for one, expected in (
        (life(0), -1),
        (life(2), 1),
        (life(2, dead), 2),
        (life(2, Condition.HUNG), 1),
        (life(2, Condition.UNKNOWN), 1),
        (life(2, state=quit_), 2),
    ):
        assert gone_epochs({ADA: one}) == {ADA: expected}


async def test_a_task_that_failed_for_good_is_a_persons_concern_for_a_day(
    kept: Bench, autojump_clock: Clock
) -> None:
    await kept.store.add([new("a"), new("b", "a"), new("c", "b")], "eve")
    task = await kept.claimed()
    kept.told()
    fence = task["claim"]["fence"]
    form = {"task": "a", "agent": "ada", "fence": fence, "kind": "permanent", "reason": "secret"}
    await kept("fail", WORKER, **form)
    concern = "task:a"
    words = "task a failed for good (permanent); 2 that waited for it with it"
    found = kept.told()
    assert [fact for fact in found if isinstance(fact, Escalated)] == [
        Escalated(concern, "task_failed", ADA, words)
    ]
    assert "secret" not in str(found)
    await trio.sleep(NOTICE_S + 1)
    assert kept.told() == [ConcernResolved(concern, "a day has passed")]


async def test_a_concern_is_told_before_all_that_fell(bench: Bench, autojump_clock: Clock) -> None:
    """Also where nobody reads the facts, and there is not room for all of them."""
    fallen = [new(f"a{number:04}", "z-root") for number in range(1_500)]
    await bench.store.add([new("z-root"), *fallen], "eve")
    with structlog.testing.capture_logs() as logged:
        await bench("fail", task="z-root")
    found = bench.told()
    assert [type(fact) for fact in found[:3]] == [Escalated, TaskChanged, TaskChanged]
    assert [fact.task for fact in found[1:3]] == ["z-root", "a0000"]  # type: ignore[attr-defined]
    untold = [line["changes"] for line in logged if line["event"] == "task.untold"]
    assert untold == [1_501 + 1 - len(found)]


async def test_a_concern_without_room_is_told_once_there_is_some(
    kept: Bench, autojump_clock: Clock
) -> None:
    await kept.add("a")
    for _ in range(1_000):
        kept.facts_in.send_nowait(Escalated("filler", "filler", None, ""))
    await kept("fail", task="a")
    assert {fact.concern for fact in kept.told()} == {"filler"}  # type: ignore[attr-defined]
    await trio.sleep(1)
    assert [fact.concern for fact in kept.told()] == ["task:a"]  # type: ignore[attr-defined]
    await trio.sleep(NOTICE_S + 1)
    assert kept.told() == [ConcernResolved("task:a", "a day has passed")]


async def test_what_failed_before_we_came_is_a_concern_for_the_rest_of_its_day(
    bench: Bench, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await bench.add("a", "old")
    await bench("fail", task="old")
    await trio.sleep(NOTICE_S - 10)
    await bench("fail", task="a")
    bench.told()
    later = TaskDesk(bench.store, bench.view, bench.facts_in, TaskTimes(), virtual_utc)
    await nursery.start(keep_tasks, later, bench.view, Pulse("tasks", 0.0))
    await trio.sleep(11)
    assert [type(fact) for fact in bench.told()] == [Escalated, Escalated, ConcernResolved]


async def test_what_fell_with_it_hides_no_concern_from_the_next_daemon(
    bench: Bench, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    fallen = [new(f"t{number:04}", "root") for number in range(1_100)]
    await bench.store.add([new("root"), *fallen], "eve")
    await bench("fail", task="root")
    bench.told()
    later = TaskDesk(bench.store, bench.view, bench.facts_in, TaskTimes(), virtual_utc)
    await nursery.start(keep_tasks, later, bench.view, Pulse("tasks", 0.0))
    await trio.sleep(1)
    concerns = {fact.concern for fact in bench.told() if isinstance(fact, Escalated)}
    assert len(concerns) == 1
    assert "task:root" in concerns


async def test_a_store_that_is_away_is_told_of_once_and_kept_asking(
    kept: Bench, autojump_clock: Clock
) -> None:
    await kept.add("a")
    await kept.claimed(lease_s=7)
    with structlog.testing.capture_logs() as logged:
        kept.store.fail_with(StoreUnavailable("gone"))
        await trio.sleep(60)
        kept.store.fail_with(None)
        await trio.sleep(6)
    events = [line["event"] for line in logged if line["event"].startswith("store.")]
    assert events == ["store.lost", "store.returned"]
    assert await kept.state("a") is S.READY


async def test_what_the_database_refuses_keeps_no_other_lease_from_ending(
    bench: Bench, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """Neither a refused recall nor a refused release; and that is no absence of the store."""

    class Refusing(MemoryTasks):
        async def find(self, query: TaskQuery) -> tuple[Task, ...]:
            raise StoreRefused("no")

        async def release(self, dead: Mapping[AgentId, int]) -> tuple[TaskChange, ...]:
            raise StoreRefused("no")

    bench.store = store = Refusing()
    bench.desk = TaskDesk(store, bench.view, bench.facts_in, TaskTimes(), virtual_utc)
    await bench.add("a")
    await bench.claimed(lease_s=7)
    bench.sees(life(condition=Condition.DEAD))
    with structlog.testing.capture_logs() as logged:
        await nursery.start(keep_tasks, bench.desk, bench.view, Pulse("tasks", 0.0))
        await trio.sleep(8)
    assert await bench.state("a") is S.READY
    events = {line["event"] for line in logged}
    assert "store.refused" in events
    assert "store.lost" not in events


async def test_what_another_transaction_was_in_the_way_of_is_done_all_the_same(
    bench: Bench, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """By the desk and by the keeper; and that is no absence of the store."""

    class Crossed(MemoryTasks):
        crossings = 2

        async def _reach(self) -> None:
            await super()._reach()
            self.crossings -= 1
            if self.crossings >= 0:
                raise StoreConflict("in the way")

    bench.store = store = Crossed()
    bench.desk = TaskDesk(store, bench.view, bench.facts_in, TaskTimes(), virtual_utc)
    assert (await bench("add", tasks=[{"id": "a", "title": "A"}])).outcome is O.DONE
    await bench.claimed(lease_s=7)
    store.crossings = 2
    with structlog.testing.capture_logs() as logged:
        await nursery.start(keep_tasks, bench.desk, bench.view, Pulse("tasks", 0.0))
        await trio.sleep(8)
    assert await bench.state("a") is S.READY
    assert "store.lost" not in {line["event"] for line in logged}


async def test_nothing_is_asked_of_the_store_while_nothing_is_due(
    kept: Bench, autojump_clock: Clock
) -> None:
    """But the look for what others gave, twice a minute."""
    asked = 0

    class Counting(MemoryTasks):
        async def _reach(self) -> None:
            nonlocal asked
            asked += 1
            await super()._reach()

    kept.desk._store = Counting()
    await trio.sleep(600)
    assert asked <= 600 / LOOK_S + 2


# the door for acts


class NoActs:
    async def perform(self, request: ActRequest) -> ActAnswer:
        return ActAnswer(O.DONE, f"other: {request.act}")


async def test_tasks_come_through_the_door_for_acts_with_authority(
    bench: Bench, autojump_clock: Clock
) -> None:
    door = ActsAndTasks(NoActs(), bench.desk)
    text = json.dumps({"tasks": [{"id": "a", "title": "A"}]})
    answer = await door.perform(ActRequest(Act.TASK, "uid:0", "add", text))
    assert answer.outcome is O.DONE
    assert bench.told() == [TaskChanged(TaskId("a"), None, S.READY, "uid:0")]
    for wrong in ("[]", "{", "[" * 10_000):
        answer = await door.perform(ActRequest(Act.TASK, "uid:0", "add", wrong))
        assert answer.detail["error"] == "malformed"
    tried = await door.perform(ActRequest(Act.TASK, "uid:0", "add", text, dry_run=True))
    assert tried.outcome is O.REFUSED
    assert (await door.perform(ActRequest(Act.WHY, "uid:0"))).message == "other: why"


async def test_a_task_ready_later_is_not_claimed_before(kept: Bench, autojump_clock: Clock) -> None:
    at = (virtual_utc() + timedelta(seconds=30)).isoformat()
    await kept("add", tasks=[{"id": "a", "title": "A", "not_before": at}])
    assert (await kept("claim", agent="ada")).outcome is O.NOTHING_TO_DO
    await trio.sleep(30)
    assert (await kept("claim", agent="ada")).outcome is O.DONE
