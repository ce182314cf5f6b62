"""custosd under a real systemd, by its shipped unit; `test_daemon_unit.py` runs this inside one.

Drop-ins shorten the unit's times, nothing else. Transcripts are made here, in custosd's own
format.
"""

import errno
import fcntl
import json
import os
import pwd
import re
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.systemd.machine import (
    HAND_OVERS,
    PROJECT,
    STATE,
    UNIT,
    Journal,
    install_custosd_unit,
    mount_points,
    processes_of_the_unit,
    processes_of_the_user,
    show,
    status,
    systemctl,
)

ETC = Path("/etc/custosd")
AGENTS = Path("/srv/agents")
HOLD = Path("/srv/hold")
ADA = 4711
"""A user id that is nobody's on this machine; an agent runs as it."""
NO_ID = 0xFFFFFFFF

QUICK = """
[transcripts]
rescan = "1s"
[[transcripts.root]]
path = "{root}"
[guardian]
interval = "1s"
cadence = "0s"
grace = "0s"
[recorder]
flush = "1m"
"""
"""Looks each second, at everything that changed. What is told of it stays in memory for long."""


class Transcript:
    """An agent at work: each step reads another file."""

    def __init__(self, path: Path, name: str = "ada", mode: int = 0o644) -> None:
        self.path = path
        self.agent = f"custosd:{name}"
        self._numbers = count(1)
        path.touch(mode)
        path.chmod(mode)
        self.write({"custosd": 1, "session": f"{name}-1", "agent": name, "goal": "Read the code"})

    def write(self, *records: dict[str, Any]) -> None:
        self.put("".join(json.dumps(record) + "\n" for record in records))

    def put(self, text: str) -> None:
        with self.path.open("a") as file:
            file.write(text)

    def step(self) -> dict[str, Any]:
        n = next(self._numbers)
        return {"type": "step", "action": f"cat f{n}.py", "observation": f"n = {n}", "exit_code": 0}

    def work(self, steps: int) -> None:
        self.write(*(self.step() for _ in range(steps)))


def configure(text: str) -> None:
    ETC.mkdir(exist_ok=True)
    (ETC / "custosd.toml").write_text(text)


@pytest.fixture
def transcript() -> Iterator[Transcript]:
    """The unit is installed, and set up to watch the agent that writes this."""
    install_custosd_unit(RestartSec="1s")
    configure(QUICK.format(root=AGENTS))
    AGENTS.mkdir(parents=True, exist_ok=True)
    yield Transcript(AGENTS / "ada.jsonl")
    for path in AGENTS.iterdir():
        path.unlink()


