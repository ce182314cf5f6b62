"""So much of something per second, with bursts, costs, priorities and several dimensions.

Laws:

1. Over any stretch of t seconds no more is given than `burst + per_s * t` of a dimension,
   plus what was given back by `correct`.
2. A cost is taken in all its dimensions at once or not at all; who waits holds nothing, so a
   cancelled waiter leaves no hole.
3. Turns are `flow.line`'s: higher priority first, first come first served within one, and who
   has waited `most_wait_s` goes before all others. Whoever's turn it is, is not overtaken by
   a smaller cost.
4. What a provider says of its own budget can only make us slower.
5. Who takes closed rates for no longer than `longest_closed_s` learns at once that they are,
   or become, closed for longer; also in the midst of waiting.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite

import trio

from custosd.flow.line import Line


class CostExceedsBurst(ValueError):
    """The cost can never be given: it is larger than the dimension's burst."""


class RatesClosed(Exception):
    """The cost was not taken: nothing of a dimension is given before `until_at` (trio clock)."""

    def __init__(self, dimension: str, until_at: float) -> None:
        super().__init__(dimension, until_at)
        self.dimension = dimension
        self.until_at = until_at

    def __str__(self) -> str:
        return (
            f"{self.dimension} are closed until {self.until_at:.3f} on trio's clock, which is"
            " longer than the caller waits"
        )


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_s` a second in the long run (> 0), `burst` (> 0) at once after a rest."""

    per_s: float
    burst: float

    def __post_init__(self) -> None:
        if not (isfinite(self.per_s) and isfinite(self.burst) and min(self.per_s, self.burst) > 0):
            raise ValueError(f"a rate needs finite numbers above zero, not {self}")


@dataclass(slots=True)
class _Bucket:
    # The generic cell rate algorithm (ITU-T I.371): one number says all, the time at which
    # the bucket is full again. Comparing times, and no levels, needs no tolerance.
    rate: Rate
    full_at: float = -inf
    closed_until: float = -inf

    def ready_at(self, cost: float, now: float) -> float:
        if self.full_at <= now:
            return self.closed_until
        return max(self.closed_until, self.full_at + (cost - self.rate.burst) / self.rate.per_s)

    def take(self, cost: float, now: float) -> None:
        self.full_at = max(self.full_at, now) + cost / self.rate.per_s

    def level(self, now: float) -> float:
        return self.rate.burst - max(self.full_at - now, 0) * self.rate.per_s


@dataclass(eq=False, slots=True)
class _Waiter:
    cost: Mapping[str, float]
    longest_closed_s: float
    turn: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)


class RateLimiter:
    """Lets costs through at the given rates; a lone `Rate` is of the dimension "requests".

    A number as a cost is so many requests. `granted` counts the takes that were let through,
    `waited_s` is what they waited for, summed up.
    """

    def __init__(self, rates: Rate | Mapping[str, Rate], *, most_wait_s: float = 30.0) -> None:
        if isinstance(rates, Rate):
            rates = {"requests": rates}
        self.granted = 0
        self.waited_s = 0.0
        self._buckets = {dimension: _Bucket(rate) for dimension, rate in rates.items()}
        self._line = Line[_Waiter](most_wait_s)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._line)

    def level(self, dimension: str = "requests") -> float:
        """What could be taken now; below zero after `correct` or `told` lowered it so far."""
        return self._bucket(dimension).level(trio.current_time())

    def closed_until(self, cost: float | Mapping[str, float] = 1.0) -> float:
        """Before when (trio clock) nothing is given of what the cost is of; past: it is open.

        Raises as `take`.
        """
        closed = self._closed(self._checked(cost))
        return -inf if closed is None else closed[1]

    async def take(
        self,
        cost: float | Mapping[str, float] = 1.0,
        priority: int = 0,
        *,
        longest_closed_s: float = inf,
    ) -> None:
        """Wait until the cost may be spent, and spend it. A higher priority goes first.

        Cancelled, it has spent nothing. Raises `CostExceedsBurst`, at once; `RatesClosed` as
        soon as the rates stay closed for longer than `longest_closed_s` from then on;
        `ValueError` for an unknown dimension or a cost below zero.
        """
        costs = self._checked(cost)
        await trio.lowlevel.checkpoint_if_cancelled()
        joined_at = trio.current_time()
        waiter = _Waiter(costs, longest_closed_s)
        self._line.join(waiter, priority, joined_at)
        try:
            while not self._try(waiter):
                self._check_not_closed_for_long(waiter)
                await self._until_something_changes(waiter)
        finally:
            self._line.leave(waiter)
            self._wake_first()
        self.waited_s += trio.current_time() - joined_at
        await trio.lowlevel.cancel_shielded_checkpoint()

    def take_nowait(self, cost: float | Mapping[str, float] = 1.0) -> bool:
        """Spend the cost if it may be spent now and nobody waits; return whether it was."""
        costs, now = self._checked(cost), trio.current_time()
        if len(self._line) or self._ready_at(costs, now) > now:
            return False
        self._spend(costs, now)
        return True

    def correct(self, difference: float | Mapping[str, float]) -> None:
        """Settle takes whose cost was estimated: what was used, less what was taken.

        Above zero lowers the level (below zero if need be), below zero gives back.
        """
        now = trio.current_time()
        differences = self._by_dimension(difference).items()
        for bucket, more in [(self._bucket(dimension), more) for dimension, more in differences]:
            bucket.take(more, now)
        self._wake_first()

    def told(self, dimension: str, remaining: float, reset_at: float | None = None) -> None:
        """Take in what a response says: so much is left, and all of it again at `reset_at`.

        `reset_at` is on trio's clock. A `remaining` above our own level changes nothing:
        requests on their way are not counted in it yet. With nothing remaining, nothing of
        the dimension is given before `reset_at`.
        """
        now, bucket = trio.current_time(), self._bucket(dimension)
        rate = bucket.rate
        bucket.full_at = max(bucket.full_at, now + (rate.burst - remaining) / rate.per_s)
        if remaining <= 0 and reset_at is not None:
            bucket.closed_until = max(bucket.closed_until, reset_at)
            self._wake_impatient()
        self._wake_first()

    def close_until(self, at: float) -> None:
        """Give nothing before `at` (trio clock), as after an answer with Retry-After."""
        for bucket in self._buckets.values():
            bucket.closed_until = max(bucket.closed_until, at)
        self._wake_impatient()
        self._wake_first()

    def _try(self, waiter: _Waiter) -> bool:
        now = trio.current_time()
        if self._line.first(now) is not waiter or self._ready_at(waiter.cost, now) > now:
            return False
        self._spend(waiter.cost, now)
        return True

    async def _until_something_changes(self, waiter: _Waiter) -> None:
        now = trio.current_time()
        if self._line.first(now) is waiter:
            wake_at = self._ready_at(waiter.cost, now)
        else:
            # Becoming overdue is the one way to the front that nobody else would tell of.
            overdue_at = self._line.overdue_at(waiter)
            wake_at = overdue_at if overdue_at > now else inf
        with trio.move_on_at(wake_at):
            await waiter.turn.park()

    def _check_not_closed_for_long(self, waiter: _Waiter) -> None:
        closed = self._closed(waiter.cost)
        if closed is not None and closed[1] - trio.current_time() > waiter.longest_closed_s:
            raise RatesClosed(*closed)

    def _closed(self, costs: Mapping[str, float]) -> tuple[str, float] | None:
        """The dimension that is closed for longest, and until when; None without a cost."""
        each = ((dimension, self._buckets[dimension].closed_until) for dimension in costs)
        return max(each, key=lambda closed: closed[1], default=None)

    def _wake_impatient(self) -> None:
        # A closing is rare: all who set a bound look for themselves.
        for waiter in self._line:
            if waiter.longest_closed_s < inf:
                waiter.turn.unpark_all()

    def _wake_first(self) -> None:
        first = self._line.first(trio.current_time())
        if first is not None:
            first.turn.unpark_all()

    def _spend(self, costs: Mapping[str, float], now: float) -> None:
        for dimension, cost in costs.items():
            self._buckets[dimension].take(cost, now)
        self.granted += 1

    def _ready_at(self, costs: Mapping[str, float], now: float) -> float:
        return max(
            (self._buckets[each].ready_at(cost, now) for each, cost in costs.items()), default=-inf
        )

    def _checked(self, cost: float | Mapping[str, float]) -> Mapping[str, float]:
        costs = self._by_dimension(cost)
        for dimension, much in costs.items():
            burst = self._bucket(dimension).rate.burst
            if not much >= 0:
                raise ValueError(f"a cost of {much} {dimension}: costs are not below zero")
            if much > burst:
                raise CostExceedsBurst(
                    f"a cost of {much:g} {dimension} can never be given at a burst of {burst:g}: "
                    "split it, or raise the burst"
                )
        # What costs nothing in a dimension does not wait for it.
        return {dimension: much for dimension, much in costs.items() if much > 0}

    def _bucket(self, dimension: str) -> _Bucket:
        bucket = self._buckets.get(dimension)
        if bucket is None:
            known = ", ".join(sorted(self._buckets))
            raise ValueError(f"no rate is set for {dimension!r}; there are rates for: {known}")
        return bucket

    def _by_dimension(self, cost: float | Mapping[str, float]) -> dict[str, float]:
        return {**cost} if isinstance(cost, Mapping) else {"requests": cost}
