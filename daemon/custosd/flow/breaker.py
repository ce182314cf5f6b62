"""Keeps calls away from a service that fails, and lets one through to see if it recovered.

Laws:

1. Closed: calls pass; `failures` of them within `period_s` open the circuit.
2. Open: calls are refused, at no cost to the service, for `open_s`.
3. Half-open: exactly one call at a time passes, as a probe; its success closes the circuit,
   its failure opens it again.
4. Cancellation says nothing about the service: it counts as neither, and frees the probe's
   place. So does every end that is no `Exception`.
5. A call's end counts only in the period in which it began: an answer from before the
   circuit opened neither closes it nor keeps it open.
"""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import trio

R = TypeVar("R")


class CircuitState(Enum):
    """Whether calls pass."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True)
class CircuitChange:
    """The circuit is in another state since `at` (trio clock); `error` is what opened it."""

    before: CircuitState
    after: CircuitState
    at: float
    error: Exception | None = None


class CircuitOpen(Exception):
    """The call was not made. `until_at` (trio clock): no call passes before.

    It is past while a probe is under way: then nobody knows when.
    """

    def __init__(self, until_at: float) -> None:
        super().__init__(until_at)
        self.until_at = until_at

    def __str__(self) -> str:
        return (
            f"the circuit is open until {self.until_at:.3f} on trio's clock, or a probe's success"
        )


def _every_error(_: Exception) -> bool:
    return True


class CircuitBreaker:
    """One circuit, shared by all calls of one service; `state` as of the last call.

    `is_failure` says which errors speak against the service; any other end of a call, an
    error included, is an answer and speaks for it. `on_change` is told of each change of
    state, at once, and may not wait. `succeeded`, `failed`, `neutral` and `refused` count.
    """

    def __init__(
        self,
        failures: int = 5,
        period_s: float = 60.0,
        open_s: float = 30.0,
        *,
        is_failure: Callable[[Exception], bool] = _every_error,
        on_change: Callable[[CircuitChange], None] | None = None,
    ) -> None:
        if failures < 1:
            raise ValueError(f"a circuit that opens after {failures} failures is never closed")
        self.state = CircuitState.CLOSED
        self.until_at = -float("inf")
        self.succeeded = self.failed = self.neutral = self.refused = 0
        self._most = failures
        self._period_s = period_s
        self._open_s = open_s
        self._is_failure = is_failure
        self._on_change = on_change
        self._failed_at: deque[float] = deque(maxlen=failures)
        self._probing = False
        self._changes = 0

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Make one call of the service in the block; its error goes out as it is.

        Never waits. A time limit around the block cancels it, and so says nothing; one
        inside (`trio.fail_after`) is an error like any other. Raises: `CircuitOpen`, and the
        block was not entered.
        """
        began_in = self._admit()
        failure: Exception | None = None
        answered = False
        try:
            yield
            answered = True
        except Exception as error:
            if self._is_failure(error):
                failure = error
            answered = True
            raise
        finally:
            self._leave(began_in, failure, answered=answered)

    async def run(self, fn: Callable[[], Awaitable[R]]) -> R:
        """Make one call, `await fn()`; as `call`."""
        async with self.call():
            return await fn()

    def _admit(self) -> int:
        if self.state is CircuitState.OPEN and trio.current_time() >= self.until_at:
            self._change(CircuitState.HALF_OPEN)
        if self.state is CircuitState.OPEN or self._probing:
            self.refused += 1
            raise CircuitOpen(self.until_at)
        self._probing = self.state is CircuitState.HALF_OPEN
        return self._changes

    def _leave(self, began_in: int, failure: Exception | None, *, answered: bool) -> None:
        self.failed += failure is not None
        self.succeeded += answered and failure is None
        self.neutral += not answered
        if began_in != self._changes:
            return
        probe, self._probing = self._probing, False
        if failure is not None:
            self._failed_at.append(trio.current_time())
            if probe or self._too_many():
                self.until_at = trio.current_time() + self._open_s
                self._change(CircuitState.OPEN, failure)
        elif probe and answered:
            self._change(CircuitState.CLOSED)

    def _too_many(self) -> bool:
        full = len(self._failed_at) == self._most
        return full and trio.current_time() - self._failed_at[0] < self._period_s

    def _change(self, state: CircuitState, error: Exception | None = None) -> None:
        before, self.state = self.state, state
        self._changes += 1
        self._failed_at.clear()
        if self._on_change is not None:
            self._on_change(CircuitChange(before, state, trio.current_time(), error))