def custosd(*words: str, user: str = "root") -> subprocess.CompletedProcess[str]:
    """What a person gets who calls it from a shell of that user."""
    command = ["runuser", "-u", user, "--", "custosd", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")


def asked(*words: str) -> Any:
    done = custosd(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def time_of(line: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(line["ts"])


def test_a_start_lasts_until_the_schema_is_there_and_the_first_sweep_is_done(
    transcript: Transcript, journal: Journal
):
    systemctl("start", UNIT)
    assert show("ActiveState") == "active"
    words = show("StatusText")
    entered = show("ActiveEnterTimestamp").replace("UTC", "+0000")
    started_utc = datetime.strptime(entered, "%a %Y-%m-%d %H:%M:%S.%f %z")

    migrated = journal.wait_for("database.migrated")
    swept = journal.wait_for("sweep.finished")
    ready = journal.wait_for("daemon.ready")

    assert ready["_PID"] == str(ready["pid"]) == show("MainPID")
    assert (ready["PRIORITY"], swept["PRIORITY"]) == ("6", "6")
    assert time_of(migrated) < time_of(swept) < time_of(ready)
    assert time_of(ready) < started_utc
    assert re.fullmatch(r"\d agents?(: .*)?", words)
    assert f'Status: "{words.split(":")[0]}' in status()


def test_a_transcript_that_grows_leads_to_verdicts_in_the_journal(
    transcript: Transcript, journal: Journal
):
    install_custosd_unit(WatchdogSec="2s", RestartSec="1s")
    systemctl("start", UNIT)
    transcript.work(3)
    verdict = journal.wait_for("verdict.reached", steps=3)
    assert verdict["agent"] == transcript.agent
    assert (verdict["standing"], verdict["needs_steering"]) == ("progressing", False)
    assert (verdict["run"], verdict["judge"]) == ("ada-1", "rules")
    assert verdict["PRIORITY"] == "6"

    again = {"type": "step", "action": "make test", "observation": "Error 2", "exit_code": 2}
    transcript.write(again, again, again, again)
    verdict = journal.wait_for("verdict.reached", steps=7, standing="stuck")
    assert verdict["evidence"] == [3, 4, 5, 6]
    journal.wait_for("standing.changed", agent=transcript.agent, after="stuck")
    for _ in range(4):  # for longer than the watchdog waits
        journal.wait_for("sweep.finished")
    assert (show("NRestarts"), show("StatusText")) == ("0", "1 agent: 1 stuck")

    # What systemd does to one that hangs.
    systemctl("kill", "--kill-who=main", "--signal=ABRT", UNIT)
    journal.wait_for_text("Fatal Python error: Aborted")
    journal.wait_for_text("in run_to_the_end")


def test_a_stop_stores_everything_and_leaves_no_process(transcript: Transcript, journal: Journal):
    systemctl("start", UNIT)
    transcript.work(12)
    journal.wait_for("verdict.reached", steps=12)
    running = processes_of_the_unit()
    assert processes_of_the_user().items() <= running.items()
    assert any("postgres -D /var/lib/custosd" in command for command in running.values())
    for user in ("root", "custosd"):
        told = custosd("status", user=user)
        assert (told.returncode, told.stderr) == (0, "")
        assert f"runs as process {show('MainPID')}" in told.stdout
    # Its state is closed to others: they are not told that it does not run.
    assert custosd("status", user="nobody").returncode == 4

    systemctl("stop", UNIT)

    assert (show("ActiveState"), show("Result")) == ("inactive", "success")
    for event in ("daemon.stopping", "daemon.stopped"):
        journal.wait_for(event)
    assert journal.wait_for("postgres.stopped")["signal"] == "SIGINT"
    assert processes_of_the_user() == {}
    assert not any(Path("/proc", str(pid)).exists() for pid in running)
    assert [custosd("status", user=user).returncode for user in ("root", "custosd")] == [3, 3]

    # What it knows now, it has from its store.
    transcript.path.unlink()
    systemctl("start", UNIT)
    found = asked("agents", "show", transcript.agent)
    assert found["agent"]["trajectory"]["steps"] == 12
    assert [verdict["steps"] for verdict in found["verdicts"]][:1] == [12]
    assert "not properly shut down" not in (STATE / "postgres.log").read_text()


def test_a_killed_daemon_comes_back_and_counts_every_step_once(
    transcript: Transcript, journal: Journal
):
    HOLD.touch()
    install_custosd_unit(RestartSec="100ms", ExecStartPre=f"flock {HOLD} true")
    systemctl("start", UNIT)
    first = journal.wait_for("daemon.ready")
    transcript.work(20)
    journal.wait_for("verdict.reached", steps=20)
    (before,) = asked("agents", "list")
    running = processes_of_the_unit()
    half_a_line = json.dumps(transcript.step()) + "\n"
    transcript.put(half_a_line[:20])

    with HOLD.open() as hold:
        fcntl.flock(hold, fcntl.LOCK_EX)
        systemctl("kill", "--kill-who=main", "--signal=KILL", UNIT)
        journal.wait_for_text("Scheduled restart job")
        assert processes_of_the_user().keys().isdisjoint(running)
        transcript.put(half_a_line[20:])
        transcript.work(9)
    second = journal.wait_for("daemon.ready")
    assert first["_PID"] != second["_PID"] == show("MainPID")
    transcript.work(5)
    verdict = journal.wait_for("verdict.reached", steps=35)
    (after,) = asked("agents", "list")
    assert (show("NRestarts"), show("ActiveState")) == ("1", "active")
    for name in ("agent", "run", "seen_utc"):
        assert after[name] == before[name]
    assert verdict["run"] == before["run"]
    assert (before["trajectory"]["steps"], after["trajectory"]["steps"]) == (20, 35)

    # As after a loss of power: its PostgreSQL could not say goodbye either.
    systemctl("kill", "--kill-who=all", "--signal=KILL", UNIT)
    journal.wait_for("daemon.ready")
    assert "automatic recovery" in (STATE / "postgres.log").read_text()
    (recovered,) = asked("agents", "list")
    for name in ("agent", "run", "seen_utc", "trajectory"):
        assert recovered[name] == after[name]


def test_a_bad_configuration_is_told_as_a_whole_and_not_tried_again(
    transcript: Transcript, journal: Journal
):
    configure('[guardian]\ninterval = "soon"\nconcurency = 3\n[daemon]\ndrain = "2h"\n')
    systemctl("start", UNIT, check=False)
    assert (show("ActiveState"), show("SubState")) == ("failed", "failed")
    assert (show("ExecMainStatus"), show("NRestarts")) == ("78", "0")
    file = ETC / "custosd.toml"
    journal.wait_for_text("Failed with result")
    said = "\n".join(line["MESSAGE"] for line in journal.lines)
    for problem in (f"{file}:2: guardian.interval", f"{file}:3: guardian.concurency", f"{file}:5:"):
        assert problem in said
    assert not (STATE / "postgres").exists()


def test_it_writes_nowhere_but_into_its_state(transcript: Transcript, journal: Journal):
    AGENTS.chmod(0o777)  # as if everybody could
    transcript.path.chmod(0o666)
    transcript.work(4)
    before = writable_files()
    assert {str(AGENTS), str(transcript.path)} <= before.keys()
    systemctl("start", UNIT)
    journal.wait_for("verdict.reached", steps=4)
    systemctl("stop", UNIT)
    assert writable_files() == before
    names = {path.name for path in STATE.iterdir()}
    assert names == {"postgres", "postgres.lock", "postgres.log"}


def writable_files() -> dict[str, tuple[int, ...]]:
    """All that the daemon's user owns or may write but its state: mode; of files size and time."""
    found: dict[str, tuple[int, ...]] = {}
    uid = pwd.getpwnam("custosd").pw_uid
    # What is mounted is not this machine's. A private /tmp comes and goes with the service.
    left_out = mount_points() | {str(STATE), str(HAND_OVERS)}
    for top in ("/etc", "/home", "/opt", "/run", "/srv", "/tmp", "/var", "/dev/shm"):
        for folder, folders, names in os.walk(top):
            folders[:] = [
                name
                for name in folders
                if f"{folder}/{name}" not in left_out and not name.startswith("systemd-private-")
            ]
            for path in (folder, *(f"{folder}/{name}" for name in names)):
                with suppress(FileNotFoundError):
                    status = os.lstat(path)
                    if status.st_uid != uid and not status.st_mode & stat.S_IWOTH:
                        continue
                    if stat.S_ISREG(status.st_mode):
                        found[path] = (status.st_mode, status.st_size, status.st_mtime_ns)
                    elif not stat.S_ISLNK(status.st_mode):
                        found[path] = (status.st_mode,)
    return found


@pytest.fixture
def home() -> Iterator[Path]:
    """A home that is closed to others, with the folder that ada's agents write into."""
    home = Path("/home/ada")
    sessions = home / ".codex" / "sessions"
    sessions.mkdir(parents=True)
    for folder in (home, home / ".codex"):
        folder.chmod(0o700)
        os.chown(folder, ADA, ADA)
    os.chown(sessions, ADA, ADA)
    yield home
    shutil.rmtree(home)


def test_a_home_is_read_only_if_its_owner_says_so(
    transcript: Transcript, home: Path, journal: Journal
):
    sessions = home / ".codex" / "sessions"
    configure(QUICK.format(root=sessions))
    Transcript(sessions / "old.jsonl", "old").work(1)
    systemctl("start", UNIT)
    closed = journal.wait_for("transcript.troubled")
    assert (closed["kind"], closed["error"]) == ("unreadable", "EACCES")
    journal.wait_for("daemon.ready")
    assert journal.wait_for("sweep.finished")["agents"] == 0

    comment = (PROJECT / "systemd" / UNIT).read_text()
    commands = re.findall(r"^#     (setfacl .*)$", comment, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        setfacl(command.split())

    journal.wait_for("verdict.reached", agent="custosd:old")
    Transcript(sessions / "new.jsonl", "new").work(1)
    journal.wait_for("verdict.reached", agent="custosd:new")
    secret = Transcript(sessions / "secret.jsonl", "secret", mode=0o600)
    secret.work(1)
    assert journal.wait_for("transcript.troubled", path=str(secret.path))["kind"] == "unreadable"

    capability = "CAP_DAC_READ_SEARCH"
    assert f"AmbientCapabilities={capability}" in comment
    install_custosd_unit(CapabilityBoundingSet=capability, AmbientCapabilities=capability)
    systemctl("restart", UNIT)
    journal.wait_for("verdict.reached", agent=secret.agent)


def setfacl(words: list[str]) -> None:
    """What setfacl does, as far as the unit's comment needs it; not every machine has one."""
    if shutil.which(words[0]):
        subprocess.run(words, check=True)
        return
    del words[0]
    recursive = words[0] == "-R"
    for top in (word for word in words if word.startswith("/")):
        below = [str(path) for path in Path(top).rglob("*")] if recursive else []
        for path in (top, *below):
            for spec in (word for word in words if ":" in word):
                grant(path, spec)


def grant(path: str, spec: str) -> None:
    """`[d:]u:NAME:PERMISSIONS` as the extended attribute that the kernel keeps it in."""
    *default, _, name, wanted = spec.split(":")
    mode = os.stat(path).st_mode  # noqa: PTH116 - a text, as setfacl's arguments are
    if default and not stat.S_ISDIR(mode):
        return
    searchable = stat.S_ISDIR(mode) or mode & 0o111
    bits = {"r": 4, "w": 2, "x": 1, "X": 1 if searchable else 0}
    given = sum(bits[letter] for letter in wanted)
    group = mode >> 3 & 7
    entries = [
        (0x01, mode >> 6 & 7, NO_ID),
        (0x02, given, pwd.getpwnam(name).pw_uid),
        (0x04, group, NO_ID),
        (0x10, group | given, NO_ID),  # the mask
        (0x20, mode & 7, NO_ID),
    ]
    packed = b"".join(struct.pack("<HHI", *entry) for entry in entries)
    kind = "default" if default else "access"
    try:
        os.setxattr(path, f"system.posix_acl_{kind}", struct.pack("<I", 2) + packed)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip("this kernel's tmpfs has no access control lists")
