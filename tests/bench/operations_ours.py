"""The same ten operations by the daemon's own code: guardian, conductor, tasks, sync, restarts.

Each is a context that gets everything ready and yields what is measured, a call without
arguments; what the call returns is compared with what the other forms return.
"""

import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import trio
from tests.services.restart_stage import Machine, MachineControl, MachineProber

from custosd.adapters.codec import MsgpackCodec
from custosd.adapters.context import LocalContext
from custosd.adapters.github import GitHubSettings, open_github
from custosd.adapters.http_client import HttpClient, HttpLimits, HttpRequest, open_http
from custosd.adapters.judges.opening import open_judge
from custosd.adapters.places import open_places
from custosd.adapters.postgres.actions import PostgresActions
from custosd.adapters.postgres.bridge import Database
from custosd.adapters.postgres.coordination import PostgresCoordination
from custosd.adapters.postgres.store import PostgresStore
from custosd.adapters.postgres.sync import PostgresSync
from custosd.adapters.postgres.tasks import PostgresTasks
from custosd.adapters.transcripts.discovery import Root
from custosd.adapters.transcripts.registry import format_named, recognise
from custosd.adapters.transcripts.source import SourceSettings, open_source
from custosd.adapters.transcripts.tail import Formats
from custosd.adapters.workspaces.local import (
    LocalWorkspaces,
    Seen,
    Wanted,
    WorkspaceLimits,
    look_into,
)
from custosd.adapters.workspaces.outputs import TailLimits
from custosd.config.models import ModelSettings
from custosd.config.settings import Config, GuardianSettings
from custosd.core.agents import AgentId
from custosd.core.detectors import DetectorLimits
from custosd.core.errors import WorkspaceError
from custosd.core.evidence import Source
from custosd.core.facts import ConductorSwept, Fact, RestartChanged, VerdictReached
from custosd.core.folds import Folds
from custosd.core.forge import Repository
from custosd.core.guardian import GuardianLimits
from custosd.core.liveness import LivenessLimits, Lives, Watched
from custosd.core.pairs import PairJudgement
from custosd.core.restart_budget import RestartLimits
from custosd.core.restarts import RestartState
from custosd.core.tasks import ClaimRequest
from custosd.core.view import FleetView
from custosd.core.workspaces import WorkPlace, WorkspacePart
from custosd.flow.bounded import each
from custosd.flow.latest import Latest
from custosd.flow.pulse import Pulse
from custosd.ports import Answer, HandOver, Judge, PairAnswer, PairJudge, PairQuestion, Question
from custosd.services.beats import BeatRegister
from custosd.services.conductor import Conductor, ConductorPorts, ConductorSetup
from custosd.services.cycle import CyclePorts, run_cycle
from custosd.services.emergency import Emergency, EmergencyPorts
from custosd.services.examinations import Examinations
from custosd.services.guardian import Guardian, GuardianPorts, GuardianSetup
from custosd.services.holds import Holds
from custosd.services.ingest import store_rest
from custosd.services.intake import Intake
from custosd.services.procedure import ProcedureLimits
from custosd.services.restarter import (
    Restarter,
    RestarterPorts,
    RestarterSettings,
    Supervised,
    keep_restarts,
)
from custosd.services.sync import Sync, SyncPorts, SyncSetup

Call = Callable[[], Awaitable[Any]]

DEADLINE_S = 600.0
OVERLAPPING = 2
WIDE = 100
"""As many at once as there may be, where the operation has no limit."""


def now_utc() -> datetime:
    return datetime.now(UTC)


class FarPairJudge(PairJudge):
    """Asks the server about a pair."""

    def __init__(self, http: HttpClient, url: str) -> None:
        self._http = http
        self._request = HttpRequest("POST", f"{url}/pair", {}, {}, b"{}")

    async def compare(self, question: PairQuestion) -> PairAnswer:
        async with self._http.exchange(self._request) as answer:
            await answer.body()
        return PairAnswer(PairJudgement(False, 0.9), judge="far")  # noqa: FBT003 - `holds`


