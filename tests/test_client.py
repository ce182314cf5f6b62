"""The client as an agent uses it: against real doors, and against none."""

import ast
import functools
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.adapters.beats.conftest import OpenDoor
from tests.adapters.transcripts.laws import read_whole, sample_of
from tests.api.conftest import Side

import custosd.client
from custosd.adapters.beats.socket import receive_beats
from custosd.adapters.channels.inbox import InboxChannel, InboxSettings
from custosd.adapters.memory_coordination import MemoryCoordination
from custosd.adapters.transcripts.registry import recognise
from custosd.api.listening import ApiAddress
from custosd.api.serving import ApiLimits, serve_api
from custosd.client import BeatRefused, Client, ClientError, Letter, NotDelivered
from custosd.core import steering
from custosd.core.agents import AgentId
from custosd.core.beats import Beat, BeatStatus, WaitKind
from custosd.core.tokens import presented
from custosd.core.transcript import Acted, Asked, Opened, Result
from custosd.core.verdicts import SteeringKind
from custosd.flow.pulse import Pulse

LONG_S = 20.0
"""More than any answer of a door takes, and less than the test's own limit."""


@pytest.fixture
async def door(nursery: trio.Nursery, tmp_path: Path) -> OpenDoor:
    opened = OpenDoor(tmp_path / "run" / "beats.sock")
    await nursery.start(receive_beats, opened.settings(), opened.admission, Pulse("beats", 0))
    return opened


@pytest.fixture
async def side(nursery: trio.Nursery) -> Side:
    side = Side()
    address = ApiAddress("127.0.0.1:0")
    [side.url] = await nursery.start(serve_api, address, side.ports(), ApiLimits(), side.stop)
    return side


def client_of(door: OpenDoor, **more: Any) -> Client:
    given = {"agent": "ada", "socket": str(door.path), "timeout_s": LONG_S, "environ": {}}
    return Client(**given | more)


async def done(work: Callable[..., Any], *args: Any, **more: Any) -> Any:
    return await trio.to_thread.run_sync(functools.partial(work, *args, **more))


async def heard(door: OpenDoor) -> Beat:
    """The next beat; one at a time is sent here."""
    [received] = await door.register.next_batch()
    return received.beat


# --- beats ----------------------------------------------------------------------------


async def test_a_beat_says_what_is_given_and_what_was_said_last(door: OpenDoor) -> None:
    client = client_of(door, epoch=3)
    metrics = {"tokens": 7, "odd": float("nan"), "": 1, "text": "x"}
    assert await done(client.beat, "monitoring", "abc", "T-1", metrics)
    first = await heard(door)
    assert (first.agent, first.epoch, first.pid) == ("ada", 3, os.getpid())
    assert (first.status, first.progress, first.task) == (BeatStatus.MONITORING, "abc", "T-1")
    assert first.metrics == {"tokens": 7.0}
    assert await done(client.beat, progress="abd")
    second = await heard(door)
    assert (second.status, second.progress, second.task) == (BeatStatus.MONITORING, "abd", "T-1")


async def test_text_that_no_beat_may_hold_costs_no_beat(door: OpenDoor) -> None:
    client = client_of(door, strict=True)
    assert await done(client.beat, progress="line\n\x1b[2J\ud800" + "x" * 500, task="\0")
    assert len((await heard(door)).progress) == 200


