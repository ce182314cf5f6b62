"""The datagram door: real sockets, senders of other users, and senders that mean harm."""

# ruff: noqa: ASYNC220, ASYNC240 - a test may look at its few files where it stands

import array
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.adapters.beats.conftest import OpenDoor

from custosd.adapters.beats.socket import BeatSocketError, BeatSocketSettings, receive_beats
from custosd.core.beats import Refusal
from custosd.flow.pulse import Pulse

STRANGER_UID = 40_001

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


class Sender:
    """A client with a name that the kernel gave it, so that it is answered."""

    def __init__(self, path: Path, name: str = "") -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(name)

    def send(self, data: bytes) -> None:
        self.socket.sendto(data, str(self.path))

    async def answer(self) -> dict[str, Any]:
        await trio.lowlevel.wait_readable(self.socket)
        answer: dict[str, Any] = json.loads(self.socket.recv(65_536))
        return answer

    async def ask(self, data: bytes) -> dict[str, Any]:
        self.send(data)
        return await self.answer()


@pytest.fixture
def sender(path: Path) -> Iterator[Sender]:
    sender = Sender(path)
    yield sender
    sender.socket.close()


def beat(seq: int, agent: str = "ada", **more: Any) -> bytes:
    return json.dumps({"agent": agent, "epoch": 0, "seq": seq} | more).encode()


async def test_a_beat_is_let_in_and_its_sender_told_so(door: OpenDoor, sender: Sender) -> None:
    assert await sender.ask(beat(7)) == {"accepted": 1, "refused": []}
    [received] = await door.register.next_batch()
    assert (received.beat.agent, received.beat.sequence, received.door) == ("ada", 7, "socket")


async def test_a_sender_without_a_name_is_heard_too(door: OpenDoor) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(beat(1), str(door.path))
    [received] = await door.register.next_batch()
    assert received.beat.sequence == 1


async def test_of_an_array_each_refusal_is_told(door: OpenDoor, sender: Sender) -> None:
    items = [{"agent": "ada", "epoch": 0, "seq": n} for n in (3, 2)]
    told = await sender.ask(json.dumps(items).encode())
    assert told["accepted"] == 1
    [refused] = told["refused"]
    assert (refused["index"], refused["agent"], refused["why"]) == (1, "ada", "replayed")


async def test_an_answer_stays_small_however_much_was_refused(
    door: OpenDoor, sender: Sender
) -> None:
    told = await sender.ask(json.dumps([7] * 1_000).encode())
    assert len(told["refused"]) == 10
    assert told["untold"] == 990


async def test_what_is_too_long_for_a_datagram_is_refused(
    nursery: trio.Nursery, path: Path, sender: Sender
) -> None:
    door = OpenDoor(path)
    settings = BeatSocketSettings(path, datagram_bytes=100)
    await nursery.start(receive_beats, settings, door.admission, Pulse("beats", 0))
    told = await sender.ask(beat(1, progress="x" * 150))
    assert [one["why"] for one in told["refused"]] == ["oversize"]
    assert (await sender.ask(beat(1)))["accepted"] == 1
    assert door.register.take_counts().refused == {(Refusal.OVERSIZE, None): 1}


async def test_the_largest_datagram_is_taken(door: OpenDoor, sender: Sender) -> None:
    data = beat(1)
    assert (await sender.ask(data + b" " * (64 * 1024 - len(data))))["accepted"] == 1
    told = await sender.ask(beat(2) + b" " * (64 * 1024))
    assert told["refused"][0]["why"] == "oversize"


HOSTILE = [
    b"",
    b"\0",
    b"\xff" * 1_000,
    b"[" * 60_000,
    b"{" * 60_000,
    b"[" + b"1," * 30_000 + b"1]",
    b'{"agent":"ada","epoch":0,"seq":1,"x":' + b"[" * 50_000,
    b'{"agent":"ada","epoch":0,"seq":NaN}',
    beat(1, "a\0b"),
    beat(2**63),
]


