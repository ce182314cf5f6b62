"""Several ways to one answer, run at once, until enough of them have answered.

Laws:

1. Every member is accounted for: its value, its error, or that it was cut.
2. A failed member is no answer, and keeps no other from answering.
3. When the call ends, all members have ended.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Generic, TypeVar

import outcome
import trio

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Cut:
    """The member had not ended `after_s` seconds after all began, and was cancelled."""

    after_s: float


@dataclass(frozen=True, slots=True)
class Quorum(Generic[R]):
    """What became of each member, in their order, and whether enough of them answered."""

    reached: bool
    members: tuple[outcome.Value[R] | outcome.Error | Cut, ...]

    @property
    def values(self) -> list[R]:
        """The answers, in the order of the members."""
        return [member.value for member in self.members if isinstance(member, outcome.Value)]


async def quorum(
    fns: Sequence[Callable[[], Awaitable[R]]],
    enough: int | Callable[[Sequence[R]], bool],
    *,
    straggler_s: float = 0.0,
    timeout_s: float = inf,
) -> Quorum[R]:
    """Run all of `fns` at once; return when enough have answered, or all have ended.

    `enough` is how many answers, or says of the answers so far, in the order in which they
    came, whether they do. The others then have `straggler_s` more, and are cut. After
    `timeout_s` all are cut that have not ended, and what there is is returned. Raises: no
    `Exception` of a member; an error of `enough`, in an `ExceptionGroup`; `ValueError` when a
    number of answers is asked for that cannot come.
    """
    if isinstance(enough, int) and not 1 <= enough <= len(fns):
        raise ValueError(f"{enough} answers asked of {len(fns)} members")
    began_at = trio.current_time()
    scopes = [trio.CancelScope(deadline=began_at + timeout_s) for _ in fns]
    members: dict[int, outcome.Value[R] | outcome.Error | Cut] = {}
    answers: list[R] = []
    reached = False

    def answered(value: R) -> None:
        nonlocal reached
        answers.append(value)
        if reached:
            return
        reached = len(answers) >= enough if isinstance(enough, int) else enough(tuple(answers))
        if reached:
            for scope in scopes:
                scope.deadline = min(scope.deadline, trio.current_time() + straggler_s)

    async def run(index: int) -> None:
        members[index] = member = await _member(fns[index], scopes[index], began_at)
        if isinstance(member, outcome.Value):
            answered(member.value)

    async with trio.open_nursery() as nursery:
        for index in range(len(fns)):
            nursery.start_soon(run, index)
    return Quorum(reached, tuple(members[index] for index in range(len(fns))))


async def _member(
    fn: Callable[[], Awaitable[R]], scope: trio.CancelScope, began_at: float
) -> outcome.Value[R] | outcome.Error | Cut:
    try:
        with scope:
            return outcome.Value(await fn())
    except Exception as error:  # noqa: BLE001 - kept whole, as this member's outcome
        return outcome.Error(error)
    return Cut(trio.current_time() - began_at)
