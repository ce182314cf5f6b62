"""When to ask about an agent, what to make of the answer, and what to hold of it.

Laws:

1. Equal questions are answered once: a trajectory that did not change costs nothing. One that
   got no answer is asked again at the next sweep, and then after pauses that double: a judge
   that cannot be had, or talks nonsense for money, is not asked for ever.
2. Detectors decide: what they newly find, or no longer find, is asked about at the next
   sweep, and so is what is not confirmed yet; a change without suspicion only at the
   cadence. A verdict that the grace took the edge off is asked for once more after it.
3. What is *held* of an agent changes by agreement. Standings that are read off the
   transcript (waiting, done, stopped ...) hold at once; opinions (stuck, drifting,
   progressing again) need `agreement` sweeps that agree. An unchanged trajectory agrees
   with its own last verdict, a changed one does not. "Unknown" never changes what is held.
4. An answer is outside data: `checked` lets through only what is possible.
5. Time is measured on a clock that does not jump. What the wall clock says is taken only
   for the time before an agent was first seen, and for the last sweep's length.
"""

from dataclasses import dataclass, replace
from datetime import datetime

from custosd.core.agents import AgentRef
from custosd.core.signals import Severity, Signal, SignalKind
from custosd.core.trajectory import Activity, TrajectoryDigest
from custosd.core.verdicts import Judgement, Standing, Verdict
from custosd.core.view import AgentView

OPINIONS = frozenset(
    {Standing.STUCK, Standing.DRIFTING, Standing.DUPLICATING, Standing.PROGRESSING}
)
"""Standings that a judge could be wrong about from one sweep to the next."""

RETRY_S = 60.0
"""The pause after the second question in a row that got no answer; each further one doubles it,
up to the cadence, and to `LONGEST_RETRY_S` where it is the same question."""

LONGEST_RETRY_S = 4 * 3_600.0

ACCUSATIONS = OPINIONS - {Standing.PROGRESSING}

WORK_QUIET_S = 3_600.0
"""Work that has been quiet for longer is not under way any more: it duplicates nothing."""

_OF_SILENCE = frozenset({SignalKind.WAITING, SignalKind.SILENT, SignalKind.IDLE})


@dataclass(frozen=True, slots=True)
class GuardianLimits:
    """`agreement` counts sweeps; the others are seconds (see the configuration's page)."""

    agreement: int = 2
    cadence_s: float = 900.0
    grace_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Sight:
    """What is seen of an agent in one sweep, before anything is fetched for it.

    `quiet_s` since the transcript last grew, `known_s` since the run was met; `peers`
    are the agents that seem to do the same work.
    """

    digest: TrajectoryDigest
    quiet_s: float = 0.0
    known_s: float = float("inf")
    peers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Memo:
    """What the guardian remembers of one run between sweeps.

    `fingerprint` and `peers` are as they were when it was last looked at; `question` the
    hash of the question last answered, `kinds` the suspicions then. `candidate` agreed
    `agreed` times running. `deadline_s`: seconds of quiet at which time alone tells more,
    `passed` whether they had passed. `graced`: the last verdict asked for steering, and
    the grace took that away. `unanswered` is the hash of the question that got no answer
    last, `failures` how many in a row got none.
    """

    fingerprint: str = ""
    question: str = ""
    kinds: frozenset[SignalKind] = frozenset()
    activity: Activity | None = None
    asked_at: float = float("-inf")
    held: Standing = Standing.UNKNOWN
    candidate: Standing = Standing.UNKNOWN
    agreed: int = 0
    deadline_s: float | None = None
    passed: bool = False
    graced: bool = False
    peers: tuple[str, ...] = ()
    unanswered: str = ""
    failures: int = 0

    @property
    def settled(self) -> bool:
        """Nothing is left to confirm."""
        return self.candidate is self.held


