"""The end of a process is told at once, once, and of that process only."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from custosd.adapters.process_identity import identify, is_gone
from custosd.adapters.process_watch import open_process_watch
from custosd.adapters.scripted_process_watch import ScriptedProcessWatch
from custosd.core.agents import AgentId
from custosd.core.evidence import Exit, ProcessIdentity
from custosd.ports import Death

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
    before = descriptors()
    async with open_process_watch() as watch:
        watch.watch(A, known(child.pid))
    assert descriptors() == before


async def test_more_than_may_be_watched_are_not_but_the_gone_are_told_of(child) -> None:
    gone = known(child.pid)
    async with open_process_watch(most=1) as watch:
        assert watch.watch(A, known(os.getpid()))
        assert not watch.watch(B, gone)
        assert watch.watch(A, known(os.getpid())), "its own place is free again"
        child.kill()
        child.wait()
        assert watch.watch(B, gone)
        with trio.fail_after(10):
            assert [death.agent for death in await watch.next_deaths()] == [B]


async def test_without_descriptors_left_nothing_is_watched_and_nothing_breaks(child) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with open_process_watch() as watch:
        process = known(child.pid)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free_descriptor(), hard))
        try:
            assert not watch.watch(A, process)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert watch.watch(A, process)


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes = [subprocess.Popen(["sleep", "1000"]) for _ in range(50)]
    yield processes
    for one in processes:
        one.kill()
        one.wait()


async def test_each_end_is_told_once_however_many_end_at_once(sleepers) -> None:
    agents = {AgentId(f"agent-{one.pid}"): known(one.pid) for one in sleepers}
    async with open_process_watch() as watch:
        for agent, process in agents.items():
            assert watch.watch(agent, process)
        for one in sleepers:
            one.kill()
        told = []
        with trio.fail_after(10):
            while len(told) < len(agents):
                with trio.move_on_after(0):
                    await watch.next_deaths()  # cancelled, and loses nothing
                told += await watch.next_deaths()
        assert sorted((one.agent, one.process.pid) for one in told) == sorted(
            (agent, process.pid) for agent, process in agents.items()
        )
        with trio.move_on_after(0.1) as waited:
            await watch.next_deaths()
        assert waited.cancelled_caught


async def test_the_fake_tells_of_each_end_once_too() -> None:
    watch = ScriptedProcessWatch(most=1)
    one, two = ProcessIdentity(1, 1, "boot"), ProcessIdentity(2, 2, "boot")
    assert watch.watch(A, one)
    assert not watch.watch(B, two)
    watch.kill(one, Exit(signal=9))
    assert list(await watch.next_deaths()) == [Death(A, one, Exit(signal=9))]
    assert watch.watch(B, one), "what is gone is told of at once"
    assert list(await watch.next_deaths()) == [Death(B, one, Exit(signal=9))]
    assert watch.watch(B, two)
    watch.forget(B)
    watch.kill(two)
    assert watch.watched == {}


def descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


def lowest_free_descriptor() -> int:
    descriptor = os.open("/", os.O_RDONLY)
    os.close(descriptor)
    return descriptor
