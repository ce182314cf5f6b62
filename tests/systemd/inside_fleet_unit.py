"""The daemon and its agents as units of a real systemd; `test_daemon_unit.py` runs this inside one.

Everything is as it is shipped: the units, the users, polkit's rule, the client. Drop-ins and
settings shorten times, nothing else. What is true is read from what the agents wrote of their
lives, not from the daemon.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.systemd.inside_daemon_unit import custosd, writable_files
from tests.systemd.machine import (
    HAND_OVERS,
    PROJECT,
    STATE,
    UNIT,
    Journal,
    check_inside,
    install_custosd_unit,
    show,
    systemctl,
)

ETC = Path("/etc/custosd")
HOMES = Path("/var/lib/custosd-agents")
PROGRAMS = Path("/opt/fleet")
DROP_IN = Path("/etc/systemd/system/custosd-agent@killed.service.d/held.conf")
HERE = Path(__file__).parent
AGENTS = ("killed", "frozen", "mute", "waiting", "stopped", "well")

SETTINGS = """
[transcripts]
discover = false
[store]
statement_timeout = "2s"
acquire_timeout = "1s"
connect_timeout = "2s"
[guardian]
interval = "1s"
judge_timeout = "1s"
context_timeout = "500ms"
[conductor]
judge_timeout = "1s"
[watchdog]
interval = "500ms"
stale_after = "3s"
[liveness]
running_interval = "1s"
shortest_deadline = "5s"
margin = "500ms"
startup_grace = "5s"
[restarts]
backoff = "1s"
interrupt = "500ms"
graceful = "2s"
common_cause = 10
fleet_burst = 10
"""
AGENT = """
[[agent]]
id = "{name}"
control = "systemd"
unit = "custosd-agent@{name}.service"
user = "custosd-agent"
workspace = "{home}/work"
"""


def unit_of(name: str) -> str:
    return f"custosd-agent@{name}.service"


def configure(*agents: str, settings: str = SETTINGS) -> None:
    ETC.mkdir(exist_ok=True)
    tables = "".join(AGENT.format(name=name, home=HOMES / name) for name in agents)
    (ETC / "custosd.toml").write_text(settings + tables)


def lives(name: str) -> list[tuple[int, int]]:
    """Pid and epoch of each life that an agent had, by its own word."""
    with suppress(FileNotFoundError):
        lines = (HOMES / name / "lives").read_text().splitlines()
        return [(int(pid), int(epoch)) for pid, epoch in map(str.split, lines)]
    return []


def send(name: str, number: signal.Signals) -> None:
    os.kill(lives(name)[-1][0], number)


def check_heard(journal: Journal, name: str) -> None:
    """The daemon takes this agent's beats: what it says from now on is told."""
    send(name, signal.SIGUSR2)
    journal.wait_for("life.changed", agent=name, reason="waits_human")


def start_by_hand(name: str) -> None:
    """End the agent if it runs, and start it, as an operator does; it lives when this returns."""
    settings, pipe = ETC / "agents" / f"{name}.env", Path("/srv/lives")
    before = settings.read_text()
    settings.write_text(f"{before}TELLS={pipe}\n")
    os.mkfifo(pipe)
    pipe.chmod(0o666)
    systemctl("restart", unit_of(name))
    assert pipe.read_text() == "lives"
    pipe.unlink()
    settings.write_text(before)


