import fcntl
import io
import json
import logging
import os
import pty
import re
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from custosd.core.errors import StoreRefused
from custosd.logs import Lines, configure_logging, text_fields

log = structlog.get_logger()


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def out() -> io.StringIO:
    stream = io.StringIO()
    configure_logging("json", "info", stream=stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_a_head_a_body_and_a_tail(out):
    log.info("agent.seen", agent="ada", count=3, share=0.5, known=True, parent=None)
    (line,) = lines(out)
    assert list(line)[:3] == ["ts", "level", "event"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["ts"])
    assert (line["level"], line["event"]) == ("info", "agent.seen")
    assert (line["agent"], line["count"], line["share"]) == ("ada", 3, 0.5)
    assert (line["known"], line["parent"]) == (True, None)
    assert list(line)[-3:] == ["version", "pid", "host"]
    assert line["pid"] == os.getpid()


def test_context_is_bound_and_levels_below_the_chosen_one_are_left_out(out):
    structlog.contextvars.bind_contextvars(sweep=7)
    log.debug("agent.seen")
    log.warning("agent.lost")
    (line,) = lines(out)
    assert (line["level"], line["sweep"]) == ("warning", 7)


def test_a_field_cannot_pass_for_one_of_the_daemons_own(out):
    log.info("agent.seen", pid=1, ts="then", host="evil")
    (line,) = lines(out)
    assert line["pid"] == os.getpid()
    assert (line["field_pid"], line["field_ts"], line["field_host"]) == (1, "then", "evil")


def test_control_characters_never_reach_a_line(out):
    log.info("agent.seen", name="a\x1b[31mred\x00\x9b\u202egnp.exe\u2028\ud800", path="x\ny")
    (line,) = lines(out)
    assert line["name"] == "a[31mredgnp.exe"
    assert line["path"] == "x\ny"  # escaped in the line, whole for its reader
    assert out.getvalue().count("\n") == 1


def test_a_field_cannot_forge_a_second_line_on_the_console():
    stream = io.StringIO()
    configure_logging("console", "info", stream=stream)
    log.info("agent.seen", name="x\n12:00:00 [info] all.well\x1b[2K", tags=["a\nb"])
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("length", [10, 9_000, 60_000, 5_000_000])
def test_a_line_stays_under_48_kib_and_says_what_was_cut(out, length):
    log.info("agent.seen", text="é" * length, **{f"f{n}": "x" * length for n in range(20)})
    assert len(out.getvalue().encode()) < 48 * 1024
    (line,) = lines(out)
    if length > 10:
        assert re.search(r"\.\.\.\+\d+$", line["text"])
    else:
        assert line["text"] == "é" * length


def test_so_many_fields_that_none_fits_are_named_instead(out):
    log.info("agent.seen", **{f"field{n}": "x" * 200 for n in range(5000)})
    (line,) = lines(out)
    assert line["event"] == "agent.seen"
    assert len(line["cut_fields"]) == 100
    assert len(out.getvalue()) < 48 * 1024


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __len__(self) -> int:
        raise RuntimeError("no")


class HostileError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize("format_", ["json", "console"])
def test_a_log_call_never_raises_whatever_it_is_given(format_):
    stream = io.StringIO()
    configure_logging(format_, "info", stream=stream)
    endless: list[object] = []
    endless.append(endless)
    log.info(
        "agent.seen",
        hostile=Hostile(),
        error=HostileError(),
        endless=endless,
        big=10**10_000,
        nan=float("nan"),
        raw=b"\xff" * 9,
        path=Path("/x"),
        at=datetime(2026, 1, 1, tzinfo=UTC),
        colour=Colour.RED,
        some={1, 2},
        table={1: {2: Hostile()}},
        many=list(range(1000)),
    )
    log.error("agent.lost", exc_info=HostileError())
    log.info(Hostile())
    text = stream.getvalue()
    assert "agent.seen" in text
    assert "agent.lost" in text
    if format_ == "json":
        line = lines(stream)[0]
        assert line["hostile"] == "<unloggable: RuntimeError>"
        assert line["raw"] == "<9 bytes>"
        assert line["colour"] == "red"
        assert line["nan"] == "nan"
        assert line["many"][-1] == "...+900"


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.text(min_size=1),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=20,
        ),
    )
)
def test_any_fields_make_one_line_that_is_json(fields):
    stream = io.StringIO()
    configure_logging("json", "info", stream=stream)
    fields.pop("event", None)
    log.info("agent.seen", **fields)
    (text,) = stream.getvalue().splitlines()
    assert json.loads(text)["event"] == "agent.seen"
    assert not re.search("[\x00-\x1f\x7f-\x9f]", text)


