"""Folds what transcripts tell into trajectories, and stores both together.

    TranscriptSource --> Growth --> [ Trajectory.advance ] --> TrajectoryAdvanced
                                          └── Progress --> Store (position and folds at once)

Laws:

1. A position and the folds up to it change in one step without an await, and are stored
   in one transaction: after a crash at any moment every step is counted once.
2. An unreachable store does not stop the folding, until `LARGEST_BACKLOG` transcripts
   wait to be stored; then reading pauses, and says so.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import structlog
import trio

from custosd.core.agents import AgentId, AgentRef, AgentState, RunId, path_to
from custosd.core.errors import StoreConflict, StoreError, StoreRefused
from custosd.core.facts import (
    AgentSeen,
    Fact,
    SourceTroubled,
    StateChanged,
    TrajectoryAdvanced,
    TrajectoryRewound,
)
from custosd.core.folds import Folds
from custosd.core.trajectory import TURN_QUIET_S, Activity, Trajectory
from custosd.core.transcript import Opened, TranscriptEvent, Unread, digest_of
from custosd.flow.pulse import Pulse, Pulses
from custosd.ports import (
    Growth,
    Progress,
    Restored,
    RunProgress,
    Store,
    TrajectoryCodec,
    TranscriptPosition,
    TranscriptSource,
)

log = structlog.get_logger()

LARGEST_BACKLOG = 4_096
"""Transcripts that may wait to be stored before reading pauses."""

LARGEST_SAVE = 500
"""Transcripts stored in one transaction."""

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0

STATES = {
    Activity.STARTING: AgentState.STARTING,
    Activity.WORKING: AgentState.RUNNING,
    Activity.WAITING: AgentState.WAITING,
    Activity.TURN_ENDED: AgentState.IDLE,
    Activity.ENDED: AgentState.TERMINATED,
}

HELD_STATES = frozenset({AgentState.QUARANTINED, AgentState.RESTARTING})
"""States that only the restarter or a person ends, whatever the transcript says."""


@dataclass(slots=True)
class _Run:
    """What ingestion remembers of an agent's present run."""

    ref: AgentRef
    thread: str
    parent: str
    seen_utc: datetime
    state: AgentState
    grown_utc: datetime


