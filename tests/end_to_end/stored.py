"""What a daemon has left in its private database, read when it is gone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from custosd.adapters.postgres.bridge import open_database
from custosd.adapters.postgres.embedded import embedded_postgres
from custosd.adapters.postgres.store import PostgresStore
from custosd.core.facts import Entry
from custosd.core.verdicts import Verdict
from custosd.core.view import AgentView

ALL = 1_000_000


@dataclass(frozen=True)
class Stored:
    """Everything: `verdicts` newest first, for each agent; `entries` newest first."""

    agents: Mapping[str, AgentView]
    verdicts: Mapping[str, tuple[Verdict, ...]]
    entries: tuple[Entry, ...]


async def stored_in(home: Path) -> Stored:
    """Start a server on the data in `home`, and read; nobody else may run on them."""
    async with (
        embedded_postgres(home / "state" / "postgres", shared_buffers_bytes=8 << 20) as server,
        open_database(server.dsn, pool_size=1) as database,
    ):
        store = PostgresStore(database)
        agents = {view.ref.agent: view for view in (await store.restore()).agents}
        verdicts = await store.recent_verdicts(list(agents), ALL)
        return Stored(agents, verdicts, await store.recent_entries(None, ALL))
