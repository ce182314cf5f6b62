"""A configuration is taken up by all who act, or by none of them."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
import trio
import trio.testing
from tests.idle_hands import idle_hands

from custosd.acting import ActingHalf, Remembered
from custosd.adapters.memory import MemoryStore
from custosd.config.agents import AgentSettings
from custosd.config.settings import Config
from custosd.core.agents import AgentId
from custosd.core.errors import ConfigError
from custosd.core.facts import AgentDismissed, Fact
from custosd.core.view import FleetView
from custosd.flow.latest import Latest
from custosd.ports import AgentControl

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
ADA, BOB = AgentSettings(id="ada"), AgentSettings(id="bob")


def control_of(settings: AgentSettings) -> AgentControl | None:
    if settings.user == "broken":
        raise ValueError("no such pane")
    return None


@pytest.fixture
async def half(autojump_clock: trio.testing.MockClock) -> ActingHalf:
    facts, _ = trio.open_memory_channel[Fact](100)
    return ActingHalf(
        Config(agents=(ADA,)),
        replace(idle_hands(), control_of=control_of),
        MemoryStore(),
        Latest(FleetView()),
        facts,
        lambda: NOON,
        Remembered(),
    )


async def test_one_table_that_can_not_be_acted_upon_leaves_everything_as_it_was(
    half: ActingHalf,
) -> None:
    broken = AgentSettings(id="bob", user="broken")
    liveness = Config().liveness.model_copy(update={"margin_s": 1.0})
    with pytest.raises(ConfigError, match="agent bob: no such pane"):
        half.adopt(Config(agents=(broken,), liveness=liveness))
    assert set(half.roster.agents) == {AgentId("ada")}
    assert half.lives.limits.margin_s == Config().liveness.margin_s
    assert half.lives.state(AgentId("ada")) is not None


async def test_who_left_the_configuration_is_watched_no_longer_and_that_is_told(
    half: ActingHalf,
) -> None:
    half.adopt(Config(agents=(BOB,)))
    assert set(half.roster.agents) == {AgentId("bob")}
    told = half.lives.due(trio.current_time()).facts
    assert AgentDismissed(AgentId("ada")) in told
