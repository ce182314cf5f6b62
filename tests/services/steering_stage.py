"""A fleet for the steerer's tests: a view that is folded from facts, a store, channels, crashes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime

import trio
from tests.contracts import store_values as some

from custosd.adapters.channels.recorded import RecordedChannel
from custosd.adapters.memory_actions import MemoryActions
from custosd.core.agents import AgentId, AgentRef, RunId
from custosd.core.facts import (
    AgentSeen,
    Entry,
    Fact,
    InterventionChanged,
    StandingChanged,
    TrajectoryAdvanced,
    VerdictReached,
)
from custosd.core.holds import Hold, HoldKind
from custosd.core.steering import Intervention, InterventionState
from custosd.core.steering_policy import SteeringLimits, SteeringMode
from custosd.core.trajectory import Activity
from custosd.core.verdicts import (
    JudgedBy,
    Judgement,
    Standing,
    SteeringKind,
    SteeringReason,
    Verdict,
)
from custosd.core.view import FleetView
from custosd.flow.latest import Latest
from custosd.flow.pulse import Pulse
from custosd.ports import ActionStore, SteeringChannel
from custosd.services.holds import Holds
from custosd.services.steerer import Steerer, keep_steering

ADA, BOB = AgentId("ada"), AgentId("bob")
ACT = SteeringLimits(mode=SteeringMode.ACT, hold_out=0.0)
SUGGEST = replace(ACT, mode=SteeringMode.SUGGEST)
OBSERVE = replace(ACT, mode=SteeringMode.OBSERVE)
_REASONS = {Standing.STUCK: SteeringReason.STUCK, Standing.DRIFTING: SteeringReason.DRIFTING}


def ref(agent: AgentId, run: str = "") -> AgentRef:
    return AgentRef(agent, RunId(run or f"{agent}-1"))


def judgement(
    standing: Standing, kind: SteeringKind | None = None, message: str | None = None
) -> Judgement:
    reason = _REASONS.get(standing)
    if kind is not None and reason is None:
        reason = SteeringReason.STUCK
    return Judgement(
        standing,
        needs_steering=reason is not None,
        steering_kind=(kind or SteeringKind.GUIDANCE) if reason is not None else None,
        steering_reason=reason,
        message=f"seen: {standing}" if message is None else message,
        alignment=0.5,
    )


@dataclass
class Stage:
    """The world around a steerer; it outlives the steerer's crashes."""

    now_utc: Callable[[], datetime]
    limits: SteeringLimits = ACT
    store: ActionStore = field(default_factory=MemoryActions)
    channels: dict[AgentId, SteeringChannel] = field(default_factory=dict)
    view: Latest[FleetView] = field(default_factory=lambda: Latest(FleetView()))
    told: list[Fact] = field(default_factory=list)
    verdicts: int = 0
    named: int = 0

    def __post_init__(self) -> None:
        if not self.channels:
            self.channels = {ADA: RecordedChannel(), BOB: RecordedChannel()}
        self.facts_in, self.facts_out = trio.open_memory_channel[Fact](10_000)
        self.holds = Holds(self.store, self.facts_in, self.now_utc)
        self.hire()

    def hire(self, store: ActionStore | None = None) -> Steerer:
        """A new steerer, as after a start of the daemon."""

        def name() -> str:
            self.named += 1
            return f"{self.named:016x}"

        self.steerer = Steerer(
            store or self.store,
            self.channels,
            self.view,
            self.holds,
            self.facts_in,
            self.limits,
            self.now_utc,
            name,
        )
        return self.steerer

    def channel(self, agent: AgentId = ADA) -> RecordedChannel:
        found = self.channels[agent]
        assert isinstance(found, RecordedChannel)
        return found

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        pulse = Pulse("steering", trio.current_time())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._board)
            await keep_steering(self.steerer, pulse, task_status=task_status)

    async def _board(self) -> None:
        async for fact in self.facts_out:
            self.tell(fact)

    def tell(self, *facts: Fact) -> None:
        """What the board does."""
        self.told += facts
        entries = [Entry(f"e{len(self.told)}", self.now_utc(), fact) for fact in facts]
        self.view.publish(self.view.value.after(entries))

    def meet(self, *agents: AgentId, activity: Activity = Activity.TURN_ENDED) -> None:
        for agent in agents:
            self.tell(AgentSeen(ref(agent), "scripted", "", "", self.now_utc()))
            self.advance(agent, 3, activity)

    def advance(self, agent: AgentId, steps: int, activity: Activity = Activity.TURN_ENDED) -> None:
        known = self.view.value.agents[agent]
        digest = replace(some.digest(steps), activity=activity, last_step_utc=self.now_utc())
        self.tell(TrajectoryAdvanced(known.ref, digest, 1, self.now_utc()))

    def judge(
        self,
        agent: AgentId,
        standing: Standing,
        kind: SteeringKind | None = None,
        message: str | None = None,
        *,
        agreed: bool = True,
    ) -> None:
        """A verdict, and (where agreed) the standing that is held from now on."""
        self.verdicts += 1
        known = self.view.value.agents[agent]
        steps = known.digest.steps if known.digest is not None else 0
        verdict = Verdict(
            f"v{self.verdicts}",
            known.ref,
            self.now_utc(),
            steps,
            judgement(standing, kind, message),
            (),
            JudgedBy("rules"),
        )
        self.tell(VerdictReached(verdict))
        if agreed:
            self.tell(StandingChanged(known.ref, known.standing, standing, verdict.id))

    async def hold(self, kind: HoldKind, subject: str) -> None:
        await self.holds.place(Hold(kind, subject, "uid:0", "test", self.now_utc()))

    async def stored(self, agent: AgentId | None = None) -> list[Intervention]:
        found = await self.store.interventions(some.NOON.replace(year=2000))
        return [item for item in found if agent is None or item.agent == agent]

    async def states(self, agent: AgentId | None = None) -> list[InterventionState]:
        return [item.state for item in await self.stored(agent)]

    def changes(self, intervention_id: str) -> list[InterventionState]:
        return [
            fact.after
            for fact in self.told
            if isinstance(fact, InterventionChanged) and fact.id == intervention_id
        ]

    def concerns(self) -> set[str]:
        return set(self.view.value.hands.concerns)

    def arrived(self) -> list[str]:
        """The ids of all letters that any agent got, in any order."""
        return [
            letter.id
            for channel in self.channels.values()
            if isinstance(channel, RecordedChannel)
            for letter in channel.letters
        ]


class Crash(Exception):
    """The daemon was killed at this point."""


@dataclass
class Fuse:
    """Counts calls, and kills the daemon before or after the one that it is set to."""

    at: int
    after: bool = False
    calls: int = 0

    def before_call(self) -> None:
        self.calls += 1
        if self.calls == self.at and not self.after:
            raise Crash

    def after_call(self) -> None:
        if self.calls == self.at and self.after:
            raise Crash


@dataclass
class FusedStore:
    """A store on whose calls the daemon can be killed."""

    inner: ActionStore
    fuse: Fuse

    async def propose(self, intervention: Intervention) -> bool:
        self.fuse.before_call()
        done = await self.inner.propose(intervention)
        self.fuse.after_call()
        return done

    async def save_intervention(
        self, intervention: Intervention, before: InterventionState
    ) -> bool:
        self.fuse.before_call()
        done = await self.inner.save_intervention(intervention, before)
        self.fuse.after_call()
        return done

    async def interventions(self, since_utc: datetime) -> Iterable[Intervention]:
        return await self.inner.interventions(since_utc)
