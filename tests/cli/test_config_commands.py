"""custosd check-config, and custosd config show | default | explain | schema."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from custosd.cli.config import config_commands
from custosd.cli.exit_codes import BAD_CONFIG, FAILURE, OK, USAGE
from custosd.config.manual import default_text, schema

GOOD = "[guardian]\ninterval = '30s'\nconcurrency = 20\n"
BAD = "[guardian]\nintervall = 1\n[log]\nlevel = 'loud'\n"


def run(*args: str, config: tuple[str, ...] = ("/dev/null",), stdin: str = "") -> Result:
    group = click.Group("custosd", {command.name or "": command for command in config_commands})
    result = CliRunner().invoke(
        group, list(args), input=stdin, obj={"config": list(config)}, env={"CUSTOSD_CONFIG": None}
    )
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def good(tmp_path: Path) -> str:
    (tmp_path / "good.toml").write_text(GOOD)
    return str(tmp_path / "good.toml")


@pytest.fixture
def bad(tmp_path: Path) -> str:
    (tmp_path / "bad.toml").write_text(BAD)
    return str(tmp_path / "bad.toml")


def test_a_valid_file_is_said_to_be_valid(good: str) -> None:
    result = run("check-config", good)
    assert (result.exit_code, result.output) == (OK, f"{good}: valid, sets 2 keys\n")


def test_every_problem_is_found_per_file(good: str, bad: str) -> None:
    result = run("check-config", good, bad)
    assert result.exit_code == FAILURE
    assert result.output == (
        f"{good}: nothing wrong in this file\n"
        f"{bad}: 2 problems\n"
        f"  {bad}:2: guardian.intervall = 1: expected a key of [guardian];"
        " did you mean guardian.interval?\n"
        f'  {bad}:4: log.level = "loud": expected "debug", "info", "warning" or "error"\n'
    )


def test_a_file_that_can_not_be_read_is_told_from_one_that_is_wrong(bad: str) -> None:
    result = run("check-config", "/no/such.toml", bad)
    assert result.exit_code == USAGE
    assert result.output.startswith(
        "/no/such.toml: 1 problem\n"
        "  /no/such.toml: expected a readable file; no such file or directory\n"
    )


@pytest.mark.parametrize(("text", "code"), [(GOOD, OK), (BAD, FAILURE), ("[", FAILURE)])
def test_standard_input_is_checked(text: str, code: int) -> None:
    result = run("check-config", "-", stdin=text)
    assert result.exit_code == code
    assert result.output.startswith("<stdin>: ")


def test_without_files_those_are_checked_that_the_daemon_would_read(good: str, bad: str) -> None:
    assert run("check-config", config=(good,)).output.startswith(good)
    assert run("check-config", config=(good, bad)).exit_code == FAILURE


def test_the_check_as_json(good: str, bad: str) -> None:
    result = run("check-config", "--json", good, bad)
    assert result.exit_code == FAILURE
    told = json.loads(result.output)
    assert told["valid"] is False
    assert [one["file"] for one in told["files"]] == [good, bad]
    assert told["files"][1]["problems"][1] == {
        "file": bad,
        "line": 4,
        "key": "log.level",
        "value": '"loud"',
        "expected": '"debug", "info", "warning" or "error"',
        "hint": "",
        "kind": "value",
    }
    told = json.loads(run("check-config", "--json", good).output)
    assert told == {"valid": True, "files": [{"file": good, "keys": 2, "problems": []}]}


def test_the_shown_values_have_their_origin(good: str) -> None:
    result = run("config", "show", config=(good,))
    assert result.exit_code == OK
    assert f'interval = "30s"                          # {good}:2\n' in result.output
    told = json.loads(run("config", "show", "--json", config=(good,)).output)
    assert told["guardian.concurrency"] == {"value": 20, "origin": {"file": good, "line": 3}}
    assert told["guardian.judge"] == {"value": "rules", "origin": None}


def test_an_invalid_configuration_is_not_shown(bad: str) -> None:
    result = run("config", "show", config=(bad,))
    assert (result.exit_code, result.stdout) == (BAD_CONFIG, "")
    assert f"{bad}:2: guardian.intervall" in result.stderr


def test_default_and_schema_are_printed_without_reading_anything(bad: str) -> None:
    assert run("config", "default", config=(bad,)).output == default_text()
    assert json.loads(run("config", "schema", config=(bad,)).output) == schema()


def test_a_key_is_explained(good: str) -> None:
    result = run("config", "explain", "guardian.interval", config=(good,))
    assert result.exit_code == OK
    assert result.output == (
        "guardian.interval\n"
        "  How often the guardian looks at all agents.\n"
        '  takes    a duration from 1s to 1d ("90s", "1h30m", or seconds)\n'
        '  default  "1m"\n'
        f'  present  "30s" ({good}:2)\n'
    )


def test_a_key_that_must_be_given_is_explained_with_all_its_values() -> None:
    config = "[[transcripts.root]]\npath = '/a'\n[[transcripts.root]]\npath = '/b'\n"
    result = run("config", "explain", "transcripts.root.path", config=("-",), stdin=config)
    assert result.output == (
        "transcripts.root.path\n"
        "  The folder; it need not exist yet.\n"
        "  takes    the absolute path of a folder (~ is expanded)\n"
        "  default  none, it must be given\n"
        '  present  transcripts.root[0].path = "/a" (<stdin>:2)\n'
        '  present  transcripts.root[1].path = "/b" (<stdin>:4)\n'
    )


def test_a_section_is_explained_by_its_keys() -> None:
    assert run("config", "explain", "log").output == (
        "log\n"
        "  What is logged on standard output, and in which form.\n"
        "  keys:\n"
        "    log.format\n"
        "    log.level\n"
    )


def test_a_key_is_explained_beside_a_broken_configuration(bad: str) -> None:
    result = run("config", "explain", "guardian.interval", "--json", config=(bad,))
    assert result.exit_code == OK
    assert result.stderr == "the present value is not known: see custosd check-config\n"
    assert json.loads(result.stdout) == {
        "key": "guardian.interval",
        "meaning": "How often the guardian looks at all agents.",
        "expected": 'a duration from 1s to 1d ("90s", "1h30m", or seconds)',
        "attribute": "interval_s",
        "default": "1m",
    }


def test_an_unknown_key_is_answered_with_the_nearest() -> None:
    result = run("config", "explain", "guardin.judge")
    assert (result.exit_code, result.stdout) == (USAGE, "")
    assert result.stderr.startswith('there is no key "guardin.judge"; did you mean guardian.judge')
