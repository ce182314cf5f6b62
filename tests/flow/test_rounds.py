"""Rounds keep to their grid, never overlap, and answer whoever asks."""

from contextlib import suppress
from datetime import datetime, timedelta

import pytest
import trio
import trio.testing

from custosd.flow.clock import wall_clock
from custosd.flow.pulse import Pulse
from custosd.flow.rounds import RoundFailed, Rounds

DAY_S = 86_400.0
Clock = trio.testing.MockClock


class Work:
    """Remembers when each round began and for how many it stood; takes as long as it is told."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self.takes_s = takes_s
        self.began: list[float] = []
        self.coalesced: list[int] = []
        self.under_way = 0
        self.error: Exception | None = None

    async def __call__(self, coalesced: int) -> int:
        self.began.append(trio.current_time())
        self.coalesced.append(coalesced)
        self.under_way += 1
        assert self.under_way == 1, "rounds overlap"
        try:
            await trio.sleep(self.takes_s)
        finally:
            self.under_way -= 1
        if self.error is not None:
            raise self.error
        return len(self.began)


def pulse() -> Pulse:
    return Pulse("x", trio.current_time())


@pytest.fixture
async def start(autojump_clock: Clock) -> float:
    return trio.current_time()


async def test_there_is_no_drift_over_a_day_however_long_a_round_takes(
    autojump_clock: Clock, nursery: trio.Nursery, start: float
) -> None:
    work, rounds = Work(takes_s=7.3), Rounds[int]("x", wall_clock())
    await nursery.start(rounds.run, 60.0, work, pulse())
    await trio.sleep_until(start + DAY_S + 1)
    assert len(work.began) == 24 * 60 + 1
    assert work.began == pytest.approx([start + 60 * n for n in range(24 * 60 + 1)], abs=1e-3)
    assert rounds.coalesced == 0


async def test_a_round_longer_than_its_period_stands_for_those_that_it_missed(
    autojump_clock: Clock, nursery: trio.Nursery, start: float
) -> None:
    work, rounds = Work(takes_s=200.0), Rounds[int]("x", wall_clock())
    nursery.start_soon(rounds.run, 60.0, work, pulse())
    await trio.sleep_until(start + 199)
    work.takes_s = 1.0
    await trio.sleep_until(start + 301)
    # The long one lasted over three times of the grid: one round for them, and then the grid.
    assert work.began == pytest.approx([start, start + 200, start + 240, start + 300], abs=1e-3)
    assert work.coalesced == [0, 2, 0, 0]
    assert rounds.coalesced == 2


async def test_after_a_suspend_one_round_stands_for_all(
    autojump_clock: Clock, nursery: trio.Nursery, start: float
) -> None:
    """The clock on the wall has gone on while trio's stood still."""
    wall, slept = wall_clock(), timedelta()

    def now_utc() -> datetime:
        return wall() + slept

    work, rounds = Work(), Rounds[int]("x", now_utc)
    await nursery.start(rounds.run, 60.0, work, pulse())
    await trio.sleep(30)
    slept = timedelta(hours=8)
    await trio.sleep(151)
    assert sum(work.coalesced) == 8 * 60
    assert len(work.began) == 4
    assert work.began[-1] - work.began[-2] == pytest.approx(60, abs=1e-3)


async def test_who_asks_gets_a_round_of_its_own_time_and_the_grid_stays(
    autojump_clock: Clock, nursery: trio.Nursery, start: float
) -> None:
    work, rounds = Work(), Rounds[int]("x", wall_clock())
    await nursery.start(rounds.run, 60.0, work, pulse())
    await trio.sleep(17)
    assert await rounds.ask() == 2
    await trio.sleep_until(start + 61)
    assert work.began == pytest.approx([start, start + 17, start + 60], abs=1e-3)


async def test_all_who_ask_while_a_round_is_under_way_share_the_next(
    autojump_clock: Clock, nursery: trio.Nursery, start: float
) -> None:
    work, rounds = Work(takes_s=10), Rounds[int]("x", wall_clock())
    nursery.start_soon(rounds.run, 600.0, work, pulse())
    got: list[tuple[int, float]] = []

    async def ask() -> None:
        got.append((await rounds.ask(), trio.current_time() - start))

    async with trio.open_nursery() as asking:
        await trio.sleep(1)
        for _ in range(5):
            asking.start_soon(ask)
            await trio.sleep(1)
    assert [number for number, _ in got] == [2] * 5
    assert [at for _, at in got] == pytest.approx([20] * 5)
    assert len(work.began) == 2


async def test_who_waits_for_a_round_that_fails_is_told_so(
    autojump_clock: Clock, start: float
) -> None:
    work, rounds = Work(takes_s=1), Rounds[int]("x", wall_clock())
    work.error = ValueError("broken")

    async def run() -> None:
        with suppress(ExceptionGroup):
            await rounds.run(60.0, work, pulse())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        with pytest.raises(RoundFailed, match="x failed"):
            await rounds.ask()


async def test_the_grid_and_who_waits_outlive_a_run(autojump_clock: Clock, start: float) -> None:
    """A service that is run anew does not begin another grid, nor forget who asked."""
    work, rounds, got = Work(takes_s=5), Rounds[int]("x", wall_clock()), []

    async def ask() -> None:
        got.append(await rounds.ask())

    async with trio.open_nursery() as nursery:
        with trio.move_on_at(start + 63):
            async with trio.open_nursery() as run:
                run.start_soon(rounds.run, 60.0, work, pulse())
                await trio.sleep_until(start + 50)
                nursery.start_soon(ask)
                # That one is answered; this one's round is cut short with the run.
                await trio.sleep_until(start + 59)
                nursery.start_soon(ask)
        await trio.sleep_until(start + 100)
        assert got == [2]
        nursery.start_soon(rounds.run, 60.0, work, pulse())
        await trio.sleep_until(start + 190)
        nursery.cancel_scope.cancel()
    assert got == [2, 4]
    assert work.began == pytest.approx(
        [start, start + 50, start + 59, start + 100, start + 120, start + 180], abs=1e-3
    )


async def test_another_interval_is_another_grid(autojump_clock: Clock, start: float) -> None:
    work, rounds = Work(), Rounds[int]("x", wall_clock())
    for interval_s in (60.0, 25.0):
        with trio.move_on_after(80):
            await rounds.run(interval_s, work, pulse())
    assert work.began == pytest.approx(
        [start, start + 60, start + 80, start + 105, start + 130, start + 155], abs=1e-3
    )


async def test_a_pulse_beats_with_rounds_and_rests_between_them(
    autojump_clock: Clock, nursery: trio.Nursery, start: float
) -> None:
    work, rounds, beating = Work(takes_s=1), Rounds[int]("x", wall_clock()), pulse()
    await nursery.start(rounds.run, 60.0, work, beating)
    await trio.sleep(30)
    assert beating.age_s(trio.current_time()) == 0
    work.takes_s = 1_000
    await trio.sleep(60)
    assert beating.age_s(trio.current_time()) > 25
