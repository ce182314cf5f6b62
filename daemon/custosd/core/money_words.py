"""How money stands, in words and in a form for programs."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from math import isfinite

from custosd.core.changes import in_words, rfc3339
from custosd.core.explanations import Explanation, Form
from custosd.core.money import BudgetLine, BudgetNews, Limit, Rung, Scope, Span

AGENTS_SHOWN = 20

_SPANS = {Span.DAY: "a day", Span.FIVE_HOURS: "in 5 hours", Span.WEEK: "in 7 days"}
_RUNGS = {
    Rung.AS_ASKED: "the judge that is configured",
    Rung.SMALLER: "a smaller judge, where there is one",
    Rung.RULES: "rules alone",
}


@dataclass(frozen=True, slots=True)
class MoneyShown:
    """How money stands at a time. `own_usd` is what judging cost today, reserved money included.

    `fleet_usd`: what the agents spent today, None where no transcript tells. `unwritten`
    calls wait for the store; `skips` counts, since the start, who was judged by another.
    `conductor_usd` is the part of `own_usd` that questions about pairs of agents cost.
    """

    at_utc: datetime
    lines: tuple[BudgetLine, ...]
    own_usd: float
    fleet_usd: float | None
    share: float
    unwritten: int = 0
    skips: int = 0
    conductor_usd: float = 0.0


def limit_words(limit: Limit) -> str:
    """As "builder-1 a day", "the fleet a day", "model sonnet in 5 hours"."""
    who = {
        Scope.AGENT: limit.subject,
        Scope.FLEET: "the fleet",
        Scope.SHARE: "the share of the agents' own spending",
        Scope.MODEL: f"model {limit.subject}",
    }[limit.scope]
    return f"{who} {_SPANS[limit.span]}"


def usd_words(usd: float) -> str:
    """Dollars with as many digits as tell something: "12.30", "0.0042"."""
    return f"{usd:.2f}" if usd >= 1 or usd == 0 else f"{usd:.4f}"


def reached_words(news: BudgetNews, now_utc: datetime) -> str:
    """Why a person is told of a limit; one line, no names but those of agents and models."""
    spent = f"{usd_words(news.spent_usd)} of {usd_words(news.limit.most_usd)} USD spent"
    words = f"{limit_words(news.limit)}: {spent}, another call does not fit"
    return f"{words}; judged by what costs less, or by rules{_until(news.until_utc, now_utc)}"


def money_explained(shown: MoneyShown, source: str = "") -> Explanation:
    """Every limit, for `custosd budget show`; `source` says where it was read, if not live.

    The form: at_utc source own_usd conductor_usd fleet_usd share share_most unwritten skips
    limits; of each limit: id scope subject span most_usd spent_usd reserved_usd left_usd
    used_share resets_at_utc rung.
    """
    own, agents = _parted(shown)
    form: Form = {
        "at_utc": rfc3339(shown.at_utc),
        "source": source or "daemon",
        "own_usd": round(shown.own_usd, 9),
        "conductor_usd": round(shown.conductor_usd, 9),
        "fleet_usd": None if shown.fleet_usd is None else round(shown.fleet_usd, 9),
        "share": _share(shown),
        "share_most": shown.share,
        "unwritten": shown.unwritten,
        "skips": shown.skips,
        "limits": [_form(line) for line in (*own, *agents)],
    }
    lines = [
        *([f"read from {source}"] if source else []),
        f"judging cost {usd_words(shown.own_usd)} USD today{_of_fleet(shown)}",
        *_of_pairs(shown),
        *(_line(line, shown.at_utc) for line in own),
        *(_line(line, shown.at_utc) for line in agents[:AGENTS_SHOWN]),
    ]
    if not own and not agents:
        lines.append("no limit is set: see [money] in the configuration")
    if len(agents) > AGENTS_SHOWN:
        lines.append(f"and {len(agents) - AGENTS_SHOWN} more agents, who spent less")
    if shown.unwritten:
        lines.append(f"{shown.unwritten} calls are not stored yet")
    return Explanation(form, tuple(lines))


def _parted(shown: MoneyShown) -> tuple[list[BudgetLine], list[BudgetLine]]:
    """The fleet's and models' limits, and those of agents: who used most first."""
    own = [line for line in shown.lines if line.limit.scope is not Scope.AGENT]
    agents = [line for line in shown.lines if line.limit.scope is Scope.AGENT]
    return own, sorted(agents, key=lambda line: (-line.used_share, line.limit.subject))


def _share(shown: MoneyShown) -> float | None:
    return round(shown.own_usd / shown.fleet_usd, 6) if shown.fleet_usd else None


def _of_pairs(shown: MoneyShown) -> list[str]:
    if shown.conductor_usd <= 0:
        return []
    return [
        f"  of which about pairs of agents, for the fleet: {usd_words(shown.conductor_usd)} USD"
    ]


def _of_fleet(shown: MoneyShown) -> str:
    if shown.fleet_usd is None:
        return "; what the agents themselves spend is not known: no transcript tells it"
    words = f"; the agents spent {usd_words(shown.fleet_usd)} USD"
    share = _share(shown)
    if share is None:
        return words
    goal = f" (at most {shown.share * 100:g} %)" if shown.share > 0 else ""
    return f"{words}, of which that is {share * 100:.2g} %{goal}"


def _line(line: BudgetLine, now_utc: datetime) -> str:
    used = f"{line.used_share * 100:.0f} %" if isfinite(line.used_share) else "all"
    reserved = f" + {usd_words(line.reserved_usd)} reserved" if line.reserved_usd else ""
    words = (
        f"  {limit_words(line.limit)}: {usd_words(line.spent_usd)}{reserved} of"
        f" {usd_words(line.limit.most_usd)} USD ({used}), {usd_words(line.left_usd)} left"
    )
    return f"{words}; judged by {_RUNGS[line.rung]}{_reset(line, now_utc)}"


def _reset(line: BudgetLine, now_utc: datetime) -> str:
    if line.resets_at_utc is None:
        return ""
    in_s = (line.resets_at_utc - now_utc) / timedelta(seconds=1)
    what = "resets" if line.limit.span is Span.DAY else "money comes back"
    return f"; {what} in {in_words(in_s)}"


def _until(at_utc: datetime | None, now_utc: datetime) -> str:
    if at_utc is None:
        return ""
    return f" until {rfc3339(at_utc)} (in {in_words((at_utc - now_utc) / timedelta(seconds=1))})"


def _form(line: BudgetLine) -> Form:
    limit = line.limit
    return {
        "id": limit.id,
        "scope": limit.scope.value,
        "subject": limit.subject,
        "span": limit.span.value,
        "most_usd": round(limit.most_usd, 9),
        "spent_usd": round(line.spent_usd, 9),
        "reserved_usd": round(line.reserved_usd, 9),
        "left_usd": round(line.left_usd, 9),
        "used_share": round(line.used_share, 6) if isfinite(line.used_share) else None,
        "resets_at_utc": None if line.resets_at_utc is None else rfc3339(line.resets_at_utc),
        "rung": line.rung.value,
    }
