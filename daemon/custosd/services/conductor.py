"""Looks at the fleet as a whole: how well it works together, and who is in whose way.

    FleetView --> [ PairIndex ] --> suspicions --> PairJudge --> [ FindingBook ] --> store
                                                                   └── FindingOpened, Escalated
    verdicts  --> [ coherence ] ------------------------------------> ConductorSwept

What is suspect, what a sweep makes of findings and what a reading comes to is decided in
`custosd.core`; this module fetches, asks at most so many at once, stores and tells. Laws:

1. Only agents that changed are compared, and a judge is asked once about equal content, about
   what is beyond doubt never; of many suspicions the weightiest first, at most `pairs` a sweep.
2. Where a judge is not asked, not yet asked or cannot be had the rules' word stands, signed as
   theirs; what they cannot say either leaves a finding as it stood. One that gave no answer is
   asked again, ever more rarely.
3. A finding is stored before it is told; where the store is away it is told all the same, and
   stored with the next sweep. None is opened before it is known which ones are open already.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

import structlog
import trio

from custosd.core.agents import AgentId
from custosd.core.coherence import (
    Coherence,
    CoherenceRules,
    FleetStatus,
    Member,
    alignment_of,
    read_coherence,
)
from custosd.core.errors import JudgeError, StoreRefused
from custosd.core.facts import (
    ConcernResolved,
    ConductorSwept,
    Escalated,
    Fact,
    FindingOpened,
    FindingResolved,
)
from custosd.core.findings import (
    Changes,
    Finding,
    FindingBook,
    FindingKind,
    Key,
    Sighting,
    superfluous,
)
from custosd.core.guardian import retry_pause_s
from custosd.core.holds import HoldKind
from custosd.core.pair_narrowing import is_beyond_doubt
from custosd.core.pairs import (
    PairIndex,
    Place,
    Suspicion,
    Work,
    content_of,
    judge_by_rules,
)
from custosd.core.trajectory import Activity, TrajectoryDigest
from custosd.core.verdicts import Standing
from custosd.core.view import AgentView, FleetView
from custosd.flow.bounded import for_each
from custosd.flow.monitor import Kind, operation
from custosd.flow.pulse import Pulse
from custosd.flow.rounds import Rounds
from custosd.ports import CoordinationStore, PairAnswer, PairJudge, PairQuestion, Places
from custosd.services.store_absence import StoreAbsence, past_conflicts

log = structlog.get_logger()

RULES = "rules"
FLEET_CONCERN = "coherence:fleet"
ANSWERS_KEPT = 8_192
READINGS_LOOKED_AT = 12
_AT_ONCE = 64
_PLACES_AT_ONCE = 8
_PLACES_S = 30.0
"""For all places of a sweep: however slow file systems are, it goes on with those it has."""
_MOST_ATTEMPTS = 5
_FEWEST = 2
_CONCERN_KINDS = {
    FindingKind.DUPLICATE: "duplicate_work",
    FindingKind.CONFLICT: "conflicting_work",
}


@dataclass(frozen=True, slots=True)
class ConductorSetup:
    """How much at once, how long, and what counts; seconds and counts."""

    rules: CoherenceRules = field(default_factory=CoherenceRules)
    interval_s: float = 300.0
    fresh_s: float = 600.0
    quiet_s: float = 3_600.0
    pairs: int = 50
    judge_concurrency: int = 5
    judge_timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class ConductorPorts:
    """What a conductor works with.

    `folder_of` is where an agent works as configured, or ""; `charged_usd` what judging pairs
    has cost since the start, calls that were cut off included.
    """

    store: CoordinationStore
    judge: PairJudge
    places: Places
    now_utc: Callable[[], datetime]
    folder_of: Callable[[AgentId], str] = lambda _agent: ""
    charged_usd: Callable[[], float] = lambda: 0.0


@dataclass(frozen=True, slots=True)
class _Failed:
    """How often in a row, and when last, a question got no answer."""

    times: int
    at: float


@dataclass(slots=True)
class _Sweep:
    """What one sweep comes to, bit by bit."""

    sightings: list[Sighting] = field(default_factory=list[Sighting])
    undecided: set[Key] = field(default_factory=set[Key])
    apart: set[Key] = field(default_factory=set[Key])
    suspicions: int = 0
    asked: int = 0
    failed: int = 0
    waiting: int = 0
    cost_usd: float = 0.0


@dataclass(slots=True)
class Conductor:
    """The conductor's memory, and one sweep as a method; `conduct_fleet` runs it."""

    ports: ConductorPorts
    setup: ConductorSetup
    view: Callable[[], FleetView]
    facts: trio.MemorySendChannel[Fact]
    pulse: Pulse
    book: FindingBook = field(default_factory=FindingBook)
    reading: Coherence | None = None
    recalled: bool = False
    _index: PairIndex = field(default_factory=PairIndex)
    _answers: OrderedDict[str, PairAnswer] = field(default_factory=OrderedDict[str, PairAnswer])
    _unanswered: OrderedDict[str, _Failed] = field(default_factory=OrderedDict[str, _Failed])
    _scores: deque[float] = field(default_factory=lambda: deque(maxlen=READINGS_LOOKED_AT))
    _unsaved: dict[str, Finding] = field(default_factory=dict[str, Finding])
    _alarmed: bool = False
    _raised_before: bool = False
    _absence: StoreAbsence = field(default_factory=lambda: StoreAbsence("conductor"))

    async def sweep(self, coalesced: int = 0) -> ConductorSwept:
        """Look at the fleet now. One at a time: `flow.rounds` sees to that.

        `coalesced` is how many sweeps that were missed it stands for; it is only told. Raises
        nothing of its own; a judge that fails otherwise than with a `JudgeError` is a defect, and
        propagates.
        """
        async with operation(Kind.BATCH, "fleet"):
            return await self._swept(self.view(), trio.current_time(), coalesced)

    async def _swept(self, view: FleetView, began_at: float, coalesced: int) -> ConductorSwept:
        charged_usd = self.ports.charged_usd()
        await self._recall()
        now_utc = self.ports.now_utc()
        at_work = {
            name: agent
            for name, agent in view.agents.items()
            if self._works(agent, now_utc) and not view.is_gone(name)
        }
        await self._note(at_work)
        sweep = await self._judged()
        changes = Changes()
        if self.recalled:
            acks = {subject for kind, subject in view.hands.holds if kind is HoldKind.ACK}
            changes = self.book.after(
                sweep.sightings, at_work.keys(), sweep.undecided, now_utc, sweep.apart, acks
            )
            self.book.keep(changes)
        before = self.reading.status if self.reading else None
        reading = self.reading = self._read(at_work, now_utc)
        if reading.score is not None:
            self._scores.append(reading.score)
        await self._save(now_utc, reading, changes)
        kinds = [finding.sighting.kind for finding in self.book.open.values()]
        swept = ConductorSwept(
            status=reading.status,
            before=before,
            score=None if reading.score is None else round(reading.score, 4),
            coverage=round(reading.coverage, 4),
            trend=reading.trend,
            agents=reading.agents,
            duplicates=kinds.count(FindingKind.DUPLICATE),
            conflicts=kinds.count(FindingKind.CONFLICT),
            opened=len(changes.opened),
            resolved=len(changes.resolved),
            suspicions=sweep.suspicions,
            asked=sweep.asked,
            failed=sweep.failed,
            waiting=sweep.waiting,
            duration_s=trio.current_time() - began_at,
            # Who failed may have cost, too: then it is the purse that knows.
            cost_usd=max(sweep.cost_usd, self.ports.charged_usd() - charged_usd),
            coalesced=coalesced,
        )
        await self._tell(changes, swept)
        return swept

    # --- who is at work, and at what --------------------------------------------------------

    def _works(self, agent: AgentView, now_utc: datetime) -> bool:
        digest = agent.digest
        if digest is None or digest.end is not None or digest.activity is Activity.ENDED:
            return False
        grown_utc = agent.grown_utc or agent.seen_utc
        return (now_utc - grown_utc).total_seconds() <= self.setup.quiet_s

    async def _note(self, at_work: dict[AgentId, AgentView]) -> None:
        """Bring the index up to date: what did not change costs one look.

        Whose place is not looked up in time is taken in all the same, as far as it is known.
        """
        for gone in [agent for agent in self._index if agent not in at_work]:
            self._index.forget(gone)
        changed = [
            # What an agent says itself is nearer: of a table there is one for all its runs.
            (agent, agent.digest, agent.digest.cwd or self.ports.folder_of(name))
            for name, agent in at_work.items()
            if agent.digest is not None and self._index.version(name) != _version(agent)
        ]
        found = await self._places({(folder, digest.branch) for _, digest, folder in changed})
        for number, (agent, digest, folder) in enumerate(changed, 1):
            place = found.get((folder, digest.branch))
            self._index.note(
                Work(
                    agent.ref.agent,
                    # Not of this version while its place is not known: the next sweep looks again.
                    "" if place is None else _version(agent),
                    # Who takes up what another gave up does not do it twice; what that one
                    # wrote can be in the way all the same.
                    "" if digest.gave_up else digest.goal,
                    agent.parent,
                    place or self._place_as_known(agent.ref.agent, folder, digest.branch),
                    digest.footprints,
                    digest.focus,
                )
            )
            if number % _AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        while self._index.settle(_AT_ONCE):
            await trio.lowlevel.checkpoint()

    async def _places(self, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], Place]:
        found: dict[tuple[str, str], Place] = {}

        async def find(where: tuple[str, str]) -> None:
            found[where] = await self.ports.places.place(*where)
            self.pulse.beat()

        if wanted:
            async with operation(Kind.FILE, "places") as looking:
                looking.used("folders", len(wanted))
                with trio.move_on_after(_PLACES_S):
                    await for_each(wanted, find, limit=_PLACES_AT_ONCE)
        if len(found) < len(wanted):
            log.warning("places.unknown", count=len(wanted) - len(found), of=len(wanted))
        return found

    def _place_as_known(self, agent: AgentId, folder: str, branch: str) -> Place:
        """What is known of a folder that was not looked up in time."""
        work = self._index.work(agent)
        known = work is not None and work.place.path == folder
        return work.place if work is not None and known else Place("", folder, "", branch)

    # --- what is suspect, and what a judge says ---------------------------------------------

    async def _judged(self) -> _Sweep:
        sweep = _Sweep()
        suspicions = self._index.suspicions()
        sweep.suspicions = len(suspicions)
        to_ask: list[PairQuestion] = []
        for number, suspicion in enumerate(suspicions, 1):
            if number % _AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            if is_beyond_doubt(suspicion):
                _take_rules(sweep, suspicion)
                continue
            question = self._question(suspicion)
            known = self._answers.get(question.input_hash)
            if known is not None:
                self._answers.move_to_end(question.input_hash)
                _take(sweep, suspicion, known)
            elif self._pauses(question.input_hash):
                _take_rules(sweep, suspicion)
            else:
                to_ask.append(question)
        asking, waiting = to_ask[: self.setup.pairs], to_ask[self.setup.pairs :]
        sweep.asked, sweep.waiting = len(asking), len(waiting)
        for question in waiting:
            _take_rules(sweep, question.suspicion)
        waits_at = trio.current_time()

        unheard = {question.suspicion.key: question for question in asking}
        begun: set[Key] = set()

        async def ask(question: PairQuestion) -> None:
            begun.add(question.suspicion.key)
            await self._ask(question, trio.current_time() - waits_at, sweep)
            del unheard[question.suspicion.key]

        # However many are slow: the next sweep is not put off, nor is the daemon's start.
        with trio.move_on_after(self.setup.interval_s):
            await for_each(asking, ask, limit=self.setup.judge_concurrency)
        for key, question in unheard.items():
            _take_rules(sweep, question.suspicion)
            if key in begun:
                # It was asked, and is to be paid: as any other that was too slow.
                sweep.failed += 1
                self._note_failure(question.input_hash)
            else:
                sweep.waiting += 1
        # In the order of weight, whoever answered first.
        sweep.sightings.sort(key=lambda sighting: (-sighting.confidence, sighting.key))
        return sweep

    def _question(self, suspicion: Suspicion) -> PairQuestion:
        one, other = self._index.work(suspicion.one), self._index.work(suspicion.other)
        assert one is not None  # noqa: S101 - the index suspects only whom it knows
        assert other is not None  # noqa: S101 - the index suspects only whom it knows
        content = content_of(suspicion, {one.agent: one, other.agent: other})
        return PairQuestion(suspicion, one, other, content)

    async def _ask(self, question: PairQuestion, queued_s: float, sweep: _Sweep) -> None:
        suspicion = question.suspicion
        try:
            async with operation(Kind.NETWORK, "pair", queued_s):
                answer = await self._answer(question)
        except JudgeError as error:
            log.info("pair.unjudged", kind=suspicion.kind, reason=error.reason)
            sweep.failed += 1
            self._note_failure(question.input_hash)
            _take_rules(sweep, suspicion)
            return
        finally:
            self.pulse.beat()
        sweep.cost_usd += answer.usage.cost_usd
        self._unanswered.pop(question.input_hash, None)
        self._answers[question.input_hash] = answer
        if len(self._answers) > ANSWERS_KEPT:
            self._answers.popitem(last=False)
        _take(sweep, suspicion, answer)

    def _pauses(self, input_hash: str) -> bool:
        failed = self._unanswered.get(input_hash)
        return failed is not None and (
            trio.current_time() - failed.at < retry_pause_s(failed.times)
        )

    def _note_failure(self, input_hash: str) -> None:
        failed = self._unanswered.pop(input_hash, _Failed(0, 0.0))
        self._unanswered[input_hash] = _Failed(failed.times + 1, trio.current_time())
        if len(self._unanswered) > ANSWERS_KEPT:
            self._unanswered.popitem(last=False)

    async def _answer(self, question: PairQuestion) -> PairAnswer:
        with trio.move_on_after(self.setup.judge_timeout_s):
            return await self.ports.judge.compare(question)
        # Not left to be a cancellation: a judge that is too slow has failed.
        raise JudgeError("timeout", f"no answer within {self.setup.judge_timeout_s:g} s")

    # --- how the fleet stands ---------------------------------------------------------------

    def _read(self, at_work: dict[AgentId, AgentView], now_utc: datetime) -> Coherence:
        def merit(agent: AgentId) -> float:
            view = at_work.get(agent)
            return _merit(view.digest) if view and view.digest else 0.0

        findings = list(self.book.open.values())
        twice = superfluous(findings, merit)
        fresh = timedelta(seconds=self.setup.fresh_s)
        members = [
            _member(view, twice.get(agent), now_utc - fresh)
            for agent, view in sorted(at_work.items())
        ]
        conflicts = [
            (finding.sighting.one, finding.sighting.other)
            for finding in findings
            if finding.sighting.kind is FindingKind.CONFLICT
        ]
        held = self.reading.status if self.reading else None
        return read_coherence(members, conflicts, self.setup.rules, held, tuple(self._scores))

    # --- what is kept, and who is told ------------------------------------------------------

    async def _recall(self) -> None:
        """Take up what was stored, once the store is there."""
        if self.recalled:
            return
        with self._absence.told(len(self._unsaved)):
            findings = await self.ports.store.findings(self.ports.now_utc())
            readings = await self.ports.store.readings(READINGS_LOOKED_AT)
            self.recalled = True
        if not self.recalled:
            return
        self.book.recall(findings)
        older = [reading.score for _, reading in reversed(readings) if reading.score is not None]
        # Where the store came late there are newer ones: these are kept.
        newer = list(self._scores)
        self._scores.clear()
        self._scores.extend(older + newer)
        if self.reading is None and readings:
            self.reading = readings[0][1]
        known = (reading for _, reading in readings if reading.status is not FleetStatus.UNKNOWN)
        last = next(known, None)
        self._raised_before = last is not None and _is_alarming(last)
        for finding in self.book.open.values():
            await self._escalate(finding)

    async def _save(self, now_utc: datetime, reading: Coherence, changes: Changes) -> None:
        self._unsaved.update({finding.id: finding for finding in changes.all})
        store, findings = self.ports.store, tuple(self._unsaved.values())
        with self._absence.told(len(findings)):
            try:
                save = partial(store.save_sweep, now_utc, reading, findings)
                await past_conflicts(save, _MOST_ATTEMPTS)
            except StoreRefused as error:
                log.error("findings.refused", count=len(findings), error=str(error))
            self._unsaved.clear()

    async def _tell(self, changes: Changes, swept: ConductorSwept) -> None:
        for finding in changes.opened:
            sighting = finding.sighting
            log.info(
                "finding.opened",
                finding=finding.id,
                kind=sighting.kind,
                agents=[sighting.one, sighting.other],
                confidence=sighting.confidence,
                likeness=sighting.likeness,
                files=len(sighting.paths),
            )
            pair = (sighting.one, sighting.other)
            await self.facts.send(FindingOpened(finding.id, sighting.kind, pair))
            await self._escalate(finding)
        for before, finding in changes.grown:
            sighting = finding.sighting
            log.info(
                "finding.grown",
                finding=finding.id,
                kind=sighting.kind,
                files=len(sighting.paths),
                revision=sighting.revision,
            )
            await self.facts.send(ConcernResolved(before.concern, "grown"))
            await self._escalate(finding)
        for finding in changes.resolved:
            sighting, why = finding.sighting, finding.resolution
            assert why is not None  # noqa: S101 - it is resolved
            log.info("finding.resolved", finding=finding.id, kind=sighting.kind, resolution=why)
            pair = (sighting.one, sighting.other)
            await self.facts.send(FindingResolved(finding.id, sighting.kind, pair, why))
            await self.facts.send(ConcernResolved(finding.concern, why.value))
        await self._tell_alarm(swept)
        log.info(
            "fleet.swept",
            status=swept.status,
            before=swept.before,
            score=swept.score,
            coverage=swept.coverage,
            trend=swept.trend,
            agents=swept.agents,
            duplicates=swept.duplicates,
            conflicts=swept.conflicts,
            opened=swept.opened,
            resolved=swept.resolved,
            suspicions=swept.suspicions,
            asked=swept.asked,
            failed=swept.failed,
            waiting=swept.waiting,
            cost_usd=round(swept.cost_usd, 6),
            coalesced=swept.coalesced,
            duration_s=round(swept.duration_s, 4),
        )
        await self.facts.send(swept)

    async def _tell_alarm(self, swept: ConductorSwept) -> None:
        """A fleet (of two at least) in a critical state is a person's concern until it is not."""
        critical, raised = _is_alarming(swept), self._alarmed or self._raised_before
        # A life before this one raised it, perhaps before a view that has forgotten that.
        if critical and not self._alarmed:
            reason = f"coherence {swept.score or 0.0:.2f} of {swept.agents} agents"
            await self.facts.send(Escalated(FLEET_CONCERN, "fleet_critical", None, reason))
        elif raised and not critical and swept.status is not FleetStatus.UNKNOWN:
            await self.facts.send(ConcernResolved(FLEET_CONCERN, swept.status.value))
        else:
            return
        self._alarmed, self._raised_before = critical, False

    async def _escalate(self, finding: Finding) -> None:
        sighting = finding.sighting
        kind = _CONCERN_KINDS[sighting.kind]
        reason = f"with {sighting.other}"
        await self.facts.send(Escalated(finding.concern, kind, sighting.one, reason))


