"""Asking a model for an answer of a schema: once, and once more where it gave none.

Laws: what is asked again says what was wrong, in words of ours, and never holds the answer;
failures that the question itself brings about are no errors: asked again, they would come again.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from custosd.adapters.judges.prompt import repair
from custosd.adapters.judges.verdict_schema import NotAVerdict
from custosd.adapters.models.model import Model, ModelError, Prompt
from custosd.core.transcript import Usage

log = structlog.get_logger()

T = TypeVar("T")

MALFORMED = "malformed_answer"
"""Why there is no answer where the model gave none of the schema, asked twice."""

_MODEL_TROUBLE = frozenset({"truncated", "refused", "too_large", "answer_too_large"})


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """What the model said; `value` None: nothing of the schema, for `reason`.

    `model` is what the provider calls who answered, "" where nobody did.
    """

    value: T | None
    reason: str
    model: str
    usage: Usage


async def asked_twice(model: Model, prompt: Prompt, read: Callable[[str], T]) -> Found[T]:
    """The answer as `read` (which raises `NotAVerdict`) understands it.

    Raises `ModelError` where the provider cannot be had: with the usage of all that was asked.
    """
    usage, answered_by, asked = Usage(), "", prompt
    for again in (False, True):
        try:
            reply = await model.ask(asked)
        except ModelError as error:
            usage = usage + error.usage
            if str(error.kind) in _MODEL_TROUBLE:
                return Found(None, f"model_{error.kind}", "", usage)
            raise ModelError(error.kind, str(error), after_s=error.after_s, usage=usage) from error
        usage, answered_by = usage + reply.usage, reply.model
        try:
            return Found(read(reply.text), "", answered_by, usage)
        except NotAVerdict as error:
            log.warning(
                "answer.refused",
                model=model.name,
                reason=str(error),
                again=not again,
                answer_length=len(reply.text),
                answer_sha256=_sha256(reply.text),
            )
            asked = repair(prompt, str(error))
    return Found(None, MALFORMED, answered_by, usage)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
