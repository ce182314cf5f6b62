"""Pays for a model's calls: money is reserved before each attempt, and settled after it.

Laws:

1. No attempt without a reservation; a model that costs nothing has no till.
2. A call that came to its end is settled by what the provider says that it used. One that was
   broken off (cancelled, timed out, cut) may have been paid for in full, and nobody knows: it
   counts as the estimate, or as what was told by then if that is more.
3. What the provider refused to do, or never got, costs nothing: the money is given back.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import msgspec

from custosd.adapters.models.model import (
    BYTES_PER_TOKEN,
    PER_MILLION,
    ModelError,
    ModelErrorKind,
    Prices,
    Prompt,
    Reply,
)
from custosd.core.agents import AgentId
from custosd.core.money import NoMoney
from custosd.core.money_words import limit_words, usd_words
from custosd.core.transcript import Usage
from custosd.flow.breaker import CircuitOpen
from custosd.ports import Purse

FRAME_TOKENS = 500
"""What a provider adds to a question of its own: roles, the frame of tools."""

_NOT_DONE = frozenset(
    {
        ModelErrorKind.RATE_LIMITED,
        ModelErrorKind.OVERLOADED,
        ModelErrorKind.UNAVAILABLE,
        ModelErrorKind.UNAUTHORIZED,
        ModelErrorKind.BAD_REQUEST,
        ModelErrorKind.TOO_LARGE,
    }
)
"""Failures that providers do not bill, where they tell of no usage."""

_TO_THE_END = frozenset(
    {ModelErrorKind.REFUSED, ModelErrorKind.TRUNCATED, ModelErrorKind.MALFORMED}
)
"""Failures of answers that came whole: what they cost is what was told."""


@dataclass(frozen=True)
class Till:
    """Pays the calls of one model; `max_tokens` is how long an answer may be."""

    model: str
    prices: Prices
    max_tokens: int
    purse: Purse

    def estimate_usd(self, prompt: Prompt) -> float:
        """What a call costs at most, nearly always: no cache helps, the answer is full length."""
        schema_bytes = len(msgspec.json.encode(prompt.schema))
        tokens = ceil((prompt.length + schema_bytes) / BYTES_PER_TOKEN) + FRAME_TOKENS
        return PER_MILLION * (tokens * self._dearest_usd + self.max_tokens * self.prices.output_usd)

    @cached_property
    def _dearest_usd(self) -> float:
        """What a token of the question costs where it is not found in a cache."""
        return max(self.prices.input_usd, self.prices.cache_write_usd or 0.0)

    async def paid(self, prompt: Prompt, ask: Callable[[], Awaitable[Reply]]) -> Reply:
        """`await ask()`, paid for. Raises the `ModelError` "no_money", and nobody was asked."""
        estimate_usd = self.estimate_usd(prompt)
        given = await self.purse.reserve(AgentId(prompt.about), self.model, estimate_usd)
        if isinstance(given, NoMoney):
            raise ModelError(ModelErrorKind.NO_MONEY, _no_money(self.model, given))
        cost_usd = estimate_usd
        try:
            reply = await ask()
            cost_usd = _told_usd(reply.usage, estimate_usd)
        except CircuitOpen:
            cost_usd = 0.0
            raise
        except ModelError as error:
            cost_usd = _failed_usd(error, estimate_usd)
            raise
        finally:
            # A cancelled call, and one that failed by a defect, counts as the estimate.
            self.purse.settle(given, cost_usd)
        return reply


def _told_usd(usage: Usage, estimate_usd: float) -> float:
    """What was told; a provider that tells nothing did not work for nothing."""
    return usage.cost_usd if usage.input_tokens or usage.output_tokens else estimate_usd


def _failed_usd(error: ModelError, estimate_usd: float) -> float:
    told = bool(error.usage.input_tokens or error.usage.output_tokens)
    if error.kind in _NOT_DONE and not told:
        return 0.0
    if error.kind in _TO_THE_END:
        return _told_usd(error.usage, estimate_usd)
    return max(error.usage.cost_usd, estimate_usd)


def _no_money(model: str, refusal: NoMoney) -> str:
    limit = refusal.limit
    return (
        f"no money for {model}: a call may cost {usd_words(refusal.estimate_usd)} USD, of"
        f" {usd_words(limit.most_usd)} USD for {limit_words(limit)} there are"
        f" {usd_words(refusal.left_usd)} left; raise the limit in [money], or wait"
    )