async def test_everything_comes_from_the_environment(door: OpenDoor, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("cust_a_secret\n")
    environ = {
        "CUSTOSD_AGENT": "ada",
        "CUSTOSD_EPOCH": "5",
        "CUSTOSD_SOCKET": str(door.path),
        "CUSTOSD_TOKEN_FILE": str(tmp_path / "token"),
    }
    client = Client(environ=environ, strict=True, timeout_s=LONG_S)
    assert await done(client.beat)
    beat = await heard(door)
    assert (beat.agent, beat.epoch) == ("ada", 5)


async def test_a_wait_is_declared_for_as_long_as_it_lasts(door: OpenDoor) -> None:
    client = client_of(door)

    def work() -> None:
        with client.waiting("human", 600):
            trio.from_thread.run(expect, WaitKind.HUMAN, 600.0)
            with client.waiting("rate_limit", 10**9):
                trio.from_thread.run(expect, WaitKind.RATE_LIMIT, 24 * 3600.0)
            trio.from_thread.run(expect, WaitKind.HUMAN, 600.0)
        trio.from_thread.run(expect, None, 0.0)

    async def expect(kind: WaitKind | None, expected_s: float) -> None:
        beat = await heard(door)
        if kind is None:
            assert (beat.status, beat.wait) == (BeatStatus.RUNNING, None)
            return
        assert beat.status is BeatStatus.WAITING
        assert beat.wait is not None
        assert beat.wait.kind is kind
        assert expected_s - LONG_S < beat.wait.expected_s <= expected_s

    await done(work)


async def test_a_thread_beats_until_the_block_ends(door: OpenDoor) -> None:
    """It beats at once and again, says its interval, and stops."""
    client = client_of(door)
    before = threading.active_count()

    def work() -> None:
        with client.beating(0.02):
            for _ in range(3):
                assert trio.from_thread.run(heard, door).interval_s == 0.02

    await done(work)
    assert client._interval_s is None
    assert not [one for one in threading.enumerate() if one.name == "custosd-beats"]
    assert threading.active_count() <= before + 1  # trio keeps the worker for a while
    assert client.failures == 0


async def test_after_the_end_of_work_no_beat_is_sent_by_itself(door: OpenDoor) -> None:
    client = client_of(door)

    def work() -> None:
        with client.beating(3600):
            trio.from_thread.run(heard, door)
            assert client.finished()

    await done(work)
    assert (await heard(door)).status is BeatStatus.FINISHED


def test_a_sequence_grows_over_restarts_and_beside_other_senders() -> None:
    at = itertools.count(1_000)
    one, two = (
        Client("ada", socket="/nonexistent", environ={}, now_s=lambda: float(next(at)))
        for _ in range(2)
    )
    turns = [client._form(None, None)["seq"] for client in (one, two, one, two)]
    assert turns == [1_000_000_000, 1_001_000_000, 1_002_000_000, 1_003_000_000]
    stands = Client("ada", socket="/nonexistent", environ={}, now_s=lambda: 1.0)
    assert [stands._form(None, None)["seq"] for _ in range(3)] == [1_000_000, 1_000_001, 1_000_002]


async def test_a_strict_client_hears_why_it_was_refused(door: OpenDoor) -> None:
    newer = client_of(door, epoch=1, strict=True)
    older = client_of(door, epoch=0, strict=True)
    assert await done(newer.beat)
    with pytest.raises(BeatRefused, match="replaced by a newer one") as caught:
        await done(older.beat)
    assert caught.value.why == "old_epoch"


async def test_a_lenient_client_learns_at_its_next_beat_that_it_was_refused(
    door: OpenDoor,
) -> None:
    newer, older = client_of(door, epoch=1, strict=True), client_of(door)
    assert await done(newer.beat)
    assert await done(older.beat)
    assert await done(newer.beat)  # whatever was sent before this has been looked at now
    assert not await done(older.beat)
    assert (older.failures, older.trouble[:9]) == (1, "old_epoch")


async def test_a_beat_goes_to_the_daemon_that_came_back(tmp_path: Path) -> None:
    door = OpenDoor(tmp_path / "run" / "beats.sock")
    client = client_of(door, strict=True)
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            settings, pulse = door.settings(), Pulse("beats", 0)
            await nursery.start(receive_beats, settings, door.admission, pulse)
            assert await done(client.beat)
            nursery.cancel_scope.cancel()
        with pytest.raises(NotDelivered):
            await done(client.beat)


def test_without_a_daemon_nothing_is_raised_and_nothing_waits(tmp_path: Path) -> None:
    for way in ({"socket": str(tmp_path / "none")}, {"url": "http://127.0.0.1:9"}):
        client = Client("ada", environ={}, timeout_s=LONG_S, **way)  # type: ignore[arg-type]
        with client.waiting("human", 1), client.beating(3600):
            assert not client.beat()
        assert not client.finished()
        assert client.failures >= 4
        assert client.trouble
    nameless = Client(environ={"CUSTOSD_SOCKET": str(tmp_path / "none")})
    assert not nameless.beat()
    assert "CUSTOSD_AGENT" in nameless.trouble


@pytest.fixture
def deaf(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A daemon that hangs: a full queue, and a port that never answers."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as queue,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as filler,
        socket.create_server(("127.0.0.1", 0)) as port,
    ):
        queue.bind(str(tmp_path / "deaf"))
        for _ in range(100_000):
            try:
                filler.sendto(b"x", str(tmp_path / "deaf"))
            except BlockingIOError:
                break
        yield {
            "socket": str(tmp_path / "deaf"),
            "url": f"http://127.0.0.1:{port.getsockname()[1]}",
        }


@pytest.mark.parametrize("way", ["socket", "url"])
def test_a_daemon_that_hangs_costs_no_more_than_the_timeout(deaf: dict[str, str], way: str) -> None:
    client = Client("ada", environ={}, timeout_s=0.02, strict=True, **{way: deaf[way]})  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(NotDelivered):
            client.beat()


async def test_a_late_answer_is_not_taken_for_that_to_another_beat(tmp_path: Path) -> None:
    """The first beat is answered after its time: with a refusal, and nobody hears it."""
    path = tmp_path / "late"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(path))
        client = Client("ada", socket=str(path), environ={}, timeout_s=0.02, strict=True)
        with pytest.raises(NotDelivered):
            client.beat()
        _, first = daemon.recvfrom(65_536)
        refusal = {"accepted": 0, "refused": [{"why": "old_epoch", "detail": ""}]}
        with pytest.raises(ConnectionRefusedError):
            daemon.sendto(json.dumps(refusal).encode(), first)


