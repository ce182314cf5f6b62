"""What every `ports.AgentControl` promises; collected for each by a subclass with `scene`."""

import re
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pytest
import trio

from custosd.core.agents import AgentId
from custosd.core.errors import ControlError
from custosd.core.evidence import Value
from custosd.ports import AgentControl, HandOver

ADA = AgentId("ada")
TOLD = HandOver(
    ADA,
    1,
    "crash",
    'Fixed the "parser"; $HOME, `date`, \\ and Größe 漢字 are data.\nNext: its tests.',
    "Make the parser fast",
    "T-17",
    ("Do not touch the API", "Python 3.11"),
)


@dataclass(frozen=True, slots=True)
class Found:
    """What an incarnation found of custosd when it began."""

    agent: str
    epoch: str
    hand_over: dict[str, Any]


class Scene(Protocol):
    """A control, and the agent that it starts. Nothing was started yet."""

    @property
    def control(self) -> AgentControl: ...

    @property
    def starts(self) -> int:
        """How many incarnations have begun so far."""
        ...

    def deafen(self) -> None:
        """The next incarnation will not end when it is asked to."""
        ...

    async def began(self) -> Found:
        """Wait until the next incarnation has begun."""
        ...

    async def ended(self) -> None:
        """Wait until the present incarnation has ended."""
        ...


def told(epoch: int) -> HandOver:
    return replace(TOLD, epoch=epoch)


class ControlContract:
    """The tests. They wait for what the agent itself says, and for the end of its process."""

    async def value(self, scene: Scene) -> Value:
        sight = await scene.control.sight()
        assert re.fullmatch(r"[a-z0-9_]+", sight.detail)
        return sight.value

    async def test_what_was_never_started_is_not_there(self, scene: Scene) -> None:
        assert await self.value(scene) is not Value.OK

    async def test_an_incarnation_finds_its_epoch_and_the_work_of_the_last(
        self, scene: Scene
    ) -> None:
        await scene.control.spawn("r-1", TOLD)
        found = await scene.began()
        assert (found.agent, found.epoch) == ("ada", "1")
        assert found.hand_over == {
            "agent": "ada",
            "epoch": 1,
            "cause": "crash",
            "summary": TOLD.summary,
            "goal": TOLD.goal,
            "task": "T-17",
            "constraints": list(TOLD.constraints),
        }
        assert await self.value(scene) is Value.OK

    async def test_of_one_key_one_is_started_while_it_runs(self, scene: Scene) -> None:
        await scene.control.spawn("r-1", TOLD)
        await scene.began()
        for _ in range(2):
            await scene.control.spawn("r-1", TOLD)
        assert scene.starts == 1

    async def test_of_one_key_one_is_started_though_it_has_ended(self, scene: Scene) -> None:
        await scene.control.spawn("r-1", TOLD)
        await scene.began()
        await scene.control.kill()
        await scene.ended()
        await scene.control.spawn("r-1", TOLD)
        assert await self.value(scene) is Value.BAD
        assert scene.starts == 1

    async def test_no_other_is_started_beside_one_that_runs(self, scene: Scene) -> None:
        await scene.control.spawn("r-1", TOLD)
        await scene.began()
        with pytest.raises(ControlError) as caught:
            await scene.control.spawn("r-2", told(2))
        assert re.fullmatch(r"[a-z0-9_]+", caught.value.reason)
        assert await self.value(scene) is Value.OK
        assert scene.starts == 1

    async def test_the_next_one_begins_after_the_end_of_the_last(self, scene: Scene) -> None:
        for epoch in (1, 2, 3):
            await scene.control.spawn(f"r-{epoch}", told(epoch))
            found = await scene.began()
            assert (found.epoch, found.hand_over["epoch"]) == (str(epoch), epoch)
            await scene.control.kill()
            await scene.ended()
        assert scene.starts == 3

    async def test_whoever_obeys_ends_when_asked(self, scene: Scene) -> None:
        await scene.control.spawn("r-1", TOLD)
        await scene.began()
        await scene.control.stop()
        await scene.ended()
        assert await self.value(scene) is Value.BAD

    async def test_whoever_does_not_obey_is_killed(self, scene: Scene) -> None:
        scene.deafen()
        await scene.control.spawn("r-1", TOLD)
        await scene.began()
        await scene.control.stop()
        assert await self.value(scene) is Value.OK
        await scene.control.kill()
        await scene.ended()
        assert await self.value(scene) is Value.BAD

    async def test_the_gone_can_be_stopped_and_killed_without_harm(self, scene: Scene) -> None:
        await scene.control.spawn("r-1", TOLD)
        await scene.began()
        await scene.control.kill()
        await scene.ended()
        for act in (scene.control.stop, scene.control.kill, scene.control.interrupt) * 2:
            await act()
        assert await self.value(scene) is Value.BAD

    async def test_a_start_that_was_cancelled_is_repeated_without_a_second_one(
        self, scene: Scene
    ) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await scene.control.spawn("r-1", TOLD)
        await scene.control.spawn("r-1", TOLD)
        await scene.began()
        await scene.control.spawn("r-1", TOLD)
        assert scene.starts == 1
