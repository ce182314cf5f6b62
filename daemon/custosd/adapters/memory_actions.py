"""What is written about acts, in memory: the shipped fake, with the laws of the real one.

Law: a method does all or nothing, and nothing at all while `fail_with` is in force.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import trio

from custosd.adapters.encoding import (
    check_hold,
    check_intervention,
    check_lease,
    check_lives,
    check_restart,
    check_time,
    check_token,
)
from custosd.core.agents import AgentId
from custosd.core.errors import StoreError, StoreRefused
from custosd.core.holds import Hold, HoldKind
from custosd.core.lives import LifeRecord
from custosd.core.restarts import Restart
from custosd.core.steering import CLOSED, Intervention, InterventionState
from custosd.core.tokens import Token
from custosd.ports import Lease

EPOCH_UTC = datetime(2026, 1, 1, tzinfo=UTC)


def virtual_utc() -> datetime:
    """The time of trio's clock, counted from a fixed day."""
    return EPOCH_UTC + timedelta(seconds=trio.current_time())


class MemoryActions:
    """`ports.ActionStore` without a server. `now_utc` is the clock that leases run by."""

    def __init__(self, now_utc: Callable[[], datetime] = virtual_utc) -> None:
        self._now_utc = now_utc
        self._lives: dict[AgentId, LifeRecord] = {}
        self._restarts: dict[str, Restart] = {}
        self._epochs: dict[AgentId, int] = {}
        self._interventions: dict[str, Intervention] = {}
        self._holds: dict[tuple[HoldKind, str], Hold] = {}
        self._leases: dict[str, Lease] = {}
        self._tokens: dict[str, Token] = {}
        self._failure: StoreError | None = None

    def fail_with(self, failure: StoreError | None) -> None:
        """Raise this at every call from now on, as a database that is away; None: no more."""
        self._failure = failure

    async def _reach(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._failure is not None:
            raise self._failure

    async def lives(self) -> tuple[LifeRecord, ...]:
        """See the port."""
        await self._reach()
        return tuple(self._lives[agent] for agent in sorted(self._lives))

    async def life(self, agent: AgentId) -> LifeRecord | None:
        """See the port."""
        await self._reach()
        return self._lives.get(agent)

    async def save_lives(self, lives: Sequence[LifeRecord]) -> None:
        """See the port."""
        await self._reach()
        check_lives(lives)
        for life in lives:
            known = self._lives.get(life.agent)
            if known is None or (life.epoch, life.sequence) >= (known.epoch, known.sequence):
                self._lives[life.agent] = life

    async def intend_restart(self, restart: Restart) -> Restart | None:
        """See the port."""
        await self._reach()
        check_restart(restart)
        known = self._restarts.get(restart.id)
        if known is not None:
            return known
        for other in self._restarts.values():
            if other.agent == restart.agent and (not other.ended or other.key == restart.key):
                return None
        life = self._lives.get(restart.agent)
        last = max(restart.epoch, self._epochs.get(restart.agent, 0), life.epoch if life else 0)
        self._epochs[restart.agent] = last + 1
        stored = replace(restart, next_epoch=last + 1)
        self._restarts[restart.id] = stored
        return stored

    async def save_restart(self, restart: Restart) -> bool:
        """See the port."""
        await self._reach()
        check_restart(restart)
        known = self._restarts.get(restart.id)
        if known is None:
            return False
        if known.ended:
            return _end_of(known) == _end_of(restart)
        if restart.fence < known.fence:
            return False
        self._restarts[restart.id] = replace(
            restart,
            epoch=known.epoch,
            next_epoch=known.next_epoch,
            key=known.key,
            intended_utc=known.intended_utc,
        )
        return True

    async def restarts(
        self, since_utc: datetime, agent: AgentId | None = None
    ) -> tuple[Restart, ...]:
        """See the port."""
        await self._reach()
        check_time(since_utc)
        found = [
            restart
            for restart in self._restarts.values()
            if agent in {None, restart.agent}
            if not restart.ended or restart.intended_utc >= since_utc
        ]
        return tuple(sorted(found, key=lambda restart: (restart.intended_utc, restart.id)))

    async def propose(self, intervention: Intervention) -> bool:
        """See the port."""
        await self._reach()
        check_intervention(intervention)
        if intervention.id in self._interventions or any(
            (other.agent, other.key) == (intervention.agent, intervention.key)
            for other in self._interventions.values()
        ):
            return False
        self._interventions[intervention.id] = intervention
        return True

    async def save_intervention(
        self, intervention: Intervention, before: InterventionState
    ) -> bool:
        """See the port."""
        await self._reach()
        check_intervention(intervention)
        known = self._interventions.get(intervention.id)
        if known is None or known.state is not before:
            return False
        self._interventions[intervention.id] = replace(
            intervention, key=known.key, proposed_utc=known.proposed_utc
        )
        return True

    async def interventions(self, since_utc: datetime) -> tuple[Intervention, ...]:
        """See the port."""
        await self._reach()
        check_time(since_utc)
        found = [
            told
            for told in self._interventions.values()
            if told.state not in CLOSED or told.proposed_utc >= since_utc
        ]
        return tuple(sorted(found, key=lambda told: (told.proposed_utc, told.id)))

    async def place_hold(self, hold: Hold) -> None:
        """See the port."""
        await self._reach()
        check_hold(hold)
        self._holds[hold.key] = hold

    async def place_holds(self, holds: Sequence[Hold]) -> None:
        """See the port."""
        await self._reach()
        for hold in holds:
            check_hold(hold)
        self._holds.update((hold.key, hold) for hold in holds)

    async def lift_hold(self, kind: HoldKind, subject: str) -> bool:
        """See the port."""
        await self._reach()
        return self._holds.pop((kind, subject), None) is not None

    async def lift_holds(self, keys: Collection[tuple[HoldKind, str]]) -> int:
        """See the port."""
        await self._reach()
        return sum(self._holds.pop(key, None) is not None for key in keys)

    async def holds(self) -> tuple[Hold, ...]:
        """See the port."""
        await self._reach()
        return tuple(self._holds[key] for key in sorted(self._holds))

    async def take_lease(self, name: str, owner: str, ttl_s: float) -> Lease | None:
        """See the port."""
        await self._reach()
        check_lease(name, owner, ttl_s)
        now = self._now_utc()
        known = self._leases.get(name)
        lives = known is not None and known.expires_utc > now
        if known is not None and lives and known.owner != owner:
            return None
        fence = 1 if known is None else known.fence + (0 if lives else 1)
        lease = Lease(name, owner, fence, now + timedelta(seconds=ttl_s))
        self._leases[name] = lease
        return lease

    async def release_lease(self, name: str, owner: str) -> None:
        """See the port."""
        await self._reach()
        known = self._leases.get(name)
        if known is not None and known.owner == owner:
            ends_utc = min(known.expires_utc, self._now_utc())
            self._leases[name] = replace(known, expires_utc=ends_utc)

    async def tokens(self) -> tuple[Token, ...]:
        """See the port."""
        await self._reach()
        return tuple(self._tokens[token_id] for token_id in sorted(self._tokens))

    async def save_token(self, token: Token) -> None:
        """See the port."""
        await self._reach()
        check_token(token)
        known = self._tokens.setdefault(token.id, token)
        if known.secret_hash != token.secret_hash:
            raise StoreRefused(
                f"there is another token {token.id!a}: revoke it, or choose a new id"
            )

    async def revoke_token(self, token_id: str) -> bool:
        """See the port."""
        await self._reach()
        return self._tokens.pop(token_id, None) is not None

    async def prune(self, before_utc: datetime) -> int:
        """See the port."""
        check_time(before_utc)
        await self._reach()
        restarts = [
            id_
            for id_, restart in self._restarts.items()
            if restart.ended_utc is not None
            and max(restart.intended_utc, restart.ended_utc) < before_utc
        ]
        messages = [
            id_
            for id_, message in self._interventions.items()
            if message.closed_utc is not None
            and max(message.proposed_utc, message.closed_utc) < before_utc
        ]
        gone = [life for life in self._lives.values() if _last_seen(life) < before_utc]
        for id_ in restarts:
            del self._restarts[id_]
        for id_ in messages:
            del self._interventions[id_]
        for life in gone:
            # The next incarnation of that name must not be given its epoch again.
            self._epochs[life.agent] = max(self._epochs.get(life.agent, 0), life.epoch)
            del self._lives[life.agent]
        return len(restarts) + len(messages) + len(gone)


def _last_seen(life: LifeRecord) -> datetime:
    times = (life.since_utc, life.heard_utc, life.progress_utc)
    return max(time for time in times if time is not None)


def _end_of(restart: Restart) -> tuple[object, ...]:
    """By what the word that ended a restart is known when it is repeated."""
    return restart.state, restart.owner, restart.fence, restart.failure, restart.ended_utc
