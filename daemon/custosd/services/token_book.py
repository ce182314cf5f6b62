"""Keeps the tokens at hand for the doors, as they stand in the store.

Law: a token that was revoked is worthless after one look; while the store is away the last
look holds, for agents must be heard then, too.
"""

from collections.abc import Mapping
from types import MappingProxyType

import trio

from custosd.core.tokens import Token
from custosd.flow.pulse import Pulse
from custosd.ports import ActionStore
from custosd.services.store_absence import StoreAbsence

INTERVAL_S = 5.0
"""How soon a token that was issued, or revoked, by a command is known here."""


class TokenBook:
    """All tokens, by their ids."""

    def __init__(self, store: ActionStore) -> None:
        self._store = store
        self._tokens: Mapping[str, Token] = MappingProxyType({})

    def tokens(self) -> Mapping[str, Token]:
        """The tokens as they stood at the last look."""
        return self._tokens

    async def look(self) -> None:
        """Read them anew. Raises `StoreError`."""
        found = await self._store.tokens()
        self._tokens = MappingProxyType({token.id: token for token in found})

    async def keep(
        self, pulse: Pulse, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Look each `INTERVAL_S`; never returns. Started: after the first try."""
        started, absence = False, StoreAbsence("tokens")
        while True:
            with absence.told(waiting=0):
                await self.look()
            if not started:
                started = True
                task_status.started()
            await pulse.sleep(INTERVAL_S)
