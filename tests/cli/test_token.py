"""`custosd token`: issued once, listed without its secret, and gone when it is revoked."""

import json
import os
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result
from tests.cli.conftest import Watched

from custosd.adapters.postgres.actions import PostgresActions
from custosd.adapters.postgres.opening import open_postgres
from custosd.cli.token import token
from custosd.config.reading import read_config
from custosd.config.sources import locate_config
from custosd.core.tokens import Token, recognised

pytestmark = pytest.mark.postgres


def ask(watched: Watched, *words: str) -> Result:
    given = {"config": [str(watched.config)], "log_format": None, "log_level": None}
    env = {"HOME": str(watched.home), "COLUMNS": "200", "STATE_DIRECTORY": None}
    return CliRunner().invoke(token, words, obj=given, env=env)


def listed(watched: Watched) -> dict[str, dict[str, Any]]:
    done = ask(watched, "list", "--json")
    assert done.exit_code == 0, done.output
    return {one["id"]: one for one in json.loads(done.output)}


def stored(watched: Watched) -> dict[str, Token]:
    async def read() -> dict[str, Token]:
        config = read_config(locate_config([str(watched.config)], {}))
        async with open_postgres(config, os.environ, serve=False) as database:
            return {one.id: one for one in await PostgresActions(database).tokens()}

    return trio.run(read)


def test_a_token_is_printed_once_and_known_by_its_hash(watched: Watched) -> None:
    done = ask(watched, "issue", "ci-1", "--agent", "builder-1", "--scope", "read", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    known = recognised(told["token"], stored(watched))
    assert known is not None
    assert known.may_beat_for("builder-1")
    assert known.may("read")
    assert not known.may("pause")
    entry = listed(watched)["ci-1"]
    assert (entry["agent"], entry["scopes"]) == ("builder-1", ["read"])
    assert entry["created_by"].startswith(f"uid:{os.getuid()}")
    # cust, the token, its secret: which may have one of these in it, too.
    secret = told["token"].split("_", 2)[2]
    assert secret not in ask(watched, "list", "--json").output
    assert "builder-1" in ask(watched, "list").output


def test_without_a_name_it_gets_one_and_is_all_that_is_printed(watched: Watched) -> None:
    text = ask(watched, "issue", "--agent", "*").output.strip()
    known = recognised(text, stored(watched))
    assert known is not None
    assert known.agent == "*"


def test_a_name_is_given_once(watched: Watched) -> None:
    first = ask(watched, "issue", "twice", "--agent", "a").output.strip()
    again = ask(watched, "issue", "twice", "--agent", "b")
    assert again.exit_code == 1
    assert "there is a token called twice" in again.output
    assert recognised(first, stored(watched)) is not None


def test_a_revoked_token_is_gone(watched: Watched) -> None:
    text = ask(watched, "issue", "short-lived", "--scope", "pause").output.strip()
    done = ask(watched, "revoke", "short-lived")
    assert (done.exit_code, done.output) == (0, "short-lived is revoked\n")
    assert recognised(text, stored(watched)) is None
    assert "short-lived" not in listed(watched)
    assert ask(watched, "revoke", "short-lived").exit_code == 1


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["name"],
        ["a_b", "--agent", "x"],
        ["-", "--agent", "x"],
        ["x" * 65, "--agent", "x"],
        ["--scope", "explode"],
    ],
)
def test_a_token_that_makes_no_sense_is_not_issued(words: list[str]) -> None:
    assert CliRunner().invoke(token, ["issue", *words], obj={"config": []}).exit_code == 2
