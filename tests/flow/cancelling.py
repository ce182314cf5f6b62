"""Runs a scenario again and again, cancelled at another checkpoint each time.

A cancellation that comes just between two steps is what leaks places and loses items; no test
that waits for a time finds them all. So this counts steps, not seconds.
"""

from collections.abc import Awaitable, Callable

import trio
import trio.testing


class _CancelAfterStep(trio.abc.Instrument):
    # All tasks' steps count, also those of a background task that the scenario waits for: its
    # caller is then cancelled while it is parked, at each stage that the other has reached.
    def __init__(self, step: int, scope: trio.CancelScope) -> None:
        self._steps_left = step
        self._scope = scope

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._steps_left -= 1
        if self._steps_left == 0:
            self._scope.cancel("at every checkpoint")


async def cancel_at_every_checkpoint(
    make: Callable[[], Awaitable[object]],
    check: Callable[[], None],
    *,
    most: int = 2000,
) -> int:
    """Await `make()` cancelled before it begins, after step 1, 2, 3 ... until it runs through.

    `make` begins a scenario afresh each time (it is in a cancel scope of its own; what it needs
    beside it, such as a background nursery that is to survive, is opened outside). `check` is
    called after each run, when all tasks are blocked again, and raises if anything leaked, was
    lost or ran twice; after a cancelled run and after the last, whole one alike. Returns how
    many runs were cancelled. Raises what `make` or `check` raises, with a note of the step;
    `AssertionError` if the scenario did not run through within `most` steps.
    """
    for step in range(most):
        try:
            if not await _cancelled_after(step, make):
                check()
                return step
            check()
        except Exception as error:
            error.add_note(f"the scenario was cancelled after its step {step}")
            raise
    raise AssertionError(f"the scenario did not run through within {most} steps")


async def _cancelled_after(step: int, make: Callable[[], Awaitable[object]]) -> bool:
    with trio.CancelScope() as scope:
        instrument = _CancelAfterStep(step, scope)
        if step == 0:
            scope.cancel("at every checkpoint")
        trio.lowlevel.add_instrument(instrument)
        try:
            await make()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    await trio.testing.wait_all_tasks_blocked()
    return scope.cancel_called
