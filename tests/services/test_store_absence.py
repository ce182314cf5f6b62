"""A store that is away is waited for, and told of once; so is its return."""

from collections.abc import Callable, Sequence

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from tests.flow.cancelling import cancel_at_every_checkpoint

from custosd.core.errors import StoreConflict, StoreError, StoreRefused, StoreUnavailable
from custosd.services.store_absence import StoreAbsence, past_conflicts, until_answered


class Asked:
    """A store that answers with these errors, one after the other, and then with None."""

    def __init__(self, *errors: StoreError) -> None:
        self.asked_at: list[float] = []
        self._left = list(errors)

    async def __call__(self) -> None:
        await trio.lowlevel.checkpoint()
        self.asked_at.append(trio.current_time())
        if self._left:
            raise self._left.pop(0)


def away(times: int) -> Sequence[StoreError]:
    return [StoreUnavailable(f"away {number}") for number in range(times)]


async def test_it_is_asked_after_longer_and_longer_pauses_until_it_answers_and_told_of_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ask = Asked(*away(9))
    with capture_logs() as logs:
        assert await until_answered(ask, "lives", waiting=lambda: 7) is None
    assert ask.asked_at == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 61.5, 91.5, 121.5]
    assert [(log["event"], log["during"], log.get("waiting")) for log in logs] == [
        ("store.lost", "lives", 7),
        ("store.returned", "lives", None),
    ]
    assert logs[0]["error"] == "away 0"


async def test_a_conflict_is_no_absence_and_makes_no_pause_longer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    conflicts = [StoreConflict("in the way")] * 5
    ask = Asked(*conflicts, *away(1), *conflicts)
    with capture_logs() as logs:
        await until_answered(ask, "lives")
    assert ask.asked_at == [0] * 6 + [0.5] * 6
    assert [log["event"] for log in logs] == ["store.lost", "store.returned"]


async def test_conflicts_go_out_when_there_were_as_many_as_allowed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ask = Asked(*[StoreConflict("in the way")] * 9)
    with pytest.raises(StoreConflict):
        await past_conflicts(ask, 4)
    assert len(ask.asked_at) == 4


async def test_what_is_refused_goes_out_at_once_and_is_no_absence(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ask = Asked(StoreRefused("bad data"))
    with capture_logs() as logs, pytest.raises(StoreRefused):
        await until_answered(ask, "lives")
    assert (len(ask.asked_at), logs) == (1, [])


async def test_a_deadline_cuts_the_wait_and_lets_no_error_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A drain has a deadline: whoever waits for the store then is cut, and has not failed."""
    with trio.move_on_after(20) as scope:
        await until_answered(Asked(*away(99)), "record")
    assert scope.cancelled_caught
    assert trio.current_time() == 20


async def test_cancelled_anywhere_it_asks_no_more(autojump_clock: trio.testing.MockClock) -> None:
    runs: list[Asked] = []

    async def scenario() -> None:
        runs.append(Asked(*away(2), StoreConflict("in the way")))
        await until_answered(runs[-1], "lives")

    def check() -> None:
        assert len(runs[-1].asked_at) <= 4

    with capture_logs():
        assert await cancel_at_every_checkpoint(scenario, check) >= 6


@pytest.mark.parametrize("error", [StoreUnavailable, StoreConflict])
def test_a_block_that_is_told_of_is_given_up_with_the_stores_errors_and_no_others(
    error: Callable[[str], StoreError],
) -> None:
    absence = StoreAbsence("beat")
    with capture_logs() as logs:
        for _ in range(3):
            with absence.told(waiting=1):
                raise error("no")
        for _ in range(3):
            with absence.told(waiting=1):
                pass
    assert [log["event"] for log in logs] == ["store.lost", "store.returned"]
    with pytest.raises(KeyError), absence.told(waiting=1):
        raise KeyError


def test_what_is_refused_is_told_as_that_and_ends_an_absence() -> None:
    """Once a refusal; the block alone is given up."""
    absence = StoreAbsence("beat")
    told = []
    with capture_logs() as logs:
        for error in (StoreUnavailable("x"), *[StoreRefused("bad")] * 3, StoreRefused("worse")):
            with absence.told(waiting=1):
                raise error
            told.append(absence.away)
    assert told == [True, False, False, False, False]
    assert [(log["event"], log.get("error")) for log in logs] == [
        ("store.lost", "x"),
        ("store.returned", None),
        ("store.refused", "bad"),
        ("store.refused", "worse"),
    ]
