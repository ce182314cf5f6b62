"""The composition root: opens what the services need, feeds one into the other, drains.

    transcripts ─► ingest ──┐              ┌─► view ─► guardian (and everybody who reads)
    beats, looks ─► liveness├─ Fact ─► board
    view, judge ─► guardian ┤              └─ Entry ─► recorder ─► Store
    view ─► restarter, steerer, alerting (see `custosd.acting`)

Laws: downstream first, so that whoever sends finds its reader listening. At a stop the
sources end first, what is in the channels may still flow out, and `drain_s` cuts it off.
Agents are never touched by our own stop.
"""

import os
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
)
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from math import inf
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import structlog
import trio

from custosd import __version__
from custosd.acting import ActingHalf, Hands, Remembered, remembered
from custosd.adapters.codec import MsgpackCodec
from custosd.adapters.context import LocalContext
from custosd.adapters.forges import open_forges
from custosd.adapters.hung_looks import HungLooks
from custosd.adapters.judges.budgets import budgets_of
from custosd.adapters.judges.opening import (
    Guards,
    open_judge,
    open_pair_judge,
    priced_models,
)
from custosd.adapters.judges.pair_rules import RulesPairJudge
from custosd.adapters.memory_coordination import MemoryCoordination
from custosd.adapters.memory_spends import MemorySpends
from custosd.adapters.memory_sync import MemorySync
from custosd.adapters.places import ToldPlaces, open_places
from custosd.adapters.postgres.actions import PostgresActions
from custosd.adapters.postgres.bridge import Database
from custosd.adapters.postgres.coordination import PostgresCoordination
from custosd.adapters.postgres.migrations import Migration, migrate
from custosd.adapters.postgres.opening import open_postgres
from custosd.adapters.postgres.spends import PostgresSpends
from custosd.adapters.postgres.store import PostgresStore
from custosd.adapters.postgres.sync import PostgresSync
from custosd.adapters.postgres.tasks import PostgresTasks
from custosd.adapters.process_watch import open_process_watch
from custosd.adapters.telemetry.prometheus import Exposition
from custosd.adapters.transcripts.discovery import Root, well_known_roots
from custosd.adapters.transcripts.format import Format, Sample
from custosd.adapters.transcripts.limits import ReadLimits
from custosd.adapters.transcripts.registry import format_named, recognise
from custosd.adapters.transcripts.source import SourceSettings, open_source
from custosd.adapters.transcripts.tail import Formats
from custosd.adapters.workspaces.local import limits_of, open_workspaces
from custosd.adapters.workspaces.memory import MemoryWorkspaces
from custosd.api.agents import AgentParts
from custosd.config.in_force import InForce
from custosd.config.reading import Origin, Reading
from custosd.config.section import KeyPath
from custosd.config.settings import Config, RootSettings, TranscriptSettings
from custosd.core.agent_data import AgentPart
from custosd.core.agents import AgentId
from custosd.core.coherence import FleetStatus
from custosd.core.errors import ConfigError, StoreConflict, StoreUnavailable
from custosd.core.evidence import Condition, Value
from custosd.core.facts import (
    ConductorSwept,
    DaemonStarted,
    DaemonStopped,
    Entry,
    Fact,
    SweepFinished,
)
from custosd.core.folds import Folds
from custosd.core.guardian import GuardianLimits
from custosd.core.lives import LifeView
from custosd.core.money import Rung
from custosd.core.money_words import money_explained
from custosd.core.view import AgentView, FleetView
from custosd.core.view import Hands as FleetHands
from custosd.flow.gauge import Gauge
from custosd.flow.latest import Latest
from custosd.flow.monitor import Monitor, Observer, in_force, monitor_in_force
from custosd.flow.pulse import Pulse, Pulses
from custosd.flow.renewal import Renewal
from custosd.flow.retry import FailedAttempt, retry
from custosd.flow.rounds import Rounds
from custosd.flow.supervise import Failure, RestartPolicy
from custosd.local import local_hands
from custosd.ports import (
    CoordinationStore,
    DaemonBeat,
    Forge,
    Judge,
    PairJudge,
    Places,
    Restored,
    SpendStore,
    Store,
    SyncStore,
    TranscriptSource,
    Workspaces,
)
from custosd.services.agent_data import AgentData, AgentSources, AgentStores
from custosd.services.board import EntryMaker, keep_board
from custosd.services.conductor import (
    Conductor,
    ConductorPorts,
    ConductorSetup,
    conduct_fleet,
)
from custosd.services.cycle import CyclePorts
from custosd.services.emergency import Emergency, EmergencyPorts
from custosd.services.examinations import Examinations
from custosd.services.fleet_tasks import FleetTasks
from custosd.services.gauges import fleet_gauges, money_gauges, queue_gauges
from custosd.services.guardian import Guardian, GuardianPorts, GuardianSetup, guard_trajectories
from custosd.services.ingest import follow_transcripts, store_rest
from custosd.services.intake import Intake, Named, nobody, renamed
from custosd.services.landing import Landing, LandingPorts, keep_landings
from custosd.services.purse import Purse
from custosd.services.recorder import InHand, RecorderLimits, record_facts
from custosd.services.reload import Reload, answer_hangups
from custosd.services.retention import Prunable, RetentionTimes, keep_retention
from custosd.services.self_watch import answer_dump_requests, tell_slow, watch_ourselves
from custosd.services.snapshots import keep_snapshots
from custosd.services.store_absence import STORE_RETRIES, StoreAbsence
from custosd.services.sync import Sync, SyncPorts, SyncSetup, follow_forges
from custosd.services.sync_desk import SyncDesk
from custosd.services.trouble import ServiceTrouble
from custosd.services.vitals import show_life
from custosd.services.watchdog import ReadinessPort, feed_watchdog

