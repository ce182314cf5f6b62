"""Everything about one agent, gathered at once.

Law: each part has its own time and its own error. One that fails is told to have failed, and
why; it is never an empty value, and keeps no other back.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

import outcome
import structlog
import trio

from custosd.core.agent_data import AgentMetrics, AgentPart, Executions, Standing
from custosd.core.agents import AgentId
from custosd.core.errors import CustosdError, StoreError, WorkspaceError
from custosd.core.explanations import Setting
from custosd.core.facts import Entry
from custosd.core.findings import Finding
from custosd.core.lives import LifeRecord
from custosd.core.tasks import Task
from custosd.core.verdicts import Verdict
from custosd.core.view import AgentView
from custosd.core.workspaces import Workspace, work_place
from custosd.flow.background import block_nursery
from custosd.flow.cache import Cache
from custosd.flow.monitor import Kind, operation
from custosd.flow.parallel import run_parallel
from custosd.ports import ActionStore, CoordinationStore, SpendStore, Store, TaskStore, Workspaces

log = structlog.get_logger()

PART_TIMEOUT_S = 5.0
VERDICTS = 5
FACTS = 10
RESTARTS_BACK = timedelta(days=7)
SPEND_BACK = timedelta(days=1)

_Life = Callable[[AgentId], Awaitable[LifeRecord | None]]

_FOR_EVER = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class AgentStores:
    """Where the parts are stored."""

    store: Store
    actions: ActionStore
    spends: SpendStore
    coordination: CoordinationStore
    tasks: TaskStore | None = None


@dataclass(frozen=True, slots=True)
class AgentSources:
    """Where the parts come from. `stores` waits until they are open; raises `StoreError`.

    `view` is the agent's view, None where it has none; `table` its own table as it applies,
    () where it has none; `folder_of` where that says that it works, or "".
    """

    stores: Callable[[], Awaitable[AgentStores]]
    view: Callable[[AgentId], Awaitable[AgentView | None]]
    table: Callable[[AgentId], Sequence[Setting]]
    folder_of: Callable[[AgentId], str]
    workspaces: Workspaces
    now_utc: Callable[[], datetime]


class AgentData:
    """Gathers the parts; see `PARTS` for their names."""

    def __init__(self, sources: AgentSources, timeout_s: float = PART_TIMEOUT_S) -> None:
        self._sources = sources
        self._timeout_s = timeout_s

    async def gather(self, agent: AgentId) -> Mapping[str, AgentPart]:
        """All parts, at once, each within `timeout_s`; raises nothing of theirs."""
        async with block_nursery("gathered") as nursery:
            # One look at its life is what several parts are made of.
            lives = Cache(nursery, self._life, ttl_s=math.inf, on_unheard=_unheard)
            return await self._gather(agent, lives.get)

    async def _gather(self, agent: AgentId, life: _Life) -> Mapping[str, AgentPart]:
        parts: Mapping[str, Callable[[AgentId], Awaitable[object]]] = {
            "agent": partial(self._agent, life),
            "executions": partial(self._executions, life),
            "metrics": partial(self._metrics, life),
            "configuration": self._configuration,
            "verdicts": self._verdicts,
            "facts": self._facts,
            "findings": self._findings,
            "tasks": self._tasks,
            "workspace": self._workspace,
        }
        async with operation(Kind.BATCH, "agent_data") as gathering:
            found = await run_parallel(
                [partial(part, agent) for part in parts.values()],
                max_concurrent=len(parts),
                item_timeout_s=self._timeout_s,
            )
            told = {
                name: self._told(name, result) for name, result in zip(parts, found, strict=True)
            }
            gathering.used("failed_parts", sum(bool(part.reason) for part in told.values()))
        return told

    def _told(self, name: str, result: outcome.Outcome[object]) -> AgentPart:
        match result:
            case outcome.Value(value):
                return AgentPart(name, value)
            case outcome.Error(trio.TooSlowError()):
                words = f"no answer within {self._timeout_s:g} s"
                return AgentPart(name, reason="timeout", message=words)
            case outcome.Error(WorkspaceError() as error):
                return AgentPart(name, reason=error.reason, message=str(error))
            case outcome.Error(StoreError() as error):
                return AgentPart(name, reason="store", message=str(error))
            case outcome.Error(CustosdError() as error):
                return AgentPart(name, reason="failed", message=str(error))
            case outcome.Error(error):
                log.error("agent_data.failed", part=name, exc_info=error)
                return AgentPart(
                    name, reason="internal", message="a fault of custosd's; see the log"
                )
        raise AssertionError(result)

    async def _life(self, agent: AgentId) -> LifeRecord | None:
        stores = await self._sources.stores()
        return await stores.actions.life(agent)

    async def _agent(self, life_of: _Life, agent: AgentId) -> Standing:
        return Standing(await self._sources.view(agent), await life_of(agent))

    async def _executions(self, life_of: _Life, agent: AgentId) -> Executions:
        stores = await self._sources.stores()
        since_utc = self._sources.now_utc() - RESTARTS_BACK
        life, view = await life_of(agent), await self._sources.view(agent)
        restarts = await stores.actions.restarts(since_utc, agent)
        return Executions(
            view.ref.run if view else "",
            life.epoch if life else None,
            (life.state if life else view.state if view else "") or "",
            life.since_utc if life else view.seen_utc if view else None,
            since_utc,
            tuple(reversed(restarts)),
        )

    async def _metrics(self, life_of: _Life, agent: AgentId) -> AgentMetrics:
        stores = await self._sources.stores()
        since_utc = self._sources.now_utc() - SPEND_BACK
        life, view = await life_of(agent), await self._sources.view(agent)
        spent = await stores.spends.spent(since_utc, agent)
        digest = view.digest if view else None
        return AgentMetrics(
            life.sequence if life else None,
            life.heard_utc if life else None,
            life.interval_s if life else None,
            digest.steps if digest else None,
            digest.errors if digest else None,
            digest.edits if digest else None,
            digest.tests_run if digest else None,
            digest.usage if digest else None,
            sum(one.usd for one in spent),
            since_utc,
        )

    async def _configuration(self, agent: AgentId) -> tuple[Setting, ...]:
        return tuple(self._sources.table(agent))

    async def _verdicts(self, agent: AgentId) -> tuple[Verdict, ...]:
        stores = await self._sources.stores()
        return (await stores.store.recent_verdicts([agent], VERDICTS)).get(agent, ())

    async def _facts(self, agent: AgentId) -> tuple[Entry, ...]:
        stores = await self._sources.stores()
        return await stores.store.recent_entries(agent, FACTS)

    async def _findings(self, agent: AgentId) -> tuple[Finding, ...]:
        stores = await self._sources.stores()
        found = await stores.coordination.findings(_FOR_EVER)
        return tuple(one for one in found if agent in (one.sighting.one, one.sighting.other))

    async def _tasks(self, agent: AgentId) -> tuple[Task, ...] | None:
        """None: there are no tasks in this daemon."""
        stores = await self._sources.stores()
        if stores.tasks is None:
            return None
        return (await stores.tasks.assigned([agent])).get(agent, ())

    async def _workspace(self, agent: AgentId) -> Workspace | None:
        """None: nowhere is said where it works."""
        configured = self._sources.folder_of(agent)
        # Who is configured needs no transcript, nor the store that it is known from.
        view = None if configured else await self._sources.view(agent)
        place = work_place(view, agent, configured)
        if place is None:
            return None
        [seen] = await self._sources.workspaces.look([place])
        if isinstance(seen, WorkspaceError):
            raise seen
        return seen


def _unheard(_agent: AgentId, error: Exception) -> None:
    # Whoever asked has given up; what it came to is told as that part's own end.
    log.error("agent_data.failed", part="life", exc_info=error)
