"""What is written about acts, on PostgreSQL: lives, restarts, messages, holds, leases, tokens.

Laws:

1. As `store`, 1 and 2: a method is one crossing and one unit of a constant number of
   statements (lives: one for each slice of them), and what is not understood is left out,
   counted and said.
2. Who may act is decided by the server alone: by its locks, its constraints and its clock.
"""

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import TypeVar

import structlog
import trio

from custosd.adapters.encoding import (
    check_hold,
    check_intervention,
    check_lease,
    check_lives,
    check_restart,
    check_time,
    check_token,
    storable,
)
from custosd.adapters.postgres import action_queries, action_rows
from custosd.adapters.postgres.bridge import Connection, Database, Record
from custosd.core.agents import AgentId, shard_of
from custosd.core.errors import StoreRefused
from custosd.core.holds import Hold, HoldKind
from custosd.core.lives import LifeRecord
from custosd.core.restarts import Restart
from custosd.core.steering import Intervention, InterventionState
from custosd.core.tokens import Token
from custosd.ports import Lease

log = structlog.get_logger()

T = TypeVar("T")


class PostgresActions:
    """`ports.ActionStore` on an open database whose schema is in place."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._skipped = 0

    @property
    def skipped(self) -> int:
        """How many values could not be understood since the start: a newer version's."""
        return self._skipped

    async def lives(self) -> tuple[LifeRecord, ...]:
        """Every life that is remembered."""
        found = await self._database.unit(_read, action_queries.READ_LIVES, tx=False)
        return self._known(found, action_rows.life_of, "lives")

    async def life(self, agent: AgentId) -> LifeRecord | None:
        """What is remembered of one agent's life; None: nothing."""
        key = (shard_of(agent), storable(agent))
        found = await self._database.unit(_read, action_queries.READ_LIFE, *key, tx=False)
        return next(iter(self._known(found, action_rows.life_of, "lives")), None)

    async def save_lives(self, lives: Sequence[LifeRecord]) -> None:
        """Store lives, all or none; a stored epoch or sequence never goes back."""
        if not lives:
            await trio.lowlevel.checkpoint()
            return
        await self._database.unit(_save_lives, lives)

    async def intend_restart(self, restart: Restart) -> Restart | None:
        """Write the intent with the agent's next epoch; see the port."""
        row = await self._database.unit(_intend_restart, restart)
        if row is None:
            return None
        stored = action_rows.restart_of(row)
        if stored is None:
            raise StoreRefused(
                f"restart {restart.id!a} is stored with words that this version does not know:"
                " install the newer custosd that wrote it"
            )
        return stored

    async def save_restart(self, restart: Restart) -> bool:
        """Store a restart and its steps; False: it has ended, or the fence was overtaken."""
        return await self._database.unit(_save_restart, restart, tx=False)

    async def restarts(
        self, since_utc: datetime, agent: AgentId | None = None
    ) -> tuple[Restart, ...]:
        """All restarts that are open, and those intended since, oldest first; of one agent."""
        check_time(since_utc)
        query, key = action_queries.READ_RESTARTS, tuple[object, ...]()
        if agent is not None:
            query, key = action_queries.READ_RESTARTS_OF, (shard_of(agent), storable(agent))
        found = await self._database.unit(_read, query, since_utc, *key, tx=False)
        return self._known(found, action_rows.restart_of, "restarts")

    async def propose(self, intervention: Intervention) -> bool:
        """Store a new intervention; False: one with its id or (agent, key) is there already."""
        return await self._database.unit(_propose, intervention, tx=False)

    async def save_intervention(
        self, intervention: Intervention, before: InterventionState
    ) -> bool:
        """Store it as it stands, if its stored state is `before`; False: it is another by now."""
        return await self._database.unit(_save_intervention, intervention, before, tx=False)

    async def interventions(self, since_utc: datetime) -> tuple[Intervention, ...]:
        """All interventions that are open, and those proposed since, oldest first."""
        check_time(since_utc)
        query = action_queries.READ_INTERVENTIONS
        found = await self._database.unit(_read_since, query, since_utc, tx=False)
        return self._known(found, action_rows.intervention_of, "interventions")

    async def place_hold(self, hold: Hold) -> None:
        """Place a hold; one of the same key is replaced."""
        await self._database.unit(_place_hold, hold, tx=False)

    async def place_holds(self, holds: Sequence[Hold]) -> None:
        """Place holds, all or none; of one key the last one stays."""
        if not holds:
            await trio.lowlevel.checkpoint()
            return
        await self._database.unit(_place_holds, holds, tx=False)

    async def lift_hold(self, kind: HoldKind, subject: str) -> bool:
        """Lift a hold; False: there is none."""
        return await self._database.unit(_lift_hold, kind, subject, tx=False)

    async def lift_holds(self, keys: Collection[tuple[HoldKind, str]]) -> int:
        """Lift holds by kind and subject; return how many there were."""
        if not keys:
            await trio.lowlevel.checkpoint()
            return 0
        return await self._database.unit(_lift_holds, keys, tx=False)

    async def holds(self) -> tuple[Hold, ...]:
        """All holds, whether they have run out or not."""
        found = await self._database.unit(_read, action_queries.READ_HOLDS, tx=False)
        return self._known(found, action_rows.hold_of, "holds")

    async def take_lease(self, name: str, owner: str, ttl_s: float) -> Lease | None:
        """Take or renew a lease, by the server's clock; None: somebody else has it."""
        return await self._database.unit(_take_lease, name, owner, ttl_s, tx=False)

    async def release_lease(self, name: str, owner: str) -> None:
        """Give a lease back, if it is this owner's; its fence is remembered."""
        await self._database.unit(_release_lease, name, owner, tx=False)

    async def tokens(self) -> tuple[Token, ...]:
        """All tokens that have not been revoked; secrets only as hashes."""
        found = await self._database.unit(_read, action_queries.READ_TOKENS, tx=False)
        return tuple(map(action_rows.token_of, found))

    async def save_token(self, token: Token) -> None:
        """Store a token that was issued; `StoreRefused` where its id has another secret."""
        await self._database.unit(_save_token, token, tx=False)

    async def revoke_token(self, token_id: str) -> bool:
        """Take a token away for good; False: there is none."""
        return await self._database.unit(_revoke_token, token_id, tx=False)

    async def prune(self, before_utc: datetime) -> int:
        """Drop what was over before this time, in bounded units of work; see the port."""
        check_time(before_utc)
        gone = 0
        for query in (
            action_queries.PRUNE_RESTARTS,
            action_queries.PRUNE_INTERVENTIONS,
            action_queries.PRUNE_LIVES,
        ):
            batch = action_queries.PRUNE_BATCH
            while batch == action_queries.PRUNE_BATCH:
                batch = await self._database.unit(_prune, query, before_utc, tx=False)
                gone += batch
        return gone

    def _known(
        self, found: Sequence[Record], value_of: Callable[[Record], T | None], during: str
    ) -> tuple[T, ...]:
        known = tuple(value for row in found if (value := value_of(row)) is not None)
        if unknown := len(found) - len(known):
            self._skipped += unknown
            log.warning("record.skipped", during=during, count=unknown, total=self._skipped)
        return known


