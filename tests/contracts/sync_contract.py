"""What every `ports.SyncStore` promises; collected by a subclass with `store`."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from tests.contracts.store_values import DAY, HOSTILE, MINUTE, NOON

from custosd.core.agents import AgentId
from custosd.core.errors import StoreRefused
from custosd.core.forge import (
    Closing,
    Delivery,
    ForgeWork,
    Link,
    LinkHow,
    RepositoryRecord,
    SyncOutcome,
    Told,
    Trouble,
    WorkKind,
    WorkQuery,
    WorkState,
)
from custosd.core.tasks import TaskId
from custosd.ports import SyncStore

REPOSITORY = "memory:ada/engine"
OTHER = "memory:ada/notes"
NAIVE = datetime(2026, 3, 14)  # noqa: DTZ001 - what must be refused
ALL = WorkQuery()


def link(task: str, how: LinkHow = LinkHow.TRAILER, *, closes: bool = True) -> Link:
    return Link(TaskId(task), how, closes)


def pull(
    key: str = "1",
    state: WorkState = WorkState.OPEN,
    at_utc: datetime = NOON,
    *,
    repository: str = REPOSITORY,
    title: str = "a change",
    links: tuple[Link, ...] = (),
) -> ForgeWork:
    landed = state is WorkState.MERGED
    return ForgeWork(
        repository,
        WorkKind.PULL_REQUEST,
        key,
        state,
        at_utc,
        title,
        f"https://forge.example/{key}",
        "ada",
        f"sha{key}",
        ("t-1-a-change",),
        landed,
        at_utc if landed else None,
        links,
    )


def commit(key: str = "c1", *branches: str, landed: bool = False) -> ForgeWork:
    state = WorkState.MERGED if landed else WorkState.OPEN
    return ForgeWork(
        REPOSITORY,
        WorkKind.COMMIT,
        key,
        state,
        NOON,
        branches=branches,
        landed=landed,
        landed_utc=NOON if landed else None,
    )


def delivery(name: str = "d1", digest: str = "x1", *works: ForgeWork) -> Delivery:
    return Delivery(name, digest, "works", REPOSITORY, works)


class SyncContract:
    """Subclass with a fixture `store`: an empty one."""

    async def test_what_was_saved_is_found_as_it_was(self, store: SyncStore) -> None:
        it = pull(title=HOSTILE, links=(link("T-1"),))
        assert await store.save_page(REPOSITORY, "pulls", HOSTILE, [it], NOON) == (it,)
        assert await store.works(ALL) == (it,)
        assert await store.cursors(REPOSITORY) == {"pulls": HOSTILE}
        assert await store.cursors(OTHER) == {}

    async def test_what_is_told_again_changes_nothing(self, store: SyncStore) -> None:
        for told in ((pull(),), ()):
            assert await store.save_page(REPOSITORY, "pulls", "a", [pull()], NOON) == told
        assert await store.works(ALL) == (pull(),)

    async def test_the_newest_word_counts_in_any_order(self, store: SyncStore) -> None:
        old, new = pull(), pull(state=WorkState.MERGED, at_utc=NOON + MINUTE)
        assert await store.save_page(REPOSITORY, "pulls", "a", [new], NOON) == (new,)
        assert await store.save_page(REPOSITORY, "pulls", "b", [old], NOON) == ()
        assert await store.works(ALL) == (new,)
        assert await store.cursors(REPOSITORY) == {"pulls": "b"}

    async def test_of_a_commit_the_branches_grow(self, store: SyncStore) -> None:
        await store.save_page(REPOSITORY, "a", "", [commit("c1", "work")], NOON)
        await store.save_page(REPOSITORY, "b", "", [commit("c1", "main", landed=True)], NOON)
        assert await store.works(ALL) == (commit("c1", "main", "work", landed=True),)

    async def test_a_delivery_is_taken_once_by_its_name_and_by_its_body(
        self, store: SyncStore
    ) -> None:
        assert await store.take_delivery("memory", delivery("d1", "x1", pull()), NOON) == (pull(),)
        assert await store.take_delivery("memory", delivery("d1", "x2", pull("2")), NOON) is None
        assert await store.take_delivery("memory", delivery("d2", "x1", pull("3")), NOON) is None
        assert await store.take_delivery("other", delivery("d1", "x1"), NOON) == ()
        assert await store.works(ALL) == (pull(),)

    async def test_works_are_asked_for(self, store: SyncStore) -> None:
        one, two = pull("1"), pull("2", WorkState.CLOSED, NOON + MINUTE)
        three = pull("3", repository=OTHER)
        await store.save_page(REPOSITORY, "pulls", "", [one, two, commit()], NOON)
        await store.save_page(OTHER, "pulls", "", [three], NOON)
        pulls = frozenset({WorkKind.PULL_REQUEST})
        assert await store.works(WorkQuery(REPOSITORY, pulls)) == (two, one)
        assert await store.works(WorkQuery(states=frozenset({WorkState.CLOSED}))) == (two,)
        assert await store.works(WorkQuery(OTHER)) == (three,)
        assert len(await store.works(WorkQuery(limit=2))) == 2

    async def test_changed_works_are_unread_until_they_are_read(self, store: SyncStore) -> None:
        it = pull(links=(link("T-1"), link("T-2")))
        await store.save_page(REPOSITORY, "pulls", "", [it, pull("2")], NOON)
        ((work, version),) = await store.unread(10)
        assert work == it
        assert await store.read(work, version, [link("T-1")]) == (link("T-1"),)
        assert await store.unread(10) == ()
        assert await store.works(WorkQuery(task=TaskId("T-1"))) == (it,)
        assert await store.works(WorkQuery(task=TaskId("T-2"))) == ()
        assert await store.read(work, version, [link("T-1")]) == ()

    async def test_what_changes_while_it_is_read_stays_unread(self, store: SyncStore) -> None:
        old = pull(links=(link("T-1"),))
        await store.save_page(REPOSITORY, "pulls", "", [old], NOON)
        ((work, version),) = await store.unread(10)
        new = replace(old, state=WorkState.MERGED, updated_utc=NOON + MINUTE)
        await store.save_page(REPOSITORY, "pulls", "", [new], NOON)
        await store.read(work, version, [link("T-1")])
        ((unread, later),) = await store.unread(10)
        assert unread == new
        assert later > version

    async def test_an_end_is_written_once_and_is_over_once(self, store: SyncStore) -> None:
        first = Closing(TaskId("T-1"), REPOSITORY, WorkKind.PULL_REQUEST, "1", NOON, AgentId("ada"))
        assert await store.intend(first) == first
        again = replace(first, agent=None, intended_utc=NOON + MINUTE)
        assert await store.intend(again) == first
        over = replace(first, done_utc=NOON + MINUTE, told=Told.QUEUED)
        await store.close(over)
        await store.close(replace(first, done_utc=NOON + DAY, told=Told.REFUSED))
        assert await store.intend(again) == over
        assert await store.closings(10) == (over,)

    async def test_records_are_replaced(self, store: SyncStore) -> None:
        record = RepositoryRecord(
            REPOSITORY, "7", "ada/engine", SyncOutcome.FAILED, NOON, NOON, 2, Trouble.GONE, "x"
        )
        await store.save_record(replace(record, failures=1))
        await store.save_record(record)
        await store.save_record(RepositoryRecord(OTHER))
        assert await store.records() == (record, RepositoryRecord(OTHER))

    async def test_what_is_over_goes_after_its_time(self, store: SyncStore) -> None:
        open_, closed = pull("1"), pull("2", WorkState.CLOSED)
        unread = pull("3", WorkState.CLOSED, links=(link("T-1"),))
        await store.save_page(REPOSITORY, "pulls", "c", [open_, closed, unread, commit()], NOON)
        await store.take_delivery("memory", delivery("d1", "x1"), NOON)
        closing = Closing(TaskId("T-1"), REPOSITORY, WorkKind.PULL_REQUEST, "1", NOON)
        await store.intend(closing)
        await store.close(replace(closing, done_utc=NOON, told=Told.NOBODY))
        assert await store.prune(NOON) == 0
        assert await store.prune(NOON + timedelta(seconds=1)) == 5
        assert await store.works(ALL) == (open_, unread)
        assert await store.cursors(REPOSITORY) == {}
        assert await store.closings(10) == ()
        assert await store.take_delivery("memory", delivery("d1", "x1"), NOON) == ()

    async def test_checks_that_were_left_behind_go_after_their_time(self, store: SyncStore) -> None:
        """Their pull request was merged, or pushed to anew: nobody says that they are over."""
        states = (WorkState.PENDING, WorkState.RUNNING, WorkState.PASSED)
        checks = [
            replace(pull(f"{n}", state), kind=WorkKind.CHECK) for n, state in enumerate(states)
        ]
        issue = replace(pull("9"), kind=WorkKind.ISSUE)
        await store.save_page(REPOSITORY, "checks", "c", [*checks, issue], NOON)
        await store.prune(NOON + timedelta(seconds=1))
        assert await store.works(ALL) == (issue,)

    async def test_what_makes_no_sense_is_refused_whole(self, store: SyncStore) -> None:
        for wrong in (
            replace(pull("2"), updated_utc=NAIVE),
            pull(""),
            pull("2", repository=OTHER),
        ):
            with pytest.raises(StoreRefused):
                await store.save_page(REPOSITORY, "pulls", "", [pull(), wrong], NOON)
        assert await store.works(ALL) == ()