async def test_a_child_after_a_fork_has_a_line_of_its_own(door: OpenDoor) -> None:
    words = (
        "import os\n"
        "from custosd.client import Client\n"
        f"client = Client('ada', socket={str(door.path)!r}, timeout_s={LONG_S}, strict=True)\n"
        "assert client.beat()\n"
        "before = client._way._socket.getsockname()\n"
        "pid = os.fork()\n"
        "assert pid == 0 or os.waitpid(pid, 0)[1] == 0\n"
        "assert client.beat()\n"
        "assert (client._way._socket.getsockname() == before) is (pid != 0)\n"
    )
    await trio.run_process([sys.executable, "-c", words])


# --- over HTTP ------------------------------------------------------------------------


async def test_beats_go_over_http_with_a_token(side: Side) -> None:
    client = Client("ada", 0, url=side.url, token="cust_ada_secret-ada", environ={})
    client.timeout_s = LONG_S
    assert await done(client.beat, "idle")
    [received] = await side.register.next_batch()
    assert (received.beat.status, received.door) == (BeatStatus.IDLE, "http")


async def test_over_http_a_refusal_has_its_reason_too(side: Side) -> None:
    for token, why in (("", "forged"), ("cust_ada_wrong", "forged")):
        client = Client("ada", url=f"{side.url}/", token=token, environ={}, strict=True)
        client.timeout_s = LONG_S
        with pytest.raises(BeatRefused) as caught:
            await done(client.beat)
        assert caught.value.why == why
    elsewhere = Client("ada", url=f"{side.url}/elsewhere", environ={}, strict=True)
    elsewhere.timeout_s = LONG_S
    with pytest.raises(BeatRefused, match="404"):
        await done(elsewhere.beat)


@pytest.mark.parametrize("url", ["ftp://x", "nonsense", "http://", "http://[", "http://x:y"])
def test_an_address_that_is_none_is_told(url: str) -> None:
    client = Client("ada", url=url, environ={}, timeout_s=LONG_S)
    assert not client.beat()
    assert client.trouble


# --- the transcript -------------------------------------------------------------------


def events_in(path: Path) -> list[Any]:
    fmt = recognise(sample_of(path))
    assert fmt is not None
    assert fmt.name == "custosd"
    return list(read_whole(fmt, path.read_bytes()))


