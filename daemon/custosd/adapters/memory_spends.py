"""What judging has cost, in memory: the shipped fake, with the laws of the real store."""

from collections.abc import Sequence
from datetime import UTC, date, datetime

import trio

from custosd.adapters.encoding import check_spends, check_time
from custosd.core.agents import AgentId
from custosd.core.errors import StoreError
from custosd.core.money import BUCKET_S, Spend, Spent


class MemorySpends:
    """`ports.SpendStore` without a database; forgets everything with its process."""

    def __init__(self) -> None:
        self._spends: dict[str, Spend] = {}
        self._fleet: dict[date, float] = {}
        self._error: StoreError | None = None

    def fail_with(self, error: StoreError | None) -> None:
        """Let every method raise `error` from now on; None makes the store well again."""
        self._error = error

    @property
    def rows(self) -> tuple[Spend, ...]:
        """Every call that is stored."""
        return tuple(self._spends.values())

    async def save_spends(self, spends: Sequence[Spend]) -> None:
        """See the port."""
        await self._begin()
        check_spends(spends)
        for spend in spends:
            before = self._spends.get(spend.id)
            if before is None or before.settled_usd is None:
                self._spends[spend.id] = spend

    async def spent(self, since_utc: datetime, agent: AgentId | None = None) -> tuple[Spent, ...]:
        """See the port."""
        await self._begin()
        check_time(since_utc)
        found: dict[tuple[int, AgentId, str], float] = {}
        for spend in self._spends.values():
            at_utc, usd = spend.counts
            if spend.at_utc >= since_utc and usd > 0 and agent in {None, spend.agent}:
                bucket = int(at_utc.timestamp() // BUCKET_S)
                key = (bucket, spend.agent, spend.model)
                found[key] = found.get(key, 0.0) + usd
        return tuple(
            Spent(datetime.fromtimestamp(bucket * BUCKET_S, UTC), agent, model, usd)
            for (bucket, agent, model), usd in sorted(found.items())
        )

    async def save_fleet_day(self, at_utc: datetime, usd: float) -> None:
        """See the port."""
        await self._begin()
        check_time(at_utc)
        day = at_utc.astimezone(UTC).date()
        self._fleet[day] = max(usd, self._fleet.get(day, 0.0))

    async def fleet_day(self, at_utc: datetime) -> float | None:
        """See the port."""
        await self._begin()
        return self._fleet.get(at_utc.astimezone(UTC).date())

    async def prune_spends(self, before_utc: datetime) -> int:
        """See the port."""
        await self._begin()
        check_time(before_utc)
        old = [spend.id for spend in self._spends.values() if spend.at_utc < before_utc]
        for id_ in old:
            del self._spends[id_]
        day = before_utc.astimezone(UTC).date()
        self._fleet = {at: usd for at, usd in self._fleet.items() if at >= day}
        return len(old)

    async def _begin(self) -> None:
        # Before any change: a cancelled method has done nothing.
        await trio.lowlevel.checkpoint()
        if self._error is not None:
            raise self._error
