import pytest
import structlog
import trio
import trio.testing

from custosd.adapters.memory_service_manager import RecordingServiceManager
from custosd.flow.pulse import Pulses
from custosd.services.watchdog import feed_watchdog


def alive(manager: RecordingServiceManager) -> int:
    return sum("WATCHDOG" in message for message in manager.messages)


@pytest.mark.parametrize(
    ("watchdog_s", "expected"),
    [(None, 6), (300, 6), (30, 6), (15, 12)],
    ids=["nobody watches", "patient", "just so", "hasty"],
)
async def test_signs_of_life_come_each_interval_or_as_often_as_the_manager_needs(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, watchdog_s, expected
):
    manager = RecordingServiceManager(watchdog_s=watchdog_s)
    await nursery.start(feed_watchdog, Pulses(), lambda: "well", manager, 10, 60)
    await trio.sleep(59)
    nursery.cancel_scope.cancel()
    assert alive(manager) == expected
    assert manager.messages[-1] == {"STATUS": "well"}


async def test_one_service_that_stands_still_silences_the_watchdog_until_it_moves(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    pulses, manager = Pulses(), RecordingServiceManager(watchdog_s=30)
    with (
        structlog.testing.capture_logs() as logged,
        pulses.watched("guardian") as guardian,
        pulses.watched("tail") as tail,
    ):
        await nursery.start(feed_watchdog, pulses, lambda: "well", manager, 10, 60)
        with tail.waiting():
            await trio.sleep(65)
            told = alive(manager)
            assert told == 7
            await trio.sleep(100)
            assert alive(manager) == told
            assert manager.messages[-1] == {"STATUS": "no progress: guardian"}
            guardian.beat()
            await trio.sleep(10)
            assert alive(manager) == told + 1
            assert manager.messages[-1] == {"STATUS": "well"}
    nursery.cancel_scope.cancel()

    assert [(e["event"], e["log_level"], e["services"]) for e in logged] == [
        ("watchdog.starved", "error", ["guardian"]),
        ("watchdog.recovered", "info", ["guardian"]),
    ]
    assert logged[0]["oldest_s"] == 70
    assert logged[1]["starved_s"] == 100


async def test_a_service_that_joins_the_starved_is_told_of_and_each_only_once(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    pulses, manager = Pulses(), RecordingServiceManager()
    with (
        structlog.testing.capture_logs() as logged,
        pulses.watched("guardian"),
        pulses.watched("recorder") as recorder,
    ):
        await nursery.start(feed_watchdog, pulses, lambda: "well", manager, 10, 60)
        await trio.sleep(30)
        recorder.beat()
        await trio.sleep(200)
    nursery.cancel_scope.cancel()
    assert [e["services"] for e in logged] == [["guardian"], ["recorder"]]
    assert manager.messages[-1] == {"STATUS": "no progress: guardian, recorder"}
