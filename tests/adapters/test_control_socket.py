"""The control socket: real sockets, honest and other clients, and files in the way."""

# ruff: noqa: ASYNC240 - a test may look at its few files where it stands

import json
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from custosd.adapters import control_socket
from custosd.adapters.control_socket import (
    ControlAccess,
    ControlBroken,
    ControlDenied,
    ControlLimits,
    ControlSocketError,
    ControlTimeout,
    DaemonNotRunning,
    Peer,
    ask,
    serve_control,
    socket_path,
    user_names,
)
from custosd.core.acts import Act, ActAnswer, ActOutcome, ActRequest

ME = f"uid:{os.geteuid()} (ada)"
PAUSE = ActRequest(
    Act.PAUSE, "forged", "builder-1", "", {"reason": "tea", "for_s": 60}, dry_run=True
)
DONE = ActAnswer(ActOutcome.DONE, "paused", {"until": None, "agents": ["builder-1"]})


@dataclass
class Door:
    """Remembers what it was asked; answers at once, or when it is let go."""

    answer: ActAnswer = DONE
    asked: list[ActRequest] = field(default_factory=list)
    done: int = 0
    hold: trio.Event | None = None

    async def perform(self, request: ActRequest) -> ActAnswer:
        self.asked.append(request)
        if self.hold is not None:
            await self.hold.wait()
        self.done += 1
        return self.answer


async def ada(uid: int) -> str:
    return "ada"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "control.sock"


Serve = Callable[..., Any]


@pytest.fixture
def serve(nursery: trio.Nursery, path: Path) -> Serve:
    """`await serve(door, ...)`: listens on `path` in the test's nursery."""

    async def start(door: Door, access: Any = None, name_of: Any = ada, **limits: Any) -> None:
        access = access or ControlAccess()
        await nursery.start(serve_control, path, door, access, ControlLimits(**limits), name_of)

    return start


@asynccontextmanager
async def client(path: Path) -> AsyncGenerator[trio.SocketStream]:
    async with await trio.open_unix_socket(path) as stream:
        yield stream


async def told(stream: trio.SocketStream) -> list[dict[str, Any]]:
    """Everything until the door closes."""
    data = b""
    async for piece in stream:
        data += piece
    return [json.loads(line) for line in data.splitlines()]


async def one_line(stream: trio.SocketStream) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n"):
        data += await stream.receive_some(1)
    answer: dict[str, Any] = json.loads(data)
    return answer


async def test_a_request_arrives_whole_with_the_author_that_the_kernel_names(
    serve: Serve, path: Path
) -> None:
    door = Door()
    await serve(door)
    assert await ask(path, PAUSE, 5) == DONE
    assert door.asked == [replace(PAUSE, author=ME)]


async def test_a_user_without_a_name_is_told_by_number(serve: Serve, path: Path) -> None:
    async def nobody(uid: int) -> str:
        return ""

    door = Door()
    await serve(door, name_of=nobody)
    await ask(path, PAUSE, 5)
    assert door.asked[0].author == f"uid:{os.geteuid()}"


async def test_names_come_from_the_systems_table(serve: Serve) -> None:
    name_of = user_names()
    assert [await name_of(0), await name_of(0), await name_of(4_000_123_456)] == ["root"] * 2 + [""]


def open_the_way_to(path: Path) -> None:
    """For everybody: pytest's folders are their user's alone."""
    shared = Path(tempfile.gettempdir())
    for folder in takewhile(lambda folder: folder != shared, path.parents):
        folder.chmod(folder.stat().st_mode | 0o011)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_another_user_is_another_author(serve: Serve, path: Path) -> None:
    door = Door()
    await serve(door, ControlAccess(mode=0o666), user_names())
    path.parent.chmod(0o755)
    open_the_way_to(path)
    source = (
        "import os,socket,sys; os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        's.sendall(b\'{"act":"estop"}\\n\'); print(s.recv(999).decode())'
    )
    done = await trio.run_process([sys.executable, "-c", source, str(path)], capture_stdout=True)
    assert json.loads(done.stdout)["outcome"] == "done"
    assert door.asked[0].author.startswith("uid:65534")


