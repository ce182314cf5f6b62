"""A store that does not answer: waited for, and told of once, as is its return.

Laws:

1. An absence is `store.lost` once, however often the store is asked meanwhile, and
   `store.returned` when it answers; `during` says of both what it was asked for.
2. What another transaction was in the way of is repeated at once, and is no absence.
3. What the store refused is no absence: repeating it would change nothing. It goes out; of a
   `told` block it is `store.refused`, and the block alone is given up.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import inf
from typing import TypeVar

import structlog
import trio

from custosd.core.errors import StoreConflict, StoreError, StoreRefused, StoreUnavailable
from custosd.flow.retry import FailedAttempt, Pause, RetryPolicy, retry, steady

log = structlog.get_logger()

T = TypeVar("T")

STORE_RETRIES = RetryPolicy(
    inf,
    first_delay_s=0.5,
    longest_delay_s=30.0,
    retry_on=lambda error: isinstance(error, StoreUnavailable),
    # One question at a time, and it is ours: there is nobody to keep out of step with.
    random=steady,
    patient=True,
)
"""Until it answers: a store that is away is asked again after 0.5 s, later each 30 s."""

_CONFLICTS = replace(
    STORE_RETRIES,
    first_delay_s=0.0,
    longest_delay_s=0.0,
    retry_on=lambda error: isinstance(error, StoreConflict),
)


class StoreAbsence:
    """What one service has told of the store's being away."""

    def __init__(self, during: str) -> None:
        self.away = False
        self._during = during
        self._refused = ""

    def lost(self, error: Exception, waiting: int) -> None:
        """It did not answer; `waiting` counts what waits for it."""
        if not self.away:
            log.warning("store.lost", during=self._during, error=str(error), waiting=waiting)
        self.away = True

    def answered(self) -> None:
        """It did."""
        if self.away:
            log.info("store.returned", during=self._during)
        self.away = False

    def _refuse(self, error: StoreRefused, waiting: int) -> None:
        """Say it once for each kind of refusal, until something else is refused."""
        refusal = f"{error.sqlstate} {error}"
        if refusal != self._refused:
            log.error("store.refused", during=self._during, error=str(error), waiting=waiting)
        self._refused = refusal

    @contextmanager
    def told(self, waiting: int) -> Iterator[None]:
        """Ask it in the block, which is given up with a `StoreError`: that is told, no more.

        Each thing that may be refused by itself has a block of its own.
        """
        try:
            yield
        except StoreRefused as error:
            # It answered.
            self.answered()
            self._refuse(error, waiting)
        except StoreError as error:
            self.lost(error, waiting)
        else:
            self.answered()


async def past_conflicts(ask: Callable[[], Awaitable[T]], most: float = inf) -> T:
    """Ask again, at once and up to `most` times, what other transactions are in the way of.

    Raises what `ask` raises, also the last `StoreConflict`.
    """
    return await retry(ask, replace(_CONFLICTS, attempts=most))


async def until_answered(
    ask: Callable[[], Awaitable[T]],
    during: str,
    *,
    waiting: Callable[[], int] = lambda: 1,
    policy: RetryPolicy = STORE_RETRIES,
    pause: Pause = trio.sleep,
) -> T:
    """Ask until the store answers; `pause` is how the time in between is spent.

    `waiting` is asked when the store is lost. Raises whatever `ask` raises that is neither
    `StoreUnavailable` nor `StoreConflict`.
    """
    absence = StoreAbsence(during)

    def failed(failure: FailedAttempt) -> None:
        if failure.pause_s is not None:
            absence.lost(failure.error, waiting())

    answer = await retry(partial(past_conflicts, ask), policy, on_failure=failed, pause=pause)
    absence.answered()
    return answer
