"""The judge that needs no model: deterministic, free, instant."""

from custosd.core.rules import judge_by_rules
from custosd.ports import Answer, Judge, Question

PROMPT_VERSION = "rules-1"


class RulesJudge(Judge):
    """Says what the detectors can defend, and "unknown" otherwise; never fails."""

    @property
    def wants(self) -> frozenset[str]:
        """Nothing: the digest and the signals are all that rules look at."""
        return frozenset()

    async def judge(self, question: Question) -> Answer:
        """Judge by the question's digest and signals alone; never waits."""
        judgement = judge_by_rules(question.digest, question.signals, question.quiet_s)
        return Answer(judgement, judge="rules", prompt_version=PROMPT_VERSION)