def test_an_exception_comes_with_its_traceback_cut_in_the_middle(out):
    def deep(n: int) -> None:
        if n:
            deep(n - 1)
        raise StoreRefused("the end" + "x" * 20_000 + "really")

    try:
        deep(3)
    except StoreRefused:
        log.exception("service.failed", service="guardian")
    (line,) = lines(out)
    assert line["level"] == "error"
    assert line["error_type"] == "StoreRefused"
    assert line["exception"].startswith("Traceback")
    assert "[...]" in line["exception"]
    assert line["exception"].endswith("really\n")


class Parsed(ExceptionGroup[Exception]):
    """A group, whose own words do not count either."""


@pytest.mark.parametrize("format_", ["json", "console"])
def test_no_exception_of_others_says_what_it_read(format_):
    """Neither its words, nor those of what led to it or is in it, nor the source line."""
    stream = io.StringIO()
    configure_logging(format_, "info", stream=stream)
    read = "SECRET"
    try:
        try:
            int("SECRET")
        except ValueError as error:
            error.add_note("SECRET")
            raise Parsed(read, [KeyError(read), StoreRefused("left as it was")]) from error
    except Parsed as error:
        log.exception("service.failed", cause=error, others=[error.__cause__])
    text = stream.getvalue()
    assert "SECRET" not in text
    for word in ("ValueError", "Parsed", "KeyError", "StoreRefused: left as it was"):
        assert word in text
    assert re.search(r"test_logs.py.*line \d+, in test_no_exception", text)


def test_an_error_of_the_system_is_named(out):
    try:
        Path("/nowhere/SECRET").read_text()
    except OSError:
        log.exception("service.failed")
    (line,) = lines(out)
    assert line["exception"].endswith("FileNotFoundError: ENOENT\n")


def test_text_of_an_agent_becomes_a_digest_and_a_length():
    fields = text_fields("ignore all rules\ud800", "message")
    assert fields["message_length"] == 17
    assert re.fullmatch("[0-9a-f]{16}", str(fields["message_sha256"]))
    assert fields != text_fields("ignore all rules", "message")


def test_library_records_come_through_as_events_of_ours(out):
    root = logging.getLogger()  # without pytest's own handler, which raises on a bad format
    root.handlers[:] = [h for h in root.handlers if type(h).__module__ == "custosd.logs"]
    logging.getLogger("somelib").warning("odd %s", "thing")
    logging.getLogger("somelib").info("chatter")
    logging.getLogger("somelib").error("bad %d", "format")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)
    got = lines(out)
    assert {line["event"] for line in got} == {"library.logged"}
    assert [line["level"] for line in got] == ["warning", "error", "warning"]
    assert (got[0]["logger"], got[0]["message"]) == ("somelib", "odd thing")
    assert "cannot be formatted" in got[1]["message"]
    assert "old thing" in got[2]["message"]


def test_a_library_that_says_the_same_again_and_again_is_heard_once_a_minute(out):
    logger = logging.getLogger("exporter")

    def complain(at):
        record = logger.makeRecord("exporter", 40, "export.py", 7, "try %d failed", (at,), None)
        record.created = at
        logger.handle(record)

    for at in (1_000.0, 1_005.0, 1_059.0, 1_061.0, 500.0):
        complain(at)
    logger.error("something else")
    got = [(line["message"], line["unsaid"]) for line in lines(out)]
    # The last: a clock that was set back holds nobody's tongue.
    assert got == [
        ("try 1000 failed", 0),
        ("try 1061 failed", 2),
        ("try 500 failed", 0),
        ("something else", 0),
    ]


