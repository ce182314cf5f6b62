"""custosd analyze --judge, as a real process: recorded beside a real server, replayed without."""

import base64
import json
import stat
import subprocess
from pathlib import Path

import pytest
from tests.adapters.models.fault_server import (
    VERDICT,
    Cut,
    Disconnect,
    Fault,
    Hang,
    Raw,
    Status,
    StreamError,
    Well,
    fault_server_apart,
)
from tests.end_to_end.daemons import command, environment

from custosd.cli.exit_codes import FAILURE, OK, USAGE
from custosd.demo.writers import Action, CustosdWriter

KEY = "k3y-in-no-known-form"
SECRET = "AKIAABCDEFGHIJKLMNOP"

MODEL = """
[[model]]
name = "{name}"
kind = "{kind}"
model = "{name}-large"
base_url = "{url}"
key_file = "{key}"
stream = {stream}
timeout = "2s"
"""
CONFIG = """
{one}
{two}
[[ensemble]]
name = "both"
members = ["one", "two"]
"""


def config_for(home: Path, url: str) -> Path:
    key = home / "key"
    key.write_text(KEY + "\n")
    key.chmod(0o600)
    one = MODEL.format(name="one", kind="anthropic", url=url, key=key, stream="true")
    two = MODEL.format(name="two", kind="openai", url=url + "/v1", key=key, stream="false")
    config = home / "custosd.toml"
    config.write_text(CONFIG.format(one=one, two=two))
    return config


def transcript(home: Path, name: str, goal: str) -> Path:
    writer = CustosdWriter(home / name, name, Path("/srv"))
    writer.asked(goal)
    for n in range(3):
        action = Action(f"c{n}", "shell", command=f"cat {n}.py")
        writer.began(action)
        writer.answered(action, f"export AWS_KEY={SECRET}\nline {n} of {name}", 0)
    return writer.file.path


def analyze(home: Path, *words: object) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        command("--config", home / "custosd.toml", "analyze", "--json", *words),
        env=environment(home),
        cwd=home,
        capture_output=True,
        check=False,
        timeout=60,
    )


def reasons(output: bytes) -> list[str]:
    return [a["verdict"]["unknown_reason"] for file in json.loads(output) for a in file["agents"]]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [transcript(tmp_path, name, f"Mend {name}") for name in ("ada", "bob", "cyd")]


@pytest.mark.parametrize("judge", ["one", "two", "both"])
def test_what_was_recorded_is_replayed_byte_for_byte_without_a_server(
    tmp_path: Path, files: list[Path], judge: str
) -> None:
    record = tmp_path / "record.jsonl"
    unlike = {**VERDICT, "standing": "stuck", "summary": f"Found {SECRET}\nand went on."}
    with fault_server_apart() as server:
        config_for(tmp_path, server.url)
        # By the question, and not in order: an ensemble asks two at a time.
        spoiled: set[str] = set()

        def answer(asked: dict[str, object]) -> Fault:
            text = json.dumps(asked)
            who = next(name for name in ("ada", "bob", "cyd") if f"Mend {name}" in text)
            if who + str(asked["model"]) not in spoiled:
                spoiled.add(who + str(asked["model"]))
                return {
                    "ada": Status(429, "rate_limit_error", (("retry-after-ms", "20"),)),
                    "bob": Cut(4),
                    "cyd": Well("I think it does well."),
                }[who]
            return Well(json.dumps(unlike)) if who == "ada" else Well()

        server.always = answer
        live = analyze(tmp_path, "--judge", judge, "--record", record, *files)
        assert (live.returncode, live.stderr) == (OK, b"")
        asked = len(server.requests)
        assert asked == 6 * (2 if judge == "both" else 1)
        assert SECRET.encode() not in b"".join(server.bodies)
    told = record.read_text()
    assert len(told.splitlines()) == asked
    bodies = b"".join(map(bytes_of, told.splitlines())).decode()
    assert "[redacted aws key]" in bodies
    for text in (told, bodies):
        assert KEY not in text
        assert SECRET not in text
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    played = analyze(tmp_path, "--judge", judge, "--replay", record, *files)
    assert (played.returncode, played.stderr) == (OK, b"")
    assert json.loads(live.stdout)[0]["agents"][0]["judge"]
    assert played.stdout == live.stdout
    assert reasons(played.stdout) == ["", "", ""]
    first = json.loads(played.stdout)[0]["agents"][0]["verdict"]
    assert (first["standing"], SECRET in first["summary"]) == ("stuck", False)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Hang(), "model_timeout"),
        (Disconnect(), "model_cut_off"),
        (StreamError("overloaded_error"), "model_overloaded"),
        (Status(401, "authentication_error"), "model_unauthorized"),
        (Raw(b"<html>", "text/html"), "model_malformed"),
        (Well("never a verdict"), "malformed_answer"),
        (Well(stop="refusal"), "model_refused"),
    ],
    ids=repr,
)
def test_failures_are_replayed_as_they_were(
    tmp_path: Path, files: list[Path], fault: Fault, reason: str
) -> None:
    record = tmp_path / "record.jsonl"
    with fault_server_apart() as server:
        server.always = fault
        config = config_for(tmp_path, server.url)
        config.write_text(config.read_text().replace("2s", "200ms"))
        live = analyze(tmp_path, "--judge", "one", "--record", record, files[0])
        assert server.requests
    played = analyze(tmp_path, "--judge", "one", "--replay", record, files[0])
    assert played.stdout == live.stdout
    assert (live.returncode, played.returncode) == (FAILURE, FAILURE), "nobody was heard"
    assert reasons(played.stdout) == [reason]
    asked = "one" if reason in ("malformed_answer", "model_refused") else ""
    assert json.loads(played.stdout)[0]["agents"][0]["judge"] == asked


