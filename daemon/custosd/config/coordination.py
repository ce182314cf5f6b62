"""The settings of the conductor: how often it looks, what counts for how much."""

from collections.abc import Iterator
from typing import Annotated

from custosd.config.kinds import Amount, Count, Duration, Name
from custosd.config.models import RULES
from custosd.config.section import Conflict, Section, default, in_order
from custosd.core.coherence import CoherenceRules


class ConductorSettings(Section):
    """How often the fleet is looked at as a whole, and what its coherence is made of."""

    interval_s: Annotated[float, Duration("1s", "1d")] = default(
        "5m", "How often the conductor looks at the fleet."
    )
    fresh_s: Annotated[float, Duration("1s", "7d")] = default(
        "10m", "A verdict older than this counts only while its agent has done nothing since."
    )
    quiet_s: Annotated[float, Duration("10s", "30d")] = default(
        "1h", "An agent whose transcript did not grow for so long is no longer at work."
    )
    pairs: Annotated[int, Count(1, 100_000, "pairs")] = default(
        50, "How many suspect pairs the judge is asked about in one sweep, the weightiest first."
    )
    judge: Annotated[str, Name("name of a judge")] = default(
        "rules",
        "Who judges suspect pairs: the name of a model or an ensemble; rules says what places and"
        " words can defend, and stands in wherever another one cannot be had.",
    )
    smaller_judge: Annotated[str, Name("name of a judge", optional=True)] = default(
        "",
        "Who is asked instead of the judge when money runs short; see [money]. Empty: nobody, but"
        " the rules once it has run out.",
    )
    judge_concurrency: Annotated[int, Count(1, 1_000, "questions")] = default(
        5, "How many questions about pairs are open at the same time."
    )
    judge_timeout_s: Annotated[float, Duration("100ms", "1h")] = default(
        "60s", "How long the judge may take for one pair; then the rules' word stands."
    )
    misaligned_weight: Annotated[float, Amount(0, 1, "weight")] = default(
        0.2, "What the share of misaligned agents takes from the coherence."
    )
    steering_weight: Annotated[float, Amount(0, 1, "weight")] = default(
        0.3, "What the share of agents in need of steering takes from the coherence."
    )
    duplicates_weight: Annotated[float, Amount(0, 1, "weight")] = default(
        1.0, "What the share of agents takes from it whose work another one does too."
    )
    coverage: Annotated[float, Amount(0, 1, "share")] = default(
        0.5, "Below this share of agents with a fresh verdict the fleet's status is unknown."
    )
    critical: Annotated[float, Amount(0, 1, "coherence")] = default(
        0.3, "Below this coherence the fleet is in a critical state, and a person is told."
    )
    warning: Annotated[float, Amount(0, 1, "coherence")] = default(
        0.5, "Below this coherence the status is a warning."
    )
    optimal: Annotated[float, Amount(0, 1, "coherence")] = default(
        0.8, "Above this coherence the status is optimal."
    )
    inefficient: Annotated[float, Amount(0, 1, "share")] = default(
        0.3, "Above this share of agents whose work is done twice the fleet is inefficient."
    )
    margin: Annotated[float, Amount(0, 0.2, "coherence")] = default(
        0.03, "By so much a threshold must be passed for a better status; none for a worse one."
    )

    def conflicts(self) -> Iterator[Conflict]:
        """See `Section.conflicts`."""
        yield from super().conflicts()
        if self.judge != RULES:
            yield from in_order(
                self,
                "judge_timeout_s",
                "interval_s",
                why="else an answer comes after the sweep that it was for, and is paid in vain",
            )
        yield from in_order(self, "critical", "warning", why="a warning comes before")
        yield from in_order(self, "warning", "optimal", why="what is optimal gives no warning")

    def rules(self) -> CoherenceRules:
        """The settings as the core takes them."""
        return CoherenceRules(
            self.misaligned_weight,
            self.steering_weight,
            self.duplicates_weight,
            self.coverage,
            self.critical,
            self.warning,
            self.optimal,
            self.inefficient,
            self.margin,
        )
