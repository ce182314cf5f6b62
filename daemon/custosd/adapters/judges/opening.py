"""Opens the judges that the configuration names, with all that stands before a provider.

fallback ─► ladder ─► ensemble ─► LlmJudge ─► GuardedModel ─► HttpModel ─► HttpWire ─► HttpClient
            ladder ─► ensemble ─► LlmPairJudge ──┘
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import urlsplit

import trio

from custosd.adapters.http_client import HttpLimits, open_http
from custosd.adapters.judges.ensemble import EnsembleJudge, FallbackJudge
from custosd.adapters.judges.llm import LlmSettings, open_llm_judge
from custosd.adapters.judges.pair_llm import open_llm_pair_judge
from custosd.adapters.judges.pair_rules import RulesPairJudge
from custosd.adapters.judges.pair_several import (
    EnsemblePairJudge,
    PricedPairJudge,
    ThriftyPairJudge,
)
from custosd.adapters.judges.rules import RulesJudge
from custosd.adapters.judges.thrifty import Priced, ThriftyJudge
from custosd.adapters.models import anthropic, openai
from custosd.adapters.models.guarded import GuardedModel, circuit, policy
from custosd.adapters.models.http import HttpModel, HttpWire, ModelProtocol, Wire
from custosd.adapters.models.model import Model, Prices
from custosd.adapters.models.till import Till
from custosd.config.models import RULES, ModelSettings
from custosd.config.settings import Config
from custosd.flow.adaptive import AdaptiveLimit, Aimd
from custosd.flow.breaker import CircuitBreaker
from custosd.flow.rate_limit import Rate, RateLimiter
from custosd.ports import Judge, PairJudge, Purse

MINUTE_S = 60.0
PAIRS_REMEMBERED_S = 86_400.0
"""How long a model is not asked again about equal goals, files and branches."""

BURST_S = 10.0
"""So much of a minute's allowance may be used at once."""


def _as_it_is(wire: Wire) -> Wire:
    return wire