def test_a_key_that_a_server_says_back_is_not_recorded(tmp_path: Path, files: list[Path]) -> None:
    record = tmp_path / "record.jsonl"
    with fault_server_apart() as server:
        wrong = {"error": {"type": "authentication_error", "message": f"{KEY} is no key"}}
        server.always = Status(401, body=json.dumps(wrong).encode())
        config_for(tmp_path, server.url)
        live = analyze(tmp_path, "--judge", "two", "--record", record, files[0])
    assert reasons(live.stdout) == ["model_unauthorized"]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert KEY not in record.read_text() + live.stdout.decode() + live.stderr.decode()
    (line,) = record.read_text().splitlines()
    assert "[redacted key]" in str(bytes_of(line))


def bytes_of(line: str) -> bytes:
    return b"".join(base64.b64decode(piece) for piece in json.loads(line)["pieces"])


@pytest.fixture
def recorded(tmp_path: Path, files: list[Path]) -> Path:
    record = tmp_path / "record.jsonl"
    with fault_server_apart() as server:
        config_for(tmp_path, server.url)
        assert analyze(tmp_path, "--judge", "one", "--record", record, *files).returncode == OK
    return record


def test_a_question_that_changed_is_told_clearly(
    tmp_path: Path, files: list[Path], recorded: Path
) -> None:
    with files[1].open("a") as out:
        out.write('{"type":"step","id":"9","action":"make","observation":"ok","exit_code":0}\n')
    played = analyze(tmp_path, "--judge", "one", "--replay", recorded, *files)
    assert played.returncode == FAILURE
    assert reasons(played.stdout) == ["", "model_not_recorded", ""]
    said = played.stderr.decode()
    assert f"{recorded} has no answer to 1 of the questions" in said
    assert "record it anew" in said


def test_a_model_whose_settings_changed_has_no_record(
    tmp_path: Path, files: list[Path], recorded: Path
) -> None:
    config = tmp_path / "custosd.toml"
    config.write_text(config.read_text().replace("one-large", "one-small"))
    played = analyze(tmp_path, "--judge", "one", "--replay", recorded, *files)
    assert played.returncode == FAILURE
    assert reasons(played.stdout) == ["model_not_recorded"] * 3
    assert b"has no answer to 3 of the questions" in played.stderr


def test_a_replay_needs_no_key(tmp_path: Path, files: list[Path], recorded: Path) -> None:
    config = tmp_path / "custosd.toml"
    text = config.read_text().replace(f'key_file = "{tmp_path}/key"', 'key_credential = "model"')
    config.write_text(text)
    (tmp_path / "key").unlink()
    played = analyze(tmp_path, "--judge", "one", "--replay", recorded, *files)
    assert (played.returncode, played.stderr, reasons(played.stdout)) == (OK, b"", [""] * 3)


def test_a_garbled_record_names_its_line(tmp_path: Path, files: list[Path], recorded: Path) -> None:
    lines = recorded.read_text().splitlines()
    recorded.write_text("\n".join([lines[0], lines[1][:100], lines[2]]))
    played = analyze(tmp_path, "--judge", "one", "--replay", recorded, *files)
    assert played.returncode == USAGE
    assert f"{recorded}:2: no recorded exchange" in played.stderr.decode()