async def test_two_clients_are_answered_side_by_side(
    serve: Serve, path: Path, nursery: trio.Nursery
) -> None:
    """The first one's act is still under way when the second one has its answer."""
    door = Door(hold=trio.Event())
    await serve(door)
    answers: list[ActAnswer] = []

    async def first() -> None:
        answers.append(await ask(path, PAUSE, 5))

    async with trio.open_nursery() as clients:
        clients.start_soon(first)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(door.asked) == 1
        held, door.hold = door.hold, None
        assert await ask(path, PAUSE, 5) == DONE
        assert answers == []
        assert held is not None
        held.set()
    assert answers == [DONE]


async def test_one_connection_may_ask_several_things(serve: Serve, path: Path) -> None:
    door = Door()
    await serve(door)
    async with client(path) as stream:
        await stream.send_all(b'{"act":"estop"}\n\n{"act":"thaw"}\r\n{"act":')
        await stream.send_all(b'"reload","dry_run":true}\n')
        await stream.send_eof()
        assert [answer["outcome"] for answer in await told(stream)] == ["done"] * 3
    assert [(asked.act, asked.dry_run) for asked in door.asked] == [
        (Act.ESTOP, False),
        (Act.THAW, False),
        (Act.RELOAD, True),
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"null",
        b'{"act":"dance"}',
        b'{"subject":"x"}',
        b'{"act":"restart","subject":"x","dryrun":true}',
        b'{"act":"restart","subject":"x","dry_run":"true"}',
        b'{"act":"estop","author":"uid:0 (root)"}',
        b'{"act":"pause","subject":7}',
        b'{"act":"pause","arguments":{"for_s":null}}',
        b'{"act":"pause","arguments":{"for_s":[1]}}',
        b"\xff\xfe{}",
        b'{"act":"pause","subject":"\xff"}',
    ],
)
async def test_what_is_no_request_does_nothing_and_is_told(
    serve: Serve, path: Path, line: bytes
) -> None:
    """And the same connection may try again."""
    door = Door()
    await serve(door)
    async with client(path) as stream:
        await stream.send_all(line + b"\n")
        refused = await one_line(stream)
        assert refused["error"] == "malformed"
        assert door.asked == []
        await stream.send_all(b'{"act":"estop"}\n')
        assert (await one_line(stream))["outcome"] == "done"


@given(st.binary(max_size=200))
def test_no_line_at_all_breaks_the_parser(line: bytes) -> None:
    try:
        request = control_socket._request(line, "uid:1")
    except control_socket.msgspec.DecodeError:
        return
    assert request.author == "uid:1"


@pytest.mark.parametrize("ended", [True, False])
async def test_a_line_that_is_too_long_is_refused_before_it_is_kept(
    serve: Serve, path: Path, *, ended: bool
) -> None:
    door = Door()
    await serve(door, request_bytes=1_000)
    async with client(path) as stream:
        await stream.send_all(b'{"act":"steer","text":"' + b"x" * 1_000 + b'"}\n' * ended)
        (refused,) = await told(stream)
    assert refused["error"] == "oversize"
    assert "1000 bytes" in refused["message"]
    assert door.asked == []
    assert await ask(path, PAUSE, 5) == DONE


async def test_the_longest_line_that_fits_is_taken(serve: Serve, path: Path) -> None:
    door = Door()
    await serve(door)
    frame = len(b'{"act":"steer","text":""}')
    async with client(path) as stream:
        text = b"x" * (64 * 1024 - frame)
        await stream.send_all(b'{"act":"steer","text":"' + text + b'"}\n')
        assert (await one_line(stream))["outcome"] == "done"
    assert len(door.asked[0].text) == len(text)


async def test_an_endless_stream_without_a_line_end_is_cut_off(serve: Serve, path: Path) -> None:
    await serve(Door())
    async with client(path) as stream:
        await _pour(stream, b"x" * 100_000)


async def _pour(stream: trio.SocketStream, piece: bytes, pause_s: float = 0) -> None:
    """Send the same again and again, until the other side closes."""
    with suppress(trio.BrokenResourceError):
        while True:
            await stream.send_all(piece)
            await trio.sleep(pause_s)