class QuietWatch:
    """How long runs have been quiet and known; only one caller, once a sweep and run."""

    def __init__(self) -> None:
        self._runs: dict[AgentRef, _Watched] = {}
        self._swept_at: float | None = None
        self._sweep_s = 0.0

    def begin(self, now_at: float) -> None:
        """A sweep begins: growth that it sees is no older than the sweep before it."""
        self._sweep_s = 0.0 if self._swept_at is None else now_at - self._swept_at
        self._swept_at = now_at

    def look(self, agent: AgentView, now_at: float, now_utc: datetime) -> tuple[float, float]:
        """The seconds that a run with a digest has been quiet, and has been known."""
        assert agent.digest is not None  # noqa: S101 - without a digest nothing ever grew
        run = self._runs.get(agent.ref)
        if run is None:
            quiet_s, known_s = _age(agent.grown_utc, now_utc), _age(agent.seen_utc, now_utc)
            run = _Watched(agent.digest, agent.grown_utc, now_at - quiet_s, now_at - known_s)
            self._runs[agent.ref] = run
        elif run.digest is not agent.digest:
            if _grew(run, agent.digest, agent.grown_utc):
                run.grown_at = now_at - min(_age(agent.grown_utc, now_utc), self._sweep_s)
            run.digest, run.grown_utc = agent.digest, agent.grown_utc
        return now_at - run.grown_at, now_at - run.known_at

    def known_s(self, ref: AgentRef, now_at: float) -> float:
        """For how long this run, which was looked at before, has been known."""
        return now_at - self._runs[ref].known_at

    def runs(self) -> list[AgentRef]:
        """All that are watched."""
        return list(self._runs)

    def forget(self, ref: AgentRef) -> None:
        """Watch this run no more."""
        self._runs.pop(ref, None)


@dataclass(slots=True)
class _Watched:
    digest: TrajectoryDigest
    grown_utc: datetime | None
    grown_at: float
    known_at: float


def _age(then_utc: datetime | None, now_utc: datetime) -> float:
    return max(0.0, (now_utc - then_utc).total_seconds()) if then_utc else 0.0


def _grew(run: _Watched, now: TrajectoryDigest, grown_utc: datetime | None) -> bool:
    """Whether a digest is a new one by growth, and not because words became the turn's end."""
    before = run.digest
    rests = now.activity in {Activity.TURN_ENDED, Activity.WAITING}
    same = (before.steps, before.usage, run.grown_utc) == (now.steps, now.usage, grown_utc)
    return not (rests and same and before.spoke and not now.spoke)


def remembered(
    digest: TrajectoryDigest,
    verdict: Verdict,
    held: Standing,
    question: str,
    deadline_s: float | None,
    known_s: float,
    limits: GuardianLimits,
) -> Memo:
    """The memo of a run whose last verdict is known from before a restart.

    `question` is what would be asked with the verdict's signals now ("" if the verdict
    is no answer); `known_s` how old the run was then. An agreement in progress goes on
    from one; a verdict from within the grace counts as one that it took the edge off.
    """
    asked = question == verdict.by.input_hash
    found, standing = verdict.signals, verdict.judgement.standing
    young = known_s < limits.grace_s
    return Memo(
        fingerprint=digest.fingerprint if asked else "",
        question=verdict.by.input_hash if question else "",
        kinds=suspicions(found),
        activity=digest.activity if asked else None,
        held=held,
        candidate=held if standing is Standing.UNKNOWN else standing,
        agreed=0 if standing is Standing.UNKNOWN else 1,
        deadline_s=deadline_s,
        passed=any(signal.kind in _OF_SILENCE for signal in found),
        graced=young and standing in ACCUSATIONS and not verdict.judgement.needs_steering,
        peers=tuple(p for s in found if s.kind is SignalKind.DUPLICATING for p in s.peers),
    )


def is_due(memo: Memo, sight: Sight, limits: GuardianLimits) -> bool:
    """Whether a sweep must look at this agent at all; False costs nothing."""
    # No question on record: none was asked yet, or the last one got no answer.
    if sight.digest.fingerprint != memo.fingerprint or not memo.question or not memo.settled:
        return True
    if memo.deadline_s is not None and (sight.quiet_s >= memo.deadline_s) != memo.passed:
        return True
    return sight.peers != memo.peers or _grace_ended(memo, sight, limits)


def _grace_ended(memo: Memo, sight: Sight, limits: GuardianLimits) -> bool:
    return memo.graced and sight.known_s >= limits.grace_s


def after_look(memo: Memo, sight: Sight, deadline_s: float | None) -> Memo:
    """The memo once an agent was looked at; `deadline_s` is the next in its present state."""
    return replace(
        memo,
        fingerprint=sight.digest.fingerprint,
        deadline_s=deadline_s,
        passed=deadline_s is not None and sight.quiet_s >= deadline_s,
        peers=sight.peers,
    )


