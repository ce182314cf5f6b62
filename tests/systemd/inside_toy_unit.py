"""How the daemon's own parts speak with systemd; `test_daemon_unit.py` runs this inside one.

A toy is made of them, which can be told to hold its start, to hang and to drain for long:
the real daemon can not. The unit is the shipped one, word for word. Drop-ins shorten its
times.
"""

import os
from pathlib import Path

import pytest
from tests.systemd.machine import UNIT, Journal, check_inside, install_custosd_unit, show, systemctl

TOY = """
import os
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
    if os.path.exists("/etc/custosd/slow"):
        await trio.sleep(2)
    log.info("toy.drained")

trio.run(main)
"""


@pytest.fixture
def toy() -> None:
    check_inside()
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
    slow = Path("/etc/custosd/slow")
    slow.parent.mkdir(exist_ok=True)
    slow.touch()
    systemctl("start", UNIT)
    systemctl("stop", UNIT)
    slow.unlink()
    journal.wait_for("toy.drained")
    assert (show("ActiveState"), show("Result")) == ("inactive", "success")


def test_a_daemon_that_makes_no_progress_is_started_again(toy, journal: Journal):
    systemctl("start", UNIT)
    journal.wait_for("toy.ready")
    systemctl("kill", "--kill-who=main", "--signal=USR1", UNIT)
    starved = journal.wait_for("watchdog.starved")
    assert (starved["services"], starved["PRIORITY"]) == (["work"], "3")
    journal.wait_for("toy.ready")
    assert show("NRestarts") == "1"