def _is_alarming(found: Coherence | ConductorSwept) -> bool:
    return found.status is FleetStatus.CRITICAL and found.agents >= _FEWEST


def _version(agent: AgentView) -> str:
    digest = agent.digest
    return f"{agent.ref.run}|{digest.fingerprint}" if digest else ""


def _take(sweep: _Sweep, suspicion: Suspicion, answer: PairAnswer) -> None:
    judgement = answer.judgement
    if judgement.holds is None:
        sweep.undecided.add(suspicion.key)
        return
    if not judgement.holds:
        sweep.apart.add(suspicion.key)
        return
    met = suspicion.clash
    sweep.sightings.append(
        Sighting(
            suspicion.kind,
            suspicion.one,
            suspicion.other,
            suspicion.likeness,
            judgement.confidence,
            suspicion.paths,
            met.first_line if met else 0,
            met.last_line if met else 0,
            answer.judge,
            judgement.summary,
            judgement.said,
        )
    )


def _take_rules(sweep: _Sweep, suspicion: Suspicion) -> None:
    """What the rules say in place of a judge; where they say nothing it is as it was."""
    _take(sweep, suspicion, PairAnswer(judge_by_rules(suspicion), judge=RULES))


def _merit(digest: TrajectoryDigest) -> float:
    """How much an agent has to show: what it passed, then what it wrote, then what it did."""
    passed = digest.tests_passed_at is not None
    return passed * 1e6 + min(digest.edits, 999) * 1e3 + min(digest.steps, 999)


