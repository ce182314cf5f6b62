"""Several judges for one question: all at once and combined, or one after the other.

Laws:

1. A judge that fails, is cut or says "unknown" has no vote; if none is left, nor is there
   a standing.
2. The standing is the majority's of those that voted; where no standing has more than half,
   it is "unknown". Alignment and confidence are medians, and confidence is multiplied by the
   share that agreed: who disagree know less.
3. Steering needs a majority of its own; the mildest kind that they ask for is taken.
4. The words are those of the most confident judge in the majority; nothing is blended.
5. What all of them cost is told, also of those that were outvoted.
6. Whoever waits for an answer has a deadline. A judge that hangs is given up before it, while
   there is time to combine the other answers, or to ask the next judge.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import inf
from statistics import median

import structlog
import trio

from custosd.adapters.judges.thrifty import NO_MONEY
from custosd.core.errors import JudgeError
from custosd.core.transcript import Usage
from custosd.core.verdicts import Judgement, Standing, SteeringKind
from custosd.flow.ensemble import quorum
from custosd.ports import Answer, Judge, Question

log = structlog.get_logger()

MOST_TO_SPARE_S = 10.0
"""For each judge that may still be asked, of the time that there is, at most so much is spared."""

TO_COMBINE_S = 1.0

_MILDEST_FIRST = (SteeringKind.GUIDANCE, SteeringKind.CORRECTION, SteeringKind.EMERGENCY)


class EnsembleJudge(Judge):
    """Asks all of `judges` at once; `name` is what its answers are signed with.

    After `enough` answers (all, by default) the others have `straggler_s` more; no answer
    takes longer than `timeout_s`. Raises the `JudgeError` "no_judge_answered", with each
    one's reason in its message.
    """

    def __init__(
        self,
        judges: Sequence[Judge],
        name: str = "ensemble",
        *,
        enough: int = 0,
        straggler_s: float = 5.0,
        timeout_s: float = inf,
    ) -> None:
        if not judges:
            raise ValueError("an ensemble of no judges answers nothing")
        self._judges = tuple(judges)
        self._name = name
        self._enough = enough or len(judges)
        self._straggler_s = straggler_s
        self._timeout_s = timeout_s

    @property
    def wants(self) -> frozenset[str]:
        """All that any of them wants."""
        return frozenset[str]().union(*(judge.wants for judge in self._judges))

    async def judge(self, question: Question) -> Answer:
        """See the port."""
        found = await quorum(
            [partial(_heard, judge, question) for judge in self._judges],
            lambda heard: sum(isinstance(each, Answer) for each in heard) >= self._enough,
            straggler_s=self._straggler_s,
            timeout_s=min(self._timeout_s, _left_s() - _spared_s(1, TO_COMBINE_S)),
        )
        outcomes = found.values
        answers = [heard for heard in outcomes if isinstance(heard, Answer)]
        failures = [heard.reason for heard in outcomes if isinstance(heard, JudgeError)]
        cut = len(self._judges) - len(outcomes)
        for member in found.members:
            # A defect, which `_heard` let through: it is nobody's vote, and is not hidden.
            if error := getattr(member, "error", None):
                raise error
        if not answers:
            reasons = ", ".join([*failures, *["cut"] * cut])
            poor = not cut and set(failures) == {NO_MONEY}
            reason = NO_MONEY if poor else "no_judge_answered"
            raise JudgeError(reason, f"{self._name}: {reasons}")
        return Answer(
            combined([answer.judgement for answer in answers]),
            self._name,
            "+".join(sorted({answer.model or answer.judge for answer in answers})),
            "+".join(sorted({answer.prompt_version for answer in answers})),
            sum((answer.usage for answer in answers), Usage()),
        )


class FallbackJudge(Judge):
    """Asks the first of `judges`; where it cannot be had, the next, and so on.

    An answer that says "unknown" is an answer. One that does not come is given up before the
    caller's deadline: for each judge behind it an equal share of the time is spared, and at
    most `MOST_TO_SPARE_S`. Raises the last one's `JudgeError`.
    """

    def __init__(self, judges: Sequence[Judge]) -> None:
        if not judges:
            raise ValueError("a chain of no judges answers nothing")
        self._judges = tuple(judges)

    @property
    def wants(self) -> frozenset[str]:
        """All that any of them wants."""
        return frozenset[str]().union(*(judge.wants for judge in self._judges))

    async def judge(self, question: Question) -> Answer:
        """See the port."""
        *most, last = self._judges
        for place, judge in enumerate(most):
            left_s = _left_s() - _spared_s(len(most) - place, MOST_TO_SPARE_S)
            error = JudgeError("timeout", f"no answer in {left_s:.1f} s")
            with trio.move_on_after(left_s):
                heard = await _heard(judge, question)
                if isinstance(heard, Answer):
                    return heard
                error = heard
            log.warning(
                "judge.passed_over", agent=question.ref.agent, reason=error.reason,
                error=str(error),
            )  # fmt: skip
        return await last.judge(question)


def _left_s() -> float:
    """How long whoever waits will go on waiting."""
    return max(0.0, trio.current_effective_deadline() - trio.current_time())


def _spared_s(behind: int, most_s: float) -> float:
    """What is kept of the time left for `behind` more judges."""
    left_s = _left_s()
    return behind * min(most_s, left_s / (behind + 1)) if left_s < inf else 0.0


async def _heard(judge: Judge, question: Question) -> Answer | JudgeError:
    """The answer, or the error as a value: a judge that cannot be had is no defect."""
    try:
        return await judge.judge(question)
    except JudgeError as error:
        return error


def combined(judgements: Sequence[Judgement]) -> Judgement:
    """What several judgements of one question come to together; see the module's laws."""
    voters = [each for each in judgements if each.standing is not Standing.UNKNOWN]
    if not voters:
        return judgements[0]
    standing, votes = Counter(each.standing for each in voters).most_common(1)[0]
    agreed = votes / len(judgements)
    alignments = [each.alignment for each in voters if each.alignment is not None]
    alignment = median(alignments) if alignments else None
    if 2 * votes <= len(voters):
        return Judgement(Standing.UNKNOWN, alignment=alignment, unknown_reason="judges_disagree")
    majority = [each for each in voters if each.standing is standing]
    confidences = [each.confidence for each in majority if each.confidence is not None]
    words = max(majority, key=lambda each: each.confidence or 0.0)
    joint = replace(
        words,
        alignment=alignment,
        confidence=median(confidences) * agreed if confidences else None,
        evidence=tuple(sorted({step for each in majority for step in each.evidence}))[:16],
    )
    return _steered(joint, majority, len(voters))


def _steered(joint: Judgement, majority: Sequence[Judgement], voters: int) -> Judgement:
    steering = [each for each in majority if each.needs_steering and each.steering_kind]
    if 2 * len(steering) <= voters:
        return replace(
            joint, needs_steering=False, steering_kind=None, steering_reason=None, message=""
        )
    words = max(steering, key=lambda each: each.confidence or 0.0)
    kinds = [each.steering_kind for each in steering if each.steering_kind is not None]
    return replace(
        joint,
        needs_steering=True,
        steering_kind=min(kinds, key=_MILDEST_FIRST.index),
        steering_reason=words.steering_reason,
        message=words.message,
    )
