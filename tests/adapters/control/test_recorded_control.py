"""The shipped fake keeps what every control promises, by trio's clock."""

import pytest
import trio
from tests.contracts.control_contract import TOLD, ControlContract, Found

from custosd.adapters.control.handover import as_form
from custosd.adapters.control.recorded import Body, RecordedControl
from custosd.core.errors import ControlError
from custosd.core.evidence import Exit, Value


class RecordedScene:
    def __init__(self) -> None:
        self.control = RecordedControl(Body.GONE)

    @property
    def starts(self) -> int:
        return len(self.control.hand_overs)

    def deafen(self) -> None:
        self.control.obeys = False

    async def began(self) -> Found:

        hand_over = self.control.hand_overs[-1]
        return Found(hand_over.agent, str(hand_over.epoch), as_form(hand_over))

    async def ended(self) -> None:
        await trio.lowlevel.checkpoint()


class TestRecordedControl(ControlContract):
    @pytest.fixture
    def scene(self) -> RecordedScene:
        return RecordedScene()


async def test_it_ends_some_time_after_it_was_asked_to(autojump_clock) -> None:
    control = RecordedControl(stop_s=5)
    await control.stop()
    await trio.sleep(4.9)
    assert (await control.sight()).value is Value.OK
    await trio.sleep(0.2)
    sight = await control.sight()
    assert (sight.value, sight.exit) == (Value.BAD, Exit(signal=15))


async def test_the_hung_end_only_when_killed(autojump_clock) -> None:
    control = RecordedControl()
    control.hang()
    await control.stop()
    await control.interrupt()
    await trio.sleep(100)
    assert (await control.sight()).value is Value.OK
    await control.kill()
    assert (await control.sight()).exit == Exit(signal=9)
    assert control.acts == ["stop", "interrupt", "kill"]


async def test_a_new_one_is_there_when_its_time_has_come_and_another_process(
    autojump_clock,
) -> None:
    control = RecordedControl(Body.GONE, spawn_s=3)
    before = control.process
    with trio.move_on_after(2):
        await control.spawn("r-1", TOLD)
    assert (await control.sight()).value is Value.BAD
    await control.spawn("r-1", TOLD)
    sight = await control.sight()
    assert sight.value is Value.OK
    assert sight.process != before


async def test_it_fails_as_told_once() -> None:
    control = RecordedControl()
    control.fail_next("kill", ControlError("not_allowed"))
    await control.stop()
    with pytest.raises(ControlError, match="not_allowed"):
        await control.kill()
    await control.kill()
    control.blind = True
    assert (await control.sight()).value is Value.UNKNOWN
