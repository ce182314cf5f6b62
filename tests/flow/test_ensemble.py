from collections.abc import Awaitable, Callable

import outcome
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.cancelling import cancel_at_every_checkpoint

from custosd.flow.ensemble import Cut, Quorum, quorum


class Members:
    def __init__(self) -> None:
        self.now = self.begun = 0

    def one(
        self, takes_s: float, answer: object = None, error: Exception | None = None
    ) -> Callable[[], Awaitable[object]]:
        async def fn() -> object:
            self.now += 1
            self.begun += 1
            try:
                await trio.sleep(takes_s)
            finally:
                self.now -= 1
            if error is not None:
                raise error
            return answer

        return fn


def told(result: Quorum[object]) -> list[object]:
    return [
        m.value if isinstance(m, outcome.Value) else m.error if isinstance(m, outcome.Error) else m
        for m in result.members
    ]


async def test_it_returns_as_soon_as_enough_have_answered_and_cuts_the_rest(
    autojump_clock: trio.testing.MockClock,
):
    members, error = Members(), OSError()
    fns = [members.one(9), members.one(2, "b"), members.one(1, error=error), members.one(1, "d")]
    result = await quorum(fns, 2)
    assert result.reached
    assert told(result) == [Cut(2), "b", error, "d"]
    assert result.values == ["b", "d"]
    assert (trio.current_time(), members.now) == (2, 0)


async def test_stragglers_have_their_time_from_when_enough_had_answered(
    autojump_clock: trio.testing.MockClock,
):
    members = Members()
    fns = [members.one(s, s) for s in (1, 2, 4, 9)]
    result = await quorum(fns, 2, straggler_s=3)
    assert told(result) == [1, 2, 4, Cut(5)]
    assert trio.current_time() == 5


async def test_what_is_enough_may_be_said_of_the_answers_and_none_is_one(
    autojump_clock: trio.testing.MockClock,
):
    members, asked = Members(), []

    def two_alike(answers) -> bool:
        asked.append(answers)
        return len(answers) > len(set(answers))

    plan = ((1, None), (2, "x"), (3, None), (4, "y"), (9, "z"))
    result = await quorum([members.one(*one) for one in plan], two_alike, straggler_s=1.5)
    assert asked == [(None,), (None, "x"), (None, "x", None)]  # and no more once it was enough
    assert told(result) == [None, "x", None, "y", Cut(4.5)]
    assert result.values == [None, "x", None, "y"]


async def test_what_is_no_exception_is_no_outcome(autojump_clock: trio.testing.MockClock):
    async def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.RaisesGroup(KeyboardInterrupt):
        await quorum([interrupted, Members().one(1)], 1)


async def test_too_few_answers_are_returned_as_what_they_are(
    autojump_clock: trio.testing.MockClock,
):
    members, error = Members(), OSError()
    fns = [members.one(1, error=error), members.one(2, "b"), members.one(3, error=error)]
    result = await quorum(fns, 2)
    assert not result.reached
    assert told(result) == [error, "b", error]


async def test_what_there_is_when_the_time_is_up_is_returned(
    autojump_clock: trio.testing.MockClock,
):
    members = Members()
    result = await quorum([members.one(1, "a"), members.one(9)], 2, straggler_s=5, timeout_s=3)
    assert (result.reached, told(result)) == (False, ["a", Cut(3)])
    late = await quorum([members.one(2, "a"), members.one(9)], 1, straggler_s=5, timeout_s=3)
    assert (late.reached, told(late)) == (True, ["a", Cut(3)])


async def test_an_error_of_enough_comes_out_and_ends_all(
    autojump_clock: trio.testing.MockClock,
):
    members = Members()
    with pytest.RaisesGroup(ZeroDivisionError):
        await quorum([members.one(1), members.one(9)], lambda _: bool(1 // 0))
    assert (members.now, trio.current_time()) == (0, 1)


@pytest.mark.parametrize("enough", [0, 3])
async def test_answers_that_cannot_come_are_not_asked_for(enough: int):
    with pytest.raises(ValueError, match=f"{enough} answers asked of 2"):
        await quorum([Members().one(1)] * 2, enough)


async def test_cancelled_anywhere_no_member_goes_on(autojump_clock: trio.testing.MockClock):
    members = Members()

    async def scenario() -> None:
        fns = [members.one(1), members.one(2, error=OSError()), members.one(3), members.one(9)]
        await quorum(fns, 2, straggler_s=1)

    def check() -> None:
        assert members.now == 0

    assert await cancel_at_every_checkpoint(scenario, check) >= 5


@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=8),
    st.integers(1, 8),
    st.integers(0, 4),
    st.none() | st.integers(0, 9),
)
def test_every_member_is_accounted_for_by_what_its_time_and_the_quorum_say(
    plan: list[tuple[int, bool]], enough: int, straggler_s: int, timeout_s: int | None
):
    enough = min(enough, len(plan))
    limit_s = float("inf") if timeout_s is None else float(timeout_s)

    async def main() -> tuple[Quorum[object], int, float]:
        members = Members()
        fns = [members.one(s + 0.5, s, OSError(s) if fails else None) for s, fails in plan]
        result = await quorum(fns, enough, straggler_s=straggler_s, timeout_s=limit_s)
        return result, members.now, trio.current_time()

    result, under_way, took_s = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    answers_at = sorted(s + 0.5 for s, fails in plan if not fails and s + 0.5 <= limit_s)
    reached = len(answers_at) >= enough
    # Half seconds after whole ones: nothing ends in the very moment of a limit but stragglers.
    end_at = min(limit_s, answers_at[enough - 1] + straggler_s if reached else limit_s)
    assert (result.reached, under_way) == (reached, 0)
    assert took_s <= max(end_at, 0)
    for (takes_s, fails), member in zip(plan, result.members, strict=True):
        if takes_s + 0.5 < end_at:
            assert isinstance(member, outcome.Error if fails else outcome.Value)
        if takes_s + 0.5 > end_at:
            assert member == Cut(end_at)
