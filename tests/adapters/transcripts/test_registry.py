"""What holds for every format of a maker's own agent, on made samples and real transcripts."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.adapters.transcripts.reading import (
    SAMPLES,
    anything,
    asked,
    damaged,
    events_in_pieces,
    events_of,
    lines_of,
    recognised_as,
    sample,
    steps,
)

from custosd.adapters.transcripts.format import (
    DocumentFormat,
    GarbledRecord,
    LineFormat,
    Sample,
)
from custosd.adapters.transcripts.registry import FORMATS, format_named, recognise
from custosd.core.transcript import Acted, Asked, Unread

BY_SAMPLE = {
    "claude-code.jsonl": "claude-code",
    "claude-code-stream.jsonl": "claude-code",
    "codex.jsonl": "codex",
    "codex-bare.jsonl": "codex",
    "codex-exec.jsonl": "codex-exec",
    "gemini-cli.json": "gemini-cli",
    "gemini-cli.jsonl": "gemini-cli-jsonl",
    "pi.jsonl": "pi",
}
LINE_SAMPLES = [(name, fmt) for name, fmt in BY_SAMPLE.items() if fmt != "gemini-cli"]
DOCUMENT = format_named("gemini-cli")
CALM = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


def line_format(name: str) -> LineFormat[Any]:
    found = format_named(name)
    assert isinstance(found, LineFormat)
    return found


def test_names_are_unique_and_found_again() -> None:
    names = [fmt.name for fmt in FORMATS]
    assert len(set(names)) == len(names)
    assert {"openhands", "swe-agent", "mini-swe-agent", "aider", "custosd"} < set(names)
    assert all(format_named(fmt.name) is fmt for fmt in FORMATS)
    assert format_named("nobody's") is None


@pytest.mark.parametrize(("name", "fmt"), BY_SAMPLE.items())
def test_each_sample_is_recognised_by_its_format_alone(name: str, fmt: str) -> None:
    assert [f.name for f in FORMATS if recognised_as(f, SAMPLES / name)] == [fmt]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("claude-code.jsonl", "user"), ("codex.jsonl", "session_meta"), ("pi.jsonl", "session")],
)
def test_a_long_first_record_is_recognised_by_its_beginning(name: str, kind: str) -> None:
    fmt = BY_SAMPLE[name]
    first = next(r for r in map(json.loads, lines_of(sample(name))) if r["type"] == kind)
    head = json.dumps({**first, "more": "x" * 100_000}).encode()[:65_536]
    found = recognise(Sample("x.jsonl", head))
    assert found is not None
    assert found.name == fmt


@pytest.mark.parametrize(
    "head",
    [b"", b"\n\n", b"\x00\xff", b"{", b"[]", b"# Notes\n", b'{"type":"user"}\n', b'{"a":[' * 9_000],
)
def test_what_is_no_transcript_is_not_recognised(head: bytes) -> None:
    assert recognise(Sample("notes.jsonl", head)) is None


@given(st.binary(max_size=200))
def test_recognising_never_fails(head: bytes) -> None:
    recognise(Sample("x.json", head))
    recognise(Sample("x.jsonl", b'{"type":' + head))


# --- Hostile records --------------------------------------------------------------------


def read_safely(fmt: LineFormat[Any], lines: list[str]) -> None:
    """Nothing is raised but `GarbledRecord`, which changes nothing; the state is storable."""
    state = fmt.state()
    for line in lines:
        before = msgspec.msgpack.encode(state)
        try:
            events = fmt.read(line, state)
        except GarbledRecord:
            assert msgspec.msgpack.encode(state) == before
            continue
        msgspec.json.encode(list(events))
        stored = msgspec.msgpack.encode(state)
        assert msgspec.msgpack.decode(stored, type=fmt.state_type) == state
    msgspec.json.encode(list(fmt.settle(state)))


@pytest.mark.parametrize("fmt", sorted({fmt for _, fmt in LINE_SAMPLES}))
@CALM
@given(
    st.lists(anything | st.dictionaries(st.sampled_from(["type", "payload", "message"]), anything))
)
def test_any_json_is_read_without_failing(fmt: str, records: list[Any]) -> None:
    read_safely(line_format(fmt), [msgspec.json.encode(record).decode() for record in records])


@pytest.mark.parametrize("fmt", sorted({fmt for _, fmt in LINE_SAMPLES}))
@CALM
@given(st.lists(st.text(max_size=40), max_size=4))
def test_any_text_is_read_or_garbled(fmt: str, lines: list[str]) -> None:
    read_safely(line_format(fmt), lines)


@pytest.mark.parametrize(("name", "fmt"), LINE_SAMPLES)
@CALM
@given(data=st.data())
def test_records_with_wrong_values_are_read_without_failing(
    name: str, fmt: str, data: st.DataObject
) -> None:
    records = [json.loads(line) for line in lines_of(sample(name))]
    read_safely(line_format(fmt), data.draw(damaged(records)))


@CALM
@given(data=st.data())
def test_a_document_with_wrong_values_is_read_without_failing(data: st.DataObject) -> None:
    assert isinstance(DOCUMENT, DocumentFormat)
    (line,) = data.draw(damaged([json.loads(sample("gemini-cli.json"))]))
    for text in (line, line[: data.draw(st.integers(0, len(line)))]):
        try:
            msgspec.json.encode(list(DOCUMENT.read(text.encode())))
        except GarbledRecord:
            continue


@pytest.mark.parametrize(("name", "fmt"), LINE_SAMPLES)
@CALM
@given(cuts=st.lists(st.integers(0, 1_000), max_size=6))
def test_stopping_anywhere_and_going_on_tells_the_same(
    name: str, fmt: str, cuts: list[int]
) -> None:
    form, lines = line_format(fmt), lines_of(sample(name))
    assert events_in_pieces(form, lines, cuts) == events_of(form, sample(name))


@pytest.mark.parametrize(("name", "fmt"), LINE_SAMPLES)
def test_lines_read_twice_over_keep_the_state_bounded(name: str, fmt: str) -> None:
    form, lines = line_format(fmt), lines_of(sample(name))
    state = form.state()
    sizes = []
    for _ in range(100):
        for line in lines:
            form.read(line, state)
        sizes.append(len(msgspec.msgpack.encode(state)))
    assert max(sizes) < 200_000


# --- Real transcripts -------------------------------------------------------------------

REAL = {
    "claude-code": ("claude-code/*.jsonl", "agent-sessions-fixtures/claude/**/*.jsonl"),
    "codex": ("codex/rollout-*.jsonl", "agent-sessions-fixtures/codex/*.jsonl"),
    "codex-exec": ("codex/exec-*.jsonl",),
    "gemini-cli": ("gemini-cli/*.json", "agent-sessions-fixtures/gemini/*.json"),
    "gemini-cli-jsonl": ("agent-sessions-fixtures/gemini/*.jsonl",),
    "pi": ("pi/*.jsonl", "agent-sessions-fixtures/pi/*.jsonl"),
}
CALL_MARKS = {
    "claude-code": r'"type": ?"tool_use"',
    "codex": r'"type": ?"(?:function_call|custom_tool_call|local_shell_call|tool_call'
    r'|web_search_call|tool_search_call|image_generation_call)"',
    "codex-exec": r'"item.completed".{0,60}"type": ?"(?:command_execution|file_change)"',
    "gemini-cli": r'"functionResponse"',
    "gemini-cli-jsonl": r'"functionResponse"',
    "pi": r'"type": ?"toolCall"',
}
UNKNOWN_IN_FIXTURES = {
    # Invented damage in a file made to test readers, not in anything an agent wrote.
    "claude-code-log-edge_cases.jsonl",
    # Answers whose calls a fixture does not show.
    "small.jsonl",
}


def real_files(folder: Path, fmt: str) -> list[Path]:
    return sorted(path for glob in REAL[fmt] for path in folder.glob(glob))


@pytest.mark.transcripts
@pytest.mark.parametrize("fmt", REAL)
def test_every_real_transcript_is_recognised_with_its_goal_and_all_its_steps(
    transcripts_dir: Path, fmt: str
) -> None:
    files = real_files(transcripts_dir, fmt)
    assert files
    for path in files:
        assert [f.name for f in FORMATS if recognised_as(f, path)] == [fmt], path
        form = format_named(fmt)
        assert form is not None
        data = path.read_bytes()
        events = events_of(form, data)
        calls = len(re.findall(CALL_MARKS[fmt], data.decode("utf-8", "replace")))
        assert len(steps(events)) == calls, path
        if fmt != "codex-exec":  # the only one that does not say what was asked
            assert any(isinstance(e, Asked) and e.text for e in events), path


@pytest.mark.transcripts
@pytest.mark.parametrize("fmt", REAL)
def test_real_transcripts_hold_nothing_unread(transcripts_dir: Path, fmt: str) -> None:
    unread = Counter(
        event.what
        for path in real_files(transcripts_dir, fmt)
        if path.name not in UNKNOWN_IN_FIXTURES
        for event in events_of(format_named(fmt), path.read_bytes())  # type: ignore[arg-type]
        if isinstance(event, Unread)
    )
    assert not unread


@pytest.mark.transcripts
@pytest.mark.parametrize("fmt", [name for name in REAL if name != "gemini-cli"])
def test_real_transcripts_read_in_pieces_tell_the_same(transcripts_dir: Path, fmt: str) -> None:
    form = line_format(fmt)
    for path in real_files(transcripts_dir, fmt):
        lines = lines_of(path.read_bytes())
        cuts = [len(lines) * n // 17 for n in range(17)]
        assert events_in_pieces(form, lines, cuts) == events_of(form, path.read_bytes()), path


@pytest.mark.transcripts
def test_five_agents_at_work_in_one_file_are_five_threads(transcripts_dir: Path) -> None:
    (path,) = (transcripts_dir / "claude-code").glob("viewer-*.jsonl")
    events = events_of(line_format("claude-code"), path.read_bytes())
    by_thread = Counter(e.thread for e in events if isinstance(e, Acted))
    assert len(by_thread) == 6
    assert all(len(asked(events, thread)) == 1 for thread in by_thread if thread)
    rejected = [s for s in steps(events) if s.error == "edit_rejected"]
    assert len(rejected) >= 4
