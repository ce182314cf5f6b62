"""What every `ports.TaskStore` promises; collected for each by a subclass with `store`."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from tests.contracts.store_values import HOSTILE, NOON

from custosd.core.agents import AgentId
from custosd.core.errors import StoreRefused
from custosd.core.tasks import (
    AUTHORITY,
    Claimed,
    ClaimRequest,
    Failure,
    FailureKind,
    Holder,
    NewTask,
    ScoreRules,
    Settling,
    Task,
    TaskChange,
    TaskCycle,
    TaskId,
    TaskPriority,
    TaskQuery,
    TaskRefused,
    TaskState,
    score,
)
from custosd.ports import TaskStore

ADA, BOB = AgentId("ada"), AgentId("bob")
S = TaskState
RULES = ScoreRules()


class Clock:
    """The store's clock, set by hand."""

    def __init__(self) -> None:
        self.now_utc = NOON

    def __call__(self) -> datetime:
        return self.now_utc

    def advance(self, seconds: float) -> None:
        self.now_utc += timedelta(seconds=seconds)


def new(id_: str, *depends_on: str, **more: object) -> NewTask:
    waits = tuple(map(TaskId, depends_on))
    return replace(NewTask(TaskId(id_), f"the {id_}", depends_on=waits), **more)  # type: ignore[arg-type]


async def claimed(
    store: TaskStore, agent: AgentId = ADA, lease_s: float = 60.0, **more: object
) -> Task:
    found = await store.claim(replace(ClaimRequest(agent, lease_s), **more))  # type: ignore[arg-type]
    assert len(found.tasks) == 1
    return found.tasks[0]


def holder(task: Task) -> Holder:
    assert task.claim is not None
    return Holder(task.claim.agent, task.claim.fence)


async def one(store: TaskStore, id_: str) -> Task:
    return (await store.tasks([TaskId(id_)]))[TaskId(id_)]


async def states(store: TaskStore) -> dict[str, TaskState]:
    return {task.id: task.state for task in await store.find(TaskQuery(limit=1000))}


