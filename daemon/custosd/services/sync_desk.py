"""Where hooks come in and sync is asked for: one for the daemon's life, whoever follows.

Law: what comes while nobody follows (a reload, a restart of the service) is not kept; who sent
it is told to come again, and the next sweep finds it anyway.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager

from custosd.core.acts import Act, ActAnswer, ActOutcome, ActRequest
from custosd.core.forge import HookRefusal, HookRefused
from custosd.ports import ActDoor, SyncStore
from custosd.services.sync import Sync


class SyncDesk:
    """`ports.SyncDoor`. `store` is where everything about it is read."""

    def __init__(self, store: SyncStore) -> None:
        self.store = store
        self._sync: Sync | None = None

    @contextmanager
    def led_to(self, sync: Sync) -> Generator[None]:
        """Hand over to this one, for the block."""
        self._sync = sync
        try:
            yield
        finally:
            if self._sync is sync:
                self._sync = None

    async def receive(self, forge: str, headers: Mapping[str, str], body: bytes) -> int:
        """See the port."""
        if self._sync is None:
            raise HookRefused(HookRefusal.BUSY, "nobody follows forges at this moment")
        return await self._sync.receive(forge, headers, body)

    def look_now(self) -> ActAnswer:
        """Have all repositories looked at, those that rest too."""
        if self._sync is None or not self._sync.setup.repositories:
            words = "no repository is followed: see [[sync.repository]]"
            return ActAnswer(ActOutcome.NOTHING_TO_DO, words)
        self._sync.look_now()
        count = len(self._sync.setup.repositories)
        words = f"{count} repositories are looked at now; see `custosd sync show`"
        held = {forge: round(seconds, 1) for forge, seconds in self._sync.held().items()}
        if held:
            told = ", ".join(f"{forge} for {seconds:g} s more" for forge, seconds in held.items())
            words += f". Not asked, since it has had enough of us: {told}"
        return ActAnswer(ActOutcome.DONE, words, {"repositories": count, "held": held})


class ActsAndSync:
    """`ports.ActDoor`: what is asked of sync goes to the desk; all else to the acts."""

    def __init__(self, acts: ActDoor, desk: SyncDesk) -> None:
        self._acts = acts
        self._desk = desk

    async def perform(self, request: ActRequest) -> ActAnswer:
        """Do it, or say why not."""
        if request.act is not Act.SYNC:
            return await self._acts.perform(request)
        if request.dry_run:
            return ActAnswer(ActOutcome.WOULD_BE_DONE, "all repositories would be looked at now")
        return self._desk.look_now()
