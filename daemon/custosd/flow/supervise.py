"""Runs a service again when it failed, but not for ever.

Laws:

1. Each run is made anew: a failed run's arguments may be spent (closed channels).
2. Each failure is told, with its exception, before anything is done about it.
3. Too many failures within a period, and the last error goes out to the caller:
   restarting is no answer to a service that cannot run.
4. Cancellation is no failure, and a service that returns is done.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio


def _every_error(_: Exception) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How often, and after what pause, a failed service runs again.

    The pause is `first_delay_s`, times `factor` for each failure in a row, at most
    `longest_delay_s`; a run of `stable_after_s` ends the row. `most` restarts are
    allowed within `period_s` (`math.inf`: however many); one failure more goes out, and so
    does at once what `restart_on` says no to.
    """

    first_delay_s: float = 1.0
    factor: float = 2.0
    longest_delay_s: float = 60.0
    stable_after_s: float = 60.0
    most: float = 5
    period_s: float = 300.0
    restart_on: Callable[[Exception], bool] = _every_error

    def delay_s(self, failures_in_a_row: int) -> float:
        """The pause after so many failures in a row, counted from 1."""
        # The exponent is bounded: a float overflows long before a patient supervisor ends.
        grown_s = self.first_delay_s * self.factor ** min(failures_in_a_row - 1, 64)
        return min(grown_s, self.longest_delay_s)


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed run. `delay_s` is the pause before the next; None: there is none."""

    name: str
    error: Exception
    ran_s: float
    failures_in_period: int
    delay_s: float | None


async def supervise(
    name: str,
    service: Callable[[trio.TaskStatus[None]], Awaitable[None]],
    policy: RestartPolicy,
    on_failure: Callable[[Failure], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run `service(task_status)` until it returns; run it again when it raised.

    Started: when a run says that it has started, for the first time. `on_failure` is
    called at once and may not wait. Raises: the service's own error when the policy is used up.
    """
    readiness = FirstStart(task_status)
    failed_at: deque[float] = deque()
    in_a_row = 0
    while True:
        began_at = trio.current_time()
        try:
            await service(readiness)
        except Exception as error:
            now = trio.current_time()
            failed_at.append(now)
            while failed_at[0] <= now - policy.period_s:
                failed_at.popleft()
            in_a_row = 1 if now - began_at >= policy.stable_after_s else in_a_row + 1
            used_up = len(failed_at) > policy.most
            hopeless = used_up or not policy.restart_on(error)
            delay_s = None if hopeless else policy.delay_s(in_a_row)
            on_failure(Failure(name, error, now - began_at, len(failed_at), delay_s))
            if delay_s is None:
                raise
        else:
            return
        await trio.sleep(delay_s)


class FirstStart(trio.TaskStatus[None]):
    """Passes on the first of many `started()`, whoever says it: who waits, waits for one."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self._task_status = task_status
        self._said = False

    def started(self, value: object = None) -> None:  # noqa: ARG002 - trio's signature
        """It has started, perhaps not for the first time."""
        if not self._said:
            self._said = True
            self._task_status.started()
