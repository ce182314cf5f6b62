"""The commands that ask the daemon: what they send, what they print, how they end."""

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest
import trio
from click.testing import CliRunner, Result

from custosd.adapters.control_socket import (
    ControlAccess,
    ControlLimits,
    Peer,
    serve_control,
)
from custosd.cli import acts
from custosd.cli.acts import act_commands, control_path
from custosd.cli.budget import budget
from custosd.cli.exit_codes import BAD_CONFIG, FAILURE, NO_PERMISSION, NOT_RUNNING, OK, USAGE
from custosd.config.reading import read_config
from custosd.core.acts import TELLING, Act, ActAnswer, ActOutcome, ActRequest

EVIL = "ev[/bold][red]\x1b]0;owned\x07il\u202e"
ME = f"uid:{os.geteuid()} (ada)"


DONE = ActAnswer(ActOutcome.DONE, "it is done")


@dataclass
class Door:
    """Answers as it is told, and remembers the requests."""

    answer: ActAnswer = DONE
    asked: list[ActRequest] = field(default_factory=list)

    async def perform(self, request: ActRequest) -> ActAnswer:
        self.asked.append(request)
        return self.answer


class Nobody(ControlAccess):
    def admits(self, peer: Peer) -> bool:
        return False


class Served:
    """A control socket on a thread of its own, as the daemon's is in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.door = Door()
        self.access = ControlAccess()
        self.path = folder / "run" / "control.sock"
        self.config = folder / "custosd.toml"
        self.config.write_text(f'[daemon]\nstate_dir = "{folder}"\n')
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve, ready))
        self._thread.start()
        assert ready.wait(20)

    async def _serve(self, ready: threading.Event) -> None:
        async def name_of(uid: int) -> str:
            return "ada"

        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            limits = ControlLimits()
            await nursery.start(serve_control, self.path, self.door, self.access, limits, name_of)
            ready.set()

    def stop(self) -> None:
        if self._thread is not None:
            trio.from_thread.run_sync(self._scope.cancel, trio_token=self._token)
            self._thread.join()
            self._thread = None


@pytest.fixture
def served() -> Iterator[Served]:
    folder = Path(tempfile.mkdtemp(prefix="custosd-acts-"))
    found = Served(folder)
    found.start()
    yield found
    found.stop()
    shutil.rmtree(folder)


@click.group()
@click.option("--config")
@click.pass_context
def group(ctx: click.Context, config: str) -> None:
    ctx.obj = {"config": [config], "log_format": None, "log_level": None}


for _command in (*act_commands, budget):
    group.add_command(_command)

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    def invoke(config: object, *words: object, given: str | bytes | None = None) -> Result:
        env = {"HOME": "/nonexistent", "COLUMNS": "200", "CUSTOSD_CONFIG": None}
        env |= {"STATE_DIRECTORY": None, "RUNTIME_DIRECTORY": None}
        result = CliRunner().invoke(
            group, ["--config", str(config), *map(str, words)], env=env, input=given
        )
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


Sent = tuple[Act, str, str, dict[str, Any]]
COMMANDS: list[tuple[list[str], Sent]] = [
    (["steer", "bob", "run them"], (Act.STEER, "bob", "run them", {"kind": "guidance"})),
    (
        ["steer", "bob", "x", "--kind", "emergency", "--wait", "15s", "--key", "k"],
        (Act.STEER, "bob", "x", {"kind": "emergency", "wait_s": 15.0, "key": "k"}),
    ),
    (["approve", "m-1"], (Act.APPROVE, "m-1", "", {})),
    (["reject", "m-1"], (Act.REJECT, "m-1", "", {})),
    (["restart", "bob", "--reason", "hm"], (Act.RESTART, "bob", "", {"reason": "hm"})),
    (["quarantine", "bob"], (Act.QUARANTINE, "bob", "", {})),
    (["release", "bob"], (Act.RELEASE, "bob", "", {})),
    (["pause", "fleet", "--for", "1h30m"], (Act.PAUSE, "fleet", "", {"for_s": 5_400.0})),
    (
        ["pause", "bob", "--until", "2026-01-31T18:00:00+02:00"],
        (Act.PAUSE, "bob", "", {"until": "2026-01-31T16:00:00+00:00"}),
    ),
    (["resume", "bob"], (Act.RESUME, "bob", "", {})),
    (["estop", "--reason", "fire"], (Act.ESTOP, "fleet", "", {"reason": "fire"})),
    (["thaw"], (Act.THAW, "fleet", "", {})),
    (["silence", "bob"], (Act.SILENCE, "bob", "", {})),
    (["silence", "bob", "--for", "0s"], (Act.SILENCE, "bob", "", {"for_s": 0.0})),
    (["ack", "life:bob", "--for", "2d"], (Act.ACK, "life:bob", "", {"for_s": 172_800.0})),
    (["reload"], (Act.RELOAD, "", "", {})),
    (["why", "bob"], (Act.WHY, "bob", "", {})),
    (["forecast", "bob"], (Act.FORECAST, "bob", "", {})),
    (["tasks"], (Act.TASKS, "", "", {})),
    (["budget", "show"], (Act.BUDGET, "", "", {})),
    (["emergency", "bob"], (Act.EMERGENCY, "bob", "", {"deadline_s": 60.0})),
    (
        ["emergency", "bob", "ada", "--deadline", "2m"],
        (Act.EMERGENCY, "bob\nada", "", {"deadline_s": 120.0}),
    ),
    (["cycle", "--once"], (Act.CYCLE, "", "", {"deadline_s": 60.0})),
    (["cycle", "--once", "--timeout", "5s"], (Act.CYCLE, "", "", {"deadline_s": 5.0})),
]
CHANGING = [words for words, sent in COMMANDS if sent[0] not in TELLING]


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine's zone is UTC, wherever it stands."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(("words", "sent"), COMMANDS, ids=lambda found: str(found)[:40])
def test_a_command_asks_for_what_it_says(
    run: Run, served: Served, utc: None, words: list[str], sent: Sent
) -> None:
    result = run(served.config, *words)
    assert (result.exit_code, result.stdout, result.stderr) == (OK, "it is done\n", "")
    act, subject, text, arguments = sent
    assert served.door.asked == [ActRequest(act, ME, subject, text, arguments)]


@pytest.mark.parametrize("words", CHANGING, ids=lambda words: words[0])
def test_whatever_changes_something_can_be_tried(
    run: Run, served: Served, words: list[str]
) -> None:
    served.door.answer = ActAnswer(ActOutcome.WOULD_BE_DONE, "it would be done")
    result = run(served.config, *words, "--dry-run")
    assert (result.exit_code, result.stdout) == (OK, "it would be done\n")
    assert [request.dry_run for request in served.door.asked] == [True]


def test_all_acts_have_a_command() -> None:
    elsewhere = {Act.ENROL, Act.DISMISS, Act.TASK, Act.SYNC}  # `custosd drill`, `task`, `sync`
    assert {command.name for command in (*act_commands, budget)} == {*Act} - elsewhere


@pytest.mark.parametrize("words", [words for words, _ in COMMANDS], ids=lambda words: words[0])
def test_every_command_says_what_it_is_for(run: Run, words: list[str]) -> None:
    # A command of a group is its second word.
    result = run("x", *words[: 2 if words[0] == "budget" else 1], "--help")
    assert result.exit_code == OK
    assert "--json" in result.stdout
    assert "--socket" in result.stdout


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (ActOutcome.DONE, OK),
        (ActOutcome.WOULD_BE_DONE, OK),
        (ActOutcome.NOTHING_TO_DO, OK),
        (ActOutcome.PARTLY_DONE, FAILURE),
        (ActOutcome.REFUSED, FAILURE),
        (ActOutcome.FAILED, FAILURE),
        (ActOutcome.UNKNOWN_SUBJECT, FAILURE),
    ],
)
def test_the_exit_code_says_what_came_of_it(
    run: Run, served: Served, outcome: ActOutcome, code: int
) -> None:
    """And so does the stream: what went wrong is no answer."""
    served.door.answer = ActAnswer(outcome, "the words", {"id": 7})
    result = run(served.config, "restart", "bob")
    assert result.exit_code == code
    told = (result.stdout, result.stderr)
    assert told == (("the words\n", "") if code == OK else ("", "custosd: the words\n"))
    result = run(served.config, "restart", "bob", "--json")
    assert result.exit_code == code
    form = {"outcome": outcome.value, "message": "the words", "detail": {"id": 7}}
    assert json.loads(result.stdout) == form


def test_where_no_daemon_runs_that_is_the_answer(run: Run, served: Served) -> None:
    served.stop()
    result = run(served.config, "estop")
    assert (result.exit_code, result.stdout) == (NOT_RUNNING, "")
    assert result.stderr.startswith("custosd: custosd is not running: nobody listens on ")


def test_where_no_daemon_ever_ran_nothing_was_spent(run: Run, served: Served) -> None:
    served.stop()
    result = run(served.config, "budget", "show", "--json")
    assert result.exit_code == OK, result.output
    detail = json.loads(result.stdout)["detail"]
    assert detail["source"] == "nowhere: no daemon ever ran here"
    assert [limit["id"] for limit in detail["limits"]] == ["fleet/day"]
    assert detail["own_usd"] == 0
    assert not (served.config.parent / "postgres").exists()
    named = run(served.config, "budget", "show", "--socket", str(served.path))
    assert named.exit_code == NOT_RUNNING


def test_who_may_not_ask_is_told_so(run: Run, served: Served) -> None:
    served.stop()
    served.access = Nobody()
    served.start()
    result = run(served.config, "estop")
    assert (result.exit_code, result.stdout) == (NO_PERMISSION, "")
    assert "may not ask" in result.stderr
    assert served.door.asked == []


@pytest.mark.parametrize(
    "words",
    [
        ["steer", "bob"],
        ["steer", "bob", "  "],
        ["steer", "bob", "x", "--kind", "order"],
        ["pause"],
        ["pause", "bob", "--for", "soon"],
        ["pause", "bob", "--for", "5"],
        ["pause", "bob", "--until", "tomorrow"],
        ["estop", "bob"],
        ["why", "bob", "--dry-run"],
        ["emergency"],
        ["emergency", "bob", "--deadline", "soon"],
        ["cycle"],
    ],
)
def test_a_line_that_makes_no_sense_asks_nothing(
    run: Run, served: Served, words: list[str]
) -> None:
    result = run(served.config, *words)
    assert result.exit_code == USAGE
    assert served.door.asked == []


def test_a_long_text_comes_from_standard_input(run: Run, served: Served) -> None:
    text = "first line\n" + "x" * 50_000
    assert run(served.config, "steer", "bob", "-", given=text).exit_code == OK
    assert [request.text for request in served.door.asked] == [text]
    assert run(served.config, "steer", "bob", "-", given="x" * 70_000).exit_code == USAGE
    assert run(served.config, "steer", "bob", "-", given="").exit_code == USAGE
    assert len(served.door.asked) == 1


def test_an_emergency_stop_does_not_need_a_configuration_that_can_be_read(
    run: Run, served: Served, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("[daemon\n")
    assert run(bad, "estop").exit_code == BAD_CONFIG
    assert run(bad, "estop", "--socket", served.path).exit_code == OK
    assert [request.act for request in served.door.asked] == [Act.ESTOP]


def test_a_mistake_that_does_not_hide_the_daemon_holds_up_no_act(run: Run, served: Served) -> None:
    served.config.write_text(served.config.read_text() + '[guardian]\ninterval = "soon"\n')
    result = run(served.config, "estop")
    assert result.exit_code == OK
    assert "guardian.interval" in result.stderr


def test_lines_are_shown_as_they_are_and_harmless(run: Run, served: Served) -> None:
    lines = ["bob", "  state     degraded", "evidence", f"  beat  {EVIL}"]
    served.door.answer = ActAnswer(ActOutcome.DONE, "bob", {"lines": lines})
    result = run(served.config, "why", "bob")
    assert result.exit_code == OK
    assert result.stdout.splitlines()[:3] == lines[:3]
    assert "\x1b" not in result.stdout
    assert "\u202e" not in result.stdout
    assert "ev[/bold][red]" in result.stdout


@pytest.mark.parametrize("outcome", list(ActOutcome))
def test_a_message_cannot_steer_the_terminal(run: Run, served: Served, outcome: ActOutcome) -> None:
    served.door.answer = ActAnswer(outcome, EVIL)
    result = run(served.config, "restart", "bob")
    assert "\x1b" not in result.output
    assert "\u202e" not in result.output


def test_what_is_there_is_shown_beside_what_is_missing(run: Run, served: Served) -> None:
    """And the exit code is that of a failure: a script must not take a part for the whole."""
    lines = ["ada  stuck, by rules", "missing   bob: not done by the deadline"]
    served.door.answer = ActAnswer(ActOutcome.PARTLY_DONE, "1 of 2 agents", {"lines": lines})
    result = run(served.config, "emergency", "ada", "bob")
    assert result.exit_code == FAILURE
    assert result.stdout.splitlines() == lines
    assert result.stderr == "custosd: 1 of 2 agents\n"


def test_where_no_daemon_runs_a_cycle_and_an_emergency_are_not_done(
    run: Run, served: Served
) -> None:
    served.stop()
    for words in (["cycle", "--once"], ["emergency", "bob"]):
        result = run(served.config, *words)
        assert (result.exit_code, result.stdout) == (NOT_RUNNING, "")
        assert result.stderr.startswith("custosd: custosd is not running: nobody listens on ")


def test_a_reload_names_the_keys(run: Run, served: Served) -> None:
    served.door.answer = ActAnswer(ActOutcome.DONE, "2 keys changed", {"changed": ["a.b", "c.d"]})
    assert run(served.config, "reload").stdout == "2 keys changed\n  a.b\n  c.d\n"


# --- where the socket is looked for ---------------------------------------------------------


def test_the_users_own_daemon_goes_before_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that was told is taken at its word; else who is there is asked."""
    config = read_config([])
    system = tmp_path / "system.sock"
    monkeypatch.setattr(acts, "SYSTEM_SOCKET", system)
    env = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}
    own = tmp_path / "state" / "custosd" / "run" / "control.sock"
    assert control_path(config, env) == own
    system.touch()
    assert control_path(config, env) == system
    told = env | {"STATE_DIRECTORY": "/var/lib/x"}
    assert control_path(config, told) == Path("/var/lib/x/run/control.sock")
    told = env | {"RUNTIME_DIRECTORY": "/run/x"}
    assert control_path(config, told) == Path("/run/x/control.sock")
    own.parent.mkdir(parents=True)
    own.touch()
    assert control_path(config, env) == own
