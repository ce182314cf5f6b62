"""Letters as files in a folder that the agent's own client empties.

    new/ID.json ─(client renames)─► claimed/ID.json ─(client)─► done/ID.json

Laws:

1. The folder is the agent's, so it may be hostile: no symbolic link is followed, nothing in
   it is opened that is not a regular file, nothing is read or listed beyond a bound, and
   what hangs, hangs a thread that is given up.
2. A letter appears under its name whole or not at all, and once: whoever has it in new,
   claimed or done gets no second one.
3. A claim that is not acknowledged within `claim_s` is void, and the letter is new again.
4. An acknowledgement is a regular file in done; what it says is not read.
"""

import errno
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import trio

from custosd.adapters.channels.inbox_folder import InboxFolder, opened
from custosd.adapters.channels.letters import checked_id, letter_json
from custosd.core.errors import ChannelError
from custosd.core.steering import Delivery, Letter, Receipt
from custosd.flow.threads import Threads
from custosd.ports import SteeringChannel

_THREADS = 2
_PASSING = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)
"""Trouble that may pass by itself; another kind needs a person."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class InboxSettings:
    """Where the inbox is, and its bounds.

    `depth`: letters that may wait in new. `claim_s`: how long a claim counts. `kept_s`: how
    long acknowledgements are kept. `timeout_s`: how long the file system may take.
    """

    folder: Path
    depth: int = 50
    claim_s: float = 300.0
    kept_s: float = 7 * 86_400.0
    timeout_s: float = 10.0


class InboxChannel(SteeringChannel):
    """The inbox of one agent. The folder is made if it is missing, its parents are not."""

    def __init__(
        self, settings: InboxSettings, now_utc: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._settings = settings
        self._now_utc = now_utc
        # Its own threads: an agent whose file system hangs must not take those of others.
        self._threads = Threads(_THREADS)

    @property
    def name(self) -> str:
        """See the port."""
        return "inbox"

    async def deliver(self, letter: Letter) -> Receipt:
        """See the port. Errors to retry: inbox_full, inbox_stuck, inbox_unwritable.

        Not to be retried: expired, inbox_refused (rights, a link in the way, no parent).
        """
        text = letter_json(letter)
        now = self._now_utc()
        if letter.expires_utc <= now:
            raise ChannelError("expired", "the letter has run out")
        return await self._bounded(lambda inbox: self._put(inbox, letter.id, text, now))

    async def receipts(self, ids: Collection[str]) -> Sequence[Receipt]:
        """See the port. Also puts back what was claimed in vain and removes what has run out."""
        letters = tuple(dict.fromkeys(map(checked_id, ids)))
        now = self._now_utc()

        def look(inbox: InboxFolder) -> Sequence[Receipt]:
            self._tidy(inbox, now)
            return [_acknowledged(letter) for letter in letters if inbox.has("done", letter)]

        return await self._bounded(look)

    def _put(self, inbox: InboxFolder, letter: str, text: bytes, now: datetime) -> Receipt:
        if inbox.has("done", letter):
            return _acknowledged(letter)
        if inbox.has("new", letter) or inbox.has("claimed", letter):
            return Receipt(letter, Delivery.DELIVERED, "has_it_already")
        if inbox.waiting() >= self._settings.depth:
            self._tidy(inbox, now)
            if inbox.waiting() >= self._settings.depth:
                raise ChannelError(
                    "inbox_full",
                    f"{self._settings.depth} letters wait unread in {self._settings.folder}/new: "
                    "does the agent's client read them?",
                    retry=True,
                )
        # It may have gone from new to done between the looks, past the one that came too late.
        if inbox.has("done", letter):
            return _acknowledged(letter)
        inbox.put(letter, text)
        return Receipt(letter, Delivery.DELIVERED, "file_renamed")

    def _tidy(self, inbox: InboxFolder, now: datetime) -> None:
        inbox.tidy(now, self._settings.claim_s, self._settings.kept_s)

    async def _bounded(self, work: Callable[[InboxFolder], _T]) -> _T:
        def run() -> _T:
            with opened(self._settings.folder) as inbox:
                return work(inbox)

        try:
            with trio.fail_after(self._settings.timeout_s):
                return await self._threads.run(run)
        except trio.TooSlowError as error:
            raise ChannelError(
                "inbox_stuck",
                f"the file system of {self._settings.folder} took more than "
                f"{self._settings.timeout_s:g} s",
                retry=True,
            ) from error
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> ChannelError:
        where = f"{self._settings.folder}: {error.strerror}"
        if error.errno in _PASSING:
            return ChannelError("inbox_unwritable", where, retry=True)
        return ChannelError(
            "inbox_refused",
            f"{where}; the inbox and its parts must be real folders that the daemon's user "
            "may write",
        )


def _acknowledged(letter: str) -> Receipt:
    return Receipt(letter, Delivery.ACKNOWLEDGED, "done_file")
