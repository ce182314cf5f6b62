"""What is kept of the fleet as a whole, in memory: the shipped fake, with the real one's laws.

Law: a method does all or nothing, and nothing at all while `fail_with` is in force.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta

import trio

from custosd.adapters.encoding import check_findings, check_time
from custosd.core.agents import AgentId
from custosd.core.coherence import Coherence
from custosd.core.errors import StoreError, StoreRefused
from custosd.core.findings import Finding
from custosd.core.intents import (
    CLAIMS_PER_AGENT,
    MOST_HELD_TOLD,
    Claim,
    ClaimAnswer,
    Intent,
    marks_of,
    sought_by,
)

EPOCH_UTC = datetime(2026, 1, 1, tzinfo=UTC)


def _virtual_utc() -> datetime:
    return EPOCH_UTC + timedelta(seconds=trio.current_time())


class MemoryCoordination:
    """`ports.CoordinationStore` without a server. `now_utc` is the clock that claims run by."""

    def __init__(self, now_utc: Callable[[], datetime] = _virtual_utc) -> None:
        self._now_utc = now_utc
        self._findings: dict[str, Finding] = {}
        self._readings: list[tuple[datetime, Coherence]] = []
        self._claims: dict[str, Claim] = {}
        self._marked: dict[int, set[str]] = {}
        self._failure: StoreError | None = None

    def fail_with(self, failure: StoreError | None) -> None:
        """Raise this at every call from now on, as a database that is away; None: no more."""
        self._failure = failure

    async def _reach(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._failure is not None:
            raise self._failure

    async def findings(self, since_utc: datetime) -> tuple[Finding, ...]:
        """See the port."""
        check_time(since_utc)
        await self._reach()
        found = [
            f for f in self._findings.values() if not f.resolved_utc or f.resolved_utc >= since_utc
        ]
        return tuple(sorted(found, key=lambda f: (f.first_seen_utc, f.id)))

    async def save_sweep(
        self, at_utc: datetime, coherence: Coherence, findings: Sequence[Finding]
    ) -> None:
        """See the port."""
        check_time(at_utc)
        check_findings(findings)
        await self._reach()
        after = self._findings | {finding.id: finding for finding in findings}
        keys = [finding.key for finding in after.values() if finding.open]
        if len(keys) != len(set(keys)):
            raise StoreRefused("two findings of one kind and pair would be open")
        self._findings = after
        if all(at != at_utc for at, _ in self._readings):
            self._readings.append((at_utc, coherence))

    async def readings(self, limit: int) -> tuple[tuple[datetime, Coherence], ...]:
        """See the port."""
        await self._reach()
        return tuple(sorted(self._readings, key=lambda reading: reading[0], reverse=True)[:limit])

    async def take_claim(
        self, intent: Intent, ttl_s: float, most: int = CLAIMS_PER_AGENT
    ) -> ClaimAnswer:
        """See the port."""
        await self._reach()
        now = self._now_utc()
        for claim in list(self._claims.values()):
            if claim.expires_utc <= now:
                self._drop(claim)
        marked = {id_ for mark in sought_by(intent) for id_ in self._marked.get(mark, ())}
        met = [self._claims[id_] for id_ in marked]
        held = _oldest(claim for claim in met if claim.intent.agent != intent.agent)
        if held:
            return ClaimAnswer(None, held[:MOST_HELD_TOLD])
        known = self._claims.get(intent.id)
        own = [claim for claim in self._claims.values() if claim.intent.agent == intent.agent]
        if known is None and len(own) >= most:
            return ClaimAnswer(None)
        taken = known.taken_utc if known else now
        claim = Claim(intent.id, intent, taken, now + timedelta(seconds=ttl_s))
        self._claims[intent.id] = claim
        for mark in marks_of(intent):
            self._marked.setdefault(mark, set()).add(intent.id)
        return ClaimAnswer(claim)

    def _drop(self, claim: Claim) -> None:
        del self._claims[claim.id]
        for mark in marks_of(claim.intent):
            self._marked[mark].discard(claim.id)
            if not self._marked[mark]:
                del self._marked[mark]

    async def release_claim(self, agent: AgentId, claim_id: str) -> bool:
        """See the port."""
        await self._reach()
        claim = self._claims.get(claim_id)
        if claim is None or claim.intent.agent != agent or self._now_utc() >= claim.expires_utc:
            return False
        self._drop(claim)
        return True

    async def claims(self, limit: int, agent: AgentId | None = None) -> tuple[Claim, ...]:
        """See the port."""
        await self._reach()
        now = self._now_utc()
        lasting = _oldest(
            claim
            for claim in self._claims.values()
            if now < claim.expires_utc and agent in {None, claim.intent.agent}
        )
        return lasting[:limit]

    async def prune(self, before_utc: datetime) -> int:
        """See the port."""
        check_time(before_utc)
        await self._reach()
        over = [
            f.id for f in self._findings.values() if f.resolved_utc and f.resolved_utc < before_utc
        ]
        now = self._now_utc()
        gone = [claim for claim in self._claims.values() if claim.expires_utc <= now]
        old = [reading for reading in self._readings if reading[0] < before_utc]
        for finding in over:
            del self._findings[finding]
        for claim in gone:
            self._drop(claim)
        self._readings = [reading for reading in self._readings if reading[0] >= before_utc]
        return len(over) + len(gone) + len(old)


def _oldest(claims: Iterable[Claim]) -> tuple[Claim, ...]:
    return tuple(sorted(claims, key=lambda claim: (claim.taken_utc, claim.id)))
