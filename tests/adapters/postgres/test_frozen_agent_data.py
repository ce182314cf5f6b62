"""What is told of an agent while its database stands still: everything else, in its time."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from custosd.adapters.postgres.actions import PostgresActions
from custosd.adapters.postgres.bridge import Connection, Database
from custosd.adapters.postgres.coordination import PostgresCoordination
from custosd.adapters.postgres.embedded import EmbeddedServer
from custosd.adapters.postgres.spends import PostgresSpends
from custosd.adapters.postgres.store import PostgresStore
from custosd.adapters.workspaces.memory import MemoryWorkspaces
from custosd.cli.agent_data import gathered
from custosd.config.agents import AgentSettings
from custosd.config.reading import Reading
from custosd.config.settings import Config, StoreSettings
from custosd.core.agents import AgentId
from custosd.core.explanations import Setting
from custosd.core.view import AgentView
from custosd.core.workspaces import Workspace
from custosd.flow.clock import wall_clock
from custosd.services.agent_data import AgentData, AgentSources, AgentStores

ADA = AgentId("ada")
OF_FILES = {"configuration", "workspace"}

pytestmark = pytest.mark.postgres


async def backends(connection: Connection) -> list[int]:
    rows = await connection.fetch(
        "select pid from pg_stat_activity"
        " where datname = current_database() and backend_type = 'client backend'"
    )
    return [row["pid"] for row in rows]


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def test_frozen_backends_keep_back_only_what_they_hold(database: Database) -> None:
    """As the daemon gathers it: over a pool whose every server process is stopped."""
    stores = AgentStores(
        PostgresStore(database),
        PostgresActions(database),
        PostgresSpends(database),
        PostgresCoordination(database),
    )

    async def opened() -> AgentStores:
        await trio.lowlevel.checkpoint()
        return stores

    async def unseen(_agent: AgentId) -> AgentView | None:
        await trio.lowlevel.checkpoint()
        return None

    sources = AgentSources(
        opened,
        unseen,
        lambda _agent: (Setting("agent.beats", "true"),),
        lambda _agent: "/w",
        MemoryWorkspaces({"/w": Workspace(ADA, "/w")}),
        wall_clock(),
    )
    whole = await AgentData(sources, 20.0).gather(ADA)
    assert not [part for part in whole.values() if part.reason]
    with stopped(*await database.unit(backends)), trio.fail_after(25):
        parts = await AgentData(sources, 0.5).gather(ADA)
    told = {name for name, part in parts.items() if not part.reason}
    # Without a door to tasks there are none, which needs no answer of the database.
    assert told == OF_FILES | {"tasks"}
    assert {part.reason for name, part in parts.items() if name not in told} == {"timeout"}


async def test_a_stopped_server_keeps_back_only_what_it_holds(
    dsn: str, postgres_server: EmbeddedServer, tmp_path: Path
) -> None:
    """As the command gathers it: whoever connects is not answered."""
    (tmp_path / "output.log").write_text("done\n")
    agents = (AgentSettings(id="ada", workspace=tmp_path),)
    reading = Reading(Config(store=StoreSettings(dsn=dsn), agent=agents), {})
    with stopped(postgres_server.pid), trio.fail_after(25):
        agent, parts = await gathered(reading, "ada", 1.0)
    assert agent == "ada"
    assert {name for name, part in parts.items() if not part.reason} == OF_FILES
    assert {part.reason for name, part in parts.items() if name not in OF_FILES} == {"timeout"}
