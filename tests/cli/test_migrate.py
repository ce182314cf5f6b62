"""custosd migrate: brings the schema up to date, or says what is missing."""

from pathlib import Path

import pytest
from tests.cli.conftest import Run, Watched

from custosd.adapters.postgres.migrations import read_migrations
from custosd.cli.exit_codes import FAILURE, OK, TEMPORARY

ALL = read_migrations()


def test_a_fresh_database_gets_each_migration_once(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'[daemon]\nstate_dir = "{tmp_path}/state"\n')
    files = [migration.file_name for migration in ALL]

    result = run("migrate", "--check", config=config)
    assert result.exit_code == FAILURE
    assert result.stdout.splitlines() == [
        *(f"pending  {name}" for name in files),
        f"{len(ALL)} pending",
    ]

    result = run("migrate", config=config)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (OK, f"{len(ALL)} applied")

    for words in (("migrate",), ("migrate", "--check")):
        result = run(*words, config=config)
        assert (result.exit_code, result.stdout) == (OK, "the schema is up to date\n")


@pytest.mark.parametrize("words", [("migrate",), ("migrate", "--check")])
def test_beside_a_running_daemon_its_server_is_asked(
    run: Run, watched: Watched, words: tuple[str, ...]
) -> None:
    result = run(*words, config=watched.config)
    assert (result.exit_code, result.stdout) == (OK, "the schema is up to date\n")


def test_a_server_that_is_not_there_is_worth_another_try_later(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'[store]\ndsn = "postgresql://x@/y?host={tmp_path}"\n')
    assert run("migrate", "--check", config=config).exit_code == TEMPORARY
