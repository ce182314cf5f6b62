"""What is handed over arrives as it was, whole, for those alone whom it is for."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.contracts.control_contract import ADA, TOLD

from custosd.adapters.control.handover import (
    LONGEST_TEXT,
    MOST_CONSTRAINTS,
    read_environment,
    write_hand_over,
)
from custosd.core.agents import AgentId
from custosd.core.errors import ControlError


def mode(file: Path) -> int:
    return file.stat().st_mode & 0o7777


def told_by(variables: Mapping[str, str]) -> dict[str, Any]:
    return json.loads(Path(variables["CUSTOSD_HANDOVER"]).read_text())


def nothing_in(folder: Path) -> bool:
    return not any(folder.iterdir())


def shell_reads(file: Path, name: str) -> str:
    argv = ["sh", "-c", f'. "$0"; printf %s "${name}"', str(file)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_a_shell_and_this_program_read_the_same(tmp_path: Path) -> None:
    folder = tmp_path / 'a "strange" $HOME `id` \\ place'
    variables = trio.run(write_hand_over, folder, "r-1", TOLD)
    assert read_environment(folder, ADA) == variables
    for name, value in variables.items():
        assert shell_reads(folder / "ada" / "environment", name) == value
    told = told_by(variables)
    assert (told["summary"], told["epoch"]) == (TOLD.summary, 1)


async def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    await write_hand_over(tmp_path, "r-1", TOLD)
    assert {mode(file) for file in (tmp_path / "ada").glob("*")} == {0o600}
    assert mode(tmp_path / "ada") == 0o700


async def test_a_group_may_be_let_in(tmp_path: Path) -> None:
    await write_hand_over(tmp_path, "r-1", TOLD, os.getegid())
    assert {mode(file) for file in (tmp_path / "ada").glob("*")} == {0o640}
    assert (mode(tmp_path), mode(tmp_path / "ada")) == (0o711, 0o710)


async def test_it_replaces_the_last_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    for epoch in (1, 2):
        await write_hand_over(tmp_path, f"r-{epoch}", replace(TOLD, epoch=epoch))
    assert sorted(file.name for file in (tmp_path / "ada").glob("*")) == [
        "environment",
        "handover.json",
    ]
    assert read_environment(tmp_path, ADA)["CUSTOSD_EPOCH"] == "2"


async def test_it_is_bounded(tmp_path: Path) -> None:
    long = "x" * (LONGEST_TEXT + 1)
    many = (long,) * (MOST_CONSTRAINTS + 1)
    hand_over = replace(TOLD, summary=long, goal=long, task=long, constraints=many)
    variables = await write_hand_over(tmp_path, "r-1", hand_over)
    told = told_by(variables)
    assert {len(told[name]) for name in ("summary", "goal", "task")} == {LONGEST_TEXT}
    assert (len(told["constraints"]), len(told["constraints"][0])) == (
        MOST_CONSTRAINTS,
        LONGEST_TEXT,
    )


async def test_halves_of_characters_do_no_harm(tmp_path: Path) -> None:
    variables = await write_hand_over(tmp_path, "r-1", replace(TOLD, summary="\ud83d \0"))
    assert told_by(variables)["summary"] == "? \0"


@pytest.mark.parametrize("name", ["", "..", "../ada", "a/b", ".hidden", "a\nB=1", "x" * 129])
async def test_a_name_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ControlError) as caught:
        await write_hand_over(tmp_path, "r-1", replace(TOLD, agent=AgentId(name)))
    assert caught.value.reason == "bad_name"
    with pytest.raises(ControlError):
        await write_hand_over(tmp_path, name, TOLD)
    assert nothing_in(tmp_path)


async def test_where_nothing_can_be_written_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "ada").touch()
    with pytest.raises(ControlError, match="must be able to write") as caught:
        await write_hand_over(tmp_path, "r-1", TOLD)
    assert caught.value.reason == "handover_unwritten"
    assert read_environment(tmp_path, ADA) == {}
