import trio
import trio.testing

from custosd.flow.pulse import Pulses


async def test_a_pulse_is_stale_when_it_made_no_progress_for_longer_than_the_limit(
    mock_clock: trio.testing.MockClock,
):
    pulses = Pulses()
    with pulses.watched("guardian") as guardian, pulses.watched("recorder"):
        mock_clock.jump(30)
        assert pulses.stale(trio.current_time(), 30) == {}
        guardian.beat()
        mock_clock.jump(1)
        assert pulses.stale(trio.current_time(), 30) == {"recorder": 31}


async def test_waiting_for_outside_input_is_never_stale_and_ends_with_a_beat(
    mock_clock: trio.testing.MockClock,
):
    pulses = Pulses()
    with pulses.watched("tail") as tail:
        with tail.waiting():
            mock_clock.jump(86_400)
            assert pulses.stale(trio.current_time(), 30) == {}
        mock_clock.jump(29)
        assert pulses.stale(trio.current_time(), 30) == {}
        mock_clock.jump(2)
        assert pulses.stale(trio.current_time(), 30) == {"tail": 31}


async def test_a_service_that_ended_is_not_watched_any_more(
    mock_clock: trio.testing.MockClock,
):
    pulses = Pulses()
    with pulses.watched("done"):
        pass
    mock_clock.jump(100)
    assert pulses.stale(trio.current_time(), 30) == {}


async def test_of_two_pulses_of_one_name_the_staler_is_told(
    mock_clock: trio.testing.MockClock,
):
    """A run that hangs is not hidden by the one that replaced it; each ends for itself."""
    pulses = Pulses()
    with pulses.watched("svc"):
        mock_clock.jump(40)
        with pulses.watched("svc"):
            assert pulses.stale(trio.current_time(), 30) == {"svc": 40}
        assert pulses.stale(trio.current_time(), 30) == {"svc": 40}


async def test_a_run_that_ends_takes_no_equal_one_with_it(
    mock_clock: trio.testing.MockClock,
):
    pulses = Pulses()
    with pulses.watched("svc"):
        with pulses.watched("svc"):
            pass
        mock_clock.jump(40)
        assert pulses.stale(trio.current_time(), 30) == {"svc": 40}


async def test_a_sleep_is_never_stale_and_ends_with_a_beat(autojump_clock: trio.testing.MockClock):
    pulses = Pulses()
    with pulses.watched("nap") as nap:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nap.sleep, 1_000)
            await trio.sleep(999)
            assert pulses.stale(trio.current_time(), 30) == {}
        assert (trio.current_time(), nap.age_s(trio.current_time())) == (1_000, 0)
