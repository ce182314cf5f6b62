"""A channel that keeps what it was given: the shipped fake, for tests, drills and simulation."""

from collections.abc import Collection, Iterable, Sequence

import trio

from custosd.core.errors import ChannelError
from custosd.core.steering import Delivery, Letter, Receipt
from custosd.ports import SteeringChannel


class RecordedChannel(SteeringChannel):
    """Takes letters in memory, each id once, as an agent's inbox would.

    Before a letter is taken, `script` is asked: a `ChannelError` in it is raised, `None`
    hangs until cancelled, "lost" takes the letter and then says that it timed out (the
    answer was lost on the way), "ok" takes it. Where the script has ended all are taken.
    `letters` are those that arrived, in order, without repeats; `offered` the ids of every
    call. `reads`: each letter is read, and acknowledged, on arrival.
    """

    def __init__(
        self,
        name: str = "recorded",
        script: Iterable[ChannelError | str | None] = (),
        *,
        reads: bool = False,
        delay_s: float = 0.0,
    ) -> None:
        self._name = name
        self._script = list(script)
        self._reads = reads
        self._delay_s = delay_s
        self._read: set[str] = set()
        self.letters: list[Letter] = []
        self.offered: list[str] = []
        self.polled = 0
        self.deaf: ChannelError | None = None

    @property
    def name(self) -> str:
        """As it was made."""
        return self._name

    async def deliver(self, letter: Letter) -> Receipt:
        """Take it in as the script says; raises the `ChannelError`s that it holds."""
        self.offered.append(letter.id)
        step = self._script.pop(0) if self._script else "ok"
        await trio.sleep(self._delay_s)
        if step is None:
            await trio.sleep_forever()
        if isinstance(step, ChannelError):
            raise step
        if letter.id not in {known.id for known in self.letters}:
            self.letters.append(letter)
        if self._reads:
            self._read.add(letter.id)
        if step == "lost":
            raise ChannelError("timeout", retry=True)
        return self._receipt(letter.id)

    async def receipts(self, ids: Collection[str]) -> Sequence[Receipt]:
        """What is known of these; raises `deaf` while that is set."""
        await trio.lowlevel.checkpoint()
        self.polled += 1
        if self.deaf is not None:
            raise self.deaf
        arrived = {letter.id for letter in self.letters}
        return [self._receipt(name) for name in ids if name in arrived]

    def acknowledge(self, letter_id: str) -> None:
        """The agent has read it; the next look at the receipts shows it."""
        self._read.add(letter_id)

    def fail_next(self, *steps: ChannelError | str | None) -> None:
        """Put these at the script's beginning."""
        self._script[:0] = steps

    def _receipt(self, letter_id: str) -> Receipt:
        if letter_id in self._read:
            return Receipt(letter_id, Delivery.ACKNOWLEDGED, "recorded_read")
        return Receipt(letter_id, Delivery.DELIVERED, "recorded")
