"""One agent, gathered from the database and from its folder: `custosd agents show`."""

import os
from collections.abc import Mapping, Sequence

import trio

from custosd.adapters.postgres.actions import PostgresActions
from custosd.adapters.postgres.coordination import PostgresCoordination
from custosd.adapters.postgres.opening import open_postgres
from custosd.adapters.postgres.spends import PostgresSpends
from custosd.adapters.postgres.store import PostgresStore
from custosd.adapters.postgres.tasks import PostgresTasks
from custosd.adapters.workspaces.local import limits_of, open_workspaces
from custosd.cli.showing import printable
from custosd.config.in_force import InForce
from custosd.config.reading import Reading
from custosd.config.settings import Config
from custosd.core.agent_data import AgentPart
from custosd.core.agents import AgentId, AgentRef, RunId
from custosd.core.errors import CustosdError, StoreError, StoreUnavailable
from custosd.core.lives import LifeRecord
from custosd.core.view import AgentView
from custosd.flow.cache import Cache
from custosd.flow.clock import wall_clock
from custosd.flow.single_flight import fresh
from custosd.services.agent_data import PART_TIMEOUT_S, AgentData, AgentSources, AgentStores

_KEPT_S = 60.0

NAMES_SHOWN = 10


class NoSuchAgent(CustosdError):
    """No agent, or more than one, is meant."""


Fleet = tuple[tuple[AgentView, ...], Mapping[AgentId, LifeRecord]]


class _Opening:
    """The database, as it is opened beside what does not need it."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._done = trio.Event()
        self._stores: AgentStores | None = None
        self._error: StoreError = StoreUnavailable("the database was not opened")

    async def run(self) -> None:
        """Open it, and keep it open until cancelled."""
        try:
            async with open_postgres(self._config, os.environ, serve=False) as database:
                self._stores = AgentStores(
                    PostgresStore(database),
                    PostgresActions(database),
                    PostgresSpends(database),
                    PostgresCoordination(database),
                    PostgresTasks(database, self._config.tasks.rules()),
                )
                self._done.set()
                await trio.sleep_forever()
        except StoreError as error:
            self._error = error
            self._done.set()

    async def stores(self) -> AgentStores:
        """What is in it, once it is open; raises `StoreError`."""
        await self._done.wait()
        if self._stores is None:
            raise fresh(self._error)
        return self._stores

    async def fleet(self, _key: str) -> Fleet:
        """All agents, and the lives of those that have one."""
        stores = await self.stores()
        return with_lives((await stores.store.restore()).agents, await stores.actions.lives())


def with_lives(views: Sequence[AgentView], lives: Sequence[LifeRecord]) -> Fleet:
    """Whoever has a run, and whoever has a life; of the latter alone no transcript is known."""
    known = {view.ref.agent for view in views}
    others = [
        AgentView(AgentRef(life.agent, RunId("")), "", "", "", life.since_utc, life.state)
        for life in lives
        if life.agent not in known
    ]
    return (*views, *others), {life.agent: life for life in lives}


async def gathered(
    reading: Reading, part: str, timeout_s: float = PART_TIMEOUT_S
) -> tuple[AgentId, Mapping[str, AgentPart]]:
    """The agent that is meant, and all that can be had of it now.

    Raises `NoSuchAgent`; `StoreError` where only the database knows who is meant.
    """
    config = reading.config
    opening, in_force = _Opening(config), InForce(reading)
    folders = {agent.id: str(agent.workspace or "") for agent in config.agents}
    clock = wall_clock()
    async with (
        open_workspaces(limits_of(config.workspace), clock) as workspaces,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(opening.run)
        fleet = Cache[str, Fleet](nursery, opening.fleet, ttl_s=_KEPT_S)
        agent = await _meant(fleet, tuple(folders), part, timeout_s)

        async def view(agent: AgentId) -> AgentView | None:
            views, _ = await fleet.get("")
            return next((each for each in views if each.ref.agent == agent), None)

        sources = AgentSources(
            opening.stores,
            view,
            in_force.table,
            lambda agent: folders.get(agent, ""),
            workspaces,
            clock,
        )
        parts = await AgentData(sources, timeout_s).gather(agent)
        nursery.cancel_scope.cancel("gathered")
    return agent, parts


async def _meant(
    fleet: Cache[str, Fleet], configured: Sequence[str], part: str, timeout_s: float
) -> AgentId:
    """Who is meant: of whom there is a table is known without the database, too."""
    if part in configured:
        return AgentId(part)
    try:
        with trio.fail_after(timeout_s):
            views, _ = await fleet.get("")
    except (StoreError, trio.TooSlowError) as error:
        found = [name for name in configured if part in name]
        if len(found) == 1:
            return AgentId(found[0])
        if isinstance(error, StoreError):
            raise
        raise StoreUnavailable(f"the database did not answer within {timeout_s:g} s") from error
    names = {view.ref.agent for view in views} | {AgentId(name) for name in configured}
    return chosen(sorted(names), part)


def chosen(ids: Sequence[AgentId], part: str) -> AgentId:
    """The one agent with this id, or with this in its id; raises `NoSuchAgent`."""
    found = [one for one in ids if one == part] or [one for one in ids if part in one]
    if len(found) == 1:
        return found[0]
    problem = f"{len(found)} agents have" if found else "no agent has"
    names = sorted(found or ids)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    listed = (", ".join(names[:NAMES_SHOWN]) or "none") + more
    raise NoSuchAgent(printable(f"{problem} {part!r} in the id; there is: {listed}", 2_000).plain)
