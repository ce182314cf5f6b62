"""The judge of pairs that needs no model: deterministic, free, instant."""

from custosd.core.pairs import judge_by_rules
from custosd.ports import PairAnswer, PairJudge, PairQuestion

PROMPT_VERSION = "pair-rules-1"


class RulesPairJudge(PairJudge):
    """Says what places and words can defend, and nothing otherwise; never fails."""

    async def compare(self, question: PairQuestion) -> PairAnswer:
        """Judge by the suspicion alone; never waits."""
        judgement = judge_by_rules(question.suspicion)
        return PairAnswer(judgement, judge="rules", prompt_version=PROMPT_VERSION)
