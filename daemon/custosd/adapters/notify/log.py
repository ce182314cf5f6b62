"""Tells of concerns in the daemon's own log, whatever else there is."""

import structlog
import trio

from custosd.ports import Notice, Notifier

log = structlog.get_logger()


class LogNotifier(Notifier):
    """A line in the log for each notice; it never fails."""

    @property
    def name(self) -> str:
        """The way, as it is called in facts."""
        return "log"

    async def notify(self, notice: Notice) -> None:
        """Log it."""
        await trio.lowlevel.checkpoint()
        if notice.resolved:
            log.info(
                "concern.resolved",
                concern=notice.concern,
                kind=notice.kind,
                agent=notice.agent,
                text=notice.text,
            )
        else:
            log.warning(
                "concern.raised",
                concern=notice.concern,
                kind=notice.kind,
                agent=notice.agent,
                text=notice.text,
            )
