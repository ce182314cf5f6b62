"""The answer that a model may give: its schema, and reading it strictly.

Law: there is no field by which autonomy could grow. A field that is not in the schema makes
the whole answer invalid: who invents one has not understood the question, or was told to.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

import msgspec

from custosd.core.verdicts import Judgement, Phase, Standing, SteeringKind, SteeringReason

SCHEMA_NAME = "verdict"
MOST_EVIDENCE = 16

StandingWord = Literal[
    "progressing", "stuck", "drifting", "waiting", "idle", "silent", "done", "done_untested",
    "duplicating", "stopped", "unknown",
]  # fmt: skip
PhaseWord = Literal[
    "starting", "exploring", "planning", "implementing", "testing", "debugging", "finishing",
    "waiting", "unknown",
]  # fmt: skip
KindWord = Literal["guidance", "correction", "emergency"]
ReasonWord = Literal[
    "stuck", "drifting", "violating_constraints", "over_engineering", "confused", "idle"
]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
StepNumber = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]


class GivenVerdict(msgspec.Struct, forbid_unknown_fields=True):
    """What a model is asked to give; every field must be there."""

    standing: StandingWord
    phase: PhaseWord
    alignment: Share | None
    confidence: Share
    needs_steering: bool
    steering_kind: KindWord | None
    steering_reason: ReasonWord | None
    message: str
    summary: str
    focus: str
    goal: str
    evidence: Annotated[list[StepNumber], msgspec.Meta(max_length=MOST_EVIDENCE)]


def _word(kind: type[Standing | Phase | SteeringKind | SteeringReason]) -> dict[str, object]:
    return {"type": "string", "enum": [member.value for member in kind]}


def _or_null(schema: dict[str, object]) -> dict[str, object]:
    return {"anyOf": [schema, {"type": "null"}]}


_TEXT: dict[str, object] = {"type": "string"}

# Without bounds of numbers and lengths: some services refuse a schema that has them. They are
# checked here, and asked for in words.
VERDICT_SCHEMA: dict[str, object] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "standing": _word(Standing),
        "phase": _word(Phase),
        "alignment": _or_null({"type": "number"}),
        "confidence": {"type": "number"},
        "needs_steering": {"type": "boolean"},
        "steering_kind": _or_null(_word(SteeringKind)),
        "steering_reason": _or_null(_word(SteeringReason)),
        "message": _TEXT,
        "summary": _TEXT,
        "focus": _TEXT,
        "goal": _TEXT,
        "evidence": {"type": "array", "items": {"type": "integer"}},
    },
    "required": list(GivenVerdict.__struct_fields__),
}


class NotAVerdict(ValueError):
    """The answer is not of the schema; the message says where, and quotes nothing of it."""


def read_verdict(text: str) -> Judgement:
    """The judgement that an answer holds; raises `NotAVerdict`."""
    given = read_strictly(text, GivenVerdict)
    standing = Standing(given.standing)
    return Judgement(
        standing=standing,
        phase=Phase(given.phase),
        alignment=given.alignment,
        confidence=given.confidence,
        needs_steering=given.needs_steering,
        steering_kind=SteeringKind(given.steering_kind) if given.steering_kind else None,
        steering_reason=SteeringReason(given.steering_reason) if given.steering_reason else None,
        message=given.message,
        summary=given.summary,
        focus=given.focus,
        goal=given.goal,
        evidence=tuple(given.evidence),
        unknown_reason="model_unsure" if standing is Standing.UNKNOWN else "",
    )


Given = TypeVar("Given", bound=msgspec.Struct)


def read_strictly(text: str, kind: type[Given]) -> Given:
    """An answer as a model was asked to give it; raises `NotAVerdict`, which quotes nothing."""
    try:
        return msgspec.json.decode(_without_fence(text), type=kind)
    except RecursionError:
        raise NotAVerdict("the answer is nested too deep") from None
    except UnicodeEncodeError:
        raise NotAVerdict("the answer is no Unicode text") from None
    except msgspec.ValidationError as error:
        raise NotAVerdict(_bare(str(error), kind.__struct_fields__)) from None
    except msgspec.DecodeError:
        raise NotAVerdict("the answer is not one JSON object") from None


def _without_fence(text: str) -> str:
    """The object in a Markdown fence: models without structured output put it there."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        return text.strip("`").removeprefix("json").strip()
    return text


def _bare(message: str, fields: Sequence[str]) -> str:
    """What the library says, without what it quotes: a name or a word may be anybody's."""
    field = "|".join(map(re.escape, fields))
    at = re.search(rf" - at `(\$(?:\.(?:{field})|\[\.\.\.\])*)`\Z", message)
    where = f" at {at[1]}" if at else ""
    if "unknown field" in message:
        return "the answer has a field that the schema does not have"
    if "Invalid enum value" in message:
        return f"a word is none of those that the schema has{where}"
    said = re.match(
        r"Expected `[a-z |]{1,30}`(?:, got `[a-z]{1,10}`| (?:<=|>=|of length <=) [0-9.]{1,12})?"
        rf"|Object missing required field `(?:{field})`",
        message,
    )
    return f"{said[0]}{where}" if said else f"a value is not as the schema says{where}"
