"""The daemon's look at itself: operations that are slow, a loop that stands still, its tasks.

Told in the log; nothing is done about it.
"""

from collections.abc import Awaitable, Callable

import structlog
import trio

from custosd.flow.latest import Latest
from custosd.flow.monitor import Monitor, Operation
from custosd.flow.stall import Stall, open_stall_watch
from custosd.flow.task_tree import task_tree

log = structlog.get_logger()


def tell_slow(operation: Operation) -> None:
    """An operation runs for longer than it should: `operation.slowed`."""
    log.warning(
        "operation.slowed",
        kind=operation.kind.value,
        name=operation.name,
        runs_s=round(trio.current_time() - operation.started_at, 3),
        queued_s=round(operation.queued_s, 3),
    )


def tell_stall(stall: Stall) -> None:
    """The loop stands still: `loop.stalled`. From any thread."""
    log.warning(
        "loop.stalled", stood_s=round(stall.stood_s, 3), task=stall.task, stack=list(stall.stack)
    )


async def watch_ourselves(
    monitor: Monitor,
    stall_s: float,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Tell of slow operations and of stalls of the loop; never returns unless cancelled.

    Started: when both are watched. Stalls are looked for by a thread of its own.
    """
    with open_stall_watch(tell_stall, stall_s=stall_s):
        await monitor.watch(task_status=task_status)


async def answer_dump_requests(
    asked: Latest[int],
    write: Callable[[str], Awaitable[str]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Hand the tree of all tasks to `write` for each request that comes; never returns.

    `write` returns where it wrote; what it cannot write (`OSError`) is told, and that is all.
    Started: at once. Several requests at once are one.
    """
    seen = asked.version
    task_status.started()
    while True:
        seen = (await asked.wait_changed(seen)).version
        tree = task_tree()
        try:
            place = await write(tree)
        except OSError as error:
            log.warning("tasks.unwritten", error=str(error))
        else:
            log.info("tasks.dumped", tasks=tree.count("\n") + 1, place=place)
