"""The program gets the notice on its input, has its time, and leaves nothing running."""

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio

from custosd.adapters.notify.command import CommandNotifier
from custosd.core.errors import NotifyError
from custosd.ports import Notice

AT_UTC = datetime(2026, 3, 14, 12, tzinfo=UTC)
NOTICE = Notice("life:ada", "life", "ada", 'ada: "$(touch x)" ; \n', resolved=False, at_utc=AT_UTC)


def python(script: str, **fields: float) -> CommandNotifier:
    return CommandNotifier([sys.executable, "-c", script], environment={"MARK": "here"}, **fields)


async def test_the_notice_is_json_on_the_standard_input_and_nothing_else(tmp_path: Path) -> None:
    got = tmp_path / "got"
    script = (
        f"import sys;open({str(got)!r}, 'w').write(sys.stdin.read());sys.exit(len(sys.argv) - 1)"
    )
    await python(script).notify(NOTICE)
    told = json.loads(got.read_text())
    assert told["text"] == NOTICE.text
    assert (told["concern"], told["resolved"], told["agent"]) == ("life:ada", False, "ada")
    assert told["at_utc"] == "2026-03-14T12:00:00+00:00"
    assert len(told["key"]) == 16


@pytest.mark.parametrize(
    "secret", ["PGPASSWORD", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_USEC", "API_TOKEN"]
)
async def test_nothing_of_the_daemons_environment_is_the_programs_but_what_all_need(
    monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setenv(secret, "hush")
    script = (
        "import os, sys;"
        f"sys.exit(({secret!r} in os.environ) + 2 * (os.environ.get('MARK') != 'here')"
        " + 4 * ('PATH' not in os.environ))"
    )
    await python(script).notify(NOTICE)


async def test_a_group_is_killed_only_while_its_number_is_its_own() -> None:
    """Once its leader is reaped, the number may be that of a stranger's group."""
    script = """
import os, sys, trio
from datetime import UTC, datetime
from custosd.adapters.notify.command import CommandNotifier
from custosd.ports import Notice

def audit(event, args):
    if event == "os.killpg":
        print(os.path.exists(f"/proc/{args[0]}"))

sys.addaudithook(audit)
notice = Notice("life:ada", "life", "ada", "dead", False, datetime.now(UTC))
trio.run(CommandNotifier([sys.executable, "-c", "pass"]).notify, notice)
"""
    finished = await trio.run_process([sys.executable, "-c", script], capture_stdout=True)
    assert finished.stdout == b"True\n"


@pytest.mark.parametrize(
    ("script", "reason", "said"),
    [
        ("import sys; sys.exit('no such pager')", "exit_1", "no such pager"),
        ("import os; os.kill(os.getpid(), 15)", "signal_15", "signal_15"),
        ("import sys; print('x' * 10_000_000); sys.exit(7)", "exit_7", "xxx"),
    ],
)
async def test_a_program_that_fails_says_why_in_few_words(
    script: str, reason: str, said: str
) -> None:
    with pytest.raises(NotifyError) as raised:
        await python(script).notify(NOTICE)
    assert raised.value.reason == reason
    assert said in str(raised.value)
    assert len(str(raised.value)) < 4_096


async def test_a_program_that_does_not_read_its_input_has_still_been_told() -> None:
    await python("pass").notify(NOTICE)


async def test_what_does_not_end_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    """The grandchild holds a pipe open: its end of it closes when it is dead."""
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    script = (
        "import subprocess, sys, time;"
        f"f = open({str(fifo)!r}, 'w');"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        " pass_fds=[f.fileno()]);"
        "print('started', file=f, flush=True);"
        "time.sleep(600)"
    )
    with pytest.raises(NotifyError) as raised:
        await python(script, timeout_s=3.0).notify(NOTICE)
    assert raised.value.reason == "timeout"
    with trio.fail_after(10):
        await trio.lowlevel.wait_readable(reader)
        assert os.read(reader, 100) == b"started\n"
        await trio.lowlevel.wait_readable(reader)
        assert os.read(reader, 100) == b""
    os.close(reader)


async def test_a_program_that_leaves_a_child_behind_is_not_waited_for() -> None:
    script = (
        "import subprocess, sys;"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    )
    with trio.fail_after(20):
        await python(script, timeout_s=60.0).notify(NOTICE)


async def test_a_program_that_is_not_there_is_no_crash() -> None:
    with pytest.raises(NotifyError) as raised:
        await CommandNotifier(["/nowhere/pager"]).notify(NOTICE)
    assert raised.value.reason == "not_started"
