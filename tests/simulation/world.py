"""A fleet that is not there: agents that work, die, freeze and lie, in virtual time.

The world stands behind the ports: it beats through the daemon's door, is stopped and started
through `AgentControl`, is looked at through `Prober` and `ProcessWatch`. It knows the truth
about each of its agents, which is what the invariants are held against.

Laws: everything follows from the seed and the clock. The world never asks the daemon anything.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import trio

from custosd.core.agents import AgentId
from custosd.core.beats import Beat, BeatStatus, DeclaredWait, WaitKind
from custosd.core.errors import ControlError
from custosd.core.evidence import Exit, Observation, ProcessIdentity, Source, Value
from custosd.ports import BeatDoor, Death, HandOver

BOOT = "simulated-boot"
HANG_AFTER_S = 900.0
"""The default of liveness.hang_after."""
WORK_S = 40.0
"""Mean time between two signs of work of a healthy agent that works."""


class Body(StrEnum):
    """What is true of an agent's process."""

    HEALTHY = "healthy"
    FROZEN = "frozen"
    """It is there and does nothing at all: no beat, no work."""
    HOLLOW = "hollow"
    """It beats and says that it works, and does not."""
    GONE = "gone"


ILL = frozenset({Body.FROZEN, Body.HOLLOW, Body.GONE})


@dataclass(slots=True)
class SimulatedAgent:
    """The truth about one agent."""

    id: AgentId
    account: str
    host: str = ""
    epoch: int = 0
    sequence: int = 0
    body: Body = Body.HEALTHY
    since: float = 0.0
    """When the body became what it is."""
    pid: int = 0
    generation: int = 0
    """Grows with every process: events of an earlier one are void."""
    work: float = 0.0
    worked_at: float = 0.0
    busy_s: float = 0.0
    interval_s: float = 15.0
    status: BeatStatus = BeatStatus.RUNNING
    waits_until: float = 0.0
    unsaid_wait_at: float | None = None
    """Since when it waits and could not say so, as its beats are lost."""
    muted_until: float = 0.0
    """Its beats are lost on the way until then; it works on."""
    stops_badly: bool = False
    """It ignores being asked to end."""
    poisoned: bool = False
    """Each new process of it dies within seconds."""
    exit: Exit | None = None
    keys: set[str] = field(default_factory=set)
    finished: bool = False


@dataclass(frozen=True, slots=True)
class Deed:
    """Something that was done to an agent, or became true of it, and when."""

    at: float
    agent: AgentId
    what: str
    detail: str = ""


Event = tuple[float, int, Callable[[], None]]