log = structlog.get_logger()

T = TypeVar("T")

MIGRATION_STEP_S = 30.0
"""How much longer a migration may take, each time that it is seen to be at work."""

START_STEP_S = 60.0
"""How much longer a start may take, beside its pause, each time that the store is away."""

_START = replace(
    STORE_RETRIES,
    retry_on=lambda error: isinstance(error, StoreUnavailable | StoreConflict),
)


POLICY = RestartPolicy(most=5, period_s=300.0)
"""Our own services: a failing one is run again, a hopeless one ends the daemon."""

PATIENT = replace(POLICY, most=inf)
"""Those whose loss leaves no agent unwatched: run again for ever, while a person is told."""

TASKS_FILE = "tasks.txt"
"""Where the tree of tasks is written, in the state folder."""

RESTARTS_REMEMBERED = timedelta(days=1)
"""How far back restarts are read at a start; their budgets look no further."""

Service = Callable[[Config, trio.TaskStatus[None]], Awaitable[None]]
OpenSource = Callable[[Restored], AbstractAsyncContextManager[TranscriptSource]]
OpenJudge = Callable[[Config], AbstractAsyncContextManager[Judge]]
OpenPairJudge = Callable[[Config], AbstractAsyncContextManager[PairJudge]]
OpenForges = Callable[[Config], AbstractAsyncContextManager[Mapping[str, Forge]]]


def _open_rules_for_pairs(_config: Config) -> AbstractAsyncContextManager[PairJudge]:
    return nullcontext(RulesPairJudge())


NEEDS: Mapping[str, Callable[[Config], object]] = {
    "retention": lambda config: config.retention,
    "guardian": lambda config: (
        config.guardian,
        config.detectors,
        config.models,
        config.ensembles,
    ),
    "conductor": lambda config: (config.conductor, config.models, config.ensembles),
    "liveness": lambda config: config.liveness,
    "alerting": lambda config: config.alerts,
    "sync": lambda config: config.sync,
    "watchdog": lambda config: config.watchdog,
}
"""What of the configuration a service is made of: where it changes, it is run anew."""


@dataclass(frozen=True, slots=True)
class Outside:
    """Everything that the daemon works with and does not make itself.

    `reread` gives the configuration as it stands now, or raises `InvalidConfig`; `hangups`
    counts the requests to do so. `seen` is given the view that is kept, once, at the start.
    `origins` are those of the first configuration, as in `Reading`. `purse` pays for the judge
    that `open_judge` opens; without one nothing is paid for.
    """

    store: Store
    open_source: OpenSource
    open_judge: OpenJudge
    manager: ReadinessPort
    now_utc: Callable[[], datetime]
    hands: Hands
    reread: Callable[[], Reading]
    hangups: Latest[int] = field(default_factory=lambda: Latest(0))
    swept: Callable[[SweepFinished, FleetView], None] = lambda _sweep, _view: None
    seen: Callable[[Latest[FleetView]], None] = lambda _view: None
    coordination: CoordinationStore = field(default_factory=MemoryCoordination)
    open_pair_judge: OpenPairJudge = _open_rules_for_pairs
    places: Places = field(default_factory=ToldPlaces)
    workspaces: Workspaces = field(default_factory=MemoryWorkspaces)
    origins: Mapping[KeyPath, Origin] = field(default_factory=dict)
    purse: Purse | None = None
    spends: SpendStore = field(default_factory=MemorySpends)
    sync_store: SyncStore = field(default_factory=MemorySync)
    open_forges: OpenForges = lambda _config: nullcontext({})


