"""The acting half put together: lives, restarts, steering, notices, and the doors to them.

    doors ─► register ─► liveness ─► board ─► restarter ─► controls
                                         └──► steerer ───► channels
    doors ─► acts ─► holds, restarter, steerer               notifiers ◄─ alerting

Laws: what outlives a reload (lives, budgets, messages, holds) is made once; services that
were made of changed settings are run anew, and find it again. Agents come and go with the
configuration, and by enrolment for a while.
"""

import pwd
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

import trio

from custosd.api.agents import AgentParts
from custosd.config.acting import AlertSettings, LivenessSettings, RestartSettings, SteeringSettings
from custosd.config.agents import AgentSettings
from custosd.config.settings import Config
from custosd.config.tasks import TaskSettings
from custosd.core.agents import AgentId
from custosd.core.alerts import AlertLimits
from custosd.core.errors import ConfigError
from custosd.core.evidence import ProcessIdentity, Source
from custosd.core.explanations import Explanation, SettingOf, only_keys
from custosd.core.facts import ConfigReloaded, Fact
from custosd.core.holds import Hold, HoldKind
from custosd.core.liveness import LivenessLimits, Lives, Watched
from custosd.core.lives import LifeRecord, ended_by_us, still_known, with_given_epochs
from custosd.core.restart_budget import RestartLimits
from custosd.core.restarts import Restart
from custosd.core.steering_policy import SteeringLimits, SteeringMode
from custosd.core.tokens import Token
from custosd.core.view import FleetView
from custosd.flow.latest import Latest
from custosd.flow.pulse import Pulses
from custosd.ports import (
    ActDoor,
    ActionStore,
    AgentControl,
    BeatDoor,
    CoordinationStore,
    Notifier,
    Prober,
    ProcessWatch,
    SteeringChannel,
    Store,
    SyncDoor,
    TaskDoor,
    TaskStore,
)
from custosd.services.acts import ActPorts, Acts
from custosd.services.alerting import keep_alerts
from custosd.services.beats import BeatRegister
from custosd.services.cycle import CyclePorts
from custosd.services.emergency import Emergency
from custosd.services.enrolments import Enrolments, Form
from custosd.services.explainer import Explainer
from custosd.services.holds import Holds
from custosd.services.liveness import FORGET_S, LivenessPorts, LivenessWatch
from custosd.services.liveness import LivenessSettings as WatchSettings
from custosd.services.procedure import ProcedureLimits
from custosd.services.restarter import (
    Restarter,
    RestarterPorts,
    RestarterSettings,
    Supervised,
    keep_restarts,
)
from custosd.services.steerer import Steerer, keep_steering
from custosd.services.sync_desk import ActsAndSync, SyncDesk
from custosd.services.tasks import ActsAndTasks, TaskDesk, TaskTimes, keep_tasks
from custosd.services.token_book import TokenBook

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Doors:
    """What the doors lead to, as whoever opens them gets it. `metrics` None: there are none."""

    beats: BeatDoor
    acts: ActDoor
    tokens: Callable[[], Mapping[str, Token]]
    uid_of: Callable[[AgentId], int | None]
    ready: Callable[[], tuple[bool, Sequence[str]]]
    pulses: Pulses
    metrics: Callable[[], Awaitable[bytes]] | None = None
    coordination: CoordinationStore | None = None
    tasks: TaskDoor | None = None
    agents: AgentParts | None = None
    sync: SyncDoor | None = None


ServeDoors = Callable[[Doors, trio.TaskStatus[None]], Awaitable[None]]
"""Opens every door and serves it until cancelled; started when all are open."""


async def no_doors(_doors: Doors, task_status: trio.TaskStatus[None]) -> None:
    """No door at all: nothing beats, nobody asks."""
    task_status.started()
    await trio.sleep_forever()


