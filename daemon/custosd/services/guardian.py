"""Judges where each agent is going.

    FleetView --> [ is_due ] --> [ signals ] --> [ is_worth_asking ] --> Judge --> VerdictReached
                                                                  └── StandingChanged

What is due, worth asking and to be held is decided in `custosd.core.guardian`, and
what a trajectory shows in `custosd.core.detectors`; this module only fetches, asks at
most so many at once, and tells. A sweep takes two round trips to the store, however
many agents there are: the folds that are not in memory, and the earlier verdicts.
What an unchanged agent costs is one look at its memo. A run whose stored fold cannot be
read is left out until it grows; the others are judged.

`examine` judges named agents at once, whatever their memos say, and before what a sweep has
yet to judge. Of one agent there is one analysis at a time: whoever comes second gets its verdict.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

import outcome
import structlog
import trio

from custosd.core.agents import AgentId, AgentRef
from custosd.core.detectors import DetectorLimits, next_quiet_deadline, question_hash, signals
from custosd.core.errors import JudgeError, StoreError, StoreRefused
from custosd.core.facts import Fact, StandingChanged, SweepFinished, VerdictReached
from custosd.core.folds import Folds
from custosd.core.guardian import (
    WORK_QUIET_S,
    GuardianLimits,
    Memo,
    QuietWatch,
    Sight,
    after_answer,
    after_look,
    after_standing,
    checked,
    is_due,
    is_worth_asking,
    remembered,
    unknown,
    with_grace,
)
from custosd.core.overlap import SAME_GOAL_AND_FILE, Peers, Work, WorkIndex
from custosd.core.signals import Severity, Signal, SignalKind
from custosd.core.trajectory import Activity, Trajectory
from custosd.core.transcript import digest_of
from custosd.core.verdicts import JudgedBy, Judgement, Standing, Verdict
from custosd.core.view import AgentView, FleetView
from custosd.flow.bounded import for_each
from custosd.flow.gate import Gate
from custosd.flow.monitor import Kind, Operation, operation
from custosd.flow.parallel import TooSlow, run_parallel
from custosd.flow.pulse import Pulse
from custosd.flow.rounds import Rounds
from custosd.ports import (
    Answer,
    ContextPart,
    ContextSource,
    Judge,
    Question,
    Store,
    TrajectoryCodec,
)
from custosd.services.examinations import Examination, Examinations, Tell

log = structlog.get_logger()

NOBODY = "none"
"""Who judged, where the judge gave no answer."""

ROUTINE, URGENT = 0, 1
"""Whose turn comes first where analyses and questions wait for room."""

_NOTED_AT_ONCE = 64
"""Works that are sketched or compared before others get their turn: some milliseconds."""


@dataclass(frozen=True, slots=True)
class GuardianSetup:
    """How much at once, and how long for each part; counts and seconds."""

    limits: GuardianLimits
    detectors: DetectorLimits
    concurrency: int = 10
    judge_concurrency: int = 5
    judge_timeout_s: float = 60.0
    context_timeout_s: float = 5.0
    verdicts_in_context: int = 10


@dataclass(frozen=True, slots=True)
class GuardianPorts:
    """What a guardian works with."""

    store: Store
    judge: Judge
    context: ContextSource
    codec: TrajectoryCodec
    now_utc: Callable[[], datetime]
    charged_usd: Callable[[], float] = lambda: 0.0
    """What judging has cost since the start, calls that were cut off included."""


@dataclass(slots=True)
class _Tally:
    due: int = 0
    asked: int = 0
    judged: int = 0
    failed: int = 0
    cost_usd: float = 0.0


@dataclass(eq=False, slots=True)
class _Analysis:
    """One that is under way, or waits for its turn; `why` there is no verdict, as long as so."""

    priority: int = ROUTINE
    done: trio.Event = field(default_factory=trio.Event)
    verdict: Verdict | None = None
    graced: bool = False
    why: str = "defect"


@dataclass(slots=True)
class _Case:
    """One agent in one sweep."""

    agent: AgentView
    sight: Sight
    found: tuple[Signal, ...] = ()
    question: str = ""
    earlier: tuple[Verdict, ...] | None = None
    graced: bool = False
    urgent: bool = False
    analysis: _Analysis = field(default_factory=_Analysis)


@dataclass(slots=True)
class Guardian:
    """The guardian's memory, and one sweep as a method; `guard_trajectories` runs it."""

    ports: GuardianPorts
    setup: GuardianSetup
    folds: Folds
    facts: trio.MemorySendChannel[Fact]
    pulse: Pulse
    memos: dict[AgentRef, Memo] = field(default_factory=dict)
    _watch: QuietWatch = field(default_factory=QuietWatch)
    _works: WorkIndex = field(default_factory=WorkIndex)
    _discarded: dict[AgentRef, str] = field(default_factory=dict)
    _under_way: dict[AgentId, _Analysis] = field(default_factory=dict[AgentId, _Analysis])
    _analyses: Gate = field(init=False)
    _questions: Gate = field(init=False)

    def __post_init__(self) -> None:
        self._analyses = Gate(self.setup.concurrency)
        self._questions = Gate(self.setup.judge_concurrency)

    def remember(self, view: FleetView) -> None:
        """Take up from a restored view: what was asked before is not asked again."""
        for agent in view.agents.values():
            if agent.digest is None or agent.verdict is None:
                continue
            verdict = agent.verdict
            answered = verdict.by.judge != NOBODY
            self.memos[agent.ref] = remembered(
                agent.digest,
                verdict,
                agent.standing,
                question_hash(agent.digest, verdict.signals) if answered else "",
                next_quiet_deadline(agent.digest, self.setup.detectors),
                (verdict.at_utc - agent.seen_utc).total_seconds(),
                self.setup.limits,
            )

    async def sweep(self, view: FleetView, coalesced: int = 0) -> SweepFinished:
        """Look at every agent once; judge those that are due and worth asking about.

        `coalesced` is how many sweeps that were missed it stands for; it is only told.
        """
        started_at, charged_usd = trio.current_time(), self.ports.charged_usd()
        tally = _Tally()
        cases = await self._cases(view, tally)
        asked = [case for case in cases if self._consider(case)]
        tally.asked = len(asked)
        await self._add_earlier(asked)
        waits_at = trio.current_time()

        async def one(case: _Case) -> None:
            await self._analyse(case, waits_at, tally)

        await for_each(asked, one, limit=self.setup.concurrency)
        chosen = {id(case) for case in asked}
        for case in cases:
            if id(case) not in chosen:
                await self._reaffirm(case)
        return SweepFinished(
            len(view.agents),
            tally.due,
            tally.asked,
            tally.judged,
            tally.failed,
            trio.current_time() - started_at,
            # Who failed may have cost, too: then it is the purse that knows.
            max(tally.cost_usd, self.ports.charged_usd() - charged_usd),
            self._coverage(view),
            coalesced,
        )

    def _coverage(self, view: FleetView) -> float | None:
        """The share of agents of whom something is known; None where there is nobody.

        An answer that says nothing, or is none, is no knowledge.
        """
        if not view.agents:
            return None
        memos = (self.memos.get(agent.ref) for agent in view.agents.values())
        known = (
            memo.question and {memo.held, memo.candidate} != {Standing.UNKNOWN}
            for memo in memos
            if memo
        )
        return sum(map(bool, known)) / len(view.agents)

    async def examine(self, view: FleetView, agents: Sequence[AgentId], tell: Tell) -> None:
        """Judge these agents now, all at once; `tell` is called for each as its end comes.

        Cadence, pauses and "nothing has changed" count for nothing here; the limits on what goes
        on at once do, but these go before what a sweep has waiting. Takes one round trip for
        all folds and one for the earlier verdicts. A defect of a judge is that agent's alone.
        """
        joined: dict[AgentId, _Analysis] = {}
        cases: list[_Case] = []
        now_at, now_utc = trio.current_time(), self.ports.now_utc()
        for name in dict.fromkeys(agents):
            agent = view.agents.get(name)
            if agent is None or agent.digest is None:
                known = agent is not None or name in view.hands.lives
                tell(Examination(name, why="no_transcript" if known else "unknown_agent"))
            elif (running := self._under_way.get(name)) is not None:
                self._promote(running)
                joined[name] = running
            else:
                quiet_s, known_s = self._watch.look(agent, now_at, now_utc)
                peers = _names(self._works.peers(name))
                sight = Sight(agent.digest, quiet_s, known_s, peers)
                case = _Case(agent, sight, urgent=True, analysis=_Analysis(URGENT))
                cases.append(case)
                # From here on it is known to be under way, also while its fold is fetched.
                self._under_way[name] = case.analysis

        async def join(name: AgentId) -> None:
            running = joined[name]
            await running.done.wait()
            tell(Examination(name, running.verdict, running.why, running.graced))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(for_each, joined, join)
            try:
                for case in await self._urgent(cases):
                    case.analysis.why = "store_unavailable"
                    self._end(case)
                    tell(Examination(case.agent.ref.agent, why=case.analysis.why))
                left = [case for case in cases if not case.analysis.done.is_set()]
                await for_each(left, partial(self._examine, tell=tell))
            finally:
                for case in cases:
                    self._end(case)

    def _promote(self, running: _Analysis) -> None:
        """Let a sweep's analysis go before the other ones, wherever it waits or will yet."""
        running.priority = URGENT
        for gate in (self._analyses, self._questions):
            gate.promote(running, URGENT)

    async def _urgent(self, cases: Sequence[_Case]) -> list[_Case]:
        """Fetch what these are judged on; those whose fold is not to be had are returned."""
        if not cases:
            return []
        known = await self._with_folds(cases)
        for case in known:
            ref, sight = case.agent.ref, case.sight
            case.question = question_hash(sight.digest, case.found)
            deadline_s = next_quiet_deadline(sight.digest, self.setup.detectors)
            self.memos[ref] = after_look(self.memos.get(ref, Memo()), sight, deadline_s)
        await self._add_earlier(known)
        there = {case.agent.ref for case in known}
        return [case for case in cases if case.agent.ref not in there]

    async def _examine(self, case: _Case, tell: Tell) -> None:
        analysis = case.analysis
        try:
            await self._judged(case, trio.current_time(), _Tally())
        except Exception:
            # What a person asked about one agent must not end the watch over all others.
            log.exception("examination.failed", agents=1)
        self._end(case)
        tell(Examination(case.agent.ref.agent, analysis.verdict, analysis.why, analysis.graced))

    async def _analyse(self, case: _Case, waits_at: float, tally: _Tally) -> None:
        """A sweep's analysis; none where somebody is at it already, whose verdict will do."""
        if self._under_way.setdefault(case.agent.ref.agent, case.analysis) is not case.analysis:
            return
        try:
            await self._judged(case, waits_at, tally)
        finally:
            self._end(case)

    def _end(self, case: _Case) -> None:
        if self._under_way.get(case.agent.ref.agent) is case.analysis:
            del self._under_way[case.agent.ref.agent]
        case.analysis.done.set()

    async def _judged(self, case: _Case, waits_at: float, tally: _Tally) -> None:
        async with self._analyses.slot(case.analysis.priority, case.analysis):
            async with operation(Kind.PIPELINE, "analysis", trio.current_time() - waits_at):
                case.analysis.verdict = await self._judge(case, tally)
            case.analysis.graced, case.analysis.why = case.graced, ""

    async def _cases(self, view: FleetView, tally: _Tally) -> list[_Case]:
        self._forget_gone(view)
        due = [
            _Case(agent, sight)
            for agent, sight in await self._sights(view)
            if self._is_due(agent.ref, sight)
        ]
        tally.due = len(due)
        return await self._with_folds(due) if due else due

    async def _with_folds(self, cases: Sequence[_Case]) -> list[_Case]:
        """Those whose fold could be had, with what it shows."""
        async with operation(Kind.CACHE, "folds") as looking_up:
            folds = await self._folds_of(cases, looking_up)
        known = [case for case in cases if case.agent.ref in folds]
        async with operation(Kind.COMPUTATION, "signals") as detecting:
            detecting.used("runs", len(known))
            for case in known:
                fold = folds[case.agent.ref]
                found = signals(fold, self.setup.detectors, case.sight.quiet_s)
                case.found = found + _duplicating(self._works.peers(case.agent.ref.agent))
                # The fold may be ahead of the view by what was read a moment ago.
                case.sight = replace(case.sight, digest=fold.digest())
                case.agent = replace(case.agent, digest=case.sight.digest)
        return known

    def _is_due(self, ref: AgentRef, sight: Sight) -> bool:
        if self._discarded.get(ref) == sight.digest.fingerprint:
            return False
        memo = self.memos.get(ref)
        return memo is None or is_due(memo, sight, self.setup.limits)

    def _forget_gone(self, view: FleetView) -> None:
        """Forget the runs that left the view, or that their agent's new run replaced."""
        agents = view.agents
        for ref in (*self._watch.runs(), *self.memos):
            now = agents.get(ref.agent)
            # What is being judged is forgotten by a later sweep.
            if (now is None or now.ref != ref) and ref.agent not in self._under_way:
                self.memos.pop(ref, None)
                self._watch.forget(ref)
                self._discarded.pop(ref, None)
        for agent in [agent for agent in self._works if agent not in agents]:
            self._works.forget(agent)

    async def _sights(self, view: FleetView) -> list[tuple[AgentView, Sight]]:
        """What is seen of each agent, once all works that changed have been compared."""
        now_at, now_utc = trio.current_time(), self.ports.now_utc()
        self._watch.begin(now_at)
        ages = [
            (agent, agent.digest, *self._watch.look(agent, now_at, now_utc))
            for agent in view.agents.values()
            if agent.digest is not None
        ]
        noted = 0
        for agent, _, quiet_s, _ in ages:
            if view.is_gone(agent.ref.agent):
                self._works.forget(agent.ref.agent)
            elif self._note_work(agent, quiet_s):
                noted += 1
                if noted % _NOTED_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
        while self._works.settle(_NOTED_AT_ONCE):
            await trio.lowlevel.checkpoint()
        return [
            (agent, Sight(digest, quiet_s, known_s, _names(self._works.peers(agent.ref.agent))))
            for agent, digest, quiet_s, known_s in ages
        ]

    def _note_work(self, agent: AgentView, quiet_s: float) -> bool:
        """Bring one agent's place among the works up to date; True if that took work."""
        digest, name = agent.digest, agent.ref.agent
        ended = digest is None or digest.end is not None or digest.activity is Activity.ENDED
        if (
            digest is None
            or ended
            or digest.gave_up
            or not digest.written
            or quiet_s > WORK_QUIET_S
        ):
            self._works.forget(name)
            return False
        if self._works.version(name) == digest.fingerprint:
            return False
        work = Work(name, digest.goal, digest.written, agent.parent)
        self._works.note(work, digest.fingerprint)
        return True

    async def _folds_of(
        self, cases: Sequence[_Case], looking_up: Operation
    ) -> dict[AgentRef, Trajectory]:
        """The folds, from memory or in one round trip; those of a lost store are absent."""
        refs = [case.agent.ref for case in cases]
        folds = {ref: fold for ref in refs if (fold := self.folds.get(ref)) is not None}
        missing = [case for case in cases if case.agent.ref not in folds]
        looking_up.used("hits", len(folds))
        looking_up.used("misses", len(missing))
        if missing:
            try:
                stored = await self.ports.store.trajectories([case.agent.ref for case in missing])
            except StoreError as error:
                log.warning("store.lost", during="sweep", error=str(error), waiting=len(missing))
                return folds
            for case in missing:
                ref = case.agent.ref
                # What was folded while we waited is newer than what the store gave.
                fold = self.folds.get(ref) or self._decoded(case, stored.get(ref))
                if fold is not None:
                    folds[ref] = fold
        return folds

    def _decoded(self, case: _Case, data: bytes | None) -> Trajectory | None:
        if data is None:
            return None
        ref = case.agent.ref
        try:
            return self.ports.codec.decode(data)
        except StoreRefused as error:
            if ref not in self._discarded:
                log.error("trajectory.discarded", agent=ref.agent, error=str(error))
            self._discarded[ref] = case.sight.digest.fingerprint
            return None

    def _consider(self, case: _Case) -> bool:
        """Note what was seen of this agent; True if the judge is to be asked now."""
        ref, sight, limits = case.agent.ref, case.sight, self.setup.limits
        case.question = question_hash(sight.digest, case.found)
        deadline_s = next_quiet_deadline(sight.digest, self.setup.detectors)
        memo = after_look(self.memos.get(ref, Memo()), sight, deadline_s)
        self.memos[ref] = memo
        now_at = trio.current_time()
        return is_worth_asking(memo, case.question, sight, case.found, now_at, limits)

    async def _add_earlier(self, cases: Sequence[_Case]) -> None:
        """Fetch the earlier verdicts of all cases in one round trip; absent if that fails."""
        if not cases or "verdicts" not in self.ports.judge.wants:
            return
        agents = [case.agent.ref.agent for case in cases]
        with trio.move_on_after(self.setup.context_timeout_s):
            try:
                earlier = await self.ports.store.recent_verdicts(
                    agents, self.setup.verdicts_in_context
                )
            except StoreError as error:
                log.warning("store.lost", during="context", error=str(error), waiting=len(cases))
                return
            for case in cases:
                case.earlier = earlier.get(case.agent.ref.agent, ())

    async def _judge(self, case: _Case, tally: _Tally) -> Verdict:
        digest = case.sight.digest
        started_at = trio.current_time()
        context = await self._context(case)
        asked = case.question
        if case.urgent:
            # Another question to a judge that remembers its answers: it is asked anew.
            asked = digest_of(f"{asked}|{self.ports.now_utc().isoformat()}")
        question = Question(case.agent.ref, digest, case.found, case.sight.quiet_s, context, asked)
        judgement, by = await self._ask(question, case.analysis)
        answered = by.judge != NOBODY
        given = checked(judgement, digest.steps)
        known_s = self._watch.known_s(case.agent.ref, trio.current_time())
        judgement = with_grace(given, known_s, self.setup.limits)
        case.graced = given.needs_steering and not judgement.needs_steering
        tally.judged += answered
        tally.failed += not answered
        now_utc = self.ports.now_utc()
        tally.cost_usd += by.usage.cost_usd
        by = replace(by, input_hash=case.question, latency_s=trio.current_time() - started_at)
        ref = case.agent.ref
        verdict = Verdict(
            digest_of(f"{ref.agent}|{ref.run}|{case.question}|{now_utc.isoformat()}"),
            case.agent.ref,
            now_utc,
            digest.steps,
            judgement,
            case.found,
            by,
            tuple(part.name for part in context if part.text is None),
        )
        await self._tell(case, verdict)
        return verdict

    async def _context(self, case: _Case) -> tuple[ContextPart, ...]:
        """All parts at once, each within its own time; a part that fails is absent."""
        wanted = sorted(self.ports.judge.wants)
        async with operation(Kind.FILE, "context") as gathering:
            fetched = await run_parallel(
                [partial(self._part, name, case) for name in wanted],
                max_concurrent=len(wanted) or 1,
                item_timeout_s=self.setup.context_timeout_s,
            )
            late = [
                isinstance(part, outcome.Error) and isinstance(part.error, TooSlow)
                for part in fetched
            ]
            gathering.used("late_parts", sum(late))
        return tuple(
            ContextPart(name, None, "timeout") if is_late else part.unwrap()
            for name, part, is_late in zip(wanted, fetched, late, strict=True)
        )

    async def _part(self, name: str, case: _Case) -> ContextPart:
        if name == "verdicts":
            return _earlier_part(case.earlier)
        return await self.ports.context.part(name, case.agent)

    async def _ask(self, question: Question, analysis: _Analysis) -> tuple[Judgement, JudgedBy]:
        """The answer, or "unknown" for a `JudgeError`; other errors are defects: they propagate."""
        try:
            async with (
                self._questions.slot(analysis.priority, analysis) as queued_s,
                operation(Kind.NETWORK, "judge", queued_s),
            ):
                answer = await self._answer(question)
        except JudgeError as error:
            return unknown(error.reason), JudgedBy(NOBODY, input_hash=question.input_hash)
        return answer.judgement, JudgedBy(
            answer.judge, answer.model, answer.prompt_version, question.input_hash, answer.usage
        )

    async def _answer(self, question: Question) -> Answer:
        with trio.move_on_after(self.setup.judge_timeout_s):
            return await self.ports.judge.judge(question)
        # Not left to be a cancellation: a judge that is too slow has failed.
        raise JudgeError("timeout", f"no answer within {self.setup.judge_timeout_s:g} s")

    async def _tell(self, case: _Case, verdict: Verdict) -> None:
        ref, judgement = case.agent.ref, verdict.judgement
        before = self.memos[ref]
        memo = after_answer(
            before,
            case.question,
            case.sight.digest,
            case.found,
            trio.current_time(),
            graced=case.graced,
            answered=verdict.by.judge != NOBODY,
        )
        # First: what a stop keeps from being stored is not said either, nor remembered.
        await self.facts.send(VerdictReached(verdict))
        self.memos[ref] = after_standing(memo, judgement.standing, self.setup.limits)
        log.info(
            "verdict.reached",
            agent=ref.agent,
            run=ref.run,
            standing=judgement.standing,
            phase=judgement.phase,
            steps=verdict.steps,
            signals=[s.kind for s in verdict.signals],
            evidence=list(judgement.evidence),
            alignment=judgement.alignment,
            confidence=judgement.confidence,
            needs_steering=judgement.needs_steering,
            reason=judgement.unknown_reason or judgement.steering_reason,
            judge=verdict.by.judge,
            absent=list(verdict.absent),
            verdict=verdict.id,
            latency_s=round(verdict.by.latency_s, 4),
        )
        await self._tell_standing(case, before, verdict.id)
        if not case.urgent:
            # What somebody asked for besides is no sign that the sweep gets on.
            self.pulse.beat()

    async def _reaffirm(self, case: _Case) -> None:
        """Let an unchanged trajectory agree with its own last verdict; a changed one does not."""
        ref = case.agent.ref
        before = self.memos[ref]
        if case.question != before.question:
            return
        self.memos[ref] = after_standing(before, before.candidate, self.setup.limits)
        last = case.agent.verdict
        await self._tell_standing(case, before, last.id if last else "")

    async def _tell_standing(self, case: _Case, before: Memo, verdict_id: str) -> None:
        ref = case.agent.ref
        held = self.memos[ref].held
        if held is not before.held:
            log.info(
                "standing.changed",
                agent=ref.agent,
                before=before.held,
                after=held,
                verdict=verdict_id,
            )
            await self.facts.send(StandingChanged(ref, before.held, held, verdict_id))