def suspicions(signals: tuple[Signal, ...]) -> frozenset[SignalKind]:
    """The kinds of signals that are more than a note."""
    return frozenset(s.kind for s in signals if s.severity is not Severity.NOTE)


def is_worth_asking(
    memo: Memo,
    question: str,
    sight: Sight,
    signals: tuple[Signal, ...],
    now_at: float,
    limits: GuardianLimits,
) -> bool:
    """Whether the judge is asked now: the question is new, and there is a reason to.

    The one question that is asked twice is that of a grace which has ended since.
    """
    if now_at - memo.asked_at < _pause_s(memo, question, limits):
        return False
    if _grace_ended(memo, sight, limits):
        return True
    if question == memo.question:
        return False
    if not memo.question or not memo.settled:
        return True
    if suspicions(signals) != memo.kinds or sight.digest.activity != memo.activity:
        return True
    return bool(memo.kinds) or now_at - memo.asked_at >= limits.cadence_s


def _pause_s(memo: Memo, question: str, limits: GuardianLimits) -> float:
    """How long nothing is asked after questions that got no answer; 0 after the first."""
    longest_s = LONGEST_RETRY_S if question == memo.unanswered else limits.cadence_s
    return retry_pause_s(memo.failures, longest_s)


def retry_pause_s(failures: int, longest_s: float = LONGEST_RETRY_S) -> float:
    """The pause after so many questions in a row that got no answer; 0 after the first."""
    if failures <= 1:
        return 0.0
    # An exponent that is bounded: failures are counted for weeks.
    return min(RETRY_S * 2.0 ** min(failures - 2, 16), longest_s)


def after_answer(
    memo: Memo,
    question: str,
    digest: TrajectoryDigest,
    signals: tuple[Signal, ...],
    now_at: float,
    *,
    graced: bool = False,
    answered: bool = True,
) -> Memo:
    """The memo once a question was asked, and `answered` or not."""
    return replace(
        memo,
        question=question if answered else "",
        unanswered="" if answered else question,
        failures=0 if answered else memo.failures + 1,
        kinds=suspicions(signals),
        activity=digest.activity,
        asked_at=now_at,
        graced=graced,
    )


def after_standing(memo: Memo, standing: Standing, limits: GuardianLimits) -> Memo:
    """The memo once a sweep found `standing` (anew, or again by an unchanged trajectory)."""
    if standing is Standing.UNKNOWN:
        return replace(memo, candidate=memo.held, agreed=0)
    agreed = memo.agreed + 1 if standing is memo.candidate else 1
    needed = limits.agreement if standing in OPINIONS and memo.held in OPINIONS else 1
    if standing in ACCUSATIONS:
        needed = limits.agreement
    held = standing if agreed >= needed else memo.held
    return replace(memo, held=held, candidate=standing, agreed=agreed)


def checked(judgement: Judgement, steps: int) -> Judgement:
    """The judgement if it is possible; else UNKNOWN with `unknown_reason` "impossible_answer".

    Evidence that names steps which do not exist is left out; an answer whose evidence
    is all of that sort is not believed.
    """
    for share in (judgement.alignment, judgement.confidence):
        if share is not None and not 0.0 <= share <= 1.0:
            return unknown("impossible_answer", judgement)
    if judgement.needs_steering and (
        judgement.steering_kind is None or judgement.steering_reason is None
    ):
        return unknown("impossible_answer", judgement)
    evidence = tuple(n for n in judgement.evidence if 0 <= n < steps)
    if judgement.evidence and not evidence:
        return unknown("evidence_not_found", judgement)
    return replace(judgement, evidence=evidence)


def unknown(reason: str, judgement: Judgement | None = None) -> Judgement:
    """A judgement that says that there is none; asks for no steering."""
    if judgement is None:
        return Judgement(Standing.UNKNOWN, unknown_reason=reason)
    return Judgement(Standing.UNKNOWN, judgement.phase, goal=judgement.goal, unknown_reason=reason)


def with_grace(judgement: Judgement, known_s: float, limits: GuardianLimits) -> Judgement:
    """No steering is asked for an agent that has been known for less than the grace."""
    if known_s >= limits.grace_s or not judgement.needs_steering:
        return judgement
    return replace(
        judgement, needs_steering=False, steering_kind=None, steering_reason=None, message=""
    )