@dataclass(frozen=True, slots=True)
class Hands:
    """What the daemon acts with, and sees agents by, beside their transcripts.

    `control_of` and `channel_of` make what an agent's table asks for, None for none. `owner`
    names this daemon in leases, as no other is named; `ended` knows daemons that are no more.
    """

    actions: ActionStore
    prober: Callable[["Roster"], Prober]
    watch: ProcessWatch
    control_of: Callable[[AgentSettings], AgentControl | None]
    channel_of: Callable[[AgentSettings], SteeringChannel | None]
    notifiers_of: Callable[[AlertSettings], Sequence[Notifier]]
    serve_doors: ServeDoors
    identify: Callable[[int], ProcessIdentity | None]
    boottime: Callable[[], float]
    owner: str = "custosd"
    ended: Callable[[str], bool] = lambda _owner: False
    tasks: TaskStore | None = None


@dataclass(frozen=True, slots=True)
class Remembered:
    """What was stored about acts: what the acting half goes on from."""

    lives: tuple[LifeRecord, ...] = ()
    restarts: tuple[Restart, ...] = ()
    holds: tuple[Hold, ...] = ()


async def remembered(actions: ActionStore, since_utc: datetime) -> Remembered:
    """Everything that is stored about acts. Raises `StoreError`."""
    return Remembered(
        await actions.lives(), await actions.restarts(since_utc), await actions.holds()
    )


@dataclass(slots=True)
class Roster:
    """The agents that may be acted upon: shared tables, changed in place by a reload."""

    agents: dict[AgentId, AgentSettings] = field(default_factory=dict)
    controls: dict[AgentId, AgentControl] = field(default_factory=dict)
    channels: dict[AgentId, SteeringChannel] = field(default_factory=dict)
    supervised: dict[AgentId, Supervised] = field(default_factory=dict)
    uids: dict[AgentId, int] = field(default_factory=dict)
    strangers: bool = False

    def knows(self, agent: AgentId) -> bool:
        """Whether beats of this agent are taken."""
        return self.strangers or agent in self.agents

    def put(self, made: "Made") -> None:
        """Take an agent in, or take up its changed table."""
        settings = made.settings
        agent = AgentId(settings.id)
        self.agents[agent] = settings
        _set_or_drop(self.controls, agent, made.control)
        _set_or_drop(self.channels, agent, made.channel)
        self.supervised[agent] = Supervised(settings.host, settings.account, settings.beats)
        _set_or_drop(self.uids, agent, _uid(settings.user))

    def drop(self, agent: AgentId) -> None:
        """Let an agent go: it is watched no longer."""
        for table in (self.agents, self.controls, self.channels, self.supervised, self.uids):
            table.pop(agent, None)


@dataclass(frozen=True, slots=True)
class Made:
    """What an agent's table asks for, made: only then is anything changed by it."""

    settings: AgentSettings
    control: AgentControl | None
    channel: SteeringChannel | None


def _made(settings: AgentSettings, hands: Hands) -> Made:
    """Raises `ConfigError` where the table can not be acted upon as it stands."""
    try:
        return Made(settings, hands.control_of(settings), hands.channel_of(settings))
    except ValueError as error:
        raise ConfigError(f"agent {settings.id}: {error}") from error


def _set_or_drop(table: dict[AgentId, T], agent: AgentId, value: T | None) -> None:
    if value is None:
        table.pop(agent, None)
    else:
        table[agent] = value


