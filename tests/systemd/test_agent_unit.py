"""What agents run under, as systemd judges it; and boots one to run `inside_agent_unit.py`."""

import sys
from pathlib import Path

import pytest
from tests.systemd.test_daemon_unit import HERE, PROJECT, with_systemd
from tests.systemd.test_units import analyze, analyzed

UNIT = PROJECT / "systemd" / "custosd-agent@.service"
MOST_EXPOSED = "30"
"""Ten times the figure. Agents need the network, namespaces for sandboxes, and their own tools."""


@analyzed
def test_systemd_finds_nothing_wrong_with_the_unit():
    done = analyze("verify", "--recursive-errors=yes", UNIT)
    assert (done.returncode, done.stderr) == (0, "")


@analyzed
def test_a_mistake_in_the_unit_would_be_found(tmp_path: Path):
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("Slice=", "Slize="))
    assert "Slize" in analyze("verify", "--recursive-errors=yes", copy).stderr


@analyzed
def test_an_agent_is_exposed_to_no_more_than_it_needs():
    done = analyze("security", "--offline=yes", f"--threshold={MOST_EXPOSED}", UNIT)
    assert done.returncode == 0, done.stdout


@pytest.mark.systemd
@pytest.mark.timeout(300)
def test_agents_under_a_real_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WITH_SYSTEMD_TIMEOUT_S", "240")
    done = with_systemd(
        *("--bind", PROJECT, "--bind", tmp_path, "--"),
        *(sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider"),
        *("--basetemp", tmp_path / "inside", "--durations=5", HERE / "inside_agent_unit.py"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
