"""So many at a time, the urgent first; whoever leaves the line takes nothing along."""

import pytest
import trio
import trio.testing

from custosd.flow.gate import Gate


async def test_no_more_than_the_limit_are_in_and_the_urgent_go_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gate, began, most = Gate(2), [], 0

    async def use(name: str, priority: int) -> None:
        nonlocal most
        async with gate.slot(priority):
            began.append(name)
            most = max(most, gate.in_use)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for name, priority in (("a", 0), ("b", 0), ("c", 0), ("d", 0), ("urgent", 1)):
            nursery.start_soon(use, name, priority)
            await trio.sleep(0.01)
    assert began == ["a", "b", "urgent", "c", "d"]
    assert (most, gate.in_use, gate.waiting) == (2, 0, 0)


async def test_nobody_waits_for_ever_behind_the_urgent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gate, began = Gate(1, most_wait_s=10), []

    async def use(name: str, priority: int) -> None:
        async with gate.slot(priority):
            began.append(name)
            await trio.sleep(4)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(use, "first", 1)
        await trio.sleep(0.01)
        nursery.start_soon(use, "routine", 0)
        for n in range(5):
            nursery.start_soon(use, f"urgent {n}", 1)
            await trio.sleep(0.01)
    assert began.index("routine") == 3


async def test_who_waits_can_be_promoted_by_its_name(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gate, began = Gate(1), []

    async def use(name: str) -> None:
        async with gate.slot(0, name):
            began.append(name)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for name in "abcd":
            nursery.start_soon(use, name)
            await trio.sleep(0.01)
        assert gate.promote("d", 1)
        assert not gate.promote("a", 1), "it is in"
        assert not gate.promote("e", 1)
    assert began == ["a", "d", "b", "c"]
    assert not gate.promote("d", 1)


@pytest.mark.parametrize("turn_comes", [False, True])
async def test_a_use_that_is_cancelled_gives_its_place_back(
    autojump_clock: trio.testing.MockClock,
    turn_comes: bool,  # noqa: FBT001 - as the case says
) -> None:
    """Also where its turn comes at the very moment at which it gives up."""
    gate, scope = Gate(1), trio.CancelScope()

    async def give_up() -> None:
        with scope:
            async with gate.slot():
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery, gate.slot():
        nursery.start_soon(give_up)
        await trio.sleep(1)
        assert gate.waiting == 1
        scope.cancel()
        if not turn_comes:
            await trio.sleep(1)
            assert gate.waiting == 0
    assert (gate.in_use, gate.waiting) == (0, 0)
    with trio.fail_after(1):
        async with gate.slot() as waited_s:
            assert waited_s == 0


def test_a_gate_for_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Gate(0)
