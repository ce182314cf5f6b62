"""The end of a process is told at once, once, and of that process only."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from custosd.adapters.process_identity import boot_id, identify, is_gone
from custosd.adapters.process_watch import open_process_watch
from custosd.core.agents import AgentId
from custosd.core.evidence import ProcessIdentity

A, B = AgentId("a"), AgentId("b")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1)
    yield process
    process.kill()
    process.communicate()


def known(pid: int) -> ProcessIdentity:
    found = identify(pid)
    assert found is not None
    return found


async def test_a_killed_process_is_told_of_though_nobody_reaped_it(child) -> None:
    process = known(child.pid)
    async with open_process_watch() as watch:
        assert watch.watch(A, process)
        child.kill()
        with trio.fail_after(10):
            deaths = await watch.next_deaths()
        assert [(death.agent, death.process) for death in deaths] == [(A, process)]
        assert is_gone(process)
        assert identify(child.pid) is None


async def test_a_stopped_process_is_not_gone(child) -> None:
    process = known(child.pid)
    async with open_process_watch() as watch:
        watch.watch(A, process)
        child.send_signal(signal.SIGSTOP)
        assert is_gone(process) is False
        child.send_signal(signal.SIGCONT)
        child.kill()
        with trio.fail_after(10):
            await watch.next_deaths()


async def test_what_was_gone_before_it_was_watched_is_told_of(child) -> None:
    process = known(child.pid)
    child.kill()
    child.wait()
    async with open_process_watch() as watch:
        assert watch.watch(A, process)
        with trio.fail_after(10):
            assert [death.agent for death in await watch.next_deaths()] == [A]


async def test_another_process_with_the_same_id_is_not_taken_for_it(child) -> None:
    real = known(child.pid)
    other = ProcessIdentity(real.pid, real.started_ticks - 1, real.boot_id)
    async with open_process_watch() as watch:
        assert watch.watch(A, other)
        with trio.fail_after(10):
            deaths = await watch.next_deaths()
        assert deaths[0].process == other
    assert is_gone(ProcessIdentity(real.pid, real.started_ticks, "an-earlier-boot"))


async def test_a_process_that_is_watched_no_more_is_not_told_of(child) -> None:
    async with open_process_watch() as watch:
        watch.watch(A, known(child.pid))
        watch.watch(B, known(os.getpid()))
        watch.forget(A)
        child.kill()
        child.wait()
        with trio.move_on_after(0.2) as waited:
            await watch.next_deaths()
        assert waited.cancelled_caught


async def test_a_new_process_of_an_agent_takes_the_place_of_the_old_one(child) -> None:
    async with open_process_watch() as watch:
        watch.watch(A, known(os.getpid()))
        watch.watch(A, known(child.pid))
        child.kill()
        with trio.fail_after(10):
            assert (await watch.next_deaths())[0].process.pid == child.pid


async def test_no_descriptor_is_left_behind(child) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    async with open_process_watch() as watch:
        watch.watch(A, known(child.pid))
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_an_identity_is_the_same_each_time_and_of_this_boot(child) -> None:
    assert identify(child.pid) == identify(child.pid)
    assert known(child.pid).boot_id == boot_id()
    assert identify(0) is None
    assert identify(-1) is None
    assert identify(2**22 + 1) is None
