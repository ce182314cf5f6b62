"""The demonstration's screen: a table at each change, and one hint; virtual time."""

from pathlib import Path

import pytest
import trio
from tests.cli.test_showing import view

from custosd.cli.demo import HINT_AFTER_S, DemonstrationScreen
from custosd.core.facts import SweepFinished
from custosd.core.verdicts import Standing
from custosd.core.view import AgentView, FleetView
from custosd.demo.fleet import SHOWN

SWEEP = SweepFinished(9, 0, 0, 0, 0, 0.0)


def fleet(*views: AgentView) -> FleetView:
    return FleetView({one.ref.agent: one for one in views})


async def test_a_table_is_shown_when_anybody_stands_differently(
    autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = DemonstrationScreen(Path("/log"), ["config/demo.toml"])
    screen.swept(SWEEP, fleet())
    screen.swept(SWEEP, fleet(view("custosd:steady", "", Standing.UNKNOWN)))
    await trio.sleep(3)
    screen.swept(SWEEP, fleet(view("custosd:steady", "", Standing.UNKNOWN)))
    screen.swept(SWEEP, fleet(view("custosd:steady", "On it.", Standing.PROGRESSING)))
    said = capsys.readouterr().out
    assert [line.split(" ─")[0] for line in said.splitlines() if "seconds" in line] == [
        *("after 0 seconds", "after 3 seconds")
    ]
    assert "Look at next" not in said


async def test_what_to_look_at_next_is_told_once_when_all_have_shown_what_they_are(
    autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = DemonstrationScreen(Path("/log"), ["config/demo.toml"])
    shown = fleet(*(view(agent, "So it is.", standing) for agent, standing in SHOWN.items()))
    screen.swept(SWEEP, shown)
    screen.swept(SWEEP, shown)
    said = capsys.readouterr().out
    assert said.count("Each of them has shown by now how it is.") == 1
    assert said.count("Look at next") == 1
    assert "--config config/demo.toml agents show codex:looping\n" in said
    assert "tail -f /log\n" in said


async def test_it_is_told_in_any_case_after_a_while(
    autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where no agent was ever seen: then the log says why."""
    screen = DemonstrationScreen(Path("/log"), [])
    screen.swept(SWEEP, fleet())
    await trio.sleep(HINT_AFTER_S + 1)
    screen.swept(SWEEP, fleet())
    said = capsys.readouterr().out
    assert "Each of them has shown" not in said
    assert said.count("Look at next") == 1
