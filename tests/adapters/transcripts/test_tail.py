import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.adapters.transcripts.tiny_formats import TINY_FORMATS, recognise

from custosd.adapters.transcripts.cursor import Cursor, decode_cursor, encode_cursor
from custosd.adapters.transcripts.incident import IncidentKind, quoted
from custosd.adapters.transcripts.limits import ReadLimits
from custosd.adapters.transcripts.tail import Formats, Reading, read_growth, read_whole
from custosd.core.transcript import Asked, Ended, Opened, Said, TranscriptEvent, Unread

LIMITS = ReadLimits(
    read_chunk_bytes=64, max_line_bytes=200, backfill_bytes=1 << 20, head_bytes=1 << 12
)


@dataclass
class Follower:
    """Reads a file to its present end, from its cursor as it would be stored."""

    path: Path
    limits: ReadLimits = LIMITS
    stored: bytes = b""
    rewinds: int = 0

    def __post_init__(self) -> None:
        self.incidents: list[str] = []
        self.events: list[TranscriptEvent] = []

    @property
    def cursor(self) -> Cursor:
        cursor = decode_cursor(self.stored)
        assert cursor is not None
        return cursor

    def step(self) -> Reading:
        before = decode_cursor(self.stored) if self.stored else None
        reading = read_growth(before, str(self.path), TINY_FORMATS, self.limits, None)
        self.stored = encode_cursor(reading.cursor)
        if reading.rewound:
            self.events.clear()
            self.rewinds += 1
        self.events += reading.events
        self.incidents += [i.kind for i in reading.incidents]
        return reading

    def read(self) -> list[TranscriptEvent]:
        """The new events."""
        had = len(self.events)
        while self.step().more:
            pass
        return self.events[had:]


@pytest.fixture
def follower(tmp_path: Path) -> Follower:
    return Follower(tmp_path / "a.jsonl")


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_only_what_is_new_is_told(follower: Follower) -> None:
    append(follower.path, b"{open s}\n{say a}\n")
    assert follower.read() == [Opened("", "s"), Said("", "1 a")]
    assert follower.read() == []
    append(follower.path, b"{say b}\n")
    assert follower.read() == [Said("", "2 b")]
    assert follower.incidents == []
    assert follower.cursor.session == "s"
    assert follower.cursor.line == 3


def test_half_a_line_waits_for_its_rest(follower: Follower) -> None:
    append(follower.path, b"{open s}\n{say ")
    assert follower.read() == [Opened("", "s")]
    append(follower.path, b"a}")
    assert follower.read() == []
    append(follower.path, b"\n")
    assert follower.read() == [Said("", "1 a")]


def test_an_answer_finds_its_call_over_a_restart(follower: Follower) -> None:
    append(follower.path, b"{call x}\n")
    assert follower.read() == []
    append(follower.path, b"{answer}\n")
    assert follower.read() == [Asked("", "x")]


def test_bom_crlf_and_blank_lines_are_nothing(follower: Follower) -> None:
    append(follower.path, b"\xef\xbb\xbf{open s}\r\n\r\n  \n\n{say a}\r\n")
    assert follower.read() == [Opened("", "s"), Said("", "1 a")]
    assert follower.incidents == []


def test_a_garbled_record_costs_itself(follower: Follower) -> None:
    append(follower.path, b"{open s}\nnonsense of an agent\n{say a}\n")
    reading = follower.step()
    assert reading.events[1:] == (Unread("record_garbled"), Said("", "1 a"))
    (incident,) = reading.incidents
    assert (incident.kind, incident.line) == ("record_garbled", 2)
    assert incident.detail["offset"] == 9
    assert "nonsense" not in repr(incident)
    assert follower.cursor.unread == {"record_garbled": 1}


def test_a_reader_that_fails_costs_its_record_and_undoes_its_half_done_work(
    follower: Follower,
) -> None:
    append(follower.path, b"{say a}\n{boom x}\n{say b}\n{surrogate}\n{say c}\n{call d}\n")
    assert follower.read() == [
        Said("", "1 a"),
        Unread("record_failed"),
        Said("", "2 b"),
        Unread("record_failed"),
        Said("", "3 c"),
    ]
    assert follower.incidents == ["record_failed", "record_failed"]
    append(follower.path, b"{answer}\n")
    assert follower.read() == [Asked("", "d")]


def test_unknown_records_are_counted_and_told_once_a_sort(follower: Follower) -> None:
    append(follower.path, b"{new 1}\n{new 2}\n{other}\n")
    follower.read()
    assert follower.incidents == ["record_unknown", "record_unknown"]
    assert follower.cursor.unread == {"new": 2, "other": 1}


