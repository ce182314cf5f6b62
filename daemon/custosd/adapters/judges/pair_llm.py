"""The judge of pairs that asks a model.

    PairQuestion ─► fence (scrubbed) ─► Model ─► read_pair_answer ─► narrowed_pair ─► PairAnswer
                                          └── repaired once, then the rules' word

Laws:

1. A pair of which the facts leave no doubt is not asked about: no word could change it.
2. A model is asked once about equal data within `remember_s`, whichever agents they are of.
3. What a model may change of what the facts say is `custosd.core.pair_narrowing`'s to say; what
   it did not say is the rules' word, and signed so.
4. A provider that cannot be had is a `JudgeError`: the question stays open.
5. Whoever obeys a planted line is not believed; see `canaries`.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import trio

from custosd.adapters.judges.asking import asked_twice
from custosd.adapters.judges.canaries import Canaries, Susceptibility, canary_line
from custosd.adapters.judges.llm import LlmSettings
from custosd.adapters.judges.pair_prompt import (
    PAIR_PROMPT_VERSION,
    PairData,
    pair_data,
    pair_prompt,
)
from custosd.adapters.judges.pair_rules import RulesPairJudge
from custosd.adapters.judges.pair_schema import read_pair_answer
from custosd.adapters.models.model import Model, ModelError
from custosd.adapters.scrubbing import scrubbed
from custosd.config.models import RULES
from custosd.core.errors import JudgeError
from custosd.core.pair_narrowing import is_beyond_doubt, narrowed_pair
from custosd.core.pairs import PairJudgement
from custosd.core.transcript import Usage
from custosd.flow.background import block_nursery
from custosd.flow.cache import Cache
from custosd.ports import PairAnswer, PairJudge, PairQuestion


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question as the cache has it: equal by what is sent."""

    key: str
    data: PairData = field(compare=False)


@dataclass(slots=True)
class _Said:
    """What the model said of some data; `told`: somebody has heard what it cost."""

    judgement: PairJudgement
    model: str
    usage: Usage
    told: bool = False


class LlmPairJudge(PairJudge):
    """Asks `model`; made by `open_llm_pair_judge`, within whose block its calls run."""

    def __init__(self, model: Model, nursery: trio.Nursery, settings: LlmSettings) -> None:
        self.spent = Usage()
        self._model = model
        self._settings = settings
        self._canaries = Canaries(model.name, settings.canary_share)
        self._rules = RulesPairJudge()
        self._answers = Cache[_Asked, _Said](
            nursery,
            self._ask,
            ttl_s=settings.remember_s,
            most=settings.remembered,
            on_unheard=lambda _key, _error: None,  # the log has it: `model.failed`
        )

    @property
    def susceptibility(self) -> Susceptibility:
        """What became of the canaries."""
        return self._canaries.seen

    async def compare(self, question: PairQuestion) -> PairAnswer:
        """See the port. What it raises has the reason "model_KIND"."""
        if is_beyond_doubt(question.suspicion):
            return await self._rules.compare(question)
        data = pair_data(question, self._settings.most_tokens)
        said = await self._answers.get(_Asked(data.key, data))
        usage = Usage() if said.told else said.usage
        # To the first who hears it: whoever began the call may have given up.
        said.told = True
        name = self._model.name
        judgement = narrowed_pair(said.judgement, question.suspicion, data.told, name)
        judge = RULES if said.judgement.holds is None else name
        return PairAnswer(judgement, judge, said.model[:100], PAIR_PROMPT_VERSION, usage)

    async def _ask(self, asked: _Asked) -> _Said:
        canary = self._canaries.word(asked.key)
        prompt = pair_prompt(asked.data, canary_line(canary) if canary else "")
        try:
            found = await asked_twice(self._model, prompt, read_pair_answer)
        except ModelError as error:
            self.spent = self.spent + error.usage
            raise JudgeError(f"model_{error.kind}", str(error)) from error
        self.spent = self.spent + found.usage
        said = PairJudgement(None)
        if found.value is not None:
            said = replace(found.value, summary=scrubbed(found.value.summary).text)
            if canary and self._canaries.obeyed(canary, [said.summary]):
                said = PairJudgement(None)
        return _Said(said, found.model or self._model.name, found.usage)


_DEFAULTS = LlmSettings()


@asynccontextmanager
async def open_llm_pair_judge(
    model: Model, settings: LlmSettings = _DEFAULTS
) -> AsyncGenerator[LlmPairJudge]:
    """A judge for the block; calls that are under way when it is left are cancelled."""
    async with block_nursery("the judge of pairs was closed") as nursery:
        yield LlmPairJudge(model, nursery, settings)
