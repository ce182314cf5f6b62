"""What the prober says of real processes and folders; and that it says no more than it saw."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from custosd.adapters import folder_looks
from custosd.adapters.control.recorded import Body, RecordedControl
from custosd.adapters.probes import LocalProber, Probed
from custosd.adapters.process_identity import identify
from custosd.adapters.process_looks import Families, look_at_process
from custosd.adapters.scripted_prober import ScriptedProber
from custosd.core.agents import AgentId
from custosd.core.errors import ControlError
from custosd.core.evidence import Exit, Observation, ProcessIdentity, Source, Value
from custosd.ports import AgentControl

ADA = AgentId("ada")
ALL = frozenset(Source)
PROCESS = frozenset({Source.PROCESS})


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-S", "-c", BUSY], stdin=-1, stdout=-1) as process:
        yield process
        process.kill()


BUSY = """
import subprocess, sys
for line in sys.stdin:
    if line == "child\\n":
        subprocess.run([sys.executable, "-S", "-c", "sum(range(3_000_000))"])
    elif line == "long\\n":
        subprocess.Popen([sys.executable, "-S", "-c",
            "sum(range(3_000_000)); print('done', flush=True); input()"])
        continue
    print("done", flush=True)
"""


def ask(child: subprocess.Popen[bytes], what: str) -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(what.encode() + b"\n")
    child.stdin.flush()
    assert child.stdout.readline() == b"done\n"


def changed(child: subprocess.Popen[bytes], how: int) -> None:
    """Wait until the child has stopped, gone on or ended."""
    os.waitid(os.P_PID, child.pid, how)


def touch(folder: Path) -> None:
    folder.chmod(0o700)


def known(pid: int) -> ProcessIdentity:
    found = identify(pid)
    assert found is not None
    return found


async def look(prober: LocalProber, process: ProcessIdentity | None) -> Observation:
    (seen,) = await prober.probe(ADA, process, PROCESS)
    return seen


# Processes


async def test_a_process_that_works_uses_its_processor(child) -> None:
    ask(child, "nothing")
    process = known(child.pid)
    families = Families()
    before = look_at_process(process, families)
    assert (before.value, before.detail, before.process) == (Value.OK, "process_there", process)
    for what in ("child", "long"):
        ask(child, what)
        after = look_at_process(process, Families())
        assert after.progress is not None
        assert before.progress is not None
        # A child that was waited for, and one that still runs.
        assert after.progress > before.progress
        before = after


async def test_a_process_that_waits_uses_none(child) -> None:
    ask(child, "nothing")
    prober = LocalProber(lambda _: Probed())
    first = await look(prober, known(child.pid))
    assert await look(prober, known(child.pid)) == first


async def test_a_stopped_process_is_bad_and_comes_back(child) -> None:
    prober, process = LocalProber(lambda _: None), known(child.pid)
    child.send_signal(signal.SIGSTOP)
    changed(child, os.WSTOPPED)
    seen = await look(prober, process)
    assert (seen.value, seen.detail, seen.process) == (Value.BAD, "process_stopped", process)
    child.send_signal(signal.SIGCONT)
    changed(child, os.WCONTINUED)
    assert (await look(prober, process)).value is Value.OK


async def test_remains_and_successors_are_gone(child) -> None:
    prober, process = LocalProber(lambda _: Probed()), known(child.pid)
    other = replace(process, started_ticks=process.started_ticks - 1)
    seen = await look(prober, other)
    assert (seen.value, seen.detail, seen.process) == (Value.BAD, "process_gone", other)
    child.kill()
    changed(child, os.WEXITED | os.WNOWAIT)
    assert (await look(prober, process)).detail == "process_gone"


async def test_without_a_process_or_a_control_there_is_nothing_to_say() -> None:
    assert await LocalProber(lambda _: Probed()).probe(ADA, None, ALL) == ()
    assert await LocalProber(lambda _: None).probe(ADA, None, ALL) == ()


# What a control says


async def test_a_control_knows_the_process_that_took_over(child) -> None:
    class Control(RecordedControl):
        async def sight(self) -> Observation:
            return Observation(Source.UNIT, Value.OK, "unit_active", process=known(child.pid))

    prober = LocalProber(lambda _: Probed(Control()))
    gone = replace(known(child.pid), started_ticks=1)
    process, unit = await prober.probe(ADA, gone, PROCESS | {Source.UNIT})
    assert (process.value, process.process) == (Value.OK, known(child.pid))
    assert (unit.source, unit.value) == (Source.UNIT, Value.OK)


async def test_a_control_that_has_no_process_to_show_is_believed() -> None:
    control = RecordedControl(Body.GONE)
    control.end(Exit(code=1))

    class Remote(RecordedControl):
        async def sight(self) -> Observation:
            return replace(await control.sight(), process=None)

    seen = await look(LocalProber(lambda _: Probed(Remote())), None)
    assert (seen.value, seen.detail, seen.exit) == (Value.BAD, "process_gone", Exit(code=1))
    control.blind = True
    assert (await look(LocalProber(lambda _: Probed(Remote())), None)).value is Value.UNKNOWN


class Failing(RecordedControl):
    async def sight(self) -> Observation:
        raise ControlError("no_systemctl", "systemctl: not found")


class Hanging(RecordedControl):
    async def sight(self) -> Observation:
        await trio.sleep_forever()
        raise AssertionError


@pytest.mark.parametrize(
    ("control", "detail"), [(Failing(), "no_systemctl"), (Hanging(), "look_timeout")]
)
async def test_a_control_that_fails_or_hangs_hides_nothing_else(
    control: AgentControl, detail: str, tmp_path: Path
) -> None:
    prober = LocalProber(lambda _: Probed(control, workspace=tmp_path), longest_s=0.2)
    process, unit, workspace = await prober.probe(ADA, known(os.getpid()), ALL)
    assert (unit.source, unit.value, unit.detail) == (Source.UNIT, Value.UNKNOWN, detail)
    assert (process.value, workspace.value) == (Value.OK, Value.OK)


# Folders


async def test_workspace_and_transcripts_are_told_apart(tmp_path: Path) -> None:
    for name in ("work", "one", "two"):
        (tmp_path / name).mkdir()
    probed = Probed(workspace=tmp_path / "work", transcripts=(tmp_path / "one", tmp_path / "two"))
    prober = LocalProber(lambda _: probed)
    first = await prober.probe(ADA, None, ALL)
    assert [one.source for one in first] == [Source.TRANSCRIPT, Source.WORKSPACE]
    assert await prober.probe(ADA, None, ALL) == first
    (tmp_path / "two" / "session.jsonl").write_text("{}\n")
    transcript, workspace = await prober.probe(ADA, None, ALL)
    assert transcript.progress != first[0].progress
    assert workspace == first[1]
    assert [one.source for one in await prober.probe(ADA, None, frozenset({Source.WORKSPACE}))] == [
        Source.WORKSPACE
    ]


async def test_an_absent_folder_is_unknown(tmp_path: Path) -> None:
    prober = LocalProber(lambda _: Probed(workspace=tmp_path / "none"))
    (seen,) = await prober.probe(ADA, None, ALL)
    assert (seen.value, seen.detail, seen.progress) == (Value.UNKNOWN, "folder_absent", None)


async def test_of_a_folder_seen_in_part_only_a_change_is_told(tmp_path: Path) -> None:
    """Otherwise an agent that works on what was not seen would be said to do nothing."""
    for number in range(folder_looks.MOST_ENTRIES + 1):
        (tmp_path / str(number)).touch()
    prober = LocalProber(lambda _: Probed(workspace=tmp_path))
    for _ in range(2):
        (seen,) = await prober.probe(ADA, None, ALL)
        assert (seen.value, seen.detail, seen.progress) == (Value.UNKNOWN, "too_many_files", None)
    touch(tmp_path)
    (seen,) = await prober.probe(ADA, None, ALL)
    assert (seen.value, seen.detail) == (Value.OK, "folder_changed")
    assert seen.progress is not None
    (seen,) = await prober.probe(ADA, None, ALL)
    assert seen.value is Value.UNKNOWN


async def test_a_file_system_that_hangs_takes_one_thread_and_is_said_to(
    tmp_path: Path,
) -> None:
    released = threading.Event()

    class HangingPath(type(tmp_path)):  # type: ignore[misc]  # the path's own flavour
        def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
            released.wait()
            return super().stat(follow_symlinks=follow_symlinks)

    prober = LocalProber(lambda _: Probed(workspace=HangingPath(tmp_path)), longest_s=0.1)
    details = []
    for _ in range(3):
        process, workspace = await prober.probe(ADA, known(os.getpid()), ALL)
        assert process.value is Value.OK
        details.append(workspace.detail)
    released.set()
    assert details == ["look_timeout", "look_hangs", "look_hangs"]


# The fake


async def test_the_scripted_prober_sees_what_it_is_told(autojump_clock) -> None:
    prober = ScriptedProber(delay_s=1)
    there = Observation(Source.PROCESS, Value.OK, "process_there")
    gone = Observation(Source.PROCESS, Value.BAD, "process_gone")
    prober.will_see(ADA, there, gone)
    assert [await prober.probe(ADA, None, ALL) for _ in range(3)] == [(there,), (gone,), (gone,)]
    assert await prober.probe(AgentId("bob"), None, ALL) == ()
