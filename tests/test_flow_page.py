"""The examples of daemon/FLOW.md print what the page says, each construct has one."""

import doctest
import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PAGE = PROJECT / "daemon" / "FLOW.md"
OWN = frozenset(
    {"accepting", "alarm", "clock", "gate", "gauge", "latest", "line", "local_socket"}
) | {*("pulse", "renewal", "rounds", "schedule", "stopping", "supervise", "triggers")}
"""What the daemon is built with, and nobody else needs."""


def test_every_example_prints_what_it_says() -> None:
    result = doctest.testfile(str(PAGE), module_relative=False)
    assert result.attempted > 50
    assert result.failed == 0


def test_every_construct_has_an_example() -> None:
    shown = set(re.findall(r"^### (\w+)", PAGE.read_text(), re.MULTILINE))
    there = {path.stem for path in (PROJECT / "daemon" / "custosd" / "flow").glob("[a-z]*.py")}
    assert there - OWN - shown == set()
