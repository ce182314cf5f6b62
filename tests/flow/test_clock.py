from datetime import UTC, datetime, timedelta

import trio
import trio.testing

from custosd.flow.clock import VIRTUAL_START_UTC, wall_clock


async def test_a_virtual_wall_clock_moves_with_trios(mock_clock: trio.testing.MockClock):
    now_utc = wall_clock()
    assert now_utc() == VIRTUAL_START_UTC
    mock_clock.jump(86_400.5)
    assert now_utc() == VIRTUAL_START_UTC + timedelta(days=1, seconds=0.5)


async def test_a_virtual_wall_clock_starts_where_it_is_told(
    mock_clock: trio.testing.MockClock,
):
    start = datetime(2026, 3, 29, 0, 59, tzinfo=UTC)
    mock_clock.jump(5)
    assert wall_clock(start)() == start


async def test_on_a_real_clock_it_is_the_machines_own():
    before = datetime.now(UTC)
    now = wall_clock(datetime(1999, 1, 1, tzinfo=UTC))()
    assert before <= now <= datetime.now(UTC)
