"""Repositories are followed beside each other, resumably, within limits; hooks once."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tests.contracts.store_values import MINUTE, NOON
from tests.contracts.sync_contract import ALL, commit, pull
from tests.services.sync_stage import ENGINE, Crash, World, hooks_of

from custosd.adapters.memory_sync import MemorySync
from custosd.core.acts import Act, ActAnswer, ActOutcome, ActRequest
from custosd.core.errors import StoreRefused, StoreUnavailable
from custosd.core.facts import ConcernResolved, Escalated, ForgesSwept, RepositoryFollowed
from custosd.core.forge import (
    ForgeError,
    ForgeWork,
    HookRefusal,
    HookRefused,
    Quota,
    Repository,
    Trouble,
    WorkState,
    merged,
)
from custosd.services.sync import follow_forges
from custosd.services.sync_desk import ActsAndSync, SyncDesk

Clock = trio.testing.MockClock
Now = Callable[[], datetime]


def several(count: int) -> tuple[Repository, ...]:
    return tuple(Repository(f"ada/r{number}", forge="memory") for number in range(count))


async def test_what_is_there_is_read_once_and_then_costs_nothing(
    now_utc: Now, autojump_clock: Clock
) -> None:
    world = World(now_utc)
    world.forge.put(*(pull(f"{n}", at_utc=NOON + n * MINUTE) for n in range(5)), commit())
    first = await world.sync.sweep()
    assert (first.synced, first.works, first.changed) == (1, 6, 6)
    assert len(await world.store.works(ALL)) == 6
    second = await world.sync.sweep()
    assert (second.works, second.changed, second.unchanged) == (0, 0, second.pages)
    assert [fact.changed for fact in world.facts(RepositoryFollowed)] == [6]
    assert len(world.facts(ForgesSwept)) == 2
    (record,) = await world.store.records()
    assert record.synced_utc == now_utc()


async def test_three_are_asked_at_a_time(now_utc: Now, autojump_clock: Clock) -> None:
    """Ten repositories of four pages, a second each: 14 s at three a time, and 40 in a row."""
    world = World(now_utc, several(10), setup={"concurrency": 3})
    world.forge.delay_s = 1.0
    began = trio.current_time()
    swept = await world.sync.sweep()
    assert swept.synced == 10
    assert world.forge.most_at_once == 3
    assert trio.current_time() - began == 16.0


async def test_one_failure_is_its_own(now_utc: Now, autojump_clock: Clock) -> None:
    world = World(now_utc, several(3))
    failing = world.repositories[1].id
    world.forge.fail(failing, ForgeError(Trouble.UNAVAILABLE, "answered 500"))
    swept = await world.sync.sweep()
    assert (swept.synced, swept.failed) == (2, 1)
    asked = world.forge.asked[failing]
    swept = await world.sync.sweep()
    assert (swept.synced, swept.resting) == (2, 1)
    assert world.forge.asked[failing] == asked
    await trio.sleep(30)
    assert (await world.sync.sweep()).failed == 1
    await trio.sleep(30)
    # It rests for longer each time.
    assert (await world.sync.sweep()).resting == 1
    world.forge.fail(failing, None)
    await trio.sleep(30)
    assert (await world.sync.sweep()).synced == 3
    assert world.sync.records[failing].failures == 0


@pytest.mark.parametrize(
    ("trouble", "sweeps"), [(Trouble.GONE, 1), (Trouble.DENIED, 1), (Trouble.UNREACHABLE, 3)]
)
async def test_a_person_is_told_once_and_when_it_is_over(
    now_utc: Now, autojump_clock: Clock, trouble: Trouble, sweeps: int
) -> None:
    world = World(now_utc)
    world.forge.fail(ENGINE.id, ForgeError(trouble, "no"))
    for number in range(1, 6):
        await world.sync.sweep(forced=True)
        assert len(world.facts(Escalated)) == (1 if number >= sweeps else 0)
    # A new daemon tells its new view of it again.
    world.hire()
    world.told.clear()
    await world.sync.sweep(forced=True)
    (told,) = world.facts(Escalated)
    assert (told.concern, told.kind, told.reason) == (f"sync:{ENGINE.id}", "sync_failing", trouble)
    world.forge.fail(ENGINE.id, None)
    await world.sync.sweep(forced=True)
    assert [fact.concern for fact in world.facts(ConcernResolved)] == [told.concern]


@pytest.mark.parametrize("left", [(), (Repository("ada/other", forge="memory"),)])
async def test_of_what_is_not_followed_any_more_no_concern_stays(
    now_utc: Now, autojump_clock: Clock, left: tuple[Repository, ...]
) -> None:
    """Also where nothing is followed any more."""
    world = World(now_utc)
    world.forge.fail(ENGINE.id, ForgeError(Trouble.GONE, "no"))
    await world.sync.sweep()
    (told,) = world.facts(Escalated)
    world.repositories = left
    for repository in left:
        world.forge.add(repository.id)
    world.hire()
    async with trio.open_nursery() as nursery:
        await nursery.start(follow_forges, world.sync)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert [fact.concern for fact in world.facts(ConcernResolved)] == [told.concern]


async def test_a_page_that_does_not_come_is_a_failure(now_utc: Now, autojump_clock: Clock) -> None:
    world = World(now_utc, setup={"page_timeout_s": 7.0})
    world.forge.delay_s = 60.0
    assert (await world.sync.sweep()).failed == 1
    assert world.sync.records[ENGINE.id].trouble is Trouble.UNREACHABLE


async def test_a_limit_holds_all_of_the_account_until_it_ends(
    now_utc: Now, autojump_clock: Clock
) -> None:
    world = World(now_utc, several(5), setup={"concurrency": 1})
    limited = world.repositories[1].id
    world.forge.fail(limited, ForgeError(Trouble.LIMITED, "429", retry_in_s=100.0))
    swept = await world.sync.sweep()
    assert (swept.synced, swept.held, swept.failed) == (1, 4, 0)
    world.forge.fail(limited, None)
    asked = sum(world.forge.asked.values())
    await trio.sleep(99)
    assert (await world.sync.sweep()).held == 5
    assert sum(world.forge.asked.values()) == asked
    await trio.sleep(1)
    assert (await world.sync.sweep()).synced == 5
    assert world.facts(Escalated) == []


async def test_a_failure_says_where_the_pass_is_to_begin_again(
    now_utc: Now, autojump_clock: Clock
) -> None:
    """A circle of pages, say: the same way would lead into it for ever."""
    world = World(now_utc)
    world.forge.put(*(pull(f"{n}", at_utc=NOON + n * MINUTE) for n in range(5)))
    world.forge.fail(ENGINE.id, ForgeError(Trouble.MALFORMED, "a circle", cursor="anew"))
    await world.sync.sweep()
    assert (await world.store.cursors(ENGINE.id))["pulls"] == "anew"
    world.forge.fail(ENGINE.id, ForgeError(Trouble.UNAVAILABLE, "answered 500"))
    await world.sync.sweep(forced=True)
    assert (await world.store.cursors(ENGINE.id))["pulls"] == "anew"


async def test_what_the_database_refuses_of_one_repository_is_its_own_failure(
    now_utc: Now, autojump_clock: Clock
) -> None:
    class Refusing(MemorySync):
        async def save_page(self, repository: str, *rest: Any) -> Any:
            if repository == world.repositories[1].id:
                raise StoreRefused("a text that no database takes")
            return await super().save_page(repository, *rest)

    world = World(now_utc, several(3), store=Refusing())
    for repository in world.repositories:
        world.forge.put(replace(pull("1"), repository=repository.id))
    swept = await world.sync.sweep()
    assert (swept.synced, swept.failed) == (2, 1)
    assert world.sync.records[world.repositories[1].id].trouble is Trouble.MALFORMED


async def test_a_rest_that_a_clock_made_endless_is_none(
    now_utc: Now, autojump_clock: Clock
) -> None:
    world = World(now_utc)
    world.forge.fail(ENGINE.id, ForgeError(Trouble.UNAVAILABLE, "answered 500"))
    await world.sync.sweep()
    world.forge.fail(ENGINE.id, None)
    record = world.sync.records[ENGINE.id]
    # As it was stored while the wall clock stood a year ahead.
    ahead = replace(record, retry_utc=now_utc() + timedelta(days=365))
    await world.store.save_record(ahead)
    world.hire()
    assert (await world.sync.sweep()).synced == 1


async def test_a_shorter_hold_does_not_end_a_longer_one(
    now_utc: Now, autojump_clock: Clock
) -> None:
    """Two are asked at once; the one is told to wait long, the other for a moment."""
    world = World(now_utc, several(2), setup={"concurrency": 2})
    world.forge.delay_s = 1.0
    for repository, seconds in zip(world.repositories, (900.0, 5.0), strict=True):
        limited = ForgeError(Trouble.LIMITED, "429", retry_in_s=seconds)
        world.forge.fail(repository.id, limited)
    await world.sync.sweep()
    assert world.sync.held()["memory"] == pytest.approx(900.0)


async def test_a_hold_outlives_who_was_told_of_it_and_is_shown(
    now_utc: Now, autojump_clock: Clock
) -> None:
    """A reload, or a daemon that was killed, does not ask before its time either."""
    world = World(now_utc, several(2))
    for repository in world.repositories:
        world.forge.fail(repository.id, ForgeError(Trouble.LIMITED, "429", retry_in_s=600.0))
    await world.sync.sweep()
    asked = sum(world.forge.asked.values())
    for repository in world.repositories:
        world.forge.fail(repository.id, None)
    await trio.sleep(200)
    world.hire()
    assert (await world.sync.sweep(forced=True)).held == 2
    assert sum(world.forge.asked.values()) == asked
    assert world.sync.held() == {"memory": pytest.approx(400.0)}
    desk = SyncDesk(world.store)
    with desk.led_to(world.sync):
        answer = desk.look_now()
    assert "memory for 400 s more" in answer.message
    records = await world.store.records()
    assert {record.retry_utc for record in records} == {now_utc() + timedelta(seconds=400)}
    await trio.sleep(401)
    assert (await world.sync.sweep()).synced == 2
    assert {record.retry_utc for record in await world.store.records()} == {None}


async def test_a_limit_that_is_said_to_be_over_is_no_invitation(
    now_utc: Now, autojump_clock: Clock
) -> None:
    world = World(now_utc)
    world.forge.fail(ENGINE.id, ForgeError(Trouble.LIMITED, "403", retry_in_s=0.0))
    asked = []
    began = trio.current_time()
    while trio.current_time() < began + 600:
        await world.sync.sweep(forced=True)
        asked.append(sum(world.forge.asked.values()))
        await trio.sleep(1)
    assert asked[-1] < 10


async def test_an_account_that_is_held_for_long_is_a_concern_until_it_is_not(
    now_utc: Now, autojump_clock: Clock
) -> None:
    """Told once; a hold of an hour, after which limits end, is none; another daemon ends it."""
    world = World(now_utc, several(3))
    for repository in world.repositories:
        limited = ForgeError(Trouble.LIMITED, "429", retry_in_s=1_000.0)
        world.forge.fail(repository.id, limited)

    async def sweep_for(seconds: float) -> None:
        for _ in range(int(seconds / 600)):
            await world.sync.sweep()
            await trio.sleep(600)

    await sweep_for(3_600)
    assert world.facts(Escalated) == []
    await sweep_for(7_200)
    (told,) = world.facts(Escalated)
    assert (told.concern, told.kind, told.reason) == ("forge:memory", "forge_held", "limited")
    world.hire()
    await sweep_for(1_200)
    assert len(world.facts(Escalated)) == 1
    assert world.facts(ConcernResolved) == []
    for repository in world.repositories:
        world.forge.fail(repository.id, None)
    await sweep_for(7_200)
    assert [fact.concern for fact in world.facts(ConcernResolved)] == [told.concern]


async def test_a_hold_that_ends_in_time_is_no_concern(now_utc: Now, autojump_clock: Clock) -> None:
    """However often it comes again, with pages in between."""
    world = World(now_utc)
    for _ in range(10):
        world.forge.fail(ENGINE.id, ForgeError(Trouble.LIMITED, "429", retry_in_s=900.0))
        await world.sync.sweep()
        world.forge.fail(ENGINE.id, None)
        await trio.sleep(900)
        assert (await world.sync.sweep()).synced == 1
    assert world.facts(Escalated) == []
    assert world.facts(ConcernResolved) == []


async def test_a_share_of_the_account_is_left_to_others(
    now_utc: Now, autojump_clock: Clock
) -> None:
    world = World(now_utc, several(4), setup={"concurrency": 1, "reserve": 0.1})
    world.forge.quota = Quota(5_000, 501, 900.0)
    assert (await world.sync.sweep()).synced == 4
    world.forge.quota = Quota(5_000, 500, 900.0)
    assert (await world.sync.sweep()).held == 4
    await trio.sleep(899)
    assert (await world.sync.sweep()).held == 4
    world.forge.quota = Quota(5_000, 5_000, 3_600.0)
    await trio.sleep(1)
    assert (await world.sync.sweep()).synced == 4


async def test_long_lists_are_read_in_turns(now_utc: Now, autojump_clock: Clock) -> None:
    world = World(now_utc, setup={"pages": 3})
    world.forge.put(*(pull(f"{n}", at_utc=NOON + n * MINUTE) for n in range(20)))
    works = [(await world.sync.sweep()).works for _ in range(5)]
    assert works == [6, 6, 6, 2, 0]
    assert len(await world.store.works(ALL)) == 20


async def test_a_store_that_is_away_is_no_failure_of_a_repository(
    now_utc: Now, autojump_clock: Clock
) -> None:
    world = World(now_utc)
    world.forge.put(pull())
    await world.sync.sweep()
    world.forge.put(pull("2"))
    world.store.fail_with(StoreUnavailable("gone"))
    with capture_logs() as lines:
        for _ in range(3):
            assert (await world.sync.sweep()).failed == 0
    assert [line["event"] for line in lines].count("store.lost") == 1
    world.store.fail_with(None)
    assert (await world.sync.sweep()).changed == 1


async def test_sweeps_come_by_the_clock_and_when_asked_for(
    now_utc: Now, autojump_clock: Clock
) -> None:
    world = World(now_utc, setup={"interval_s": 100.0})
    desk = SyncDesk(world.store)
    world.forge.fail(ENGINE.id, ForgeError(Trouble.GONE, "no"))
    async with trio.open_nursery() as nursery:
        await nursery.start(follow_forges, world.sync)
        with desk.led_to(world.sync):
            await trio.sleep(1_001)
            # It rests most of the time, and is looked at all the same when a person asks.
            swept = world.facts(ForgesSwept)
            assert len(swept) == 11
            failed = sum(fact.failed for fact in swept)
            assert failed < 4
            assert desk.look_now().outcome is ActOutcome.DONE
            await trio.sleep(1)
            assert sum(fact.failed for fact in world.facts(ForgesSwept)) == failed + 1
        nursery.cancel_scope.cancel()
    assert desk.look_now().outcome is ActOutcome.NOTHING_TO_DO


async def test_sync_is_asked_for_by_its_act_alone() -> None:
    class Others:
        async def perform(self, request: ActRequest) -> ActAnswer:
            await trio.lowlevel.checkpoint()
            return ActAnswer(ActOutcome.DONE, request.act.value)

    door = ActsAndSync(Others(), SyncDesk(MemorySync()))
    assert (await door.perform(ActRequest(Act.RELOAD, "eve"))).message == "reload"
    answer = await door.perform(ActRequest(Act.SYNC, "eve"))
    assert answer.outcome is ActOutcome.NOTHING_TO_DO
    answer = await door.perform(ActRequest(Act.SYNC, "eve", dry_run=True))
    assert answer.outcome is ActOutcome.WOULD_BE_DONE


# hooks


async def refusal_of(world: World, headers: dict[str, str], body: bytes) -> HookRefusal:
    with pytest.raises(HookRefused) as caught:
        await world.sync.receive("memory", headers, body)
    return caught.value.refusal


async def test_a_hook_is_taken_once_also_by_the_daemon_after(
    now_utc: Now, autojump_clock: Clock
) -> None:
    world = World(now_utc)
    headers, body = world.forge.signed("d1", pull())
    assert await world.sync.receive("memory", headers, body) == 1
    assert await refusal_of(world, headers, body) is HookRefusal.REPLAYED
    world.hire()
    assert await refusal_of(world, headers, body) is HookRefusal.REPLAYED
    # The name is not signed: who replays a body may make one up.
    assert await refusal_of(world, headers | {"x-delivery": "new"}, body) is HookRefusal.REPLAYED
    world.hire()
    assert await refusal_of(world, headers | {"x-delivery": "new"}, body) is HookRefusal.REPLAYED
    assert len(await world.store.works(ALL)) == 1


async def test_nothing_is_taken_of_a_hook_that_is_refused(
    now_utc: Now, autojump_clock: Clock
) -> None:
    world = World(now_utc)
    headers, body = world.forge.signed("d1", pull())
    forged = headers | {"x-signature": "0" * 64}
    assert await refusal_of(world, forged, body) is HookRefusal.UNSIGNED
    strange = world.forge.signed("d2", pull(repository="memory:eve/engine"))
    assert await refusal_of(world, *strange) is HookRefusal.UNKNOWN
    world.store.fail_with(StoreUnavailable("gone"))
    assert await refusal_of(world, headers, body) is HookRefusal.BUSY
    world.store.fail_with(None)
    assert await world.store.works(ALL) == ()
    # It was not taken, so it may come again.
    assert await world.sync.receive("memory", headers, body) == 1
    with pytest.raises(HookRefused):
        await world.sync.receive("other", headers, body)


async def test_refusals_do_not_fill_the_log(now_utc: Now, autojump_clock: Clock) -> None:
    world = World(now_utc)
    headers, body = world.forge.signed("d1", pull())
    with capture_logs() as lines:
        for number in range(1_000):
            await refusal_of(world, headers | {"x-signature": f"{number}"}, body)
            if number == 500:
                await trio.sleep(61)
    told = [line["count"] for line in lines if line["event"] == "webhooks.refused"]
    assert told == [1, 501]


async def test_a_renamed_repositorys_hooks_are_known_by_its_id(
    now_utc: Now, autojump_clock: Clock
) -> None:
    world = World(now_utc)
    await world.sync.sweep()
    record = world.sync.records[ENGINE.id]
    world.sync.records[ENGINE.id] = replace(record, forge_id="77")
    named = world.sync._named
    assert named("memory", "ADA/Engine", "") == ENGINE
    assert named("memory", "ada/difference", "77") == ENGINE
    assert named("memory", "ada/difference", "78") is None
    assert named("other", "ada/engine", "77") is None


# any order


def words() -> st.SearchStrategy[list[ForgeWork]]:
    """Words about a few works, at a few moments, so that they meet."""
    moments = st.integers(0, 4).map(lambda minute: NOON + minute * MINUTE)
    states = st.sampled_from([WorkState.OPEN, WorkState.CLOSED, WorkState.MERGED])

    def told(key: str, state: WorkState, at: datetime, title: str) -> ForgeWork:
        return pull(key, state, at, title=title)

    pulls = st.builds(told, st.sampled_from("12"), states, moments, st.sampled_from("ab"))
    commits = st.builds(
        lambda key, branch, landed: commit(key, branch, landed=landed),
        st.sampled_from(["c1", "c2"]),
        st.sampled_from(["main", "work"]),
        st.booleans(),
    )
    return st.lists(pulls | commits, max_size=12)


@given(words(), st.data())
def test_merging_words_ends_in_one_state(told: list[ForgeWork], data: st.DataObject) -> None:
    """Associative, commutative, idempotent: any order, any grouping, any repetition."""

    def fold(works: list[ForgeWork]) -> dict[tuple[str, str, str], ForgeWork]:
        known: dict[tuple[str, str, str], ForgeWork] = {}
        for work in works:
            known[work.id] = merged(known.get(work.id, work), work)
        return known

    again = data.draw(st.lists(st.sampled_from(told), max_size=5)) if told else []
    order = data.draw(st.permutations(told + again))
    assert fold(order) == fold(told)
    half = len(order) // 2
    left, right = fold(order[:half]), fold(order[half:])
    both = {**left, **{id_: merged(left.get(id_, work), work) for id_, work in right.items()}}
    assert both == fold(told)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(words(), st.data())
def test_any_order_of_hooks_and_polls_ends_in_one_state(
    told: list[ForgeWork], data: st.DataObject
) -> None:
    """Hooks that repeat, overtake and get lost, sweeps in between, a new daemon now and then."""
    known: dict[tuple[str, str, str], ForgeWork] = {}
    for work in told:
        known[work.id] = merged(known.get(work.id, work), work)
    order = data.draw(st.permutations(range(len(told)))) if told else []
    twice = data.draw(st.lists(st.sampled_from(range(len(told))), max_size=4)) if told else []
    steps: list[Any] = [*order, *twice]
    for extra in data.draw(st.lists(st.sampled_from(["poll", "die"]), max_size=4)):
        steps.insert(data.draw(st.integers(0, len(steps))), extra)
    lost = data.draw(st.sets(st.sampled_from(range(len(told))))) if told else set()

    async def play() -> None:
        world = World(lambda: NOON + timedelta(hours=1))
        # What the forge itself shows is what is true in the end.
        world.forge.put(*known.values())
        hooks = hooks_of(world.forge, told)
        for step in steps:
            if step == "poll":
                await world.sync.sweep(forced=True)
            elif step == "die":
                world.hire()
            elif step not in lost:
                with suppress(HookRefused):
                    await world.sync.receive("memory", *hooks[step])
        await world.sync.sweep(forced=True)
        assert {work.id: work for work in await world.store.works(ALL)} == known

    trio.run(play, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("after", [False, True])
async def test_a_kill_at_any_step_loses_no_work_and_repeats_none(
    now_utc: Now, autojump_clock: Clock, *, after: bool
) -> None:
    """Killed before and after each write of a sweep; the next daemon goes on from there."""
    works = [*(pull(f"{n}", at_utc=NOON + n * MINUTE) for n in range(7)), commit()]
    for at in range(1, 30):
        world = World(now_utc)
        world.forge.put(*works)
        world.fuse.at, world.fuse.after = at, after
        killed = False
        try:
            await world.sync.sweep()
        except* Crash:
            killed = True
        world.fuse.at = -1
        world.hire()
        await world.sync.sweep()
        await world.sync.sweep()
        assert set(await world.store.works(ALL)) == set(works)
        if not killed:
            assert at > 5
            return
    raise AssertionError("a sweep has more steps than were tried")
