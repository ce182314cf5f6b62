"""Several judges of pairs: all at once and combined; or the one that there is money for.

Laws:

1. A judge that fails, is cut or cannot say has no vote. What more than half of those that
   voted say is the answer; confidence is the median, times the share of all that agreed.
2. Each answer was narrowed by itself, so that no majority talks away what facts show.
3. Want of money is a `JudgeError` "model_no_money", told to the purse: the question is asked
   again later, as where a judge cannot be had.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from custosd.adapters.judges.thrifty import NO_MONEY
from custosd.config.models import RULES
from custosd.core.errors import JudgeError
from custosd.core.money import CONDUCTOR, Limit, Rung
from custosd.core.pairs import PairJudgement
from custosd.core.transcript import Usage
from custosd.flow.ensemble import quorum
from custosd.ports import PairAnswer, PairJudge, PairQuestion, Purse


class EnsemblePairJudge(PairJudge):
    """Asks all of `judges` at once; after `enough` answers (0: all) others have `straggler_s`."""

    def __init__(
        self, judges: Sequence[PairJudge], name: str, *, enough: int = 0, straggler_s: float = 5.0
    ) -> None:
        if not judges:
            raise ValueError("an ensemble of no judges answers nothing")
        self._judges = tuple(judges)
        self._name = name
        self._enough = enough or len(judges)
        self._straggler_s = straggler_s

    async def compare(self, question: PairQuestion) -> PairAnswer:
        """See the port. Raises "no_judge_answered", or "model_no_money" where that is all."""
        found = await quorum(
            [partial(_heard, judge, question) for judge in self._judges],
            lambda heard: sum(isinstance(each, PairAnswer) for each in heard) >= self._enough,
            straggler_s=self._straggler_s,
        )
        for member in found.members:
            # A defect, which `_heard` let through: it is nobody's vote, and is not hidden.
            if error := getattr(member, "error", None):
                raise error
        answers = [heard for heard in found.values if isinstance(heard, PairAnswer)]
        if not answers:
            reasons = [heard.reason for heard in found.values if isinstance(heard, JudgeError)]
            poor = len(reasons) == len(self._judges) and set(reasons) == {NO_MONEY}
            reason = NO_MONEY if poor else "no_judge_answered"
            raise JudgeError(reason, f"{self._name}: {', '.join(reasons)}")
        rules_alone = all(answer.judge == RULES for answer in answers)
        return PairAnswer(
            combined_pair([answer.judgement for answer in answers]),
            RULES if rules_alone else self._name,
            "+".join(sorted({answer.model or answer.judge for answer in answers})),
            "+".join(sorted({answer.prompt_version for answer in answers})),
            sum((answer.usage for answer in answers), Usage()),
        )


def combined_pair(judgements: Sequence[PairJudgement]) -> PairJudgement:
    """What several judgements of one pair come to together; see the module's law 1."""
    voters = [each for each in judgements if each.holds is not None]
    for holds in (True, False):
        agreed = [each for each in voters if each.holds is holds]
        if 2 * len(agreed) > len(voters):
            sure = median(each.confidence for each in agreed) * len(agreed) / len(judgements)
            words = max(agreed, key=lambda each: each.confidence)
            said = next((each.said for each in (words, *agreed) if each.said), "")
            return PairJudgement(holds, sure, words.summary, said)
    return PairJudgement(None)


async def _heard(judge: PairJudge, question: PairQuestion) -> PairAnswer | JudgeError:
    """The answer, or the error as a value: a judge that cannot be had is no defect."""
    try:
        return await judge.compare(question)
    except JudgeError as error:
        return error


@dataclass(frozen=True, slots=True)
class PricedPairJudge:
    """A judge of pairs, and the models that it pays for; none: it costs nothing."""

    name: str
    judge: PairJudge
    models: frozenset[str] = frozenset()


class ThriftyPairJudge(PairJudge):
    """Asks `asked`; as the money runs short `smaller`; once it is gone, nobody."""

    def __init__(
        self, asked: PricedPairJudge, smaller: PricedPairJudge | None, purse: Purse
    ) -> None:
        self._asked = asked
        self._smaller = smaller
        self._purse = purse

    async def compare(self, question: PairQuestion) -> PairAnswer:
        """See the port, and the module's law 3."""
        rung, limit = self._rung(self._asked)
        if rung is Rung.AS_ASKED or (rung is Rung.SMALLER and self._smaller is None):
            try:
                return await self._asked.judge.compare(question)
            except JudgeError as error:
                limit = self._purse.refused(CONDUCTOR) or limit
                if error.reason != NO_MONEY or limit is None:
                    raise
        assert limit is not None  # noqa: S101 - a lower rung is some limit's
        smaller = self._smaller
        if smaller is not None and self._rung(smaller)[0] is not Rung.RULES:
            try:
                answer = await smaller.judge.compare(question)
            except JudgeError as error:
                if error.reason != NO_MONEY:
                    raise
            else:
                self._purse.skipped(CONDUCTOR, self._asked.name, smaller.name, limit)
                return answer
        self._purse.skipped(CONDUCTOR, self._asked.name, RULES, limit)
        raise JudgeError(NO_MONEY, f"no money for {self._asked.name}: see `custosd budget show`")

    def _rung(self, priced: PricedPairJudge) -> tuple[Rung, Limit | None]:
        """Where a judge stands: shut where all its models are, short where any of them is."""
        found = [self._purse.rung(CONDUCTOR, model) for model in sorted(priced.models)]
        lower = [one for one in found if one[0] is not Rung.AS_ASKED]
        if not lower:
            return Rung.AS_ASKED, None
        if all(rung is Rung.RULES for rung, _ in found):
            return found[0]
        return Rung.SMALLER, lower[0][1]
