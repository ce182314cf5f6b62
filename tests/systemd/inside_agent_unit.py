"""Agents as units of a real systemd; `test_agent_unit.py` runs this inside one.

The daemon's part is done here, as root or as the user custosd; the agents are units.
"""

import os
import shutil
import signal
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from tests.adapters.control.agent_desk import PROGRAM, Desk
from tests.contracts.control_contract import ADA, TOLD, ControlContract, Found, told
from tests.systemd.machine import PROJECT, check_inside, systemctl

from custosd.adapters.control.descent import ended
from custosd.adapters.control.systemd import SystemdControl
from custosd.adapters.probes import LocalProber, Probed
from custosd.adapters.process_identity import is_gone
from custosd.adapters.process_watch import open_process_watch
from custosd.core.errors import ControlError
from custosd.core.evidence import Exit, ProcessIdentity, Source, Value

UNIT = "custosd-agent@ada.service"
HAND_OVERS = Path("/var/lib/custosd-handover")
SETTINGS = Path("/etc/custosd/agents/ada.env")
SYSTEM = Path("/etc/systemd/system")
AGENT = Path("/opt/fake-agent")
AS_CUSTOSD = (
    *("setpriv", "--reuid=custosd", "--regid=custosd", "--init-groups", "--no-new-privs"),
    "systemctl",
)


def install() -> None:
    check_inside()
    for name in ("sysusers.conf", "sysusers-agent.conf"):
        Path("/etc/sysusers.d").mkdir(exist_ok=True)
        shutil.copy(PROJECT / "systemd" / name, f"/etc/sysusers.d/custosd-{name}")
    subprocess.run(["systemd-sysusers"], check=True)
    shutil.copy(PROJECT / "systemd" / "custosd-agent@.service", SYSTEM)
    systemctl("daemon-reload")
    SETTINGS.parent.mkdir(parents=True, exist_ok=True)
    AGENT.mkdir(exist_ok=True)
    shutil.copy(PROGRAM, AGENT)
    # Closed, as no unit makes it: whoever hands over opens the way.
    HAND_OVERS.mkdir(mode=0o700, exist_ok=True)
    shutil.chown(HAND_OVERS, "custosd", "custosd")


def run_instead(command: str) -> None:
    """What the agent is, from its next start on."""
    SETTINGS.write_text(f"CUSTOSD_COMMAND={command}\n")
    SETTINGS.chmod(0o600)


def run_nothing() -> None:
    SETTINGS.unlink()


def user_of(process: ProcessIdentity) -> str:
    return Path("/proc", str(process.pid)).owner()


def cgroup_of(process: ProcessIdentity) -> str:
    return Path("/proc", str(process.pid), "cgroup").read_text()


def mode_of(file: Path | str) -> int:
    return stat.S_IMODE(Path(file).stat().st_mode)


