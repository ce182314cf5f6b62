"""One monitoring cycle at once, for whoever asks: a guardian's and a conductor's sweep, together.

Laws:

1. The sweeps are those that go on anyway, on their own times: whoever asks while one is under way
   gets the next, with everybody else who asked; nothing runs twice.
2. It ends at its deadline with what there is by then; what there is not is named.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import outcome

from custosd.core.facts import ConductorSwept, SweepFinished
from custosd.flow.parallel import run_parallel
from custosd.flow.rounds import RoundFailed
from custosd.services.emergency import fleet_form, fleet_words


@dataclass(frozen=True, slots=True)
class CyclePorts:
    """Who sweeps when asked to; each raises `RoundFailed`."""

    guardian: Callable[[], Awaitable[SweepFinished]]
    conductor: Callable[[], Awaitable[ConductorSwept]]


@dataclass(frozen=True, slots=True)
class CycleReport:
    """What came of the sweeps; None with its reason in `missing` ("deadline", "failed")."""

    guardian: SweepFinished | None
    conductor: ConductorSwept | None
    missing: tuple[tuple[str, str], ...]


async def run_cycle(ports: CyclePorts, deadline_s: float) -> CycleReport:
    """Both sweeps, at once; ends within `deadline_s`. A sweep that is cut off here goes on."""
    missing: list[tuple[str, str]] = []
    swept: dict[str, SweepFinished | ConductorSwept] = {}
    names = ("guardian", "conductor")
    asked: list[Callable[[], Awaitable[SweepFinished | ConductorSwept]]] = [
        ports.guardian,
        ports.conductor,
    ]
    results = await run_parallel(asked, max_concurrent=2, timeout_s=deadline_s)
    for name, result in zip(names, results, strict=True):
        if isinstance(result, outcome.Value):
            swept[name] = result.value
        elif isinstance(result, outcome.Error):
            failed = isinstance(result.error, RoundFailed)
            missing.append((name, "failed" if failed else "deadline"))
    guardian, conductor = swept.get("guardian"), swept.get("conductor")
    assert not isinstance(guardian, ConductorSwept)  # noqa: S101 - by its name
    assert not isinstance(conductor, SweepFinished)  # noqa: S101 - by its name
    return CycleReport(guardian, conductor, tuple(missing))


def cycle_form(report: CycleReport) -> dict[str, Any]:
    """A report as programs see it; `lines` are for people."""
    form: dict[str, Any] = {
        "missing": [{"part": part, "why": why} for part, why in report.missing],
        "cost_usd": sum(one.cost_usd for one in (report.guardian, report.conductor) if one),
    }
    lines = []
    if (swept := report.guardian) is not None:
        form["guardian"] = {
            "agents": swept.agents,
            "due": swept.due,
            "asked": swept.asked,
            "judged": swept.judged,
            "failed": swept.failed,
            "coverage": swept.coverage,
            "cost_usd": swept.cost_usd,
            "duration_s": round(swept.duration_s, 4),
        }
        coverage = "" if swept.coverage is None else f", coverage {swept.coverage:.0%}"
        lines.append(
            f"guardian  {swept.agents} agents, {swept.due} due, {swept.asked} asked about,"
            f" {swept.judged} judged, {swept.failed} without an answer{coverage}"
        )
    if report.conductor is not None:
        form["conductor"] = fleet_form(report.conductor)
        lines.append(fleet_words(report.conductor))
    lines += [f"missing   {part}: {why}" for part, why in report.missing]
    lines.append(f"cost      {form['cost_usd']:.4f} USD")
    return {**form, "lines": lines}


def cycle_words(report: CycleReport) -> str:
    """What came of it, in one line."""
    words = []
    if report.guardian is not None:
        words.append(f"{report.guardian.judged} of {report.guardian.agents} agents judged")
    if report.conductor is not None:
        words.append(f"the fleet is {report.conductor.status}")
    words += [f"missing: {part} ({why})" for part, why in report.missing]
    return "; ".join(words)
