"""Follows repositories on forges: by asking, each interval, and by what their hooks tell.

    interval ─► sweep ─► [ repository, so many at once ] ─► Forge.page ─► SyncStore ─┐
    hooks ───► receive ─► Forge.delivery ─────────────────► SyncStore ──────────────┴► landing

Laws:

1. One repository's failure is its own: it rests, longer each time, and the others go on. What
   does not pass by itself, or not soon, is a person's concern until it is over.
2. A limit is the account's: nobody asks the forge before its time, through our restarts too,
   and a share of what it grants is left to others. An account that is held for long is a
   person's concern.
3. How far each stream was followed is stored with what was read, page by page: a stop costs
   no page, and an unbroken pass over what did not change costs nothing.
4. A hook is stored before it is answered, once by its name and its body; in whatever order
   they come, with whatever is asked beside, the newest word counts.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import structlog
import trio

from custosd.core.errors import StoreError, StoreRefused
from custosd.core.facts import (
    ConcernResolved,
    Escalated,
    Fact,
    ForgesSwept,
    RepositoryFollowed,
)
from custosd.core.forge import (
    LASTING,
    LONGEST_HOLD_S,
    BackoffRules,
    ForgeError,
    ForgeWork,
    HookRefusal,
    HookRefused,
    Quota,
    Repository,
    RepositoryRecord,
    SyncOutcome,
    Trouble,
    WorkKind,
    WorkQuery,
    WorkState,
    hold_s,
    rest_after,
)
from custosd.flow.bounded import for_each
from custosd.flow.monitor import Kind, operation
from custosd.flow.pulse import Pulse
from custosd.flow.schedule import Firing, Schedule
from custosd.flow.triggers import interval
from custosd.ports import Forge, ForgePage, SyncStore
from custosd.services.store_absence import StoreAbsence

log = structlog.get_logger()

OPEN_LOOKED_AT = 20
DELIVERIES_REMEMBERED = 4_096
REFUSALS_TOLD_S = 60.0
HELD_TOLD_S = 3_600.0
"""An account that gave nothing for longer, which is when GitHub's own limits end, is a concern."""


@dataclass(frozen=True, slots=True)
class SyncSetup:
    """What is followed, how much at once and how often; seconds, counts and shares.

    `pages` bounds what one stream may take of one sweep; `reserve` is the share of the
    account's requests that is left alone.
    """

    repositories: tuple[Repository, ...] = ()
    interval_s: float = 120.0
    concurrency: int = 3
    pages: int = 10
    page_timeout_s: float = 30.0
    reserve: float = 0.1
    backoff: BackoffRules = field(default_factory=BackoffRules)


@dataclass(frozen=True, slots=True)
class SyncPorts:
    """What a sync works with; forges by their names."""

    store: SyncStore
    forges: Mapping[str, Forge]
    now_utc: Callable[[], datetime]


@dataclass(slots=True)
class _Account:
    """What a forge still grants us: nothing before `closed_until` (trio clock).

    `held_since` which time it gave no page; `told`: a person knows. `doubtful`: one may, from
    whoever followed before.
    """

    closed_until: float = 0.0
    in_a_row: int = 0
    quota: Quota | None = None
    held_since: float | None = None
    told: bool = False
    doubtful: bool = False


@dataclass(slots=True)
class _Tally:
    """What following one repository came to."""

    pages: int = 0
    unchanged: int = 0
    works: int = 0
    changed: int = 0
    forge_id: str = ""
    full_name: str = ""


class _Held(Exception):
    """The account is used up for now."""


