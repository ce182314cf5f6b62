"""The shipped unit installed on a machine that systemd has booted, and what it says there."""

import json
import os
import select
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent
UNIT = "custosd.service"
STATE = Path("/var/lib/custosd")
HAND_OVERS = Path("/var/lib/custosd-handover")
LONGEST_WAIT_S = 30

Line = dict[str, Any]


def check_inside() -> None:
    """Skip, rather than change the machine that the tests are started on."""
    if os.environ.get("WITH_SYSTEMD") != "1":
        pytest.skip("only in the machine that with-systemd.sh boots: run test_daemon_unit.py")


def install_custosd_unit(program: str = "-m custosd", **drop_in: str) -> None:
    """Install the shipped unit and its user, and a /usr/bin/custosd that runs `program`.

    The checkout, its packages and its interpreter may lie in a home that the daemon's user
    cannot enter: they are mounted below /opt, where it can. `drop_in` overrides settings of
    the unit, which is otherwise untouched.
    """
    check_inside()
    interpreter = Path(sys.base_prefix)
    mounts = {PROJECT / "daemon": "daemon", Path(sysconfig.get_path("purelib")): "packages"}
    library_path = ""
    if not interpreter.is_relative_to("/usr"):
        mounts[interpreter] = "python"
        interpreter = Path("/opt/custosd/python")
        # An interpreter with a shared library looks for it where it was built.
        library_path = f"export LD_LIBRARY_PATH={interpreter}/lib\n"
    mounted = mount_points()
    for source, name in mounts.items():
        target = Path("/opt/custosd", name)
        if str(target) not in mounted:
            target.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "--bind", source, target], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    command = Path("/usr/bin/custosd")
    command.write_text(
        "#!/bin/sh\n"
        "export PYTHONPATH=/opt/custosd/daemon:/opt/custosd/packages PYTHONDONTWRITEBYTECODE=1\n"
        f"{library_path}"
        f'exec {interpreter}/bin/{version} {program} "$@"\n'
    )
    command.chmod(0o755)
    Path("/etc/sysusers.d").mkdir(exist_ok=True)
    Path("/etc/sysusers.d/custosd.conf").write_bytes(
        (PROJECT / "systemd" / "sysusers.conf").read_bytes()
    )
    subprocess.run(["systemd-sysusers"], check=True)
    Path("/etc/systemd/system", UNIT).write_bytes((PROJECT / "systemd" / UNIT).read_bytes())
    override = Path("/etc/systemd/system", f"{UNIT}.d", "test.conf")
    override.parent.mkdir(exist_ok=True)
    settings = "".join(f"{key}={value}\n" for key, value in drop_in.items())
    override.write_text(f"[Service]\n{settings}")
    systemctl("daemon-reload")


def mount_points() -> set[str]:
    # Not by `Path.is_mount`, which does not see one within a file system.
    return {line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()}


def systemctl(*args: str, check: bool = True) -> str:
    done = subprocess.run(["systemctl", *args], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr + status()
    return done.stdout.strip()


def status() -> str:
    command = ["systemctl", "status", "--no-pager", "--lines=50", "--full", UNIT]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def show(name: str) -> str:
    return systemctl("show", UNIT, "--timestamp=us+utc", "--value", "-p", name)


def uninstall() -> None:
    """Stop the unit and forget all that it did; its next start is its first."""
    systemctl("stop", UNIT, check=False)
    systemctl("reset-failed", UNIT, check=False)
    for folder in (STATE, HAND_OVERS):
        shutil.rmtree(folder, ignore_errors=True)


def processes_of_the_unit() -> dict[int, str]:
    """The command lines of all processes in the unit's cgroup, by pid; none once it is gone."""
    members = Path("/sys/fs/cgroup", show("ControlGroup").lstrip("/"), "cgroup.procs")
    pids = members.read_text().split() if show("ControlGroup") else []
    return {int(pid): command for pid in pids if (command := command_line(pid))}


def processes_of_the_user() -> dict[int, str]:
    """The command lines of all that the user custosd runs, wherever, by pid."""
    uid = STATE.stat().st_uid
    return {
        int(entry.name): command
        for entry in Path("/proc").glob("[0-9]*")
        if owner(entry) == uid and (command := command_line(entry.name))
    }


def owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except FileNotFoundError:
        return None


def command_line(pid: str) -> str:
    """Empty for a process that has ended, even where nobody has asked for its status yet."""
    try:
        return Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Journal:
    """Follows what the unit says from now on; waiting for a line blocks until it is there."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        subprocess.run(["journalctl", "--sync"], check=True)
        self._follow = subprocess.Popen(
            [
                *("journalctl", "--follow", "--no-tail", f"--since=@{time.time():.6f}"),
                *("--output=json", "--unit", UNIT),
            ],
            stdout=subprocess.PIPE,
            bufsize=0,  # a line that is read ahead would be hidden from select
        )

    def wait_for(self, event: str, **fields: object) -> Line:
        """The next line of this event with these fields; `PRIORITY` and `_PID` as journald says."""
        return self._wait({"event": event} | fields)

    def wait_for_all(
        self, event: str, key: str, values: Iterable[object], **fields: object
    ) -> None:
        """Lines of this event with these fields, one for each value of `key`, in any order."""
        missing = set(values)
        while missing:
            missing.discard(self.wait_for(event, **fields)[key])

    def wait_for_text(self, text: str) -> Line:
        """The next line with this text in it, whoever wrote it: in `MESSAGE`."""
        return self._wait({}, text)

    def _wait(self, fields: Line, text: str = "") -> Line:
        assert self._follow.stdout is not None
        last_at = time.monotonic() + LONGEST_WAIT_S
        while (left_s := last_at - time.monotonic()) > 0:
            if not select.select([self._follow.stdout], [], [], left_s)[0]:
                break
            entry = json.loads(self._follow.stdout.readline())
            message = str(entry["MESSAGE"])
            line = json.loads(message) if message.startswith("{") else {}
            line |= {k: entry.get(k) for k in ("MESSAGE", "PRIORITY", "_PID")}
            self.lines.append(line)
            if fields.items() <= line.items() and text in message:
                return line
        said = "\n".join(str(line["MESSAGE"]) for line in self.lines)
        raise AssertionError(f"no {text or fields} in the journal\n{said}\n{status()}")

    def close(self) -> None:
        self._follow.kill()
        self._follow.wait()
        assert self._follow.stdout is not None
        self._follow.stdout.close()