async def test_a_slow_client_does_not_hold_the_door(
    serve: Serve, path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A byte each second is a line that never ends: it is over 10 s after its first byte."""
    await serve(Door())
    async with client(path) as stream:
        began = trio.current_time()
        await _pour(stream, b"{", pause_s=1)
        assert trio.current_time() - began < 13
        assert await ask(path, PAUSE, 5) == DONE


async def test_who_says_nothing_is_let_go(
    serve: Serve, path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    await serve(Door())
    async with client(path) as stream:
        began = trio.current_time()
        assert await told(stream) == []
        assert trio.current_time() - began == pytest.approx(30)


async def test_who_does_not_take_the_answer_is_let_go(
    serve: Serve, path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    large = ActAnswer(ActOutcome.DONE, "x" * 3_000_000)
    await serve(Door(large), connections=1)
    async with client(path) as stream:
        await stream.send_all(b'{"act":"estop"}\n')
        await trio.sleep(15)
        assert (await ask(path, PAUSE, 5)).outcome is ActOutcome.DONE


async def test_who_leaves_does_not_stop_what_it_asked_for(serve: Serve, path: Path) -> None:
    door = Door(hold=trio.Event())
    await serve(door)
    with structlog.testing.capture_logs() as logged:
        async with client(path) as stream:
            await stream.send_all(b'{"act":"estop"}\n')
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert door.hold is not None
        door.hold.set()
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert door.done == 1
    assert [line["event"] for line in logged] == ["control.abandoned"]


async def test_beyond_the_last_place_a_client_is_told_so(serve: Serve, path: Path) -> None:
    await serve(Door(), connections=2)
    async with client(path) as one, client(path) as two:
        for stream in (one, two):
            await stream.send_all(b'{"act":"estop"}\n')
            assert (await one_line(stream))["outcome"] == "done"
        with pytest.raises(ControlBroken, match="too many") as caught:
            await ask(path, PAUSE, 5)
        assert caught.value.reason == "busy"
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert await ask(path, PAUSE, 5) == DONE


async def test_a_fault_in_one_conversation_leaves_the_door_open(serve: Serve, path: Path) -> None:
    class Broken(Door):
        async def perform(self, request: ActRequest) -> ActAnswer:
            if request.act is Act.RELOAD:
                raise RuntimeError("unexpected")
            return await super().perform(request)

    await serve(Broken())
    with structlog.testing.capture_logs() as logged, pytest.raises(ControlBroken, match="hung up"):
        await ask(path, ActRequest(Act.RELOAD, ""), 5)
    assert [line["event"] for line in logged] == ["control.failed"]
    assert await ask(path, PAUSE, 5) == DONE


def test_nobody_is_named_so_everybody_with_the_file_may() -> None:
    assert ControlAccess().admits(Peer(1, 4_242, frozenset({4_242})))


@pytest.mark.parametrize(
    ("peer", "admitted"),
    [
        (Peer(1, 1_000, frozenset()), True),
        (Peer(1, 1_001, frozenset({1_001, 50})), True),
        (Peer(1, 1_001, frozenset({1_001})), False),
        (Peer(1, 0, frozenset()), True),
        (Peer(1, os.geteuid(), frozenset()), True),
        (Peer(1, 2**32 - 1, frozenset({2**32 - 1})), False),
    ],
)
def test_where_some_are_named_others_may_not(peer: Peer, *, admitted: bool) -> None:
    access = ControlAccess(uids=frozenset({1_000}), gids=frozenset({50}))
    assert access.admits(peer) is admitted


async def test_who_is_not_named_is_denied_and_noted(serve: Serve, path: Path) -> None:
    class Strict(ControlAccess):
        def admits(self, peer: Peer) -> bool:
            assert (peer.uid, peer.pid) == (os.geteuid(), os.getpid())
            assert peer.gids >= {os.getegid(), *os.getgroups()}
            return False

    door = Door()
    await serve(door, Strict())
    with structlog.testing.capture_logs() as logged, pytest.raises(ControlDenied):
        await ask(path, PAUSE, 5)
    assert door.asked == []
    (line,) = logged
    assert (line["event"], line["reason"], line["uid"]) == (
        "control.refused",
        "denied",
        os.geteuid(),
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_the_mode_of_the_file_keeps_others_out(serve: Serve, path: Path) -> None:
    await serve(Door())
    source = (
        "import pathlib, trio; from custosd.adapters.control_socket import ask, ControlDenied\n"
        "from custosd.core.acts import Act, ActRequest\n"
        "import os, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: trio.run(ask, pathlib.Path(sys.argv[1]), ActRequest(Act.ESTOP, ''), 5)\n"
        "except ControlDenied: print('denied')"
    )
    path.parent.chmod(0o755)
    open_the_way_to(path)
    command = [sys.executable, "-c", source, str(path)]
    done = await trio.run_process(command, capture_stdout=True)
    assert done.stdout == b"denied\n"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
async def test_the_file_has_its_mode_whatever_the_mask(
    nursery: trio.Nursery, path: Path, umask: int
) -> None:
    path.parent.mkdir()
    before = os.umask(umask)
    try:
        await nursery.start(serve_control, path, Door(), ControlAccess(), ControlLimits(), ada)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    nursery.cancel_scope.cancel()


async def test_the_file_is_never_open_to_more_than_its_mode_not_even_for_a_moment(
    nursery: trio.Nursery, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing is masked, and before its mode is set again."""
    path.parent.mkdir()
    seen: list[int] = []
    chmod = os.chmod

    def looking(*args: Any, **options: Any) -> None:
        seen.append(stat.S_IMODE(path.stat().st_mode))
        chmod(*args, **options)

    monkeypatch.setattr(os, "chmod", looking)
    before = os.umask(0)
    try:
        access = ControlAccess(mode=0o600)
        await nursery.start(serve_control, path, Door(), access, ControlLimits(), ada)
    finally:
        os.umask(before)
    assert seen == [0o600]
    nursery.cancel_scope.cancel()


async def test_the_socket_goes_with_its_daemon(path: Path) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, path, Door(), ControlAccess(), ControlLimits(), ada)
        assert path.is_socket()
        nursery.cancel_scope.cancel()
    assert not path.exists()
    with pytest.raises(DaemonNotRunning, match="not running"):
        await ask(path, PAUSE, 5)