class Guards:
    """What bounds how a model is asked, once for each table: an account has one allowance."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[RateLimiter, AdaptiveLimit[Aimd], CircuitBreaker]] = {}

    def of(
        self, settings: ModelSettings
    ) -> tuple[RateLimiter, AdaptiveLimit[Aimd], CircuitBreaker]:
        """Rates, concurrency and circuit of a model; of one that was changed, new ones."""
        key = settings.model_dump_json()
        if key not in self._made:
            # A question that is larger than the burst could never be asked.
            most = float(settings.context + settings.max_tokens) * 2
            rates = {
                "requests": _rate(settings.requests, 1.0),
                "tokens": _rate(settings.tokens, most),
            }
            concurrency = float(settings.concurrency)
            self._made[key] = (
                RateLimiter(rates),
                AdaptiveLimit(Aimd(min(10.0, concurrency), ceiling=concurrency)),
                circuit(settings.name),
            )
        return self._made[key]


@asynccontextmanager
async def open_judge(
    config: Config,
    environ: Mapping[str, str],
    now_utc: Callable[[], datetime],
    name: str = "",
    *,
    around: Callable[[Wire], Wire] = _as_it_is,
    purse: Purse | None = None,
    replay: Wire | None = None,
    circuits: bool = True,
    guards: Guards | None = None,
) -> AsyncGenerator[Judge]:
    """The judge `name`, or that of `guardian.judge` with its fallbacks, for the block.

    `around` may put something into the way of all exchanges, such as a recording; `replay`
    answers in place of every provider: no key is needed, and nothing is waited for. Without
    `circuits` every question is asked, however often a provider failed. With a `purse`, every
    call of a model that has a price is paid from it, and `guardian.judge` gives way to smaller
    ones as it runs empty. Raises `InvalidConfig` where a key's credential is not to be had,
    `KeyError` for an unknown name.
    """
    async with AsyncExitStack() as stack:
        opening = _Opening(
            config, environ, now_utc, around, stack, purse, replay, circuits=circuits,
            guards=guards or Guards(),
        )  # fmt: skip
        if name:
            yield await opening.judge(name)
            return
        wanted = config.guardian
        first = await opening.judge(wanted.judge)
        others = [await opening.judge(other) for other in wanted.fallback]
        asked = await opening.priced(wanted.judge)
        if purse is not None and asked.models:
            smaller = wanted.smaller_judge
            first = ThriftyJudge(
                asked,
                await opening.priced(smaller) if smaller else None,
                [await opening.priced(name) for name in (*wanted.fallback, RULES)],
                purse,
            )
        yield FallbackJudge([first, *others]) if others else first


@asynccontextmanager
async def open_pair_judge(
    config: Config,
    environ: Mapping[str, str],
    now_utc: Callable[[], datetime],
    *,
    around: Callable[[Wire], Wire] = _as_it_is,
    purse: Purse | None = None,
    replay: Wire | None = None,
    guards: Guards | None = None,
) -> AsyncGenerator[PairJudge]:
    """The judge of pairs that `conductor.judge` names, for the block; see `open_judge`.

    One that cannot be had raises its `JudgeError`: what the rules say instead is for who asks.
    """
    async with AsyncExitStack() as stack:
        opening = _Opening(
            config, environ, now_utc, around, stack, purse, replay, guards=guards or Guards()
        )
        wanted = config.conductor
        asked = await opening.priced_pairs(wanted.judge)
        if purse is None or not asked.models:
            yield asked.judge
            return
        smaller = wanted.smaller_judge
        yield ThriftyPairJudge(
            asked, await opening.priced_pairs(smaller) if smaller else None, purse
        )


@dataclass(slots=True)
class _Opening:
    """Each judge is opened once, however often it is named."""

    config: Config
    environ: Mapping[str, str]
    now_utc: Callable[[], datetime]
    around: Callable[[Wire], Wire]
    stack: AsyncExitStack
    purse: Purse | None = None
    replay: Wire | None = None
    circuits: bool = True
    guards: Guards = field(default_factory=Guards)
    opened: dict[str, Judge] = field(default_factory=dict[str, Judge])
    opened_pairs: dict[str, PairJudge] = field(default_factory=dict[str, PairJudge])

    async def judge(self, name: str) -> Judge:
        if name not in self.opened:
            self.opened[name] = await self._open(name)
        return self.opened[name]

    async def priced(self, name: str) -> Priced:
        return Priced(name, await self.judge(name), priced_models(self.config, name))

    async def _open(self, name: str) -> Judge:
        if name == RULES:
            return RulesJudge()
        for ensemble in self.config.ensembles:
            if ensemble.name == name:
                members = [await self.judge(member) for member in ensemble.members]
                return EnsembleJudge(
                    members, name, enough=ensemble.enough, straggler_s=ensemble.straggler_s
                )
        model, settings = await self._model(name)
        return await self.stack.enter_async_context(
            open_llm_judge(model, LlmSettings(settings.context, canary_share=settings.canaries))
        )

    async def pairs(self, name: str) -> PairJudge:
        if name not in self.opened_pairs:
            self.opened_pairs[name] = await self._open_pairs(name)
        return self.opened_pairs[name]

    async def priced_pairs(self, name: str) -> PricedPairJudge:
        return PricedPairJudge(name, await self.pairs(name), priced_models(self.config, name))

    async def _open_pairs(self, name: str) -> PairJudge:
        if name == RULES:
            return RulesPairJudge()
        for ensemble in self.config.ensembles:
            if ensemble.name == name:
                return EnsemblePairJudge(
                    [await self.pairs(member) for member in ensemble.members],
                    name,
                    enough=ensemble.enough,
                    straggler_s=ensemble.straggler_s,
                )
        model, settings = await self._model(name)
        bounds = LlmSettings(
            settings.context, remember_s=PAIRS_REMEMBERED_S, canary_share=settings.canaries
        )
        return await self.stack.enter_async_context(open_llm_pair_judge(model, bounds))

    async def _model(self, name: str) -> tuple[GuardedModel, ModelSettings]:
        settings = next((each for each in self.config.models if each.name == name), None)
        if settings is None:
            raise KeyError(name)
        wire = self.replay or await self._wire(settings)
        model = guarded(HttpModel(
            name, protocol_of(settings), wire, self.now_utc, settings.timeout_s, settings.stream
        ), settings, self.purse, self.guards)  # fmt: skip
        if not self.circuits:
            model.breaker = None
        if self.replay:
            model.limiter, model.pause = None, _no_time
        return model, settings

    async def _wire(self, settings: ModelSettings) -> Wire:
        client = await self.stack.enter_async_context(
            open_http(
                HttpLimits(
                    connections=settings.concurrency,
                    read_s=settings.timeout_s,
                    pool_s=settings.timeout_s,
                    largest_body_bytes=settings.largest_answer_bytes,
                    proxy=settings.proxy,
                )
            )
        )
        return self.around(
            HttpWire(
                client,
                settings.base_url or DEFAULT_URLS[settings.kind],
                protocol_of(settings).secret_headers,
                settings.key(self.environ),
                settings.timeout_s,
            )
        )


async def _no_time(_: float) -> None:
    await trio.lowlevel.checkpoint()


DEFAULT_URLS = {"anthropic": anthropic.DEFAULT_URL, "openai": openai.DEFAULT_URL}


def priced_models(config: Config, name: str) -> frozenset[str]:
    """The models that cost something and that the judge `name` asks; none if one is free.

    A judge that asks somebody for free has always an answer, whatever the money does.
    """
    members = next((each.members for each in config.ensembles if each.name == name), (name,))
    costly = {each.name for each in config.models if each.costs}
    return frozenset(members) if costly.issuperset(members) else frozenset()


def guarded(
    model: Model, settings: ModelSettings, purse: Purse | None = None, guards: Guards | None = None
) -> GuardedModel:
    """The model within the bounds of its table; with a `purse`, paid from it."""
    till = None
    if purse is not None and settings.costs:
        till = Till(settings.name, prices_of(settings), settings.max_tokens, purse)
    limiter, concurrency, breaker = (guards or Guards()).of(settings)
    return GuardedModel(
        model,
        settings.max_tokens,
        limiter,
        concurrency,
        breaker,
        till,
        policy(settings.attempts),
    )


def _rate(a_minute: int, least_burst: float) -> Rate:
    return Rate(a_minute / MINUTE_S, max(least_burst, a_minute * BURST_S / MINUTE_S))


def prices_of(settings: ModelSettings) -> Prices:
    """What a model costs, as its table says."""
    return Prices(
        settings.input_usd,
        settings.output_usd,
        settings.cached_usd if settings.cached_usd >= 0 else None,
        settings.cache_write_usd if settings.cache_write_usd >= 0 else None,
    )


def protocol_of(settings: ModelSettings) -> ModelProtocol:
    """The language of a model, as its table says."""
    prices = prices_of(settings)
    url = settings.base_url or DEFAULT_URLS[settings.kind]
    own = urlsplit(url).hostname == urlsplit(DEFAULT_URLS[settings.kind]).hostname
    if settings.kind == "anthropic":
        return anthropic.AnthropicProtocol(
            settings.model, prices, settings.max_tokens, settings.temperature, own
        )
    return openai.OpenAiProtocol(
        settings.model,
        prices,
        settings.max_tokens,
        settings.temperature,
        settings.structure,
        "max_completion_tokens" if own else "max_tokens",
    )