@dataclass(frozen=True, slots=True)
class Swept:
    """A guardian on a fleet that it sees for the first time, and what it told."""

    guardian: Guardian
    view: FleetView
    facts: trio.MemoryReceiveChannel[Fact]

    async def sweep(self) -> dict[str, str]:
        await self.guardian.sweep(self.view)
        return self.told()

    def told(self) -> dict[str, str]:
        """Each agent's name, and what the model said of it."""
        found: dict[str, str] = {}
        while self.facts.statistics().current_buffer_used:
            fact = self.facts.receive_nowait()
            if isinstance(fact, VerdictReached):
                found[fact.verdict.ref.agent] = fact.verdict.judgement.summary
        return found


@dataclass(slots=True)
class Ours:
    """What stands between the daemon's code and the server and the database."""

    database: Database
    url: str
    folder: Path
    view: FleetView = field(default_factory=FleetView)

    # --- a fleet that is known ---------------------------------------------------------------

    async def take_in(self, transcripts: Path, agents: int, database: Database) -> None:
        """Read and store what so many agents wrote, and view it as after a restart."""
        store = PostgresStore(database)
        restored = await store.restore()
        intake = Intake(Folds(hot=512), restored, MsgpackCodec(), now_utc)
        seen = set[str]()
        settings = SourceSettings(rescan_s=3600.0, settle_s=0.2)
        formats = Formats(recognise, format_named)
        root = [Root(transcripts)]
        async with open_source(root, restored.positions, formats, settings) as source:
            while len(seen) < agents:
                for growth in await source.next_batch():
                    plan = intake.admit(growth)
                    if plan:
                        intake.take(plan, {})
                    if growth.events:
                        seen.add(growth.position.key)
            await store_rest(intake, store)
        self.view = FleetView({a.ref.agent: a for a in (await store.restore()).agents})

    def fleet(self, agents: int, overlapping: int = 0) -> FleetView:
        """So many agents, none of whom does another's work, and as many of the two who do."""
        known = sorted(self.view.agents.values(), key=lambda agent: _number(agent.digest))
        chosen = known[OVERLAPPING - overlapping : OVERLAPPING + agents]
        return FleetView(MappingProxyType({agent.ref.agent: agent for agent in chosen}))

    # --- judging -----------------------------------------------------------------------------

    @asynccontextmanager
    async def judge(self, most: int) -> AsyncGenerator[Judge]:
        model = ModelSettings(
            name="far", kind="openai", model="m", base_url=f"{self.url}/v1",
            requests=1_000_000, tokens=1_000_000_000, concurrency=most, canaries=0.0,
        )  # fmt: skip
        config = Config(models=(model,), guardian=GuardianSettings(judge="far"))
        async with open_judge(config, {}, now_utc) as judge:
            yield judge

    @asynccontextmanager
    async def guardian(self, agents: int, most: int) -> AsyncGenerator[Swept]:
        async with self.judge(most) as judge:
            sender, receiver = trio.open_memory_channel[Fact](math.inf)
            store = PostgresStore(self.database)
            ports = GuardianPorts(store, judge, LocalContext(), MsgpackCodec(), now_utc)
            setup = GuardianSetup(
                GuardianLimits(cadence_s=0.0, grace_s=0.0), DetectorLimits(), most, most
            )
            pulse = Pulse("guardian", trio.current_time())
            made = Guardian(ports, setup, Folds(hot=512), sender, pulse)
            yield Swept(made, self.fleet(agents), receiver)

    @asynccontextmanager
    async def conductor(self, agents: int) -> AsyncGenerator[Conductor]:
        """One on a fleet in which there is something to ask: two of it do the same."""
        view = self.fleet(agents, OVERLAPPING)
        async with open_http(HttpLimits(connections=5)) as http, open_places() as places:
            sender, _ = trio.open_memory_channel[Fact](math.inf)
            store, judge = PostgresCoordination(self.database), FarPairJudge(http, self.url)
            ports = ConductorPorts(store, judge, places, now_utc)
            pulse = Pulse("conductor", trio.current_time())
            yield Conductor(ports, ConductorSetup(), lambda: view, sender, pulse)

    @asynccontextmanager
    async def sweep(self, agents: int, most: int) -> AsyncGenerator[Call]:
        """The guardian's sweep, over agents all of which are to be asked about."""
        async with self.guardian(agents, most) as swept:
            yield swept.sweep

    @asynccontextmanager
    async def emergency(self, agents: int) -> AsyncGenerator[Call]:
        """Named agents, all at once, beside the fleet."""
        examinations = Examinations()
        async with (
            self.guardian(agents, WIDE) as swept,
            self.conductor(agents) as conductor,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(
                examinations.attend,
                lambda names, tell: swept.guardian.examine(swept.view, names, tell),
            )
            steering: Any = None  # no verdict of these asks for any
            emergency = Emergency(
                EmergencyPorts(examinations, conductor.sweep, steering, Latest(swept.view))
            )

            async def call() -> tuple[dict[str, str], int]:
                report = await emergency.analyse(list(swept.view.agents), DEADLINE_S)
                assert report.fleet is not None
                assert not report.missing, report.missing
                return swept.told(), report.fleet.asked

            yield call
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def cycle(self, agents: int, most: int) -> AsyncGenerator[Call]:
        """One cycle: both sweeps at once."""
        async with self.guardian(agents, most) as swept, self.conductor(agents) as conductor:
            ports = CyclePorts(partial(swept.guardian.sweep, swept.view), conductor.sweep)

            async def call() -> tuple[dict[str, str], int]:
                report = await run_cycle(ports, DEADLINE_S)
                fleet = report.conductor
                assert isinstance(fleet, ConductorSwept), report.missing
                return swept.told(), fleet.asked

            yield call

    @asynccontextmanager
    async def calls(self, agents: int, most: int) -> AsyncGenerator[Call]:
        """A model's calls, all wanted at once, as many under way as its own limit lets through."""
        questions = [
            Question(agent.ref, agent.digest, (), 0.0, (), agent.ref.agent)
            for agent in self.fleet(agents).agents.values()
            if agent.digest is not None
        ]
        async with self.judge(most) as judge:

            async def one(question: Question) -> tuple[str, str]:
                answer: Answer = await judge.judge(question)
                return question.ref.agent, answer.judgement.summary

            async def call() -> dict[str, str]:
                return dict(got.unwrap() for got in await each(questions, one, limit=WIDE))

            yield call

    # --- restarts ----------------------------------------------------------------------------

    @asynccontextmanager
    async def restarts(
        self, agents: Sequence[str], spawn_s: float, most: int
    ) -> AsyncGenerator[Call]:
        """Dead agents, each ordered to be restarted; until all of them are."""
        names = [AgentId(name) for name in agents]
        machine, store = Machine(), PostgresActions(self.database)
        sender, receiver = trio.open_memory_channel[Fact](math.inf)
        register = BeatRegister(lambda _: True)
        lives = Lives(LivenessLimits(), register)
        for name in names:
            watched = Watched(name, sources=frozenset({Source.PROCESS}), beats=False)
            lives.watch(watched, trio.current_time())
        ports = RestarterPorts(
            store,
            {name: SlowControl(machine, name, spawn_s) for name in names},
            MachineProber(machine),
            lives,
            Holds(store, sender, now_utc),
            sender,
            now_utc,
        )
        # What is waited for on purpose, between two samples and after the start, is no cost.
        steps = ProcedureLimits(samples_s=0.0, stays_s=0.0)
        settings = RestarterSettings(RestartLimits(concurrency=most), steps)
        supervised = {name: Supervised(beats=False) for name in names}
        restarter = Restarter(ports, Latest(FleetView()), supervised, settings, "bench")

        async def call() -> set[str]:
            ended: set[str] = set()
            async with trio.open_nursery() as nursery:
                for name in names:
                    nursery.start_soon(restarter.order, name, "bench", "measured")
                while len(ended) < len(names):
                    fact = await receiver.receive()
                    if isinstance(fact, RestartChanged) and fact.state is RestartState.SUCCEEDED:
                        ended.add(fact.agent)
            assert set(machine.workers) == ended
            return ended

        async with trio.open_nursery() as nursery:
            await nursery.start(
                partial(keep_restarts, restarter, Pulse("restarter", trio.current_time()))
            )
            yield call
            nursery.cancel_scope.cancel()

    # --- tasks -------------------------------------------------------------------------------

    @asynccontextmanager
    async def assigned(self, agents: Sequence[str]) -> AsyncGenerator[Call]:
        """What each of these agents has, in one statement."""
        tasks, names = PostgresTasks(self.database), [AgentId(name) for name in agents]

        async def call() -> dict[str, frozenset[str]]:
            found = await tasks.assigned(names)
            return {agent: frozenset(task.id for task in held) for agent, held in found.items()}

        yield call

    @asynccontextmanager
    async def next_tasks(self, limit: int) -> AsyncGenerator[Call]:
        """The most urgent of the tasks that are ready, with their scores, in one statement."""
        tasks = PostgresTasks(self.database)

        async def call() -> set[str]:
            return {str(scored.task.id) for scored in await tasks.next_tasks(limit, ())}

        yield call

    @asynccontextmanager
    async def claim(self, agent: str, limit: int) -> AsyncGenerator[Call]:
        """The same, claimed, in one statement."""
        tasks = PostgresTasks(self.database)
        request = ClaimRequest(AgentId(agent), 3_600.0, limit)

        async def call() -> set[str]:
            return {str(task.id) for task in (await tasks.claim(request)).tasks}

        yield call

    # --- files and forges --------------------------------------------------------------------

    @asynccontextmanager
    async def files(
        self, folders: Sequence[Path], names: tuple[str, ...], pause_s: float
    ) -> AsyncGenerator[Call]:
        """The ends of all output files; a folder is one unit of work in a thread."""
        limits = WorkspaceLimits(TailLimits(names), timeout_s=60.0)
        parts = frozenset({WorkspacePart.OUTPUTS})

        def see(wanted: Wanted) -> Seen:
            # A file system that answers later; this is a thread.
            time.sleep(pause_s * len(names))
            return look_into(wanted)

        workspaces = LocalWorkspaces(Path("/nowhere"), limits, now_utc, see)
        places = [WorkPlace(AgentId(one.name), str(one)) for one in folders]

        async def call() -> dict[str, str]:
            texts: dict[str, str] = {}
            for place, found in zip(places, await workspaces.look(places, parts), strict=True):
                assert not isinstance(found, WorkspaceError), found
                for output in found.outputs:
                    texts[str(Path(place.folder, output.path))] = output.text or ""
            return texts

        yield call

    @asynccontextmanager
    async def sync(self, names: Sequence[str], most: int) -> AsyncGenerator[Call]:
        """A first sweep over repositories."""
        settings = GitHubSettings(self.url, history_s=1e9, connections=most)
        async with open_github(settings, now_utc) as github:
            sender, _ = trio.open_memory_channel[Fact](math.inf)
            repositories = tuple(Repository(name) for name in names)
            ports = SyncPorts(PostgresSync(self.database), {"github": github}, now_utc)
            setup = SyncSetup(repositories, concurrency=most)
            sync = Sync(ports, setup, sender, Pulse("sync", trio.current_time()))

            async def call() -> int:
                swept = await sync.sweep()
                assert swept.synced == len(names), swept
                return swept.works

            yield call


class SlowControl(MachineControl):
    """A control whose agents take a while to start."""

    def __init__(self, machine: Machine, agent: AgentId, spawn_s: float) -> None:
        super().__init__(machine, agent)
        self.spawn_s = spawn_s

    async def spawn(self, key: str, hand_over: HandOver) -> None:
        await trio.sleep(self.spawn_s)
        await super().spawn(key, hand_over)


def _number(digest: Any) -> int:
    return int(digest.goal.split()[2])
