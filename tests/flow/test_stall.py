"""A loop that stands still is told of with its place; an idle one is not."""

import threading

import pytest
import trio

from custosd.flow.stall import LoopProbe, Stall, StallWatch, open_stall_watch


def stand_still(until: threading.Event) -> None:
    until.wait(20)


async def test_the_stack_of_a_standing_loop_is_told_while_it_stands():
    told: list[Stall] = []
    heard = threading.Event()

    def on_stall(stall: Stall) -> None:
        told.append(stall)
        heard.set()

    async def blocking_task() -> None:
        stand_still(heard)

    with open_stall_watch(on_stall, stall_s=0.05):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(blocking_task)
    assert heard.is_set()
    assert told[0].stood_s >= 0.05
    assert any("test_stall.py" in line and "stand_still" in line for line in told[0].stack)
    assert "blocking_task" in told[0].task


async def test_what_the_callback_raises_comes_out_at_the_end():
    raised = threading.Event()

    def on_stall(_: Stall) -> None:
        raised.set()
        raise OSError("no room")

    async def main() -> None:
        await trio.lowlevel.checkpoint()
        stand_still(raised)

    with pytest.raises(OSError, match="no room"), open_stall_watch(on_stall, stall_s=0.02):
        await main()


def test_only_a_busy_loop_stands_still_and_is_told_of_once():
    now = 0.0

    def clock() -> float:
        return now

    probe = LoopProbe(clock)
    watch = StallWatch(probe, threading.get_ident(), 0.5, clock)
    probe.before_io_wait(1000.0)
    now = 1000.0
    assert watch.look() is None, "an idle loop is no stall"
    probe.after_io_wait(1000.0)
    now = 1000.4
    assert watch.look() is None, "not yet"
    now = 1000.6
    stall = watch.look()
    assert stall is not None
    assert stall.stood_s == pytest.approx(0.6)
    assert "look" in stall.stack[-1]
    now = 1009.0
    assert watch.look() is None, "told already"
    probe.before_io_wait(0.0)
    probe.after_io_wait(0.0)
    now = 1010.0
    assert watch.look() is not None, "another turn, another stall"
    assert probe.taken_longest_s() == pytest.approx(9.0)
    assert probe.taken_longest_s() == 0.0


async def test_the_watch_leaves_no_thread_and_no_instrument():
    before = threading.active_count()
    with open_stall_watch(lambda _: None) as probe:
        await trio.lowlevel.checkpoint()
    assert threading.active_count() == before
    turn = probe.turn
    await trio.lowlevel.checkpoint()
    assert probe.turn == turn
