"""The inbox against a client that keeps its rules, and against owners that keep none."""

import json
import os
import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from tests.contracts.channel_contract import WORDS, ChannelContract, letter

from custosd.adapters.channels import inbox_folder
from custosd.adapters.channels.inbox import InboxChannel, InboxSettings
from custosd.adapters.channels.inbox_folder import InboxFolder, opened
from custosd.core.errors import ChannelError
from custosd.core.steering import Delivery


class Client:
    """An agent's side of an inbox, and a wall clock that can be put forward."""

    def __init__(self, folder: Path, **settings: float) -> None:
        self.folder = folder
        self.ahead = timedelta()
        self.channel = InboxChannel(
            InboxSettings(folder, **settings), lambda: datetime.now(UTC) + self.ahead
        )

    async def arrived(self) -> list[str]:
        files = sorted((self.folder / "new").iterdir(), key=lambda file: file.name)
        return [json.loads(file.read_text())["text"] for file in files]

    def claim(self, name: str = "i-1") -> None:
        (self.folder / f"new/{name}.json").rename(self.folder / f"claimed/{name}.json")

    def acknowledge(self, name: str = "i-1") -> None:
        now = datetime.now(UTC).isoformat()
        done = {"id": name, "acknowledged_utc": now, "note": ""}
        (self.folder / f"done/{name}.json").write_text(json.dumps(done))
        (self.folder / f"claimed/{name}.json").unlink()

    def files(self) -> list[str]:
        return sorted(
            str(file.relative_to(self.folder))
            for file in self.folder.rglob("*")
            if not file.is_dir()
        )


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path / "inbox")


class TestInboxChannel(ChannelContract):
    @pytest.fixture
    def scene(self, client: Client) -> Client:
        return client


async def proofs(client: Client, *names: str) -> list[tuple[str, Delivery]]:
    found = await client.channel.receipts(names or ("i-1",))
    return [(receipt.id, receipt.delivery) for receipt in found]


async def test_a_letter_is_json_that_the_agents_group_can_read(client: Client) -> None:
    before = os.umask(0o077)
    try:
        sent = letter()
        await client.channel.deliver(sent)
    finally:
        os.umask(before)
    file = client.folder / "new/i-1.json"
    told = json.loads(file.read_text())
    assert datetime.fromisoformat(told.pop("expires_utc")) == sent.expires_utc
    assert told == {"id": "i-1", "agent": "ada", "epoch": 3, "kind": "guidance", "text": WORDS}
    assert file.stat().st_mode & 0o777 == 0o640
    assert (client.folder / "claimed").stat().st_mode & 0o777 == 0o770
    assert client.files() == ["new/i-1.json"]


async def test_an_acknowledged_letter_is_proved_and_not_written_again(client: Client) -> None:
    await client.channel.deliver(letter())
    assert await proofs(client) == []
    client.claim()
    assert await proofs(client) == []
    assert (await client.channel.deliver(letter())).proof == "has_it_already"
    client.acknowledge()
    assert await proofs(client) == [("i-1", Delivery.ACKNOWLEDGED)]
    assert (await client.channel.deliver(letter())).delivery is Delivery.ACKNOWLEDGED
    assert client.files() == ["done/i-1.json"]


class Restless(InboxFolder):
    """An inbox whose client moves a letter on after each look at it."""

    def has(self, part: str, letter: str) -> bool:
        found = super().has(part, letter)
        for source, target in (("claimed", "done"), ("new", "claimed")):
            if super().has(source, letter):
                self._move(source, f"{letter}.json", target, f"{letter}.json")
        return found


async def test_a_letter_that_is_read_between_two_looks_is_not_written_again(
    client: Client,
) -> None:
    """It is sent a second time, by a daemon that died before it knew of the first."""
    await client.channel.deliver(letter())
    with opened(client.folder) as folder:
        restless = Restless(folder.folders)
        receipt = client.channel._put(restless, "i-1", b"{}", datetime.now(UTC))
    assert receipt.delivery is Delivery.ACKNOWLEDGED
    assert client.files() == ["done/i-1.json"]


