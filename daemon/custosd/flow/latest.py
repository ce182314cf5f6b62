"""The latest value of something: one writer, many readers, and the writer never waits.

Laws:

1. `publish` replaces; what a slow reader did not see in time is gone for it.
2. A reader always gets a whole value, and never the same publication twice.
3. Readers cost the writer nothing but their wake-up: there is no queue anywhere.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Published(Generic[T]):
    """A value and the number of its publication; the first value has version 0."""

    value: T
    version: int


class Latest(Generic[T]):
    """Holds one value; replaced by its one writer, read and awaited by everybody."""

    def __init__(self, value: T) -> None:
        self._published = Published(value, 0)
        self._readers = trio.lowlevel.ParkingLot()

    @property
    def value(self) -> T:
        """The value as it stands."""
        return self._published.value

    @property
    def version(self) -> int:
        """How often a value has been published; never goes back."""
        return self._published.version

    def publish(self, value: T) -> None:
        """Replace the value and wake its readers; never waits. Equal values count too."""
        self._published = Published(value, self._published.version + 1)
        self._readers.unpark_all()

    async def wait_changed(self, since: int) -> Published[T]:
        """The first state found that is newer than version `since`; at once if there is one.

        Intermediate values are skipped: a reader that was slow gets the newest only.
        """
        if self._published.version > since:
            await trio.lowlevel.checkpoint()
        while self._published.version <= since:
            await self._readers.park()
        return self._published

    def __aiter__(self) -> AsyncIterator[T]:
        """Iterate over the present value and each newer one found; never ends by itself."""
        return _Reader(self)


class _Reader(AsyncIterator[T]):
    # A class and no async generator: one that is left half-way needs no closing.
    def __init__(self, latest: Latest[T]) -> None:
        self._latest = latest
        self._seen = -1

    async def __anext__(self) -> T:
        published = await self._latest.wait_changed(self._seen)
        self._seen = published.version
        return published.value