class TaskContract:
    """The tests. `store` is fresh and empty, and runs by `clock`."""

    async def test_an_empty_store_knows_nothing_and_says_so(self, store: TaskStore) -> None:
        none = TaskId("none")
        assert await store.add([], "eve") == ()
        assert await store.next_tasks(5, []) == ()
        assert await store.claim(ClaimRequest(ADA, 60.0)) == Claimed()
        assert (await store.complete(none, AUTHORITY)).outcome is Settling.UNKNOWN
        assert (await store.fail(none, Holder(ADA, 1), Failure())).outcome is Settling.UNKNOWN
        assert (await store.extend(none, Holder(ADA, 1), 5.0)).outcome is Settling.UNKNOWN
        assert await store.cancel([none]) == ()
        assert await store.release({ADA: 9}) == ()
        assert await store.release({}) == ()
        expiry = await store.expire()
        assert (expiry.changes, expiry.next_due_s) == ((), None)
        assert await store.tasks([none]) == {}
        assert await store.find(TaskQuery()) == ()
        assert await store.assigned([ADA, BOB]) == {ADA: (), BOB: ()}
        assert await store.prune(NOON) == 0

    async def test_a_task_comes_back_as_it_was_added(self, store: TaskStore) -> None:
        whole = NewTask(
            TaskId("repo#12/fix:a+b"),
            f"fix {HOSTILE}",
            HOSTILE,
            TaskPriority.CRITICAL,
            (),
            ("python", "docker", "python"),
            NOON + timedelta(hours=1),
            NOON + timedelta(hours=2),
            12.3456,
            7,
        )
        assert await store.add([whole], f"uid:0 {HOSTILE}") == (
            TaskChange(whole.id, None, S.READY),
        )
        assert await store.tasks([whole.id]) == {
            whole.id: Task(
                whole.id,
                whole.title,
                S.READY,
                NOON,
                f"uid:0 {HOSTILE}",
                whole.goal,
                whole.priority,
                (),
                ("docker", "python"),
                max_attempts=7,
                not_before_utc=whole.not_before_utc,
                ready_utc=whole.not_before_utc,
                deadline_utc=whole.deadline_utc,
                timeout_s=12.346,
            )
        }

    async def test_adding_again_changes_nothing_and_another_of_that_name_is_refused(
        self, store: TaskStore
    ) -> None:
        await store.add([new("a")], "eve")
        assert await store.add([new("a"), new("b", "a")], "eve") == (
            TaskChange(TaskId("b"), None, S.BLOCKED),
        )
        with pytest.raises(TaskRefused, match="another task a") as caught:
            await store.add([new("a", title="else"), new("c")], "eve")
        assert caught.value.reason == "exists"
        assert await states(store) == {"a": S.READY, "b": S.BLOCKED}

    @pytest.mark.parametrize(
        "task",
        [
            new("white space"),
            new(""),
            new("a", title=""),
            new("a", "a"),
            new("a", timeout_s=0.0),
            new("a", max_attempts=0),
            new("a", capabilities=("two words",)),
            new("a", deadline_utc=datetime(2026, 3, 14)),  # noqa: DTZ001 - what must be refused
        ],
    )
    async def test_what_is_no_task_is_refused(self, store: TaskStore, task: NewTask) -> None:
        with pytest.raises(TaskRefused):
            await store.add([new("fine"), task], "eve")
        assert await states(store) == {}

    async def test_what_waits_is_claimed_by_nobody_until_all_of_it_has_succeeded(
        self, store: TaskStore, clock: Clock
    ) -> None:
        await store.add([new("d", "b", "c"), new("b", "a"), new("c", "a"), new("a")], "eve")
        assert await states(store) == {"a": S.READY, "b": S.BLOCKED, "c": S.BLOCKED, "d": S.BLOCKED}
        first = await claimed(store)
        assert (first.id, first.blocking, first.attempts) == ("a", 2, 1)
        assert await store.claim(ClaimRequest(BOB, 60.0, 5)) == Claimed()
        clock.advance(5.0)
        done = await store.complete(first.id, holder(first), f"it went {HOSTILE}")
        assert done.outcome is Settling.DONE
        assert done.task is not None
        assert (done.task.result, done.task.ended_utc) == (f"it went {HOSTILE}", clock())
        assert done.changes == (
            TaskChange(TaskId("a"), S.CLAIMED, S.SUCCEEDED, ADA, 1),
            TaskChange(TaskId("b"), S.BLOCKED, S.READY),
            TaskChange(TaskId("c"), S.BLOCKED, S.READY),
        )
        both = (await store.claim(ClaimRequest(BOB, 60.0, 5))).tasks
        assert [task.id for task in both] == ["b", "c"]
        assert {task.ready_utc for task in both} == {clock()}
        await store.complete(both[0].id, holder(both[0]))
        assert (await one(store, "d")).unmet == 1
        last = await store.complete(both[1].id, holder(both[1]))
        assert last.changes[-1] == TaskChange(TaskId("d"), S.BLOCKED, S.READY)

    async def test_a_task_may_wait_for_what_has_succeeded_and_not_for_what_has_not(
        self, store: TaskStore
    ) -> None:
        await store.add([new("good"), new("bad")], "eve")
        await store.complete(TaskId("good"), AUTHORITY)
        await store.cancel([TaskId("bad")])
        await store.add([new("a", "good")], "eve")
        assert (await one(store, "a")).state is S.READY
        for dependency, reason in (("bad", "dependency_ended"), ("no", "unknown_dependency")):
            with pytest.raises(TaskRefused) as caught:
                await store.add([new("x"), new("b", dependency)], "eve")
            assert caught.value.reason == reason
        assert "x" not in await states(store)

    # cycles

    async def test_a_circle_among_new_tasks_is_refused_and_named(self, store: TaskStore) -> None:
        await store.add([new("root")], "eve")
        with pytest.raises(TaskCycle) as caught:
            await store.add(
                [new("a", "b", "root"), new("b", "c"), new("c", "a"), new("d", "a")], "eve"
            )
        assert caught.value.path == ("a", "b", "c", "a")
        assert "a -> b -> c -> a" in str(caught.value)
        assert await states(store) == {"root": S.READY}

    async def test_a_circle_closed_by_a_link_is_refused_and_named(self, store: TaskStore) -> None:
        await store.add([new("a"), new("b", "a"), new("c", "b"), new("d", "c")], "eve")
        for edge in (("a", "c"), ("a", "a"), ("b", "d")):
            with pytest.raises(TaskCycle) as caught:
                await store.link([(TaskId(edge[0]), TaskId(edge[1]))])
            assert caught.value.path[0] == caught.value.path[-1]
            assert set(caught.value.path) <= {"a", "b", "c", "d"}
        both = [(TaskId("x"), TaskId("y")), (TaskId("y"), TaskId("x"))]
        await store.add([new("x"), new("y")], "eve")
        with pytest.raises(TaskCycle):
            await store.link(both)
        assert (await one(store, "a")).state is S.READY
        assert (await one(store, "x")).depends_on == ()

    async def test_a_link_blocks_what_was_ready_and_is_undone_by_nothing_but_success(
        self, store: TaskStore, clock: Clock
    ) -> None:
        await store.add([new("a"), new("b"), new("c", "b")], "eve")
        edges = [(TaskId("b"), TaskId("a")), (TaskId("c"), TaskId("a"))]
        assert await store.link(edges) == (TaskChange(TaskId("b"), S.READY, S.BLOCKED),)
        assert await store.link(edges) == ()
        linked = await one(store, "b")
        assert (linked.depends_on, linked.unmet, linked.ready_utc) == (("a",), 1, None)
        assert (await one(store, "c")).unmet == 2
        assert (await one(store, "a")).blocking == 2
        clock.advance(100.0)
        done = await store.complete(TaskId("a"), AUTHORITY)
        assert [change.task for change in done.changes] == ["a", "b"]
        assert (await one(store, "b")).ready_utc == clock()

    async def test_what_has_begun_can_wait_for_nothing_more(self, store: TaskStore) -> None:
        await store.add([new("a"), new("b")], "eve")
        task = await claimed(store)
        with pytest.raises(TaskRefused) as caught:
            await store.link([(task.id, TaskId("b"))])
        assert caught.value.reason == "begun"
        with pytest.raises(TaskRefused) as caught:
            await store.link([(TaskId("none"), TaskId("b"))])
        assert caught.value.reason == "unknown_task"

    # urgency

    async def test_scores_follow_the_formula_and_the_most_urgent_comes_first(
        self, store: TaskStore, clock: Clock
    ) -> None:
        p = TaskPriority
        await store.add([new("old", priority=p.LOW)], "eve")
        clock.advance(7_200.0)
        soon = clock() + timedelta(seconds=450)
        await store.add(
            [
                new("plain"),
                new("high", priority=p.HIGH),
                new("soon", deadline_utc=soon),
                new("past", deadline_utc=clock() - timedelta(hours=1)),
                new("far", deadline_utc=clock() + timedelta(days=1)),
                new("needed"),
                *(new(f"w{n}", "needed") for n in range(5)),
                new("once", max_attempts=1),
            ],
            "eve",
        )
        found = {one.task.id: one.score for one in await store.next_tasks(100, [])}
        half = 0.45 * 0.5 + 0.05
        expected = {
            "old": 0.6,
            "high": 0.45 * 0.75 + 0.05,
            "past": (half + 0.15) * 1.25,
            "soon": (half + 0.075) * 1.25,
            "needed": half + 0.075,
            "far": half,
            "plain": half,
            "once": half - 0.05,
        }
        assert found == pytest.approx(expected)
        assert list(found) == sorted(found, key=lambda id_: (-found[id_], id_))
        assert [one.task.id for one in await store.next_tasks(3, [])] == ["old", "past", "soon"]
        for told in await store.next_tasks(100, []):
            assert told.score == score(told.task, clock(), RULES)

    async def test_age_counts_since_ready_and_not_since_added(
        self, store: TaskStore, clock: Clock
    ) -> None:
        await store.add([new("first"), new("waited", "first")], "eve")
        clock.advance(1_800.0)
        await store.add([new("later")], "eve")
        clock.advance(900.0)
        await store.complete(TaskId("first"), AUTHORITY)
        assert [one.task.id for one in await store.next_tasks(9, [])] == ["later", "waited"]

    async def test_a_task_is_not_ready_before_its_time(
        self, store: TaskStore, clock: Clock
    ) -> None:
        later = clock() + timedelta(seconds=30)
        await store.add([new("a", not_before_utc=later), new("b", "a", not_before_utc=later)], "e")
        assert await store.claim(ClaimRequest(ADA, 60.0)) == Claimed()
        clock.advance(30.0)
        assert (await claimed(store)).id == "a"

    async def test_who_cannot_do_a_task_is_not_given_it(self, store: TaskStore) -> None:
        await store.add(
            [
                new("gpu", capabilities=("gpu", "python"), priority=TaskPriority.CRITICAL),
                new("py", capabilities=("python",)),
                new("any", priority=TaskPriority.LOW),
            ],
            "eve",
        )
        asked = ClaimRequest(ADA, 60.0, 9, capabilities=("python", "rust"))
        assert [task.id for task in (await store.claim(asked)).tasks] == ["py", "any"]
        assert await store.next_tasks(9, ["gpu"]) == ()
        assert [one.task.id for one in await store.next_tasks(9, ["python", "gpu"])] == ["gpu"]

    # claims

    async def test_a_claim_repeated_under_its_key_brings_the_same_while_it_is_held(
        self, store: TaskStore
    ) -> None:
        await store.add([new(name) for name in "abcd"], "eve")
        asked = ClaimRequest(ADA, 60.0, 2, key=f"k {HOSTILE}")
        first = await store.claim(asked)
        again = await store.claim(asked)
        assert (again.tasks, again.repeated, first.repeated) == (first.tasks, True, False)
        other = await store.claim(replace(asked, agent=BOB))
        assert [task.id for task in other.tasks] == ["c", "d"]
        for task in first.tasks:
            await store.complete(task.id, holder(task))
        assert await store.claim(asked) == Claimed()

    async def test_a_word_said_twice_is_taken_once(self, store: TaskStore, clock: Clock) -> None:
        await store.add([new("a"), new("b")], "eve")
        a, b = (await store.claim(ClaimRequest(ADA, 60.0, 2))).tasks
        await store.complete(a.id, holder(a), "first")
        again = await store.complete(a.id, holder(a), "second")
        assert (again.outcome, again.changes) == (Settling.REPEATED, ())
        assert again.task is not None
        assert again.task.result == "first"
        await store.fail(b.id, holder(b), Failure(reason="x"))
        repeated = await store.fail(b.id, holder(b), Failure(reason="y"))
        assert repeated.outcome is Settling.REPEATED
        clock.advance(10.0)
        taken = await claimed(store, BOB)
        assert (await store.fail(b.id, holder(b), Failure())).outcome is Settling.REPEATED
        assert (await one(store, "b")).claim == taken.claim

    async def test_of_a_lease_that_was_lost_nothing_is_believed_any_more(
        self, store: TaskStore, clock: Clock
    ) -> None:
        await store.add([new("a")], "eve")
        lost = await claimed(store, ADA, 10.0)
        clock.advance(10.0)
        expiry = await store.expire()
        change = TaskChange(lost.id, S.CLAIMED, S.READY, ADA, 1, FailureKind.LEASE_LOST)
        assert expiry.changes == (change,)
        rested = await one(store, "a")
        assert rested.ready_utc is not None
        assert 0.75 <= (rested.ready_utc - clock()).total_seconds() <= 1.25
        clock.advance(2.0)
        taken = await claimed(store, BOB)
        assert taken.claim is not None
        assert (taken.claim.fence, taken.attempts) == (2, 2)
        for word in (
            await store.complete(lost.id, holder(lost), "late"),
            await store.fail(lost.id, holder(lost), Failure()),
            await store.extend(lost.id, holder(lost), 60.0),
            await store.complete(lost.id, Holder(ADA), "late"),
            await store.complete(lost.id, Holder(ADA, 2), "late"),
        ):
            assert word.outcome is Settling.LOST
            assert word.task == taken
        await store.fail(taken.id, holder(taken), Failure())
        clock.advance(10.0)
        again = await claimed(store, ADA)
        # It has it again, and what it says of the first time is not about this one.
        assert (await store.complete(lost.id, holder(lost))).outcome is Settling.LOST
        assert (await store.complete(again.id, holder(again))).outcome is Settling.DONE

    async def test_a_lease_lasts_on_when_it_is_extended_and_never_beyond_the_time_limit(
        self, store: TaskStore, clock: Clock
    ) -> None:
        await store.add([new("a", timeout_s=100.0)], "eve")
        task = await claimed(store, ADA, 40.0)
        assert (await store.expire()).next_due_s == 40.0
        clock.advance(30.0)
        longer = await store.extend(task.id, holder(task), 40.0)
        assert longer.task is not None
        assert longer.task.claim is not None
        assert longer.task.claim.until_utc == NOON + timedelta(seconds=70)
        await store.extend(task.id, holder(task), 4_000.0)
        expiry = await store.expire()
        assert (expiry.changes, expiry.next_due_s) == ((), 70.0)
        clock.advance(70.0)
        expiry = await store.expire()
        assert [change.kind for change in expiry.changes] == [FailureKind.TIMEOUT]
        assert expiry.next_due_s is None

    async def test_what_the_dead_held_is_free_and_what_their_successors_hold_is_not(
        self, store: TaskStore
    ) -> None:
        await store.add([new("a"), new("b"), new("c")], "eve")
        await claimed(store, epoch=1)
        await claimed(store, epoch=2)
        await claimed(store, BOB, epoch=1)
        changes = await store.release({ADA: 1})
        kind = FailureKind.AGENT_DEAD
        assert changes == (TaskChange(TaskId("a"), S.CLAIMED, S.READY, ADA, 1, kind),)
        assert await states(store) == {"a": S.READY, "b": S.CLAIMED, "c": S.CLAIMED}
        assert await store.release({ADA: 1}) == ()

    async def test_assigned_tasks_of_many_agents(self, store: TaskStore) -> None:
        await store.add([new(name) for name in "abcd"], "eve")
        mine = (await store.claim(ClaimRequest(ADA, 60.0, 2))).tasks
        his = (await store.claim(ClaimRequest(BOB, 60.0, 2))).tasks
        await store.complete(his[0].id, holder(his[0]))
        eve = AgentId("eve")
        found = await store.assigned([ADA, BOB, eve])
        assert found == {ADA: mine, BOB: his[1:], eve: ()}

    # failures

    async def test_retries_come_later_each_time_and_end(
        self, store: TaskStore, clock: Clock
    ) -> None:
        await store.add([new("a"), new("b", "a"), new("c", "b"), new("free")], "eve")
        await store.complete(TaskId("free"), AUTHORITY)
        for attempt, base_s in enumerate((1.0, 2.0, 4.0), start=1):
            task = await claimed(store)
            assert task.attempts == attempt
            failed = await store.fail(task.id, holder(task), Failure(reason=f"oops {HOSTILE}"))
            assert failed.task is not None
            assert failed.task.state is S.READY
            assert failed.task.failure == f"oops {HOSTILE}"
            assert failed.task.ready_utc is not None
            rest_s = (failed.task.ready_utc - clock()).total_seconds()
            assert 0.75 * base_s <= rest_s <= 1.25 * base_s
            clock.advance(rest_s - 0.001)
            assert await store.claim(ClaimRequest(ADA, 60.0)) == Claimed()
            clock.advance(0.001)
        task = await claimed(store)
        failed = await store.fail(task.id, holder(task), Failure(reason="oops"))
        root, kind = TaskId("a"), FailureKind.DEPENDENCY
        assert failed.changes == (
            TaskChange(root, S.CLAIMED, S.FAILED, ADA, 4, FailureKind.ERROR),
            TaskChange(TaskId("b"), S.BLOCKED, S.FAILED, kind=kind, root=root),
            TaskChange(TaskId("c"), S.BLOCKED, S.FAILED, kind=kind, root=root),
        )
        assert (await one(store, "c")).failure == "it waited for a, which was failed"

    async def test_a_usage_limit_costs_no_attempt_however_often(
        self, store: TaskStore, clock: Clock
    ) -> None:
        await store.add([new("a", max_attempts=1)], "eve")
        for after_s, waits_s in ((0.0, 60.0), (7.0, 7.0), (1e9, 86_400.0)):
            task = await claimed(store)
            limit = Failure(FailureKind.USAGE_LIMIT, "quota", after_s)
            failed = await store.fail(task.id, holder(task), limit)
            assert failed.task is not None
            assert (failed.task.state, failed.task.attempts) == (S.READY, 0)
            assert failed.task.ready_utc == clock() + timedelta(seconds=waits_s)
            clock.advance(waits_s)

    async def test_a_permanent_failure_has_no_second_attempt(self, store: TaskStore) -> None:
        await store.add([new("a")], "eve")
        task = await claimed(store)
        await store.fail(task.id, holder(task), Failure(FailureKind.PERMANENT))
        told = await one(store, "a")
        assert (told.state, told.failure) == (S.FAILED, "permanent")

    async def test_a_cancelled_task_takes_along_what_waits_for_it_and_nothing_else(
        self, store: TaskStore
    ) -> None:
        await store.add([new("a"), new("b", "a"), new("c", "b", "x"), new("x"), new("y")], "e")
        task = await claimed(store)
        changes = await store.cancel([TaskId("b"), TaskId("y"), TaskId("none")], "not wanted")
        cancelled, kind = S.CANCELLED, FailureKind.CANCELLED
        assert changes == (
            TaskChange(TaskId("b"), S.BLOCKED, cancelled, kind=kind),
            TaskChange(
                TaskId("c"), S.BLOCKED, cancelled, kind=FailureKind.DEPENDENCY, root=TaskId("b")
            ),
            TaskChange(TaskId("y"), S.READY, cancelled, kind=kind),
        )
        assert (await one(store, "a")).blocking == (await one(store, "x")).blocking == 0
        assert (await one(store, "y")).failure == "not wanted"
        assert await store.cancel([task.id]) == (
            TaskChange(task.id, S.CLAIMED, cancelled, ADA, 1, kind),
        )
        assert (await store.complete(task.id, holder(task))).outcome is Settling.LOST
        assert await store.cancel([task.id]) == ()

    async def test_with_authority_whatever_is_open_can_be_ended(self, store: TaskStore) -> None:
        await store.add([new("a"), new("b", "a"), new("c", "b"), new("d")], "eve")
        done = await store.complete(TaskId("b"), AUTHORITY, "merged")
        assert [(change.task, change.after) for change in done.changes] == [
            ("b", S.SUCCEEDED),
            ("c", S.READY),
        ]
        assert (await one(store, "a")).blocking == 0
        assert (await store.complete(TaskId("b"), AUTHORITY)).outcome is Settling.ENDED
        failed = await store.fail(TaskId("d"), AUTHORITY, Failure(reason="never"))
        assert failed.task is not None
        assert (failed.task.state, failed.task.failure_kind) == (S.FAILED, FailureKind.PERMANENT)
        task = await claimed(store)
        await store.complete(task.id, AUTHORITY)
        late = await store.complete(task.id, holder(task))
        assert (late.outcome, late.changes) == (Settling.LOST, ())

    async def test_whom_authority_took_it_from_stays_known(self, store: TaskStore) -> None:
        """Who had it as it ended; nobody, where nobody had it by then."""
        await store.add([new("a")], "eve")
        await claimed(store)
        await store.complete(TaskId("a"), AUTHORITY, "landed")
        await store.add([new("b"), new("c", "b")], "eve")
        await claimed(store)
        await store.release({ADA: 5})
        await store.complete(TaskId("b"), AUTHORITY, "landed")
        assert [(await one(store, id_)).agent for id_ in "ab"] == [ADA, None]

    # reading

    async def test_tasks_are_found_newest_first_by_state_and_agent_page_by_page(
        self, store: TaskStore, clock: Clock
    ) -> None:
        for name in "abcde":
            await store.add([new(name)], "eve")
            clock.advance(1.0)
        await store.claim(ClaimRequest(ADA, 60.0, 2))
        await store.claim(ClaimRequest(BOB, 60.0, 1))
        q = TaskQuery
        for query, expected in (
            (q(), "edcba"),
            (q(limit=2), "ed"),
            (q(limit=2, after=TaskId("d")), "cb"),
            (q(states=frozenset({S.READY})), "ed"),
            (q(agents=frozenset({ADA})), "ba"),
            (q(agents=frozenset({ADA, BOB}), states=frozenset({S.CLAIMED}), limit=1), "c"),
            (q(agents=frozenset({ADA}), states=frozenset({S.FAILED})), ""),
        ):
            assert "".join(task.id for task in await store.find(query)) == expected

    async def test_no_page_comes_after_a_task_that_is_gone(
        self, store: TaskStore, clock: Clock
    ) -> None:
        """To begin again in silence would let a client page for ever."""
        await store.add([new("a"), new("b")], "eve")
        await store.cancel([TaskId("a")])
        clock.advance(10.0)
        page = TaskQuery(limit=1, after=TaskId("a"))
        assert await store.find(page) == ()
        await store.prune(clock())
        for gone in ("a", "never", HOSTILE):
            with pytest.raises(TaskRefused) as refused:
                await store.find(replace(page, after=TaskId(gone)))
            assert refused.value.reason == "unknown_task"

    async def test_ends_of_their_own_are_found_by_their_time(
        self, store: TaskStore, clock: Clock
    ) -> None:
        """However many fell with them, and were made later."""
        fallen = [new(f"f{number}", "root") for number in range(20)]
        await store.add([new("early"), new("root"), *fallen], "eve")
        for id_ in ("early", "root"):
            clock.advance(10.0)
            await store.fail(TaskId(id_), AUTHORITY, Failure())
        query = TaskQuery(frozenset({S.FAILED}), limit=2, own_ends=True)
        found = await store.find(replace(query, ended_after_utc=NOON + timedelta(seconds=15)))
        assert [task.id for task in found] == ["root"]
        found = await store.find(replace(query, ended_after_utc=NOON))
        assert {task.id for task in found} == {"early", "root"}
        assert await store.find(replace(query, ended_after_utc=clock())) == ()
        with pytest.raises(StoreRefused):
            await store.find(TaskQuery(ended_after_utc=datetime(2026, 3, 14)))  # noqa: DTZ001 - what must be refused

    async def test_what_ended_long_ago_is_forgotten_and_what_is_open_is_not(
        self, store: TaskStore, clock: Clock
    ) -> None:
        await store.add([new("a"), new("b", "a"), new("c")], "eve")
        await store.complete(TaskId("a"), AUTHORITY)
        clock.advance(10.0)
        await store.cancel([TaskId("c")])
        assert await store.prune(clock()) == 1
        assert await states(store) == {"b": S.READY, "c": S.CANCELLED}
        assert (await one(store, "b")).depends_on == ()
        with pytest.raises(StoreRefused):
            await store.prune(datetime(2026, 3, 14))  # noqa: DTZ001 - what must be refused
