"""What is too old goes, at the start and each interval; a store that is away costs time only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import trio
import trio.testing
from structlog.testing import capture_logs
from tests.contracts import store_values as some
from tests.contracts.task_contract import new

from custosd.adapters.memory import MemoryStore
from custosd.adapters.memory_actions import MemoryActions
from custosd.adapters.memory_tasks import MemoryTasks
from custosd.core.agents import AgentState
from custosd.core.errors import StoreUnavailable
from custosd.core.facts import AgentForgotten, Fact
from custosd.core.lives import LifeRecord
from custosd.core.tasks import TaskId
from custosd.flow.pulse import Pulse
from custosd.services.retention import RetentionTimes, keep_retention

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
TIMES = RetentionTimes(HOUR_S, 14 * DAY_S, 90 * DAY_S, 30 * DAY_S, 60 * DAY_S)


@dataclass
class Running:
    """Retention over a store in memory, and what it asked to be forgotten."""

    now_utc: Callable[[], datetime]
    forgotten: Sequence[Fact] = ()
    store: MemoryStore = field(default_factory=MemoryStore)
    actions: MemoryActions = field(default_factory=MemoryActions)
    tasks: MemoryTasks = field(default_factory=MemoryTasks)
    asked: list[datetime] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.facts_in, self.facts = trio.open_memory_channel[Fact](100)
        self.pulse = Pulse("retention", trio.current_time())

    def forget(self, before_utc: datetime) -> Sequence[Fact]:
        self.asked.append(before_utc)
        return self.forgotten

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await keep_retention(
            self.store,
            (self.actions, self.tasks),
            self.now_utc,
            TIMES,
            self.forget,
            self.facts_in,
            self.pulse,
            task_status=task_status,
        )


async def test_old_runs_go_at_the_start_and_at_each_interval(
    autojump_clock: trio.testing.MockClock,
    now_utc: Callable[[], datetime],
    nursery: trio.Nursery,
) -> None:
    running = Running(now_utc)
    start_utc = now_utc()
    ages_s = (31 * DAY_S, 30 * DAY_S - 1.5 * HOUR_S)
    for n, age_s in enumerate(ages_s):
        old = some.run(some.ref(n), grown_utc=start_utc - timedelta(seconds=age_s))
        await running.store.save_progress([some.progress(old, key=f"t{n}")])
    await nursery.start(running.run)
    await trio.sleep(1)
    assert len((await running.store.restore()).agents) == 1
    await trio.sleep(HOUR_S)
    assert len((await running.store.restore()).agents) == 1
    await trio.sleep(HOUR_S)
    assert (await running.store.restore()).agents == ()


async def test_lives_without_a_sign_go_with_the_acts_of_their_time(
    autojump_clock: trio.testing.MockClock,
    now_utc: Callable[[], datetime],
    nursery: trio.Nursery,
) -> None:
    running = Running(now_utc)
    lives = [
        LifeRecord(
            some.ref(n).agent, 1, 1, AgentState.RUNNING, now_utc() - timedelta(seconds=age_s)
        )
        for n, age_s in enumerate((61 * DAY_S, 59 * DAY_S))
    ]
    await running.actions.save_lives(lives)
    await nursery.start(running.run)
    await trio.sleep(1)
    assert await running.actions.lives() == (lives[1],)


async def test_tasks_go_that_ended_so_long_ago_and_open_ones_stay(
    autojump_clock: trio.testing.MockClock,
    now_utc: Callable[[], datetime],
    nursery: trio.Nursery,
) -> None:
    tasks = MemoryTasks(now_utc=lambda: now_utc() - timedelta(days=61))
    running = Running(now_utc, tasks=tasks)
    await tasks.add([new("ended"), new("open")], "eve")
    await tasks.cancel([TaskId("ended")])
    await nursery.start(running.run)
    await trio.sleep(1)
    assert set(await tasks.tasks([TaskId("ended"), TaskId("open")])) == {"open"}


async def test_it_has_started_once_the_record_has_room_for_today(
    autojump_clock: trio.testing.MockClock,
    now_utc: Callable[[], datetime],
    nursery: trio.Nursery,
) -> None:
    """A store that is away is told of and tried again soon, not at the next interval."""
    running = Running(now_utc)
    started = trio.Event()
    running.store.fail_with(StoreUnavailable("away"))

    async def start() -> None:
        await nursery.start(running.run)
        started.set()

    with capture_logs() as logs:
        nursery.start_soon(start)
        await trio.sleep(60)
        assert not started.is_set()
        assert {log["event"] for log in logs} == {"record.prune_failed"}
        running.store.fail_with(None)
        await trio.sleep(31)
    assert started.is_set()
    assert logs[-1]["event"] == "record.pruned"
    assert await running.store.prepare_days(now_utc()) == 0


async def test_a_store_that_goes_away_later_is_told_of_and_tried_again(
    autojump_clock: trio.testing.MockClock,
    now_utc: Callable[[], datetime],
    nursery: trio.Nursery,
) -> None:
    running = Running(now_utc)
    with capture_logs() as logs:
        await nursery.start(running.run)
        await trio.sleep(1)
        running.store.fail_with(StoreUnavailable("away"))
        await trio.sleep(2 * HOUR_S)
        running.store.fail_with(None)
        await trio.sleep(HOUR_S)
    told = [log["event"] for log in logs]
    assert told == ["record.pruned", *2 * ["record.prune_failed"], "record.pruned"]
    assert running.pulse.age_s(trio.current_time()) == 0


async def test_what_left_the_view_is_told_after_each_pruning_and_only_then(
    autojump_clock: trio.testing.MockClock,
    now_utc: Callable[[], datetime],
    nursery: trio.Nursery,
) -> None:
    forgotten = AgentForgotten(some.ADA)
    running = Running(now_utc, [forgotten])
    await nursery.start(running.run)
    began_utc = now_utc()
    assert await running.facts.receive() == forgotten
    running.store.fail_with(StoreUnavailable("away"))
    await trio.sleep(1.5 * HOUR_S)
    assert len(running.asked) == 1
    running.store.fail_with(None)
    assert await running.facts.receive() == forgotten
    kept = timedelta(days=30)
    seconds = [(at - (began_utc - kept)).total_seconds() for at in running.asked]
    assert [round(s / HOUR_S, 2) for s in seconds] == [0, 2]


async def test_the_end_of_it_is_the_end_of_its_facts(
    autojump_clock: trio.testing.MockClock,
    now_utc: Callable[[], datetime],
    nursery: trio.Nursery,
) -> None:
    running = Running(now_utc)
    with trio.move_on_after(10):
        await running.run()
    assert [fact async for fact in running.facts] == []


async def test_waiting_for_a_store_that_is_away_at_the_start_is_no_lack_of_progress(
    autojump_clock: trio.testing.MockClock,
    now_utc: Callable[[], datetime],
    nursery: trio.Nursery,
) -> None:
    running = Running(now_utc)
    running.store.fail_with(StoreUnavailable("away"))
    with capture_logs():
        nursery.start_soon(running.run)
        await trio.sleep(HOUR_S - 10)  # within a pause of 30 s
        assert running.pulse.age_s(trio.current_time()) == 0
