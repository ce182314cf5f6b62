"""Commands as processes of their own, beside a daemon that is hard at work."""

import signal
from pathlib import Path

import pytest
import trio
from tests.end_to_end.daemons import QUICK, Answer, ask, custosd
from tests.end_to_end.test_kill import writing, written

from custosd.adapters.postgres.embedded import embedded_postgres
from custosd.cli.exit_codes import NOT_RUNNING, OK, TEMPORARY

QUESTIONS = (
    ("status",),
    ("status", "--json"),
    ("agents", "list"),
    ("agents", "list", "--json"),
    ("agents", "show", "custosd:cu1"),
    ("agents", "show", "gemini-cli:g0", "--json"),
    ("migrate", "--check"),
)


@pytest.mark.timeout(90)
async def test_all_questions_at_once_are_answered_beside_a_busy_daemon(
    config: Path, home: Path
) -> None:
    answers: dict[tuple[str, ...], Answer] = {}

    async def put(words: tuple[str, ...]) -> None:
        answers[words] = await ask("--config", config, *words, home=home)

    async with writing(home / "transcripts", 3) as writer:
        async with custosd("--config", config, "run", home=home) as daemon:
            await daemon.ready()
            for agent in ("custosd:cu1", "gemini-cli:g0"):
                await daemon.out.event("verdict.reached", agent=agent)
            since = len(daemon.out.lines)
            async with trio.open_nursery() as nursery:
                for words in QUESTIONS:
                    nursery.start_soon(put, words)
            # The daemon went on meanwhile, and goes on.
            await daemon.out.event("verdict.reached", since=since, agent="custosd:cu1")
            assert await daemon.end(signal.SIGTERM) == OK
        steps = await written(writer)
    assert {words: answer.code for words, answer in answers.items()} == dict.fromkeys(QUESTIONS, OK)
    assert all(answer.err == "" for answer in answers.values())
    assert answers["status", "--json"].json["running"] is True
    listed = {agent["agent"]: agent for agent in answers["agents", "list", "--json"].json}
    assert listed.keys() <= steps.keys()
    for agent, form in listed.items():
        assert 0 < form["trajectory"]["steps"] <= steps[agent]
    assert daemon.err.plain == ""
    # That agents need somebody is said, and is no trouble of the daemon.
    quiet = {"info", "concern.raised"}
    assert [x for x in daemon.out.lines if not {x["level"], x["event"]} & quiet] == []

    gone = await ask("--config", config, "agents", "list", home=home)
    assert (gone.code, gone.out) == (TEMPORARY, "")
    gone = await ask("--config", config, "status", home=home)
    assert gone.code == NOT_RUNNING


async def test_a_database_of_its_own_tells_of_daemons_that_have_ended(home: Path) -> None:
    config = home / "custosd.toml"
    async with embedded_postgres(home / "server", shared_buffers_bytes=8 << 20) as server:
        text = QUICK.format(home=home).replace("[store.embedded]", "[store]")
        config.write_text(text.replace('shared_buffers = "8MiB"', f'dsn = "{server.dsn}"'))
        async with custosd("--config", config, "run", home=home) as daemon:
            await daemon.ready()
            running = await ask("--config", config, "status", home=home)
            assert (running.code, running.err) == (OK, "")
            assert f"runs as process {daemon.pid} " in running.out
            assert await daemon.end(signal.SIGTERM) == OK
        assert daemon.out.found("postgres.started") == []
        ended = await ask("--config", config, "status", home=home)
        assert ended.code == NOT_RUNNING
        assert ended.out.startswith("custosd is not running; the last sign of life is ")
        assert (await ask("--config", config, "agents", "list", home=home)).code == OK