def test_steps_are_read_as_they_were_reported(tmp_path: Path) -> None:
    path = tmp_path / "ada.jsonl"
    client = Client("ada", 2, environ={"CUSTOSD_TRANSCRIPT": str(path)}, strict=True)
    assert client.report_goal("Make the build green", model="m-1")
    assert client.report_step("make test", "2 failed \ud800", exit_code=2, kind="test")
    assert client.report("say", text="I will fix it")
    opened, asked, acted, _said = events_in(path)
    assert isinstance(opened, Opened)
    assert (opened.agent, opened.model, opened.cwd) == ("ada", "m-1", os.getcwd())  # noqa: PTH109
    assert asked == Asked("", "Make the build green", opened.at_utc)
    assert isinstance(acted, Acted)
    assert (acted.step.exit_code, acted.step.result) == (2, Result.ERROR)


def test_a_new_incarnation_opens_a_new_session_below_the_last_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "ada.jsonl"
    environ = {"CUSTOSD_TRANSCRIPT": str(path)}
    for epoch in (1, 2):
        assert Client("ada", epoch, environ=environ).report_step("ls", ok=True)
        with path.open("ab") as file:
            file.write(b'{"type":"step","action":"cut o')
    lines = path.read_bytes().split(b"\n")
    sessions = [json.loads(line)["session"] for line in lines if line.startswith(b'{"custosd"')]
    assert len(set(sessions)) == 2
    assert [json.loads(line)["action"] for line in lines if b'"ok"' in line] == ["ls", "ls"]


def test_a_transcript_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "no" / "folder", tmp_path, ""):
        client = Client("ada", environ={"CUSTOSD_TRANSCRIPT": str(path)})
        assert not client.report_step("ls")
        assert client.failures == 1


# --- from the supervisor --------------------------------------------------------------


def test_the_hand_over_is_read_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "handover.json"
    client = Client("ada", environ={"CUSTOSD_HANDOVER": str(path)})
    assert client.handover() == {}
    path.write_text('{"cause": "crash", "constraints": ["no force push"]}')
    assert client.handover()["constraints"] == ["no force push"]
    for text in ("[]", "{", '"x"', " " * 2_000_000):
        path.write_text(text)
        assert client.handover() == {}
    assert client.failures == 5
    assert Client("ada", environ={}).handover() == {}


def letter(name: str, **more: Any) -> steering.Letter:
    given = {
        "id": name,
        "agent": AgentId("ada"),
        "epoch": 2,
        "kind": SteeringKind.GUIDANCE,
        "text": f"text of {name}",
        "expires_utc": datetime.now(UTC) + timedelta(hours=1),
    }
    return steering.Letter(**given | more)


async def test_a_letter_is_claimed_once_and_its_acknowledgement_arrives(tmp_path: Path) -> None:
    channel = InboxChannel(InboxSettings(tmp_path / "inbox"))
    for name in ("i-1", "i-2"):
        await channel.deliver(letter(name))
    one, two = (
        Client("ada", environ={"CUSTOSD_INBOX": str(tmp_path / "inbox")}, strict=True)
        for _ in range(2)
    )
    [first] = one.claim(most=1)
    [second] = two.claim()
    assert (first.id, first.text, first.kind, first.epoch) == (
        "i-1",
        "text of i-1",
        "guidance",
        2,
    )
    assert second.id == "i-2"
    assert one.claim() == []
    assert one.acknowledge(first, "done\nso")
    [receipt] = await channel.receipts(["i-1", "i-2"])
    assert (receipt.id, receipt.delivery) == ("i-1", steering.Delivery.ACKNOWLEDGED)
    told = json.loads((tmp_path / "inbox/done/i-1.json").read_text())
    assert (told["id"], told["note"]) == ("i-1", "done so")
    assert [path.name for path in (tmp_path / "inbox/claimed").iterdir()] == ["i-2.json"]
    assert list((tmp_path / "inbox/tmp").iterdir()) == []


async def test_of_many_claimers_each_letter_has_one(tmp_path: Path) -> None:
    channel = InboxChannel(InboxSettings(tmp_path / "inbox"))
    names = {f"i-{n}" for n in range(30)}
    for name in sorted(names):
        await channel.deliver(letter(name))
    environ = {"CUSTOSD_INBOX": str(tmp_path / "inbox")}
    claimed: list[Letter] = []

    async def claim() -> None:
        claimed.extend(await done(Client("ada", environ=environ).claim, 30))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(claim)
    assert sorted(one.id for one in claimed) == sorted(names)


