"""custosd status: 0 where a daemon runs, 3 where none does, 4 where that is not known."""

import json
from pathlib import Path

from tests.cli.conftest import Run, Watched

from custosd.cli.exit_codes import BAD_CONFIG, NOT_RUNNING, OK, STATUS_UNKNOWN


def test_a_running_daemon_is_told_with_its_fleet(run: Run, watched: Watched) -> None:
    result = run("status", config=watched.config)
    assert result.exit_code == OK
    first, *standings, fleet = result.stdout.splitlines()
    assert fleet.startswith("  the fleet is ")
    assert first.startswith("custosd ")
    assert f" runs as process {watched.pid} for " in first
    assert "agents, " in first
    assert sum(int(line.split()[0]) for line in standings) == 4


def test_the_form_of_the_answer(run: Run, watched: Watched) -> None:
    told = json.loads(run("status", "--json", config=watched.config).stdout)
    assert list(told) == ["running", "daemons", "standings", "lives", "trouble", "fleet"]
    assert told["running"] is True
    assert told["trouble"] == ""
    assert sum(told["standings"].values()) == 4
    (daemon,) = told["daemons"]
    assert list(daemon) == [
        *("name", "pid", "version", "started_utc", "beat_utc", "agents", "sweeps", "stopped")
    ]
    assert daemon["pid"] == watched.pid


def test_where_nothing_runs_that_is_the_answer(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'[daemon]\nstate_dir = "{tmp_path}/state"\n')
    result = run("status", config=config)
    assert result.exit_code == NOT_RUNNING
    assert result.stdout.startswith("custosd is not running (no database runs on ")
    result = run("status", "--json", config=config)
    assert result.exit_code == NOT_RUNNING
    told = json.loads(result.stdout)
    assert (told["running"], told["daemons"], told["standings"]) == (False, [], {})
    assert not (tmp_path / "state").exists()


def test_a_database_out_of_reach_leaves_it_open(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'[store]\ndsn = "postgresql://x@/y?host={tmp_path}"\n')
    result = run("status", config=config)
    assert result.exit_code == STATUS_UNKNOWN
    assert result.stdout.startswith("whether custosd runs is not known: ")
    result = run("status", "--json", config=config)
    assert result.exit_code == STATUS_UNKNOWN
    assert json.loads(result.stdout)["running"] is None


def test_a_bad_configuration_is_told_from_all_of_these(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[daemon]\nnam = 1\n")
    result = run("status", config=config)
    assert (result.exit_code, result.stdout) == (BAD_CONFIG, "")
    assert "did you mean daemon.name?" in result.stderr
