"""The shipped units, as systemd itself judges them; needs no running systemd and no root."""

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent
UNITS = sorted((PROJECT / "systemd").glob("*.service"))

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine"
)


def analyze(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *args], capture_output=True, text=True, check=False, timeout=30
    )


def rendered(unit: Path, folder: Path) -> Path:
    """A copy whose command exists on this machine, as `verify` looks for it."""
    text = unit.read_text()
    assert "ExecStart=/usr/bin/custosd " in text
    copy = folder / unit.name
    copy.write_text(text.replace("/usr/bin/custosd", sys.executable))
    return copy


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path, tmp_path: Path):
    done = analyze("verify", "--recursive-errors=yes", rendered(unit, tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_mistake_in_a_unit_would_be_found(tmp_path: Path):
    copy = rendered(UNITS[0], tmp_path)
    copy.write_text(copy.read_text().replace("WatchdogSec=", "WatchdogSeconds="))
    assert "WatchdogSeconds" in analyze("verify", "--recursive-errors=yes", copy).stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_exposed_to_little(unit: Path):
    done = analyze("security", "--offline=yes", "--threshold=20", unit)
    assert done.returncode == 0, done.stdout


def test_the_limits_of_the_daemon_unit_fit_together():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read(PROJECT / "systemd" / "custosd.service")
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["RestartPreventExitStatus"] == "78"
    # Ten failed starts, each with its pause, are over well within the interval.
    restart_s = float(service["RestartSec"].removesuffix("s"))
    assert restart_s * int(unit["Unit"]["StartLimitBurst"]) < 600
    assert unit["Unit"]["StartLimitIntervalSec"] == "10min"
