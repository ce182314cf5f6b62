"""Folders of agents, through the whole daemon on the shipped fakes: who looks into which."""

from contextlib import nullcontext
from dataclasses import fields, replace

import trio
import trio.testing
from tests.idle_hands import idle_hands

from custosd.acting import Doors
from custosd.adapters.judges.rules import RulesJudge
from custosd.adapters.memory import MemoryStore
from custosd.adapters.memory_service_manager import RecordingServiceManager
from custosd.adapters.places import ToldPlaces
from custosd.adapters.scripted_source import ScriptedSource
from custosd.adapters.workspaces.local import WorkspaceLimits, limits_of
from custosd.adapters.workspaces.memory import MemoryWorkspaces
from custosd.app import Outside, supervise_fleet
from custosd.config.agents import AgentSettings
from custosd.config.reading import Origin, Reading
from custosd.config.settings import Config
from custosd.config.workspaces import WorkspaceSettings
from custosd.core.agents import AgentId
from custosd.core.pairs import Place
from custosd.core.transcript import Asked, Opened, TranscriptEvent
from custosd.core.workspaces import Workspace
from custosd.flow.clock import wall_clock

ADA = AgentId("ada")
BEGIN: list[TranscriptEvent] = [Opened("", "ada"), Asked("", "Mend the parser.")]


class Asking(ToldPlaces):
    """Remembers where it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def place(self, folder: str, branch: str) -> Place:
        self.asked.append(folder)
        return await super().place(folder, branch)


async def test_an_agent_is_told_of_whole_and_its_table_says_where_it_works(
    autojump_clock: trio.testing.MockClock,
) -> None:
    del autojump_clock
    opened: list[Doors] = []

    async def doors(one: Doors, task_status: trio.TaskStatus[None]) -> None:
        opened.append(one)
        task_status.started()
        await trio.sleep_forever()

    now_utc, stop, places = wall_clock(), trio.Event(), Asking()
    source = ScriptedSource(now_utc)
    config = Config(agent=(AgentSettings(id=ADA, workspace="/w/ada", transcripts=["/t/ada"]),))
    outside = Outside(
        MemoryStore(),
        lambda _restored: nullcontext(source),
        lambda _: nullcontext(RulesJudge()),
        RecordingServiceManager(),
        now_utc,
        replace(idle_hands(), serve_doors=doors),
        lambda: Reading(config, {}),
        places=places,
        workspaces=MemoryWorkspaces({"/w/ada": Workspace(ADA, "/w/ada")}),
        origins={("agent", 0, "workspace"): Origin("custosd.toml", 7)},
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(supervise_fleet, config, outside, stop)
        source.grow("/t/ada/x", *BEGIN)
        await trio.sleep(400)
        assert opened[0].agents is not None
        parts = await opened[0].agents(ADA)
        nobody = await opened[0].agents(AgentId("eve"))
        stop.set()
    assert places.asked[0] == "/w/ada"
    assert nobody is None
    assert parts is not None
    assert not [part for part in parts.values() if part.reason]
    assert parts["workspace"].value == Workspace(ADA, "/w/ada")
    table = parts["configuration"].value
    assert isinstance(table, tuple)
    assert {one.key: one.place for one in table}["agent.workspace"] == "custosd.toml:7"
    assert parts["verdicts"].value
    assert parts["facts"].value


def test_every_setting_of_folders_is_read() -> None:
    settings = WorkspaceSettings(
        outputs=("a",), tail_lines=1, tail_bytes="2KiB", changed_s="3s", most_changed=4,
        concurrency=5, timeout_s="6s",
    )  # fmt: skip
    read = limits_of(settings)
    assert (read.tails.patterns, read.tails.lines, read.tails.most_bytes) == (("a",), 1, 2_048)
    others = [each.name for each in fields(WorkspaceLimits)][1:]
    assert {name: getattr(read, name) for name in others} == {
        "changed_s": 3.0,
        "most_changed": 4,
        "concurrency": 5,
        "timeout_s": 6.0,
    }
