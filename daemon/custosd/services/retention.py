"""Takes away what is older than its time, and makes room for the days to come."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
import trio

from custosd.core.errors import StoreError
from custosd.ports import RetentionLimits, Store

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class RetentionTimes:
    """How long each sort of row is kept, and how often is looked; seconds."""

    interval_s: float
    facts_s: float
    verdicts_s: float
    transcripts_s: float

    def limits(self, now_utc: datetime) -> RetentionLimits:
        """The times before which rows go, seen from `now_utc`."""
        return RetentionLimits(
            now_utc - timedelta(seconds=self.facts_s),
            now_utc - timedelta(seconds=self.verdicts_s),
            now_utc - timedelta(seconds=self.transcripts_s),
        )


async def keep_retention(
    store: Store,
    now_utc: Callable[[], datetime],
    times: RetentionTimes,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Prune now and every `interval_s`; never returns unless cancelled.

    Started: when the record has partitions for today (a store that is away is told of
    and tried again at the next interval). Raises nothing of its own.
    """
    started = False
    while True:
        try:
            await store.prepare_days(now_utc())
            if not started:
                started = True
                task_status.started()
            pruned = await store.prune(times.limits(now_utc()))
            log.info(
                "record.pruned",
                fact_days=pruned.fact_days,
                verdicts=pruned.verdicts,
                runs=pruned.runs,
            )
        except StoreError as error:
            log.warning("record.prune_failed", error=str(error))
            if not started:
                started = True
                task_status.started()
        await trio.sleep(times.interval_s)
