"""The part of an action store that keeps holds, for tests that hold it up or let it fail."""

import trio

from custosd.core.errors import StoreError
from custosd.core.holds import Hold, HoldKind


class Shelf:
    """The part of an action store that keeps holds; a step can be held up or made to fail."""

    def __init__(self) -> None:
        self.kept: dict[tuple[HoldKind, str], Hold] = {}
        self.calls: list[str] = []
        self.errors: list[StoreError | None] = []
        self.error: StoreError | None = None
        self.gates: list[trio.Event] = []

    async def place_hold(self, hold: Hold) -> None:
        await self._step(f"place {hold.reason}")
        self.kept[hold.key] = hold

    async def lift_hold(self, kind: HoldKind, subject: str) -> bool:
        await self._step(f"lift {subject}")
        return self.kept.pop((kind, subject), None) is not None

    async def _step(self, call: str) -> None:
        self.calls.append(call)
        await trio.lowlevel.checkpoint()
        if self.gates:
            await self.gates.pop(0).wait()
        error = self.errors.pop(0) if self.errors else self.error
        if error is not None:
            raise error
