"""A line of waiters: higher priorities first, the oldest first within one, nobody for ever.

Laws:

1. Who waits `most_wait_s` goes before everybody who has not yet, whatever the priorities;
   among those who have, the oldest goes first. So each one in line has a bounded number of
   others before it, from then on.
2. Until then a higher priority goes before a lower one; equal ones keep their order.
3. Leaving, from any place, changes nobody else's order.
4. Who is promoted keeps its age: it goes before all of its new priority who joined later.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class _Place:
    priority: int
    number: int
    overdue_at: float


class Line(Generic[T]):
    """Keeps waiters in order; knows no clock and waits for nothing. Waiters are unique."""

    def __init__(self, most_wait_s: float) -> None:
        self.most_wait_s = most_wait_s
        self._places: dict[T, _Place] = {}
        # A row for each priority, in the order of joining.
        self._rows: dict[int, dict[T, None]] = {}
        self._numbers = count()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._places)

    def __contains__(self, waiter: T) -> bool:
        return waiter in self._places

    def __iter__(self) -> Iterator[T]:
        """All who wait, in the order in which they joined."""
        return iter(self._places)

    def join(self, waiter: T, priority: int, now: float) -> None:
        """Stand at the end of the priority's row."""
        if waiter in self._places:
            raise ValueError(f"{waiter!r} stands in the line already")
        self._places[waiter] = _Place(priority, next(self._numbers), now + self.most_wait_s)
        self._rows.setdefault(priority, {})[waiter] = None

    def leave(self, waiter: T) -> None:
        """Give up the place, or be served. Raises `KeyError` for who does not wait."""
        self._drop(waiter, self._places.pop(waiter).priority)

    def promote(self, waiter: T, priority: int) -> None:
        """Raise a waiter's priority; a lower one changes nothing. `KeyError`: it does not wait.

        Costs a look at everybody of the new priority, who stay in the order of joining.
        """
        place = self._places[waiter]
        if priority <= place.priority:
            return
        row = [*self._rows.get(priority, ()), waiter]
        self._drop(waiter, place.priority)
        self._places[waiter] = replace(place, priority=priority)
        self._rows[priority] = dict.fromkeys(sorted(row, key=lambda one: self._places[one].number))

    def first(self, now: float) -> T | None:
        """Whose turn it is; None if nobody waits. Costs a step for each priority in use."""
        heads = [next(iter(row)) for row in self._rows.values()]
        overdue = [head for head in heads if self._places[head].overdue_at <= now]
        if overdue:
            return min(overdue, key=lambda head: self._places[head].number)
        return max(heads, key=lambda head: self._places[head].priority, default=None)

    def overdue_at(self, waiter: T) -> float:
        """When the waiter goes before everybody who is not overdue."""
        return self._places[waiter].overdue_at

    def _drop(self, waiter: T, priority: int) -> None:
        row = self._rows[priority]
        del row[waiter]
        if not row:
            del self._rows[priority]
