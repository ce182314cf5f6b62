"""Shows, in the store, that this daemon lives: what `custosd status` reads."""

from collections.abc import Callable

import trio

from custosd.flow.pulse import Pulse
from custosd.ports import DaemonBeat, Store
from custosd.services.store_absence import StoreAbsence

INTERVAL_S = 5.0
"""How often life is shown."""

STALE_S = 3 * INTERVAL_S + 5.0
"""A sign of life older than this is none: three intervals, and a margin for our slowness."""


async def show_life(
    store: Store,
    beat: Callable[[], DaemonBeat],
    pulse: Pulse,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Replace this daemon's sign of life each `INTERVAL_S`; never returns unless cancelled.

    Started: after the first try. A store that is away is told of once per absence; the
    sign then grows stale, which is the truth that readers of the store should see.
    """
    started, absence = False, StoreAbsence("beat")
    while True:
        with absence.told(waiting=1):
            await store.beat(beat())
        if not started:
            started = True
            task_status.started()
        await pulse.sleep(INTERVAL_S)