async def test_somebody_elses_socket_is_not_taken_away(path: Path, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, path, Door(), ControlAccess(), ControlLimits(), ada)
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            nursery.cancel_scope.cancel()
    assert path.is_socket()


async def test_what_a_killed_daemon_left_is_replaced(serve: Serve, path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(DaemonNotRunning):
        await ask(path, PAUSE, 5)
    await serve(Door())
    assert await ask(path, PAUSE, 5) == DONE


async def test_a_socket_with_a_listener_is_left_alone(serve: Serve, path: Path) -> None:
    first = Door()
    await serve(first)
    with pytest.raises(ControlSocketError, match="somebody listens there"):
        await serve_control(path, Door(), ControlAccess(), ControlLimits(), ada)
    assert await ask(path, PAUSE, 5) == DONE
    assert len(first.asked) == 1


@pytest.mark.parametrize("thing", ["file", "folder", "link", "dangling"])
async def test_what_is_no_socket_stays(path: Path, tmp_path: Path, thing: str) -> None:
    """A link neither is followed nor replaced, not even one to a dead socket."""
    path.parent.mkdir()
    match thing:
        case "file":
            path.write_text("precious")
        case "folder":
            path.mkdir()
        case "dangling":
            path.symlink_to(tmp_path / "nowhere")
        case "link":
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(tmp_path / "other.sock"))
            path.symlink_to(tmp_path / "other.sock")
    before = path.lstat()
    with pytest.raises(ControlSocketError, match="no socket is there"):
        await serve_control(path, Door(), ControlAccess(), ControlLimits(), ada)
    assert path.lstat() == before
    with pytest.raises(ControlBroken, match="is no socket"):
        await ask(path, PAUSE, 5)


async def test_a_folder_that_all_may_write_to_is_not_trusted(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o777)
    with pytest.raises(ControlSocketError, match="others must not write"):
        await serve_control(path, Door(), ControlAccess(), ControlLimits(), ada)
    assert not path.exists()