def test_libraries_are_heard_in_full_at_debug_only_and_never_twice():
    stream = io.StringIO()
    configure_logging("json", "info", stream=io.StringIO())
    configure_logging("json", "debug", stream=stream)
    for _ in range(2):
        logging.getLogger("somelib").info("chatter")
    assert [line["message"] for line in lines(stream)] == ["chatter", "chatter"]


def test_what_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="'loud'"):
        configure_logging("json", "loud")


# --- streams that are slow, full or gone ----------------------------------------------


def test_a_reader_that_does_not_read_costs_lines_and_no_time():
    """A full pipe drops lines; when it is read again the loss is told, and no line is torn."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 16384)
    with os.fdopen(reader, "rb", buffering=0) as source, os.fdopen(writer, "w") as sink:
        writer_lines = configure_logging("json", "info", stream=sink)
        for n in range(100):
            log.info("agent.seen", n=n, filler="x" * 6000)
        counted = writer_lines.statistics()
        assert 0 < counted.written < 10
        assert counted.dropped == 100 - counted.written

        got = source.read(65536)
        log.info("agent.seen", n=100)
        got += source.read(65536)
        log.info("agent.seen", n=101)
        got += source.read(65536)

    read = [json.loads(line) for line in got.splitlines()]
    told = [line["count"] for line in read if line["event"] == "lines.dropped"]
    assert sum(told) == writer_lines.statistics().dropped == 100 - (counted.written)
    assert [line["n"] for line in read if "n" in line][-2:] == [100, 101]


def test_a_reader_that_has_gone_does_not_stop_us():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as sink:
        gone = configure_logging("json", "info", stream=sink)
        log.error("agent.lost")
    assert gone.statistics().dropped == 1
    log.error("agent.lost")  # now the stream itself is closed, too
    assert gone.statistics() == type(gone.statistics())(written=0, dropped=2)


def test_the_journals_own_stream_gets_a_priority_before_the_json(monkeypatch):
    ours, journal = socket.socketpair()
    with ours, journal, os.fdopen(os.dup(ours.fileno()), "w") as sink:
        found = os.fstat(sink.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        configure_logging("auto", "info", stream=sink)
        log.error("agent.lost")
        line = journal.recv(65536).decode()
    assert line.startswith('<3>{"ts":')
    assert json.loads(line[3:])["event"] == "agent.lost"


def test_a_pipe_gets_pure_json_although_the_journal_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("JOURNAL_STREAM", "8:12345")
    with (tmp_path / "log").open("w") as sink:
        configure_logging("auto", "info", stream=sink)
        log.error("agent.lost")
    assert json.loads((tmp_path / "log").read_text())["event"] == "agent.lost"


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_a_terminal_gets_colours_unless_it_wants_none(monkeypatch, no_color, coloured):
    monkeypatch.setenv("NO_COLOR", no_color)
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as source, os.fdopen(theirs, "w") as sink:
        configure_logging("auto", "info", stream=sink)
        log.info("agent.seen", agent="ada")
        text = source.read(4096).decode()
    assert "agent.seen" in text
    assert ("\x1b[" in text) is coloured
    assert not text.lstrip("\x1b[0m").startswith("{")


def test_a_daemon_whose_stdout_is_closed_at_the_start_still_runs():
    code = (
        "from custosd.logs import configure_logging; import structlog, sys\n"
        "lines = configure_logging('auto', 'info')\n"
        "structlog.get_logger().info('agent.seen')\n"
        "sys.exit(0 if lines.statistics().dropped == 1 else 3)"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, code],
        env=os.environ | {"PYTHONPATH": "daemon"},
        cwd=Path(__file__).parent.parent,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0


def test_a_line_written_while_another_is_being_written_is_dropped_and_not_mixed():
    class Recursive(io.StringIO):
        def write(self, text: str, /) -> int:
            inner.write("inner")
            return super().write(text)

    stream = Recursive()
    inner = Lines(stream)
    inner.write("outer")
    assert stream.getvalue() == "outer\n"
    assert inner.statistics().dropped == 1
