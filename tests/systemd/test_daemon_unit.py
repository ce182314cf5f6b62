"""Boots a real systemd and runs `inside_daemon_unit.py` there; skips where that cannot be."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
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
@pytest.mark.timeout(180)
def test_the_daemon_under_a_real_systemd(tmp_path: Path):
    done = with_systemd(
        *("--bind", HERE.parent.parent, "--bind", tmp_path, "--"),
        *(sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider"),
        *("--basetemp", tmp_path / "inside", HERE / "inside_daemon_unit.py"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
