"""A model behind everything that keeps a provider, and our purse, from harm.

    ask ─► retry ( rate limit ─► concurrency ─► money ─► circuit ─► model ) ─► Reply

Laws:

1. Each attempt takes its own share of the rates and is settled by what it really used; one
   for which nobody was asked is given back, however it ended, and is no call.
2. "Too many requests" closes the gate for all who share the limiter, until it may open again:
   nobody asks meanwhile, wherever it stood when the gate was shut. Who would have to wait for
   that longer than a Retry-After is sat out is told so at once.
3. Only what speaks against the service opens the circuit; cancellation counts as nothing.
   While it is open nobody waits for rates, a slot or money, to be refused then.
4. What failed attempts cost is told with the reply, or with the last error. Every question
   that was asked is a call, also one that was broken off: it costs what the till paid.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import ceil, inf

import structlog
import trio

from custosd.adapters.models.model import (
    BYTES_PER_TOKEN,
    PASSING,
    Model,
    ModelError,
    ModelErrorKind,
    Prompt,
    Reply,
)
from custosd.adapters.models.till import Till
from custosd.core.transcript import Usage
from custosd.flow.adaptive import AdaptiveLimit, Aimd
from custosd.flow.breaker import CircuitBreaker, CircuitChange, CircuitOpen, CircuitState
from custosd.flow.monitor import Kind, Operation, operation
from custosd.flow.rate_limit import CostExceedsBurst, RateLimiter, RatesClosed
from custosd.flow.retry import FailedAttempt, Pause, RetryBudget, RetryPolicy, retry

log = structlog.get_logger()

_AGAINST = frozenset(
    {
        ModelErrorKind.OVERLOADED,
        ModelErrorKind.UNAVAILABLE,
        ModelErrorKind.TIMEOUT,
        ModelErrorKind.CUT_OFF,
    }
)
_NO_ROOM = frozenset({ModelErrorKind.RATE_LIMITED, ModelErrorKind.OVERLOADED})

NO_WORD_S = 1.0
"""How long the gate is closed after "too many requests" that does not say for how long."""


class _NobodyAsked(ModelError):
    """No reply, and no question: something of ours stood in the way."""


class _GateShut(_NobodyAsked):
    """The gate was shut while it waited within: it goes back, and is told to nobody."""


@dataclass(slots=True)
class _Attempt:
    prompt: Prompt
    cost: Mapping[str, float]
    came_at: float
    asked_at: float | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt at which the model was asked, as it ended; `took_s` is the model's time.

    `failure` is "" or why it gave no reply: a `ModelErrorKind`, "cancelled" or "defect". For
    these two `usage` is what the till paid, without tokens: nobody told of any.
    """

    model: str
    usage: Usage
    took_s: float
    failure: str = ""


def _no_word(_: Call) -> None:
    return None


