"""The daemon in numbers, as they stand: agents, lives, queues, and what was dropped."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from custosd.core.evidence import Condition
from custosd.core.findings import FindingKind
from custosd.core.money import BudgetLine, Rung
from custosd.core.verdicts import Standing
from custosd.core.view import FleetView
from custosd.flow.gauge import Gauge


def fleet_gauges(view: FleetView) -> Iterator[Gauge]:
    """The fleet: each standing and each condition has its number, also where it is 0."""
    standings = Counter(agent.standing for agent in view.agents.values())
    for standing in Standing:
        yield Gauge(
            "agents",
            "Agents with a transcript, by how they stand with their task.",
            standings[standing],
            {"standing": standing.value},
        )
    conditions = Counter(life.condition for life in view.hands.lives.values())
    for condition in Condition:
        yield Gauge(
            "lives",
            "Lives that are watched, by what is held of them.",
            conditions[condition],
            {"condition": condition.value},
        )
    yield Gauge("concerns", "Concerns that a person is needed for.", len(view.hands.concerns))
    yield Gauge("sweeps", "Sweeps of the guardian.", view.sweeps, counts=True)
    if (conducted := view.conducted) is not None:
        if conducted.score is not None:
            yield Gauge("coherence", "The fleet's coherence, 0 to 1.", conducted.score)
        found = (
            (FindingKind.DUPLICATE, conducted.duplicates),
            (FindingKind.CONFLICT, conducted.conflicts),
        )
        for kind, count in found:
            yield Gauge(
                "findings", "What is open between agents, by kind.", count, {"kind": kind.value}
            )


def queue_gauges(waiting: Mapping[str, int], dropped: Mapping[str, int]) -> Iterator[Gauge]:
    """What waits between the services, and what there was no room for, by queue."""
    for queue, count in waiting.items():
        yield Gauge("queue_items", "What waits in a queue.", count, {"queue": queue})
    for queue, count in dropped.items():
        yield Gauge(
            "dropped", "What was dropped for lack of room.", count, {"queue": queue}, counts=True
        )


def money_gauges(lines: Iterable[BudgetLine], spent_usd: Mapping[str, float]) -> Iterator[Gauge]:
    """What judging may cost and has cost; `spent_usd` by model, since the start."""
    for line in lines:
        labels = {"limit": line.limit.id}
        yield Gauge("budget_usd", "A limit of what judging may cost.", line.limit.most_usd, labels)
        yield Gauge("budget_spent_usd", "What counts for a limit as spent.", line.spent_usd, labels)
        yield Gauge(
            "budget_reserved_usd", "What is under way for a limit.", line.reserved_usd, labels
        )
        yield Gauge(
            "budget_rung",
            "How a limit lets judge: 0 as configured, 1 by a smaller judge, 2 by rules.",
            list(Rung).index(line.rung),
            labels,
        )
    for model, usd in spent_usd.items():
        yield Gauge(
            "judging_usd", "What judging has cost since the start.", usd, {"model": model},
            counts=True,
        )  # fmt: skip
