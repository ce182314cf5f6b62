"""Agents for a while: who may come, and that everybody goes."""

from functools import partial

import trio
import trio.testing

from custosd.config.agents import AgentSettings
from custosd.core.agents import AgentId
from custosd.flow.pulse import Pulses
from custosd.services.enrolments import LONGEST_S, MOST_GUESTS, Enrolments, Form

CANARY = AgentId("canary-crash-1")
SETTLED = AgentId("canary-of-the-mine")
FORM: Form = {
    "ttl_s": 60,
    "control_url": "http://127.0.0.1:8080/hook",
    "workspace": "/tmp",
    "beat_interval_s": 1.0,
    "hang_after_s": 10,
}


class Here:
    """A daemon's table of agents."""

    def __init__(self) -> None:
        self.agents: dict[AgentId, tuple[AgentSettings, float | None]] = {}
        self.enrolments = Enrolments(self._put, self._drop, lambda agent: agent == SETTLED)

    def _put(self, settings: AgentSettings, hang_after_s: float | None) -> None:
        self.agents[AgentId(settings.id)] = settings, hang_after_s

    def _drop(self, agent: AgentId) -> None:
        del self.agents[agent]


async def test_who_comes_has_what_the_form_says_and_goes_when_dismissed() -> None:
    here = Here()
    assert here.enrolments.enrol(CANARY, FORM) == ""
    settings, hang_after_s = here.agents[CANARY]
    assert (settings.control, settings.control_url) == ("http", FORM["control_url"])
    assert (settings.channel, settings.beats, settings.beat_interval_s) == ("none", True, 1.0)
    assert settings.host == settings.account == CANARY
    assert (str(settings.workspace), hang_after_s) == ("/tmp", 10.0)
    assert here.enrolments.dismiss(CANARY)
    assert not here.enrolments.dismiss(CANARY)
    assert here.agents == {}


async def test_whoever_is_forgotten_is_let_go_when_the_time_is_up(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Also when somebody with less time comes later."""
    here, pulses = Here(), Pulses()
    with pulses.watched("enrolments") as pulse:
        await nursery.start(partial(here.enrolments.keep, pulse))
        await trio.testing.wait_all_tasks_blocked()
        here.enrolments.enrol(CANARY, {**FORM, "ttl_s": 100})
        await trio.testing.wait_all_tasks_blocked()
        here.enrolments.enrol(AgentId("canary-2"), {**FORM, "ttl_s": 50})
        await trio.sleep(51)
        assert list(here.agents) == list(here.enrolments.guests()) == [CANARY]
        await trio.sleep(50)
        assert here.agents == {}
        nursery.cancel_scope.cancel()


def refused(form: Form, agent: AgentId = CANARY) -> str:
    here = Here()
    words = here.enrolments.enrol(agent, form)
    assert here.enrolments.refusal(agent, form) == words
    assert not (words and here.agents)
    return words


async def test_only_canaries_of_this_machine_come_and_not_for_long() -> None:
    assert refused(FORM) == ""
    assert refused({**FORM, "control_url": "http://[::1]:1/x"}) == ""
    for agent in ("builder-1", "", "canary-a b", "canary-/x"):
        assert refused(FORM, AgentId(agent))
    assert "configuration" in refused(FORM, SETTLED)
    for url in ("http://10.0.0.1/x", "http://localhost/x", "https://127.0.0.1/x", "file:///x"):
        assert "loopback" in refused({**FORM, "control_url": url})
        assert "loopback" in refused({**FORM, "letter_url": url})
    for ttl_s in (0, -1, LONGEST_S + 1, float("nan"), float("inf"), "60", True):
        assert "ttl_s" in refused({**FORM, "ttl_s": ttl_s})
    assert "ttl_s" in refused({})
    assert "hang_after_s" in refused({**FORM, "hang_after_s": 0.1})
    assert "workspace" in refused({**FORM, "workspace": "relative"})


async def test_who_has_come_to_be_an_agent_of_the_configuration_stays() -> None:
    here = Here()
    here.enrolments.enrol(CANARY, FORM)
    here.enrolments.forget(CANARY)
    assert not here.enrolments.dismiss(CANARY)
    assert list(here.agents) == [CANARY]


async def test_there_is_room_for_so_many_and_no_more() -> None:
    here = Here()
    for number in range(MOST_GUESTS):
        assert here.enrolments.enrol(AgentId(f"canary-{number}"), FORM) == ""
    assert here.enrolments.enrol(CANARY, FORM)
    assert here.enrolments.enrol(AgentId("canary-0"), FORM) == ""
