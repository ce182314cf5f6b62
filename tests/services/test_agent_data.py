"""One agent, gathered in parts: each has its own time and its own error."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime

import trio
from structlog.testing import capture_logs
from tests.contracts import store_values as some
from trio.testing import MockClock

from custosd.adapters.memory import MemoryStore
from custosd.adapters.memory_actions import MemoryActions
from custosd.adapters.memory_coordination import MemoryCoordination
from custosd.adapters.memory_spends import MemorySpends
from custosd.adapters.workspaces.memory import MemoryWorkspaces
from custosd.api.agents import part_forms
from custosd.core.agent_data import AgentMetrics, Standing
from custosd.core.agents import AgentId, AgentState
from custosd.core.errors import StoreUnavailable, WorkspaceError
from custosd.core.explanations import Setting
from custosd.core.lives import LifeRecord
from custosd.core.money import Spend, Spent
from custosd.core.restarts import Restart
from custosd.core.view import AgentView
from custosd.core.workspaces import Workspace
from custosd.flow.clock import wall_clock
from custosd.services.agent_data import AgentData, AgentSources, AgentStores

ADA = some.ADA.agent
ALL = [
    *("agent", "executions", "metrics", "configuration", "verdicts", "facts", "findings"),
    *("tasks", "workspace"),
]
OF_STORES = {"agent", "executions", "metrics", "verdicts", "facts", "findings", "tasks"}


async def seen(agent: AgentId) -> AgentView | None:
    await trio.lowlevel.checkpoint()
    return AgentView(replace(some.ADA, agent=agent), "t", "/t.jsonl", "", some.NOON)


async def opened() -> AgentStores:
    await trio.lowlevel.checkpoint()
    now_utc = wall_clock()
    return AgentStores(MemoryStore(), MemoryActions(now_utc), MemorySpends(), MemoryCoordination())


def data(
    stores: Callable[[], Awaitable[AgentStores]] = opened,
    view: Callable[[AgentId], Awaitable[AgentView | None]] = seen,
    folder: str = "/w",
    known: Workspace | WorkspaceError | None = None,
) -> AgentData:
    table = (Setting("agent.workspace", '"/w"', "custosd.toml:7"), Setting("agent.beats", "true"))
    return AgentData(
        AgentSources(
            stores,
            view,
            lambda _agent: table,
            lambda _agent: folder,
            MemoryWorkspaces({"/w": known or Workspace(ADA, "/w")}),
            wall_clock(),
        ),
        timeout_s=5.0,
    )


async def test_all_parts_come_with_their_values(autojump_clock: MockClock) -> None:
    del autojump_clock
    parts = await data().gather(ADA)
    assert list(parts) == ALL
    assert not [part for part in parts.values() if part.reason]
    assert isinstance(parts["agent"].value, Standing)
    assert parts["configuration"].value
    forms = part_forms(parts)
    assert forms["verdicts"] == {"value": []}
    assert forms["configuration"]["value"][0] == {
        "key": "agent.workspace",
        "value": '"/w"',
        "place": "custosd.toml:7",
    }
    assert forms["workspace"]["value"]["folder"] == "/w"


async def test_of_an_agent_only_its_own_is_read_and_its_life_once(
    autojump_clock: MockClock,
) -> None:
    """Whatever the fleet is large: nothing of the others is fetched to be thrown away."""
    asked: list[tuple[str, AgentId | None]] = []

    class Actions(MemoryActions):
        async def lives(self) -> tuple[LifeRecord, ...]:
            asked.append(("lives", None))
            return await super().lives()

        async def life(self, agent: AgentId) -> LifeRecord | None:
            asked.append(("life", agent))
            await trio.sleep(1)
            return await super().life(agent)

        async def restarts(
            self, since_utc: datetime, agent: AgentId | None = None
        ) -> tuple[Restart, ...]:
            asked.append(("restarts", agent))
            return await super().restarts(since_utc, agent)

    class Spends(MemorySpends):
        async def spent(
            self, since_utc: datetime, agent: AgentId | None = None
        ) -> tuple[Spent, ...]:
            asked.append(("spent", agent))
            return await super().spent(since_utc, agent)

    now_utc = wall_clock()
    actions, spends = Actions(now_utc), Spends()
    other = AgentId("bob")
    lives = [LifeRecord(one, 3, 7, AgentState.IDLE, some.NOON) for one in (ADA, other)]
    await actions.save_lives(lives)
    await spends.save_spends(
        [Spend(one, now_utc(), AgentId(one), "m", 0.5) for one in (ADA, other)]
    )
    stores = AgentStores(MemoryStore(), actions, spends, MemoryCoordination())

    async def counted() -> AgentStores:
        await trio.lowlevel.checkpoint()
        return stores

    parts = await data(counted).gather(ADA)
    assert sorted(asked) == [("life", ADA), ("restarts", ADA), ("spent", ADA)]
    standing, metrics = parts["agent"].value, parts["metrics"].value
    assert isinstance(standing, Standing)
    assert isinstance(metrics, AgentMetrics)
    assert standing.life == lives[0]
    assert (metrics.beats, metrics.judging_usd) == (7, 0.5)


async def test_a_frozen_store_costs_its_parts_their_time_and_the_others_nothing(
    autojump_clock: MockClock,
) -> None:
    del autojump_clock

    async def frozen() -> AgentStores:
        await trio.sleep_forever()
        raise AssertionError

    began_at = trio.current_time()
    parts = await data(frozen).gather(ADA)
    assert trio.current_time() - began_at == 5
    assert {name for name, part in parts.items() if part.reason} == OF_STORES
    forms = part_forms(parts)
    for name in OF_STORES:
        assert forms[name] == {"error": {"reason": "timeout", "message": "no answer within 5 s"}}, (
            "no empty value"
        )


async def test_each_part_has_its_own_error(autojump_clock: MockClock) -> None:
    del autojump_clock

    async def away() -> AgentStores:
        await trio.lowlevel.checkpoint()
        raise StoreUnavailable("no server; password=hunter2hunter2")

    parts = await data(away, known=WorkspaceError("EACCES", "not to be read")).gather(ADA)
    assert {parts[name].reason for name in OF_STORES} == {"store"}
    assert (parts["workspace"].reason, parts["workspace"].message) == ("EACCES", "not to be read")
    assert not parts["configuration"].reason
    assert "hunter2" not in str(part_forms(parts))


async def test_who_has_no_table_is_found_by_what_it_says_itself(autojump_clock: MockClock) -> None:
    """Only then does its folder wait for the view."""
    del autojump_clock

    async def unseen(_agent: AgentId) -> AgentView | None:
        await trio.lowlevel.checkpoint()
        raise StoreUnavailable("away")

    assert not (await data(view=unseen).gather(ADA))["workspace"].reason
    assert (await data(view=unseen, folder="").gather(ADA))["workspace"].reason == "store"
    nowhere = (await data(folder="").gather(ADA))["workspace"]
    assert (nowhere.value, nowhere.reason) == (None, "")


async def test_a_fault_of_ours_is_logged_and_its_words_go_no_further(
    autojump_clock: MockClock,
) -> None:
    del autojump_clock

    async def broken() -> AgentStores:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError("of agent text")

    with capture_logs() as lines:
        parts = await data(broken).gather(ADA)
    assert parts["verdicts"].reason == "internal"
    assert "agent text" not in parts["verdicts"].message
    assert {line["event"] for line in lines} == {"agent_data.failed"}
