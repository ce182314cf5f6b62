"""Has named agents judged now, all at once, and says what came of each of them, and of the fleet.

    names ──► Examinations ──► verdict ──► board ──► steerer ──► proposed interventions
      └─────► Rounds (conductor) ─────────────────────────────► how the fleet stands

Laws:

1. It ends at its deadline, with what there is by then. What there is not is named, with the reason;
   nothing stands in its place. An analysis that has begun goes on, and its verdict is told as ever.
2. It steers nobody: what its verdicts ask for is the steerer's, by the mode in force.
3. It spends only what there is money for, and waits for its turn before all routine work.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
import trio

from custosd.core.agents import AgentId
from custosd.core.facts import ConductorSwept
from custosd.core.steering import Intervention, InterventionState
from custosd.core.steering_policy import Clearance, SteeringMode, message_of, need
from custosd.core.verdicts import Standing, SteeringKind, SteeringReason, Verdict
from custosd.core.view import FleetView
from custosd.flow.bounded import for_each
from custosd.flow.latest import Latest
from custosd.flow.rounds import RoundFailed
from custosd.services.examinations import Examination

log = structlog.get_logger()

SETTLE_S = 5.0
"""How long is waited for the steerer to make a message of a verdict."""

NO_MONEY = "model_no_money"
NOBODY = "none"

WORDS = {
    "unknown_agent": "no agent of that name is known",
    "no_transcript": "nothing that it wrote has been read: there is nothing to judge",
    "store_unavailable": "what it did before is in the database, which does not give it now",
    "judge_failed": "the judge gave no answer",
    "no_money": "there is no money for the judge; see `custosd budget show`",
    "deadline": "not done by the deadline; what has begun goes on, and is told as ever",
    "defect": "the analysis failed by an error that nobody expected; see the log",
    "failed": "it failed; see the log",
}
"""What is missing, and why, for people."""


class ExaminePort(Protocol):
    """Who judges agents at once."""

    def want(self, agents: Iterable[AgentId]) -> None:
        """Take notice of who will be asked about."""
        ...

    async def examine(self, agent: AgentId) -> Examination:
        """Its verdict, or why there is none; waits for as long as that takes."""
        ...


class Steering(Protocol):
    """Who makes messages of verdicts."""

    def mode_of(self, agent: AgentId) -> SteeringMode:
        """How this agent is steered."""
        ...

    def unproposed(self, agent: AgentId, kind: SteeringKind) -> str:
        """Why it would be told nothing now; "" where nothing speaks against it."""
        ...

    async def proposed(
        self, agent: AgentId, reason: SteeringReason
    ) -> tuple[Intervention, Clearance]:
        """The open message to an agent for this reason; waits for one."""
        ...


@dataclass(frozen=True, slots=True)
class EmergencyPorts:
    """What an emergency works with.

    `ask_fleet` has the conductor sweep now. `judge` names who should judge, `short_of_money` the
    limit that kept it from judging an agent ("" none).
    """

    examinations: ExaminePort
    ask_fleet: Callable[[], Awaitable[ConductorSwept]]
    steering: Steering
    view: Latest[FleetView]
    judge: Callable[[], str] = lambda: ""
    short_of_money: Callable[[AgentId], str] = lambda _agent: ""


@dataclass(frozen=True, slots=True)
class Missing:
    """What there is not: an agent's analysis, or (`agent` "") the fleet's; `why` is a code."""

    agent: str
    why: str
    words: str = ""

    def form(self) -> dict[str, Any]:
        """As programs see it."""
        of = {"agent": self.agent} if self.agent else {"part": "fleet"}
        return {**of, "why": self.why, "words": self.words or WORDS.get(self.why, "")}


@dataclass(slots=True)
class Part:
    """What there is of one agent by now."""

    agent: AgentId
    examination: Examination | None = None
    intervention: dict[str, Any] | None = None


@dataclass(slots=True)
class Report:
    """What an emergency came to."""

    parts: list[Part]
    fleet: ConductorSwept | None = None
    missing: list[Missing] = field(default_factory=list[Missing])
    took_s: float = 0.0

    def verdicts(self) -> list[Verdict]:
        """Those that were reached, also of failed judges."""
        found = (part.examination.verdict for part in self.parts if part.examination)
        return [verdict for verdict in found if verdict is not None]

    def analysed(self) -> list[Verdict]:
        """Those that somebody answered."""
        return [verdict for verdict in self.verdicts() if verdict.by.judge != NOBODY]

    @property
    def cost_usd(self) -> float:
        """What the answers cost, the conductor's too."""
        fleet_usd = self.fleet.cost_usd if self.fleet else 0.0
        return fleet_usd + sum(verdict.by.usage.cost_usd for verdict in self.verdicts())


