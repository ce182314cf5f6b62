"""Takes away what is older than its time, here and in the store; makes room for days to come."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

import structlog
import trio

from custosd.core.errors import StoreError
from custosd.core.facts import Fact
from custosd.flow.pulse import Pulse
from custosd.flow.retry import FailedAttempt, retry
from custosd.ports import RetentionLimits, Store
from custosd.services.store_absence import STORE_RETRIES

log = structlog.get_logger()

_FIRST_DAYS = replace(STORE_RETRIES, retry_on=lambda error: isinstance(error, StoreError))


@dataclass(frozen=True, slots=True)
class RetentionTimes:
    """How long each sort of row is kept, and how often is looked; seconds."""

    interval_s: float
    facts_s: float
    verdicts_s: float
    transcripts_s: float
    acts_s: float

    def limits(self, now_utc: datetime) -> RetentionLimits:
        """The times before which rows go, seen from `now_utc`."""
        return RetentionLimits(
            now_utc - timedelta(seconds=self.facts_s),
            now_utc - timedelta(seconds=self.verdicts_s),
            now_utc - timedelta(seconds=self.transcripts_s),
        )


class Prunable(Protocol):
    """What else is let go of once it was over for as long as acts are kept."""

    async def prune(self, before_utc: datetime) -> int:
        """Drop what was over before this time; how many rows that were."""
        ...


async def keep_retention(
    store: Store,
    others: Sequence[Prunable],
    now_utc: Callable[[], datetime],
    times: RetentionTimes,
    forget: Callable[[datetime], Sequence[Fact]],
    facts: trio.MemorySendChannel[Fact],
    pulse: Pulse,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Prune now and every `interval_s`; never returns unless cancelled. Closes `facts`.

    Started: when the record has partitions for today; a store that is away is told of,
    and tried again with longer and longer pauses up to 30 s, later at the next interval.
    After each pruning `forget` is asked what left the view by it, and `facts` is told.
    Back-pressure: waits for room in `facts`. Raises nothing of its own.
    """
    async with facts:
        await _first_days(store, now_utc, pulse)
        task_status.started()
        while True:
            limits = times.limits(now_utc())
            acts_utc = now_utc() - timedelta(seconds=times.acts_s)
            if await _pruned(store, others, now_utc(), limits, acts_utc, pulse):
                for fact in forget(limits.transcripts_utc):
                    await facts.send(fact)
                pulse.beat()
            await pulse.sleep(times.interval_s)


async def _first_days(store: Store, now_utc: Callable[[], datetime], pulse: Pulse) -> None:
    def failed(failure: FailedAttempt) -> None:
        log.warning("record.prune_failed", error=str(failure.error))

    await retry(
        lambda: store.prepare_days(now_utc()), _FIRST_DAYS, on_failure=failed, pause=pulse.sleep
    )


async def _pruned(
    store: Store,
    others: Sequence[Prunable],
    today_utc: datetime,
    limits: RetentionLimits,
    acts_utc: datetime,
    pulse: Pulse,
) -> bool:
    """Whether the store could be pruned; told of either way."""
    try:
        # How long this takes is the store's to say: each of its steps is bounded there.
        with pulse.waiting():
            await store.prepare_days(today_utc)
            pruned = await store.prune(limits)
            acts = 0
            for other in others:
                acts += await other.prune(acts_utc)
    except StoreError as error:
        log.warning("record.prune_failed", error=str(error))
        return False
    log.info(
        "record.pruned",
        fact_days=pruned.fact_days,
        verdicts=pruned.verdicts,
        runs=pruned.runs,
        acts=acts,
    )
    return True
