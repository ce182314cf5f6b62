"""Each minute the accounts are stored; a store that is away is told of once."""

from datetime import UTC, datetime, timedelta

import structlog
import trio

from custosd.adapters.memory import MemoryStore
from custosd.core.errors import StoreUnavailable
from custosd.flow.monitor import ROWS_A_TURN, Kind, Monitor
from custosd.flow.pulse import Pulse
from custosd.ports import MetricsSnapshot
from custosd.services.snapshots import keep_snapshots

START_UTC = datetime(2026, 1, 1, tzinfo=UTC)


async def test_a_snapshot_is_stored_each_minute_and_an_absence_told_once(
    autojump_clock, nursery
) -> None:
    store, monitor = MemoryStore(), Monitor()
    began_at = trio.current_time()

    def now_utc() -> datetime:
        return START_UTC + timedelta(seconds=round(trio.current_time() - began_at))

    async with monitor.operation(Kind.FILE, "work"):
        await trio.sleep(1)
    await nursery.start(
        keep_snapshots, store, monitor, "host:1", now_utc, Pulse("snapshots", began_at)
    )
    with structlog.testing.capture_logs() as lines:
        await trio.sleep(125)
        store.fail_with(StoreUnavailable("away"))
        await trio.sleep(120)
        store.fail_with(None)
        await trio.sleep(60)
    kept = await store.recent_metrics(10)
    minutes = [(one.at_utc - START_UTC).total_seconds() for one in kept]
    assert minutes == [301, 121, 61]
    (work,) = kept[0].operations
    assert (work.name, work.ok) == ("work", 1)
    assert [line["event"] for line in lines] == ["store.lost", "store.returned"]
    nursery.cancel_scope.cancel()


async def test_many_rows_hold_nobody_up(autojump_clock, nursery) -> None:
    stored = trio.Event()

    class Telling(MemoryStore):
        async def record_metrics(self, snapshot: MetricsSnapshot) -> None:
            stored.set()

    store, monitor = Telling(), Monitor()
    for number in range(100):
        async with monitor.operation(Kind.FILE, f"work {number}"):
            pass
    turns: list[float] = []

    def now_utc() -> datetime:
        turns.clear()  # asked for just before the rows are summed up
        return START_UTC

    async def others() -> None:
        await trio.sleep_until(began_at + 60)
        while not stored.is_set():
            turns.append(trio.current_time())
            await trio.lowlevel.checkpoint()

    began_at = trio.current_time()
    pulse = Pulse("snapshots", began_at)
    await nursery.start(keep_snapshots, store, monitor, "host:1", now_utc, pulse)
    await others()
    assert len(turns) >= 100 / ROWS_A_TURN / 2
    nursery.cancel_scope.cancel()
