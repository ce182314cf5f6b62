"""The tree shows every task, where it hangs and where it waits."""

import trio
import trio.testing

from custosd.flow.task_tree import task_tree, tasks


async def waits_for_an_event() -> None:
    await trio.Event().wait()


async def parent() -> None:
    async with trio.open_nursery() as first, trio.open_nursery() as second:
        first.start_soon(waits_for_an_event, name="left")
        second.start_soon(trio.sleep_forever, name="right")


async def test_every_task_stands_below_its_parent_with_the_place_where_it_waits(nursery):
    nursery.start_soon(parent, name="parent")
    await trio.testing.wait_all_tasks_blocked()
    seen = {one.name: one for one in tasks()}
    assert seen["left"].depth == seen["parent"].depth + 1
    assert (seen["left"].nursery, seen["right"].nursery) == (1, 2)
    assert "test_task_tree.py" in seen["left"].waits_at
    assert "waits_for_an_event" in seen["left"].waits_at
    assert seen["left"].inside == "Event.wait"
    assert "parent" in seen["parent"].waits_at
    lines = task_tree().splitlines()
    at = next(at for at, line in enumerate(lines) if line.strip().startswith("parent"))
    assert lines[at + 1].strip().startswith("left  waits at test_task_tree.py:")
    assert lines[at + 2].strip().startswith("[2] right")
    nursery.cancel_scope.cancel()


async def test_a_tree_of_many_tasks_is_cut_and_says_so(nursery):
    for _ in range(50):
        nursery.start_soon(trio.sleep_forever)
    lines = task_tree(most=10).splitlines()
    assert len(lines) == 11
    assert lines[-1].startswith("... and ")
    nursery.cancel_scope.cancel()