async def test_what_is_no_letter_or_has_run_out_is_not_handed_on(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    channel = InboxChannel(InboxSettings(inbox), lambda: datetime(2020, 1, 1, tzinfo=UTC))
    await channel.deliver(letter("old", expires_utc=datetime(2021, 1, 1, tzinfo=UTC)))
    (inbox / "new/garbled.json").write_text("{")
    (inbox / "new/list.json").write_text("[]")
    (inbox / "new/other.txt").write_text("x")
    os.mkfifo(inbox / "new/pipe.json")
    client = Client("ada", environ={"CUSTOSD_INBOX": str(inbox)})
    assert client.claim() == []
    shutil.rmtree(inbox)
    assert client.claim() == []
    assert client.failures == 0


def test_an_acknowledgement_leaves_its_inbox_in_no_case(tmp_path: Path) -> None:
    client = Client("ada", environ={"CUSTOSD_INBOX": str(tmp_path)}, strict=True)
    for name in ("../x", "..", "", "a/b", "/etc/passwd"):
        with pytest.raises(ClientError, match="no letter"):
            client.acknowledge(Letter(name, "", "", 0, ""))


# --- what it is made of ---------------------------------------------------------------


def test_it_imports_the_standard_library_alone() -> None:
    tree = ast.parse(Path(custosd.client.__file__).read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    assert names <= sys.stdlib_module_names


def test_it_runs_on_the_oldest_python_that_is_here(tmp_path: Path) -> None:
    """3.9 is what it is written for; whichever of these is installed shows it."""
    found = [f"python3.{minor}" for minor in range(9, 14) if shutil.which(f"python3.{minor}")]
    shutil.copy(custosd.client.__file__, tmp_path / "alone.py")
    words = "import alone; c = alone.Client('a', socket='/nonexistent'); print(c.beat())"
    for name in found or [sys.executable]:
        run = subprocess.run(
            [name, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {words}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if "pyenv" in run.stderr:
            continue  # a shim without a version behind it
        assert run.stdout == "False\n", run.stderr


# Beside other agents


@pytest.fixture
async def coordinating(nursery: trio.Nursery) -> Side:
    side = Side(coordination=MemoryCoordination())
    address = ApiAddress("127.0.0.1:0")
    [side.url] = await nursery.start(serve_api, address, side.ports(), ApiLimits(), side.stop)
    return side


def asking(side: Side, agent: str, **more: Any) -> Client:
    token = presented("all", "secret-all")
    given = {"agent": agent, "url": side.url, "token": token, "timeout_s": LONG_S, "environ": {}}
    return Client(**given | more)


async def test_a_second_client_is_told_who_holds_the_work(coordinating: Side) -> None:
    ada, bob = asking(coordinating, "ada"), asking(coordinating, "bob")
    mine = await done(ada.claim_work, ["src/"], "Fix the parser")
    assert mine.id
    theirs = await done(bob.claim_work, ["src/parser.py"])
    assert (theirs.id, theirs.held_by) == ("", ("ada",))
    assert theirs.held[0]["goal"] == "Fix the parser"
    assert (bob.failures, bob.trouble) == (0, "")
    assert await done(ada.release_work, mine)
    assert (await done(bob.claim_work, ["src/parser.py"])).id


async def test_a_claim_that_cannot_be_made_harms_nothing(coordinating: Side) -> None:
    ada = asking(coordinating, "ada")
    assert await done(ada.claim_work) is None
    assert "neither files nor a goal" in ada.trouble
    assert not await done(ada.release_work, "unknown")
    nowhere = asking(coordinating, "ada", url="http://127.0.0.1:1")
    assert await done(nowhere.claim_work, ["a.py"]) is None
    assert nowhere.failures == 1
    by_socket = Client("ada", socket="/nonexistent/beats.sock", environ={})
    assert by_socket.claim_work(["a.py"]) is None
    assert "set CUSTOSD_URL" in by_socket.trouble
    with pytest.raises(ClientError):
        await done(asking(coordinating, "ada", strict=True).claim_work)