class Emergency:
    """Emergencies; as many at a time as are asked for."""

    def __init__(self, ports: EmergencyPorts) -> None:
        self._ports = ports

    async def analyse(
        self, agents: Sequence[AgentId], deadline_s: float, unknown: Sequence[Missing] = ()
    ) -> Report:
        """Judge these agents and look at the fleet, all at once; ends within `deadline_s`.

        `unknown` is who was named too, and is nobody.
        """
        began_at = trio.current_time()
        report = Report([Part(agent) for agent in dict.fromkeys(agents)])
        self._ports.examinations.want(agents)
        with trio.move_on_after(deadline_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._fleet, report)
                nursery.start_soon(for_each, report.parts, self._part)
        if report.fleet is None and not report.missing:
            report.missing.append(Missing("", "deadline"))
        report.missing[:0] = unknown
        for part in report.parts:
            report.missing.extend(self._missing(part))
        report.took_s = trio.current_time() - began_at
        log.info(
            "emergency.ended",
            agents=len(report.parts),
            analysed=len(report.analysed()),
            interventions=sum(part.intervention is not None for part in report.parts),
            missing=len(report.missing),
            cost_usd=round(report.cost_usd, 6),
            deadline_s=deadline_s,
            duration_s=round(report.took_s, 4),
        )
        return report

    async def _fleet(self, report: Report) -> None:
        try:
            report.fleet = await self._ports.ask_fleet()
        except RoundFailed:
            report.missing.append(Missing("", "failed"))

    async def _part(self, part: Part) -> None:
        part.examination = await self._ports.examinations.examine(part.agent)
        verdict = part.examination.verdict
        if verdict is None or not verdict.judgement.needs_steering:
            return
        part.intervention = _intervention(verdict, "not_known_yet")
        with trio.move_on_after(SETTLE_S):
            part.intervention = await self._intervention(verdict)

    async def _intervention(self, verdict: Verdict) -> dict[str, Any]:
        """What the steerer makes of a verdict that asks for steering."""
        name, seen = verdict.ref.agent, -1
        while True:
            published = await self._ports.view.wait_changed(seen)
            seen = published.version
            agent = published.value.agents.get(name)
            if agent is None or agent.ref != verdict.ref:
                return _intervention(verdict, "gone")
            if agent.verdict is not None and agent.verdict.at_utc >= verdict.at_utc:
                break
        found = need(agent)
        if found is None:
            # One opinion is not enough to tell somebody what to do, unless it is urgent.
            return _intervention(verdict, "awaits_agreement")
        steering = self._ports.steering
        why = steering.unproposed(name, found.kind)
        if why and why != "open":
            return _intervention(verdict, "not_proposed", waits_for=why)
        item, clearance = await steering.proposed(name, found.reason)
        state = item.state.value
        if steering.mode_of(name) is SteeringMode.OBSERVE:
            state = "only_told"
        elif item.state is InterventionState.PROPOSED:
            state = "awaits_approval"
        return _intervention(verdict, state, id=item.id, waits_for=clearance.why)

    def _missing(self, part: Part) -> Sequence[Missing]:
        examination = part.examination
        if examination is None:
            return (Missing(part.agent, "deadline"),)
        verdict = examination.verdict
        if verdict is None:
            return (Missing(part.agent, examination.why),)
        if verdict.by.judge == NOBODY:
            reason = verdict.judgement.unknown_reason
            why = "no_money" if reason == NO_MONEY else "judge_failed"
            return (Missing(part.agent, why, f"{WORDS[why]} ({reason})"),)
        wanted = self._ports.judge()
        if verdict.by.judge != wanted and (limit := self._ports.short_of_money(part.agent)):
            words = f"judged by {verdict.by.judge} instead of {wanted}: no money, {limit}"
            return (Missing(part.agent, "no_money", words),)
        return ()


def _intervention(verdict: Verdict, state: str, **more: str) -> dict[str, Any]:
    judged = verdict.judgement
    return {
        "agent": verdict.ref.agent,
        "verdict": verdict.id,
        "kind": judged.steering_kind,
        "reason": judged.steering_reason,
        "message": message_of(verdict),
        "state": state,
        **{name: value for name, value in more.items() if value},
    }