def _member(agent: AgentView, instead: AgentId | None, since_utc: datetime) -> Member:
    """What counts of an agent: its last verdict, while it is fresh or nothing happened since."""
    verdict, digest = agent.verdict, agent.digest
    name = agent.ref.agent
    if verdict is None or digest is None:
        return Member(name, duplicates=instead)
    if verdict.at_utc < since_utc and verdict.steps < digest.steps:
        return Member(name, duplicates=instead)
    judgement = verdict.judgement
    reason = judgement.steering_reason
    return Member(
        name,
        alignment_of(judgement.alignment, judgement.standing),
        judgement.alignment is not None,
        judgement.needs_steering,
        judgement.standing,
        reason.value if reason else "",
        instead if instead or judgement.standing is not Standing.DUPLICATING else None,
    )


async def conduct_fleet(
    conductor: Conductor,
    rounds: Rounds[ConductorSwept] | None = None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Sweep now, on the grid of every interval, and when `rounds` is asked; until cancelled.

    Closes the facts. Started: when the first sweep is done. The times of sweeps do not drift, and
    one that is late stands for all that were missed. A defect of a judge propagates.
    """
    rounds = rounds or Rounds("conductor", conductor.ports.now_utc)
    async with conductor.facts:
        await rounds.run(
            conductor.setup.interval_s, conductor.sweep, conductor.pulse, task_status=task_status
        )
