"""The part of an action store that keeps holds, for tests that hold it up or let it fail."""

from collections.abc import Collection, Sequence

import trio

from custosd.core.errors import StoreError, StoreRefused
from custosd.core.holds import Hold, HoldKind


class Shelf:
    """The part of an action store that keeps holds; a step can be held up or made to fail.

    A hold on `refused` is refused, and with it what came in the same call.
    """

    def __init__(self) -> None:
        self.kept: dict[tuple[HoldKind, str], Hold] = {}
        self.calls: list[str] = []
        self.errors: list[StoreError | None] = []
        self.error: StoreError | None = None
        self.gates: list[trio.Event] = []
        self.refused = ""

    async def place_hold(self, hold: Hold) -> None:
        await self._step(f"place {hold.reason}")
        self._check(hold)
        self.kept[hold.key] = hold

    async def place_holds(self, holds: Sequence[Hold]) -> None:
        await self._step(f"place {len(holds)} holds")
        for hold in holds:
            self._check(hold)
        self.kept.update((hold.key, hold) for hold in holds)

    async def lift_holds(self, keys: Collection[tuple[HoldKind, str]]) -> int:
        await self._step(f"lift {len(keys)} holds")
        return sum(self.kept.pop(key, None) is not None for key in keys)

    async def lift_hold(self, kind: HoldKind, subject: str) -> bool:
        await self._step(f"lift {subject}")
        return self.kept.pop((kind, subject), None) is not None

    def _check(self, hold: Hold) -> None:
        if hold.subject == self.refused:
            raise StoreRefused("a bug")

    async def _step(self, call: str) -> None:
        self.calls.append(call)
        await trio.lowlevel.checkpoint()
        if self.gates:
            await self.gates.pop(0).wait()
        error = self.errors.pop(0) if self.errors else self.error
        if error is not None:
            raise error
