"""Boots a real systemd and runs the `inside_*.py` there; skips where that cannot be."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
SCRIPT = HERE / "with-systemd.sh"


def with_systemd(*args: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([SCRIPT, *args], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    return done


@pytest.mark.systemd
def test_a_command_runs_in_a_machine_of_its_own_and_leaves_nothing(tmp_path: Path):
    kept, lost = tmp_path / "kept", Path("/opt/with-systemd-was-here")
    kept.mkdir()
    story = (
        f"touch {kept}/file {lost}; systemctl is-active command.service; cat /proc/1/comm; exit 7"
    )
    done = with_systemd("--bind", kept, "--", "bash", "-c", story)
    assert (done.returncode, done.stdout.split()) == (7, ["active", "systemd"])
    assert (kept / "file").exists()
    assert not lost.exists()


@pytest.mark.systemd
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "inside", ["inside_toy_unit.py", "inside_daemon_unit.py", "inside_fleet_unit.py"]
)
def test_the_daemon_under_a_real_systemd(
    inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WITH_SYSTEMD_TIMEOUT_S", "240")
    done = with_systemd(
        *("--bind", PROJECT, "--bind", tmp_path, "--"),
        *(sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider"),
        *("--basetemp", tmp_path / "inside", "--durations=0", HERE / inside),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
