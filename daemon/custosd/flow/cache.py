"""Values by key, loaded when they are asked for and kept for a time.

Laws:

1. None is a value like any other; an error is kept only where it was said to be an answer.
2. One load of a key at a time, shared by all who ask meanwhile (`flow.single_flight`).
3. What is asked for after `invalidate` was loaded after it: a load that was under way by
   then serves those who waited for it already, and is not kept.
4. Never more than `most` entries: the one not asked for the longest goes.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import outcome
import trio

from custosd.flow.single_flight import SingleFlight, fresh

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Entry(Generic[V]):
    result: outcome.Maybe[V]
    ends_at: float


class Cache(Generic[K, V]):
    """Keeps what `load(key)` returned for `ttl_s`, from the load's end.

    An error for which `is_negative` is true is kept for `negative_ttl_s`. Loads run in
    `nursery`; `on_unheard` is as `SingleFlight` has it. `hits` and `misses` count the calls,
    `evictions` what went for want of room, `loads` how often `load` was called.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        load: Callable[[K], Awaitable[V]],
        *,
        ttl_s: float,
        negative_ttl_s: float = 0.0,
        is_negative: Callable[[Exception], bool] | None = None,
        most: int = 1024,
        on_unheard: Callable[[K, Exception], None] | None = None,
    ) -> None:
        if most < 1:
            raise ValueError(f"a cache of at most {most} entries keeps nothing")
        if (negative_ttl_s > 0) != (is_negative is not None):
            raise ValueError("negative_ttl_s and is_negative: give both, or neither")
        self.hits = self.misses = self.evictions = self.loads = 0
        self._load = load
        self._ttl_s = ttl_s
        self._negative_ttl_s = negative_ttl_s
        self._is_negative = is_negative
        self._most = most
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()
        self._flights = SingleFlight[K, V](nursery, on_unheard=on_unheard)
        self._loading: dict[K, object] = {}

    def __len__(self) -> int:
        """How many entries are held, those included whose time is up."""
        return len(self._entries)

    async def get(self, key: K) -> V:
        """The value of `key`, kept or loaded now.

        Waits for a load at most; a load goes on while one caller waits for it. Raises: what
        the load raised, or an error that is kept (each caller its own copy); `FlightEnded`.
        """
        entry = self._entries.get(key)
        if entry is None or trio.current_time() >= entry.ends_at:
            self.misses += 1
            return await self._flights.run(key, partial(self._load_and_keep, key))
        self.hits += 1
        self._entries.move_to_end(key)
        await trio.lowlevel.checkpoint()
        match entry.result:
            case outcome.Value(value):
                return value
            case outcome.Error(error):
                raise fresh(error)

    def invalidate(self, key: K) -> None:
        """Drop what is kept for `key`, and what is being loaded for it."""
        self._entries.pop(key, None)
        self._loading.pop(key, None)
        self._flights.forget(key)

    def clear(self) -> None:
        """Invalidate every key."""
        for key in [*self._entries, *self._loading]:
            self.invalidate(key)

    async def _load_and_keep(self, key: K) -> V:
        self.loads += 1
        this_load = self._loading[key] = object()
        try:
            value = await self._load(key)
        except Exception as error:
            if self._is_negative is not None and self._is_negative(error):
                kept = fresh(error)
                if kept is not error:
                    # The traceback would keep alive all that the load had in its hands.
                    kept.__cause__ = None
                self._keep(key, this_load, outcome.Error(kept), self._negative_ttl_s)
            raise
        else:
            self._keep(key, this_load, outcome.Value(value), self._ttl_s)
            return value
        finally:
            if self._loading.get(key) is this_load:
                del self._loading[key]

    def _keep(self, key: K, load: object, result: outcome.Maybe[V], ttl_s: float) -> None:
        if self._loading.get(key) is not load:
            return  # invalidated meanwhile
        self._entries[key] = _Entry(result, trio.current_time() + ttl_s)
        self._entries.move_to_end(key)
        while len(self._entries) > self._most:
            self._entries.popitem(last=False)
            self.evictions += 1