class World:
    """All agents, what happens to them, and what is done to them."""

    def __init__(self, seed: int, agents: int, accounts: int = 3, hosts: int = 3) -> None:
        self.random = random.Random(seed)
        self.agents = {
            (name := AgentId(f"agent-{n}")): SimulatedAgent(
                name, f"account-{n % accounts}", f"host-{n * hosts // agents}"
            )
            for n in range(agents)
        }
        self.deeds: list[Deed] = []
        self.broken: list[Deed] = []
        self.unknowable = 0
        """Acts on agents of whom nothing could tell that they only wait."""
        """What must not have happened."""
        self.reported: list[Deed] = []
        """Deaths that the kernel told of at once, because the process was watched."""
        self.door: BeatDoor | None = None
        """None while the daemon is down: beats are lost then."""
        self.loss = 0.0
        """The share of all beats that is lost on the way."""
        self.watch_fails = 0.0
        self.probe_fails = 0.0
        self.control_fails = 0.0
        self.watches: dict[AgentId, ProcessIdentity] = {}
        self.owners: dict[int, SimulatedAgent] = {}
        """Whose process has which id."""
        self.said = 0
        """How many beats were sent, lost ones too."""
        self.looks = 0
        """How often an agent was looked at by a probe."""
        self._deaths: list[Death] = []
        self._died = trio.Event()
        self._pids = itertools.count(1_000)
        self._events: list[Event] = []
        self._order = itertools.count()
        self._sooner = trio.Event()

    # Time

    def at(self, when: float, do: Callable[[], None]) -> None:
        """Have something happen at a time of trio's clock."""
        heapq.heappush(self._events, (when, next(self._order), do))
        self._sooner.set()

    def after(self, delay_s: float, do: Callable[[], None]) -> None:
        """Have something happen in so many seconds."""
        self.at(trio.current_time() + delay_s, do)

    async def turn(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Let time pass; never returns."""
        for agent in self.agents.values():
            self._begin(agent, startup_s=self.random.uniform(0, 10))
        task_status.started()
        while True:
            now = trio.current_time()
            while self._events and self._events[0][0] <= now:
                heapq.heappop(self._events)[2]()
            self._sooner = trio.Event()
            wait_s = self._events[0][0] - now if self._events else 3600.0
            with trio.move_on_after(wait_s):
                await self._sooner.wait()

    def _tell(self, agent: SimulatedAgent, what: str, detail: str = "") -> None:
        self.deeds.append(Deed(trio.current_time(), agent.id, what, detail))

    def _break(self, agent: SimulatedAgent, what: str, detail: str = "") -> None:
        self.broken.append(Deed(trio.current_time(), agent.id, what, detail))

    # What agents do

    def _begin(self, agent: SimulatedAgent, startup_s: float) -> None:
        now = trio.current_time()
        agent.generation += 1
        self.owners.pop(agent.pid, None)
        agent.body, agent.since, agent.pid = Body.HEALTHY, now, next(self._pids)
        self.owners[agent.pid] = agent
        agent.worked_at, agent.finished, agent.exit = now, False, None
        agent.waits_until = agent.muted_until = 0.0
        agent.status = BeatStatus.RUNNING
        generation = agent.generation
        self.after(startup_s, lambda: self._beat(agent, generation))
        self.after(startup_s + 1, lambda: self._work(agent, generation))
        if agent.poisoned:
            self.after(startup_s + 3, lambda: self.crash(agent, Exit(code=1)))

    def _beat(self, agent: SimulatedAgent, generation: int) -> None:
        if agent.generation != generation or agent.body in {Body.GONE, Body.FROZEN}:
            return
        self.say(agent)
        jitter = self.random.uniform(-0.1, 0.1) * agent.interval_s
        self.after(agent.interval_s + jitter, lambda: self._beat(agent, generation))

    def say(self, agent: SimulatedAgent) -> None:
        """Have an agent beat, if anybody hears it."""
        agent.sequence += 1
        self.said += 1
        now = trio.current_time()
        wait = None
        if agent.waits_until > now:
            wait = DeclaredWait(WaitKind.COMMAND, agent.waits_until - now)
        beat = Beat(
            agent.id,
            agent.epoch,
            agent.sequence,
            BeatStatus.WAITING if wait else agent.status,
            None,
            wait,
            agent.pid,
            str(agent.work),
        )
        if self.random.random() < self.loss or agent.muted_until > now or self.door is None:
            if wait is not None and agent.unsaid_wait_at is None:
                agent.unsaid_wait_at = now
            return
        agent.unsaid_wait_at = None
        self.door.offer(beat, "socket")
        if self.random.random() < 0.01:
            late_s = self.random.uniform(0, 30)
            self.after(late_s, lambda: self._offer_late(beat))

    def _offer_late(self, beat: Beat) -> None:
        if self.door is not None:
            self.door.offer(beat, "socket")

    def _work(self, agent: SimulatedAgent, generation: int) -> None:
        if agent.generation != generation or agent.body is not Body.HEALTHY:
            return
        now = trio.current_time()
        if agent.status is BeatStatus.RUNNING and agent.waits_until <= now:
            agent.work += 1
            agent.busy_s += 0.5
            agent.worked_at = now
        pause_s = min(self.random.expovariate(1 / WORK_S), 400.0)
        self.after(pause_s, lambda: self._work(agent, generation))

    # What happens to agents

    def crash(self, agent: SimulatedAgent, how: Exit) -> None:
        """End an agent's process; it is seen at once, unless its watch fails."""
        if agent.body is Body.GONE:
            return
        agent.body, agent.since, agent.exit = Body.GONE, trio.current_time(), how
        self._tell(agent, "crashed")
        self._died_now(agent)

    def _died_now(self, agent: SimulatedAgent) -> None:
        watched = self.watches.get(agent.id)
        if watched is not None and watched.pid == agent.pid:
            del self.watches[agent.id]
            self._deaths.append(Death(agent.id, watched, agent.exit))
            self._died.set()
            self.reported.append(self.deeds[-1])

    def finish(self, agent: SimulatedAgent) -> None:
        """Have an agent end its work and its process, as it should."""
        if agent.body is not Body.HEALTHY:
            return
        agent.status, agent.finished = BeatStatus.FINISHED, True
        self.say(agent)
        agent.body, agent.since, agent.exit = Body.GONE, trio.current_time(), Exit(code=0)
        self._tell(agent, "finished")
        self._died_now(agent)

    def freeze(self, agent: SimulatedAgent) -> None:
        """Have an agent stand still, as by SIGSTOP."""
        if agent.body is Body.HEALTHY:
            agent.body, agent.since = Body.FROZEN, trio.current_time()
            self._tell(agent, "froze", self._wait_left(agent))

    def hollow(self, agent: SimulatedAgent) -> None:
        """Have an agent go on beating without doing anything."""
        if agent.body is Body.HEALTHY:
            agent.body, agent.since = Body.HOLLOW, trio.current_time()
            self._tell(agent, "hollowed", self._wait_left(agent))

    @staticmethod
    def _wait_left(agent: SimulatedAgent) -> str:
        # Until the end of a wait that was declared nobody misses anything.
        return f"{max(0.0, agent.waits_until - trio.current_time()):.3f}"

    def mute(self, agent: SimulatedAgent, for_s: float) -> None:
        """Lose an agent's beats for a while; it works on."""
        agent.muted_until = trio.current_time() + for_s
        self._tell(agent, "muted", f"{for_s:.0f}")

    def wait(self, agent: SimulatedAgent, for_s: float) -> None:
        """Have an agent declare that it waits, and wait."""
        if agent.body is Body.HEALTHY:
            agent.waits_until = max(agent.waits_until, trio.current_time() + for_s)
            self.say(agent)

    # Truth

    def ill(self, agent: SimulatedAgent) -> bool:
        """Whether something is truly wrong with an agent, that a restart would mend."""
        return agent.body in ILL and not agent.finished

    def identity(self, agent: SimulatedAgent) -> ProcessIdentity:
        """The process that an agent has, or had."""
        return ProcessIdentity(agent.pid, agent.pid * 7, BOOT)


class SimulatedControl:
    """`AgentControl` of one agent of the world."""

    def __init__(self, world: World, agent: SimulatedAgent) -> None:
        self._world = world
        self._agent = agent

    async def _reach(self) -> None:
        await trio.sleep(self._world.random.uniform(0.001, 0.05))
        if self._world.random.random() < self._world.control_fails:
            raise ControlError("unreachable", "the simulated control does not answer")

    async def sight(self) -> Observation:
        """See the port."""
        try:
            await self._reach()
        except ControlError:
            return Observation(Source.PROCESS, Value.UNKNOWN, "unreachable")
        seen = _process_seen(self._world, self._agent)
        if seen.detail == "process_stopped":
            # A control knows only whether there is a process.
            return replace(seen, value=Value.OK, detail="process_there")
        return seen

    def _touch(self, what: str) -> None:
        """Nobody may lay hands on a healthy agent.

        But on one that waits, whose beats have been lost since before it could say so: it is
        silent and at rest for as long as one that hangs, and nothing tells the two apart.
        """
        agent, now = self._agent, trio.current_time()
        if agent.unsaid_wait_at is not None and now - agent.worked_at >= HANG_AFTER_S:
            self._world.unknowable += 1
        elif agent.body is Body.HEALTHY:
            self._world.broken.append(Deed(trio.current_time(), agent.id, f"{what} of a healthy"))
        self._world.deeds.append(Deed(trio.current_time(), agent.id, what))

    async def interrupt(self) -> None:
        """See the port."""
        await self._reach()
        self._touch("interrupt")

    async def stop(self) -> None:
        """See the port."""
        await self._reach()
        self._touch("stop")
        agent, generation = self._agent, self._agent.generation
        if not agent.stops_badly and agent.body is not Body.FROZEN:

            def end() -> None:
                if agent.generation == generation:
                    self._world.crash(agent, Exit(signal=15))

            self._world.after(self._world.random.uniform(0, 5), end)

    async def kill(self) -> None:
        """See the port."""
        await self._reach()
        self._touch("kill")
        if self._agent.body is not Body.GONE:
            self._world.crash(self._agent, Exit(signal=9))

    async def spawn(self, key: str, hand_over: HandOver) -> None:
        """See the port."""
        await self._reach()
        agent = self._agent
        if key in agent.keys:
            return
        if agent.body is not Body.GONE:
            self._world.broken.append(
                Deed(trio.current_time(), agent.id, "spawn beside a living process")
            )
        if hand_over.epoch <= agent.epoch:
            self._world.broken.append(
                Deed(trio.current_time(), agent.id, "epoch did not grow", str(hand_over.epoch))
            )
        agent.keys.add(key)
        agent.epoch = hand_over.epoch
        self._world.deeds.append(Deed(trio.current_time(), agent.id, "spawn", key))
        self._world._begin(agent, startup_s=self._world.random.uniform(0.5, 8))


def _process_seen(world: World, agent: SimulatedAgent) -> Observation:
    identity = world.identity(agent)
    match agent.body:
        case Body.GONE:
            return Observation(
                Source.PROCESS, Value.BAD, "process_gone", None, identity, agent.exit
            )
        case Body.FROZEN:
            return Observation(Source.PROCESS, Value.BAD, "process_stopped", agent.busy_s, identity)
        case _:
            return Observation(Source.PROCESS, Value.OK, "process_there", agent.busy_s, identity)


class SimulatedProber:
    """`Prober` over the world; what it can not see is unknown."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def probe(
        self, agent: AgentId, process: ProcessIdentity | None, sources: frozenset[Source]
    ) -> tuple[Observation, ...]:
        """See the port."""
        self._world.looks += 1
        await trio.sleep(self._world.random.uniform(0.001, 0.2))
        truth = self._world.agents.get(agent)
        return tuple(
            self._seen(truth, source)
            for source in sorted(sources)
            if truth is not None and source in SOURCES
        )

    def _seen(self, truth: SimulatedAgent, source: Source) -> Observation:
        if self._world.random.random() < self._world.probe_fails:
            return Observation(source, Value.UNKNOWN, "probe_failed")
        if source is Source.PROCESS:
            return _process_seen(self._world, truth)
        return Observation(source, Value.OK, "seen", truth.work)


SOURCES = frozenset({Source.BEAT, Source.PROCESS, Source.WORKSPACE})
"""What a simulated agent can be known by."""


class SimulatedWatch:
    """`ProcessWatch` over the world; some processes it fails to watch."""

    def __init__(self, world: World) -> None:
        self._world = world

    def watch(self, agent: AgentId, process: ProcessIdentity) -> bool:
        """See the port."""
        world = self._world
        truth = world.agents.get(agent)
        if truth is None or world.random.random() < world.watch_fails:
            return False
        if truth.body is Body.GONE or world.identity(truth) != process:
            world._deaths.append(Death(agent, process, truth.exit))
            world._died.set()
            return True
        world.watches[agent] = process
        return True

    def forget(self, agent: AgentId) -> None:
        """See the port."""
        self._world.watches.pop(agent, None)

    async def next_deaths(self) -> Sequence[Death]:
        """See the port."""
        world = self._world
        await trio.lowlevel.checkpoint()
        while not world._deaths:
            world._died = trio.Event()
            await world._died.wait()
        deaths, world._deaths = world._deaths, []
        return deaths


def described(deed: Deed) -> dict[str, Any]:
    """A deed as it is printed."""
    return {"at": round(deed.at, 3), "agent": deed.agent, "what": deed.what, "detail": deed.detail}
