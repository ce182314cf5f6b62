"""What the daemon's unit does under a real systemd; `test_daemon_unit.py` runs this inside one.

The unit is the shipped one, word for word. Drop-ins shorten its times.
"""

import json
import os
import select
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent
UNIT = "custosd.service"
LONGEST_WAIT_S = 20

TOY = """
import os, signal, sys
import structlog, trio
from custosd.adapters.systemd import ServiceManager
from custosd.flow.pulse import Pulses
from custosd.flow.stopping import open_stopping
from custosd.logs import configure_logging
from custosd.services.watchdog import feed_watchdog

log = structlog.get_logger()

async def work(pulses, stopping):
    with pulses.watched("work") as pulse:
        while True:
            with pulse.waiting():
                await stopping.user1.wait_changed(0)
            log.info("toy.hung")
            await trio.sleep_forever()

async def main():
    configure_logging("auto", "info")
    if os.path.exists("/etc/custosd/bad"):
        sys.exit(78)
    manager, pulses = ServiceManager(), Pulses()
    async with open_stopping() as stopping, trio.open_nursery() as nursery:
        manager.status("warming up")
        log.info("toy.warming", watchdog_s=manager.watchdog_s, left=sorted(
            name for name in os.environ if name.startswith(("NOTIFY", "WATCHDOG"))))
        if os.path.exists("/etc/custosd/hold"):
            await stopping.user2.wait_changed(0)
        nursery.start_soon(work, pulses, stopping)
        await nursery.start(feed_watchdog, pulses, lambda: "watching 0 agents, \u00fcberall",
                            manager, 10, 0.5)
        manager.ready()
        log.warning("toy.ready", run=os.environ["RUNTIME_DIRECTORY"],
                    home=os.access("/home", os.R_OK))
        await stopping.stop.wait()
        manager.stopping("draining")
        nursery.cancel_scope.cancel()
    await trio.sleep(2)
    log.info("toy.drained")

trio.run(main)
"""


def install_custosd_unit(program: str = "-m custosd.cli.main", **drop_in: str) -> None:
    """Install the shipped unit and its user, and a /usr/bin/custosd that runs `program`.

    The checkout, its packages and its interpreter may lie in a home that the daemon's user
    cannot enter: they are mounted below /opt, where it can. `drop_in` overrides settings of
    the unit, which is otherwise untouched.
    """
    interpreter = Path(sys.base_prefix)
    mounts = {PROJECT / "daemon": "daemon", Path(sysconfig.get_path("purelib")): "packages"}
    library_path = ""
    if not interpreter.is_relative_to("/usr"):
        mounts[interpreter] = "python"
        interpreter = Path("/opt/custosd/python")
        # An interpreter with a shared library looks for it where it was built.
        library_path = f"export LD_LIBRARY_PATH={interpreter}/lib\n"
    for source, name in mounts.items():
        target = Path("/opt/custosd", name)
        if not target.is_mount():
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


def systemctl(*args: str, check: bool = True) -> str:
    done = subprocess.run(["systemctl", *args], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr + status()
    return done.stdout.strip()


def status() -> str:
    command = ["systemctl", "status", "--no-pager", "--lines=50", "--full", UNIT]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def show(name: str) -> str:
    return systemctl("show", UNIT, "--value", "-p", name)


class Journal:
    """Follows the unit's lines; waiting for one blocks until it is there."""

    def __init__(self) -> None:
        self._follow = subprocess.Popen(
            ["journalctl", "--follow", "--lines=0", "--output=json", "--unit", UNIT],
            stdout=subprocess.PIPE,
            bufsize=0,  # a line that is read ahead would be hidden from select
        )

    def wait_for(self, event: str) -> dict[str, Any]:
        """The next line of this event, with its fields; `PRIORITY` and `_PID` as journald says."""
        assert self._follow.stdout is not None
        while select.select([self._follow.stdout], [], [], LONGEST_WAIT_S)[0]:
            line = self._follow.stdout.readline()
            entry = json.loads(line)
            message = str(entry["MESSAGE"])
            if message.startswith("{") and json.loads(message)["event"] == event:
                return json.loads(message) | {k: entry[k] for k in ("PRIORITY", "_PID")}
        raise AssertionError(f"no {event} in the journal\n{status()}")

    def close(self) -> None:
        self._follow.kill()
        self._follow.wait()
        assert self._follow.stdout is not None
        self._follow.stdout.close()


@pytest.fixture
def journal() -> Iterator[Journal]:
    journal = Journal()
    yield journal
    journal.close()
    systemctl("stop", UNIT, check=False)
    systemctl("reset-failed", UNIT, check=False)


@pytest.fixture
def toy() -> None:
    Path("/opt/custosd").mkdir(parents=True, exist_ok=True)
    Path("/opt/custosd/toy.py").write_text(TOY)
    install_custosd_unit("/opt/custosd/toy.py", WatchdogSec="3s", RestartSec="100ms")


def test_start_blocks_until_the_daemon_is_ready(toy, journal: Journal):
    Path("/etc/custosd").mkdir(exist_ok=True)
    hold = Path("/etc/custosd/hold")
    hold.touch()
    systemctl("start", "--no-block", UNIT)
    warming = journal.wait_for("toy.warming")
    assert (show("ActiveState"), show("StatusText")) == ("activating", "warming up")
    assert (warming["watchdog_s"], warming["left"]) == (3, [])

    hold.unlink()
    systemctl("kill", "--signal=USR2", UNIT)
    systemctl("start", UNIT)  # joins the start that is under way

    assert show("ActiveState") == "active"
    ready = journal.wait_for("toy.ready")
    assert ready["PRIORITY"] == "4"
    assert ready["_PID"] == show("MainPID") == str(ready["pid"])
    assert (ready["run"], ready["home"]) == ("/run/custosd", True)
    assert show("StatusText") == "watching 0 agents, überall"
    assert os.stat("/var/lib/custosd").st_mode & 0o777 == 0o700  # noqa: PTH116


def test_stop_lets_the_daemon_drain_for_longer_than_the_watchdog_waits(toy, journal: Journal):
    install_custosd_unit("/opt/custosd/toy.py", WatchdogSec="1500ms")
    systemctl("start", UNIT)
    systemctl("stop", UNIT)
    journal.wait_for("toy.drained")
    assert (show("ActiveState"), show("Result")) == ("inactive", "success")


def test_a_killed_daemon_is_started_again(toy, journal: Journal):
    systemctl("start", UNIT)
    first = journal.wait_for("toy.ready")
    systemctl("kill", "--signal=KILL", UNIT)
    second = journal.wait_for("toy.ready")
    assert first["_PID"] != second["_PID"] == show("MainPID")
    assert show("NRestarts") == "1"


def test_a_daemon_that_makes_no_progress_is_started_again(toy, journal: Journal):
    systemctl("start", UNIT)
    journal.wait_for("toy.ready")
    systemctl("kill", "--kill-who=main", "--signal=USR1", UNIT)
    starved = journal.wait_for("watchdog.starved")
    assert (starved["services"], starved["PRIORITY"]) == (["work"], "3")
    journal.wait_for("toy.ready")
    assert show("NRestarts") == "1"


def test_a_bad_configuration_is_not_tried_again(toy, journal: Journal):
    Path("/etc/custosd").mkdir(exist_ok=True)
    bad = Path("/etc/custosd/bad")
    bad.touch()
    try:
        systemctl("start", UNIT, check=False)
        assert (show("ActiveState"), show("ExecMainStatus")) == ("failed", "78")
        assert show("NRestarts") == "0"
    finally:
        bad.unlink()