@pytest.fixture
def fleet() -> Iterator[None]:
    """All units, users and rules installed; every agent ended and forgotten at the end."""
    check_inside()
    if not Path("/usr/lib/polkit-1/polkitd").exists():
        pytest.skip("no polkitd on this machine: the daemon may not start any unit")
    Path("/etc/sysusers.d").mkdir(exist_ok=True)
    shutil.copy(PROJECT / "systemd" / "sysusers-agent.conf", "/etc/sysusers.d/custosd-agent.conf")
    shutil.copy(PROJECT / "systemd" / "custosd-agent@.service", "/etc/systemd/system/")
    install_custosd_unit(RestartSec="200ms")
    systemctl("start", "dbus.socket")
    shutil.copy(PROJECT / "systemd" / "50-custosd.rules", "/etc/polkit-1/rules.d/")
    systemctl("restart", "polkit.service")
    PROGRAMS.mkdir(exist_ok=True)
    shutil.copy(HERE / "fleet_agent.py", PROGRAMS)
    shutil.copy(PROJECT / "daemon" / "custosd" / "client.py", PROGRAMS / "custosd_client.py")
    (ETC / "agents").mkdir(parents=True, exist_ok=True)
    for name in AGENTS:
        command = f"CUSTOSD_COMMAND=/usr/bin/python3 {PROGRAMS}/fleet_agent.py\n"
        (ETC / "agents" / f"{name}.env").write_text(command)
    yield
    systemctl("stop", UNIT, check=False)
    for name in AGENTS:
        systemctl("kill", "--signal=KILL", unit_of(name), check=False)
        systemctl("stop", unit_of(name), check=False)
        systemctl("reset-failed", unit_of(name), check=False)
        (ETC / "agents" / f"{name}.env").unlink()
    shutil.rmtree(HOMES, ignore_errors=True)


def begin(journal: Journal, *names: str) -> None:
    """Start the daemon, and these agents by hand; each is heard."""
    configure(*names)
    systemctl("start", UNIT)
    systemctl("start", *map(unit_of, names))
    journal.wait_for_all("life.changed", "agent", names, reason="heard")


def test_the_dead_and_the_frozen_come_back_and_nobody_else_is_touched(
    fleet: None, journal: Journal
):
    before = writable_files()
    begin(journal, *AGENTS)
    assert {epoch for name in AGENTS for _, epoch in lives(name)} == {0}

    send("mute", signal.SIGUSR1)
    send("waiting", signal.SIGUSR2)
    send("killed", signal.SIGKILL)
    journal.wait_for("restart.changed", agent="killed", state="succeeded")
    send("frozen", signal.SIGSTOP)
    journal.wait_for("restart.changed", agent="frozen", state="succeeded")
    for name in ("killed", "frozen"):
        (first, _), (second, epoch) = lives(name)
        assert (epoch, second != first) == (1, True)
        assert not Path("/proc", str(first)).exists()

    # Its operator stopped it: that is his business.
    systemctl("stop", unit_of("stopped"))
    journal.wait_for("life.changed", agent="stopped", after="terminated")
    # By now these were silent for several deadlines, and a second one is killed meanwhile.
    send("killed", signal.SIGKILL)
    journal.wait_for("restart.changed", agent="killed", state="succeeded")
    assert [epoch for _, epoch in lives("killed")] == [0, 1, 2]
    for name in ("mute", "waiting", "well"):
        ((pid, _),) = lives(name)
        assert Path("/proc", str(pid)).exists()
    assert len(lives("stopped")) == 1
    said = [(line.get("agent"), line.get("reason")) for line in journal.lines]
    assert ("mute", "beats_lost_progress_seen") in said
    assert ("waiting", "waits_human") in said
    touched = {line["agent"] for line in journal.lines if line.get("event") == "restart.changed"}
    assert touched == {"killed", "frozen"}

    # He starts it again: it is heard, as who it was.
    start_by_hand("stopped")
    check_heard(journal, "stopped")
    assert [epoch for _, epoch in lives("stopped")] == [0, 0]

    # The agents' own files are theirs; the daemon wrote nowhere else.
    systemctl("stop", UNIT)
    assert {p: s for p, s in writable_files().items() if not p.startswith(str(HOMES))} == before


def test_agents_outlive_the_daemon_and_are_known_again(fleet: None, journal: Journal):
    begin(journal, "well", "killed", "stopped")
    systemctl("stop", UNIT)
    ((pid, _),) = lives("well")
    assert Path("/proc", str(pid)).exists()
    send("killed", signal.SIGKILL)
    systemctl("stop", unit_of("stopped"))
    systemctl("start", UNIT)
    # Who died meanwhile is found, and nobody else is taken for dead because of our absence,
    # nor because somebody stopped it: until the second time they would be, too.
    for _ in range(2):
        journal.wait_for("restart.changed", agent="killed", state="succeeded")
        send("killed", signal.SIGKILL)
    check_heard(journal, "well")
    assert [len(lives(name)) for name in ("well", "killed", "stopped")] == [1, 3, 1]


