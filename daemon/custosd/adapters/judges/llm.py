"""The judge that asks a model.

    Question ─► fence (scrubbed, only what is new) ─► Model ─► read_verdict ─► narrowed ─► Answer
                                                        └── repaired once, then "unknown"

Laws:

1. An answer that is no verdict comes to "unknown" with the reason, or to what the rules can
   defend; it is not asked for again until the question changes. A provider that cannot be
   had is a `JudgeError`: the question stays open.
2. A question is asked once: equal ones within `remember_s` get the same answer, at no cost.
3. What a model may change of what the rules see is `custosd.core.narrowing`'s to say.
4. A model that does what a line of the data says is not believed: canaries, planted in a
   share of the questions, show it. Each is an operation `canary.MODEL` of the monitor, which
   fails where it is obeyed: their share of failures is the model's susceptibility. Only
   verdicts count: who gives none has not resisted.
"""

from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import trio

from custosd.adapters.judges.asking import asked_twice
from custosd.adapters.judges.canaries import Canaries, Susceptibility, canary_line
from custosd.adapters.judges.prompt import PROMPT_VERSION, Fence, ask
from custosd.adapters.judges.verdict_schema import read_verdict
from custosd.adapters.models.model import Model, ModelError
from custosd.adapters.scrubbing import scrubbed
from custosd.config.models import RULES
from custosd.core.agents import AgentRef
from custosd.core.errors import JudgeError
from custosd.core.narrowing import narrowed
from custosd.core.transcript import Usage
from custosd.core.verdicts import Judgement, Standing
from custosd.flow.background import block_nursery
from custosd.flow.cache import Cache
from custosd.ports import Answer, Judge, Question

WANTS = frozenset({"verdicts", "transcript_tail", "changed_files"})
ANCHOR_CHARS = 400
"""The end of what was sent last; where it stands in the next tail, the new begins."""


@dataclass(frozen=True, slots=True)
class LlmSettings:
    """Bounds of one judge. `canary_share` is the share of questions that hold a canary."""

    most_tokens: int = 12_000
    remember_s: float = 3_600.0
    remembered: int = 10_000
    canary_share: float = 0.02


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question as the cache has it: equal by what it asks, of whom."""

    ref: AgentRef
    input_hash: str
    question: Question = field(compare=False)


@dataclass(slots=True)
class _Answered:
    """An answer as the cache has it; `told`: somebody has heard what it cost."""

    answer: Answer
    told: bool = False


@dataclass(frozen=True, slots=True)
class _Last:
    judgement: Judgement
    anchor: str


class LlmJudge(Judge):
    """Asks `model`; made by `open_llm_judge`, within whose block its calls run."""

    def __init__(self, model: Model, nursery: trio.Nursery, settings: LlmSettings) -> None:
        self.spent = Usage()
        self._canaries = Canaries(model.name, settings.canary_share)
        self._model = model
        self._settings = settings
        self._last: OrderedDict[AgentRef, _Last] = OrderedDict()
        self._answers = Cache[_Asked, _Answered](
            nursery,
            self._ask,
            ttl_s=settings.remember_s,
            most=settings.remembered,
            on_unheard=lambda _key, _error: None,  # the log has it: `model.failed`
        )

    @property
    def wants(self) -> frozenset[str]:
        """The transcript's end, what it changed, and the verdicts before."""
        return WANTS

    @property
    def answers(self) -> Cache[_Asked, _Answered]:
        """What is remembered, and its counts."""
        return self._answers

    @property
    def susceptibility(self) -> Susceptibility:
        """What became of the canaries."""
        return self._canaries.seen

    async def judge(self, question: Question) -> Answer:
        """See the port. What it raises has the reason "model_KIND"."""
        kept = await self._answers.get(_Asked(question.ref, question.input_hash, question))
        if kept.told:
            return replace(kept.answer, usage=Usage())
        # To the first who hears it: whoever began the call may have given up.
        kept.told = True
        return kept.answer

    async def _ask(self, asked: _Asked) -> _Answered:
        question = asked.question
        last = self._last.get(question.ref)
        tail = next((p.text for p in question.context if p.name == "transcript_tail"), None)
        canary = self._canaries.word(question.input_hash)
        fence = ask(
            question,
            last.judgement if last else None,
            tail,
            most_tokens=self._settings.most_tokens,
            sent=last.anchor if last else "",
            canary=canary_line(canary) if canary else "",
        )
        try:
            found = await asked_twice(self._model, fence.prompt, read_verdict)
        except ModelError as error:
            self.spent = self.spent + error.usage
            raise JudgeError(f"model_{error.kind}", str(error)) from error
        self.spent = self.spent + found.usage
        if found.value is None:
            said = Judgement(Standing.UNKNOWN, unknown_reason=found.reason)
        else:
            said = _scrubbed(found.value)
            if canary and self._canaries.obeyed(canary, _texts(said).values()):
                said = Judgement(Standing.UNKNOWN, unknown_reason="model_obeys_data")
        heard = said.standing is not Standing.UNKNOWN or said.unknown_reason == "model_unsure"
        # Also what is no verdict: else a text that makes the model fail would hide an alarm.
        said = narrowed(
            said, question.digest, question.signals, question.quiet_s, _told(question, fence)
        )
        if heard:
            self._remember(question.ref, said, fence)
        model = found.model or self._model.name
        # Where the model said nothing that counts, what stands is the rules' word, not its.
        judge = self._model.name if heard or said.standing is Standing.UNKNOWN else RULES
        answer = Answer(said, judge, model[:100], PROMPT_VERSION, found.usage)
        return _Answered(answer)

    def _remember(self, ref: AgentRef, said: Judgement, fence: Fence) -> None:
        # Only what was sent is behind the anchor. With nothing new sent, the last one stands.
        last = self._last.get(ref)
        anchor = fence.sent[-ANCHOR_CHARS:] or (last.anchor if last else "")
        self._last[ref] = _Last(said, anchor)
        self._last.move_to_end(ref)
        while len(self._last) > self._settings.remembered:
            self._last.popitem(last=False)


def _texts(said: Judgement) -> dict[str, str]:
    return {name: getattr(said, name) for name in ("message", "summary", "focus", "goal")}


def _scrubbed(said: Judgement) -> Judgement:
    """Without secrets: one that was encoded in the data, a model may have decoded."""
    return replace(
        said,
        message=scrubbed(said.message).text,
        summary=scrubbed(said.summary).text,
        focus=scrubbed(said.focus).text,
        goal=scrubbed(said.goal).text,
    )


def _told(question: Question, fence: Fence) -> str:
    """Everything that others wrote of which the model knows."""
    digest = question.digest
    parts = [part.text for part in question.context if part.text and part.name != "transcript_tail"]
    return "\n".join([fence.tail, digest.claim, digest.goal, *parts])


@asynccontextmanager
async def open_llm_judge(
    model: Model,
    settings: LlmSettings = LlmSettings(),
) -> AsyncGenerator[LlmJudge]:
    """A judge for the block; calls that are under way when it is left are cancelled."""
    async with block_nursery("the judge was closed") as nursery:
        yield LlmJudge(model, nursery, settings)