@dataclass(slots=True)
class Sync:
    """What is followed and how it goes; `follow_forges` runs it.

    `landed` is called when works changed. `receive` may be called at any time.
    """

    ports: SyncPorts
    setup: SyncSetup
    facts: trio.MemorySendChannel[Fact]
    pulse: Pulse
    landed: Callable[[], None] = lambda: None
    records: dict[str, RepositoryRecord] = field(default_factory=dict[str, RepositoryRecord])
    last: ForgesSwept | None = None
    _accounts: dict[str, _Account] = field(default_factory=dict[str, _Account])
    _recalled: bool = False
    _due: trio.Event = field(default_factory=trio.Event)
    _forced: bool = False
    _told: set[str] = field(default_factory=set[str])
    _seen: deque[str] = field(default_factory=lambda: deque(maxlen=DELIVERIES_REMEMBERED))
    _refused: dict[HookRefusal, int] = field(default_factory=dict[HookRefusal, int])
    _refused_at: float = 0.0
    _absence: StoreAbsence = field(default_factory=lambda: StoreAbsence("sync"))

    # asking

    def look_now(self, *, forced: bool = True) -> None:
        """Begin a sweep as soon as none is under way; `forced`: also of those that rest."""
        self._forced = self._forced or forced
        self._due.set()

    async def sweep(self, *, forced: bool = False) -> ForgesSwept:
        """Follow every repository that does not rest; raises nothing of its own."""
        began_at, now_utc = trio.current_time(), self.ports.now_utc()
        await self._recall()
        due = [one for one in self.setup.repositories if forced or self._is_due(one, now_utc)]
        tallies: dict[str, tuple[SyncOutcome | None, _Tally]] = {}

        async def follow(repository: Repository) -> None:
            waited_s = trio.current_time() - began_at
            async with operation(Kind.NETWORK, "repository", waited_s):
                tallies[repository.id] = await self._follow(repository)

        if self._recalled:
            await for_each(due, follow, limit=self.setup.concurrency)
            await self._tell_holds()
        outcomes = [outcome for outcome, _ in tallies.values()]
        told = [tally for _, tally in tallies.values()]
        swept = self.last = ForgesSwept(
            repositories=len(self.setup.repositories),
            synced=outcomes.count(SyncOutcome.SYNCED),
            held=outcomes.count(SyncOutcome.HELD),
            failed=outcomes.count(SyncOutcome.FAILED),
            resting=len(self.setup.repositories) - len(due),
            pages=sum(tally.pages for tally in told),
            unchanged=sum(tally.unchanged for tally in told),
            works=sum(tally.works for tally in told),
            changed=sum(tally.changed for tally in told),
            duration_s=trio.current_time() - began_at,
        )
        log.info(
            "forges.swept",
            repositories=swept.repositories,
            synced=swept.synced,
            held=swept.held,
            failed=swept.failed,
            resting=swept.resting,
            pages=swept.pages,
            unchanged=swept.unchanged,
            works=swept.works,
            changed=swept.changed,
            duration_s=round(swept.duration_s, 4),
        )
        await self.facts.send(swept)
        return swept

    def _is_due(self, repository: Repository, now_utc: datetime) -> bool:
        record = self.records.get(repository.id)
        # Of who is held it is the account that says when.
        if record is None or record.retry_utc is None or _is_held(record):
            return True
        left = record.retry_utc - now_utc
        # Beyond what a rest may last it is the clock that was set.
        return not timedelta() < left <= timedelta(seconds=2 * self._longest_rest_s)

    @property
    def _longest_rest_s(self) -> float:
        return max(self.setup.backoff.cap_s, self.setup.backoff.lasting_s)

    async def _follow(self, repository: Repository) -> tuple[SyncOutcome | None, _Tally]:
        """Follow one repository; None where it is not known how it went, the store being away."""
        tally, began_at = _Tally(), trio.current_time()
        error: ForgeError | None = None
        outcome = SyncOutcome.SYNCED
        try:
            await self._follow_streams(repository, tally)
        except _Held:
            outcome = SyncOutcome.HELD
        except ForgeError as failure:
            outcome, error = SyncOutcome.FAILED, failure
        except StoreRefused as failure:
            # A fault of ours, or data that no database takes: it is of this repository.
            outcome, error = SyncOutcome.FAILED, ForgeError(Trouble.MALFORMED, str(failure))
        except StoreError as failure:
            self._absence.lost(failure, 0)
            return None, tally
        if tally.changed:
            self.landed()
        await self._note(repository, outcome, error, tally, trio.current_time() - began_at)
        return outcome, tally

    async def _follow_streams(self, repository: Repository, tally: _Tally) -> None:
        forge = self.ports.forges.get(repository.forge)
        if forge is None:
            raise ForgeError(Trouble.GONE, f"{repository.name}: no forge {repository.forge}")
        store = self.ports.store
        cursors = await store.cursors(repository.id)
        pulls = WorkQuery(
            repository.id,
            frozenset({WorkKind.PULL_REQUEST}),
            frozenset({WorkState.OPEN}),
            limit=OPEN_LOOKED_AT,
        )
        open_works = await store.works(pulls)
        self._absence.answered()
        for stream in forge.streams(repository, open_works):
            await self._follow_stream(forge, repository, stream, cursors.get(stream, ""), tally)

    async def _follow_stream(
        self, forge: Forge, repository: Repository, stream: str, cursor: str, tally: _Tally
    ) -> None:
        for _ in range(self.setup.pages):
            try:
                page = await self._page(forge, repository, stream, cursor)
            except ForgeError as error:
                if error.cursor is not None:
                    await self._save(repository, stream, error.cursor, (), tally)
                if error.trouble is Trouble.ABSENT:
                    return
                raise
            tally.pages += 1
            tally.unchanged += page.unchanged
            tally.works += len(page.works)
            tally.forge_id = page.forge_id or tally.forge_id
            tally.full_name = page.full_name or tally.full_name
            if page.works or page.cursor != cursor:
                await self._save(repository, stream, page.cursor, page.works, tally)
            if not page.more:
                return
            cursor = page.cursor

    async def _save(
        self,
        repository: Repository,
        stream: str,
        cursor: str,
        works: tuple[ForgeWork, ...],
        tally: _Tally,
    ) -> None:
        changed = await self.ports.store.save_page(
            repository.id, stream, cursor, works, self.ports.now_utc()
        )
        tally.changed += len(changed)

    async def _page(
        self, forge: Forge, repository: Repository, stream: str, cursor: str
    ) -> ForgePage:
        account = self._accounts.setdefault(repository.forge, _Account())
        if trio.current_time() < account.closed_until:
            raise _Held
        try:
            page = await self._in_time(forge, repository, stream, cursor)
        except ForgeError as error:
            if error.trouble is not Trouble.LIMITED:
                raise
            account.in_a_row += 1
            self._hold(repository.forge, hold_s(error.retry_in_s, account.in_a_row), "limited")
            raise _Held from error
        finally:
            self.pulse.beat()
        account.in_a_row = 0
        self._heed(repository.forge, page.quota)
        if account.closed_until <= trio.current_time():
            account.held_since = None
        return page

    async def _in_time(
        self, forge: Forge, repository: Repository, stream: str, cursor: str
    ) -> ForgePage:
        with trio.move_on_after(self.setup.page_timeout_s):
            return await forge.page(repository, stream, cursor)
        words = f"{repository.name} {stream}: no page within {self.setup.page_timeout_s:g} s"
        raise ForgeError(Trouble.UNREACHABLE, words)

    def _heed(self, forge: str, quota: Quota | None) -> None:
        """Leave what is reserved of the account's requests to others."""
        if quota is None:
            return
        self._accounts[forge].quota = quota
        if quota.remaining <= quota.limit * self.setup.reserve and quota.resets_in_s > 0:
            self._hold(forge, min(quota.resets_in_s, LONGEST_HOLD_S), "reserve")

    def _hold(self, forge: str, seconds: float, reason: str) -> None:
        account, now = self._accounts[forge], trio.current_time()
        if account.closed_until <= now:
            log.warning("forge.held", forge=forge, reason=reason, until_s=round(seconds, 1))
        account.closed_until = max(account.closed_until, now + seconds)
        account.held_since = now if account.held_since is None else account.held_since

    def held(self) -> Mapping[str, float]:
        """For how many seconds more accounts are not used, by the names of their forges."""
        now = trio.current_time()
        left = {forge: account.closed_until - now for forge, account in self._accounts.items()}
        return {forge: seconds for forge, seconds in left.items() if seconds > 0}

    def _held_before_s(self, forge: str) -> float:
        """How much is left of a hold that was told to who followed before this."""
        now_utc = self.ports.now_utc()
        left = [
            (record.retry_utc - now_utc).total_seconds()
            for record in self.records.values()
            if record.retry_utc and _is_held(record)
            if record.repository.partition(":")[0] == forge
        ]
        return min(max([0.0, *left]), LONGEST_HOLD_S)

    async def _tell_holds(self) -> None:
        """Tell a person of an account that is held for long, and when it is not any more."""
        now = trio.current_time()
        for forge, account in self._accounts.items():
            if account.held_since is None:
                if account.told or account.doubtful:
                    account.told = account.doubtful = False
                    await self.facts.send(ConcernResolved(_hold_concern(forge), "granted"))
            elif now - account.held_since > HELD_TOLD_S and not account.told:
                account.told = True
                await self.facts.send(
                    Escalated(_hold_concern(forge), "forge_held", None, Trouble.LIMITED.value)
                )

    # what is remembered, and who is told

    async def _recall(self) -> None:
        """Take up what was stored, once the store is there."""
        if self._recalled:
            return
        with self._absence.told(0):
            self.records = {record.repository: record for record in await self._stored()}
            self._recalled = True
        followed = {repository.id for repository in self.setup.repositories}
        for forge in {one.partition(":")[0] for one, it in self.records.items() if _is_held(it)}:
            if any(one.forge == forge for one in self.setup.repositories):
                now = trio.current_time()
                until = now + self._held_before_s(forge)
                self._accounts[forge] = _Account(until, held_since=now, doubtful=True)
            else:
                await self.facts.send(ConcernResolved(_hold_concern(forge), "not_followed"))
        for record in self.records.values():
            if not self._needs_person(record):
                continue
            if record.repository in followed:
                await self._escalate(record)
            else:
                await self.facts.send(ConcernResolved(_concern(record.repository), "not_followed"))

    async def _stored(self) -> tuple[RepositoryRecord, ...]:
        return await self.ports.store.records()

    async def _note(
        self,
        repository: Repository,
        outcome: SyncOutcome,
        error: ForgeError | None,
        tally: _Tally,
        duration_s: float,
    ) -> None:
        now_utc = self.ports.now_utc()
        before = self.records.get(repository.id, RepositoryRecord(repository.id))
        after = self._after(before, outcome, error, tally, now_utc)
        self.records[repository.id] = after
        with self._absence.told(1):
            await self.ports.store.save_record(after)
        level = logging.WARNING if error else (logging.INFO if tally.changed else logging.DEBUG)
        log.log(
            level,
            "repository.followed",
            repository=repository.id,
            outcome=outcome,
            trouble=after.trouble,
            error=str(error) if error else "",
            pages=tally.pages,
            unchanged=tally.unchanged,
            works=tally.works,
            changed=tally.changed,
            failures=after.failures,
            duration_s=round(duration_s, 4),
        )
        if tally.changed or outcome is not before.outcome:
            await self.facts.send(
                RepositoryFollowed(
                    repository.id, outcome, tally.pages, tally.changed, duration_s, after.trouble
                )
            )
        if self._needs_person(after):
            await self._escalate(after)
        elif outcome is SyncOutcome.SYNCED and repository.id in self._told:
            self._told.discard(repository.id)
            await self.facts.send(ConcernResolved(_concern(repository.id), "synced"))

    def _after(
        self,
        before: RepositoryRecord,
        outcome: SyncOutcome,
        error: ForgeError | None,
        tally: _Tally,
        now_utc: datetime,
    ) -> RepositoryRecord:
        known = replace(
            before,
            forge_id=tally.forge_id or before.forge_id,
            full_name=tally.full_name or before.full_name,
            outcome=outcome,
            looked_utc=now_utc,
        )
        if error is not None:
            failures = before.failures + 1
            rest_s = max(
                rest_after(failures, error.trouble, self.setup.backoff),
                min(error.retry_in_s or 0.0, self._longest_rest_s),
            )
            return replace(
                known,
                failures=failures,
                trouble=error.trouble,
                detail=str(error)[:300],
                retry_utc=now_utc + timedelta(seconds=rest_s),
            )
        if outcome is SyncOutcome.HELD:
            forge = before.repository.partition(":")[0]
            held_s = self.held().get(forge, 0.0)
            return replace(known, retry_utc=now_utc + timedelta(seconds=held_s))
        return replace(
            known, synced_utc=now_utc, failures=0, trouble=None, detail="", retry_utc=None
        )

    def _needs_person(self, record: RepositoryRecord) -> bool:
        if record.trouble is None:
            return False
        return record.trouble in LASTING or record.failures >= self.setup.backoff.tell_after

    async def _escalate(self, record: RepositoryRecord) -> None:
        if record.repository in self._told or record.trouble is None:
            return
        self._told.add(record.repository)
        concern, why = _concern(record.repository), record.trouble.value
        await self.facts.send(Escalated(concern, "sync_failing", None, why))

    # hooks

    async def receive(self, forge_name: str, headers: Mapping[str, str], body: bytes) -> int:
        """Take what a forge told by itself; how many works changed by it.

        Raises `HookRefused`; what is refused is counted, and told of once a minute.
        """
        try:
            return await self._taken(forge_name, headers, body)
        except HookRefused as refused:
            self._refuse(forge_name, refused.refusal)
            raise

    async def _taken(self, forge_name: str, headers: Mapping[str, str], body: bytes) -> int:
        forge = self.ports.forges.get(forge_name)
        if forge is None:
            raise HookRefused(HookRefusal.UNKNOWN, "there is no such forge")

        def find(name: str, forge_id: str) -> Repository | None:
            return self._named(forge_name, name, forge_id)

        delivery = await forge.delivery(headers, body, find)
        if not delivery.repository:
            return 0
        marks = (f"{forge_name} id {delivery.id}", f"{forge_name} body {delivery.digest}")
        if any(mark in self._seen for mark in marks):
            raise HookRefused(HookRefusal.REPLAYED, "it was taken before")
        try:
            changed = await self.ports.store.take_delivery(
                forge_name, delivery, self.ports.now_utc()
            )
        except StoreRefused as error:
            raise HookRefused(HookRefusal.MALFORMED, "the database does not take it") from error
        except StoreError as error:
            raise HookRefused(HookRefusal.BUSY, "the database does not answer") from error
        self._seen.extend(marks)
        if changed is None:
            raise HookRefused(HookRefusal.REPLAYED, "it was taken before")
        log.info(
            "webhook.taken",
            forge=forge_name,
            repository=delivery.repository,
            kind=delivery.event,
            works=len(delivery.works),
            changed=len(changed),
        )
        if changed:
            self.landed()
        return len(changed)

    def _named(self, forge: str, name: str, forge_id: str) -> Repository | None:
        """Which repository is meant: by its name, or by what outlives its names."""
        for one in self.setup.repositories:
            if one.forge != forge:
                continue
            record = self.records.get(one.id)
            same_id = record is not None and forge_id != "" and record.forge_id == forge_id
            if same_id or one.name.lower() == name.lower():
                return one
        return None

    def _refuse(self, forge: str, refusal: HookRefusal) -> None:
        """Count it; a line for each would be a way to fill our log."""
        self._refused[refusal] = self._refused.get(refusal, 0) + 1
        now = trio.current_time()
        if now < self._refused_at + REFUSALS_TOLD_S and self._refused_at:
            return
        self._refused_at = now or 1e-9
        for why, count in self._refused.items():
            log.warning("webhooks.refused", forge=forge, reason=why, count=count)
        self._refused.clear()

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """See `follow_forges`."""
        schedule = Schedule(self.ports.now_utc)

        async def fire(_firing: Firing) -> None:
            self.look_now(forced=False)
            await trio.lowlevel.checkpoint()

        first_utc = self.ports.now_utc() + timedelta(seconds=self.setup.interval_s)
        schedule.add("sync", interval(self.setup.interval_s, first_utc), fire)
        async with trio.open_nursery() as nursery:
            await nursery.start(schedule.run)
            # A forge that is slow is no reason for a late start.
            task_status.started()
            self._due.set()
            while True:
                with self.pulse.waiting():
                    await self._due.wait()
                self._due, forced, self._forced = trio.Event(), self._forced, False
                if self.setup.repositories:
                    await self.sweep(forced=forced)
                else:
                    # What was followed before may have left a concern.
                    await self._recall()
                self.pulse.beat()


def _concern(repository: str) -> str:
    return f"sync:{repository}"


def _hold_concern(forge: str) -> str:
    return f"forge:{forge}"


def _is_held(record: RepositoryRecord) -> bool:
    return record.outcome is SyncOutcome.HELD


async def follow_forges(
    sync: Sync, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Sweep now and every interval; never returns unless cancelled. Closes the facts.

    Started at once. Sweeps do not overlap; one that is late stands for all that were missed.
    Back-pressure: waits for room in the facts. A forge that fails otherwise than with a
    `ForgeError` is a defect, and propagates.
    """
    async with sync.facts:
        await sync.run(task_status)
