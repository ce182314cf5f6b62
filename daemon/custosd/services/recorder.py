"""Writes the record, in batches.

    Entry --> [ batch ] --> Store.record

Laws: history only. While the store is away entries wait here, in order, as far as the
channel has room; what must not be lost is written by its maker before the act.
"""

from dataclasses import dataclass

import structlog
import trio

from custosd.core.errors import StoreConflict, StoreRefused, StoreUnavailable
from custosd.core.facts import Entry, kind_of
from custosd.ports import Store

log = structlog.get_logger()

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class RecorderLimits:
    """`batch` entries at most in one write; a smaller batch waits `flush_s` for more."""

    batch: int
    flush_s: float


async def record_facts(
    entries: trio.MemoryReceiveChannel[Entry],
    store: Store,
    limits: RecorderLimits,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run until `entries` ends and the last batch is stored.

    Started: at once. Back-pressure: the board drops what the channel cannot hold.
    An unavailable store is tried again, with longer and longer pauses up to 30 s; a
    refused entry is told of (`fact.refused`) and left out. Raises nothing of its own.
    """
    async with entries:
        task_status.started()
        async for first in entries:
            await _store(await _batch(first, entries, limits), store)


async def _batch(
    first: Entry, entries: trio.MemoryReceiveChannel[Entry], limits: RecorderLimits
) -> list[Entry]:
    batch = [first]
    with trio.move_on_after(limits.flush_s):
        while len(batch) < limits.batch:
            try:
                batch.append(await entries.receive())
            except trio.EndOfChannel:
                break
    return batch


async def _store(batch: list[Entry], store: Store) -> None:
    pause_s = FIRST_PAUSE_S
    away = False
    while True:
        try:
            await store.record(batch)
        except StoreConflict:
            await trio.lowlevel.checkpoint()
        except StoreUnavailable as error:
            if not away:
                log.warning("store.lost", during="record", error=str(error), waiting=len(batch))
            away = True
            await trio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        except StoreRefused as error:
            await _store_singly(batch, store, error)
            return
        else:
            if away:
                log.info("store.returned", during="record")
            return


async def _store_singly(batch: list[Entry], store: Store, error: StoreRefused) -> None:
    """One entry is bad: halve until it stands alone, and leave only that one out."""
    if len(batch) == 1:
        fact = batch[0].fact
        log.error("fact.refused", fact=kind_of(fact), id=batch[0].id, error=str(error))
        return
    middle = len(batch) // 2
    await _store(batch[:middle], store)
    await _store(batch[middle:], store)
