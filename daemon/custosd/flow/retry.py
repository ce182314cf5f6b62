"""Tries again what failed, after a random pause, while there is hope, time and budget.

Laws:

1. Cancellation is no failure: it is never counted and never tried again, and ends a pause.
2. The error that goes out is the last attempt's own, as it was raised.
3. No pause is begun that would end at or after the caller's deadline, but by a `patient`
   policy: the error is worth more while there is time to act on it.
4. A budget bounds the extra load: over any stretch, all retries that share it are at most
   its `burst` and its `ratio` of the first attempts.
"""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from math import inf
from typing import TypeVar

import trio

R = TypeVar("R")

Pause = Callable[[float], Awaitable[None]]
"""Waits for so many seconds. What it raises ends the retrying; cancellation passes through."""

# So many deposits of 0.1 are to make a whole token, although floats say 0.9999999999999999.
_ROUNDING = 1e-9


class RetryBudget:
    """A bucket of tokens: a first attempt puts in `ratio`, a further attempt takes out one.

    It holds at most `burst` (>= 1) tokens, and is full at first. Shared by all calls that
    load one and the same service; never waits. `first_attempts`, `granted` and `refused`
    count what happened; what was given back is not in `granted`.
    """

    def __init__(self, ratio: float = 0.1, burst: float = 10.0) -> None:
        if not (ratio >= 0 and burst >= 1):
            raise ValueError(f"a budget of ratio {ratio} (>= 0) and burst {burst} (>= 1)")
        self.ratio = ratio
        self.burst = burst
        self.tokens = burst
        self.first_attempts = self.granted = self.refused = 0

    def deposit(self) -> None:
        """A first attempt is made."""
        self.first_attempts += 1
        self.tokens = min(self.tokens + self.ratio, self.burst)

    def withdraw(self) -> bool:
        """Whether a further attempt may be made; takes the token for it if so."""
        if self.tokens < 1 - _ROUNDING:
            self.refused += 1
            return False
        self.granted += 1
        self.tokens = max(self.tokens - 1, 0.0)
        return True

    def give_back(self) -> None:
        """The attempt for which a token was taken is not made after all."""
        self.granted -= 1
        self.tokens = min(self.tokens + 1, self.burst)


def _every_error(_: Exception) -> bool:
    return True


def _no_word(_: Exception) -> None:
    return None


def steady() -> float:
    """In place of a random number: pauses as long as they may be, for who has no rivals."""
    return 1.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, when, and on which errors a call is tried again.

    At most `attempts` (>= 1; `math.inf`: without end), the first included. The pause before
    attempt n + 1 is random, evenly between 0 and min(`longest_delay_s`, `first_delay_s` *
    2**(n - 1)): "full jitter", after M. Brooker, Exponential Backoff and Jitter, AWS 2015.
    `retry_on` says which errors may pass by themselves. `after` reads from an error what the
    other side asked for (Retry-After), in seconds: no pause is shorter; one that is asked to be
    longer than `longest_after_s` is not sat out: the error goes out at once. `patient`: the
    caller's deadline ends the call by cancellation, also in a pause, and lets no error out
    early.
    """

    attempts: float = 3
    first_delay_s: float = 0.5
    longest_delay_s: float = 30.0
    budget: RetryBudget | None = None
    retry_on: Callable[[Exception], bool] = _every_error
    after: Callable[[Exception], float | None] = _no_word
    longest_after_s: float = 600.0
    random: Callable[[], float] = random.random
    patient: bool = False

    def __post_init__(self) -> None:
        """Refuse a policy that could make no attempt, or pause for less than no time."""
        if self.attempts < 1 or not 0 <= self.first_delay_s <= self.longest_delay_s:
            raise ValueError(
                f"{self.attempts} attempts (>= 1), pauses from {self.first_delay_s} s (>= 0) "
                f"to {self.longest_delay_s} s (not less than the first)"
            )

    def pause_s(self, attempt: int, error: Exception) -> float | None:
        """The pause after the failed attempt of that number, from 1; None: it was the last.

        Looks at neither deadline nor budget.
        """
        if attempt >= self.attempts or not self.retry_on(error):
            return None
        asked_s = self.after(error) or 0.0
        pause_s = self.random() * self.longest_pause_s(attempt)
        return None if asked_s > self.longest_after_s else max(pause_s, asked_s)

    def longest_pause_s(self, attempt: int) -> float:
        """What the pause after that attempt is at most, where nobody asks for more."""
        # The exponent is bounded: a float overflows long before a patient caller gives up.
        return min(self.first_delay_s * 2.0 ** min(attempt - 1, 64), self.longest_delay_s)


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """One failed attempt, counted from 1. `pause_s` is the pause that follows; None: none."""

    attempt: int
    error: Exception
    pause_s: float | None


async def retry(
    fn: Callable[[], Awaitable[R]],
    policy: RetryPolicy,
    *,
    on_failure: Callable[[FailedAttempt], None] | None = None,
    pause: Pause = trio.sleep,
) -> R:
    """Await `fn()`, again and again as `policy` says, until it returns; return its result.

    One attempt at a time, in the caller's task; each is over before the next one begins.
    `on_failure` is told of every failed attempt, at once, and may not wait. `pause` is how
    the time between two attempts is spent. Raises: the last attempt's error, when the policy,
    the budget or the caller's deadline allows no further; what `pause` raises.
    """
    budget = policy.budget
    if budget is not None:
        budget.deposit()
    for attempt in count(1):
        try:
            return await fn()
        except Exception as error:
            pause_s = _allowed_pause_s(policy, attempt, error)
            if on_failure is not None:
                on_failure(FailedAttempt(attempt, error, pause_s))
            if pause_s is None:
                raise
        # Out of the except block: the next attempt's error is not about this one.
        try:
            await pause(pause_s)
        except BaseException:
            if budget is not None:
                budget.give_back()
            raise
    raise AssertionError("counting has no end")


def _allowed_pause_s(policy: RetryPolicy, attempt: int, error: Exception) -> float | None:
    pause_s = policy.pause_s(attempt, error)
    if pause_s is None:
        return None
    deadline_at = trio.current_effective_deadline()
    late = deadline_at < inf and trio.current_time() + pause_s >= deadline_at
    if late and not policy.patient:
        return None
    if policy.budget is not None and not policy.budget.withdraw():
        return None
    return pause_s
