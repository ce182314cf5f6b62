"""The ends of files that grow, are cut, are rotated, and are written in whatever encoding."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custosd.adapters.workspaces.decoding import BINARY, decoded
from custosd.adapters.workspaces.outputs import TailLimits, end_of
from custosd.core.workspaces import OutputFile

LIMITS = TailLimits(("*",), lines=3, most_bytes=64)


class Reads:
    """`os.pread`, with what happens to the file just before."""

    def __init__(self, *before: object) -> None:
        self._before = list(before)
        self.bytes = 0

    def __call__(self, fd: int, size: int, offset: int) -> bytes:
        if self._before:
            act = self._before.pop(0)
            if callable(act):
                act()
        data = os.pread(fd, size, offset)
        self.bytes += len(data)
        return data


def end(path: Path, reads: Reads | None = None, limits: TailLimits = LIMITS) -> OutputFile:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        return end_of(folder, path.name, limits, read=reads or Reads())
    finally:
        os.close(folder)


def test_of_a_huge_file_only_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write(b"\nthe last\nlines\n" * 8)
    reads = Reads()
    output = end(path, reads)
    assert reads.bytes <= LIMITS.most_bytes + 4
    assert output.size_bytes > 1 << 40
    assert (output.text, output.whole) == ("lines\n\nthe last\nlines"[6:], False)


def test_a_file_that_grows_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one\ntwo\n")

    def grow() -> None:
        with path.open("a") as file:
            file.write("three\n")

    output = end(path, Reads(grow))
    assert (output.text, output.note) == ("one\ntwo", "")


def test_a_file_that_was_cut_in_the_middle_of_it_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old\n" * 10)
    output = end(path, Reads(lambda: path.write_text("new\n")))
    assert (output.text, output.note, output.size_bytes) == ("new", "", 4)


def test_one_that_is_cut_again_and_again_is_shown_and_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old\n" * 10)
    cut = [lambda size=size: os.truncate(path, size) for size in (8, 4)]
    output = end(path, Reads(*cut))
    assert (output.text, output.note) == ("old", "cut_while_read")


def test_a_rotated_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old\n")

    def rotate() -> None:
        path.rename(tmp_path / "a.1")
        path.write_text("new\n")

    output = end(path, Reads(rotate))
    assert (output.text, output.note) == ("new", "")


def test_one_that_is_gone_in_the_middle_of_it_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old\n")
    with pytest.raises(FileNotFoundError):
        end(path, Reads(path.unlink))


@pytest.mark.parametrize(
    ("data", "encoding", "text"),
    [
        (b"", "utf-8", ""),
        ("häß\n".encode(), "utf-8", "häß"),
        ("häß".encode("utf-8-sig"), "utf-8", "häß"),
        ("häß 漢字".encode("utf-16"), "utf-16-le", "häß 漢字"),
        ("häß".encode("utf-32"), "utf-32-le", "häß"),
        (b"\xfe\xff" + "häß".encode("utf-16-be"), "utf-16-be", "häß"),
        ("a log line".encode("utf-16-le"), "utf-16-le", "a log line"),
        ("a log line".encode("utf-16-be"), "utf-16-be", "a log line"),
        ("häß".encode("latin-1"), "latin-1", "häß"),
        ("hä".encode()[:-1], "utf-8", "h"),
        (b"\x1b[31mred\x1b[0m\r\n", "utf-8", "\x1b[31mred\x1b[0m\r"),
        # Cut to nothing by a rotation, and written on at the old place.
        (bytes(5_000) + "half a line\nhäß\n".encode(), "utf-8", "häß"),
        (bytes(5_000), BINARY, None),
        (b"\x00\x00a\x00\x01\x02", BINARY, None),
        (b"\x7fELF\x02\x01\x01\x00\x00\x00", BINARY, None),
        (bytes(range(1, 32)), BINARY, None),
    ],
)
def test_encodings_are_told_apart(
    tmp_path: Path, data: bytes, encoding: str, text: str | None
) -> None:
    path = tmp_path / "a"
    path.write_bytes(data)
    output = end(path)
    assert (output.encoding, output.text) == (encoding, text)
    assert output.note == (BINARY if text is None else "")


@given(st.text("aé漢😀\n", min_size=1), st.sampled_from(["utf-8-sig", "utf-16", "utf-32", "utf-8"]))
def test_wherever_the_cut_falls_the_end_of_the_text_is_read(text: str, encoding: str) -> None:
    data = text.encode(encoding)
    for begins in range(0, len(data), 4):
        got, _ = decoded(data[:4], data[begins:], cut=begins > 0)
        assert got is not None
        assert text.endswith(got.lstrip("\ufffd").lstrip("\ufeff"))


@given(st.binary(), st.binary(max_size=4), st.booleans())
def test_no_bytes_are_an_error(data: bytes, beginning: bytes, cut: bool) -> None:  # noqa: FBT001 - drawn
    text, encoding = decoded(beginning, data, cut=cut)
    assert (text is None) == (encoding == BINARY)
