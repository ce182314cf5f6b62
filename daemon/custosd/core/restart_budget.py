"""How many restarts there may be: of one agent, during one task, on a host, in the fleet.

Laws:

1. A budget is a fold over past restarts, which are rows; our own restart changes nothing.
2. Times (`at`) are trio's clock; a stored restart is brought onto it once, when it is read
   (`past_of`), so that a wall clock that is set neither lifts a budget nor stops all work.
3. A restart that was abandoned did nothing and costs nothing but a pause.
4. What a person orders neither waits for the budgets of the fleet and the hosts nor uses them
   up: the agents that die meanwhile are healed all the same.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from custosd.core.agents import AgentId
from custosd.core.restarts import Cause, Restart, RestartState

RELEASED = "released"
"""The reason of the first restart after a quarantine was lifted: the count begins anew."""

_NOT_THE_AGENTS_FAULT = frozenset({Cause.USAGE_LIMIT, Cause.PROVIDER_OUTAGE, Cause.REQUESTED})
_KEPT_OF_ONE = 64
_MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class RestartLimits:
    """How often and how fast agents are restarted; seconds, counts, shares of the fleet.

    `settle_s`: so long after a death its last words, and other deaths, may still come in.
    `escalate_wait_s`: whoever has to wait for longer is somebody's business, as is who is
    late for longer than `late_s`. `usual_s` is what one restart takes where nothing is slow;
    the time to heal is reckoned from it.
    """

    backoff_s: float = 30.0
    factor: float = 2.0
    longest_backoff_s: float = 600.0
    jitter: float = 0.1
    burst: int = 5
    window_s: float = 900.0
    stable_after_s: float = 1_800.0
    per_task: int = 3
    fleet_burst: int = 5
    fleet_share: float = 0.01
    common_cause: int = 3
    common_share: float = 0.01
    common_period_s: float = 300.0
    probe_stable_s: float = 60.0
    concurrency: int = 5
    settle_s: float = 1.0
    late_s: float = 60.0
    escalate_wait_s: float = 300.0
    usual_s: float = 10.0
    remember_s: float = 86_400.0

    def at_once(self, agents: int) -> int:
        """How many restarts may come at once among so many agents."""
        return max(self.fleet_burst, math.ceil(self.fleet_share * agents))

    def per_s(self, agents: int) -> float:
        """How many may follow each second: one a minute, or the share a minute."""
        return max(1.0, self.fleet_share * agents) / _MINUTE_S

    def alike(self, agents: int) -> int:
        """How many of so many agents must fail alike for it to be no coincidence."""
        return max(self.common_cause, math.ceil(self.common_share * agents))

    def pause_s(self, restarts: int, jitter: float) -> float:
        """The pause after so many restarts in a row; `jitter` in [0, 1) makes it longer."""
        if restarts <= 0:
            return 0.0
        # The exponent is bounded: a float overflows long before a patient daemon ends.
        grown_s = self.backoff_s * self.factor ** min(restarts - 1, 64)
        return min(grown_s, self.longest_backoff_s) * (1.0 + self.jitter * jitter)


def heal_s(dead: int, agents: int, limits: RestartLimits) -> float:
    """How long it takes at least until so many dead agents, of so many, are restarted.

    The later of what budgets and concurrency allow; one host. As many as make a common
    cause wait besides for the one that goes first.
    """
    if dead <= 0:
        return 0.0
    first_s = limits.usual_s + limits.probe_stable_s if dead >= limits.alike(agents) else 0.0
    by_budget_s = max(0, dead - limits.at_once(agents)) / limits.per_s(agents)
    by_hands_s = math.ceil(dead / limits.concurrency) * limits.usual_s
    return max(by_budget_s, first_s + by_hands_s)


@dataclass(frozen=True, slots=True)
class PastRestart:
    """What a budget needs to know of one restart. `jitter` in [0, 1) is drawn once for it.

    `anew`: a person ordered it, or had lifted a quarantine before it.
    """

    id: str
    agent: AgentId
    host: str
    at: float
    ended_at: float | None
    state: RestartState
    cause: Cause
    task: str = ""
    anew: bool = False
    jitter: float = 0.0

    @property
    def counts(self) -> bool:
        """Whether it did, or is about to do, anything."""
        return self.state is not RestartState.ABANDONED


def past_of(
    restart: Restart, host: str, now: float, now_utc: datetime, jitter: float
) -> PastRestart:
    """A restart as budgets see it; one from the wall clock's future happened just now."""

    def on_our_clock(then_utc: datetime) -> float:
        return now - max(0.0, (now_utc - then_utc).total_seconds())

    return PastRestart(
        restart.id,
        restart.agent,
        host,
        on_our_clock(restart.intended_utc),
        None if restart.ended_utc is None else on_our_clock(restart.ended_utc),
        restart.state,
        restart.cause,
        restart.task,
        restart.cause is Cause.REQUESTED or restart.reason == RELEASED,
        jitter,
    )


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket by what has been taken out of it: so its size may change meanwhile."""

    used: float = 0.0
    at: float = -math.inf

    def spent(self, at: float, per_s: float) -> "Bucket":
        """What it is after one more token was taken, at this time."""
        return Bucket(self._used_at(at, per_s) + 1.0, max(at, self.at))

    def given_back(self) -> "Bucket":
        """What it is when a token was not used after all."""
        return Bucket(max(0.0, self.used - 1.0), self.at)

    def ready_at(self, now: float, size: int, per_s: float) -> float:
        """The first time, from `now` on, at which a token is there."""
        missing = self._used_at(now, per_s) + 1.0 - size
        # A millionth of a token is a rounding error, not a reason to come again.
        return now if missing <= 1e-6 else now + missing / per_s  # noqa: PLR2004 - said above

    def _used_at(self, at: float, per_s: float) -> float:
        return max(0.0, self.used - max(0.0, at - self.at) * per_s) if self.used else 0.0


@dataclass(slots=True)
class RestartHistory:
    """All past restarts, folded: by agent, by task, and into the buckets.

    `agents` says how many agents there are on each host; their sum is the fleet.
    """

    limits: RestartLimits
    agents: Mapping[str, int] = field(default_factory=dict[str, int])
    _of: dict[AgentId, list[PastRestart]] = field(default_factory=dict)
    _tasks: dict[str, dict[str, PastRestart]] = field(default_factory=dict)
    _fleet: Bucket = field(default_factory=Bucket)
    _hosts: dict[str, Bucket] = field(default_factory=dict)

    @property
    def fleet(self) -> int:
        """How many agents there are."""
        return sum(self.agents.values())

    def add_all(self, past: Iterable[PastRestart]) -> None:
        """Fold many restarts in, in whatever order they come."""
        for one in sorted(past, key=lambda restart: restart.at):
            self.add(one)

    def add(self, past: PastRestart) -> None:
        """Fold a restart in that is newer than all others; or the news of a known one."""
        known = self._of.setdefault(past.agent, [])
        before = next((one for one in known if one.id == past.id), None)
        if before is not None:
            known[known.index(before)] = past
        else:
            known.append(past)
            del known[:-_KEPT_OF_ONE]
        if past.task:
            self._tasks.setdefault(past.task, {})[past.id] = past
        self._account(before is not None and before.counts, past)

    def _account(self, was_counted: bool, past: PastRestart) -> None:  # noqa: FBT001 - a state, not an option
        if past.cause is Cause.REQUESTED:
            return
        on_host = self._hosts.get(past.host, Bucket())
        if past.counts and not was_counted:
            here = self.agents.get(past.host, 0)
            self._fleet = self._fleet.spent(past.at, self.limits.per_s(self.fleet))
            self._hosts[past.host] = on_host.spent(past.at, self.limits.per_s(here))
        elif was_counted and not past.counts:
            self._fleet = self._fleet.given_back()
            self._hosts[past.host] = on_host.given_back()

    def forget(self, before: float) -> None:
        """Forget restarts that began before this time."""
        for agent, known in list(self._of.items()):
            known[:] = [one for one in known if one.at >= before]
            if not known:
                del self._of[agent]
        for task, rows in list(self._tasks.items()):
            self._tasks[task] = {key: one for key, one in rows.items() if one.at >= before}
            if not self._tasks[task]:
                del self._tasks[task]

    def of(self, agent: AgentId) -> tuple[PastRestart, ...]:
        """What is known of one agent, oldest first."""
        return tuple(self._of.get(agent, ()))

    def in_a_row(
        self, agent: AgentId, bad_at: float, since: float = -math.inf
    ) -> tuple[PastRestart, ...]:
        """The restarts, newest first, that the agent was not stable after; up to `bad_at`.

        Those before `since` (a release), or before a restart that a person had to do
        with, are past.
        """
        row: list[PastRestart] = []
        alive_until = bad_at
        for one in reversed(self._of.get(agent, ())):
            if not one.counts:
                continue
            ended_at = one.at if one.ended_at is None else one.ended_at
            if one.at < since or alive_until - ended_at >= self.limits.stable_after_s:
                break
            row.append(one)
            if one.anew:
                break
            alive_until = one.at
        return tuple(row)

    def looping(self, row: Iterable[PastRestart], now: float) -> int:
        """How many of these, within the window, were the agent's own fault."""
        start = now - self.limits.window_s
        return sum(
            one.at > start and one.cause not in _NOT_THE_AGENTS_FAULT and not one.anew
            for one in row
        )

    def during(self, task: str, since: float = -math.inf) -> int:
        """How many restarts there were during this task, whoever worked on it.

        Those before `since`, or before one that a person had to do with, are past.
        """
        rows = self._tasks.get(task, {}).values() if task else ()
        start = max([since, *(one.at for one in rows if one.anew)])
        return sum(
            one.counts and one.at >= start and one.cause not in _NOT_THE_AGENTS_FAULT
            for one in rows
        )

    def fleet_ready_at(self, now: float) -> float:
        """When the fleet's budget allows one more, from `now` on."""
        size, per_s = self.limits.at_once(self.fleet), self.limits.per_s(self.fleet)
        return self._fleet.ready_at(now, size, per_s)

    def host_ready_at(self, host: str, now: float) -> float:
        """When a host's budget allows one more, from `now` on."""
        here = self.agents.get(host, 0)
        size, per_s = self.limits.at_once(here), self.limits.per_s(here)
        return self._hosts.get(host, Bucket()).ready_at(now, size, per_s)
