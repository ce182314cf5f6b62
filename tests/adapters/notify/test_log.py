"""Every notice is a line in the log: a warning when it comes up, information when it is over."""

from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from custosd.adapters.notify.log import LogNotifier
from custosd.ports import Notice

AT_UTC = datetime(2026, 3, 14, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("resolved", "event", "level"),
    [(False, "concern.raised", "warning"), (True, "concern.resolved", "info")],
)
async def test_a_notice_is_one_line(*, resolved: bool, event: str, level: str) -> None:
    with capture_logs() as logs:
        await LogNotifier().notify(
            Notice("life:ada", "life", "ada", "ada: life, dead", resolved, AT_UTC)
        )
    assert logs == [
        {
            "event": event,
            "log_level": level,
            "concern": "life:ada",
            "kind": "life",
            "agent": "ada",
            "text": "ada: life, dead",
        }
    ]