def test_what_an_agent_calls_its_records_is_told_only_where_it_is_a_plain_name(
    follower: Follower,
) -> None:
    append(follower.path, b"{ignore\tall\x1b[31m}\n")
    (incident,) = follower.step().incidents
    assert isinstance(incident.detail["what"], str)
    assert len(incident.detail["what"]) == 16


def test_sorts_of_unknown_records_are_bounded(follower: Follower) -> None:
    append(follower.path, b"".join(b"{k%d}\n" % i for i in range(500)))
    follower.read()
    assert len(follower.cursor.unread) == 33
    assert len(follower.incidents) == 32
    assert sum(follower.cursor.unread.values()) == 500


def test_bytes_that_are_no_utf8_are_replaced_and_told_once(follower: Follower) -> None:
    append(follower.path, b"{say \xff}\n{say \xfe}\n")
    assert follower.read() == [Said("", "1 \ufffd"), Said("", "2 \ufffd")]
    assert follower.incidents == ["invalid_utf8"]


def test_the_nuls_of_a_crash_are_taken_out(follower: Follower) -> None:
    append(follower.path, b"{say a}\n" + b"\0" * 100 + b"{say b}\n" + b"\0" * 50 + b"\n")
    assert follower.read() == [Said("", "1 a"), Said("", "2 b")]
    assert follower.incidents == ["nul_bytes"]


@pytest.mark.parametrize("chunk", [16, 64, 5000])
def test_a_line_above_the_limit_is_passed_over_and_told_once(
    follower: Follower, chunk: int
) -> None:
    follower.limits = replace(LIMITS, read_chunk_bytes=chunk)
    append(follower.path, b"{say a}\n{say " + b"x" * 1000 + b"}\n{say b}\n")
    texts = [e for e in follower.read() if isinstance(e, Said)]
    assert texts == [Said("", "1 a"), Said("", "2 b")]
    assert follower.incidents == ["line_too_long"]
    assert follower.cursor.line == 3


def test_an_endless_line_is_told_once_and_never_kept(follower: Follower) -> None:
    append(follower.path, b"{say a}\n")
    follower.read()
    for _ in range(20):
        append(follower.path, b"x" * 300)
        assert [e for e in follower.read() if isinstance(e, Said)] == []
        assert len(follower.stored) < 400
        assert follower.cursor.scanned <= LIMITS.max_line_bytes
    append(follower.path, b"\n{say b}\n")
    assert follower.read() == [Said("", "2 b")]
    assert follower.incidents == ["line_too_long"]


@pytest.fixture
def count_reads() -> Iterator[list[int]]:
    """The sizes of all reads."""
    sizes: list[int] = []
    original = os.pread

    def counting(fd: int, size: int, offset: int) -> bytes:
        data = original(fd, size, offset)
        sizes.append(len(data))
        return data

    os.pread = counting
    yield sizes
    os.pread = original


def test_a_slow_writer_of_a_long_line_does_not_make_us_read_it_again(
    follower: Follower, count_reads: list[int]
) -> None:
    follower.limits = ReadLimits(max_line_bytes=1 << 20)
    append(follower.path, b"{open s}\n{say ")
    follower.read()
    for _ in range(200):
        append(follower.path, b"x" * 1000)
        follower.read()
    append(follower.path, b"}\n")
    assert len(follower.read()) == 1
    assert sum(count_reads) < 3 * follower.path.stat().st_size  # not 100 times


def test_a_file_of_two_gigabytes_costs_its_tail(follower: Follower, count_reads: list[int]) -> None:
    follower.limits = ReadLimits()
    append(follower.path, b"{open s}\n")
    with follower.path.open("ab") as file:
        file.truncate(2 << 30)
    append(follower.path, b"\n{say a}\n")
    follower.read()
    count_reads.clear()
    append(follower.path, b"{say b}\n")
    assert follower.read() == [Said("", "2 b")]
    assert sum(count_reads) < 10_000
    assert follower.rewinds == 0


def test_a_large_file_met_first_gives_its_head_and_its_tail(follower: Follower) -> None:
    follower.limits = ReadLimits(
        read_chunk_bytes=1000, max_line_bytes=200, backfill_bytes=5_000, head_bytes=2_000
    )
    append(follower.path, b"{open s}\n" + b"".join(b"{say %06d}\n" % i for i in range(10_000)))
    size = follower.path.stat().st_size
    words = [e.text.split()[1] for e in follower.read() if isinstance(e, Said)]
    assert words[0] == "000000"
    assert words[-1] == "009999"
    assert follower.incidents == ["skipped"]
    assert len(words) * 13 <= 2_000 + 5_000
    skipped = size - len(words) * 13 - 9
    assert 0 <= skipped - (size - 7_000) < 50
    jump = next(
        b - a for a, b in zip(map(int, words), map(int, words[1:]), strict=False) if b > a + 1
    )
    assert jump - 1 == skipped / 13  # nothing but whole lines was left out, and one gap
    append(follower.path, b"{say end}\n")
    assert len(follower.read()) == 1


