"""A second attempt beside a slow first one; whichever succeeds first wins.

Laws:

1. Only for calls that may safely be made twice, and whose results need no closing.
2. Attempts are added for slowness only: a failed one is not made again (`flow.retry` does).
3. A budget bounds the added load, however slow the service gets.
4. When the call ends, all its attempts have ended.
"""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import outcome
import trio

from custosd.flow.retry import RetryBudget

R = TypeVar("R")


async def hedged(
    fn: Callable[[], Awaitable[R]],
    after_s: float,
    budget: RetryBudget,
    *,
    most: int = 2,
    on_failure: Callable[[Exception], None] | None = None,
) -> R:
    """The first result of up to `most` concurrent calls of `fn`, begun `after_s` apart.

    A further call is begun only while none has succeeded, one is under way, and `budget` has
    a token (shared by the calls of one service; `RetryBudget(ratio=0.05)` adds 5 % at most,
    beside its burst). The others are cancelled when one has succeeded, and their clean-up is
    waited for. `on_failure` is told of each call's error, also when another succeeds, and
    may not wait. Raises: an `ExceptionGroup` of all errors when no call is left under way.
    """
    race = _Race(fn, on_failure)
    budget.deposit()
    async with trio.open_nursery() as nursery:
        race.begin_attempt(nursery)
        with race.pauses:
            for _ in range(most - 1):
                await trio.sleep(after_s)
                if not budget.withdraw():
                    break
                race.begin_attempt(nursery)
    if race.winner is None:
        raise ExceptionGroup(f"none of {len(race.errors)} attempts succeeded", race.errors)
    return race.winner.value


class _Race(Generic[R]):
    def __init__(
        self, fn: Callable[[], Awaitable[R]], on_failure: Callable[[Exception], None] | None
    ) -> None:
        self.winner: outcome.Value[R] | None = None
        self.errors: list[Exception] = []
        self.pauses = trio.CancelScope()
        self._fn = fn
        self._on_failure = on_failure
        self._under_way: set[trio.CancelScope] = set()

    def begin_attempt(self, nursery: trio.Nursery) -> None:
        scope = trio.CancelScope()
        self._under_way.add(scope)
        nursery.start_soon(self._attempt, scope)

    async def _attempt(self, scope: trio.CancelScope) -> None:
        try:
            with scope:
                value = await self._fn()
                # Of two that end together the first counts; the other was one too many.
                if self.winner is None:
                    self.winner = outcome.Value(value)
        except Exception as error:  # noqa: BLE001 - goes out if no attempt succeeds
            self.errors.append(error)
            if self._on_failure is not None:
                self._on_failure(error)
        self._under_way.discard(scope)
        if self.winner is not None or not self._under_way:
            for ended in (self.pauses, *self._under_way):
                ended.cancel("decided")
