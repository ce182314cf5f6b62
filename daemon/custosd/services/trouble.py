"""Tells a person of a service that fails again and again, until it runs again.

For services that are run again for ever, since all others are worth more than their end. Laws:

1. One failure is the supervisor's; the second in a row is a concern. It is over, and the row
   with it, when a run that has started lasts for `STEADY_S`.
2. Whoever waits for the service's start waits for its first failure at most.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from custosd.core.facts import ConcernResolved, Escalated, Fact

STEADY_S = 60.0
_IN_A_ROW = 2


@dataclass(slots=True)
class ServiceTrouble:
    """What is known of one service's failures; lives longer than its runs.

    `nursery` outlives the runs too: facts are sent from there. `facts` is not closed.
    """

    name: str
    facts: trio.MemorySendChannel[Fact]
    nursery: trio.Nursery
    failures: int = 0
    told: bool = False

    @property
    def concern(self) -> str:
        """The concern's id."""
        return f"service:{self.name}"

    async def watch(
        self,
        service: Callable[[trio.TaskStatus[None]], Awaitable[None]],
        task_status: trio.TaskStatus[None],
    ) -> None:
        """One run of `service(task_status)`; raises what it raises.

        `task_status` takes more than one `started()`, as that of `flow.supervise` does.
        """
        run = trio.CancelScope()

        def started() -> None:
            self.nursery.start_soon(self._grow_steady, run)
            task_status.started()

        try:
            await service(_Told(started))
        except Exception as error:
            self._count(error)
            task_status.started()
            raise
        finally:
            run.cancel("the run has ended")

    def _count(self, error: Exception) -> None:
        self.failures += 1
        if self.failures >= _IN_A_ROW and not self.told:
            self.told = True
            fact = Escalated(self.concern, "service_failing", None, _kind_of(error))
            # Not awaited: the failure itself is told at once, by whoever supervises.
            self.nursery.start_soon(self.facts.send, fact)

    async def _grow_steady(self, run: trio.CancelScope) -> None:
        with run:
            await trio.sleep(STEADY_S)
            if self.told:
                await self.facts.send(ConcernResolved(self.concern, "running"))
            self.failures, self.told = 0, False


class _Told(trio.TaskStatus[None]):
    def __init__(self, on_started: Callable[[], None]) -> None:
        self._on_started = on_started

    def started(self, value: object = None) -> None:  # noqa: ARG002 - trio's signature
        self._on_started()


def _kind_of(error: BaseException) -> str:
    """The kind of an error, without its words: these may be anybody's."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return type(error).__name__