def _uid(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid if user else None
    except KeyError:
        return None


def watched_of(settings: AgentSettings, hang_after_s: float | None = None) -> Watched:
    """What can be known of an agent, by its table. `hang_after_s` None: as for all."""
    sources = {Source.PROCESS}
    if settings.beats:
        sources.add(Source.BEAT)
    if settings.control == "systemd":
        sources.add(Source.UNIT)
    if settings.transcripts:
        sources.add(Source.TRANSCRIPT)
    if settings.workspace is not None:
        sources.add(Source.WORKSPACE)
    return Watched(
        AgentId(settings.id),
        settings.host,
        frozenset(sources),
        settings.beats,
        settings.beat_interval_s or None,
        hang_after_s,
    )


class ActingHalf:
    """Everything of the acting half that lives as long as the daemon."""

    def __init__(
        self,
        config: Config,
        hands: Hands,
        store: Store,
        view: Latest[FleetView],
        facts: trio.MemorySendChannel[Fact],
        now_utc: Callable[[], datetime],
        stored: Remembered,
    ) -> None:
        self._hands = hands
        self._view = view
        # One for all who live as long as this half: closed once, when nobody tells any more.
        self.facts = facts = facts.clone()
        self._now_utc = now_utc
        self._store = store
        self.roster = Roster(strangers=config.doors.strangers)
        self.register = BeatRegister(
            self.roster.knows, config.doors.most_agents, self.roster.agents.__contains__
        )
        self.lives = Lives(liveness_limits(config.liveness), self.register)
        self.holds = Holds(hands.actions, facts, now_utc, stored.holds)
        self.tokens = TokenBook(hands.actions)
        self.prober = hands.prober(self.roster)
        self.restarter = Restarter(
            RestarterPorts(
                hands.actions,
                self.roster.controls,
                self.prober,
                self.lives,
                self.holds,
                facts,
                now_utc,
                ended=hands.ended,
            ),
            view,
            self.roster.supervised,
            restarter_settings(config.restarts),
            hands.owner,
        )
        self.steerer = Steerer(
            hands.actions,
            self.roster.channels,
            view,
            self.holds,
            facts,
            steering_limits(config.steering),
            now_utc,
        )
        self.desk = None
        if hands.tasks is not None:
            self.desk = TaskDesk(hands.tasks, view, facts, task_times(config.tasks), now_utc)
        self._configured: frozenset[AgentId] = frozenset()
        self.enrolments = Enrolments(self._enrol_guest, self.dismiss, self._is_configured)
        self.adopt(config)
        records = still_known(
            with_given_epochs(stored.lives, stored.restarts),
            self.roster.agents,
            now_utc() - timedelta(seconds=FORGET_S),
        )
        self.register.restore(records)
        quarantined = {
            AgentId(hold.subject)
            for hold in stored.holds
            if hold.kind is HoldKind.QUARANTINE and hold.in_force(now_utc())
        }
        self.lives.restore(
            records,
            trio.current_time(),
            now_utc(),
            quarantined=quarantined.__contains__,
            ended_by_us=ended_by_us(records, stored.restarts),
        )

    def close(self) -> None:
        """Tell nothing any more; the channel of facts may end."""
        self.facts.close()

    def adopt(self, config: Config) -> None:
        """Take up what is not made anew with a service: agents, limits, modes; all or nothing.

        Raises `ConfigError` where an agent's table can not be acted upon.
        """
        now = trio.current_time()
        wanted = {AgentId(settings.id): settings for settings in config.agents}
        changed = [
            _made(settings, self._hands)
            for agent, settings in wanted.items()
            if self.roster.agents.get(agent) != settings
        ]
        self.roster.strangers = config.doors.strangers
        self._configured = frozenset(wanted)
        staying = {*wanted, *self.enrolments.guests()}
        for agent in [agent for agent in self.roster.agents if agent not in staying]:
            self.dismiss(agent)
        for agent in wanted:
            self.enrolments.forget(agent)
        for made in changed:
            self._enrol(made, now)
        self.lives.limits = liveness_limits(config.liveness)
        self.restarter.adopt(restarter_settings(config.restarts))
        self.steerer.adopt(steering_limits(config.steering))
        if self.desk is not None:
            self.desk.times = task_times(config.tasks)

    def _enrol(self, made: Made, now: float, hang_after_s: float | None = None) -> None:
        self.roster.put(made)
        self.lives.watch(watched_of(made.settings, hang_after_s), now)

    def enrol_for_a_while(self, agent: AgentId, form: Form) -> str:
        """Watch an agent for as long as its form says, an hour at most; "" or why not."""
        return self.enrolments.enrol(agent, form)

    def _enrol_guest(self, settings: AgentSettings, hang_after_s: float | None) -> None:
        self._enrol(_made(settings, self._hands), trio.current_time(), hang_after_s)

    def _is_configured(self, agent: AgentId) -> bool:
        return agent in self._configured

    def dismiss(self, agent: AgentId) -> None:
        """Watch an agent no longer."""
        self.roster.drop(agent)
        self.lives.dismiss(agent)
        self.register.forget(agent)
        self._hands.watch.forget(agent)

    def folder_of(self, agent: AgentId) -> str:
        """Where an agent works, as its table says; "" where that is not said."""
        settings = self.roster.agents.get(agent)
        return "" if settings is None or not settings.workspace else str(settings.workspace)

    def acts(
        self,
        reload: Callable[[], Awaitable[ConfigReloaded]],
        setting_of: SettingOf = only_keys,
        budget: Callable[[], Explanation] | None = None,
        emergency: Emergency | None = None,
        cycle: CyclePorts | None = None,
    ) -> Acts:
        """What the doors for acts lead to."""
        explainer = Explainer(
            self.lives,
            self.restarter,
            self.steerer,
            self._store,
            lambda: self._view.value,
            self._now_utc,
            setting_of,
        )
        return Acts(
            ActPorts(
                self.holds,
                self.restarter,
                self.steerer,
                explainer,
                reload,
                self.enrolments,
                budget,
                emergency,
                cycle,
            ),
            lambda: self._view.value,
            self.facts,
            self._now_utc,
        )

    # The services, as they are run: each is made of a configuration, and supervised

    async def watch_lives(
        self, config: Config, pulses: Pulses, task_status: trio.TaskStatus[None]
    ) -> None:
        """See `services.liveness`."""
        ports = LivenessPorts(
            self.register,
            self._hands.watch,
            self.prober,
            self._hands.actions,
            self._view,
            self.facts,
            self._hands.identify,
            self._hands.boottime,
            self._now_utc,
        )
        settings = config.liveness
        watch = LivenessWatch(
            self.lives,
            ports,
            WatchSettings(
                liveness_limits(settings),
                settings.probe_timeout_s,
                settings.probe_concurrency,
                settings.stall_s,
                settings.flush_s,
                settings.health_s,
            ),
        )
        await watch.run(pulses, task_status=task_status)

    async def keep_holds(self, pulses: Pulses, task_status: trio.TaskStatus[None]) -> None:
        """See `services.holds`."""
        with pulses.watched("holds") as pulse:
            await self.holds.keep(pulse, task_status=task_status)

    async def keep_enrolments(self, pulses: Pulses, task_status: trio.TaskStatus[None]) -> None:
        """See `services.enrolments`."""
        with pulses.watched("enrolments") as pulse:
            await self.enrolments.keep(pulse, task_status=task_status)

    async def keep_restarts(self, pulses: Pulses, task_status: trio.TaskStatus[None]) -> None:
        """See `services.restarter`."""
        with pulses.watched("restarter") as pulse:
            await keep_restarts(self.restarter, pulse, task_status=task_status)

    async def keep_steering(self, pulses: Pulses, task_status: trio.TaskStatus[None]) -> None:
        """See `services.steerer`."""
        with pulses.watched("steerer") as pulse:
            await keep_steering(self.steerer, pulse, task_status=task_status)

    async def keep_tasks(self, pulses: Pulses, task_status: trio.TaskStatus[None]) -> None:
        """See `services.tasks`."""
        if self.desk is None:
            await no_tasks(task_status)
        else:
            with pulses.watched("tasks") as pulse:
                await keep_tasks(self.desk, self._view, pulse, task_status=task_status)

    async def keep_alerts(
        self, config: Config, pulses: Pulses, task_status: trio.TaskStatus[None]
    ) -> None:
        """See `services.alerting`."""
        with pulses.watched("alerting") as pulse:
            await keep_alerts(
                self._view,
                self.holds,
                self._hands.notifiers_of(config.alerts),
                self.facts.clone(),
                AlertLimits(storm=config.alerts.storm),
                self._now_utc,
                pulse,
                task_status=task_status,
            )

    async def keep_tokens(self, pulses: Pulses, task_status: trio.TaskStatus[None]) -> None:
        """See `services.token_book`."""
        with pulses.watched("tokens") as pulse:
            await self.tokens.keep(pulse, task_status=task_status)

    async def serve_doors(
        self,
        acts: ActDoor,
        ready: Callable[[], tuple[bool, Sequence[str]]],
        pulses: Pulses,
        metrics: Callable[[], Awaitable[bytes]],
        coordination: CoordinationStore,
        agents: AgentParts,
        sync: SyncDesk,
        task_status: trio.TaskStatus[None],
    ) -> None:
        """Open the doors."""
        acts = ActsAndSync(acts, sync)
        if self.desk is not None:
            acts = ActsAndTasks(acts, self.desk)
        doors = Doors(
            self.register,
            acts,
            self.tokens.tokens,
            self.roster.uids.get,
            ready,
            pulses,
            metrics=metrics,
            coordination=coordination,
            tasks=self.desk,
            agents=agents,
            sync=sync,
        )
        await self._hands.serve_doors(doors, task_status)


async def no_tasks(task_status: trio.TaskStatus[None]) -> None:
    """No tasks at all: nothing is kept."""
    task_status.started()
    await trio.sleep_forever()


def task_times(settings: TaskSettings) -> TaskTimes:
    """The settings as the desk takes them."""
    return TaskTimes(settings.lease_s, settings.longest_lease_s, settings.retries + 1)


def liveness_limits(settings: LivenessSettings) -> LivenessLimits:
    """The settings as the core takes them."""
    return LivenessLimits(
        idle_interval_s=settings.idle_interval_s,
        running_interval_s=settings.running_interval_s,
        monitor_interval_s=settings.monitor_interval_s,
        margin_s=settings.margin_s,
        gaps=settings.gaps,
        shortest_deadline_s=settings.shortest_deadline_s,
        longest_deadline_s=settings.longest_deadline_s,
        startup_grace_s=settings.startup_grace_s,
        recover_beats=settings.recover_beats,
        hang_after_s=settings.hang_after_s,
        busy_limit_s=settings.busy_limit_s,
        breaker_agents=settings.breaker_agents,
        breaker_share=settings.breaker_share,
        breaker_period_s=settings.breaker_period_s,
    )


def restarter_settings(settings: RestartSettings) -> RestarterSettings:
    """The settings as the restarter takes them."""
    limits = RestartLimits(
        backoff_s=settings.backoff_s,
        longest_backoff_s=settings.longest_backoff_s,
        burst=settings.burst,
        window_s=settings.window_s,
        stable_after_s=settings.stable_after_s,
        per_task=settings.per_task,
        fleet_burst=settings.fleet_burst,
        fleet_share=settings.fleet_share,
        common_cause=settings.common_cause,
        common_period_s=settings.common_period_s,
        probe_stable_s=settings.probe_stable_s,
        concurrency=settings.concurrency,
    )
    steps = ProcedureLimits(
        interrupt_s=settings.interrupt_s,
        graceful_s=settings.graceful_s,
        verify_s=settings.verify_s,
        first_beat_s=settings.first_beat_s,
    )
    return RestarterSettings(limits, steps, acting=settings.mode == "act")


def steering_limits(settings: SteeringSettings) -> SteeringLimits:
    """The settings as the steerer takes them."""
    return SteeringLimits(
        mode=SteeringMode(settings.mode),
        ttl_s=settings.ttl_s,
        cooldown_s=settings.cooldown_s,
        fleet_cap=settings.fleet_cap,
        hold_out=settings.hold_out,
        without_effect=settings.without_effect,
        outcome_s=settings.outcome_s,
    )
