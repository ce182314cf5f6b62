"""custosd analyze: any transcript, and anything that is none."""

import json
import os
import re
from pathlib import Path

import pytest
from tests.cli.conftest import EVIL, Run, on_terminal
from tests.cli.test_agents import JUDGEMENT, OUR_COLOURS, TRAJECTORY

from custosd.cli.analyze import LONG_BYTES
from custosd.cli.exit_codes import FAILURE, OK, USAGE
from custosd.demo.writers import Action, CustosdWriter

SAMPLES = sorted((Path(__file__).resolve().parents[1] / "adapters" / "samples").iterdir())
each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=[path.name for path in SAMPLES])


@each_sample
def test_every_kind_of_transcript_is_read(run: Run, sample: Path) -> None:
    result = run("analyze", "--json", sample)
    assert (result.exit_code, result.stderr) == (OK, "")
    (told,) = json.loads(result.stdout)
    assert list(told) == ["path", "format", "session", "why", "agents", "incidents", "unread"]
    assert (told["path"], told["why"]) == (str(sample), "")
    assert told["format"]
    assert sum(agent["trajectory"]["steps"] for agent in told["agents"]) > 0
    # The stream of `codex exec` does not say what was asked.
    assert told["format"] == "codex-exec" or any(
        agent["trajectory"]["goal"] for agent in told["agents"]
    )
    for agent in told["agents"]:
        assert list(agent) == ["thread", "trajectory", "verdict", "judge", "steps"]
        assert list(agent["trajectory"]) == TRAJECTORY
        assert list(agent["verdict"]) == JUDGEMENT
        assert agent["steps"] == []


@each_sample
def test_every_kind_is_told_in_words(run: Run, sample: Path) -> None:
    result = run("analyze", sample)
    assert (result.exit_code, result.stderr) == (OK, "")
    for name in ("goal", "did", "verdict"):
        assert re.search(rf"^    {name} +\S", result.stdout, re.MULTILINE), name


@each_sample
def test_half_a_file_is_read_as_far_as_it_goes(run: Run, sample: Path, tmp_path: Path) -> None:
    data = sample.read_bytes()
    half = tmp_path / sample.name
    half.write_bytes(data[: len(data) // 2])
    result = run("analyze", "--json", half)
    (told,) = json.loads(result.stdout)
    assert (result.exit_code, bool(told["why"])) in {(OK, False), (FAILURE, True)}


def test_steps_are_listed_where_they_are_wanted(run: Run) -> None:
    sample = next(path for path in SAMPLES if path.name == "custosd.jsonl")
    (told,) = json.loads(run("analyze", "--json", "--steps", sample).stdout)
    agent = told["agents"][0]
    assert len(agent["steps"]) == agent["trajectory"]["steps"]
    assert list(agent["steps"][0]) == [
        *("kind", "tool", "verb", "result", "error", "exit_code", "files"),
        *("started_utc", "ended_utc"),
    ]
    shown = run("analyze", "--steps", sample).stdout
    assert re.search(r"^ {8}0 \w+ +\w+ ", shown, re.MULTILINE)


@pytest.fixture
def bad(tmp_path: Path) -> dict[str, Path]:
    """A file for each code of `why` that a person can come across."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 4096)
    (tmp_path / "poem.md").write_text("Of Man's first disobedience\n" * 3)
    (tmp_path / "other.json").write_text('{"a": 1}\n')
    os.mkfifo(tmp_path / "pipe")
    return {
        "missing": tmp_path / "missing.jsonl",
        "directory": tmp_path / "folder",
        "empty": tmp_path / "empty.jsonl",
        "not_a_file": tmp_path / "pipe",
        "format_unknown": tmp_path / "other.json",
    }


def test_what_is_no_transcript_is_told_and_the_rest_is_analysed(
    run: Run, bad: dict[str, Path]
) -> None:
    good = SAMPLES[0]
    result = run("analyze", "--json", *bad.values(), good)
    assert result.exit_code == FAILURE
    *refused, read = json.loads(result.stdout)
    assert [told["why"] for told in refused] == list(bad)
    assert all(told["agents"] == [] for told in refused)
    assert read["why"] == ""

    result = run("analyze", *bad.values(), good)
    assert result.exit_code == FAILURE
    assert result.stdout.count("not read: ") == len(bad)
    assert f"{bad['missing']}\n  not read: no such file\n" in result.stdout
    assert "goal" in result.stdout


@pytest.mark.parametrize("name", ["binary", "poem.md", "other.json"])
def test_what_is_in_no_known_format_is_refused(run: Run, bad: dict[str, Path], name: str) -> None:
    result = run("analyze", bad["empty"].parent / name)
    assert result.exit_code == FAILURE
    assert "not read: no transcript in a format that is known" in result.stdout


def test_no_file_at_all_is_a_wrong_command_line(run: Run) -> None:
    assert run("analyze").exit_code == USAGE


def transcript(folder: Path, steps: int, observation: str) -> Path:
    writer = CustosdWriter(folder, "work", Path("/srv"))
    writer.asked(f"Paint {EVIL}")
    for n in range(steps):
        action = Action(f"c{n}", "shell", command=f"cat {EVIL}{n}.py")
        writer.began(action)
        writer.answered(action, observation, 0)
    return writer.file.path


def test_progress_is_shown_for_what_is_long_and_only_on_a_terminal(
    run: Run, tmp_path: Path
) -> None:
    long = transcript(tmp_path / "long", 60, "x" * (LONG_BYTES // 50))
    assert run("analyze", long).stderr == ""
    code, said = on_terminal("analyze", long, home=tmp_path)
    assert code == OK
    assert "analysing" in said
    assert "60 steps" in said
    short = transcript(tmp_path / "short", 3, "x")
    code, said = on_terminal("analyze", short, home=tmp_path)
    assert code == OK
    assert "analysing" not in said


def test_text_of_agents_never_steers_a_terminal(tmp_path: Path) -> None:
    path = transcript(tmp_path, 4, EVIL)
    code, said = on_terminal("analyze", "--steps", path, home=tmp_path)
    assert code == OK
    plain = OUR_COLOURS.sub("", said).replace("\r\n", "\n")
    assert all(char.isprintable() or char == "\n" for char in plain), ascii(plain)
    assert "[/bold][red]" in plain


@pytest.mark.transcripts
def test_no_real_file_crashes_it_and_no_reader_fails(run: Run, transcripts_dir: Path) -> None:
    """Everything that lies there, transcript or not; what is read has an agent in it."""
    files = sorted(path for path in transcripts_dir.rglob("*") if path.is_file())
    result = run("analyze", "--json", *files)
    told = json.loads(result.stdout)
    assert [file["path"] for file in told] == list(map(str, files))
    kinds = {incident["kind"] for file in told for incident in file["incidents"]}
    assert kinds.isdisjoint({"record_failed", "read_failed"})
    read = [file for file in told if not file["why"]]
    print(f"{len(read)} of {len(files)} files read")
    assert read
    empty = [f["path"] for f in read if not any(a["trajectory"]["steps"] for a in f["agents"])]
    goalless = [f["path"] for f in read if not any(a["trajectory"]["goal"] for a in f["agents"])]
    print(f"without a step: {len(empty)}, without a goal: {len(goalless)}")


def test_a_judge_that_is_nobody_is_a_usage_error(run: Run) -> None:
    result = run("analyze", "--judge", "nobody", SAMPLES[0])
    assert result.exit_code == USAGE
    assert "there are: rules" in result.stderr