@dataclass(slots=True)
class GuardedModel(Model):
    """Asks `model` as the laws say. `limiter` and `concurrency` may be shared by a provider's.

    `on_call` is told of every attempt, at once, and may not wait. `spent` sums up. `pause` is
    how the time between two attempts is spent.
    """

    model: Model
    max_tokens: int
    limiter: RateLimiter | None = None
    concurrency: AdaptiveLimit[Aimd] | None = None
    breaker: CircuitBreaker | None = None
    till: Till | None = None
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    on_call: Callable[[Call], None] = _no_word
    spent: Usage = Usage()
    pause: Pause = trio.sleep
    _closed_until: float = -inf

    @property
    def name(self) -> str:
        """The model's own."""
        return self.model.name

    async def ask(self, prompt: Prompt) -> Reply:
        """The reply of the first attempt that has one; raises the last attempt's `ModelError`.

        Its usage is that of all attempts.
        """
        wasted = Usage()

        def tell(failed: FailedAttempt) -> None:
            nonlocal wasted
            if isinstance(failed.error, ModelError):
                wasted = wasted + failed.error.usage
            self._tell(failed)

        try:
            reply = await retry(
                lambda: self._attempt(prompt), self.policy, on_failure=tell, pause=self.pause
            )
        except ModelError as error:
            if wasted == error.usage:
                raise
            raise ModelError(error.kind, str(error), after_s=error.after_s, usage=wasted) from error
        return replace(reply, usage=reply.usage + wasted)

    async def _attempt(self, prompt: Prompt) -> Reply:
        attempt = _Attempt(prompt, self._cost(prompt), trio.current_time())
        while True:
            await self._admitted(attempt.cost)
            try:
                return await self._settled(attempt)
            except _GateShut:
                # While it waited for its slot, or its money: back to the door, and wait there.
                continue

    async def _settled(self, attempt: _Attempt) -> Reply:
        """The attempt, accounted for however it ends; its share is given back if nobody asked."""
        try:
            reply = await self._through(attempt)
        except ModelError as error:
            if self._account(attempt, error.usage, error.kind):
                self._close(error)
            raise
        except BaseException as error:
            # Broken off: what was done for it by then nobody says; the till has paid for all.
            usage = Usage(cost_usd=self.till.estimate_usd(attempt.prompt)) if self.till else Usage()
            self._account(
                attempt, usage, "cancelled" if isinstance(error, trio.Cancelled) else "defect"
            )
            raise
        self._account(attempt, reply.usage)
        self._learn(reply, attempt.cost)
        return reply

    async def _admitted(self, cost: Mapping[str, float]) -> None:
        """Wait for this attempt's share of the rates, if that is not too long."""
        self._check_circuit()
        if self.limiter is None:
            self._check_gate(cost)
            return
        try:
            await self.limiter.take(cost, longest_closed_s=self.policy.longest_after_s)
        except RatesClosed as error:
            raise self._shut(_NobodyAsked, error.until_at) from error
        except CostExceedsBurst as error:
            raise _NobodyAsked(
                ModelErrorKind.TOO_LARGE,
                f"a question to {self.name} is larger than its tokens a minute allow at once:"
                " raise tokens, or lower context",
            ) from error

    def _check_gate(self, cost: Mapping[str, float]) -> None:
        """Turn back whoever would ask while the gate is shut; waits for nothing."""
        if self.limiter is None:
            # Nothing of ours waits here, as in a replay: only what nobody sits out is told.
            if self._closed_until - trio.current_time() > self.policy.longest_after_s:
                raise self._shut(_NobodyAsked, self._closed_until)
        elif (until_at := self.limiter.closed_until(cost)) > trio.current_time():
            raise self._shut(_GateShut, until_at)

    def _shut(self, error: type[_NobodyAsked], until_at: float) -> ModelError:
        closed_s = until_at - trio.current_time()
        return error(
            ModelErrorKind.RATE_LIMITED,
            f"{self.name} takes no questions for another {closed_s:.0f} s: its provider said"
            " so; raise the account's limits, or lower the model's in the configuration",
            after_s=closed_s,
        )

    def _check_circuit(self) -> None:
        """Turn back whoever would meet an open circuit; a look, which takes no probe away."""
        breaker = self.breaker
        if breaker is None or breaker.state is not CircuitState.OPEN:
            return
        if breaker.until_at > trio.current_time():
            raise self._open(breaker.until_at)

    def _open(self, until_at: float) -> ModelError:
        return _NobodyAsked(
            ModelErrorKind.UNAVAILABLE,
            f"{self.name} failed too often: not asked until it had time to recover",
            after_s=max(0.0, until_at - trio.current_time()),
        )

    def _close(self, error: ModelError) -> None:
        """Shut the gate for as long as the provider says."""
        if error.kind not in _NO_ROOM:
            return
        after_s = error.after_s
        if after_s is None:
            after_s = NO_WORD_S if error.kind is ModelErrorKind.RATE_LIMITED else 0.0
        at = trio.current_time() + after_s
        self._closed_until = max(self._closed_until, at)
        if self.limiter is not None:
            self.limiter.close_until(at)

    def _learn(self, reply: Reply, cost: Mapping[str, float]) -> None:
        """Go by what the provider says is left."""
        for left in reply.allowances:
            reset_at = None if left.reset_s is None else trio.current_time() + left.reset_s
            if left.remaining <= 0 and reset_at is not None:
                self._closed_until = max(self._closed_until, reset_at)
            if self.limiter is not None and left.dimension in cost:
                self.limiter.told(left.dimension, left.remaining, reset_at)

    async def _through(self, attempt: _Attempt) -> Reply:
        if self.concurrency is None:
            return await self._paid(attempt)
        async with self.concurrency.slot() as slot:
            try:
                return await self._paid(attempt)
            except ModelError as error:
                if error.kind in _NO_ROOM and attempt.asked_at is not None:
                    slot.rejected()
                raise

    async def _paid(self, attempt: _Attempt) -> Reply:
        # Outside the circuit: that there is no money says nothing about the service.
        self._check_circuit()
        self._check_gate(attempt.cost)
        if self.till is None:
            return await self._in_circuit(attempt)
        return await self.till.paid(attempt.prompt, lambda: self._in_circuit(attempt))

    async def _in_circuit(self, attempt: _Attempt) -> Reply:
        # Once more: the money may have been waited for. From here on nothing waits.
        self._check_gate(attempt.cost)
        if self.breaker is None:
            return await self._asked(attempt)
        try:
            async with self.breaker.call():
                return await self._asked(attempt)
        except CircuitOpen as error:
            raise self._open(error.until_at) from error

    async def _asked(self, attempt: _Attempt) -> Reply:
        """One question that is really asked; what came before it was waiting."""
        attempt.asked_at = trio.current_time()
        queued_s = attempt.asked_at - attempt.came_at
        async with operation(Kind.NETWORK, f"model.{self.name}", queued_s) as asking:
            try:
                reply = await self.model.ask(attempt.prompt)
            except ModelError as error:
                _note(asking, error.usage)
                raise
            _note(asking, reply.usage)
            return reply

    def _cost(self, prompt: Prompt) -> Mapping[str, float]:
        tokens = ceil(prompt.length / BYTES_PER_TOKEN) + self.max_tokens
        return {"requests": 1.0, "tokens": float(tokens)}

    def _account(self, attempt: _Attempt, usage: Usage, failure: str = "") -> bool:
        """Settle the rates and tell what it cost; False, and all given back: nobody was asked."""
        cost, asked_at = attempt.cost, attempt.asked_at
        if asked_at is None:
            if self.limiter is not None:
                self.limiter.correct({name: -amount for name, amount in cost.items()})
            return False
        took_s = trio.current_time() - asked_at
        self.spent = self.spent + usage
        if self.limiter is not None:
            used = usage.input_tokens + usage.output_tokens
            # What failed without a word of its cost may have been counted all the same.
            if used or failure in _NO_ROOM:
                self.limiter.correct({"tokens": used - cost["tokens"]})
        log.info(
            "model.called",
            model=self.name,
            took_s=round(took_s, 4),
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cached_tokens=usage.cached_tokens,
            cost_usd=round(usage.cost_usd, 6),
            failure=failure,
        )
        self.on_call(Call(self.name, usage, took_s, failure))
        return True

    def _tell(self, failed: FailedAttempt) -> None:
        log.warning(
            "model.failed",
            model=self.name,
            attempt=failed.attempt,
            reason=str(getattr(failed.error, "kind", "defect")),
            error=str(failed.error),
            again_in_s=None if failed.pause_s is None else round(failed.pause_s, 3),
        )