@dataclass(frozen=True, slots=True)
class _Judging:
    """Where sweeps and analyses are asked for; lives longer than those who do them."""

    sweeps: Rounds[SweepFinished]
    fleet_sweeps: Rounds[ConductorSwept]
    examinations: Examinations


@dataclass(frozen=True, slots=True)
class _Wires:
    """What runs between the services."""

    source: TranscriptSource
    facts: trio.MemorySendChannel[Fact]
    view: Latest[FleetView]
    pulses: Pulses
    folds: Folds
    intake: Intake
    started_utc: datetime
    acting: ActingHalf
    renewal: Renewal[Config]
    waiting: Callable[[], Mapping[str, int]]
    """What waits between the services, by queue."""
    maker: EntryMaker
    purse: Purse
    judging: _Judging


async def supervise_fleet(
    config: Config,
    outside: Outside,
    stop: trio.Event,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the daemon over open adapters until `stop` is set, then drain.

    Started: after the first sweep, when everything is at work; the service manager is
    told so too; or when a stop was asked for before that. A store that is away is waited
    for. Raises: what a service raised that could not be run again.
    """
    purse = outside.purse or Purse(MemorySpends(), outside.now_utc)
    recalled = await _answered(lambda: _recall(config, outside, purse), outside.manager, stop)
    if recalled is None:
        task_status.started()
        return
    restored, stored = recalled
    view = Latest(first_view(config, restored, stored))
    outside.seen(view)
    facts_in, facts = trio.open_memory_channel[Fact](config.board.queue)
    entries_in, entries = trio.open_memory_channel[Entry](config.recorder.queue)
    maker = EntryMaker(uuid.uuid4().hex[:12], outside.now_utc)
    folds = Folds(config.guardian.hot_trajectories)
    intake = Intake(folds, restored, MsgpackCodec(), outside.now_utc, named_by(config))
    in_hand = InHand()
    # Of what is closed nothing can be counted any more: these see what a cut drain leaves.
    facts_left, entries_left = facts.clone(), entries.clone()
    async with AsyncExitStack() as stack, trio.open_nursery() as consumers:
        source = await stack.enter_async_context(outside.open_source(restored))
        started_utc = outside.now_utc()
        acting = ActingHalf(
            config,
            outside.hands,
            outside.store,
            view,
            facts_in,
            outside.now_utc,
            stored,
        )
        renewal = Renewal(config)

        def waiting() -> Mapping[str, int]:
            return {
                "facts": facts_left.statistics().current_buffer_used,
                "entries": entries_left.statistics().current_buffer_used + in_hand.entries,
                "transcripts": intake.backlog,
            }

        wires = _Wires(
            source,
            facts_in,
            view,
            Pulses(),
            folds,
            intake,
            started_utc,
            acting,
            renewal,
            waiting,
            maker,
            purse,
            _Judging(
                Rounds("guardian", outside.now_utc),
                Rounds("conductor", outside.now_utc),
                Examinations(),
            ),
        )
        await consumers.start(_recorder, config, outside, wires, entries, in_hand)
        await consumers.start(_board, config, wires, facts, entries_in, maker)
        await facts_in.send(DaemonStarted(__version__, os.getpid()))
        ready = False
        async with trio.open_nursery() as producers:
            producers.start_soon(_cancel_at, stop, producers.cancel_scope)
            await _start_producers(producers, config, outside, wires)
            # In this order: whoever waited for the start finds it in the log.
            log.info("daemon.ready", agents=len(view.value.agents))
            outside.manager.ready(_words(view.value))
            ready = True
            task_status.started()
        log.info("daemon.stopping", drain_s=config.daemon.drain_s)
        outside.manager.stopping("draining")
        if not ready:
            task_status.started()
        # The sources are gone; what is in the channels may still flow out.
        acting.close()
        consumers.cancel_scope.deadline = trio.current_time() + config.daemon.drain_s
        await facts_in.send(DaemonStopped("asked"))
        await facts_in.aclose()
        await store_rest(intake, outside.store)
        await _say_farewell(config, outside, wires)
    if consumers.cancel_scope.cancelled_caught:
        log.warning(
            "drain.cut",
            drain_s=config.daemon.drain_s,
            facts=facts_left.statistics().current_buffer_used,
            entries=entries_left.statistics().current_buffer_used + in_hand.entries,
            transcripts=intake.backlog,
        )
    facts_left.close()
    entries_left.close()
    log.info("daemon.stopped")


async def _recall(config: Config, outside: Outside, purse: Purse) -> tuple[Restored, Remembered]:
    since_utc = outside.now_utc() - RESTARTS_REMEMBERED
    found = await outside.store.restore(), await remembered(outside.hands.actions, since_utc)
    # Last: what was taken up once must not be taken up twice.
    await purse.load()
    return renamed(found[0], named_by(config)), found[1]


async def _answered(
    ask: Callable[[], Awaitable[T]], manager: ReadinessPort, stop: trio.Event
) -> T | None:
    """What the store says, once it answers; None when a stop is asked for before that."""
    absence = StoreAbsence("start")

    def failed(failure: FailedAttempt) -> None:
        if failure.pause_s is not None:
            absence.lost(failure.error, 0)
            manager.extend_timeout(failure.pause_s + START_STEP_S)
            manager.status(f"waiting for the database: {failure.error}")

    async def pause(pause_s: float) -> None:
        with trio.move_on_after(pause_s):
            await stop.wait()
            raise _StopAsked

    try:
        answer = await retry(ask, _START, on_failure=failed, pause=pause)
    except _StopAsked:
        return None
    absence.answered()
    return answer


class _StopAsked(Exception):
    """A stop was asked for while the store was waited for."""


async def _cancel_at(stop: trio.Event, scope: trio.CancelScope) -> None:
    await stop.wait()
    scope.cancel("stopping")


async def _recorder(
    config: Config,
    outside: Outside,
    wires: _Wires,
    entries: trio.MemoryReceiveChannel[Entry],
    in_hand: InHand,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    limits = RecorderLimits(config.recorder.batch, config.recorder.flush_s)
    with wires.pulses.watched("recorder") as pulse:
        await record_facts(entries, outside.store, limits, pulse, in_hand, task_status=task_status)


async def _board(
    config: Config,
    wires: _Wires,
    facts: trio.MemoryReceiveChannel[Fact],
    record: trio.MemorySendChannel[Entry],
    maker: EntryMaker,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    settle_s = config.board.settle_s
    with wires.pulses.watched("board") as pulse:
        await keep_board(facts, wires.view, record, maker, settle_s, pulse, task_status=task_status)


async def _start_producers(
    nursery: trio.Nursery, config: Config, outside: Outside, wires: _Wires
) -> None:
    """Start everybody who tells facts, or looks after the store and ourselves."""
    # Not run again when it fails: what it had read and not folded would be lost. The
    # daemon ends instead, and the next start reads on from the stored positions.
    await nursery.start(
        follow_transcripts,
        wires.source,
        wires.facts.clone(),
        wires.intake,
        outside.store,
        MsgpackCodec(),
        wires.pulses,
    )

    acting, pulses = wires.acting, wires.pulses

    async def start(name: str, service: Service, policy: RestartPolicy = POLICY) -> None:
        needs = NEEDS.get(name, lambda _config: None)
        await nursery.start(wires.renewal.run, name, needs, service, policy, _tell_failure)

    async def start_patiently(name: str, service: Service) -> None:
        trouble = ServiceTrouble(name, wires.facts, nursery)
        await start(name, lambda now, status: trouble.watch(partial(service, now), status), PATIENT)

    async def guardian(now: Config, task_status: trio.TaskStatus[None]) -> None:
        async with outside.open_judge(now) as judge:
            with pulses.watched("guardian") as pulse:
                await guard_trajectories(
                    _guardian(now, outside, wires, judge, pulse),
                    lambda: wires.view.value,
                    now.guardian.interval_s,
                    rounds=wires.judging.sweeps,
                    examinations=wires.judging.examinations,
                    swept=lambda sweep: outside.swept(sweep, wires.view.value),
                    task_status=task_status,
                )

    sync_desk = SyncDesk(outside.sync_store)

    async def vitals(_now: Config, task_status: trio.TaskStatus[None]) -> None:
        with pulses.watched("vitals") as pulse:
            await show_life(
                outside.store,
                lambda: _beat(config, outside, wires),
                pulse,
                task_status=task_status,
            )

    async def snapshots(_now: Config, task_status: trio.TaskStatus[None]) -> None:
        with pulses.watched("snapshots") as pulse:
            await keep_snapshots(
                outside.store,
                monitor_in_force(),
                config.daemon.name,
                outside.now_utc,
                pulse,
                task_status=task_status,
            )

    async def watchdog(now: Config, task_status: trio.TaskStatus[None]) -> None:
        await feed_watchdog(
            pulses,
            lambda: _words(wires.view.value),
            outside.manager,
            now.watchdog.interval_s,
            now.watchdog.stale_after_s,
            task_status=task_status,
        )

    in_force = InForce(Reading(config, outside.origins))
    reload = Reload(
        outside.reread,
        in_force,
        lambda now: _adopt(now, wires),
        wires.renewal,
        acting.facts,
        outside.manager,
        lambda: _words(wires.view.value),
    )

    async def doors(_now: Config, task_status: trio.TaskStatus[None]) -> None:
        def ready() -> tuple[bool, tuple[str, ...]]:
            stale = tuple(sorted(pulses.stale(trio.current_time(), config.watchdog.stale_after_s)))
            return not stale, tuple(f"no progress: {name}" for name in stale)

        acts = acting.acts(
            reload.reload,
            in_force.setting,
            lambda: money_explained(wires.purse.shown()),
            _emergency(wires),
            CyclePorts(wires.judging.sweeps.ask, wires.judging.fleet_sweeps.ask),
        )
        exposition = Exposition(monitor_in_force(), lambda: _gauges(wires))
        await acting.serve_doors(
            acts,
            ready,
            pulses,
            exposition.text,
            outside.coordination,
            _agent_parts(outside, wires, in_force),
            sync_desk,
            task_status,
        )

    await start("retention", lambda now, status: _keep_retention(now, outside, wires, status))
    await start("tokens", lambda _, status: acting.keep_tokens(pulses, status))
    await start("holds", lambda _, status: acting.keep_holds(pulses, status))
    # Before whoever spends it.
    await start("money", lambda _, status: _keep_money(wires, status))
    await start("guardian", guardian)
    # It reads the verdicts of the first sweep.
    await start_patiently("conductor", lambda now, status: _conduct(now, outside, wires, status))
    await start("liveness", lambda now, status: acting.watch_lives(now, pulses, status))
    await start("restarter", lambda _, status: acting.keep_restarts(pulses, status))
    await start("steerer", lambda _, status: acting.keep_steering(pulses, status))
    await start("alerting", lambda now, status: acting.keep_alerts(now, pulses, status))
    await start("tasks", lambda _, status: acting.keep_tasks(pulses, status))
    await start_patiently(
        "sync", lambda now, status: _follow_forges(now, outside, wires, sync_desk, status)
    )
    await start("enrolments", lambda _, status: acting.keep_enrolments(pulses, status))
    # Whoever comes in finds everybody at work.
    await start("doors", doors)
    await start("vitals", vitals)
    await start("snapshots", snapshots)
    await start("watchdog", watchdog)
    await nursery.start(answer_hangups, outside.hangups, reload)


async def _keep_retention(
    config: Config, outside: Outside, wires: _Wires, task_status: trio.TaskStatus[None]
) -> None:
    kept, hands = config.retention, outside.hands
    others: list[Prunable] = [hands.actions, outside.coordination, outside.sync_store]
    if hands.tasks is not None:
        others.append(hands.tasks)
    with wires.pulses.watched("retention") as pulse:
        await keep_retention(
            outside.store,
            others,
            outside.now_utc,
            RetentionTimes(
                kept.interval_s,
                kept.facts_s,
                kept.verdicts_s,
                kept.transcripts_s,
                kept.acts_s,
            ),
            wires.intake.forget,
            wires.facts.clone(),
            pulse,
            task_status=task_status,
        )


async def _follow_forges(
    config: Config,
    outside: Outside,
    wires: _Wires,
    desk: SyncDesk,
    task_status: trio.TaskStatus[None],
) -> None:
    """Follow repositories, and end the tasks whose work has landed."""
    settings = config.sync
    setup = SyncSetup(
        tuple(repository.followed() for repository in settings.repositories),
        settings.interval_s,
        settings.concurrency,
        settings.pages,
        settings.page_timeout_s,
        settings.reserve,
    )
    tasks = FleetTasks(outside.hands.tasks, wires.acting.desk, wires.acting.steerer)
    store, now_utc = outside.sync_store, outside.now_utc
    async with (
        outside.open_forges(config) as forges,
        wires.facts.clone() as facts,
        trio.open_nursery() as nursery,
    ):
        with wires.pulses.watched("sync") as pulse, wires.pulses.watched("landing") as other:
            landing = Landing(LandingPorts(store, tasks, now_utc), facts)
            ports = SyncPorts(store, forges, now_utc)
            sync = Sync(ports, setup, wires.facts.clone(), pulse, landing.alarm.ring)
            await nursery.start(keep_landings, landing, other)
            with desk.led_to(sync):
                await follow_forges(sync, task_status=task_status)


async def _keep_money(wires: _Wires, task_status: trio.TaskStatus[None]) -> None:
    facts = wires.facts.clone()
    with wires.pulses.watched("money") as pulse:
        await wires.purse.keep(lambda: wires.view.value, facts, pulse, task_status=task_status)


def _emergency(wires: _Wires) -> Emergency:
    def judge() -> str:
        return wires.renewal.value.guardian.judge

    def short_of_money(agent: AgentId) -> str:
        limit = wires.purse.refused(agent)
        for model in priced_models(wires.renewal.value, judge()):
            rung, of = wires.purse.rung(agent, model)
            limit = of if rung is not Rung.AS_ASKED else limit
        return limit.id if limit is not None else ""

    return Emergency(
        EmergencyPorts(
            wires.judging.examinations,
            wires.judging.fleet_sweeps.ask,
            wires.acting.steerer,
            wires.view,
            judge,
            short_of_money,
        )
    )


def _adopt(config: Config, wires: _Wires) -> None:
    wires.acting.adopt(config)
    wires.purse.adopt(budgets_of(config))


def named_by(config: Config) -> Named:
    """Whose transcripts lie where, as the agents' tables say."""
    folders = {
        os.path.realpath(folder) + os.sep: AgentId(agent.id)
        for agent in config.agents
        for folder in agent.transcripts
    }

    def named(path: str) -> AgentId | None:
        # Folders of agents do not lie within each other: the first is the only one.
        return next((who for folder, who in folders.items() if path.startswith(folder)), None)

    return named if folders else nobody


def first_view(config: Config, restored: Restored, stored: Remembered) -> FleetView:
    """The fleet as it was left: of lives nothing is believed until it is seen again.

    Who is configured no more, and will not be let in as a stranger, is not shown.
    """
    configured = {agent.id for agent in config.agents}
    lives = {
        life.agent: LifeView(
            life.agent,
            life.epoch,
            life.state,
            Condition.UNKNOWN,
            Value.UNKNOWN,
            "restored",
            life.since_utc,
        )
        for life in stored.lives
        if config.doors.strangers or life.agent in configured
    }
    hands = FleetHands(
        lives=MappingProxyType(lives),
        holds=MappingProxyType({hold.key: hold for hold in stored.holds}),
    )
    return FleetView(
        MappingProxyType({agent.ref.agent: agent for agent in restored.agents}), hands=hands
    )


def _guardian(
    config: Config, outside: Outside, wires: _Wires, judge: Judge, pulse: Pulse
) -> Guardian:
    settings = config.guardian
    guardian = Guardian(
        GuardianPorts(
            outside.store,
            judge,
            LocalContext(outside.workspaces, wires.acting.folder_of),
            MsgpackCodec(),
            outside.now_utc,
            lambda: wires.purse.judging_usd,
        ),
        GuardianSetup(
            GuardianLimits(settings.agreement, settings.cadence_s, settings.grace_s),
            config.detectors.limits(),
            settings.concurrency,
            settings.judge_concurrency,
            settings.judge_timeout_s,
            settings.context_timeout_s,
            settings.verdicts_in_context,
        ),
        wires.folds,
        wires.facts.clone(),
        pulse,
    )
    guardian.remember(wires.view.value)
    return guardian


async def _conduct(
    config: Config, outside: Outside, wires: _Wires, task_status: trio.TaskStatus[None]
) -> None:
    async with outside.open_pair_judge(config) as judge:
        with wires.pulses.watched("conductor") as pulse:
            made = _conductor(config, outside, wires, judge, pulse)
            await conduct_fleet(made, wires.judging.fleet_sweeps, task_status=task_status)


def _conductor(
    config: Config, outside: Outside, wires: _Wires, judge: PairJudge, pulse: Pulse
) -> Conductor:
    settings = config.conductor
    return Conductor(
        ConductorPorts(
            outside.coordination,
            judge,
            outside.places,
            outside.now_utc,
            wires.acting.folder_of,
            lambda: wires.purse.pairs_usd,
        ),
        ConductorSetup(
            settings.rules(),
            settings.interval_s,
            settings.fresh_s,
            settings.quiet_s,
            settings.pairs,
            settings.judge_concurrency,
            settings.judge_timeout_s,
        ),
        lambda: wires.view.value,
        wires.facts.clone(),
        pulse,
    )


def _agent_parts(outside: Outside, wires: _Wires, in_force: InForce) -> AgentParts:
    """What the HTTP side tells of an agent: from the view, and from the stores at once."""
    stores = AgentStores(
        outside.store,
        outside.hands.actions,
        outside.spends,
        outside.coordination,
        outside.hands.tasks,
    )

    async def open_stores() -> AgentStores:
        await trio.lowlevel.checkpoint()
        return stores

    async def view(agent: AgentId) -> AgentView | None:
        await trio.lowlevel.checkpoint()
        return wires.view.value.agents.get(agent)

    sources = AgentSources(
        open_stores,
        view,
        in_force.table,
        wires.acting.folder_of,
        outside.workspaces,
        outside.now_utc,
    )
    data = AgentData(sources)

    async def parts(agent: AgentId) -> Mapping[str, AgentPart] | None:
        fleet = wires.view.value
        known = agent in fleet.agents or agent in fleet.hands.lives
        return await data.gather(agent) if known or in_force.table(agent) else None

    return parts


def _tell_failure(failure: Failure) -> None:
    log.error(
        "service.failed",
        service=failure.name,
        ran_s=round(failure.ran_s, 3),
        again_in_s=failure.delay_s,
        exc_info=failure.error,
    )


def _words(view: FleetView) -> str:
    """How the fleet stands, for people: "9 agents: 6 progressing, 2 stuck, 1 dead or hung"."""
    standings = [agent.standing.value for agent in view.agents.values()]
    counts = sorted(((standings.count(s), s) for s in set(standings)), reverse=True)
    words = [f"{count} {standing}" for count, standing in counts]
    # Who came since the conductor's last look are told of all the same.
    unknown = {FleetStatus.NO_AGENTS, FleetStatus.UNKNOWN}
    if view.conducted is not None and view.conducted.status not in unknown:
        words.append(f"the fleet {view.conducted.status}")
    if bad := sum(life.value is Value.BAD for life in view.hands.lives.values()):
        words.append(f"{bad} dead or hung")
    listed = ", ".join(words)
    agents = len(view.agents.keys() | view.hands.lives.keys())
    counted = "1 agent" if agents == 1 else f"{agents} agents"
    return counted + (f": {listed}" if listed else "")


def _beat(config: Config, outside: Outside, wires: _Wires, *, stopped: bool = False) -> DaemonBeat:
    view = wires.view.value
    return DaemonBeat(
        config.daemon.name,
        os.getpid(),
        __version__,
        wires.started_utc,
        outside.now_utc(),
        len(view.agents.keys() | view.hands.lives.keys()),
        view.sweeps,
        stopped,
    )


def _gauges(wires: _Wires) -> Iterator[Gauge]:
    yield from fleet_gauges(wires.view.value)
    yield from money_gauges(wires.purse.lines(), wires.purse.spent_usd)
    yield from queue_gauges(wires.waiting(), {"entries": wires.maker.dropped})


async def _say_farewell(config: Config, outside: Outside, wires: _Wires) -> None:
    await wires.purse.flush()
    try:
        await outside.store.beat(_beat(config, outside, wires, stopped=True))
    except Exception as error:  # noqa: BLE001 - a stop goes on whatever the store says
        log.warning("store.lost", during="stop", error=str(error), waiting=1)


async def prepare_schema(database: Database, manager: ReadinessPort) -> None:
    """Bring the schema up to this version; the service manager is told to be patient."""

    def at_work(migration: Migration) -> None:
        manager.extend_timeout(MIGRATION_STEP_S)
        manager.status(f"migrating the database: {migration.file_name}")

    for applied in await migrate(database, on_step=at_work):
        log.info("database.migrated", number=applied.number, name=applied.name)


def formats_of(settings: TranscriptSettings) -> Formats:
    """Below each root the format that it names, else the one that knows the file."""
    named = {
        # Files are known by their real paths, also below a root that is reached by a link.
        os.path.realpath(root.path): fmt
        for root in settings.roots
        if root.format != "auto" and (fmt := format_named(root.format)) is not None
    }

    def recognised(sample: Sample) -> Format | None:
        for folder, fmt in named.items():
            if sample.path.startswith(folder + os.sep):
                return fmt
        return recognise(sample)

    return Formats(recognised, format_named)


def source_of(
    settings: TranscriptSettings, environ: Mapping[str, str], folders: Iterable[Path] = ()
) -> OpenSource:
    """Where transcripts are looked for, as configured; in agents' own folders besides."""
    roots = [Root(root.path, root.glob) for root in settings.roots]
    if settings.discover:
        roots += well_known_roots(environ, Path.home())
    roots += [Root(folder, RootSettings(path=folder).glob) for folder in folders]
    limits = ReadLimits(
        settings.read_chunk_bytes,
        settings.max_line_bytes,
        settings.backfill_bytes,
        settings.head_bytes,
    )
    chosen = SourceSettings(
        rescan_s=settings.rescan_s,
        blind_rescan_s=settings.blind_rescan_s,
        settle_s=settings.settle_s,
        concurrency=settings.concurrency,
        max_files=settings.max_files,
        max_age_s=settings.max_age_s,
        limits=limits,
    )
    formats = formats_of(settings)
    return lambda restored: open_source(roots, restored.positions, formats, chosen)


async def run_daemon(
    reading: Reading,
    environ: Mapping[str, str],
    manager: ReadinessPort,
    stop: trio.Event,
    now_utc: Callable[[], datetime],
    swept: Callable[[SweepFinished, FleetView], None] = lambda _sweep, _view: None,
    *,
    reread: Callable[[], Reading] | None = None,
    hangups: Latest[int] | None = None,
    dumps: Latest[int] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Open everything, supervise until `stop`, close everything in the opposite order.

    `reread` and `hangups` as in `Outside`; without them nothing is ever reread. `dumps` counts
    the requests for the tree of tasks. A server of somebody else's that does not answer is
    waited for; our own must start.
    """
    async with _looked_at(reading.config, environ, dumps or Latest(0)):
        await _run_looked_at(
            reading, environ, manager, stop, now_utc, swept, reread, hangups, task_status
        )


@asynccontextmanager
async def _looked_at(
    config: Config, environ: Mapping[str, str], dumps: Latest[int]
) -> AsyncGenerator[None]:
    """Account for all that happens in the block, and tell of what is slow or stands still."""
    telemetry = config.telemetry
    monitor = Monitor(slow_s=telemetry.slow_s, on_slow=tell_slow)
    place = config.daemon.state_folder(environ) / TASKS_FILE

    async def write(tree: str) -> str:
        def written() -> None:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(tree + "\n")

        await trio.to_thread.run_sync(written)
        return str(place)

    async with AsyncExitStack() as stack:
        stack.enter_context(in_force(monitor))
        if telemetry.otlp_endpoint:
            monitor.observer = await stack.enter_async_context(_spans_to(telemetry.otlp_endpoint))
        nursery = await stack.enter_async_context(trio.open_nursery())
        await nursery.start(watch_ourselves, monitor, telemetry.stall_s)
        await nursery.start(answer_dump_requests, dumps, write)
        yield
        nursery.cancel_scope.cancel("ended")


@asynccontextmanager
async def _spans_to(endpoint: str) -> AsyncGenerator[Observer]:
    # Optional, and not imported for nothing: it is slow to load.
    try:
        from custosd.adapters.telemetry import opentelemetry  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "telemetry.otlp_endpoint: spans need OpenTelemetry; pip install 'custosd[otlp]', or"
            " take the key away"
        ) from error
    exporter = opentelemetry.otlp_exporter(endpoint)
    async with opentelemetry.open_spans(exporter, version=__version__) as spans:
        yield spans.observer


async def _run_looked_at(
    reading: Reading,
    environ: Mapping[str, str],
    manager: ReadinessPort,
    stop: trio.Event,
    now_utc: Callable[[], datetime],
    swept: Callable[[SweepFinished, FleetView], None],
    reread: Callable[[], Reading] | None,
    hangups: Latest[int] | None,
    task_status: trio.TaskStatus[None],
) -> None:
    config = reading.config
    manager.status("opening the database")
    guard = HungLooks()
    async with (
        open_postgres(config, environ) as database,
        open_process_watch() as watch,
        open_places(guard) as places,
        open_workspaces(limits_of(config.workspace), now_utc, guard) as workspaces,
    ):

        async def prepared() -> bool:
            await prepare_schema(database, manager)
            return True

        if not await _answered(prepared, manager, stop):
            task_status.started()
            return
        folders = [folder for agent in config.agents for folder in agent.transcripts]
        # Where the canaries of `custosd drill` write.
        folders.append(config.daemon.state_folder(environ) / "drill")
        spends = PostgresSpends(database)
        purse = Purse(spends, now_utc, budgets_of(config))
        guards = Guards()
        outside = Outside(
            PostgresStore(database),
            source_of(config.transcripts, environ, folders),
            lambda now: open_judge(now, environ, now_utc, purse=purse, guards=guards),
            manager,
            now_utc,
            local_hands(
                config,
                environ,
                PostgresActions(database),
                watch,
                now_utc,
                PostgresTasks(database, config.tasks.rules()),
            ),
            reread or (lambda: reading),
            hangups or Latest(0),
            swept,
            coordination=PostgresCoordination(database),
            places=places,
            workspaces=workspaces,
            origins=reading.origins,
            open_pair_judge=lambda now: open_pair_judge(
                now, environ, now_utc, purse=purse, guards=guards
            ),
            purse=purse,
            spends=spends,
            sync_store=PostgresSync(database),
            open_forges=lambda now: open_forges(now, environ, now_utc),
        )
        await supervise_fleet(config, outside, stop, task_status=task_status)
