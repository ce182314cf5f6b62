"""Each question to a model is accounted for: what it cost, and how long it waited for its turn."""

import pytest
import trio
import trio.testing

from custosd.adapters.models.guarded import GuardedModel
from custosd.adapters.models.model import ModelError, ModelErrorKind, Prompt, Turn
from custosd.adapters.models.scripted import ScriptedModel
from custosd.flow.adaptive import AdaptiveLimit, Aimd
from custosd.flow.monitor import Kind, Monitor, in_force
from custosd.flow.retry import RetryPolicy

PROMPT = Prompt("Judge.", (Turn("user", "hello"),), {"type": "object"}, "verdict")


async def test_what_waits_for_a_slot_is_no_time_of_the_models(
    autojump_clock: trio.testing.MockClock,
) -> None:
    model = ScriptedModel(["yes"], "small", delay_s=2.0)
    guarded = GuardedModel(model, 100, concurrency=AdaptiveLimit(Aimd(1, ceiling=1)))
    with in_force(Monitor()) as monitor:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(guarded.ask, PROMPT)
    (row,) = monitor.summary()
    assert (row.kind, row.name, row.ok) == (Kind.NETWORK, "model.small", 3)
    assert row.mean_s == pytest.approx(2.0)
    assert row.queued_mean_s == pytest.approx(2.0)  # 0, 2 and 4
    assert row.resources == pytest.approx(
        {"input_tokens": 300, "output_tokens": 30, "cost_usd": 0.003}
    )


async def test_a_failed_question_is_an_error(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failure = ModelError(ModelErrorKind.BAD_REQUEST, "no")
    guarded = GuardedModel(ScriptedModel([failure], "small"), 100, policy=RetryPolicy(1))
    with in_force(Monitor()) as monitor, pytest.raises(ModelError):
        await guarded.ask(PROMPT)
    (row,) = monitor.summary()
    assert (row.ok, row.errors) == (0, {"ModelError": 1})