def test_a_jump_to_the_start_of_a_line_keeps_that_line(follower: Follower) -> None:
    lines = [b"{say %03d}\n" % i for i in range(100)]  # 10 bytes each
    follower.limits = ReadLimits(
        read_chunk_bytes=1000, max_line_bytes=200, backfill_bytes=100, head_bytes=50
    )
    append(follower.path, b"".join(lines))
    words = [e.text.split()[1] for e in follower.read() if isinstance(e, Said)]
    assert words == [f"{i:03}" for i in [*range(5), *range(90, 100)]]


def test_a_truncated_file_is_told_anew(follower: Follower) -> None:
    append(follower.path, b"{open s}\n{say a}\n{say b}\n")
    follower.read()
    follower.path.write_bytes(b"{open s}\n{say c}\n")
    follower.read()
    assert follower.events == [Opened("", "s"), Said("", "1 c")]
    assert follower.rewinds == 1
    assert follower.incidents == ["truncated"]


def test_a_file_cut_to_nothing_and_written_again_is_told_anew(follower: Follower) -> None:
    append(follower.path, b"{open s}\n{say a}\n{say b}\n")
    follower.read()
    follower.path.write_bytes(b"")
    follower.read()
    append(follower.path, b"{open t}\n{say a}\n{say b}\n{say c}\n")
    follower.read()
    assert follower.events[0] == Opened("", "t")
    assert len(follower.events) == 4
    assert follower.rewinds == 2


def test_another_file_at_the_same_path_is_told_anew(follower: Follower, tmp_path: Path) -> None:
    append(follower.path, b"{open s}\n{say a}\n")
    follower.read()
    other = tmp_path / "other"
    other.write_bytes(b"{open t}\n{say x}\n{say y}\n")
    other.rename(follower.path)
    follower.read()
    assert follower.events[0] == Opened("", "t")
    assert len(follower.events) == 3
    assert follower.incidents == ["replaced"]


def test_a_file_rewritten_in_place_behind_an_equal_head_is_told_anew(follower: Follower) -> None:
    head = b"".join(b"{say %04d}\n" % i for i in range(500))
    follower.path.write_bytes(head + b"{say old}\n")
    follower.read()
    follower.path.write_bytes(head + b"{say new}\n{say more}\n")
    follower.read()
    assert follower.incidents == ["replaced"]
    assert len(follower.events) == 502


def test_a_file_replaced_by_a_longer_copy_of_itself_goes_on(
    follower: Follower, tmp_path: Path
) -> None:
    append(follower.path, b"{open s}\n{say a}\n")
    follower.read()
    other = tmp_path / "other"
    other.write_bytes(follower.path.read_bytes() + b"{say b}\n")
    other.rename(follower.path)
    assert follower.read() == [Said("", "2 b")]
    assert follower.incidents == []


def test_an_unfinished_line_taken_back_is_no_rewind(follower: Follower) -> None:
    append(follower.path, b"{open s}\n{say abcdef")
    follower.read()
    os.truncate(follower.path, 9)
    append(follower.path, b"{say b}\n")
    assert follower.read() == [Said("", "1 b")]
    assert follower.rewinds == 0


def test_a_file_that_vanishes_is_told_once_and_again_when_it_came_back(
    follower: Follower,
) -> None:
    append(follower.path, b"{open s}\n")
    follower.read()
    follower.path.unlink()
    assert follower.step().present is False
    follower.step()
    assert follower.incidents == ["vanished"]
    append(follower.path, b"{open s}\n{say a}\n")
    assert follower.read() == [Said("", "1 a")]
    follower.path.unlink()
    follower.step()
    assert follower.incidents == ["vanished", "vanished"]


def test_pipes_sockets_devices_and_folders_are_refused_unopened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path in [*(tmp_path / n for n in ("fifo", "folder", "socket")), Path("/dev/tty")]:
            reading = read_growth(None, str(path), TINY_FORMATS, LIMITS)
            assert [i.kind for i in reading.incidents] == ["not_a_file"]
            again = read_growth(reading.cursor, str(path), TINY_FORMATS, LIMITS)
            assert again.incidents == ()


