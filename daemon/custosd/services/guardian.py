"""Judges where each agent is going.

    FleetView --> [ is_due ] --> [ signals ] --> [ is_worth_asking ] --> Judge --> VerdictReached
                                                                  └── StandingChanged

What is due, worth asking and to be held is decided in `custosd.core.guardian`, and
what a trajectory shows in `custosd.core.detectors`; this module only fetches, asks at
most so many at once, and tells. A sweep takes two round trips to the store, however
many agents there are: the folds that are not in memory, and the earlier verdicts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import structlog
import trio

from custosd.core.agents import AgentId, AgentRef
from custosd.core.detectors import DetectorLimits, next_quiet_deadline, question_hash, signals
from custosd.core.errors import JudgeError, StoreError
from custosd.core.facts import Fact, StandingChanged, SweepFinished, VerdictReached
from custosd.core.folds import Folds
from custosd.core.guardian import (
    GuardianLimits,
    Memo,
    after_answer,
    after_standing,
    checked,
    is_due,
    is_worth_asking,
    suspicions,
    unknown,
    with_grace,
)
from custosd.core.overlap import Work, duplicates
from custosd.core.signals import Severity, Signal, SignalKind
from custosd.core.trajectory import Trajectory, TrajectoryDigest
from custosd.core.transcript import digest_of
from custosd.core.verdicts import JudgedBy, Judgement, Verdict
from custosd.core.view import AgentView, FleetView
from custosd.flow.pulse import Pulse
from custosd.ports import (
    Answer,
    ContextPart,
    ContextSource,
    Judge,
    Question,
    Store,
    TrajectoryCodec,
)

log = structlog.get_logger()

NOBODY = "none"
"""Who judged, where the judge gave no answer."""


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


@dataclass(slots=True)
class _Tally:
    due: int = 0
    asked: int = 0
    judged: int = 0
    failed: int = 0


@dataclass(slots=True)
class _Case:
    """One agent in one sweep."""

    agent: AgentView
    quiet_s: float
    found: tuple[Signal, ...] = ()
    question: str = ""
    earlier: tuple[Verdict, ...] | None = None


@dataclass(slots=True)
class Guardian:
    """The guardian's memory, and one sweep as a method; `guard_trajectories` runs it."""

    ports: GuardianPorts
    setup: GuardianSetup
    folds: Folds
    facts: trio.MemorySendChannel[Fact]
    pulse: Pulse
    memos: dict[AgentId, Memo] = field(default_factory=dict)

    def remember(self, view: FleetView) -> None:
        """Take up from a restored view: what was asked before is not asked again."""
        for agent in view.agents.values():
            if agent.digest is None or agent.verdict is None:
                continue
            verdict = agent.verdict
            asked = question_hash(agent.digest, verdict.signals) == verdict.by.input_hash
            self.memos[agent.ref.agent] = Memo(
                fingerprint=agent.digest.fingerprint if asked else "",
                question=verdict.by.input_hash,
                kinds=suspicions(verdict.signals),
                activity=agent.digest.activity if asked else None,
                held=agent.standing,
                candidate=agent.standing,
                look_again_s=_look_again(agent.digest, self.setup.detectors, 0.0),
            )

    async def sweep(self, view: FleetView) -> SweepFinished:
        """Look at every agent once; judge those that are due and worth asking about."""
        started_at = trio.current_time()
        tally = _Tally()
        cases = await self._cases(view, tally)
        asked = [case for case in cases if self._consider(case)]
        tally.asked = len(asked)
        await self._add_earlier(asked)
        asking, judging = (
            trio.CapacityLimiter(self.setup.concurrency),
            trio.CapacityLimiter(self.setup.judge_concurrency),
        )

        async def one(case: _Case) -> None:
            async with asking:
                await self._judge(case, judging, tally)

        async with trio.open_nursery() as nursery:
            for case in asked:
                nursery.start_soon(one, case)
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
        )

    async def _cases(self, view: FleetView, tally: _Tally) -> list[_Case]:
        now = self.ports.now_utc()
        due: list[_Case] = []
        for agent in view.agents.values():
            if agent.digest is None:
                continue
            quiet_s = max(0.0, (now - (agent.grown_utc or now)).total_seconds())
            memo = self.memos.get(agent.ref.agent)
            if memo is None or is_due(memo, agent.digest, quiet_s):
                due.append(_Case(agent, quiet_s))
        tally.due = len(due)
        if not due:
            return due
        folds = await self._folds_of([case.agent.ref for case in due])
        overlaps = _overlaps(view)
        known = [case for case in due if case.agent.ref.agent in folds]
        for case in known:
            fold = folds[case.agent.ref.agent]
            found = signals(fold, self.setup.detectors, case.quiet_s)
            case.found = found + overlaps.get(case.agent.ref.agent, ())
            # The fold may be ahead of the view by what was read a moment ago.
            case.agent = replace(case.agent, digest=fold.digest())
        return known

    async def _folds_of(self, refs: Sequence[AgentRef]) -> dict[AgentId, Trajectory]:
        """The folds, from memory or in one round trip; those of a lost store are absent."""
        folds = {ref.agent: fold for ref in refs if (fold := self.folds.get(ref)) is not None}
        missing = [ref for ref in refs if ref.agent not in folds]
        if missing:
            try:
                stored = await self.ports.store.trajectories([ref.agent for ref in missing])
            except StoreError as error:
                log.warning("store.lost", during="sweep", error=str(error), waiting=len(missing))
                return folds
            for ref in missing:
                # What was folded while we waited is newer than what the store gave.
                fresh = self.folds.get(ref)
                if fresh is not None:
                    folds[ref.agent] = fresh
                elif ref.agent in stored:
                    folds[ref.agent] = self.ports.codec.decode(stored[ref.agent])
        return folds

    def _consider(self, case: _Case) -> bool:
        """Note what was seen of this agent; True if the judge is to be asked now."""
        digest = case.agent.digest
        assert digest is not None  # noqa: S101 - `_cases` takes no others
        agent = case.agent.ref.agent
        case.question = question_hash(digest, case.found)
        memo = replace(
            self.memos.get(agent, Memo()),
            fingerprint=digest.fingerprint,
            look_again_s=_look_again(digest, self.setup.detectors, case.quiet_s),
        )
        self.memos[agent] = memo
        now_at = trio.current_time()
        return is_worth_asking(memo, case.question, digest, case.found, now_at, self.setup.limits)

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

    async def _judge(self, case: _Case, judging: trio.CapacityLimiter, tally: _Tally) -> None:
        digest = case.agent.digest
        assert digest is not None  # noqa: S101 - `_cases` takes no others
        started_at = trio.current_time()
        context = await self._context(case)
        question = Question(
            case.agent.ref, digest, case.found, case.quiet_s, context, case.question
        )
        judgement, by = await self._ask(question, judging)
        answered = by.judge != NOBODY
        known_s = (self.ports.now_utc() - case.agent.seen_utc).total_seconds()
        judgement = with_grace(checked(judgement, digest.steps), known_s, self.setup.limits)
        tally.judged += answered
        tally.failed += not answered
        now_utc = self.ports.now_utc()
        by = replace(by, latency_s=trio.current_time() - started_at)
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

    async def _context(self, case: _Case) -> tuple[ContextPart, ...]:
        """All parts at once, each within its own time; a part that fails is absent."""
        wanted = sorted(self.ports.judge.wants)
        parts = {name: ContextPart(name, None, "timeout") for name in wanted}
        if "verdicts" in parts:
            parts["verdicts"] = _earlier_part(case.earlier)

        async def fetch(name: str) -> None:
            with trio.move_on_after(self.setup.context_timeout_s):
                parts[name] = await self.ports.context.part(name, case.agent)

        async with trio.open_nursery() as nursery:
            for name in wanted:
                if name != "verdicts":
                    nursery.start_soon(fetch, name)
        return tuple(parts.values())

    async def _ask(
        self, question: Question, judging: trio.CapacityLimiter
    ) -> tuple[Judgement, JudgedBy]:
        answer: Answer | None = None
        reason = "timeout"
        async with judging:
            with trio.move_on_after(self.setup.judge_timeout_s):
                try:
                    answer = await self.ports.judge.judge(question)
                except JudgeError as error:
                    reason = error.reason
        if answer is None:
            return unknown(reason), JudgedBy(NOBODY, input_hash=question.input_hash)
        return answer.judgement, JudgedBy(
            answer.judge, answer.model, answer.prompt_version, question.input_hash, answer.usage
        )

    async def _tell(self, case: _Case, verdict: Verdict) -> None:
        digest = case.agent.digest
        assert digest is not None  # noqa: S101 - `_cases` takes no others
        agent = case.agent.ref.agent
        judgement = verdict.judgement
        # A question that got no answer is asked again at the next sweep.
        question = "" if verdict.by.judge == NOBODY else case.question
        before = self.memos[agent]
        memo = after_answer(before, question, digest, case.found, trio.current_time())
        self.memos[agent] = after_standing(memo, judgement.standing, self.setup.limits)
        log.info(
            "verdict.reached",
            agent=agent,
            run=verdict.ref.run,
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
        await self.facts.send(VerdictReached(verdict))
        await self._tell_standing(case, before, verdict.id)
        self.pulse.beat()

    async def _reaffirm(self, case: _Case) -> None:
        agent = case.agent.ref.agent
        before = self.memos[agent]
        self.memos[agent] = after_standing(before, before.candidate, self.setup.limits)
        last = case.agent.verdict
        await self._tell_standing(case, before, last.id if last else "")

    async def _tell_standing(self, case: _Case, before: Memo, verdict_id: str) -> None:
        ref = case.agent.ref
        held = self.memos[ref.agent].held
        if held is not before.held:
            log.info(
                "standing.changed",
                agent=ref.agent,
                before=before.held,
                after=held,
                verdict=verdict_id,
            )
            await self.facts.send(StandingChanged(ref, before.held, held, verdict_id))


def _look_again(digest: TrajectoryDigest, limits: DetectorLimits, quiet_s: float) -> float | None:
    """The quiet time at which to look again without growth; None once it has passed."""
    deadline_s = next_quiet_deadline(digest, limits)
    return deadline_s if deadline_s is not None and quiet_s < deadline_s else None


def _earlier_part(earlier: tuple[Verdict, ...] | None) -> ContextPart:
    if earlier is None:
        return ContextPart("verdicts", None, "store_unavailable")
    lines = [f"{v.at_utc:%H:%M:%S} {v.judgement.standing} {v.judgement.summary}" for v in earlier]
    return ContextPart("verdicts", "\n".join(lines))


def _overlaps(view: FleetView) -> Mapping[AgentId, tuple[Signal, ...]]:
    """A note for each of two agents that seem to do the same work."""
    works = [
        Work(agent.ref.agent, agent.digest.goal, agent.digest.written)
        for agent in view.agents.values()
        if agent.digest is not None and agent.digest.written
    ]
    found: dict[AgentId, tuple[Signal, ...]] = {}
    for one, other, similarity in duplicates(works):
        for agent, peer in ((one, other), (other, one)):
            signal = Signal(
                SignalKind.DUPLICATING, Severity.SUSPICION, (), similarity, 0.0, peers=(peer,)
            )
            found[agent] = (*found.get(agent, ()), signal)
    return found


async def guard_trajectories(
    guardian: Guardian,
    view: Callable[[], FleetView],
    interval_s: float,
    *,
    swept: Callable[[SweepFinished], None] = lambda _: None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Sweep now and every `interval_s`; never returns unless cancelled. Closes `facts`.

    Started: when the first sweep is done. A sweep that takes longer than the interval is
    followed by the next one at once, never overlapped. A failing judge or store makes
    verdicts "unknown", and is told; other errors propagate.
    """
    first = True
    async with guardian.facts:
        due_at = trio.current_time()
        while True:
            with guardian.pulse.waiting():
                await trio.sleep_until(due_at)
            finished = await guardian.sweep(view())
            guardian.pulse.beat()
            log.info(
                "sweep.finished",
                agents=finished.agents,
                due=finished.due,
                asked=finished.asked,
                judged=finished.judged,
                failed=finished.failed,
                duration_s=round(finished.duration_s, 4),
            )
            await guardian.facts.send(finished)
            swept(finished)
            if first:
                first = False
                task_status.started()
            due_at = max(due_at + interval_s, trio.current_time())
