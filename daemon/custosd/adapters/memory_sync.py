"""What was seen on forges, in memory: the shipped fake, with the real one's laws.

Law: a method does all or nothing, and nothing at all while `fail_with` is in force.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import trio

from custosd.adapters.encoding import check_closing, check_time, check_works
from custosd.core.errors import StoreError
from custosd.core.forge import (
    Closing,
    Delivery,
    ForgeWork,
    Link,
    RepositoryRecord,
    WorkKind,
    WorkQuery,
    WorkState,
    absorbed,
)

UNDYING = frozenset({WorkKind.PULL_REQUEST, WorkKind.ISSUE})
"""What stays while it is open. Of a check that is left behind nobody tells any more."""

_Id = tuple[str, str, str]


@dataclass(slots=True)
class _Kept:
    work: ForgeWork
    version: int
    at_utc: datetime
    unread: bool
    links: dict[str, Link] = field(default_factory=dict[str, Link])


class MemorySync:
    """`ports.SyncStore` without a server."""

    def __init__(self) -> None:
        self._records: dict[str, RepositoryRecord] = {}
        self._cursors: dict[tuple[str, str], tuple[str, datetime]] = {}
        self._works: dict[_Id, _Kept] = {}
        self._deliveries: dict[tuple[str, str], tuple[str, datetime]] = {}
        self._closings: dict[tuple[str, str, str, str], Closing] = {}
        self._failure: StoreError | None = None

    def fail_with(self, failure: StoreError | None) -> None:
        """Raise this at every call from now on, as a database that is away; None: no more."""
        self._failure = failure

    async def _reach(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._failure is not None:
            raise self._failure

    async def records(self) -> tuple[RepositoryRecord, ...]:
        """See the port."""
        await self._reach()
        return tuple(record for _, record in sorted(self._records.items()))

    async def save_record(self, record: RepositoryRecord) -> None:
        """See the port."""
        await self._reach()
        self._records[record.repository] = record

    async def cursors(self, repository: str) -> Mapping[str, str]:
        """See the port."""
        await self._reach()
        return {
            stream: cursor
            for (of, stream), (cursor, _) in self._cursors.items()
            if of == repository
        }

    async def save_page(
        self,
        repository: str,
        stream: str,
        cursor: str,
        works: Sequence[ForgeWork],
        at_utc: datetime,
    ) -> tuple[ForgeWork, ...]:
        """See the port."""
        check_time(at_utc)
        check_works(works, repository)
        await self._reach()
        self._cursors[repository, stream] = cursor, at_utc
        return self._absorb(works, at_utc)

    async def take_delivery(
        self, forge: str, delivery: Delivery, at_utc: datetime
    ) -> tuple[ForgeWork, ...] | None:
        """See the port."""
        check_time(at_utc)
        check_works(delivery.works, delivery.repository)
        await self._reach()
        digests = {digest for (of, _), (digest, _) in self._deliveries.items() if of == forge}
        if (forge, delivery.id) in self._deliveries or delivery.digest in digests:
            return None
        self._deliveries[forge, delivery.id] = delivery.digest, at_utc
        return self._absorb(delivery.works, at_utc)

    def _absorb(self, works: Sequence[ForgeWork], at_utc: datetime) -> tuple[ForgeWork, ...]:
        known = {id_: kept.work for id_, kept in self._works.items()}
        changed = absorbed(known, works)
        for work in changed:
            kept = self._works.get(work.id)
            links = kept.links if kept else {}
            version = kept.version + 1 if kept else 1
            self._works[work.id] = _Kept(work, version, at_utc, bool(work.links), links)
        return changed

    async def works(self, query: WorkQuery) -> tuple[ForgeWork, ...]:
        """See the port."""
        await self._reach()
        found = [kept.work for kept in self._works.values() if _fits(kept, query)]
        found.sort(key=lambda work: work.id)
        found.sort(key=lambda work: work.updated_utc, reverse=True)
        return tuple(found[: query.limit])

    async def unread(self, limit: int) -> tuple[tuple[ForgeWork, int], ...]:
        """See the port."""
        await self._reach()
        found = [kept for kept in self._works.values() if kept.unread]
        found.sort(key=lambda kept: (kept.at_utc, kept.work.id))
        return tuple((kept.work, kept.version) for kept in found[:limit])

    async def read(self, work: ForgeWork, version: int, links: Sequence[Link]) -> tuple[Link, ...]:
        """See the port."""
        await self._reach()
        kept = self._works.get(work.id)
        if kept is None:
            return ()
        new = tuple(link for link in links if link.task not in kept.links)
        kept.links |= {link.task: link for link in links}
        kept.unread = kept.unread and kept.version != version
        return new

    async def intend(self, closing: Closing) -> Closing:
        """See the port."""
        check_closing(closing)
        await self._reach()
        return self._closings.setdefault(closing.id, closing)

    async def close(self, closing: Closing) -> None:
        """See the port."""
        check_closing(closing)
        await self._reach()
        known = self._closings.get(closing.id)
        if known is not None and known.done_utc is None:
            self._closings[closing.id] = closing

    async def closings(self, limit: int) -> tuple[Closing, ...]:
        """See the port."""
        await self._reach()
        found = sorted(self._closings.values(), key=lambda closing: closing.id)
        found.sort(key=lambda closing: closing.intended_utc, reverse=True)
        return tuple(found[:limit])

    async def prune(self, before_utc: datetime) -> int:
        """See the port."""
        check_time(before_utc)
        await self._reach()
        works = [
            id_
            for id_, kept in self._works.items()
            if kept.at_utc < before_utc and not kept.unread and _is_over(kept.work)
        ]
        cursors = [key for key, (_, at) in self._cursors.items() if at < before_utc]
        told = [key for key, (_, at) in self._deliveries.items() if at < before_utc]
        over = [
            id_ for id_, it in self._closings.items() if it.done_utc and it.done_utc < before_utc
        ]
        for id_ in works:
            del self._works[id_]
        for cursor in cursors:
            del self._cursors[cursor]
        for delivery in told:
            del self._deliveries[delivery]
        for closing in over:
            del self._closings[closing]
        return len(works) + len(cursors) + len(told) + len(over)


def _is_over(work: ForgeWork) -> bool:
    return work.kind not in UNDYING or work.state is not WorkState.OPEN


def _fits(kept: _Kept, query: WorkQuery) -> bool:
    work = kept.work
    return (
        query.repository in {"", work.repository}
        and (not query.kinds or work.kind in query.kinds)
        and (not query.states or work.state in query.states)
        and (query.task is None or query.task in kept.links)
    )
