"""`custosd task`: what it sends to the daemon, what it prints, how it ends."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.test_acts import Served, served  # noqa: F401 - a fixture

from custosd.cli.exit_codes import FAILURE, NOT_RUNNING, OK, USAGE
from custosd.core.acts import Act, ActAnswer, ActOutcome

EVIL = "ev[/bold]\x1b]0;owned\x07il\u202e"

COMMANDS: list[tuple[list[str], str, dict[str, Any]]] = [
    (
        ["add", "a", "the a"],
        "add",
        {"tasks": [{"id": "a", "title": "the a", "priority": "medium"}]},
    ),
    (
        ["add", "b", "B", "--after", "a", "-c", "gpu", "--timeout", "30m", "--retries", "0"],
        "add",
        {
            "tasks": [
                {
                    "id": "b",
                    "title": "B",
                    "priority": "medium",
                    "depends_on": ["a"],
                    "capabilities": ["gpu"],
                    "timeout_s": 1800.0,
                    "max_attempts": 1,
                }
            ]
        },
    ),
    (["link", "b", "a", "c"], "link", {"edges": [["b", "a"], ["b", "c"]]}),
    (
        ["claim", "ada", "--limit", "3", "-c", "gpu", "--lease", "5m", "--key", "k"],
        "claim",
        {"agent": "ada", "limit": 3, "capabilities": ["gpu"], "lease_s": 300.0, "key": "k"},
    ),
    (
        ["extend", "a", "--agent", "ada", "--fence", "2"],
        "extend",
        {"task": "a", "agent": "ada", "fence": 2},
    ),
    (["complete", "a", "--result", "well"], "complete", {"task": "a", "result": "well"}),
    (
        ["fail", "a", "--kind", "usage_limit", "--after", "20m"],
        "fail",
        {"task": "a", "kind": "usage_limit", "after_s": 1200.0},
    ),
    (["cancel", "a", "b", "--reason", "no"], "cancel", {"tasks": ["a", "b"], "reason": "no"}),
]


@pytest.mark.parametrize(("words", "operation", "form"), COMMANDS)
def test_what_is_sent(
    served: Served,  # noqa: F811 - the fixture
    run: Any,
    words: list[str],
    operation: str,
    form: dict[str, Any],
) -> None:
    assert run("task", *words, config=served.config).exit_code == OK
    [asked] = served.door.asked
    assert (asked.act, asked.subject, json.loads(asked.text)) == (Act.TASK, operation, form)
    assert asked.author.startswith("uid:")


def test_what_was_claimed_is_shown_with_its_fence_and_no_control_characters(
    served: Served,  # noqa: F811 - the fixture
    run: Any,
) -> None:
    task = {"id": "a", "title": EVIL, "claim": {"fence": 7}}
    served.door.answer = ActAnswer(ActOutcome.DONE, f"1 {EVIL}", {"tasks": [task]})
    shown = run("task", "claim", "ada", config=served.config)
    assert "a  fence 7" in shown.stdout
    assert "\x1b" not in shown.stdout
    told = json.loads(run("task", "claim", "ada", "--json", config=served.config).stdout)
    assert told["detail"]["tasks"] == [task]


def test_how_it_ends(served: Served, run: Any, tmp_path: Path) -> None:  # noqa: F811 - the fixture
    served.door.answer = ActAnswer(ActOutcome.REFUSED, "it is lost", {"error": "lost"})
    lost = run("task", "complete", "a", config=served.config)
    assert (lost.exit_code, "it is lost" in lost.stderr) == (FAILURE, True)
    served.door.answer = ActAnswer(ActOutcome.NOTHING_TO_DO, "nothing is ready")
    assert run("task", "claim", "ada", config=served.config).exit_code == OK
    assert run("task", "claim", "ada", "--lease", "soon").exit_code == USAGE
    assert run("task", "fail", "a", "--kind", "timeout").exit_code == USAGE
    nobody = run("task", "cancel", "a", "--socket", tmp_path / "none")
    assert nobody.exit_code == NOT_RUNNING