class Intake:
    """The synchronous half: who wrote what, folded; what changed and is not stored yet."""

    def __init__(
        self,
        folds: Folds,
        restored: Restored,
        codec: TrajectoryCodec,
        now_utc: Callable[[], datetime],
    ) -> None:
        self._folds = folds
        self._codec = codec
        self._now_utc = now_utc
        self._names = {p.key: (p.agent, p.session) for p in restored.positions if p.session}
        self._runs = {
            a.ref.agent: _Run(a.ref, "", a.parent, a.seen_utc, a.state, a.grown_utc or a.seen_utc)
            for a in restored.agents
        }
        keys = {p.path: p.key for p in restored.positions}
        self._owners = {a.ref: keys[a.path] for a in restored.agents if a.path in keys}
        self._unsaved: dict[str, tuple[TranscriptPosition, set[AgentId]]] = {}
        self._refused: set[str] = set()
        # Agents that spoke last: when that will have been the end of their turn. Their
        # transcripts' latest positions are kept, to be stored with the settled fold.
        self._speaking: dict[AgentId, tuple[float, str]] = {}
        self._spoken_in: dict[str, TranscriptPosition] = {}
        positions = {p.key: p for p in restored.positions}
        for agent in restored.agents:
            key = self._owners.get(agent.ref, "")
            if agent.digest is not None and agent.digest.spoke and key:
                quiet_s = (now_utc() - (agent.grown_utc or agent.seen_utc)).total_seconds()
                self._listen(agent.ref.agent, positions[key], max(0.0, quiet_s))

    def _listen(self, agent: AgentId, position: TranscriptPosition, quiet_s: float) -> None:
        self._speaking[agent] = (trio.current_time() + TURN_QUIET_S - quiet_s, position.key)
        self._spoken_in[position.key] = position

    def next_settling(self) -> float:
        """When, on trio's clock, the first turn will have ended in silence; inf if none."""
        return min((at for at, _ in self._speaking.values()), default=math.inf)

    def _settling(self) -> list[AgentId]:
        now = trio.current_time()
        return [agent for agent, (at, _) in self._speaking.items() if at <= now]

    def settle(self) -> list[Fact]:
        """End the turns whose last words nothing has followed for long enough."""
        facts: list[Fact] = []
        for agent in self._settling():
            _, key = self._speaking.pop(agent)
            position = self._spoken_in[key]
            if all(key != other for _, other in self._speaking.values()):
                del self._spoken_in[key]
            run = self._runs[agent]
            fold = self._folds.get(run.ref)
            if fold is not None:
                fold.settle()
                facts += self._told(run, fold, 0)
                self._leave_unsaved(position, {agent})
        return facts

    def refuse(self, key: str) -> None:
        """Leave a transcript out until the next start; its stored position stays."""
        self._refused.add(key)
        self._unsaved.pop(key, None)

    @property
    def backlog(self) -> int:
        """How many transcripts wait to be stored."""
        return len(self._unsaved)

    def named(self, growth: Growth) -> TranscriptPosition:
        """The growth's position with the transcript's names, fixed when first known."""
        position = growth.position
        if position.key not in self._names:
            opened = next((e for e in growth.events if isinstance(e, Opened) and e.session), None)
            agent = opened.agent if opened else ""
            session = opened.session if opened else f"file-{digest_of(position.path)}"
            if self._is_taken(replace(position, agent=agent, session=session), growth):
                # A fork of a session: its own agent, for its steps are not the other's.
                agent, session = "", f"{session}~{digest_of(position.key)[:6]}"
            if growth.events:
                self._names[position.key] = (agent, session)
        else:
            agent, session = self._names[position.key]
        return replace(position, agent=agent, session=session)

    def _is_taken(self, position: TranscriptPosition, growth: Growth) -> bool:
        """Whether another transcript already tells of a run that this one wants to tell of."""
        threads = {e.thread for e in growth.events if not isinstance(e, Unread)}
        owners = {self._owners.get(reference(position, t), position.key) for t in threads}
        return not owners <= {position.key}

    def refs(self, growth: Growth) -> dict[str, AgentRef]:
        """Which agents a growth is about, by thread."""
        position = self.named(growth)
        threads = {e.thread for e in growth.events if not isinstance(e, Unread)}
        return {thread: reference(position, thread) for thread in threads}

    def missing(self, growths: Sequence[Growth]) -> set[AgentId]:
        """Agents whose folds must be fetched from the store before these are taken in.

        Those whose turn ends now are among them.
        """
        settling = {a for a in self._settling() if self._folds.get(self._runs[a].ref) is None}
        return settling | {
            ref.agent
            for growth in growths
            if not growth.rewound
            for ref in self.refs(growth).values()
            if self._folds.get(ref) is None
            and (known := self._runs.get(ref.agent)) is not None
            and known.ref == ref
        }

    def fetched(self, agent: AgentId, data: bytes) -> None:
        """Take in a fold that the store had."""
        try:
            fold = self._codec.decode(data)
        except StoreRefused as error:
            log.error("trajectory.discarded", agent=agent, error=str(error))
            fold = Trajectory()
        self._folds.keep(self._runs[agent].ref, fold)

    def take(self, growth: Growth) -> list[Fact]:
        """Fold one growth; returns what happened, in order. Never raises, never waits."""
        # A growth without a key tells of troubles that are no transcript's.
        if not growth.position.key or growth.position.key in self._refused:
            return []
        position = self.named(growth)
        facts: list[Fact] = []
        touched: dict[str, tuple[AgentRef, Trajectory, int]] = {}
        if growth.rewound:
            facts += self._rewind(position)
        for event in growth.events:
            if isinstance(event, Unread):
                continue
            if event.thread not in touched:
                ref = reference(position, event.thread)
                facts += self._meet(ref, event, position, growth)
                fold = self._folds.get(ref) or Trajectory()
                touched[event.thread] = (ref, fold, fold.steps)
            touched[event.thread][1].advance(event)
        for ref, fold, steps_before in touched.values():
            run = self._runs[ref.agent]
            run.grown_utc = max(run.grown_utc, growth.grown_utc)
            facts += self._told(run, fold, fold.steps - steps_before)
            if fold.spoke:
                self._listen(ref.agent, position, 0.0)
            else:
                self._speaking.pop(ref.agent, None)
        if position.key in self._spoken_in:
            self._spoken_in[position.key] = position
        self._leave_unsaved(position, {ref.agent for ref, _, _ in touched.values()})
        return facts

    def _leave_unsaved(self, position: TranscriptPosition, changed: set[AgentId]) -> None:
        _, agents = self._unsaved.get(position.key, (position, set[AgentId]()))
        self._unsaved[position.key] = (position, agents | changed)

    def _meet(
        self, ref: AgentRef, event: TranscriptEvent, position: TranscriptPosition, growth: Growth
    ) -> list[Fact]:
        known = self._runs.get(ref.agent)
        if known is not None and known.ref == ref:
            return []
        thread = "" if isinstance(event, Unread) else event.thread
        parent = reference(position, "").agent if thread else ""
        now = self._now_utc()
        self._owners[ref] = position.key
        self._runs[ref.agent] = _Run(
            ref, thread, parent, now, AgentState.STARTING, growth.grown_utc
        )
        return [AgentSeen(ref, position.format, position.path, parent, now)]

    def _rewind(self, position: TranscriptPosition) -> list[Fact]:
        """Forget the folds of a rewritten transcript: it is told again from its start."""
        main = reference(position, "")
        prefix = f"{main.agent}/"
        facts: list[Fact] = []
        for agent, run in self._runs.items():
            same_run = run.ref.run == main.run
            if same_run and (agent == main.agent or agent.startswith(prefix)):
                held = self._folds.get(run.ref)
                facts.append(TrajectoryRewound(run.ref, held.steps if held else 0))
                self._folds.keep(run.ref, Trajectory(), dirty=True)
        return facts

    def _told(self, run: _Run, fold: Trajectory, new_steps: int) -> list[Fact]:
        """What to tell of a fold that changed; it is dirty from now on."""
        self._folds.keep(run.ref, fold, dirty=True)
        digest = fold.digest()
        facts: list[Fact] = [TrajectoryAdvanced(run.ref, digest, new_steps, run.grown_utc)]
        if run.state in HELD_STATES:
            return facts
        for state in path_to(run.state, STATES[digest.activity]):
            facts.append(StateChanged(run.ref, run.state, state, f"transcript_{digest.activity}"))
            run.state = state
        return facts

    def unsaved(self) -> tuple[list[Progress], dict[str, tuple[TranscriptPosition, set[AgentId]]]]:
        """The next transaction's worth of changes, encoded now, and a token for `saved`."""
        taken = dict(list(self._unsaved.items())[:LARGEST_SAVE])
        for key in taken:
            del self._unsaved[key]
        return [
            Progress(position, tuple(p for a in sorted(agents) if (p := self._progress(a))))
            for position, agents in taken.values()
        ], taken

    def _progress(self, agent: AgentId) -> RunProgress | None:
        run = self._runs[agent]
        fold = self._folds.get(run.ref)
        if fold is None:
            return None
        return RunProgress(
            run.ref,
            run.thread,
            run.parent,
            run.state,
            fold.digest(),
            self._codec.encode(fold),
            run.seen_utc,
            run.grown_utc,
        )

    def saved(self, taken: dict[str, tuple[TranscriptPosition, set[AgentId]]]) -> None:
        """What `unsaved` gave is stored: those folds may be let go, unless changed since."""
        waiting = {agent for _, agents in self._unsaved.values() for agent in agents}
        for _, agents in taken.values():
            for agent in agents - waiting:
                self._folds.stored(agent)

    def put_back(self, taken: dict[str, tuple[TranscriptPosition, set[AgentId]]]) -> None:
        """What `unsaved` gave could not be stored; newer positions win."""
        for key, (position, agents) in taken.items():
            newer, more = self._unsaved.get(key, (position, set[AgentId]()))
            self._unsaved[key] = (newer, agents | more)


