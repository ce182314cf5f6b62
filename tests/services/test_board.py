"""One writer, one view, and a recorder that may be slow."""

from datetime import UTC, datetime

import trio
import trio.testing

from custosd.core.agents import AgentId, AgentRef, AgentState, RunId
from custosd.core.facts import AgentSeen, Entry, Fact, FactsDropped, StateChanged
from custosd.core.view import FleetView
from custosd.flow.latest import Latest
from custosd.flow.pulse import Pulse
from custosd.services.board import EntryMaker, keep_board

ADA = AgentRef(AgentId("t:ada"), RunId("ada"))
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def seen(ref: AgentRef = ADA) -> AgentSeen:
    return AgentSeen(ref, "t", "/t/ada", "", NOW)


class Running:
    def __init__(self, nursery: trio.Nursery, room: int = 100) -> None:
        self.facts, facts_out = trio.open_memory_channel[Fact](100)
        record_in, self.record = trio.open_memory_channel[Entry](room)
        self.view = Latest(FleetView())
        maker = EntryMaker("boot", lambda: NOW)
        self.pulse = Pulse("board", trio.current_time())
        nursery.start_soon(keep_board, facts_out, self.view, record_in, maker, 0.05, self.pulse)


async def test_facts_become_one_view_and_entries_in_their_order(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    board = Running(nursery)
    for fact in (seen(), StateChanged(ADA, AgentState.STARTING, AgentState.RUNNING, "x")):
        await board.facts.send(fact)
    published = await board.view.wait_changed(0)
    assert published.version == 1
    assert published.value.agents[ADA.agent].state is AgentState.RUNNING
    entries = [await board.record.receive() for _ in range(2)]
    assert [e.id for e in entries] == sorted(e.id for e in entries)
    assert [type(e.fact) for e in entries] == [AgentSeen, StateChanged]


async def test_a_stuck_recorder_never_holds_up_the_view(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """The record has room for two; a hundred agents are met all the same."""
    board = Running(nursery, room=2)
    for n in range(100):
        await board.facts.send(seen(AgentRef(AgentId(f"t:{n}"), RunId("r"))))
    with trio.fail_after(5):
        await board.view.wait_changed(0)
    assert len(board.view.value.agents) == 100


async def test_what_was_dropped_is_counted_in_the_record_when_there_is_room_again(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    board = Running(nursery, room=2)
    for _ in range(5):
        await board.facts.send(seen())
    await board.view.wait_changed(0)
    kept = [await board.record.receive() for _ in range(2)]
    assert all(isinstance(e.fact, AgentSeen) for e in kept)
    await board.facts.send(seen())
    told = await board.record.receive()
    assert told.fact == FactsDropped(3)
    assert isinstance((await board.record.receive()).fact, AgentSeen)


async def test_the_end_flows_on_after_everything_that_was_told(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    board = Running(nursery)
    await board.facts.send(seen())
    await board.facts.aclose()
    assert [e async for e in board.record] != []
    assert ADA.agent in board.view.value.agents


async def test_a_board_that_has_nothing_to_do_makes_progress_enough(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    board = Running(nursery)
    await board.facts.send(seen())
    await trio.sleep(3600)
    assert board.pulse.age_s(trio.current_time()) == 0


def test_an_impossible_change_of_state_is_not_believed() -> None:
    maker = EntryMaker("boot", lambda: NOW)
    entries = [maker.entry(seen())]
    entries += [
        maker.entry(StateChanged(ADA, AgentState.STARTING, state, "x"))
        for state in (AgentState.QUARANTINED, AgentState.RUNNING)
    ]
    view = FleetView().after(entries)
    assert view.agents[ADA.agent].state is AgentState.QUARANTINED