def test_a_record_that_cannot_be_written_is_told_before_anybody_is_asked(
    tmp_path: Path, files: list[Path]
) -> None:
    with fault_server_apart() as server:
        config_for(tmp_path, server.url)
        nowhere = tmp_path / "no" / "such" / "folder.jsonl"
        refused = analyze(tmp_path, "--judge", "one", "--record", nowhere, *files)
        assert refused.returncode == USAGE
        assert b"nothing can be recorded in" in refused.stderr
        assert not server.requests
        full = analyze(tmp_path, "--judge", "one", "--record", "/dev/full", files[0])
        assert full.returncode == FAILURE
        assert b"custosd: nothing can be recorded in /dev/full: No space left" in full.stderr


def test_a_provider_that_is_down_is_asked_for_each_agent_when_recording(
    tmp_path: Path, files: list[Path]
) -> None:
    """No circuit opens: what was not asked could not be replayed."""
    record = tmp_path / "record.jsonl"
    more = [transcript(tmp_path, f"n{n}", f"Mend n{n}") for n in range(5)]
    with fault_server_apart() as server:
        server.always = Status(400, "invalid_request_error")
        config_for(tmp_path, server.url)
        analyze(tmp_path, "--judge", "one", "--record", record, *files, *more)
        assert len(server.requests) == 8
    with fault_server_apart() as server:
        server.always = Status(500)
        config = config_for(tmp_path, server.url)
        config.write_text(config.read_text().replace('"2s"', '"2s"\nattempts = 1'))
        record.unlink()
        live = analyze(tmp_path, "--judge", "one", "--record", record, *files, *more)
        assert len(server.requests) == 8
    played = analyze(tmp_path, "--judge", "one", "--replay", record, *files, *more)
    assert played.stdout == live.stdout
    assert reasons(played.stdout) == ["model_unavailable"] * 8


def test_one_account_has_one_circuit_for_all_the_files(tmp_path: Path, files: list[Path]) -> None:
    more = [transcript(tmp_path, f"n{n}", f"Mend n{n}") for n in range(5)]
    with fault_server_apart() as server:
        server.always = Status(500)
        config = config_for(tmp_path, server.url)
        config.write_text(config.read_text().replace('"2s"', '"2s"\nattempts = 1'))
        live = analyze(tmp_path, "--judge", "one", *files, *more)
        assert len(server.requests) == 5
    assert reasons(live.stdout) == ["model_unavailable"] * 8


def priced(home: Path, url: str) -> None:
    """A call may cost some 0.3 dollars, and costs as good as nothing."""
    config = config_for(home, url)
    prices = "input_usd = 1\noutput_usd = 75\nmax_tokens = 4000\n"
    config.write_text(config.read_text().replace('timeout = "2s"', prices + 'timeout = "2s"'))


@pytest.mark.parametrize("judge", ["one", "both"])
def test_no_more_is_spent_than_may_be_and_it_is_told(
    tmp_path: Path, files: list[Path], judge: str
) -> None:
    record = tmp_path / "record.jsonl"
    with fault_server_apart() as server:
        priced(tmp_path, server.url)
        poor = analyze(tmp_path, "--judge", judge, "--most-usd", "0.2", *files)
        assert not server.requests, "none fits into 20 cents"
        assert (poor.returncode, reasons(poor.stdout)) == (FAILURE, ["model_no_money"] * 3)
        assert b"spent on models: 0.00 USD, of 0.2000 USD at most" in poor.stderr
        assert b"--most-usd" in poor.stderr
        live = analyze(tmp_path, "--judge", judge, "--record", record, *files)
        assert len(server.requests) == 3 * (2 if judge == "both" else 1)
    assert (live.returncode, reasons(live.stdout)) == (OK, [""] * 3)
    assert b"of 1.00 USD at most" in live.stderr
    assert b"spent on models: 0.00 USD" not in live.stderr
    played = analyze(tmp_path, "--judge", judge, "--replay", record, *files)
    assert (played.stdout, played.returncode) == (live.stdout, OK)
    assert b"spent" not in played.stderr, "a replay costs nothing"


@pytest.mark.parametrize("most", ["0", "-1", "nan", "inf", "much"])
def test_what_is_no_amount_of_money_is_a_usage_error(
    tmp_path: Path, files: list[Path], most: str
) -> None:
    refused = analyze(tmp_path, "--judge", "rules", "--most-usd", most, *files)
    assert refused.returncode == USAGE
    assert b"--most-usd" in refused.stderr
