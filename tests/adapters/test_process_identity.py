"""A process is what its id and its start say; gone is only what was seen to be gone."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from custosd.adapters.process_identity import boot_id, has_ended, identify, is_gone, own_name

EXIT = {"x86_64": 60, "aarch64": 93}
"""The system call that ends one thread, and not its process."""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def test_the_start_is_counted_from_the_boot_and_by_no_clock_that_can_be_set(child) -> None:
    known = identify(child.pid)
    assert known is not None
    boot_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert 0 <= boot_s - known.started_ticks / os.sysconf("SC_CLK_TCK") < 60
    assert (known.pid, known.boot_id) == (child.pid, boot_id())
    assert identify(child.pid) == known


def test_another_start_in_this_boot_is_another_process(child) -> None:
    known = identify(child.pid)
    assert known is not None
    assert is_gone(known) is False
    assert is_gone(replace(known, started_ticks=known.started_ticks + 1)) is True
    assert is_gone(replace(known, boot_id="an-earlier-boot")) is True


def test_the_remains_of_a_process_are_no_process(child) -> None:
    known = identify(child.pid)
    assert known is not None
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{child.pid}").exists()
    assert identify(child.pid) is None
    assert is_gone(known) is True
    child.wait()
    assert is_gone(known) is True


def test_a_name_may_hold_anything() -> None:
    name = "x) Z 1 ("
    told = f"import pathlib; pathlib.Path('/proc/self/comm').write_text({name!r}); input()"
    with subprocess.Popen([sys.executable, "-c", told + "; input()"], stdin=-1, stdout=-1) as child:
        assert child.stdin is not None
        known = identify(child.pid)
        child.stdin.write(b"\n")
        child.stdin.flush()
        assert known is not None
        assert is_gone(known) is False
        child.kill()


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1])
def test_what_is_no_id_is_no_process(pid: int) -> None:
    assert identify(pid) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="hiding processes takes root")
def test_a_process_that_is_hidden_from_us_is_not_taken_for_gone(child) -> None:
    known = identify(child.pid)
    assert known is not None
    ask = (
        "from custosd.adapters.process_identity import is_gone\n"
        "from custosd.core.evidence import ProcessIdentity\n"
        "import os, sys\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "pid, started_ticks, boot = sys.argv[1:]\n"
        "assert not os.path.exists(f'/proc/{pid}')\n"
        "print(is_gone(ProcessIdentity(int(pid), int(started_ticks), boot)))\n"
        "print(is_gone(ProcessIdentity(2**22 + 1, 1, boot)))\n"
    )
    hide = 'mount --make-rprivate / && mount -t proc -o hidepid=invisible proc /proc && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", hide, "sh", sys.executable, "-c", ask]
    told = subprocess.run(
        [*argv, str(known.pid), str(known.started_ticks), known.boot_id],
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode != 0 and "mount" in told.stderr:
        pytest.skip("no mounting here")
    assert told.stdout.split() == ["None", "True"], told.stderr


def test_a_process_by_its_own_name_has_ended_when_it_has() -> None:
    assert not has_ended(own_name("custosd"))
    code = "from custosd.adapters.process_identity import own_name; print(own_name('custosd'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert has_ended(done.stdout.strip())


def test_nothing_is_known_of_processes_of_another_machine_boot_or_space() -> None:
    *rest, boot, space, _, ticks = own_name("custosd").split(":")
    gone = str(2**22 + 1)
    for name in (
        ":".join((*rest, "another-boot", space, gone, ticks)),
        ":".join((*rest, boot, "1", gone, ticks)),
        ":".join((*rest, boot, space, gone, "0")),
        "custosd:host:1",
        "",
    ):
        assert not has_ended(name)
    assert has_ended(":".join((*rest, boot, space, gone, ticks)))


_LEFT_BY_ITS_LEADER = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
print(flush=True)
ctypes.CDLL(None).syscall(EXIT, 0)
"""


@pytest.mark.skipif(os.uname().machine not in EXIT, reason="its number of exit(2) is not known")
def test_a_process_whose_main_thread_has_ended_goes_on_in_the_others() -> None:
    """It looks like remains; taken for them, another one would be started beside it."""
    program = _LEFT_BY_ITS_LEADER.replace("EXIT", str(EXIT[os.uname().machine]))
    with subprocess.Popen([sys.executable, "-c", program], stdout=-1) as child:
        assert child.stdout is not None
        child.stdout.readline()
        known = identify(child.pid)
        assert known is not None
        stat = Path(f"/proc/{child.pid}/stat")
        while stat.read_text().rpartition(") ")[2][0] != "Z":
            os.sched_yield()
        assert is_gone(known) is False
        assert identify(child.pid) == known
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert is_gone(known) is True
