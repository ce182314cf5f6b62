"""Tells of concerns by running a program for each notice.

Laws: those of `programs`; the notice is the program's input and nothing else of it (no
argument, no shell), so no text can become a command. What the program writes goes into no
more than the error, up to a bound.
"""

from collections.abc import Mapping, Sequence

from custosd.adapters.notify.notices import notice_json
from custosd.adapters.programs import (
    Finished,
    ProgramAbsent,
    ProgramLate,
    ProgramStarved,
    plain_environment,
    run_program,
)
from custosd.core.errors import NotifyError
from custosd.ports import Notice, Notifier

SAID_BYTES = 2_048
"""How much of what the program complains about goes into the error."""


class CommandNotifier(Notifier):
    """Runs `argv` with the notice as JSON on its standard input; exit code 0 means told.

    `environment` is added to the few variables that it gets anyway.
    """

    def __init__(
        self,
        argv: Sequence[str],
        timeout_s: float = 30.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._argv = list(argv)
        self._timeout_s = timeout_s
        self._environment = dict(environment or {})

    @property
    def name(self) -> str:
        """The way, as it is called in facts."""
        return "command"

    async def notify(self, notice: Notice) -> None:
        """Run the program; raises `NotifyError` "timeout", "exit_N", "signal_N", "not_started"."""
        try:
            finished = await run_program(
                self._argv,
                stdin=notice_json(notice) + b"\n",
                environment=plain_environment(self._environment),
                timeout_s=self._timeout_s,
                most_bytes=SAID_BYTES,
            )
        except (ProgramAbsent, ProgramStarved) as error:
            raise NotifyError("not_started", f"{error}; see [alerts]") from error
        except ProgramLate as error:
            raise NotifyError("timeout", str(error)) from error
        _check(self._argv[0], finished)


def _check(program: str, finished: Finished) -> None:
    status = finished.status
    if status == 0:
        return
    reason = f"exit_{status}" if status > 0 else f"signal_{-status}"
    # What it complained of before what else it wrote.
    said = (finished.stderr + finished.stdout)[:SAID_BYTES].decode("utf-8", "replace").strip()
    raise NotifyError(reason, f"{program} ended with {reason}: {said}" if said else reason)