@pytest.mark.parametrize("data", HOSTILE)
async def test_whatever_comes_the_next_beat_is_heard(
    door: OpenDoor, sender: Sender, data: bytes
) -> None:
    told = await sender.ask(data)
    assert told["accepted"] == 0
    assert told["refused"]
    assert (await sender.ask(beat(1)))["accepted"] == 1


# --- who sends ------------------------------------------------------------------------

AS_ANOTHER = """
import os, socket, sys
path, uid, data, own = sys.argv[1:]
os.setgid(int(uid)); os.setuid(int(uid))
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.bind(own)
sock.sendto(data.encode(), path)
sock.settimeout(10)
print(sock.recv(65536).decode())
"""


async def as_another(path: Path, data: bytes, own: str = "") -> dict[str, Any]:
    """What a process of the stranger's is told."""
    for folder in (path.parent, *path.parent.parents):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    words = [sys.executable, "-c", AS_ANOTHER, str(path), str(STRANGER_UID), data.decode(), own]
    done = await trio.run_process(words, capture_stdout=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@only_root
async def test_another_user_needs_a_token(door: OpenDoor) -> None:
    told = await as_another(door.path, beat(1))
    assert [one["why"] for one in told["refused"]] == ["forged"]
    assert (await as_another(door.path, beat(1, token="cust_a_secret")))["accepted"] == 1


@only_root
async def test_the_agents_own_user_needs_none(door: OpenDoor) -> None:
    door.uids["ada"] = STRANGER_UID
    assert (await as_another(door.path, beat(1)))["accepted"] == 1
    told = await as_another(door.path, beat(1, "bob"))
    assert [one["why"] for one in told["refused"]] == ["forged"]


@only_root
async def test_another_user_cannot_even_send_where_the_mode_says_so(
    nursery: trio.Nursery, path: Path
) -> None:
    door = OpenDoor(path)
    settings = BeatSocketSettings(path, mode=0o660)
    await nursery.start(receive_beats, settings, door.admission, Pulse("beats", 0))
    with pytest.raises(subprocess.CalledProcessError):
        await as_another(path, beat(1))


# --- answers go to nobody else --------------------------------------------------------


async def test_a_sender_with_a_file_of_its_own_is_answered_there(
    door: OpenDoor, tmp_path: Path
) -> None:
    sender = Sender(door.path, str(tmp_path / "mine.sock"))
    assert (await sender.ask(beat(1)))["accepted"] == 1
    sender.socket.close()


async def test_a_chosen_abstract_name_is_not_answered(door: OpenDoor, sender: Sender) -> None:
    chosen = Sender(door.path, f"\0custosd-test-{os.getpid()}")
    chosen.send(beat(1))
    # The door reads in order: by the time of this answer the other one would be there.
    await sender.ask(beat(2))
    with pytest.raises(BlockingIOError):
        chosen.socket.recv(1)
    chosen.socket.close()


@only_root
async def test_nobody_makes_the_daemon_write_to_a_socket_of_somebody_else(
    door: OpenDoor, sender: Sender, tmp_path: Path
) -> None:
    """A name is only a name: by the time of the answer another's socket may have it."""
    folder = tmp_path / "swap"
    folder.mkdir()
    folder.chmod(0o777)
    name = folder / "s"
    words = (
        "import os, socket, sys\n"
        f"os.setgid({STRANGER_UID}); os.setuid({STRANGER_UID})\n"
        "sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        f"sock.bind({str(name)!r})\n"
        "print('bound', flush=True)\n"
        "sys.stdin.readline()\n"
        f"sock.sendto(b'hello', {str(door.path)!r})\n"
        "print('sent', flush=True)\n"
    )
    tmp_path.chmod(0o755)
    for part in tmp_path.parents:
        if part.is_relative_to("/tmp") and part != Path("/tmp"):
            part.chmod(0o755)
    door.path.parent.chmod(0o755)
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", words], text=True, **pipes) as stranger:
        assert stranger.stdin is not None
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == "bound\n"
        name.unlink()
        receiver.bind(str(name))  # root's: as if it were the journal's
        stranger.stdin.write("go\n")
        stranger.stdin.flush()
        assert stranger.stdout.readline() == "sent\n"
        # The door reads in order: by the time of this answer the other one would be there.
        assert (await sender.ask(beat(1)))["accepted"] == 1
        with pytest.raises(BlockingIOError):
            receiver.recv(1)
    assert door.register.take_counts().refused == {(Refusal.MALFORMED, None): 1}
    receiver.close()


async def test_who_does_not_read_answers_holds_nobody_up(door: OpenDoor, sender: Sender) -> None:
    deaf = Sender(door.path)
    for seq in range(1, 2_000):
        while True:
            try:
                deaf.send(beat(seq))
            except BlockingIOError:
                await trio.lowlevel.checkpoint()
            else:
                break
    assert (await sender.ask(beat(1, "bob")))["accepted"] == 1
    assert door.register.accepted == 2_000
    deaf.socket.close()


def filled(sock: socket.socket, path: Path) -> int:
    """Send until the queue is full; how many beats went in."""
    for seq in itertools.count(1):
        try:
            sock.sendto(beat(seq), str(path))
        except BlockingIOError:
            return seq - 1
    raise AssertionError


async def test_a_full_queue_is_told_to_who_will_not_wait(nursery: trio.Nursery, path: Path) -> None:
    """While nobody reads, EAGAIN; once somebody does, everything that was taken arrives."""
    door = OpenDoor(path)
    await nursery.start(receive_beats, door.settings(), door.admission, Pulse("beats", 0))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sent = filled(sock, path)
    received = 0
    while received < sent:
        received = (await door.register.next_batch())[-1].beat.sequence
    assert door.register.accepted == sent


async def test_descriptors_that_are_passed_along_are_not_kept(
    door: OpenDoor, sender: Sender
) -> None:
    await sender.ask(beat(1))
    before = set(Path("/proc/self/fd").iterdir())
    for seq in range(2, 12):
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 20))
        sender.socket.sendmsg([beat(seq)], [rights], 0, str(door.path))
        assert (await sender.answer())["accepted"] == 1
    assert set(Path("/proc/self/fd").iterdir()) == before


