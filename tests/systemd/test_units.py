"""The shipped units, as systemd itself judges them; needs no running systemd and no root."""

import configparser
import inspect
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from custosd.adapters.postgres.embedded import _HARD_STOP_S, embedded_postgres
from custosd.cli.exit_codes import BAD_CONFIG
from custosd.cli.main import main
from custosd.config.quantities import parse_duration
from custosd.config.settings import Config
from custosd.services.watchdog import SIGNS_A_LIMIT

PROJECT = Path(__file__).resolve().parent.parent.parent
# Templates are what agents run under: test_agent_unit.py.
UNITS = sorted(p for p in (PROJECT / "systemd").glob("*.service") if "@" not in p.name)

analyzed = pytest.mark.skipif(
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


@analyzed
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path, tmp_path: Path):
    done = analyze("verify", "--recursive-errors=yes", rendered(unit, tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


@analyzed
def test_a_mistake_in_a_unit_would_be_found(tmp_path: Path):
    copy = rendered(UNITS[0], tmp_path)
    copy.write_text(copy.read_text().replace("WatchdogSec=", "WatchdogSeconds="))
    assert "WatchdogSeconds" in analyze("verify", "--recursive-errors=yes", copy).stderr


@analyzed
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_exposed_to_little(unit: Path):
    done = analyze("security", "--offline=yes", "--threshold=20", unit)
    assert done.returncode == 0, done.stdout


def daemon_unit() -> configparser.ConfigParser:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read(PROJECT / "systemd" / "custosd.service")
    return unit


def seconds(text: str) -> float:
    return parse_duration(text.replace("min", "m"))


def default_of(function: Callable[..., object], name: str) -> float:
    return float(inspect.signature(function).parameters[name].default)


def test_the_limits_of_the_daemon_unit_fit_together():
    unit = daemon_unit()
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["RestartPreventExitStatus"] == str(BAD_CONFIG)
    # Ten failed starts, each with its pause, are over well within the interval.
    restart_s = seconds(service["RestartSec"])
    interval_s = seconds(unit["Unit"]["StartLimitIntervalSec"])
    assert restart_s * int(unit["Unit"]["StartLimitBurst"]) < interval_s


def test_systemd_is_more_patient_than_the_daemon_itself():
    service, config = daemon_unit()["Service"], Config()
    # Its PostgreSQL is asked to stop, then told to twice.
    server_s = default_of(embedded_postgres, "stop_timeout_s") + 2 * _HARD_STOP_S
    assert config.daemon.drain_s + server_s < seconds(service["TimeoutStopSec"])
    waiting = ("orphan_timeout_s", "start_timeout_s")
    start_s = sum(default_of(embedded_postgres, name) for name in waiting)
    assert start_s < seconds(service["TimeoutStartSec"])
    # Two signs of life may be lost or late; and the daemon's own patience comes before that.
    assert config.watchdog.interval_s * SIGNS_A_LIMIT <= seconds(service["WatchdogSec"])
    assert config.watchdog.stale_after_s > config.watchdog.interval_s


@pytest.mark.parametrize(("key", "command"), [("ExecStart", "run"), ("ExecReload", "reload")])
def test_the_unit_calls_custosd_as_custosd_wants_to_be_called(key: str, command: str):
    program, *words = daemon_unit()["Service"][key].split()
    assert program == "/usr/bin/custosd"
    told = CliRunner().invoke(main, [*words, "--help"])
    assert (told.exit_code, words[-1]) == (0, command), told.output


def test_agents_look_for_what_is_handed_over_where_the_daemon_may_write_it():
    service = daemon_unit()["Service"]
    folder = service["ReadWritePaths"].removeprefix("-")
    assert folder == f"/var/lib/{service['StateDirectory']}-handover"
    assert service["ExecStartPre"].endswith(f" {folder}")
    template = (PROJECT / "systemd" / "custosd-agent@.service").read_text()
    assert f" {folder}/%i/environment " in template