def reference(position: TranscriptPosition, thread: str) -> AgentRef:
    """The agent and run that a transcript's thread belongs to."""
    main = f"{position.format}:{position.agent or position.session}"
    return AgentRef(AgentId(f"{main}/{thread}" if thread else main), RunId(position.session))


async def follow_transcripts(
    source: TranscriptSource,
    facts: trio.MemorySendChannel[Fact],
    intake: Intake,
    store: Store,
    pulses: Pulses,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Take in growth for ever; never returns unless cancelled. Closes `facts` at its end.

    Started: at once. Back-pressure: reads no faster than `facts` takes; pauses when
    `LARGEST_BACKLOG` transcripts wait to be stored. At cancellation the last changes
    are not stored: they are read again at the next start, from the stored positions.
    """
    changed, room = trio.Event(), trio.Event()
    async with facts, trio.open_nursery() as nursery:

        async def save() -> None:
            nonlocal changed, room
            with pulses.watched("ingest.save") as pulse:
                while True:
                    with pulse.waiting():
                        await changed.wait()
                    changed = trio.Event()
                    await _save_all(intake, store, pulse)
                    room.set()
                    room = trio.Event()

        nursery.start_soon(save)
        task_status.started()
        with pulses.watched("ingest.fold") as pulse:
            while True:
                growths: Sequence[Growth] = ()
                # A cancelled `next_batch` loses nothing (see the port).
                with pulse.waiting(), trio.move_on_at(intake.next_settling()):
                    growths = await source.next_batch()
                await _fetch(growths, intake, store, pulse)
                for growth in growths:
                    for fact in _taken(growth, intake):
                        await facts.send(fact)
                    pulse.beat()
                for fact in intake.settle():
                    await facts.send(fact)
                changed.set()
                if intake.backlog >= LARGEST_BACKLOG:
                    log.warning("progress.held", backlog=intake.backlog)
                    with pulse.waiting():
                        await room.wait()


async def store_rest(intake: Intake, store: Store) -> None:
    """Store what is folded and not stored yet, once, at a stop; gives up if it can not be.

    What is given up is read again at the next start.
    """
    while intake.backlog:
        batch, taken = intake.unsaved()
        try:
            await store.save_progress(batch)
        except StoreError as error:
            intake.put_back(taken)
            log.warning("store.lost", during="stop", error=str(error), waiting=intake.backlog)
            return
        intake.saved(taken)


def _taken(growth: Growth, intake: Intake) -> list[Fact]:
    """What one growth comes to. A defect of ours in one transcript leaves only that one out."""
    path = growth.position.path
    for incident in growth.incidents:
        log.warning(
            "transcript.troubled",
            kind=incident.kind,
            path=incident.path,
            line=incident.line,
            **incident.detail,
        )
    troubles: list[Fact] = [SourceTroubled(i.kind, i.path, i.line) for i in growth.incidents]
    try:
        return troubles + intake.take(growth)
    except Exception:  # the fold never raises; if it does, the other agents must not suffer
        log.exception("transcript.refused", path=path)
        intake.refuse(growth.position.key)
        return [*troubles, SourceTroubled("refused", path, 0)]


async def _fetch(growths: Sequence[Growth], intake: Intake, store: Store, pulse: Pulse) -> None:
    """Bring the folds that these growths continue into memory, in one round trip."""
    missing = intake.missing(growths)
    pause_s = FIRST_PAUSE_S
    while missing:
        try:
            found = await store.trajectories(missing)
        except StoreError as error:
            # Going on with an empty fold would count steps from nought: wait instead.
            log.warning("store.lost", during="fetch", error=str(error), waiting=len(missing))
            with pulse.waiting():
                await trio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            continue
        for agent, data in found.items():
            intake.fetched(agent, data)
        return


async def _save_all(intake: Intake, store: Store, pulse: Pulse) -> None:
    pause_s = FIRST_PAUSE_S
    away = False
    while intake.backlog:
        batch, taken = intake.unsaved()
        try:
            await store.save_progress(batch)
        except StoreRefused as error:
            await _save_singly(batch, store, error)
            intake.saved(taken)
        except StoreError as error:
            intake.put_back(taken)
            if isinstance(error, StoreConflict):
                continue
            if not away:
                log.warning("store.lost", during="save", error=str(error), waiting=intake.backlog)
            away = True
            with pulse.waiting():
                await trio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        else:
            intake.saved(taken)
            if away:
                log.info("store.returned", during="save")
                away = False


async def _save_singly(batch: Sequence[Progress], store: Store, error: StoreRefused) -> None:
    """One transcript's progress is bad: halve until it stands alone; leave only it out."""
    if len(batch) == 1:
        position = batch[0].position
        log.error("progress.refused", path=position.path, error=str(error))
        return
    middle = len(batch) // 2
    for half in (batch[:middle], batch[middle:]):
        try:
            await store.save_progress(half)
        except StoreRefused as again:
            await _save_singly(half, store, again)
