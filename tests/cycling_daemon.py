"""The whole daemon on the shipped fakes, with a judge that is told what to say, and its door."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import trio
from tests.idle_hands import idle_hands

from custosd.acting import Doors, Hands
from custosd.adapters.channels.recorded import RecordedChannel
from custosd.adapters.judges.pair_rules import RulesPairJudge
from custosd.adapters.memory import MemoryStore
from custosd.adapters.memory_actions import MemoryActions
from custosd.adapters.memory_coordination import MemoryCoordination
from custosd.adapters.memory_service_manager import RecordingServiceManager
from custosd.adapters.places import ToldPlaces
from custosd.adapters.scripted_source import ScriptedSource
from custosd.app import Outside, supervise_fleet
from custosd.config.acting import SteeringSettings
from custosd.config.agents import AgentSettings
from custosd.config.reading import Reading
from custosd.config.settings import Config, GuardianSettings
from custosd.core.acts import Act, ActAnswer, ActRequest
from custosd.core.agents import AgentId
from custosd.core.effects import text_of
from custosd.core.facts import Fact
from custosd.core.pairs import Place
from custosd.core.transcript import (
    Acted,
    Asked,
    Change,
    EditRange,
    Opened,
    Result,
    Step,
    StepKind,
    Usage,
)
from custosd.core.verdicts import Judgement, Standing, SteeringKind, SteeringReason
from custosd.core.view import FleetView
from custosd.flow.clock import wall_clock
from custosd.flow.latest import Latest
from custosd.ports import Answer, Judge, PairJudge, Restored, TranscriptSource

GOOD = Judgement(Standing.PROGRESSING, alignment=0.9, confidence=0.8)
STUCK = Judgement(
    Standing.STUCK,
    alignment=0.2,
    confidence=0.9,
    needs_steering=True,
    steering_kind=SteeringKind.GUIDANCE,
    steering_reason=SteeringReason.STUCK,
    message="Read the error first.",
)
URGENT = replace(
    STUCK,
    steering_kind=SteeringKind.EMERGENCY,
    steering_reason=SteeringReason.VIOLATING_CONSTRAINTS,
    message="Stop: do not delete the table.",
)


def paid(judgement: Judgement, cost_usd: float) -> Answer:
    return Answer(judgement, "scripted", usage=Usage(100, 10, 0, cost_usd))


def of(name: str) -> AgentId:
    return AgentId(name)


def wrote(name: str, number: int, path: str = "src/a.py", at: int = 10) -> Acted:
    edit = EditRange(path, at, at + 2, changes=(Change(at, 3, 3),))
    text = text_of(f"{name} {number}")
    key, kind, ok = f"s{number}", StepKind.EDIT, Result.OK
    step = Step(key, kind, "edit", "edit", text, text, ok, files=(path,), edits=(edit,))
    return Acted("", step)


@dataclass
class Daemon:
    """One life of the daemon; what it is made of may be changed before it runs."""

    judge: Judge
    names: Sequence[str] = ()
    mode: str = "observe"
    guardian: GuardianSettings = field(default_factory=lambda: GuardianSettings(grace_s=0.0))
    pair_judge: PairJudge = field(default_factory=RulesPairJudge)
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    store: MemoryStore = field(default_factory=MemoryStore)
    actions: MemoryActions = field(default_factory=MemoryActions)
    coordination: MemoryCoordination = field(default_factory=MemoryCoordination)
    channels: dict[str, RecordedChannel] = field(default_factory=dict[str, RecordedChannel])
    source: ScriptedSource | None = None
    doors: Doors | None = None
    view: Latest[FleetView] | None = None
    steps: int = 0

    def __post_init__(self) -> None:
        self.now_utc: Callable[[], datetime] = wall_clock()

    @asynccontextmanager
    async def _open(self, restored: Restored) -> AsyncGenerator[TranscriptSource]:
        self.source = ScriptedSource(self.now_utc, restored.positions)
        yield self.source

    async def _serve(self, doors: Doors, task_status: trio.TaskStatus[None]) -> None:
        self.doors = doors
        task_status.started()
        await trio.sleep_forever()

    def _channel_of(self, settings: AgentSettings) -> RecordedChannel:
        return self.channels.setdefault(settings.id, RecordedChannel())

    @property
    def config(self) -> Config:
        agents = tuple(
            AgentSettings(id=name, beats=False, transcripts=(Path(f"/t/{name}"),))
            for name in self.names
        )
        steering = SteeringSettings(mode=self.mode, hold_out=0.0)  # type: ignore[arg-type]
        return Config(agents=agents, steering=steering, guardian=self.guardian, **self.settings)

    @asynccontextmanager
    async def run(self) -> AsyncGenerator["Daemon"]:
        def seen(view: Latest[FleetView]) -> None:
            self.view = view

        stop = trio.Event()
        hands: Hands = replace(
            idle_hands(self.actions), serve_doors=self._serve, channel_of=self._channel_of
        )
        folders = {f"/w/{name}": Place("/r/.git", f"/w/{name}") for name in self.names}
        outside = Outside(
            self.store,
            self._open,
            lambda _: nullcontext(self.judge),
            RecordingServiceManager(),
            self.now_utc,
            hands,
            lambda: Reading(self.config, {}),
            seen=seen,
            coordination=self.coordination,
            open_pair_judge=lambda _: nullcontext(self.pair_judge),
            places=ToldPlaces(folders),
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(supervise_fleet, self.config, outside, stop)
            yield self
            stop.set()

    def begin(self, name: str, goal: str = "") -> None:
        """An agent begins its work, with a first step."""
        assert self.source is not None
        words = goal or f"Make {name} work, and nothing else"
        self.source.grow(f"/t/{name}/log", Opened("", name, cwd=f"/w/{name}"), Asked("", words))
        self.act(name)

    def act(self, name: str, path: str = "") -> None:
        """One more step."""
        assert self.source is not None
        self.steps += 1
        self.source.grow(f"/t/{name}/log", wrote(name, self.steps, path or f"{name}.py"))

    async def ask(
        self, act: Act, subject: str = "", by: str = "uid:7 (ada)", **more: Any
    ) -> ActAnswer:
        """Ask at the door."""
        assert self.doors is not None
        return await self.doors.acts.perform(ActRequest(act, by, subject, **more))

    async def emergency(self, *names: str, deadline_s: float = 60.0, **more: Any) -> ActAnswer:
        subject, arguments = "\n".join(names), {"deadline_s": deadline_s}
        return await self.ask(Act.EMERGENCY, subject, arguments=arguments, **more)

    async def facts(self, kind: type[Fact]) -> list[Any]:
        entries = await self.store.recent_entries(None, 100_000)
        return [entry.fact for entry in reversed(entries) if isinstance(entry.fact, kind)]
