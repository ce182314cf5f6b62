"""The answer that a model may give about a pair of agents: its schema, and reading it strictly.

Law: there is no field by which it could name another pair, or ask for anything.
"""

from typing import Annotated, Literal

import msgspec

from custosd.adapters.judges.verdict_schema import Share, read_strictly
from custosd.core.pairs import PairJudgement

PAIR_SCHEMA_NAME = "pair"

AnswerWord = Literal["yes", "no", "unknown"]
_HOLDS = {"yes": True, "no": False, "unknown": None}


class GivenAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """What a model is asked to give; every field must be there."""

    answer: AnswerWord
    confidence: Share
    summary: Annotated[str, msgspec.Meta(max_length=10_000)]


PAIR_SCHEMA: dict[str, object] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "answer": {"type": "string", "enum": list(_HOLDS)},
        "confidence": {"type": "number"},
        "summary": {"type": "string"},
    },
    "required": list(GivenAnswer.__struct_fields__),
}


def read_pair_answer(text: str) -> PairJudgement:
    """The judgement that an answer holds; raises `NotAVerdict`."""
    given = read_strictly(text, GivenAnswer)
    return PairJudgement(_HOLDS[given.answer], given.confidence, given.summary)
