"""The command control against real processes, and daemons that are cut off."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from tests.adapters.control.agent_desk import Desk, child
from tests.contracts.control_contract import ADA, TOLD, ControlContract, Found, told

from custosd.adapters.control.command import CommandControl, own_service
from custosd.adapters.control.descent import ended, processes_with, send
from custosd.adapters.process_identity import identify, is_gone, parent_of
from custosd.core.errors import ControlError
from custosd.core.evidence import ProcessIdentity, Value


class CommandScene:
    def __init__(self, desk: Desk, folder: Path) -> None:
        self.desk = desk
        self.folder = folder
        self.ways: tuple[str, ...] = ()

    @property
    def control(self) -> CommandControl:
        """A new one each time: what it knows, it knows from its files."""
        return CommandControl(ADA, self.desk.command(*self.ways), self.folder, within_unit=True)

    @property
    def starts(self) -> int:
        return len(self.desk.reports)

    def deafen(self) -> None:
        self.ways = (*self.ways, "deaf")

    async def began(self) -> Found:
        return await self.desk.found()

    async def ended(self) -> None:
        await self.desk.ended()


@pytest.fixture
async def scene(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[CommandScene]:
    desk = Desk(tmp_path / "desk")
    await desk.open(nursery)
    scene = CommandScene(desk, tmp_path / "agents")
    yield scene
    for process in desk.processes:
        send(process, signal.SIGKILL)


class TestCommandControl(ControlContract):
    @pytest.fixture
    def scene(self, scene: CommandScene) -> CommandScene:
        return scene


async def start(scene: CommandScene, *ways: str, key: str = "r-1") -> ProcessIdentity:
    scene.ways = ways
    await scene.control.spawn(key, TOLD)
    await scene.began()
    return scene.desk.processes[-1]


async def test_the_noted_process_is_the_agent_and_nobodys_child(scene: CommandScene) -> None:
    process = await start(scene)
    sight = await scene.control.sight()
    assert sight.process == process
    (report,) = scene.desk.reports
    assert report["session"] == process.pid
    assert parent_of(process.pid) != os.getpid()


async def test_it_inherits_nothing_of_the_daemon(
    scene: CommandScene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "hush")
    open_file = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(open_file, True)  # noqa: FBT003 - the standard library's
    try:
        await start(scene)
    finally:
        os.close(open_file)
    (report,) = scene.desk.reports
    assert not {"NOTIFY_SOCKET", "ANTHROPIC_API_KEY"} & set(report["environ"])
    # Its standard three, its connection, and the folder that it counts them in.
    assert report["descriptors"] == 5
    assert report["cwd"] == "/"
    assert report["oom_score_adj"] == "0"


async def test_it_outlives_the_daemon_that_started_it(scene: CommandScene, tmp_path: Path) -> None:
    daemon = (
        "import sys, trio\n"
        "from custosd.adapters.control.command import CommandControl\n"
        "from custosd.ports import HandOver\n"
        "from pathlib import Path\n"
        "folder, *start = sys.argv[1:]\n"
        "control = CommandControl('ada', start, Path(folder), within_unit=True)\n"
        "trio.run(control.spawn, 'r-1', HandOver('ada', 1, 'crash'))\n"
        "trio.run(trio.sleep_forever)\n"
    )
    argv = (sys.executable, "-c", daemon, str(scene.folder), *scene.desk.command())
    with child(*argv, start_new_session=True) as running:
        await scene.began()
        os.killpg(running.pid, signal.SIGKILL)
    assert (await scene.control.sight()).value is Value.OK
    await scene.control.stop()
    await scene.ended()


async def test_a_daemon_cut_off_before_it_noted_the_process_starts_none(
    scene: CommandScene,
) -> None:
    note = scene.folder / "ada" / "process.json"
    note.mkdir(parents=True)  # so that it can not be written
    with pytest.raises(ControlError) as caught:
        await scene.control.spawn("r-1", TOLD)
    assert caught.value.reason == "not_started"
    for launcher in processes_with("CUSTOSD_RESTART", "r-1"):
        with trio.fail_after(10):
            await ended(launcher)
    assert scene.starts == 0
    note.rmdir()
    assert (await scene.control.sight()).detail == "never_started"
    await start(scene)
    assert scene.starts == 1


async def test_a_daemon_cut_off_after_it_noted_the_process_starts_it_later(
    scene: CommandScene,
) -> None:
    process = await start(scene)
    await scene.control.kill()
    await scene.ended()
    with child(sys.executable, "-c", "input()", stdin=subprocess.PIPE) as waiting:
        launcher = identify(waiting.pid)
        assert launcher is not None
        note = scene.folder / "ada" / "process.json"
        form = {"key": "r-2", "pid": launcher.pid, "boot_id": launcher.boot_id}
        note.write_text(json.dumps(form | {"started_ticks": launcher.started_ticks}))
        await start(scene, key="r-2")
        assert waiting.wait() == -signal.SIGKILL
    assert scene.starts == 2
    assert scene.desk.processes[-1] != process


async def test_a_kill_reaches_those_that_left_the_session_and_outlived_their_parent(
    scene: CommandScene,
) -> None:
    await start(scene, "parent")
    await scene.began()
    parent, child = sorted(
        scene.desk.processes, key=lambda one: one.started_ticks * 10**7 + one.pid
    )
    send(parent, signal.SIGKILL)
    await ended(parent)
    assert (await scene.control.sight()).value is Value.BAD
    assert not is_gone(child)
    await scene.control.kill()
    with trio.fail_after(10):
        await ended(child)


async def test_no_signal_goes_to_a_successor_with_the_same_id(scene: CommandScene) -> None:
    process = await start(scene)
    note = scene.folder / "ada" / "process.json"
    form = json.loads(note.read_text())
    note.write_text(json.dumps(form | {"started_ticks": process.started_ticks - 1}))
    for act in (scene.control.stop, scene.control.interrupt):
        await act()
    sight = await scene.control.sight()
    assert (sight.value, sight.detail) == (Value.BAD, "process_gone")
    assert not is_gone(process)
    assert send(process, signal.SIGKILL, group=True)


async def test_a_process_that_has_the_id_of_an_earlier_one_is_not_hit() -> None:
    """What is sent goes to the process that was known, or to nobody."""
    with child("sleep", "1000", process_group=0) as successor:
        process = identify(successor.pid)
        assert process is not None
        earlier = replace(process, started_ticks=process.started_ticks - 1)
        for group in (False, True):
            assert not send(earlier, signal.SIGKILL, group=group)
        # A signal that was sent has been heeded by the time that this one has.
        assert send(process, signal.SIGTERM)
        assert successor.wait() == -signal.SIGTERM


async def test_a_signal_goes_to_the_whole_group(scene: CommandScene) -> None:
    with child("sleep", "1000", process_group=0) as leader:
        with child("sleep", "1000", process_group=leader.pid) as member:
            process = identify(leader.pid)
            assert process is not None
            assert send(process, signal.SIGTERM, group=True)
            assert member.wait() == -signal.SIGTERM
        assert leader.wait() == -signal.SIGTERM
    assert not send(process, signal.SIGTERM)


async def test_what_somebody_else_started_is_not_known_and_not_touched(
    scene: CommandScene,
) -> None:
    env = {**os.environ, "CUSTOSD_AGENT": ADA}
    with child("sleep", "1000", env=env) as other:
        sight = await scene.control.sight()
        assert (sight.value, sight.detail) == (Value.UNKNOWN, "started_elsewhere")
        assert [one.pid for one in processes_with("CUSTOSD_AGENT", ADA)] == [other.pid]
        await scene.control.kill()
        assert other.poll() is None


@pytest.mark.parametrize(
    ("stop", "reason"),
    [
        (("/bin/false",), "stop_failed"),
        (("/no/such/program",), "no_such_command"),
        (("/bin/sleep", "1000"), "took_too_long"),
    ],
)
async def test_a_command_that_does_not_stop_it_says_why(
    stop: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    control = CommandControl(ADA, ["true"], tmp_path, stop=stop, timeout_s=0.2)
    with pytest.raises(ControlError) as caught:
        await control.stop()
    assert caught.value.reason == reason
    assert stop[0] in str(caught.value)


async def test_a_command_that_stops_it_knows_whom(tmp_path: Path) -> None:
    stop = ["sh", "-c", f'echo "$CUSTOSD_AGENT" > {tmp_path}/stopped']
    await CommandControl(ADA, ["true"], tmp_path, stop=stop).stop()
    assert (tmp_path / "stopped").read_text() == "ada\n"


async def test_what_can_not_be_started_says_why(tmp_path: Path) -> None:
    absent = CommandControl(ADA, ["/no/such/agent"], tmp_path, within_unit=True)
    with pytest.raises(ControlError, match="check start") as caught:
        await absent.spawn("r-1", TOLD)
    assert caught.value.reason == "no_such_command"
    nowhere = CommandControl(ADA, ["true"], tmp_path, workspace=tmp_path / "none", within_unit=True)
    with pytest.raises(ControlError) as caught:
        await nowhere.spawn("r-1", TOLD)
    assert caught.value.reason == "no_workspace"
    assert str(tmp_path / "none") in str(caught.value)
    somewhere = CommandControl(ADA, ["true"], tmp_path, within_unit=True)
    with pytest.raises(ControlError) as caught:
        await somewhere.spawn("../r", TOLD)
    assert caught.value.reason == "bad_name"
    with pytest.raises(ControlError):
        CommandControl("../ada", ["true"], tmp_path)


@pytest.mark.parametrize(
    ("text", "service"),
    [
        ("0::/system.slice/custosd.service\n", "custosd.service"),
        ("4:memory:/x\n1:name=systemd:/system.slice/custosd.service\n0::/\n", "custosd.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/term.scope\n", ""),
        ("0::/\n", ""),
        ("5:pids:/system.slice/other.service\n", ""),
        ("nonsense\n", ""),
    ],
)
def test_the_service_that_this_is_a_part_of(text: str, service: str, tmp_path: Path) -> None:
    file = tmp_path / "cgroup"
    file.write_text(text)
    assert own_service(file) == service
    assert own_service(tmp_path / "none") == ""


async def test_an_ended_incarnation_is_not_confused_with_the_next(scene: CommandScene) -> None:
    await start(scene)
    await scene.control.kill()
    await scene.ended()
    await scene.control.spawn("r-2", told(2))
    await scene.began()
    assert (await scene.control.sight()).process == scene.desk.processes[-1]
