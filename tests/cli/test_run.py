"""custosd run, as far as it goes without running; the rest is in tests/end_to_end."""

from pathlib import Path

import pytest
from tests.cli.conftest import Run

from custosd.cli.exit_codes import BAD_CONFIG, OK, USAGE


def test_help_says_what_the_exit_codes_mean(run: Run) -> None:
    said = " ".join(run("run", "--help").stdout.split())
    for code in ("0 when", "1 when", "69 if", "75 if", "78 if"):
        assert code in said


def test_every_command_is_there(run: Run) -> None:
    said = run("--help").stdout
    for name in ("run", "demo", "migrate", "status", "agents", "analyze", "check-config", "config"):
        assert f"  {name} " in said


@pytest.mark.parametrize("command", ["run", "demo", "migrate", "status"])
def test_a_configuration_that_is_not_there_is_a_bad_one(
    run: Run, tmp_path: Path, command: str
) -> None:
    result = run(command, config=tmp_path / "missing.toml")
    assert (result.exit_code, result.stdout) == (BAD_CONFIG, "")
    assert str(tmp_path / "missing.toml") in result.stderr


def test_an_unknown_command_or_option_is_a_wrong_command_line(run: Run) -> None:
    assert run("rum").exit_code == USAGE
    assert run("run", "--fast").exit_code == USAGE
    assert run("--version").exit_code == OK
