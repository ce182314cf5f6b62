"""Services that are run anew when what they were made of has changed.

Laws:

1. A service whose needs are equal before and after goes on undisturbed.
2. One run has ended, clean-up and all, before the next one begins.
3. Each run is supervised (`flow.supervise`); a renewal is no failure and is not counted.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import trio

from custosd.flow.supervise import Failure, RestartPolicy, supervise

T = TypeVar("T")


@dataclass(slots=True)
class _Slot(Generic[T]):
    needs: Callable[[T], object]
    made_of: object
    scope: trio.CancelScope
    started: trio.Event = field(default_factory=trio.Event)


class Renewal(Generic[T]):
    """Runs services made of a value, and runs them again with the next one."""

    def __init__(self, value: T) -> None:
        self.value = value
        self._slots: dict[str, _Slot[T]] = {}

    async def run(
        self,
        name: str,
        needs: Callable[[T], object],
        service: Callable[[T, trio.TaskStatus[None]], Awaitable[None]],
        policy: RestartPolicy,
        on_failure: Callable[[Failure], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run `service(value, task_status)`, again after each renewal, until it returns.

        `needs` is what of the value the service is made of, compared by equality. Started:
        when the first run says so. Raises as `supervise` does. Names are unique.
        """
        if name in self._slots:
            raise ValueError(f"a service named {name!r} is run already")
        slot = self._slots[name] = _Slot(needs, needs(self.value), trio.CancelScope())
        try:
            while True:
                value = self.value
                slot.made_of = needs(value)
                slot.scope = trio.CancelScope()
                status = _Started(slot.started, task_status)
                with slot.scope:
                    await supervise(
                        name, partial(service, value), policy, on_failure, task_status=status
                    )
                if not slot.scope.cancelled_caught:
                    return
        finally:
            slot.started.set()
            del self._slots[name]

    async def renew(self, value: T) -> tuple[str, ...]:
        """Take up a new value; return the names of services that were run anew.

        Returns when each of them has started again, or has ended.
        """
        self.value = value
        affected = {
            name: slot for name, slot in self._slots.items() if slot.needs(value) != slot.made_of
        }
        for slot in affected.values():
            slot.started = trio.Event()
            slot.scope.cancel("renewed")
        for slot in affected.values():
            await slot.started.wait()
        return tuple(affected)


class _Started(trio.TaskStatus[None]):
    # Passes on the first start to whoever started the service, and each to who renews it.
    def __init__(self, event: trio.Event, task_status: trio.TaskStatus[None]) -> None:
        self._event = event
        self._task_status = task_status

    def started(self, value: None = None) -> None:
        if not self._event.is_set():
            self._event.set()
            _once(self._task_status, value)


def _once(task_status: trio.TaskStatus[None], value: None) -> None:
    try:
        task_status.started(value)
    except RuntimeError:
        return  # said at the first run