def test_a_daemon_that_is_killed_before_a_start_is_followed_by_one_that_starts_once(
    fleet: None, journal: Journal
):
    settings = ETC / "agents" / "killed.env"
    settings.write_text(settings.read_text() + "STOPS_AFTER_S=1.5\n")
    begin(journal, "killed", "well")
    assert custosd("restart", "killed").returncode == 0
    journal.wait_for("restart.changed", agent="killed", state="running")
    # It has been asked to end, and takes its time.
    systemctl("kill", "--kill-who=main", "--signal=KILL", UNIT)
    journal.wait_for("daemon.ready")
    journal.wait_for("restart.changed", agent="killed", state="succeeded")
    assert [epoch for _, epoch in lives("killed")] == [0, 1]
    assert len(lives("well")) == 1
    assert show("NRestarts") == "1"


@pytest.fixture
def pipes() -> Iterator[tuple[Path, Path]]:
    """Two pipes that agents may use, and no drop-in of "killed" when they are gone."""
    both = Path("/srv/began"), Path("/srv/go-on")
    for pipe in both:
        os.mkfifo(pipe)
        pipe.chmod(0o666)
    yield both
    for pipe in both:
        pipe.unlink()
    shutil.rmtree(DROP_IN.parent, ignore_errors=True)
    systemctl("daemon-reload")


def hold_the_next_start(began: Path, go_on: Path) -> None:
    """From its next start on, the unit of "killed" tells by one pipe, and waits for the other."""
    DROP_IN.parent.mkdir()
    DROP_IN.write_text(f"[Service]\nExecStartPre=/bin/sh -c 'echo it > {began}; cat {go_on}'\n")
    systemctl("daemon-reload")


def test_a_daemon_that_is_killed_in_a_start_is_followed_by_one_that_does_not_start_again(
    fleet: None, pipes: tuple[Path, Path], journal: Journal
):
    began, go_on = pipes
    begin(journal, "killed", "well")
    hold_the_next_start(began, go_on)
    send("killed", signal.SIGKILL)
    assert began.read_text() == "it\n"
    systemctl("kill", "--kill-who=main", "--signal=KILL", UNIT)
    journal.wait_for("daemon.ready")
    assert len(lives("killed")) == 1
    go_on.write_text("")
    journal.wait_for("restart.changed", agent="killed", state="succeeded")
    assert [epoch for _, epoch in lives("killed")] == [0, 1]
    assert len(lives("well")) == 1


def test_one_service_that_stands_still_is_the_end_of_the_daemon_and_of_no_agent(
    fleet: None, journal: Journal
):
    shutil.copy(HERE / "wedged_daemon.py", "/opt/wedged_daemon.py")
    install_custosd_unit(
        program="/opt/wedged_daemon.py",
        RestartSec="200ms",
        WatchdogSec="4s",
        TimeoutAbortSec="2s",
    )
    configure("well")
    systemctl("start", UNIT)
    systemctl("start", unit_of("well"))
    starved = journal.wait_for("watchdog.starved")
    assert starved["services"] == ["guardian"]
    journal.wait_for_text("Watchdog timeout")
    journal.wait_for("daemon.ready")
    assert show("NRestarts") == "1"
    journal.wait_for("sweep.finished")
    assert len(lives("well")) == 1