async def test_a_folder_deeper_than_an_address_is_long(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    path = tmp_path / ("d" * 100) / ("e" * 100) / "control.sock"
    await nursery.start(serve_control, path, Door(), ControlAccess(), ControlLimits(), ada)
    assert path.is_socket()
    assert await ask(path, PAUSE, 5) == DONE
    with pytest.raises(ControlSocketError, match="somebody listens there"):
        await serve_control(path, Door(), ControlAccess(), ControlLimits(), ada)
    nursery.cancel_scope.cancel()


async def test_a_daemon_that_does_not_answer_is_told_from_one_that_is_not_there(
    serve: Serve, path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    await serve(Door(hold=trio.Event()))
    with pytest.raises(ControlTimeout, match="may have been done"):
        await ask(path, PAUSE, 5)


async def test_an_answer_without_end_is_not_taken_in(nursery: trio.Nursery, path: Path) -> None:
    path.parent.mkdir()
    await nursery.start(_flooding, path)
    with pytest.raises(ControlBroken, match="more than"):
        await ask(path, PAUSE, 5)
    nursery.cancel_scope.cancel()


async def _flooding(path: Path, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.socket.socket(socket.AF_UNIX) as listener:
        await listener.bind(str(path))
        listener.listen()
        task_status.started()
        accepted, _ = await listener.accept()
        async with trio.SocketStream(accepted) as stream:
            await _pour(stream, b"x" * 100_000)


async def test_text_of_any_kind_comes_through(serve: Serve, path: Path) -> None:
    """Also what a command line holds that is no UTF-8, and what JSON has no word for."""
    odd = "tab\t zero\0 lone\udc80 mark\ufdd0 ümlaut 🦉"
    door = Door(ActAnswer(ActOutcome.DONE, odd, {"name": odd, "in_s": 1.5}))
    await serve(door)
    answer = await ask(path, ActRequest(Act.STEER, "", odd, odd, {"reason": odd}), 5)
    assert (door.asked[0].subject, door.asked[0].text) == (odd, odd)
    assert door.asked[0].arguments == {"reason": odd}
    assert (answer.message, answer.detail) == (odd, {"name": odd, "in_s": 1.5})


async def test_too_few_descriptors_are_waited_for(path: Path) -> None:
    """In a process of its own: with all descriptors taken the door stays, and opens again."""
    done = await trio.run_process(
        [sys.executable, "-c", _STARVED, str(path)], capture_stdout=True, stderr=subprocess.DEVNULL
    )
    assert done.stdout.splitlines()[-1] == b"done"


_STARVED = """
import os, pathlib, resource, sys, trio, trio.testing
from custosd.adapters.control_socket import *
from custosd.core.acts import *

class Door:
    async def perform(self, request):
        return ActAnswer(ActOutcome.DONE, "")

async def name_of(uid):
    return ""

async def main():
    path = pathlib.Path(sys.argv[1])
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, path, Door(), ControlAccess(), ControlLimits(), name_of)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        client = trio.socket.socket(trio.socket.AF_UNIX)
        await client.connect(str(path))
        await trio.testing.wait_all_tasks_blocked(0.01)
        waiting = trio.socket.socket(trio.socket.AF_UNIX)
        taken = []
        try:
            while True:
                taken.append(os.open("/", os.O_RDONLY))
        except OSError:
            pass
        await waiting.connect(str(path))
        await trio.testing.wait_all_tasks_blocked(0.01)
        for descriptor in taken:
            os.close(descriptor)
        stream = trio.SocketStream(waiting)
        await stream.send_all(b'{"act":"estop"}\\n')
        print("done" if b"done" in await stream.receive_some(100) else "no")
        nursery.cancel_scope.cancel()

trio.run(main)
"""


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "/state/run/control.sock"),
        ({"RUNTIME_DIRECTORY": ""}, "/state/run/control.sock"),
        ({"RUNTIME_DIRECTORY": "/run/custosd"}, "/run/custosd/control.sock"),
        ({"RUNTIME_DIRECTORY": "/run/custosd:/run/more"}, "/run/custosd/control.sock"),
    ],
)
def test_where_the_socket_lies(environ: dict[str, str], expected: str) -> None:
    assert socket_path(Path("/state"), environ) == Path(expected)


def test_the_kernels_word_on_a_peer_has_the_form_that_is_read() -> None:
    one, two = socket.socketpair()
    with one, two:
        raw = one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        assert struct.unpack("iII", raw) == (os.getpid(), os.geteuid(), os.getegid())
