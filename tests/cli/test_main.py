"""The command line as a whole: every command is there, and none reads what it does not need."""

import subprocess
import sys

import click
import pytest

from custosd.cli.acts import act_commands
from custosd.cli.main import COMMANDS, main

LIGHT = ("beat", "why", "steer", "task")
DAEMON = ("custosd.app", "custosd.services", "hypercorn", "starlette", "httpx")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_found_where_the_table_says_and_has_help(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.name == name
    assert command.get_short_help_str()


def test_the_commands_of_acts_are_all_in_the_table() -> None:
    assert {command.name for command in act_commands} <= COMMANDS.keys()


def test_what_is_no_command_is_a_usage_error_with_a_remedy() -> None:
    assert main.get_command(click.Context(main), "estopp") is None
    assert main.list_commands(click.Context(main)) == sorted(COMMANDS)


@pytest.mark.parametrize("name", LIGHT)
def test_a_command_that_only_asks_does_not_read_the_daemon(name: str) -> None:
    script = (
        "import click, sys; from custosd.cli.main import main;"
        f"main.get_command(click.Context(main), {name!r});"
        "print(*sys.modules, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    read = done.stdout.splitlines()
    assert "custosd.cli.settings" in read
    assert [module for module in read if module.startswith(DAEMON)] == []