def test_a_good_file_is_taken_up_and_a_bad_one_is_not(fleet: None, journal: Journal):
    begin(journal, "well")
    pid = show("MainPID")
    systemctl("start", unit_of("killed"))
    better = SETTINGS.replace('margin = "500ms"', 'margin = "700ms"')
    configure("well", "killed", settings=better)
    systemctl("reload", UNIT)
    assert "liveness.margin" in journal.wait_for("config.reloaded")["changed"]
    # Nobody listened to it before.
    journal.wait_for("life.changed", agent="killed", reason="heard")

    configure("well", settings=SETTINGS.replace('margin = "500ms"', 'margin = "soon"'))
    done = subprocess.run(
        ["systemctl", "reload", UNIT], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    refused = journal.wait_for("config.refused")
    place = SETTINGS.split("\n").index('margin = "500ms"') + 1
    assert f"{ETC}/custosd.toml:{place}: liveness.margin" in refused["error"]
    assert (show("ActiveState"), show("MainPID")) == ("active", pid)
    assert 'liveness.margin = "700ms"' in custosd("why", "well").stdout

    configure("well", settings=better)
    systemctl("kill", "--kill-who=main", "--signal=HUP", UNIT)
    journal.wait_for("config.reloaded")
    assert custosd("why", "killed").returncode == 1
    assert (show("ActiveState"), show("MainPID")) == ("active", pid)
    assert [len(lives(name)) for name in ("well", "killed")] == [1, 1]


def test_an_agent_that_is_started_by_hand_after_a_reload_is_who_it_was(
    fleet: None, journal: Journal
):
    begin(journal, "well")
    assert custosd("restart", "well").returncode == 0
    journal.wait_for("restart.changed", agent="well", state="succeeded")
    systemctl("reload", UNIT)
    assert (STATE.stat().st_mode & 0o777, HAND_OVERS.stat().st_mode & 0o777) == (0o700, 0o711)
    start_by_hand("well")
    check_heard(journal, "well")
    assert [epoch for _, epoch in lives("well")] == [0, 1, 1]


@pytest.fixture
def database() -> Iterator[str]:
    """A server that asks for a password; its DSN without one."""
    binaries = Path("/usr/lib/postgresql/15/bin")
    if not binaries.is_dir():
        pytest.skip("no PostgreSQL 15 on this machine")
    folder = Path("/srv/pg")
    folder.mkdir()
    shutil.chown(folder, "postgres", "postgres")
    password = folder / "password"
    password.write_text("open sesame")
    password.chmod(0o644)
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    init = [binaries / "initdb", "-A", "scram-sha-256", f"--pwfile={password}", folder / "data"]
    subprocess.run([*as_postgres, *init], check=True, capture_output=True)
    options = f"-c listen_addresses= -c unix_socket_directories={folder}"
    control = [*as_postgres, binaries / "pg_ctl", "-D", folder / "data", "-w"]
    subprocess.run(
        [*control, "-o", options, "-l", folder / "log", "start"], check=True, capture_output=True
    )
    yield f"postgresql://postgres@/postgres?host={folder}"
    subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True)
    shutil.rmtree(folder)


def test_a_credential_reaches_the_daemon_and_nobody_else(
    fleet: None, database: str, journal: Journal
):
    secret = ETC / "database-password"
    configure("well")
    secret.write_text("open sesame")
    secret.chmod(0o600)
    store = f'[store]\ndsn = "{database}"\npassword_credential = "database-password"\n'
    configure("well", settings=SETTINGS.replace("[store]\n", store))
    install_custosd_unit(LoadCredential=f"database-password:{secret}")
    systemctl("start", UNIT)
    journal.wait_for("daemon.ready")
    assert not (STATE / "postgres").exists()
    environ = Path("/proc", show("MainPID"), "environ").read_bytes()
    assert b"CREDENTIALS_DIRECTORY" in environ
    assert b"open sesame" not in environ
    assert custosd("restart", "well").returncode == 0
    journal.wait_for("restart.changed", agent="well", state="succeeded")
    of_agent = Path("/proc", str(lives("well")[-1][0]), "environ").read_bytes()
    assert b"CREDENTIALS_DIRECTORY" not in of_agent
    given = Path("/run/credentials", UNIT, "database-password")
    for user, may in (("custosd", True), ("custosd-agent", False)):
        read = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "cat", given]
        done = subprocess.run(read, capture_output=True, text=True, check=False)
        assert (done.returncode == 0, done.stdout) == (may, "open sesame" if may else "")
    assert not any("open sesame" in str(line["MESSAGE"]) for line in journal.lines)
