"""The synchronous half of ingestion: who wrote what, folded; what is not stored yet.

Laws:

1. `take` changes a position and the folds up to it in one step; it never waits.
2. A run belongs to one transcript, its owner. What another transcript tells of the same
   session is a fork, and the fork is an agent of its own: steps are never mixed.
3. A transcript is named by its first events, and renamed only by a session that the
   agent itself opens in it, or when it is rewritten.
4. Where the configuration says whose a transcript is, it is that agent's, whatever it calls
   itself; each of its sessions is a run of the agent, and the one that grew last is present.
"""

import heapq
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import trio

from custosd.core.agents import AgentId, AgentRef, AgentState, RunId, path_to
from custosd.core.facts import (
    AgentForgotten,
    AgentSeen,
    Fact,
    StateChanged,
    TrajectoryAdvanced,
    TrajectoryRewound,
)
from custosd.core.folds import Folds
from custosd.core.trajectory import TURN_QUIET_S, Activity, Trajectory
from custosd.core.transcript import Opened, TranscriptEvent, Unread, digest_of
from custosd.ports import (
    Growth,
    Progress,
    Restored,
    RunProgress,
    TrajectoryCodec,
    TranscriptPosition,
)

LARGEST_SAVE = 500
"""Transcripts stored in one transaction."""

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
    """What ingestion remembers of a run."""

    ref: AgentRef
    thread: str
    parent: str
    seen_utc: datetime
    state: AgentState
    state_utc: datetime
    grown_utc: datetime


@dataclass(frozen=True, slots=True)
class _Name:
    """What a transcript calls itself: the agent over all its runs, and this session."""

    agent: str
    session: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A growth with its events assigned to runs, in order; nothing is folded yet."""

    growth: Growth
    position: TranscriptPosition
    told: tuple[tuple[AgentRef, TranscriptEvent], ...]

    @property
    def key(self) -> str:
        """The transcript."""
        return self.position.key

    @property
    def refs(self) -> frozenset[AgentRef]:
        """The runs that it is about."""
        return frozenset(ref for ref, _ in self.told)


Named = Callable[[str], AgentId | None]
"""Whose transcript lies at a path, where the configuration says so."""


def nobody(_path: str) -> AgentId | None:
    """No transcript is anybody's: all are called by the names that they give themselves."""
    return None


def renamed(restored: Restored, named: Named) -> Restored:
    """What was stored, without transcripts that belong to another agent by now.

    They are read anew from their start, so that no run begins in its middle.
    """

    def stays(path: str, agent: str) -> bool:
        owner = named(path)
        return agent == owner or agent.startswith(f"{owner}/") if owner else ":" in agent

    moved = {
        view.path for view in restored.agents if view.path and not stays(view.path, view.ref.agent)
    }
    if not moved:
        return restored
    return Restored(
        tuple(view for view in restored.agents if view.path not in moved),
        tuple(position for position in restored.positions if position.path not in moved),
    )


Unsaved = dict[str, tuple[TranscriptPosition, frozenset[AgentRef]]]