async def test_a_claim_in_vain_is_void_after_its_time(client: Client) -> None:
    await client.channel.deliver(letter())
    client.claim()
    client.ahead = timedelta(seconds=299)
    await proofs(client)
    assert client.files() == ["claimed/i-1.json"]
    client.ahead = timedelta(seconds=301)
    await proofs(client)
    assert client.files() == ["new/i-1.json"]


async def test_a_claim_whose_acknowledgement_was_cut_off_does_not_come_back(
    client: Client,
) -> None:
    """The client died between writing done and removing its claim."""
    await client.channel.deliver(letter())
    client.claim()
    (client.folder / "done/i-1.json").write_text("{}")
    client.ahead = timedelta(seconds=301)
    assert await proofs(client) == [("i-1", Delivery.ACKNOWLEDGED)]
    assert client.files() == ["done/i-1.json"]


async def test_what_has_run_out_is_removed_and_never_written(client: Client) -> None:
    await client.channel.deliver(letter())
    await client.channel.deliver(letter("i-2"))
    client.claim("i-2")
    client.ahead = timedelta(minutes=31)
    with pytest.raises(ChannelError) as caught:
        await client.channel.deliver(letter("i-3"))
    assert (caught.value.reason, caught.value.retry) == ("expired", False)
    await proofs(client)
    assert client.files() == []


async def test_acknowledgements_and_leftovers_are_not_kept_for_ever(client: Client) -> None:
    await client.channel.deliver(letter())
    client.claim()
    client.acknowledge()
    (client.folder / "tmp/i-2.1234").write_text("half a let")
    client.ahead = timedelta(days=6)
    assert await proofs(client) == [("i-1", Delivery.ACKNOWLEDGED)]
    assert client.files() == ["done/i-1.json"]
    client.ahead = timedelta(days=8)
    await proofs(client)
    assert client.files() == []


async def test_a_full_inbox_says_so_until_it_is_emptied_or_runs_out(tmp_path: Path) -> None:
    client = Client(tmp_path / "inbox", depth=3)
    for number in range(3):
        await client.channel.deliver(letter(f"i-{number}"))
    with pytest.raises(ChannelError) as caught:
        await client.channel.deliver(letter("i-3"))
    assert (caught.value.reason, caught.value.retry) == ("inbox_full", True)
    client.claim("i-0")
    await client.channel.deliver(letter("i-3"))
    assert len(await client.arrived()) == 3


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", "a\0b", "x" * 81, "i 1", "ä"])
async def test_an_id_that_is_no_file_name_is_refused(client: Client, name: str) -> None:
    with pytest.raises(ChannelError) as caught:
        await client.channel.deliver(letter(name))
    assert caught.value.reason == "bad_id"
    with pytest.raises(ChannelError):
        await client.channel.receipts([name])
    assert not client.folder.exists()


@pytest.mark.parametrize("part", ["", "new", "tmp", "claimed", "done"])
async def test_a_link_in_place_of_a_folder_is_not_followed(client: Client, part: str) -> None:
    elsewhere = client.folder.parent / "elsewhere"
    elsewhere.mkdir()
    if part:
        client.folder.mkdir()
    (client.folder / part if part else client.folder).symlink_to(elsewhere)
    with pytest.raises(ChannelError) as caught:
        await client.channel.deliver(letter())
    assert (caught.value.reason, caught.value.retry) == ("inbox_refused", False)
    assert "real folders" in str(caught.value)
    assert list(elsewhere.iterdir()) == []


async def test_a_link_in_place_of_a_letter_is_replaced_and_its_target_kept(
    client: Client,
) -> None:
    await client.channel.deliver(letter("i-0"))
    secret = client.folder.parent / "secret"
    secret.write_text("as it was")
    (client.folder / "new/i-1.json").symlink_to(secret)
    await client.channel.deliver(letter())
    assert await client.arrived() == [WORDS, WORDS]
    assert secret.read_text() == "as it was"
    assert not (client.folder / "new/i-1.json").is_symlink()