def test_no_link_leads_out_of_the_root(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.jsonl").write_bytes(b"{say secret}\n")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link.jsonl").symlink_to(outside / "secret.jsonl")
    (root / "way").symlink_to(outside)
    for path in (root / "link.jsonl", root / "way" / "secret.jsonl"):
        reading = read_growth(None, str(path), TINY_FORMATS, LIMITS, str(root))
        assert [i.kind for i in reading.incidents] == ["link_refused"]
        assert reading.events == ()


def test_a_path_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    reading = read_growth(None, "/" + "x" * 1100, TINY_FORMATS, LIMITS)
    assert [i.kind for i in reading.incidents] == ["path_too_long"]


def test_a_file_that_may_not_be_read_is_told_and_read_later(tmp_path: Path) -> None:
    """Root may read all, so this runs as nobody in a process of its own."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{say a}\n")
    path.chmod(0)
    tmp_path.chmod(0o755)
    code = (
        "import os, sys\n"
        "from custosd.adapters.transcripts.tail import read_growth\n"
        "from custosd.adapters.transcripts.limits import ReadLimits\n"
        "from tests.adapters.transcripts.tiny_formats import TINY_FORMATS as F\n"
        "path, L = sys.argv[1], ReadLimits()\n"
        "if os.geteuid() == 0: os.chown(path, 65534, 65534); os.setgid(65534)\n"
        "fd = os.open(os.path.dirname(path), os.O_RDONLY)\n"
        "os.fchdir(fd)\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "path = os.path.basename(path)\n"
        "one = read_growth(None, path, F, L)\n"
        "two = read_growth(one.cursor, path, F, L)\n"
        "os.chmod(path, 0o600)\n"
        "three = read_growth(two.cursor, path, F, L)\n"
        "print(*[i.kind + i.detail['error'] for i in one.incidents], len(two.incidents),"
        " len(three.events), dict(three.cursor.told))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.split("\n")[0] == "unreadableEACCES 0 1 {}"


def test_an_unknown_format_is_told_once_and_tried_again_as_the_file_grows(
    follower: Follower,
) -> None:
    append(follower.path, b"   ")
    follower.read()
    assert follower.incidents == []
    append(follower.path, b"what is this\n")
    follower.read()
    follower.read()
    assert follower.incidents == ["format_unknown"]
    follower.path.write_bytes(b"{say a}\n")
    assert follower.read() == [Said("", "1 a")]


def test_a_state_of_another_version_is_read_anew(follower: Follower) -> None:
    append(follower.path, b"{open s}\n{say a}\n")
    follower.read()
    strange = msgspec.structs.replace(follower.cursor, state=msgspec.msgpack.encode([1, 2]))
    follower.stored = encode_cursor(strange)
    append(follower.path, b"{say b}\n")
    follower.read()
    assert [type(e) for e in follower.events] == [Opened, Said, Said]
    assert follower.rewinds == 1
    assert follower.incidents == ["state_outdated"]


def test_the_same_incident_is_told_a_few_times_a_file_at_most(follower: Follower) -> None:
    append(follower.path, b"{open s}\n" + b"garbled\n" * 1000)
    follower.read()
    assert follower.incidents == ["record_garbled"] * 5
    assert follower.cursor.unread == {"record_garbled": 1000}


def test_a_whole_file_gives_its_last_line_and_what_was_held_back(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{open s}\n{call x}\n{say a}")
    (tmp_path / "link").symlink_to(path)
    for name in ("a.jsonl", "link"):
        events = read_whole(str(tmp_path / name), TINY_FORMATS, LIMITS).events
        assert [type(e) for e in events] == [Opened, Said, Ended]
    path.write_bytes(b'["s", "a"]')
    assert len(read_whole(str(path), TINY_FORMATS, LIMITS).events) == 2
    path.write_bytes(b'["s", "a"')
    assert [i.kind for i in read_whole(str(path), TINY_FORMATS, LIMITS).incidents] == [
        "record_garbled"
    ]
    assert not read_whole(str(tmp_path / "none"), TINY_FORMATS, LIMITS).present


class TestDocument:
    def test_only_what_is_new_is_told(self, follower: Follower) -> None:
        follower.path.write_bytes(b'["s", "a"]')
        assert follower.read() == [Opened("", "s"), Said("", "a")]
        follower.path.write_bytes(b'["s", "a", "b"]')
        assert follower.read() == [Said("", "b")]
        assert follower.rewinds == 0

    def test_a_changed_past_is_a_rewind(self, follower: Follower) -> None:
        follower.path.write_bytes(b'["s", "a", "b"]')
        follower.read()
        follower.path.write_bytes(b'["s", "x"]')
        follower.read()
        assert follower.events == [Opened("", "s"), Said("", "x")]
        assert follower.rewinds == 1

    def test_half_a_document_waits_and_is_told_when_it_stays(self, follower: Follower) -> None:
        follower.path.write_bytes(b'["s", "a"')
        for _ in range(2):
            follower.read()
        assert follower.incidents == []
        for _ in range(3):
            follower.read()
        assert follower.incidents == ["record_garbled"]
        follower.path.write_bytes(b'["s", "a"]')
        assert len(follower.read()) == 2

    def test_one_above_the_limit_is_not_read(self, follower: Follower) -> None:
        follower.limits = replace(LIMITS, backfill_bytes=5)
        follower.path.write_bytes(b'["s", "a"]')
        assert follower.read() == []
        assert follower.incidents == ["document_too_large"]

    @given(st.lists(st.lists(st.sampled_from("abc"), max_size=6), min_size=1, max_size=8))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    def test_after_any_rewritings_what_was_told_is_what_it_says(
        self, tmp_path: Path, versions: list[list[str]]
    ) -> None:
        follower = Follower(tmp_path / f"{random.getrandbits(64):x}")
        for words in versions:
            follower.path.write_bytes(msgspec.json.encode(words))
            follower.read()
            expected = TINY_FORMATS.named("tiny-document")
            assert follower.events == list(expected.read(follower.path.read_bytes()))  # type: ignore[union-attr,call-arg,arg-type]


LINES = st.one_of(
    st.sampled_from(
        [
            b"{say a}\n",
            b"{say \xff}\r\n",
            b"{call x}\n",
            b"{answer}\n",
            b"{boom}\n",
            b"\n",
            b"garbled\n",
            b"{new thing}\n",
            b"{say \0z}\n",
            b"{say " + b"y" * 150 + b"}\n",
            b"{say " + b"y" * 300 + b"}\n",
        ]
    ),
    st.binary(max_size=30),
)


@given(
    st.lists(LINES, max_size=25).map(b"".join),
    st.lists(st.integers(1, 120), min_size=1, max_size=30),
    st.data(),
)
@settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
def test_killed_anywhere_every_event_is_told_once(
    tmp_path: Path, content: bytes, cuts: list[int], data: st.DataObject
) -> None:
    """Appends at any byte, any commit lost or kept, give the events of the whole.

    A reading that is not committed is what kill -9 leaves: it is done again from the
    cursor that was stored before it.
    """
    content = b"{open s}\n" + content
    path = tmp_path / f"{random.getrandbits(64):x}"
    path.write_bytes(content)
    whole = Follower(path, LIMITS)
    whole.read()
    path.write_bytes(b"")
    follower = Follower(path, LIMITS)
    at = 0
    while at < len(content):
        piece = cuts[at % len(cuts)]
        append(path, content[at : at + piece])
        at += piece
        stored, events = follower.stored, list(follower.events)
        follower.step()
        if data.draw(st.booleans()):
            follower.stored, follower.events = stored, events
    follower.read()
    assert _telling(follower.events) == _telling(whole.events)
    assert follower.rewinds == 0


def _telling(events: list[TranscriptEvent]) -> list[TranscriptEvent]:
    """Without lines above the limit: met half-written they are passed over uncounted."""
    return [e for e in events if e != Unread(IncidentKind.LINE_TOO_LONG)]


def test_the_cursor_survives_its_encoding() -> None:
    cursor = Cursor(b"/a\xff", "k", offset=3, told={"vanished": 1}, state=b"\x01")
    assert decode_cursor(encode_cursor(cursor)) == cursor
    assert decode_cursor(b"") is None
    assert decode_cursor(msgspec.msgpack.encode(["cursor-0", 1])) is None


@given(st.text(st.characters(codec=None)), st.text(st.characters(codec=None)))
def test_quoted_paths_are_one_printable_line_and_stay_different(one: str, two: str) -> None:
    assert quoted(one).isprintable()
    quoted(one).encode()
    assert (quoted(one) == quoted(two)) == (one == two)


def test_a_format_known_no_more_is_read_anew(follower: Follower) -> None:
    append(follower.path, b"{open s}\n")
    follower.read()
    formats = Formats(recognise, lambda _: None)
    reading = read_growth(follower.cursor, str(follower.path), formats, LIMITS)
    assert reading.rewound
    assert [i.kind for i in reading.incidents] == ["state_outdated"]
