"""A limit on concurrency that finds its own size, from what came of the uses before.

Laws:

1. A rule is a value: a sample makes another rule of it. One gate stands before any rule.
2. A use that was cancelled says nothing about the limit; nor does one that failed without
   having been rejected.
3. The limit stays between floor and ceiling; a lower one takes effect as uses end, and no
   use that has begun is interrupted.
4. Who waits is let in first come, first served.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from math import inf
from typing import Generic, Protocol, Self, TypeVar

import trio


@dataclass(frozen=True, slots=True)
class Sample:
    """One use: when (trio clock), with how many in flight at its beginning, itself included."""

    began_at: float
    ended_at: float
    in_flight: int
    rejected: bool

    @property
    def took_s(self) -> float:
        """How long the use took."""
        return self.ended_at - self.began_at


class Rule(Protocol):
    """What the limit is, and what it is after one more sample."""

    @property
    def limit(self) -> float:
        """At least 1; the gate lets its whole part in."""
        ...

    def after(self, sample: Sample) -> Self:
        """The rule that the sample makes of this one."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Stays what it is, whatever the samples say: for a limit that a person has chosen."""

    limit: float

    def __post_init__(self) -> None:
        _check_bounds(1, self.limit, self.limit)

    def after(self, sample: Sample) -> Self:  # noqa: ARG002 - the rule's signature
        """Itself."""
        return self


@dataclass(frozen=True, slots=True)
class Aimd:
    """Additive increase, multiplicative decrease: for providers that say when it is too much.

    Up by 1 in each round, that is by 1 / limit with each good use, while at least half of the
    limit is in use; down to `factor` of it on a rejection, once for all the uses that were in
    flight then: they tell of the same overload. (Chiu and Jain 1989; the factor is that of
    Netflix's concurrency-limits.)
    """

    limit: float = 10.0
    floor: float = 1.0
    ceiling: float = 200.0
    factor: float = 0.9
    decreased_at: float = -inf

    def __post_init__(self) -> None:
        _check_bounds(self.floor, self.limit, self.ceiling)
        if not 0 < self.factor < 1:
            raise ValueError(f"a factor of {self.factor} is no decrease; it lies between 0 and 1")

    def after(self, sample: Sample) -> Self:
        """Down on a rejection, else up if the limit was felt."""
        if sample.rejected:
            if sample.began_at <= self.decreased_at:
                return self
            lower = max(self.floor, self.limit * self.factor)
            return replace(self, limit=lower, decreased_at=sample.ended_at)
        if sample.in_flight * 2 < self.limit:
            return self
        return replace(self, limit=min(self.ceiling, self.limit + 1 / self.limit))


@dataclass(frozen=True, slots=True)
class Gradient2:
    """Follows how much slower uses are than they were in the long run: for services of our own.

    The rule of Netflix's concurrency-limits (Gradient2Limit) with its constants; `queue` more
    than the gradient allows is let in, so that growth is tried. A rejection counts as the
    steepest gradient, and its duration not at all: it may have been quick.
    """

    limit: float = 20.0
    floor: float = 1.0
    ceiling: float = 200.0
    smoothing: float = 0.2
    tolerance: float = 1.5
    queue: float = 4.0
    long_window: int = 600
    warm_up: int = 10
    long_s: float = 0.0
    samples: int = 0

    def __post_init__(self) -> None:
        _check_bounds(self.floor, self.limit, self.ceiling)

    def after(self, sample: Sample) -> Self:
        """Towards the limit times the gradient, plus the queue."""
        if sample.rejected:
            return replace(self, limit=self._towards(0.5))
        samples, long_s = self.samples + 1, self._long_s(sample.took_s)
        gradient = 1.0
        if sample.took_s > 0:
            if long_s / sample.took_s > 2:  # noqa: PLR2004 - as published
                long_s *= 0.95  # after a long time of load the average comes down sooner
            gradient = max(0.5, min(1.0, self.tolerance * long_s / sample.took_s))
        felt = sample.in_flight >= self.limit / 2
        limit = self._towards(gradient) if felt else self.limit
        return replace(self, limit=limit, long_s=long_s, samples=samples)

    def _long_s(self, took_s: float) -> float:
        # A plain mean at first, an exponential one of the long window then.
        if self.samples < self.warm_up:
            return (self.long_s * self.samples + took_s) / (self.samples + 1)
        weight = 2 / (self.long_window + 1)
        return self.long_s * (1 - weight) + took_s * weight

    def _towards(self, gradient: float) -> float:
        wanted = self.limit * gradient + (self.queue if gradient > 0.5 else 0)  # noqa: PLR2004
        smoothed = self.limit * (1 - self.smoothing) + wanted * self.smoothing
        return min(self.ceiling, max(self.floor, smoothed))


def _check_bounds(floor: float, limit: float, ceiling: float) -> None:
    if not 1 <= floor <= limit <= ceiling < inf:
        raise ValueError(
            f"a limit of {limit} between {floor} and {ceiling}: they have to be in order, "
            "the floor at least 1 and the ceiling finite"
        )


R = TypeVar("R", bound=Rule)


@dataclass(eq=False, slots=True)
class Slot:
    """One use of a limit. Said neither good nor rejected, it is good if its block raised nothing.

    The last word counts. `queued_s` is how long it waited to be let in.
    """

    began_at: float
    in_flight: int
    queued_s: float = 0.0
    verdict: bool | None = None

    def rejected(self) -> None:
        """The other side had no room for this use (HTTP 429, 503, 529, a full queue)."""
        self.verdict = False

    def ok(self) -> None:
        """The other side did its work, whatever the block raises (a 404 is an answer)."""
        self.verdict = True


class AdaptiveLimit(Generic[R]):
    """Lets in as many at once as its rule says; `rule` is the rule as it stands.

    `used`, `rejected` and `neutral` count the uses that have ended, by what they said.
    `is_rejection` tells which errors of a block are rejections, for those that say it so.
    """

    def __init__(
        self, rule: R, *, is_rejection: Callable[[Exception], bool] = lambda _: False
    ) -> None:
        self.rule = rule
        self.used = self.rejected = self.neutral = 0
        self._is_rejection = is_rejection
        self._gate = trio.CapacityLimiter(int(rule.limit))

    @property
    def limit(self) -> int:
        """How many are let in at once, now."""
        return int(self.rule.limit)

    @property
    def in_flight(self) -> int:
        """How many are in; above the limit for a while after it was lowered."""
        return self._gate.borrowed_tokens

    @property
    def waiting(self) -> int:
        """How many wait to be let in."""
        return self._gate.statistics().tasks_waiting

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """Wait to be let in; the block is the use. Raises nothing but what the block raises."""
        holder = object()
        came_at = trio.current_time()
        await self._gate.acquire_on_behalf_of(holder)
        now = trio.current_time()
        slot = Slot(now, self._gate.borrowed_tokens, now - came_at)
        try:
            yield slot
            if slot.verdict is None:
                slot.ok()
        except Exception as error:
            if slot.verdict is None and self._is_rejection(error):
                slot.rejected()
            raise
        finally:
            self._learn(slot)
            self._gate.release_on_behalf_of(holder)

    def _learn(self, slot: Slot) -> None:
        if slot.verdict is None:
            self.neutral += 1
            return
        self.used += slot.verdict
        self.rejected += not slot.verdict
        sample = Sample(
            slot.began_at, trio.current_time(), slot.in_flight, rejected=not slot.verdict
        )
        self.rule = self.rule.after(sample)
        self._gate.total_tokens = self.limit