async def test_what_is_no_file_is_no_acknowledgement(client: Client) -> None:
    """Links, pipes, sockets and folders in done prove nothing, and hold nobody up."""
    for name in ("i-1", "i-2", "i-3", "i-4"):
        await client.channel.deliver(letter(name))
    done = client.folder / "done"
    (done / "i-1.json").symlink_to("/etc/passwd")
    os.mkfifo(done / "i-2.json")
    (done / "i-3.json").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(done / "i-4.json"))
        assert await proofs(client, "i-1", "i-2", "i-3", "i-4") == []


async def test_a_file_that_cannot_be_read_is_an_acknowledgement_all_the_same(
    client: Client,
) -> None:
    """The client's umask is its own; that the file is there is what it says."""
    await client.channel.deliver(letter())
    file = client.folder / "done/i-1.json"
    with file.open("wb") as done:
        done.truncate(1 << 40)
    file.chmod(0)
    assert await proofs(client) == [("i-1", Delivery.ACKNOWLEDGED)]


async def test_strange_things_among_the_letters_stay_and_hold_nobody_up(client: Client) -> None:
    await client.channel.deliver(letter("i-0"))
    new = client.folder / "new"
    os.mkfifo(new / "pipe.json")
    (new / "link.json").symlink_to("/dev/zero")
    (new / "folder.json").mkdir()
    (new / "deep.json").write_text("[" * 200_000)
    (new / "text.json").write_text('{"expires_utc": "99999999999999"}')
    with (new / "huge.json").open("wb") as huge:
        huge.truncate(1 << 40)
    (client.folder / "claimed/old.json").write_text("")
    (new / "old.json").mkdir()
    client.ahead = timedelta(minutes=31)
    assert await proofs(client) == []
    assert not (new / "i-0.json").exists()
    assert (new / "huge.json").exists()


async def test_a_listing_has_an_end(client: Client, tmp_path: Path) -> None:
    await client.channel.deliver(letter())
    for number in range(inbox_folder.LONGEST_LISTING + 50):
        (client.folder / f"done/{number}").touch()
    (client.folder / "done/i-1.json").touch()
    client.ahead = timedelta(days=9)
    await proofs(client, "i-0")
    assert len(list((client.folder / "done").iterdir())) == 51


async def test_a_missing_parent_is_said_with_the_place(tmp_path: Path) -> None:
    client = Client(tmp_path / "no" / "inbox")
    with pytest.raises(ChannelError) as caught:
        await client.channel.deliver(letter())
    assert caught.value.reason == "inbox_refused"
    assert str(client.folder) in str(caught.value)


async def test_letters_written_at_once_are_each_there_once(client: Client) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(client.channel.deliver, letter(f"i-{number % 5}"))
    assert len(await client.arrived()) == 5
    assert not list((client.folder / "tmp").iterdir())


async def test_a_claim_and_its_return_leave_one_letter_to_one_winner(client: Client) -> None:
    """Two claimers and the daemon's own hand at once: the letter is in one place."""
    await client.channel.deliver(letter())
    client.claim()
    client.ahead = timedelta(seconds=400)
    won: list[bool] = []

    def claim() -> None:
        try:
            client.claim()
        except FileNotFoundError:
            won.append(False)
        else:
            won.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(proofs, client)
        for _ in range(2):
            nursery.start_soon(trio.to_thread.run_sync, claim)
    assert sum(won) <= 1
    assert len(client.files()) == 1


async def test_a_file_system_that_hangs_is_given_up(tmp_path: Path) -> None:
    """Its thread stays behind; the agent's next letter finds no thread, and says so in time."""
    client = Client(tmp_path / "inbox", timeout_s=0.05)
    gate = threading.Event()
    errors: list[ChannelError] = []
    try:
        for _ in range(3):
            with pytest.raises(ChannelError) as caught:
                await client.channel._bounded(lambda _: gate.wait(30))
            errors.append(caught.value)
    finally:
        gate.set()
    assert {(error.reason, error.retry) for error in errors} == {("inbox_stuck", True)}
