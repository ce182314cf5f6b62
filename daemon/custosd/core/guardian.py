"""When to ask about an agent, what to make of the answer, and what to hold of it.

Laws:

1. Equal questions are asked once: a trajectory that did not change costs nothing.
2. Detectors decide: what they newly find, or no longer find, is asked about at the next
   sweep; a change without suspicion only at the cadence.
3. What is *held* of an agent changes by agreement. Standings that are read off the
   transcript (waiting, done, stopped ...) hold at once; opinions (stuck, drifting,
   progressing again) need `agreement` sweeps that agree. An unchanged trajectory agrees
   with its own last verdict. "Unknown" never changes what is held.
4. An answer is outside data: `checked` lets through only what is possible.
"""

from dataclasses import dataclass, replace

from custosd.core.signals import Severity, Signal, SignalKind
from custosd.core.trajectory import Activity, TrajectoryDigest
from custosd.core.verdicts import Judgement, Standing

OPINIONS = frozenset(
    {Standing.STUCK, Standing.DRIFTING, Standing.DUPLICATING, Standing.PROGRESSING}
)
"""Standings that a judge could be wrong about from one sweep to the next."""


@dataclass(frozen=True, slots=True)
class GuardianLimits:
    """`agreement` counts sweeps; the others are seconds (see the configuration's page)."""

    agreement: int = 2
    cadence_s: float = 900.0
    grace_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Memo:
    """What the guardian remembers of one agent between sweeps.

    `fingerprint` is the trajectory's when it was last looked at; `question` the hash of
    the question last answered, `kinds` the suspicions then. `candidate` agreed `agreed`
    times running. `look_again_s`: seconds of quiet at which time alone may tell more.
    """

    fingerprint: str = ""
    question: str = ""
    kinds: frozenset[SignalKind] = frozenset()
    activity: Activity | None = None
    asked_at: float = float("-inf")
    held: Standing = Standing.UNKNOWN
    candidate: Standing = Standing.UNKNOWN
    agreed: int = 0
    look_again_s: float | None = None

    @property
    def settled(self) -> bool:
        """Nothing is left to confirm."""
        return self.candidate is self.held


def is_due(memo: Memo, digest: TrajectoryDigest, quiet_s: float) -> bool:
    """Whether a sweep must look at this agent at all; False costs nothing."""
    # No question on record: none was asked yet, or the last one got no answer.
    if digest.fingerprint != memo.fingerprint or not memo.question or not memo.settled:
        return True
    return memo.look_again_s is not None and quiet_s >= memo.look_again_s


def suspicions(signals: tuple[Signal, ...]) -> frozenset[SignalKind]:
    """The kinds of signals that are more than a note."""
    return frozenset(s.kind for s in signals if s.severity is not Severity.NOTE)


def is_worth_asking(
    memo: Memo,
    question: str,
    digest: TrajectoryDigest,
    signals: tuple[Signal, ...],
    now_at: float,
    limits: GuardianLimits,
) -> bool:
    """Whether the judge is asked now: the question is new, and there is a reason to."""
    if question == memo.question:
        return False
    if not memo.question or suspicions(signals) != memo.kinds or digest.activity != memo.activity:
        return True
    return bool(memo.kinds) or now_at - memo.asked_at >= limits.cadence_s


def after_answer(
    memo: Memo, question: str, digest: TrajectoryDigest, signals: tuple[Signal, ...], now_at: float
) -> Memo:
    """The memo once a question was answered (or failed: then `question` is "")."""
    return replace(
        memo,
        question=question,
        kinds=suspicions(signals),
        activity=digest.activity,
        asked_at=now_at,
    )


def after_standing(memo: Memo, standing: Standing, limits: GuardianLimits) -> Memo:
    """The memo once a sweep found `standing` (anew, or again by an unchanged trajectory)."""
    if standing is Standing.UNKNOWN:
        return replace(memo, candidate=memo.held, agreed=0)
    agreed = memo.agreed + 1 if standing is memo.candidate else 1
    needed = limits.agreement if standing in OPINIONS and memo.held in OPINIONS else 1
    if standing in OPINIONS - {Standing.PROGRESSING}:
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