# --- its life -------------------------------------------------------------------------


async def test_two_doors_do_not_share_a_path(door: OpenDoor) -> None:
    with pytest.raises(BeatSocketError, match="somebody listens there"):
        await receive_beats(door.settings(), door.admission, Pulse("beats", 0))


async def test_the_socket_goes_when_the_door_is_closed(path: Path) -> None:
    door = OpenDoor(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(receive_beats, door.settings(), door.admission, Pulse("beats", 0))
        assert path.is_socket()
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_an_idle_door_owes_the_watchdog_nothing(nursery: trio.Nursery, path: Path) -> None:
    door, pulse = OpenDoor(path), Pulse("beats", 0)
    await nursery.start(receive_beats, door.settings(), door.admission, pulse)
    await trio.testing.wait_all_tasks_blocked()
    assert pulse.idle


async def test_a_flood_leaves_the_others_their_turns(nursery: trio.Nursery, path: Path) -> None:
    """However full the queue is, the door reads its share, and then everybody has a turn."""
    door = OpenDoor(path)
    settings = door.settings(burst=1)
    await nursery.start(receive_beats, settings, door.admission, Pulse("beats", 0))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sent = filled(sock, path)
    assert sent > 5
    seen = [0]
    while seen[-1] < sent:
        await trio.lowlevel.checkpoint()
        seen.append(door.register.accepted)
    assert max(after - before for before, after in itertools.pairwise(seen)) <= 2
