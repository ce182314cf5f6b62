"""What a model's word may change of what the facts say of two agents: it can confirm or doubt.

A model reads goals and names of files, and an agent may write anything there. Laws:

1. It is asked about pairs that the facts suggest, and says nothing of any other.
2. What rests on places stands, whatever a model says: writes to one place, new files of the
   same names, alike goals in common files. Who denies it makes it less sure, and that is said.
3. What rests on likeness of words alone, a model that reads the words may deny.
4. What the facts only suggest, a model may confirm: never as surely as they would prove it.
5. What there is to a pair is told in words of ours. A model's own come beside them, cleaned
   and bounded, and are left out where they only repeat what the agents wrote.
"""

from custosd.core.narrowing import repeats
from custosd.core.pairs import LIKELY, PairJudgement, Suspicion, in_words, judge_by_rules
from custosd.core.steering import clean_message

DOUBTED = 0.5
"""What is left of a confidence that a model does not share."""

LONGEST_SAID = 300


def narrowed_pair(said: PairJudgement, suspicion: Suspicion, told: str, by: str) -> PairJudgement:
    """A model's judgement of a pair, as far as it counts; `by` is what the model is called here.

    `told` is what it was shown of others' words. "Unknown" comes to what the rules say.
    """
    rules = judge_by_rules(suspicion)
    words = _cleaned(said.summary, told)
    if said.holds is None:
        return PairJudgement(rules.holds, rules.confidence, rules.summary, words)
    if said.holds:
        sure = rules.confidence if rules.holds else min(LIKELY, max(0.0, said.confidence))
        return PairJudgement(True, sure, in_words(suspicion), words)  # noqa: FBT003 - the answer
    if rules.holds and rests_on_places(suspicion):
        sure, summary = rules.confidence * DOUBTED, f"{rules.summary}; {by} doubts it"
        return PairJudgement(True, sure, summary, words)  # noqa: FBT003 - the answer
    sure = min(1.0, max(0.0, said.confidence))
    return PairJudgement(False, sure, in_words(suspicion), words)  # noqa: FBT003 - the answer


def rests_on_places(suspicion: Suspicion) -> bool:
    """Whether there is more to it than words that are alike."""
    return suspicion.clash is not None or bool(suspicion.made_twice or suspicion.paths)


def is_beyond_doubt(suspicion: Suspicion) -> bool:
    """Whether a model need not be asked: both write to a place that is known to be the same."""
    return suspicion.clash is not None and suspicion.clash.sure


def _cleaned(text: str, told: str) -> str:
    clean = clean_message(text, LONGEST_SAID)
    if not any(map(str.isalnum, clean)) or repeats(clean, told):
        return ""
    return clean