def called_as(user: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user without any groups but his own."""
    group = {"nobody": "nogroup"}.get(user, user)
    argv = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


@contextmanager
def drop_in(**settings: str) -> Iterator[None]:
    file = SYSTEM / f"{UNIT}.d" / "test.conf"
    file.parent.mkdir()
    file.write_text("[Service]\n" + "".join(f"{k}={v}\n" for k, v in settings.items()))
    systemctl("daemon-reload")
    try:
        yield
    finally:
        shutil.rmtree(file.parent)
        systemctl("daemon-reload")


class UnitScene:
    def __init__(self, desk: Desk, systemctl: Sequence[str] = ("systemctl",)) -> None:
        self.desk = desk
        self.systemctl = systemctl
        self.command()

    def command(self, *ways: str) -> None:
        words = ("/usr/bin/python3", AGENT / PROGRAM.name, self.desk.address, *ways)
        run_instead(" ".join(map(str, words)))

    @property
    def control(self) -> SystemdControl:
        return SystemdControl(UNIT, HAND_OVERS, systemctl=self.systemctl)

    @property
    def starts(self) -> int:
        return len(self.desk.reports)

    def deafen(self) -> None:
        self.command("deaf")

    async def began(self) -> Found:
        return await self.desk.found()

    async def ended(self) -> None:
        await self.desk.ended()

    async def start(self, key: str = "r-1") -> None:
        await self.control.spawn(key, TOLD)
        await self.began()


@pytest.fixture
async def scene(nursery: trio.Nursery) -> AsyncIterator[UnitScene]:
    install()
    desk = Desk(Path("/run/desk"))
    await desk.open(nursery)
    yield UnitScene(desk)
    systemctl("kill", "--signal=KILL", UNIT, check=False)
    systemctl("stop", UNIT, check=False)
    systemctl("reset-failed", UNIT, check=False)
    desk.address.unlink()
    shutil.rmtree(HAND_OVERS)


class TestSystemdControl(ControlContract):
    @pytest.fixture
    def scene(self, scene: UnitScene) -> UnitScene:
        return scene


async def test_an_agent_runs_as_itself_in_a_cgroup_beside_the_daemon(scene: UnitScene) -> None:
    await scene.start()
    (report,) = scene.desk.reports
    (process,) = scene.desk.processes
    assert user_of(process) == "custosd-agent"
    place = "/custosd.slice/custosd-agents.slice/custosd-agent@ada.service\n"
    assert place in cgroup_of(process)
    assert report["cwd"] == "/var/lib/custosd-agents/ada"
    assert mode_of(report["cwd"]) == 0o750
    assert "NOTIFY_SOCKET" not in report["environ"]
    sight = await scene.control.sight()
    assert (sight.process, sight.detail) == (process, "unit_active")


async def test_what_is_handed_over_only_the_daemon_and_agents_can_read(scene: UnitScene) -> None:
    await scene.start()
    for name in ("handover.json", "environment"):
        file = HAND_OVERS / "ada" / name
        assert mode_of(file) == 0o640
        assert called_as("custosd-agent", "cat", file).returncode == 0
        assert called_as("nobody", "cat", file).returncode == 1
        assert called_as("custosd-agent", "touch", file).returncode == 1
    assert called_as("custosd-agent", "ls", HAND_OVERS).returncode != 0


async def test_a_first_start_by_hand_is_the_first_incarnation(scene: UnitScene) -> None:
    systemctl("start", UNIT)
    report = await scene.desk.report()
    assert (report["CUSTOSD_AGENT"], report["CUSTOSD_EPOCH"]) == ("ada", "0")
    assert report["hand_over"] is None
    with pytest.raises(ControlError) as caught:
        await scene.control.spawn("r-1", TOLD)
    assert caught.value.reason == "still_running"


async def test_a_start_by_hand_after_that_keeps_the_epoch(scene: UnitScene) -> None:
    await scene.start()
    systemctl("restart", UNIT)
    assert (await scene.began()).epoch == "1"


async def test_an_agent_of_another_user_is_handed_over_to_as_well(scene: UnitScene) -> None:
    with drop_in(User="games", Group="games", StateDirectory="", WorkingDirectory="/"):
        await scene.control.spawn("r-1", TOLD)
        found = await scene.began()
        assert found.hand_over["summary"] == TOLD.summary
        assert user_of(scene.desk.processes[0]) == "games"


async def run_to_its_end(scene: UnitScene) -> None:
    systemctl("start", UNIT)
    process = (await scene.control.sight()).process
    if process is not None:
        with trio.fail_after(10):
            await ended(process)


async def test_an_agent_may_make_a_sandbox_of_its_own(scene: UnitScene) -> None:
    run_instead("/usr/bin/unshare -Urn /bin/true")
    await run_to_its_end(scene)
    assert (await scene.control.sight()).detail == "unit_inactive"


async def test_a_killed_agent_is_told_of_at_once(scene: UnitScene) -> None:
    await scene.start()
    (process,) = scene.desk.processes
    async with open_process_watch() as watch:
        assert watch.watch(ADA, process)
        os.kill(process.pid, signal.SIGKILL)
        with trio.fail_after(10):
            (death,) = await watch.next_deaths()
    assert death.process == process
    sight = await scene.control.sight()
    assert (sight.value, sight.detail, sight.exit) == (Value.BAD, "unit_failed", Exit(signal=9))


async def test_an_agent_that_is_dead_but_for_its_children_is_not_gone_yet(
    scene: UnitScene,
) -> None:
    scene.command("parent")
    await scene.control.spawn("r-1", TOLD)
    reports = [await scene.desk.report() for _ in range(2)]
    parent, child = scene.desk.processes
    if reports[0]["session"] == child.pid:
        parent, child = child, parent
    os.kill(parent.pid, signal.SIGKILL)
    with trio.fail_after(10):
        await ended(parent)
    sight = await scene.control.sight()
    assert (sight.value, sight.detail) == (Value.UNKNOWN, "unit_deactivating_without_process")
    with pytest.raises(ControlError):
        await scene.control.spawn("r-2", told(2))
    await scene.control.kill()
    with trio.fail_after(10):
        await ended(child)
    assert (await scene.control.sight()).value is Value.BAD


@pytest.mark.parametrize(
    ("command", "detail", "exit_"),
    [
        ("/bin/false", "unit_failed", Exit(code=1)),
        ("/bin/true", "unit_inactive", None),
        ("", "unit_failed", Exit(code=125)),
        ("/no/such/agent", "unit_failed", Exit(code=127)),
        ("/bin/sh -c 'kill -SEGV $$'", "unit_failed", Exit(signal=11)),
        ("/bin/sh -c 'exit 143'", "unit_inactive", None),
    ],
)
async def test_the_end_of_an_agent_is_told_as_it_was(
    scene: UnitScene, command: str, detail: str, exit_: Exit | None
) -> None:
    run_instead(command)
    await run_to_its_end(scene)
    sight = await scene.control.sight()
    assert (sight.value, sight.detail) == (Value.BAD, detail)
    if exit_ is not None:
        assert sight.exit == exit_


async def test_a_frozen_agent_is_there_and_seen_to_be_stopped(scene: UnitScene) -> None:
    await scene.start()
    (process,) = scene.desk.processes
    prober = LocalProber(lambda _: Probed(scene.control))
    both = frozenset({Source.PROCESS, Source.UNIT})
    before = {one.source: one for one in await prober.probe(ADA, process, both)}
    assert {one.value for one in before.values()} == {Value.OK}
    os.kill(process.pid, signal.SIGSTOP)
    with trio.fail_after(10):
        # Only its parent, which is systemd, is told when it has stopped.
        while True:
            seen = {one.source: one for one in await prober.probe(ADA, process, both)}
            if seen[Source.PROCESS].value is not Value.OK:
                break
    assert (seen[Source.PROCESS].value, seen[Source.PROCESS].detail) == (
        Value.BAD,
        "process_stopped",
    )
    assert seen[Source.UNIT].value is Value.OK
    assert is_gone(process) is False


async def test_a_new_process_of_the_unit_is_found_where_the_old_one_is_gone(
    scene: UnitScene,
) -> None:
    await scene.start()
    systemctl("restart", UNIT)
    await scene.began()
    old, new = scene.desk.processes
    prober = LocalProber(lambda _: Probed(scene.control))
    (seen,) = await prober.probe(ADA, old, frozenset({Source.PROCESS}))
    assert (seen.value, seen.process) == (Value.OK, new)


async def test_an_agent_lives_on_when_the_daemon_is_stopped(scene: UnitScene) -> None:
    daemon = SYSTEM / "toy-daemon.service"
    daemon.write_text(
        "[Service]\nType=exec\nKillMode=mixed\n"
        f"ExecStart=/bin/sh -c 'systemctl start {UNIT}; exec sleep 1000'\n"
    )
    systemctl("daemon-reload")
    systemctl("start", daemon.name)
    report = await scene.desk.report()
    assert report["CUSTOSD_EPOCH"] == "0"
    systemctl("kill", "--signal=KILL", daemon.name)
    systemctl("stop", daemon.name)
    (process,) = scene.desk.processes
    assert is_gone(process) is False
    assert (await scene.control.sight()).process == process


async def test_a_start_that_was_cut_off_is_not_repeated_once_it_has_come_through(
    scene: UnitScene,
) -> None:
    await scene.start()
    (process,) = scene.desk.processes
    # As it stood before `systemctl start` came back.
    note = HAND_OVERS / "ada" / "start.json"
    note.write_text('{"key": "r-1", "before": "", "returned": false}')
    os.kill(process.pid, signal.SIGKILL)
    await scene.ended()
    await scene.control.spawn("r-1", TOLD)
    assert scene.starts == 1
    await scene.control.spawn("r-2", told(2))
    await scene.began()
    assert scene.starts == 2


async def test_a_unit_that_is_not_there_is_not_known(scene: UnitScene) -> None:
    control = SystemdControl("no-such-agent.service", HAND_OVERS)
    sight = await control.sight()
    assert (sight.value, sight.detail) == (Value.UNKNOWN, "unit_not_loaded")
    with pytest.raises(ControlError) as caught:
        await control.stop()
    assert caught.value.reason == "no_such_unit"
    with pytest.raises(ControlError):
        await control.spawn("r-1", TOLD)
    run_nothing()
    with pytest.raises(ControlError) as caught:
        await scene.control.spawn("r-1", TOLD)
    assert caught.value.reason == "start_failed"
    assert UNIT in str(caught.value)


@pytest.fixture
def polkit(scene: UnitScene) -> UnitScene:
    """The scene, with a daemon that runs as the user custosd and may do what the rule says."""
    if not Path("/usr/lib/polkit-1/polkitd").exists():
        pytest.skip("no polkitd on this machine: its rule was not tried")
    systemctl("start", "dbus.socket")
    shutil.copy(PROJECT / "systemd" / "50-custosd.rules", "/etc/polkit-1/rules.d/")
    systemctl("restart", "polkit.service")
    scene.systemctl = AS_CUSTOSD
    return scene


async def test_the_daemons_user_may_manage_agents(polkit: UnitScene) -> None:
    scene = polkit
    await scene.control.spawn("r-1", TOLD)
    await scene.began()
    await scene.control.interrupt()
    await scene.control.kill()
    await scene.ended()
    assert (await scene.control.sight()).value is Value.BAD
    await scene.control.spawn("r-2", told(2))
    await scene.began()
    await scene.control.stop()
    await scene.ended()


async def test_the_daemons_user_may_manage_nothing_else(polkit: UnitScene) -> None:
    for name in ("other.service", "custosd-agents@a.service", "my-custosd-agent@a.service"):
        other = SYSTEM / name
        other.write_text("[Service]\nExecStart=/bin/sleep 1000\n")
        systemctl("daemon-reload")
        with pytest.raises(ControlError) as caught:
            await SystemdControl(name, HAND_OVERS, systemctl=AS_CUSTOSD).spawn("r-1", TOLD)
        assert caught.value.reason == "not_allowed"
        assert "50-custosd.rules" in str(caught.value)
        other.unlink()
    for words in (["mask", UNIT], ["set-property", UNIT, "MemoryMax=1G"], ["daemon-reload"]):
        done = called_as("custosd", "systemctl", "--no-ask-password", *words)
        assert done.returncode != 0
        assert "authentication" in done.stderr or "denied" in done.stderr, done.stderr


async def test_no_other_user_may_manage_agents(polkit: UnitScene) -> None:
    as_nobody = tuple(
        word.replace("reuid=custosd", "reuid=nobody").replace("regid=custosd", "regid=nogroup")
        for word in AS_CUSTOSD
    )
    with pytest.raises(ControlError) as caught:
        await SystemdControl(UNIT, HAND_OVERS, systemctl=as_nobody).spawn("r-1", TOLD)
    assert caught.value.reason == "not_allowed"