def report_form(report: Report) -> dict[str, Any]:
    """A report as programs see it; `lines` are for people."""
    form: dict[str, Any] = {
        "analyses": [
            _analysis_form(part.examination, part.examination.verdict)
            for part in report.parts
            if part.examination and part.examination.verdict
            if part.examination.verdict.by.judge != NOBODY
        ],
        "interventions": [part.intervention for part in report.parts if part.intervention],
        "missing": [missing.form() for missing in report.missing],
        "cost_usd": report.cost_usd,
        "took_s": round(report.took_s, 3),
    }
    if report.fleet is not None:
        form["fleet"] = fleet_form(report.fleet)
    form["lines"] = _lines(report, form)
    return form


def fleet_form(swept: ConductorSwept) -> dict[str, Any]:
    """A conductor's sweep as programs see it."""
    return {
        "status": swept.status.value,
        "score": swept.score,
        "coverage": swept.coverage,
        "agents": swept.agents,
        "duplicates": swept.duplicates,
        "conflicts": swept.conflicts,
        "asked": swept.asked,
        "failed": swept.failed,
        "waiting": swept.waiting,
        "cost_usd": swept.cost_usd,
        "duration_s": round(swept.duration_s, 4),
    }


def fleet_words(swept: ConductorSwept) -> str:
    """The same in words."""
    score = "not known" if swept.score is None else f"{swept.score:.2f}"
    return (
        f"fleet     {swept.status}, coherence {score}, coverage {swept.coverage:.0%} of"
        f" {swept.agents} at work, {swept.duplicates} duplicates, {swept.conflicts} conflicts"
    )


def _analysis_form(examination: Examination, verdict: Verdict) -> dict[str, Any]:
    judged, by = verdict.judgement, verdict.by
    form: dict[str, Any] = {
        "agent": verdict.ref.agent,
        "run": verdict.ref.run,
        "verdict": verdict.id,
        "at_utc": verdict.at_utc,
        "steps": verdict.steps,
        "standing": judged.standing,
        "phase": judged.phase,
        "alignment": judged.alignment,
        "confidence": judged.confidence,
        "needs_steering": judged.needs_steering,
        "summary": judged.summary,
        "evidence": list(judged.evidence),
        "signals": [signal.kind for signal in verdict.signals],
        "absent": list(verdict.absent),
        "judge": by.judge,
        "model": by.model,
        "cost_usd": by.usage.cost_usd,
        "latency_s": round(by.latency_s, 3),
    }
    if judged.standing is Standing.UNKNOWN:
        form["unknown_reason"] = judged.unknown_reason
    if examination.graced:
        form["graced"] = True
    return form


def _lines(report: Report, form: dict[str, Any]) -> list[str]:
    lines = []
    for told in form["analyses"]:
        known = told["alignment"] is not None
        alignment = f", alignment {told['alignment']:.2f}" if known else ""
        why = f" ({told['unknown_reason']})" if told.get("unknown_reason") else ""
        lines.append(
            f"{told['agent']}  {told['standing']}{why}{alignment}, by {told['judge']}"
            + (", too young to be steered" if told.get("graced") else "")
        )
    for told in form["interventions"]:
        name = f" {told['id']}" if "id" in told else ""
        waits = f" ({told['waits_for']})" if "waits_for" in told else ""
        lines.append(
            f"{told['agent']}  {told['kind']}, {told['reason']}:{name}"
            f" {told['state'].replace('_', ' ')}{waits}"
        )
    if report.fleet is not None:
        lines.append(fleet_words(report.fleet))
    lines += [
        f"missing   {told.get('agent', 'fleet')}: {told['words']}" for told in form["missing"]
    ]
    lines.append(f"cost      {report.cost_usd:.4f} USD, {report.took_s:.1f} s")
    return lines


def summary(report: Report) -> str:
    """What came of it, in one line."""
    analysed = len(report.analysed())
    steering = sum(part.intervention is not None for part in report.parts)
    words = f"{analysed} of {len(report.parts)} agents analysed, {steering} in need of steering"
    if report.missing:
        named = [f"{one.agent or 'fleet'} ({one.why})" for one in report.missing]
        words += "; missing: " + ", ".join(named)
    return words
