"""Calls that hang keep their own threads, and nobody who waits for them."""

import threading
from collections.abc import Callable

import pytest
import trio
import trio.testing

from custosd.flow.threads import Threads


class Hanging:
    """Calls that hang until they are let go, by name, in the order of beginning."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.hangs = trio.Event()
        self.go = threading.Event()

    def __call__(self, name: str) -> Callable[[], str]:
        def call() -> str:
            self.begun.append(name)
            trio.from_thread.run_sync(self.hangs.set)
            self.go.wait()
            self.ended.append(name)
            return name

        return call


async def test_a_call_has_its_result_and_its_error_as_they_are():
    threads = Threads(2)

    def fail() -> None:
        raise OSError("as it was")

    assert await threads.run(lambda: None) is None
    with pytest.raises(OSError, match="as it was"):
        await threads.run(fail)
    assert (threads.busy, threads.waiting) == (0, 0)


async def test_who_is_cancelled_goes_at_once_and_what_hangs_holds_its_place_until_it_ends():
    threads, hanging = Threads(1), Hanging()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.run, hanging("first"))
        await hanging.hangs.wait()
        nursery.cancel_scope.cancel()
    assert (hanging.ended, threads.busy) == ([], 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.run, hanging("second"))
        await trio.testing.wait_all_tasks_blocked()
        assert threads.waiting == 1
        nursery.cancel_scope.cancel()
    hanging.go.set()
    assert await threads.run(hanging("third")) == "third"
    assert hanging.begun == ["first", "third"]


async def test_one_that_hangs_takes_no_thread_of_others():
    theirs, ours, hanging = Threads(1), Threads(1), Hanging()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(theirs.run, hanging("first"))
        await hanging.hangs.wait()
        assert theirs.busy == 1
        assert await ours.run(lambda: 1) == 1
        hanging.go.set()


async def test_a_call_that_is_not_abandoned_has_ended_when_its_caller_goes_on():
    threads, hanging, gone = Threads(1, abandon=False), Hanging(), list[bool]()

    async def caller() -> None:
        try:
            await threads.run(hanging("first"))
        finally:
            gone.append(bool(hanging.ended))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(caller)
        await hanging.hangs.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
        assert (gone, threads.busy) == ([], 1)
        hanging.go.set()
    assert (gone, threads.busy) == ([True], 0)
