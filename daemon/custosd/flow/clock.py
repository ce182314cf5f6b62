"""Wall-clock time that a test can move: real UTC on trio's own clock, virtual on a mock one."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import trio

WallClock = Callable[[], datetime]
"""Says what time it is: an aware datetime in UTC, which may jump either way."""

VIRTUAL_START_UTC = datetime(2026, 1, 1, tzinfo=UTC)
"""What a virtual wall clock shows when it is made, unless told otherwise."""


def wall_clock(start_utc: datetime = VIRTUAL_START_UTC) -> WallClock:
    """The wall clock that fits the running trio clock; call it inside `trio.run`.

    Under a `MockClock` it shows `start_utc` now and moves with `trio.current_time()`;
    otherwise it is the machine's own clock, and `start_utc` is of no matter.
    """
    if not _is_virtual(trio.lowlevel.current_clock()):
        return _real_utc
    started_at = trio.current_time()

    def virtual_utc() -> datetime:
        return start_utc + timedelta(seconds=trio.current_time() - started_at)

    return virtual_utc


def _real_utc() -> datetime:
    return datetime.now(UTC)


def _is_virtual(clock: trio.abc.Clock) -> bool:
    # Asked of the module table: importing trio.testing costs a daemon 0.2 s at start, and
    # where nobody has imported it there is no mock clock either.
    testing = sys.modules.get("trio.testing")
    return testing is not None and isinstance(clock, testing.MockClock)
