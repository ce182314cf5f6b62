"""Shows, in the store, that this daemon lives: what `custosd status` reads."""

from collections.abc import Callable

import structlog
import trio

from custosd.core.errors import StoreError
from custosd.flow.pulse import Pulse
from custosd.ports import DaemonBeat, Store

log = structlog.get_logger()

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
    started = away = False
    while True:
        try:
            await store.beat(beat())
        except StoreError as error:
            if not away:
                log.warning("store.lost", during="beat", error=str(error), waiting=1)
            away = True
        else:
            if away:
                log.info("store.returned", during="beat")
            away = False
        if not started:
            started = True
            task_status.started()
        with pulse.waiting():
            await trio.sleep(INTERVAL_S)