# The far side: coroutines that run on the database's thread, one for each unit of work.


async def _read(conn: Connection, query: str, *parameters: object) -> list[Record]:
    return list(await conn.fetch(query, *parameters))


async def _read_since(conn: Connection, query: str, since_utc: datetime) -> list[Record]:
    return list(await conn.fetch(query, since_utc))


async def _prune(conn: Connection, query: str, before_utc: datetime) -> int:
    return int(await conn.fetchval(query, before_utc))


async def _save_lives(conn: Connection, lives: Sequence[LifeRecord]) -> None:
    check_lives(lives)
    for told in action_rows.life_columns(lives, action_queries.LIVES_SLICE):
        await conn.execute(action_queries.SAVE_LIVES, *told)


async def _intend_restart(conn: Connection, restart: Restart) -> Record | None:
    check_restart(restart)
    key = (shard_of(restart.agent), storable(restart.id))
    known = await conn.fetchrow(action_queries.READ_RESTART, *key)
    if known is not None:
        return known
    await conn.execute(action_queries.LOCK_EPOCH, key[0], storable(restart.agent))
    await conn.execute(action_queries.INTEND_RESTART, *action_rows.intent_row(restart))
    return await conn.fetchrow(action_queries.READ_RESTART, *key)


async def _save_restart(conn: Connection, restart: Restart) -> bool:
    check_restart(restart)
    row = action_rows.restart_row(restart)
    return bool(await conn.fetchval(action_queries.SAVE_RESTART, *row))


async def _propose(conn: Connection, intervention: Intervention) -> bool:
    check_intervention(intervention)
    row = action_rows.proposal_row(intervention)
    return bool(await conn.fetchval(action_queries.PROPOSE, *row))


async def _save_intervention(
    conn: Connection, intervention: Intervention, before: InterventionState
) -> bool:
    check_intervention(intervention)
    row = action_rows.intervention_row(intervention)
    return bool(await conn.fetchval(action_queries.SAVE_INTERVENTION, *row, before.value))


async def _place_hold(conn: Connection, hold: Hold) -> None:
    check_hold(hold)
    await conn.execute(action_queries.PLACE_HOLD, *action_rows.hold_row(hold))


async def _place_holds(conn: Connection, holds: Sequence[Hold]) -> None:
    for hold in holds:
        check_hold(hold)
    await conn.execute(action_queries.PLACE_HOLDS, *action_rows.hold_columns(holds))


async def _lift_holds(conn: Connection, keys: Collection[tuple[HoldKind, str]]) -> int:
    kinds = [kind.value for kind, _ in keys]
    subjects = [storable(subject) for _, subject in keys]
    return int(await conn.fetchval(action_queries.LIFT_HOLDS, kinds, subjects))


async def _lift_hold(conn: Connection, kind: HoldKind, subject: str) -> bool:
    return bool(await conn.fetchval(action_queries.LIFT_HOLD, kind.value, storable(subject)))


async def _take_lease(conn: Connection, name: str, owner: str, ttl_s: float) -> Lease | None:
    check_lease(name, owner, ttl_s)
    row = await conn.fetchrow(action_queries.TAKE_LEASE, storable(name), storable(owner), ttl_s)
    return None if row is None else Lease(name, owner, row["fence"], row["expires_utc"])


async def _release_lease(conn: Connection, name: str, owner: str) -> None:
    await conn.execute(action_queries.RELEASE_LEASE, storable(name), storable(owner))


async def _save_token(conn: Connection, token: Token) -> None:
    check_token(token)
    if not await conn.fetchval(action_queries.ISSUE, *action_rows.token_row(token)):
        raise StoreRefused(f"there is another token {token.id!a}: revoke it, or choose a new id")


async def _revoke_token(conn: Connection, token_id: str) -> bool:
    return bool(await conn.fetchval(action_queries.REVOKE, storable(token_id)))
