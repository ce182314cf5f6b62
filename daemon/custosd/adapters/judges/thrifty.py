"""A judge that gives way to cheaper ones as the money runs out.

    under warn_share: the judge ─► above: a smaller one ─► no money: the fallback, the rules

Laws:

1. The rules cost nothing and are always there: want of money makes no verdict "unknown".
2. A judge is asked in another's place for money alone: one that cannot be had for other
   reasons raises its error as ever.
3. Who was judged by another, and because of which limit, is told to the purse.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from custosd.core.agents import AgentId
from custosd.core.errors import JudgeError
from custosd.core.money import Limit, Rung
from custosd.ports import Answer, Judge, Purse, Question

NO_MONEY = "model_no_money"
"""Why a judge could not be had that found no money for its model, or for any of its models."""


@dataclass(frozen=True, slots=True)
class Priced:
    """A judge, and the models that it pays for; none: it costs nothing."""

    name: str
    judge: Judge
    models: frozenset[str] = frozenset()


class ThriftyJudge(Judge):
    """Asks `asked`; as the money runs short `smaller`; once it is gone, the first of `others`.

    `others` are asked only where they are free or there is money for them; the last one is
    free and never fails: the rules.
    """

    def __init__(
        self, asked: Priced, smaller: Priced | None, others: Sequence[Priced], purse: Purse
    ) -> None:
        self._asked = asked
        self._smaller = smaller
        self._others = tuple(others)
        self._purse = purse

    @property
    def wants(self) -> frozenset[str]:
        """All that any of them wants."""
        every = (self._asked, *((self._smaller,) if self._smaller else ()), *self._others)
        return frozenset[str]().union(*(each.judge.wants for each in every))

    async def judge(self, question: Question) -> Answer:
        """See the port."""
        agent = question.ref.agent
        rung, limit = self._rung(agent, self._asked)
        smaller = self._smaller
        if smaller is not None and self._rung(agent, smaller)[0] is Rung.RULES:
            smaller = None
        if rung is Rung.AS_ASKED or (rung is Rung.SMALLER and smaller is None):
            try:
                return await self._asked.judge.judge(question)
            except JudgeError as error:
                # The error decides, and not what the purse remembers: that may be of before.
                limit = self._purse.refused(agent) or limit
                if error.reason != NO_MONEY or limit is None:
                    raise
        assert limit is not None  # noqa: S101 - a lower rung is some limit's
        return await self._instead(question, limit, smaller)

    async def _instead(self, question: Question, limit: Limit, smaller: Priced | None) -> Answer:
        agent = question.ref.agent
        *some, last = self._others
        for each in (smaller, *some):
            if each is None or self._rung(agent, each)[0] is Rung.RULES:
                continue
            try:
                answer = await each.judge.judge(question)
            except JudgeError:
                continue
            self._purse.skipped(agent, self._asked.name, each.name, limit)
            return answer
        self._purse.skipped(agent, self._asked.name, last.name, limit)
        return await last.judge.judge(question)

    def _rung(self, agent: AgentId, priced: Priced) -> tuple[Rung, Limit | None]:
        """Where a judge stands: shut where all its models are, short where any of them is."""
        found = [self._purse.rung(agent, model) for model in sorted(priced.models)]
        lower = [one for one in found if one[0] is not Rung.AS_ASKED]
        if not lower:
            return Rung.AS_ASKED, None
        if all(rung is Rung.RULES for rung, _ in found):
            return found[0]
        return Rung.SMALLER, lower[0][1]
