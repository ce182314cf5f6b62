"""How `custosd run` ends, and what it goes on through: signals, its server's death, its rivals."""

import os
import signal
from pathlib import Path

import pytest
import trio
from tests.end_to_end.daemons import QUICK, custosd, nobody_left, working_below
from tests.end_to_end.stored import stored_in
from tests.end_to_end.test_kill import caught_up, nothing_left, writing, written

from custosd.adapters.postgres.embedded import embedded_postgres
from custosd.cli.exit_codes import BAD_CONFIG, FAILURE, OK, UNAVAILABLE

DRAIN_S = 10.0


async def test_sigterm_stores_all_that_was_said_and_leaves_agents_alone(
    config: Path, home: Path
) -> None:
    """And exits with 0 within the limit, while the agents write on."""
    async with writing(home / "transcripts", 1) as writer:
        async with custosd("--config", config, "run", home=home) as daemon:
            await daemon.ready()
            await daemon.out.event("verdict.reached", agent="custosd:cu0")
            began_at = trio.current_time()
            assert await daemon.end(signal.SIGTERM) == OK
            assert trio.current_time() - began_at < DRAIN_S
        assert writer.poll() is None
        events = [line["event"] for line in daemon.out.lines[-6:]]
        assert [event for event in events if "stop" in event] == [
            "daemon.stopping",
            "daemon.stopped",
            "postgres.stopped",
        ]
        assert daemon.err.plain == ""
        store = await stored_in(home)
        assert writer.poll() is None
        steps = await written(writer)
    await nothing_left(home)

    reached = daemon.out.found("verdict.reached")
    assert {line["verdict"] for line in reached} == {
        verdict.id for verdicts in store.verdicts.values() for verdict in verdicts
    }
    for line in reached:
        assert line["steps"] <= store.agents[line["agent"]].digest.steps <= steps[line["agent"]]
    assert type(store.entries[0].fact).__name__ == "DaemonStopped"


async def test_a_second_sigterm_ends_it_at_once(home: Path) -> None:
    """Also where the database is frozen, so that there is no end to what it waits for."""
    config = home / "custosd.toml"
    async with embedded_postgres(home / "server", shared_buffers_bytes=8 << 20) as server:
        text = QUICK.format(home=home).replace("[daemon]", '[daemon]\ndrain = "5m"')
        text = text.replace('[store.embedded]\nshared_buffers = "8MiB"', "[store]")
        slow = 'statement_timeout = "100s"\nacquire_timeout = "100s"'
        config.write_text(text.replace("[store]", f'[store]\ndsn = "{server.dsn}"\n{slow}'))
        async with custosd("--config", config, "run", home=home) as daemon:
            await daemon.ready()
            backends = [pid for pid in working_below(home / "server") if pid != server.pid]
            for pid in backends:
                os.kill(pid, signal.SIGSTOP)
            try:
                daemon.send(signal.SIGTERM)
                await daemon.out.event("daemon.stopping")
                began_at = trio.current_time()
                assert await daemon.end(signal.SIGTERM) == FAILURE
                print(f"ended {trio.current_time() - began_at:.2f} s after the second signal")
            finally:
                for pid in backends:
                    os.kill(pid, signal.SIGCONT)
    assert "second signal" in daemon.err.plain
    assert "Traceback" not in daemon.err.plain


async def test_a_bad_configuration_ends_it_with_78_and_every_problem(home: Path) -> None:
    config = home / "custosd.toml"
    config.write_text("[guardian]\nintervall = 1\n[log]\nlevel = 'loud'\n[daemon]\ndrain = '1d'\n")
    async with custosd("--config", config, "run", home=home) as daemon:
        assert await daemon.end() == BAD_CONFIG
    assert daemon.out.lines == []
    assert daemon.err.plain == (
        f"{config}:2: guardian.intervall = 1: expected a key of [guardian];"
        " did you mean guardian.interval?\n"
        f'{config}:4: log.level = "loud": expected "debug", "info", "warning" or "error"\n'
        f'{config}:6: daemon.drain = "1d": expected a duration from 0s to 10m ("90s", "1h30m",'
        " or seconds)\n"
    )


async def test_a_second_daemon_on_one_state_folder_says_who_is_there(
    config: Path, home: Path
) -> None:
    """It ends with 69: waiting does not help, a person has to choose. The first goes on."""
    async with custosd("--config", config, "run", home=home) as first:
        await first.ready()
        async with custosd("--config", config, "run", home=home) as second:
            assert await second.end() == UNAVAILABLE
        assert second.err.plain == (
            f"custosd: {home}/state/postgres is used by the daemon with pid {first.pid};"
            " stop it, or choose another state directory\n"
        )
        await first.out.event("sweep.finished", since=len(first.out.lines))
        assert await first.end(signal.SIGTERM) == OK


async def test_a_database_that_is_not_there_yet_is_waited_for(home: Path) -> None:
    """It is said once; a stop meanwhile is no failure; when the server comes, work begins."""
    config = home / "custosd.toml"
    async with embedded_postgres(home / "server", shared_buffers_bytes=8 << 20) as server:
        text = QUICK.format(home=home).replace("[store.embedded]", "[store]")
        config.write_text(text.replace('shared_buffers = "8MiB"', f'dsn = "{server.dsn}"'))
    async with custosd("--config", config, "run", home=home) as daemon:
        await daemon.out.event("store.lost", during="start")
        assert await daemon.end(signal.SIGTERM) == OK
        assert daemon.out.found("daemon.ready") == []
        assert daemon.err.plain == ""
    async with custosd("--config", config, "run", home=home) as daemon:
        await daemon.out.event("store.lost", during="start")
        async with embedded_postgres(home / "server", shared_buffers_bytes=8 << 20):
            await daemon.out.event("store.returned", during="start")
            await daemon.ready()
            assert await daemon.end(signal.SIGTERM) == OK
        assert len(daemon.out.found("store.lost", during="start")) == 1


async def test_a_state_folder_that_can_not_be_made_is_said_in_a_line(home: Path) -> None:
    config = home / "custosd.toml"
    config.write_text('[daemon]\nstate_dir = "/proc/custosd"\n')
    async with custosd("--config", config, "run", home=home) as daemon:
        assert await daemon.end() == UNAVAILABLE
    assert daemon.err.plain.startswith("custosd: /proc/custosd")
    assert len(daemon.err.plain.splitlines()) == 1


@pytest.mark.timeout(90)
async def test_it_goes_on_when_its_server_is_killed_and_stores_what_came_meanwhile(
    config: Path, home: Path
) -> None:
    async with (
        writing(home / "transcripts", 2) as writer,
        custosd("--config", config, "run", home=home) as daemon,
    ):
        await daemon.ready()
        await daemon.out.event("verdict.reached", agent="codex:co1")
        for _ in range(2):
            since = len(daemon.out.lines)
            server = daemon.out.found("postgres.started")[-1]["server_pid"]
            os.kill(server, signal.SIGKILL)
            await daemon.out.event("store.lost", during="save", since=since)
            await daemon.out.event("postgres.started", since=since)
            await daemon.out.event("store.returned", during="save", since=since)
        steps = await written(writer)
        await caught_up(daemon, steps)
        assert await daemon.end(signal.SIGTERM) == OK
    assert daemon.err.plain == ""
    store = await stored_in(home)
    assert {agent: view.digest.steps for agent, view in store.agents.items()} == steps
    # History waited too: no verdict is missing.
    assert {line["verdict"] for line in daemon.out.found("verdict.reached")} == {
        verdict.id for verdicts in store.verdicts.values() for verdict in verdicts
    }
    await nobody_left(home)
