"""Tells the service manager that the daemon is alive, as long as it gets anywhere.

    Pulses --> [ stale? ] --> WATCHDOG=1, STATUS=

Law: one service without progress is enough to say nothing. A daemon whose loop turns
while its guardian hangs is not alive; the service manager then restarts it.
"""

from collections.abc import Callable
from typing import Protocol

import structlog
import trio

from custosd.flow.pulse import Pulses

log = structlog.get_logger()

SIGNS_A_LIMIT = 3
"""Signs of life within the manager's limit: one may be lost and one may be late."""


class ReadinessPort(Protocol):
    """Who started the daemon and wants to know how it is.

    No method waits or raises; each returns whether the message was sent. `watchdog_s` is
    the silence in seconds after which the daemon is killed; None: it is not watched.
    """

    watchdog_s: float | None

    def ready(self, status: str = "") -> bool:
        """Start-up, or a reload, is done."""
        ...

    def alive(self) -> bool:
        """Still making progress."""
        ...

    def status(self, text: str) -> bool:
        """One line for people, in words."""
        ...

    def reloading(self, status: str = "") -> bool:
        """A reload has begun; `ready` ends it."""
        ...

    def stopping(self, status: str = "") -> bool:
        """The daemon has begun to stop; nobody watches it for progress from here on."""
        ...

    def extend_timeout(self, seconds: float) -> bool:
        """Start or stop will take up to so many seconds from now."""
        ...

    def close(self) -> None:
        """Let go of what is held open."""
        ...


async def feed_watchdog(
    pulses: Pulses,
    status: Callable[[], str],
    manager: ReadinessPort,
    interval_s: float,
    stale_after_s: float,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Look at all pulses each `interval_s`, or as often as the manager needs; never returns.

    Started: after the first look. `status` is asked at each look, and replaced by the
    names of those who stand still. Raises nothing of its own.
    """
    if manager.watchdog_s is not None:
        interval_s = min(interval_s, manager.watchdog_s / SIGNS_A_LIMIT)
    starved_at: float | None = None
    told: set[str] = set()
    started = False
    while True:
        now = trio.current_time()
        stale = pulses.stale(now, stale_after_s)
        if stale:
            starved_at = now if starved_at is None else starved_at
            if new := stale.keys() - told:
                told |= new
                oldest_s = max(stale.values())
                log.error("watchdog.starved", services=sorted(new), oldest_s=round(oldest_s, 1))
            manager.status(f"no progress: {', '.join(sorted(stale))}")
        else:
            if starved_at is not None:
                starved_s = round(now - starved_at, 1)
                log.info("watchdog.recovered", services=sorted(told), starved_s=starved_s)
                starved_at, told = None, set()
            manager.alive()
            manager.status(status())
        if not started:
            started = True
            task_status.started()
        await trio.sleep(interval_s)