class Intake:
    """Takes in growth; see the module's laws. `now_utc` is wall time."""

    def __init__(
        self,
        folds: Folds,
        restored: Restored,
        codec: TrajectoryCodec,
        now_utc: Callable[[], datetime],
        named: Named = nobody,
    ) -> None:
        self._folds = folds
        self._codec = codec
        self._now_utc = now_utc
        self._named = named
        self._names = {p.key: _Name(p.agent, p.session) for p in restored.positions if p.session}
        self._stored_keys = frozenset(self._names)
        self._runs = {
            a.ref: _Run(
                a.ref,
                "",
                a.parent,
                a.seen_utc,
                a.state,
                a.grown_utc or a.seen_utc,
                a.grown_utc or a.seen_utc,
            )
            for a in restored.agents
        }
        self._current = {a.ref.agent: a.ref for a in restored.agents}
        keys = {p.path: p.key for p in restored.positions}
        self._owners = {a.ref: keys[a.path] for a in restored.agents if a.path in keys}
        self._unsaved: Unsaved = {}
        self._refused: set[str] = set()
        # Runs whose agent spoke last: when that will have been the end of its turn. The
        # latest positions of their transcripts are kept, to be stored with the settled fold.
        self._speaking: dict[AgentRef, float] = {}
        self._deadlines: list[tuple[float, AgentRef]] = []
        self._spoken_in: dict[str, TranscriptPosition] = {}
        positions = {p.key: p for p in restored.positions}
        for agent in restored.agents:
            key = self._owners.get(agent.ref, "")
            if agent.digest is not None and agent.digest.spoke and key:
                quiet_s = (now_utc() - (agent.grown_utc or agent.seen_utc)).total_seconds()
                self._listen(agent.ref, positions[key], max(0.0, quiet_s))

    # Who tells

    def admit(self, growth: Growth) -> Plan | None:
        """Assign a growth's events to runs; None where there is no transcript to take in."""
        key = growth.position.key
        if not key or key in self._refused:
            return None
        if growth.rewound:
            self._names.pop(key, None)
        told: list[tuple[AgentRef, TranscriptEvent]] = []
        for event in growth.events:
            if isinstance(event, Unread):
                continue
            self._name(growth, event)
            told.append((self._own(growth.position, event.thread), event))
        name = self._names.get(key, _Name("", ""))
        position = replace(growth.position, agent=name.agent, session=name.session)
        return Plan(growth, position, tuple(told))

    def _name(self, growth: Growth, event: TranscriptEvent) -> None:
        key = growth.position.key
        known = self._names.get(key)
        if known is None:
            opened = next((e for e in growth.events if isinstance(e, Opened) and e.session), None)
            session = opened.session if opened else f"file-{digest_of(growth.position.path)}"
            self._names[key] = _Name(opened.agent if opened else "", session)
        elif (
            isinstance(event, Opened)
            and not event.thread
            and event.agent == known.agent != ""
            and event.session not in {"", known.session}
        ):
            self._names[key] = _Name(known.agent, event.session)

    def _own(self, position: TranscriptPosition, thread: str) -> AgentRef:
        """The run that a thread of a transcript is, claimed for this transcript."""
        name = self._names[position.key]
        owner = self._named(position.path)
        ref = _reference(owner or position.format, name, thread, owned=owner is not None)
        if self._owners.setdefault(ref, position.key) != position.key:
            fork = _Name("", f"{name.session}~{digest_of(position.key)[:6]}")
            ref = _reference(owner or position.format, fork, thread, owned=owner is not None)
            self._owners[ref] = position.key
        return ref

    def missing(self, plans: Collection[Plan]) -> set[AgentRef]:
        """Runs whose folds must be fetched from the store before these are taken in.

        Those whose turn ends now are among them.
        """
        settling = {ref for ref in self._settling() if self._folds.get(ref) is None}
        return settling | {ref for plan in plans for ref in self.needs(plan)}

    def needs(self, plan: Plan) -> frozenset[AgentRef]:
        """Runs of this plan that only the store can have a fold of."""
        if plan.growth.rewound:
            return frozenset()
        stored = plan.key in self._stored_keys
        return frozenset(
            ref
            for ref in plan.refs
            if (stored or ref in self._runs) and self._folds.get(ref) is None
        )

    # What is told

    def take(self, plan: Plan, fetched: Mapping[AgentRef, Trajectory]) -> list[Fact]:
        """Fold a plan; `fetched` are the folds that `needs` asked for. Returns what happened."""
        growth, position = plan.growth, plan.position
        facts: list[Fact] = []
        steps_before: dict[AgentRef, int] = {}
        changed: dict[AgentRef, Trajectory] = {}
        if growth.rewound:
            facts += self._rewind(position.key, changed)
        for ref, event in plan.told:
            if ref not in changed:
                facts += self._meet(ref, event, position, growth)
                changed[ref] = self._folds.get(ref) or fetched.get(ref) or Trajectory()
            if ref not in steps_before:
                steps_before[ref] = changed[ref].steps
            changed[ref].advance(event)
        for ref, fold in changed.items():
            run = self._runs[ref]
            run.grown_utc = max(run.grown_utc, growth.grown_utc)
            facts += self._told(run, fold, fold.steps - steps_before.get(ref, 0))
            if fold.spoke:
                self._listen(ref, position, 0.0)
            else:
                self._speaking.pop(ref, None)
        if position.key in self._spoken_in:
            self._spoken_in[position.key] = position
        self._leave_unsaved(position, frozenset(changed))
        return facts

    def _leave_unsaved(self, position: TranscriptPosition, changed: frozenset[AgentRef]) -> None:
        _, refs = self._unsaved.get(position.key, (position, frozenset[AgentRef]()))
        self._unsaved[position.key] = (position, refs | changed)

    def _meet(
        self, ref: AgentRef, event: TranscriptEvent, position: TranscriptPosition, growth: Growth
    ) -> list[Fact]:
        thread = "" if isinstance(event, Unread) else event.thread
        if ref in self._runs:
            self._runs[ref].thread = thread
            return []
        parent = self._own(position, "").agent if thread else ""
        now = self._now_utc()
        self._runs[ref] = _Run(ref, thread, parent, now, AgentState.STARTING, now, growth.grown_utc)
        present = self._runs.get(self._current.get(ref.agent, ref))
        if present is not None and present.grown_utc > growth.grown_utc:
            return []  # an earlier session of this agent, met later
        self._current[ref.agent] = ref
        return [AgentSeen(ref, position.format, position.path, parent, now)]

    def _rewind(self, key: str, changed: dict[AgentRef, Trajectory]) -> list[Fact]:
        """Empty the folds that this transcript told: it is told again from its start."""
        facts: list[Fact] = []
        for ref in [ref for ref in self._runs if self._owners.get(ref) == key]:
            held = self._folds.get(ref)
            facts.append(TrajectoryRewound(ref, held.steps if held else 0))
            changed[ref] = Trajectory()
        return facts

    def _told(self, run: _Run, fold: Trajectory, new_steps: int) -> list[Fact]:
        """What to tell of a fold that changed; it is dirty from now on."""
        self._folds.keep_dirty(run.ref, fold)
        if self._current.get(run.ref.agent) != run.ref:
            return []  # an older run of the agent: stored, but not how the agent stands
        digest = fold.digest()
        facts: list[Fact] = [TrajectoryAdvanced(run.ref, digest, new_steps, run.grown_utc)]
        if run.state in HELD_STATES:
            return facts
        for state in path_to(run.state, STATES[digest.activity]):
            facts.append(StateChanged(run.ref, run.state, state, f"transcript_{digest.activity}"))
            run.state, run.state_utc = state, self._now_utc()
        return facts

    def refuse(self, key: str) -> None:
        """Leave a transcript out until the next start; its stored position stays."""
        self._refused.add(key)
        _, refs = self._unsaved.pop(key, (None, frozenset[AgentRef]()))
        for ref in refs:
            self._folds.forget(ref)
            self._speaking.pop(ref, None)

    def forget(self, before_utc: datetime) -> list[Fact]:
        """Let go of runs that have not grown since; the store let go of them as well."""
        unsaved = {ref for _, refs in self._unsaved.values() for ref in refs}
        old = [r for r in self._runs.values() if r.grown_utc < before_utc and r.ref not in unsaved]
        for run in old:
            del self._runs[run.ref]
            self._folds.forget(run.ref)
            self._owners.pop(run.ref, None)
            self._speaking.pop(run.ref, None)
            if self._current.get(run.ref.agent) == run.ref:
                del self._current[run.ref.agent]
        return [AgentForgotten(run.ref) for run in old]

    # Turns that end in silence

    def _listen(self, ref: AgentRef, position: TranscriptPosition, quiet_s: float) -> None:
        at = trio.current_time() + TURN_QUIET_S - quiet_s
        self._speaking[ref] = at
        heapq.heappush(self._deadlines, (at, ref))
        self._spoken_in[position.key] = position

    def next_settling(self) -> float:
        """When, on trio's clock, the first turn will have ended in silence; inf if none."""
        while (
            self._deadlines and self._speaking.get(self._deadlines[0][1]) != self._deadlines[0][0]
        ):
            heapq.heappop(self._deadlines)  # the agent went on, or spoke again
        return self._deadlines[0][0] if self._deadlines else math.inf

    def _settling(self) -> list[AgentRef]:
        now = trio.current_time()
        if self.next_settling() > now:
            return []
        return [ref for ref, at in self._speaking.items() if at <= now]

    def settle(self, fetched: Mapping[AgentRef, Trajectory]) -> list[Fact]:
        """End the turns whose last words nothing has followed for long enough."""
        facts: list[Fact] = []
        for ref in self._settling():
            fold = self._folds.get(ref) or fetched.get(ref)
            position = self._spoken_in.get(self._owners.get(ref, ""))
            del self._speaking[ref]
            if fold is not None and position is not None and ref in self._runs:
                fold.settle()
                facts += self._told(self._runs[ref], fold, 0)
                self._leave_unsaved(position, frozenset({ref}))
        if not self._speaking:
            self._spoken_in.clear()
        return facts

    # What is not stored

    @property
    def backlog(self) -> int:
        """How many transcripts wait to be stored."""
        return len(self._unsaved)

    def unsaved(self) -> tuple[list[Progress], Unsaved]:
        """The next transaction's worth of changes, encoded now, and a token for what follows."""
        taken = dict(list(self._unsaved.items())[:LARGEST_SAVE])
        for key in taken:
            del self._unsaved[key]
        return [
            Progress(
                position, tuple(p for ref in sorted(refs, key=_order) if (p := self._progress(ref)))
            )
            for position, refs in taken.values()
        ], taken

    def _progress(self, ref: AgentRef) -> RunProgress | None:
        run, fold = self._runs.get(ref), self._folds.get(ref)
        if run is None or fold is None:
            return None
        return RunProgress(
            ref=ref,
            thread=run.thread,
            parent=run.parent,
            state=run.state,
            digest=fold.digest(),
            trajectory=self._codec.encode(fold),
            seen_utc=run.seen_utc,
            grown_utc=run.grown_utc,
            state_utc=run.state_utc,
        )

    def saved(self, taken: Unsaved) -> None:
        """What `unsaved` gave is stored: those folds may be let go, unless changed since."""
        waiting = {ref for _, refs in self._unsaved.values() for ref in refs}
        for _, refs in taken.values():
            for ref in refs - waiting:
                self._folds.stored(ref)

    def put_back(self, taken: Unsaved) -> None:
        """What `unsaved` gave could not be stored; newer positions win."""
        for key, (position, refs) in taken.items():
            newer, more = self._unsaved.get(key, (position, frozenset[AgentRef]()))
            self._unsaved[key] = (newer, refs | more)


def _reference(by: str, name: _Name, thread: str, *, owned: bool) -> AgentRef:
    main = by if owned else f"{by}:{name.agent or name.session}"
    return AgentRef(AgentId(f"{main}/{thread}" if thread else main), RunId(name.session))


def _order(ref: AgentRef) -> tuple[str, str]:
    return ref.agent, ref.run
