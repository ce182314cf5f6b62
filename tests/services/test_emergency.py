"""An emergency by itself: it ends, whoever does not answer. See also test_cycling.py."""

from collections.abc import Iterable
from datetime import UTC, datetime

import trio
import trio.testing

from custosd.core.agents import AgentId, AgentRef, RunId
from custosd.core.coherence import FleetStatus, Trend
from custosd.core.facts import AgentSeen, ConductorSwept, Entry
from custosd.core.steering import Intervention
from custosd.core.steering_policy import Clearance, SteeringMode
from custosd.core.verdicts import (
    JudgedBy,
    Judgement,
    Standing,
    SteeringKind,
    SteeringReason,
    Verdict,
)
from custosd.core.view import FleetView
from custosd.flow.latest import Latest
from custosd.services.emergency import SETTLE_S, Emergency, EmergencyPorts
from custosd.services.examinations import Examination

Clock = trio.testing.MockClock
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ADA = AgentRef(AgentId("ada"), RunId("r1"))
LOST = Judgement(
    Standing.DRIFTING,
    needs_steering=True,
    steering_kind=SteeringKind.EMERGENCY,
    steering_reason=SteeringReason.DRIFTING,
    message="Go back to what you were asked for.",
)
SWEPT = ConductorSwept(
    status=FleetStatus.NORMAL,
    before=None,
    score=0.6,
    coverage=1.0,
    trend=Trend.UNKNOWN,
    agents=1,
    duplicates=0,
    conflicts=0,
    opened=0,
    resolved=0,
    suspicions=0,
    asked=0,
    failed=0,
    waiting=0,
    duration_s=0.0,
)


class Judged:
    """Has a verdict for everybody, at once."""

    def want(self, agents: Iterable[AgentId]) -> None:
        pass

    async def examine(self, agent: AgentId) -> Examination:
        await trio.lowlevel.checkpoint()
        verdict = Verdict("v1", ADA, NOON, 3, LOST, (), JudgedBy("rules"))
        return Examination(agent, verdict)


class Silent:
    """A steerer that never makes a message of anything."""

    def mode_of(self, agent: AgentId) -> SteeringMode:
        return SteeringMode.ACT

    def unproposed(self, agent: AgentId, kind: SteeringKind) -> str:
        return ""

    async def proposed(
        self, agent: AgentId, reason: SteeringReason
    ) -> tuple[Intervention, Clearance]:
        await trio.sleep_forever()
        raise AssertionError


async def swept() -> ConductorSwept:
    await trio.lowlevel.checkpoint()
    return SWEPT


async def test_a_board_or_a_steerer_that_says_nothing_holds_up_no_emergency(
    autojump_clock: Clock,
) -> None:
    """What is done about its verdict is not known yet: so it is told."""
    seen = Entry("e1", NOON, AgentSeen(ADA, "t", "/t/ada", "", NOON))
    view = Latest(FleetView().after([seen]))
    emergency = Emergency(EmergencyPorts(Judged(), swept, Silent(), view))
    began = trio.current_time()
    report = await emergency.analyse([ADA.agent], 300.0)
    assert trio.current_time() - began == SETTLE_S
    (part,) = report.parts
    assert part.intervention is not None
    assert (part.intervention["state"], report.missing) == ("not_known_yet", [])
    assert report.fleet == SWEPT
