"""What judging may cost: the `[money]` section; what a model may cost is in its own table."""

from typing import Annotated

from custosd.config.kinds import Amount
from custosd.config.section import Section, default

_DOLLARS = "US dollars"
_MOST_USD = 1_000_000


class MoneySettings(Section):
    """What models that judge may cost; days are those of UTC, and 0 is no limit."""

    agent_day_usd: Annotated[float, Amount(0, _MOST_USD, _DOLLARS)] = default(
        1, "What judging one agent may cost in a day."
    )
    fleet_day_usd: Annotated[float, Amount(0, _MOST_USD, _DOLLARS)] = default(
        10, "What judging all agents may cost in a day."
    )
    share: Annotated[float, Amount(0, 1, "share of what the agents spend themselves")] = default(
        0.02,
        "The same as a share of what the agents' own work costs that day, where their transcripts"
        " tell; 0: it is not looked at.",
    )
    share_floor_usd: Annotated[float, Amount(0, _MOST_USD, _DOLLARS)] = default(
        0.25, "What the share allows at least, so that the first question of a day can be asked."
    )
    warn_share: Annotated[float, Amount(0, 1, "share of any limit")] = default(
        0.8, "From which part of a limit on guardian.smaller_judge is asked."
    )
