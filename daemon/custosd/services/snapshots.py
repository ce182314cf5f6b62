"""Keeps how our own operations went: a snapshot of the monitor's accounts each minute.

The accounts run since the daemon's start; the difference of two snapshots is what happened
between them. Percentiles have no difference: beside those since the start stand those of the
last minute or two (`OperationSummary.recent_s`).
"""

from collections.abc import Callable
from datetime import datetime

import trio

from custosd.flow.monitor import Monitor
from custosd.flow.pulse import Pulse
from custosd.ports import MetricsSnapshot, Store
from custosd.services.store_absence import StoreAbsence

INTERVAL_S = 60.0
"""How often a snapshot is stored."""


async def keep_snapshots(
    store: Store,
    monitor: Monitor,
    daemon: str,
    now_utc: Callable[[], datetime],
    pulse: Pulse,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Store a snapshot each `INTERVAL_S`; never returns unless cancelled.

    Started: at once. What a store that is away does not take is lost, which is told once per
    absence: the next snapshot says as much.
    """
    task_status.started()
    absence = StoreAbsence("snapshot")
    while True:
        await pulse.sleep(INTERVAL_S)
        snapshot = MetricsSnapshot(daemon, now_utc(), await monitor.summary_in_turns())
        with absence.told(waiting=1):
            await store.record_metrics(snapshot)
