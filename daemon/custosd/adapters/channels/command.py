"""Letters handed to a program of the operator's choice.

Laws: the program's exit status is the answer, as of sendmail: 0 delivered, 75 (EX_TEMPFAIL)
try again, anything else failed. What it prints is neither kept nor logged.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from custosd.adapters.channels.letters import checked_id, letter_json
from custosd.adapters.programs import (
    ProgramAbsent,
    ProgramLate,
    ProgramStarved,
    plain_environment,
    run_program,
)
from custosd.core.errors import ChannelError
from custosd.core.steering import Delivery, Letter, Receipt
from custosd.ports import SteeringChannel

EX_TEMPFAIL = 75


@dataclass(frozen=True, slots=True)
class CommandChannelSettings:
    """The program with its arguments, and how long it may take, seconds.

    `environment` is added to the few variables that it gets anyway.
    """

    argv: tuple[str, ...]
    timeout_s: float = 30.0
    environment: Mapping[str, str] = field(default_factory=dict)


class CommandChannel(SteeringChannel):
    """Runs the program once a letter: JSON on standard input, CUSTOSD_LETTER_* beside it.

    Delivery at most once is the program's to keep: it is told the letter's id, and is run
    again for the same letter only by somebody who does not know what became of it. Within
    one life of this object a letter that was delivered is not handed over again.
    """

    def __init__(self, settings: CommandChannelSettings) -> None:
        if not settings.argv:
            raise ValueError("a command channel needs a program: argv is empty")
        self._settings = settings
        self._delivered: dict[str, None] = {}

    @property
    def name(self) -> str:
        """See the port."""
        return "command"

    async def deliver(self, letter: Letter) -> Receipt:
        """See the port. Slow programs are killed after `timeout_s`, with all they started."""
        text = letter_json(letter)
        if letter.id in self._delivered:
            return Receipt(letter.id, Delivery.DELIVERED, "has_it_already")
        status = await self._run(letter, text)
        if status == EX_TEMPFAIL:
            raise ChannelError(
                "command_deferred", f"{self._program} asked to be tried again", retry=True
            )
        if status != 0:
            how = f"signal {-status}" if status < 0 else f"status {status}"
            raise ChannelError("command_failed", f"{self._program} ended with {how}")
        _remember(self._delivered, letter.id)
        return Receipt(letter.id, Delivery.DELIVERED, "exit_0")

    async def receipts(
        self,
        ids: Collection[str],  # noqa: ARG002 - the port's
    ) -> Sequence[Receipt]:
        """Nothing: a program that has ended proves nothing more."""
        return ()

    @property
    def _program(self) -> str:
        # Without the folder and the arguments, which may hold what is nobody's business.
        return PurePath(self._settings.argv[0]).name

    async def _run(self, letter: Letter, text: bytes) -> int:
        environment = plain_environment(
            {
                **self._settings.environment,
                "CUSTOSD_LETTER_ID": checked_id(letter.id),
                "CUSTOSD_LETTER_AGENT": letter.agent.replace("\0", ""),
                "CUSTOSD_LETTER_EPOCH": str(letter.epoch),
                "CUSTOSD_LETTER_KIND": letter.kind.value,
            }
        )
        try:
            finished = await run_program(
                self._settings.argv,
                stdin=text,
                environment=environment,
                timeout_s=self._settings.timeout_s,
                most_bytes=0,
            )
        except ProgramAbsent as error:
            raise ChannelError(
                "command_absent",
                f"{error}: check the argv of the agent's channel",
            ) from error
        except ProgramStarved as error:
            raise ChannelError("command_starved", str(error), retry=True) from error
        except ProgramLate as error:
            raise ChannelError("command_timeout", str(error), retry=True) from error
        return finished.status


_REMEMBERED = 1_000


def _remember(ids: dict[str, None], new: str) -> None:
    ids[new] = None
    while len(ids) > _REMEMBERED:
        del ids[next(iter(ids))]
