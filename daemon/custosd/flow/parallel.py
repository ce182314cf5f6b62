"""Many tasks at once: bounded, timed, tried again, and each with an outcome of its own.

Laws:

1. There is an outcome for every task, in the tasks' order; a failure is an error there,
   never an empty value, and harms no other task.
2. A time limit is told as what it did: `TooSlow` was cut, `NotStarted` was never called.
3. What has returned its value keeps it, also when its time was up by then.
"""

from collections.abc import Awaitable, Callable, Iterable
from math import inf
from typing import TypeVar

import outcome
import trio

from custosd.flow.bounded import Progress, each
from custosd.flow.retry import RetryPolicy
from custosd.flow.retry import retry as retried

R = TypeVar("R")


class TooSlow(trio.TooSlowError):
    """The task was cut: it had not ended when its time, or that of all tasks, was up."""


class NotStarted(trio.TooSlowError):
    """The task was never called: the time of all tasks was up before its turn came."""


async def run_parallel(
    tasks: Iterable[Callable[[], Awaitable[R]]],
    *,
    max_concurrent: int = 10,
    timeout_s: float | None = None,
    item_timeout_s: float | None = None,
    retry: RetryPolicy | None = None,
    on_progress: Progress | None = None,
) -> list[outcome.Outcome[R]]:
    """Call every task, at most `max_concurrent` at a time; return the outcomes in order.

    Ends when all have ended; there are no rounds: the next task begins when one ends.
    `timeout_s` bounds them together, from now; `item_timeout_s` bounds each one with all its
    attempts and pauses, from its first call (to bound one attempt, do so in the task). With
    `retry`, a task is called again as the policy says; its last error is its outcome.
    `on_progress` (ended, of how many) counts what was not started too. Raises: nothing of the
    tasks; errors of iterating `tasks` or of `on_progress`, in an `ExceptionGroup`.
    """
    all_end_at = inf if timeout_s is None else trio.current_time() + timeout_s

    async def run(task: Callable[[], Awaitable[R]]) -> R:
        now = trio.current_time()
        if now >= all_end_at:
            raise NotStarted(f"{timeout_s} s for all tasks were up before this one's turn")
        item_end_at = inf if item_timeout_s is None else now + item_timeout_s
        end_at = min(item_end_at, all_end_at)
        if end_at == inf:
            # Scopes without an end are a third of what a task costs.
            return await (task() if retry is None else retried(task, retry))
        with trio.CancelScope(deadline=end_at):
            return await (task() if retry is None else retried(task, retry))
        limit = f"its {item_timeout_s} s" if item_end_at <= all_end_at else f"all {timeout_s} s"
        raise TooSlow(f"not done when {limit} were up")

    return await each(tasks, run, limit=max_concurrent, progress=on_progress)
