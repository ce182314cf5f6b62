"""Writes the record, in batches.

    Entry --> [ batch ] --> Store.record

Laws: history only. While the store is away entries wait here, in order, as far as the
channel has room; what must not be lost is written by its maker before the act.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import inf

import structlog
import trio

from custosd.core.errors import StoreRefused
from custosd.core.facts import Entry, kind_of
from custosd.flow.monitor import Kind, operation
from custosd.flow.pulse import Pulse
from custosd.ports import Store
from custosd.services.store_absence import until_answered

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class RecorderLimits:
    """`batch` entries at most in one write; a smaller batch waits `flush_s` for more."""

    batch: int
    flush_s: float


@dataclass(slots=True)
class InHand:
    """How many entries were taken out of the channel and are not in the store yet; since when."""

    entries: int = 0
    since_at: float = 0.0


async def record_facts(
    entries: trio.MemoryReceiveChannel[Entry],
    store: Store,
    limits: RecorderLimits,
    pulse: Pulse,
    in_hand: InHand,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run until `entries` ends and the last batch is stored.

    Started: at once. Back-pressure: the board drops what the channel cannot hold.
    An unavailable store is tried again, with longer and longer pauses up to 30 s; a
    refused entry is told of (`fact.refused`) and left out. `in_hand` is what a
    cancellation would lose beside the channel. Raises nothing of its own.
    """
    async with entries:
        task_status.started()
        while batch := await _batch(entries, limits, pulse, in_hand):
            # As long as the store is away: that is told of by itself.
            gathered_s = trio.current_time() - in_hand.since_at
            async with operation(Kind.BATCH, "record", gathered_s, slow_s=inf) as recording:
                recording.used("entries", len(batch))
                await _store(batch, store, pulse)
            in_hand.entries = 0


async def _batch(
    entries: trio.MemoryReceiveChannel[Entry], limits: RecorderLimits, pulse: Pulse, in_hand: InHand
) -> list[Entry]:
    """At least one entry; none at the end of the channel."""
    batch: list[Entry] = []
    with pulse.waiting(), suppress(trio.EndOfChannel):
        batch.append(await entries.receive())
        in_hand.entries, in_hand.since_at = 1, trio.current_time()
        with trio.move_on_after(limits.flush_s):
            while len(batch) < limits.batch:
                batch.append(await entries.receive())
                in_hand.entries = len(batch)
    return batch


async def _store(batch: list[Entry], store: Store, pulse: Pulse) -> None:
    try:
        await until_answered(
            partial(store.record, batch),
            "record",
            waiting=partial(len, batch),
            pause=pulse.sleep,
        )
    except StoreRefused as error:
        await _store_singly(batch, store, error, pulse)
    else:
        pulse.beat()


async def _store_singly(
    batch: list[Entry], store: Store, error: StoreRefused, pulse: Pulse
) -> None:
    """One entry is bad: halve until it stands alone, and leave only that one out."""
    if len(batch) == 1:
        fact = batch[0].fact
        log.error("fact.refused", fact=kind_of(fact), id=batch[0].id, error=str(error))
        return
    middle = len(batch) // 2
    await _store(batch[:middle], store, pulse)
    await _store(batch[middle:], store, pulse)
