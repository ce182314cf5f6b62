"""A notifier that keeps what it was told: the shipped fake, for tests, drills and simulation."""

from collections.abc import Iterable

import trio

from custosd.core.errors import NotifyError
from custosd.ports import Notice, Notifier


class RecordedNotifier(Notifier):
    """Keeps notices in memory. A `NotifyError` in the script is raised, `None` hangs.

    `notices` are those that arrived, in order; `tried` counts all calls.
    """

    def __init__(
        self, name: str = "recorded", script: Iterable[NotifyError | str | None] = ()
    ) -> None:
        self._name = name
        self._script = list(script)
        self.notices: list[Notice] = []
        self.tried = 0

    @property
    def name(self) -> str:
        """As it was made."""
        return self._name

    def fail_next(self, *steps: NotifyError | str | None) -> None:
        """Put these at the script's beginning."""
        self._script[:0] = steps

    async def notify(self, notice: Notice) -> None:
        """Keep it, or fail as the script says."""
        await trio.lowlevel.checkpoint()
        self.tried += 1
        step = self._script.pop(0) if self._script else "ok"
        if step is None:
            await trio.sleep_forever()
        if isinstance(step, NotifyError):
            raise step
        self.notices.append(notice)