def _note(asking: Operation, usage: Usage) -> None:
    asking.used("input_tokens", usage.input_tokens)
    asking.used("output_tokens", usage.output_tokens)
    asking.used("cost_usd", usage.cost_usd)


def policy(
    attempts: int = 3, first_delay_s: float = 1.0, budget: RetryBudget | None = None
) -> RetryPolicy:
    """What passes by itself is tried again; a long Retry-After is not sat out."""
    return RetryPolicy(
        attempts,
        first_delay_s,
        longest_delay_s=20.0,
        budget=budget or RetryBudget(),
        retry_on=_passes,
        after=lambda error: error.after_s if isinstance(error, ModelError) else None,
        longest_after_s=30.0,
    )


def circuit(name: str, failures: int = 5, open_s: float = 30.0) -> CircuitBreaker:
    """One model's circuit; its changes are told in the log."""

    def tell(change: CircuitChange) -> None:
        log.warning(
            "circuit.changed",
            service=name,
            before=change.before.value,
            after=change.after.value,
            error=str(change.error or ""),
        )

    return CircuitBreaker(
        failures,
        open_s=open_s,
        is_failure=lambda error: isinstance(error, ModelError) and error.kind in _AGAINST,
        on_change=tell,
    )


def _passes(error: Exception) -> bool:
    if not isinstance(error, ModelError) or error.kind not in PASSING:
        return False
    # Who is closed is not waited for: others may answer meanwhile.
    return not isinstance(error, _NobodyAsked)
