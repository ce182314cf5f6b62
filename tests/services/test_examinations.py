"""Who is to be judged now: taken together, once each, and not for nobody."""

from collections.abc import Sequence

import trio
import trio.testing

from custosd.core.agents import AgentId
from custosd.services.examinations import Examination, Examinations, Tell

Clock = trio.testing.MockClock
ADA, BOB, CYD = AgentId("ada"), AgentId("bob"), AgentId("cyd")


class Guard:
    """Takes ten seconds for each batch, and remembers them."""

    def __init__(self, error: Exception | None = None) -> None:
        self.batches: list[list[AgentId]] = []
        self.error = error

    async def examine(self, agents: Sequence[AgentId], tell: Tell) -> None:
        self.batches.append(sorted(agents))
        await trio.sleep(10)
        if self.error is not None:
            raise self.error
        for agent in agents:
            tell(Examination(agent, why="no_transcript"))


async def test_agents_that_are_wanted_together_are_examined_together_and_each_once(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    guard, asked, got = Guard(), Examinations(), []

    async def ask(agent: AgentId) -> None:
        got.append((await asked.examine(agent)).agent)

    nursery.start_soon(asked.attend, guard.examine)
    async with trio.open_nursery() as asking:
        asked.want([ADA, BOB])
        asking.start_soon(ask, ADA)
        await trio.sleep(1)
        asking.start_soon(ask, BOB)
        asking.start_soon(ask, ADA)
        await trio.sleep(1)
        asking.start_soon(ask, CYD)
    assert guard.batches == [[ADA, BOB], [CYD]]
    assert sorted(got) == [ADA, ADA, BOB, CYD]
    # What is over is over: the next one is another.
    await asked.examine(ADA)
    assert guard.batches[2:] == [[ADA]]


async def test_what_nobody_waits_for_any_more_is_not_begun(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """Nobody attends yet: the guardian is run anew, and whoever asked has gone."""
    guard, asked = Guard(), Examinations()
    with trio.move_on_after(5):
        await asked.examine(ADA)
    nursery.start_soon(asked.attend, guard.examine)
    await trio.sleep(60)
    assert guard.batches == []


async def test_an_error_that_nobody_expected_is_told_and_ends_nothing(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    guard, asked = Guard(ZeroDivisionError("a defect")), Examinations()
    nursery.start_soon(asked.attend, guard.examine)
    assert (await asked.examine(ADA)).why == "defect"
    guard.error = None
    assert (await asked.examine(ADA)).why == "no_transcript"


async def test_who_waits_while_a_run_ends_is_served_by_the_next(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    guard, asked, got = Guard(), Examinations(), []

    async def ask() -> None:
        got.append(await asked.examine(ADA))

    nursery.start_soon(ask)
    with trio.move_on_after(3):
        await asked.attend(guard.examine)
    assert got == []
    nursery.start_soon(asked.attend, guard.examine)
    await trio.sleep(11)
    assert [one.agent for one in got] == [ADA]
    assert guard.batches == [[ADA], [ADA]]