def _earlier_part(earlier: tuple[Verdict, ...] | None) -> ContextPart:
    if earlier is None:
        return ContextPart("verdicts", None, "store_unavailable")
    lines = [f"{v.at_utc:%H:%M:%S} {v.judgement.standing} {v.judgement.summary}" for v in earlier]
    return ContextPart("verdicts", "\n".join(lines))


def _names(peers: Peers) -> tuple[str, ...]:
    return tuple(peer for peer, _ in peers)


def _duplicating(peers: Peers) -> tuple[Signal, ...]:
    """A suspicion of an agent that seems to do the same work as others."""
    if not peers:
        return ()
    return (
        Signal(
            SignalKind.DUPLICATING,
            Severity.SUSPICION,
            (),
            peers[0][1],
            SAME_GOAL_AND_FILE,
            peers=_names(peers),
        ),
    )


async def guard_trajectories(
    guardian: Guardian,
    view: Callable[[], FleetView],
    interval_s: float,
    *,
    rounds: Rounds[SweepFinished] | None = None,
    examinations: Examinations | None = None,
    swept: Callable[[SweepFinished], None] = lambda _: None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Sweep now, on the grid of every `interval_s`, and when `rounds` is asked; until cancelled.

    Closes `facts`. Started: when the first sweep is done. Sweeps do not overlap; one that is late
    stands for all that were missed. `examinations` are attended to beside them. A judge that fails
    with a `JudgeError` makes verdicts "unknown", a failing store leaves out what it did not give;
    both are told. Any other exception is a defect, of a judge too, and propagates, in a group.
    """

    async def sweep(coalesced: int) -> SweepFinished:
        async with operation(Kind.BATCH, "sweep"):
            finished = await guardian.sweep(view(), coalesced)
        guardian.pulse.beat()
        log.info(
            "sweep.finished",
            agents=finished.agents,
            due=finished.due,
            asked=finished.asked,
            judged=finished.judged,
            failed=finished.failed,
            coverage=None if finished.coverage is None else round(finished.coverage, 4),
            cost_usd=round(finished.cost_usd, 6),
            coalesced=finished.coalesced,
            duration_s=round(finished.duration_s, 4),
        )
        await guardian.facts.send(finished)
        swept(finished)
        return finished

    rounds = rounds or Rounds("guardian", guardian.ports.now_utc)
    async with guardian.facts, trio.open_nursery() as nursery:
        if examinations is not None:
            nursery.start_soon(
                examinations.attend, lambda agents, tell: guardian.examine(view(), agents, tell)
            )
        await rounds.run(interval_s, sweep, guardian.pulse, task_status=task_status)
