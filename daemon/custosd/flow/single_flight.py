"""Concurrent calls of one key share one execution, and everybody gets its outcome.

Laws:

1. The execution belongs to no caller: it goes on while one of them waits, whoever began it,
   and is cancelled when nobody waits any more.
2. At no time are two executions of one key under way, but after `forget`.
3. Nothing is kept: a call after the end begins anew, whatever the outcome was.
4. An error reaches every caller as an exception of its own, caused by the one that was raised.
"""

import copy
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import outcome
import trio

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
E = TypeVar("E", bound=BaseException)


class FlightEnded(Exception):
    """The execution was cancelled with the nursery it ran in, while callers waited."""


@dataclass(eq=False, slots=True)
class _Flight(Generic[V]):
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    done: trio.Event = field(default_factory=trio.Event)
    result: outcome.Maybe[V] | None = None
    waiting: int = 0
    joined: int = 0


class SingleFlight(Generic[K, V]):
    """Shares executions by key; they run in `nursery`, which outlives the calls.

    `on_unheard` is told, with the key, of an error that an execution raised when nobody
    waited any more (in its clean-up); without it, such an error goes to the nursery.
    `executions` and `joined` count the calls that began one and those that shared one.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        on_unheard: Callable[[K, Exception], None] | None = None,
    ) -> None:
        self.executions = self.joined = 0
        self._nursery = nursery
        self._on_unheard = on_unheard
        self._flights: dict[K, _Flight[V]] = {}

    def __len__(self) -> int:
        """How many keys have an execution under way."""
        return len(self._flights)

    async def run(self, key: K, fn: Callable[[], Awaitable[V]]) -> V:
        """The result of the execution of `key` that is under way, else of `fn()`, begun now.

        `fn` is not bound by this caller's deadline, nor ended with this caller; an execution
        that was given up is over before the next one of its key begins. Raises: what the
        execution raised, each caller its own copy; `FlightEnded`.
        """
        flight = self._flights.get(key)
        if flight is None or flight.scope.cancel_called:
            given_up, flight = flight, _Flight[V]()
            self._nursery.start_soon(self._fly, key, flight, given_up, fn)
            self._flights[key] = flight
            self.executions += 1
        else:
            self.joined += 1
        flight.joined += 1
        flight.waiting += 1
        try:
            await flight.done.wait()
        finally:
            flight.waiting -= 1
            if flight.waiting == 0 and not flight.done.is_set():
                flight.scope.cancel("nobody waits for it any more")
        return _received(flight)

    def forget(self, key: K) -> None:
        """Let later calls of `key` begin anew; who waits already still gets the old outcome."""
        self._flights.pop(key, None)

    async def _fly(
        self,
        key: K,
        flight: _Flight[V],
        given_up: _Flight[V] | None,
        fn: Callable[[], Awaitable[V]],
    ) -> None:
        try:
            if given_up is not None:
                await given_up.done.wait()
            with flight.scope:
                if not flight.scope.cancel_called:
                    flight.result = outcome.Value(await fn())
        except Exception as error:
            if flight.waiting:
                flight.result = outcome.Error(error)
            elif self._on_unheard is None:
                raise
            else:
                self._on_unheard(key, error)
        finally:
            flight.done.set()
            if self._flights.get(key) is flight:
                del self._flights[key]


def _received(flight: _Flight[V]) -> V:
    match flight.result:
        case outcome.Value(value):
            return value
        case outcome.Error(error):
            # A caller that was alone needs no copy.
            raise error if flight.joined == 1 else fresh(error)
        case _:
            raise FlightEnded("its nursery was cancelled; begin it in one that lives longer")


def fresh(error: E) -> E:
    """A copy of `error` to raise elsewhere, with `error` as its cause and no traceback yet.

    One exception raised in several tasks would gather the tracebacks of all of them. An
    exception that cannot be copied is returned itself.
    """
    try:
        again = copy.copy(error)
        # Its constructor may have made a message out of what was a message already.
        again.args = error.args
    except Exception:  # noqa: BLE001 - foreign constructors; the original says all there is
        return error
    if type(again) is not type(error):
        return error
    again.__cause__ = error
    return again
