"""Keeps the one view of the fleet that everybody reads.

    Fact --> [ FleetView.after ] --> Latest[FleetView]
                    └── Entry --> the recorder

Laws: one writer; it never waits for a reader. The view is replaced, and what the
recorder has no room for is dropped and counted, so that a slow database can not stop
supervision through a ring of full channels.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

import structlog
import trio

from custosd.core.facts import Entry, Fact, FactsDropped, TrajectoryAdvanced
from custosd.core.view import FleetView
from custosd.flow.latest import Latest
from custosd.flow.monitor import Kind, operation
from custosd.flow.pulse import Pulse

log = structlog.get_logger()

LARGEST_BATCH = 1_000
"""Facts folded into one new view at most; more of them wait in the channel."""


class EntryMaker:
    """Gives facts their place in the record: an id unique to this start, and a time."""

    def __init__(self, boot: str, now_utc: Callable[[], datetime]) -> None:
        self._boot = boot
        self._now_utc = now_utc
        self._made = 0
        self.dropped = 0
        """How many entries there was no room for, in all."""

    def entry(self, fact: Fact) -> Entry:
        """The fact as an entry; ids of one start sort in the order of making."""
        self._made += 1
        return Entry(f"{self._boot}-{self._made:010x}", self._now_utc(), fact)


async def keep_board(
    facts: trio.MemoryReceiveChannel[Fact],
    view: Latest[FleetView],
    record: trio.MemorySendChannel[Entry],
    maker: EntryMaker,
    settle_s: float,
    pulse: Pulse,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run until `facts` ends; then close `record`, so the end flows on.

    Started: at once. A batch is what arrives within `settle_s` of its first fact.
    Back-pressure: none; entries that `record` cannot take are dropped and told of.
    Raises: `trio.BrokenResourceError` if the recorder is gone.
    """
    dropped = 0
    async with facts, record:
        task_status.started()
        while True:
            batch, settled_s = await _batch(facts, settle_s, pulse)
            if not batch:
                return
            async with operation(Kind.EVENT, "facts", settled_s) as folding:
                folding.used("facts", len(batch))
                entries = [maker.entry(fact) for fact in batch]
                view.publish(view.value.after(entries))
                dropped = _hand_over(entries, record, maker, dropped)
            pulse.beat()


async def _batch(
    facts: trio.MemoryReceiveChannel[Fact], settle_s: float, pulse: Pulse
) -> tuple[list[Fact], float]:
    """At least one fact, none at the end of the channel; and how long the first one waited."""
    batch: list[Fact] = []
    first_at = math.inf
    with pulse.waiting(), suppress(trio.EndOfChannel):
        batch.append(await facts.receive())
        first_at = trio.current_time()
        # A memory channel's receive is atomic under cancellation: a fact that races with
        # the deadline is either in the batch or left in the channel for the next one.
        with trio.move_on_after(settle_s):
            while len(batch) < LARGEST_BATCH:
                batch.append(await facts.receive())
    return batch, max(trio.current_time() - first_at, 0.0)


def _hand_over(
    entries: list[Entry],
    record: trio.MemorySendChannel[Entry],
    maker: EntryMaker,
    dropped: int,
) -> int:
    """Offer entries to the recorder; return how many are now dropped and not yet told."""
    for entry in entries:
        # Progress is stored by its maker, as absolute state; its facts feed the view alone.
        if isinstance(entry.fact, TrajectoryAdvanced):
            continue
        try:
            if dropped:
                record.send_nowait(maker.entry(FactsDropped(dropped)))
                log.warning("facts.dropped", count=dropped)
                dropped = 0
            record.send_nowait(entry)
        except trio.WouldBlock:
            dropped += 1
            maker.dropped += 1
    return dropped
