"""One function over many items, so many at a time, and each item's own outcome.

Laws: an item's failure is kept beside the others' results, never turned into an empty
value; cancellation is no failure: it ends the whole call, and every started item with it.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import outcome
import trio

T = TypeVar("T")
R = TypeVar("R")


async def each(
    items: Iterable[T],
    fn: Callable[[T], Awaitable[R]],
    *,
    limit: int | trio.CapacityLimiter,
) -> list[outcome.Outcome[R]]:
    """Call `fn` on every item; return the outcomes in the order of the items.

    A number bounds the calls of this one use; a limiter is shared with whoever else has it
    (then `fn` itself must not acquire it: that would wait for itself). Items are taken one
    by one, as room comes up. Raises: no `Exception` of `fn`: those are in the outcomes, and
    `unwrap()` raises them there; an error of `items` itself comes out, in an
    `ExceptionGroup`, and ends the calls that are under way.
    """
    limiter = trio.CapacityLimiter(limit) if isinstance(limit, int) else limit
    outcomes: dict[int, outcome.Outcome[R]] = {}

    async def call(index: int, item: T, borrower: object) -> None:
        try:
            outcomes[index] = outcome.Value(await fn(item))
        except Exception as error:  # noqa: BLE001 - kept whole, as this item's outcome
            outcomes[index] = outcome.Error(error)
        finally:
            limiter.release_on_behalf_of(borrower)

    async with trio.open_nursery() as nursery:
        for index, item in enumerate(items):
            borrower = object()
            await limiter.acquire_on_behalf_of(borrower)
            nursery.start_soon(call, index, item, borrower)
    return [outcomes[index] for index in range(len(outcomes))]
