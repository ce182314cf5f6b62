"""The schema says what cannot be, holds the program's words, and has the indexes it needs."""

import os
import re
from collections.abc import AsyncIterator
from enum import StrEnum

import pytest
from tests.adapters.postgres.migrated import emptied, execute, fetch, fetchval, migrated_dsn

from custosd.adapters.postgres.bridge import Database
from custosd.adapters.postgres.embedded import EmbeddedServer
from custosd.core.agents import AgentState
from custosd.core.beats import WaitKind
from custosd.core.errors import StoreRefused
from custosd.core.findings import FindingKind, Resolution
from custosd.core.forge import WorkKind, WorkState
from custosd.core.holds import HoldKind
from custosd.core.restarts import Cause, RestartState, RestartStep, StepState
from custosd.core.signals import Severity, SignalKind
from custosd.core.steering import InterventionState
from custosd.core.tasks import FailureKind, TaskPriority, TaskState
from custosd.core.transcript import RunEnd
from custosd.core.verdicts import Phase, Standing, SteeringKind, SteeringReason

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="session")
def schema_dsn(postgres_server: EmbeddedServer) -> str:
    return migrated_dsn(postgres_server.dsn, f"schema_{os.getpid()}")


@pytest.fixture
async def database(schema_dsn: str) -> AsyncIterator[Database]:
    async with emptied(schema_dsn) as database:
        yield database


WORDS: dict[str, type[StrEnum] | set[str]] = {
    "agent_state": AgentState,
    "run_end": RunEnd,
    "standing": Standing,
    "phase": Phase,
    "signal_kind": SignalKind,
    "severity": Severity,
    "steering_kind": SteeringKind,
    "steering_reason": SteeringReason,
    "intervention_state": InterventionState,
    "restart_cause": Cause,
    "restart_state": RestartState,
    "restart_step": RestartStep,
    "step_state": StepState,
    "wait_kind": WaitKind,
    "hold_kind": HoldKind,
    "finding_kind": FindingKind,
    "finding_resolution": Resolution,
    "task_state": TaskState,
    "task_priority": TaskPriority,
    "task_failure": FailureKind,
    "work_kind": WorkKind,
    "work_state": WorkState,
}


async def test_the_schema_knows_the_programs_words_and_no_others(database: Database) -> None:
    """A word added to the core needs a migration: this test says which."""
    found = await database.unit(
        fetch,
        "select t.typname as domain, pg_get_constraintdef(c.oid) as rule"
        " from pg_constraint c join pg_type t on t.oid = c.contypid"
        " where t.typnamespace = 'custosd'::regnamespace and c.conname like '%\\_known'",
    )
    stored = {row["domain"]: set(re.findall(r"'([a-z_]+)'::text", row["rule"])) for row in found}
    assert stored == {name: set(map(str, words)) for name, words in WORDS.items()}


# What is keyed by agent; everything else is not spread over shards.
UNSHARDED = {
    "claim_marks", "claims", "closings", "daemons", "deliveries", "findings", "fleet_days",
    "holds", "leases", "metrics", "migrations", "sync_cursors", "sync_repositories",
    "work_links", "works", "readings", "tasks", "task_edges", "tokens",
}  # fmt: skip


async def test_every_key_of_an_agents_table_holds_its_shard(database: Database) -> None:
    """What a distributed server asks for: keys, unique indexes and references have the shard."""
    found = await database.unit(
        fetch,
        """
        select t.relname as table, i.relname as name, array(
            select a.attname from unnest(x.indkey::int[]) with ordinality as k (attnum, place)
            join pg_attribute a on a.attrelid = t.oid and a.attnum = k.attnum order by place)
            as columns, x.indisprimary as key
        from pg_index x join pg_class t on t.oid = x.indrelid
        join pg_class i on i.oid = x.indexrelid
        where t.relnamespace = 'custosd'::regnamespace and x.indisunique
        """,
    )
    checked = 0
    for row in found:
        if row["table"] in UNSHARDED:
            continue
        checked += 1
        assert "shard" in row["columns"], row
        if row["key"] and not row["table"].startswith("facts"):
            assert row["columns"][0] == "shard", row
    assert checked >= 12
    references = await database.unit(
        fetch,
        "select conrelid::regclass::text as table, pg_get_constraintdef(oid) as rule"
        " from pg_constraint where contype = 'f' and connamespace = 'custosd'::regnamespace",
    )
    for row in references:
        if row["table"].removeprefix("custosd.") not in UNSHARDED:
            assert row["rule"].startswith("FOREIGN KEY (shard, "), row


async def test_every_reference_has_an_index_that_begins_with_it(database: Database) -> None:
    """Deleting what is referred to never reads the referring table whole."""
    missing = await database.unit(
        fetch,
        """
        select c.conname from pg_constraint c
        where c.contype = 'f' and c.connamespace = 'custosd'::regnamespace and not exists (
            select from pg_index x where x.indrelid = c.conrelid
            -- two columns are enough: the third is the run, and an agent has few
            and (x.indkey::int2[])[0:least(2, cardinality(c.conkey)) - 1] = c.conkey[1:2])
        """,
    )
    assert missing == []


async def test_no_index_holds_what_is_updated_often(database: Database) -> None:
    found = await database.unit(
        fetch,
        """
        select t.relname as table, a.attname as column
        from pg_index x join pg_class t on t.oid = x.indrelid
        join pg_attribute a on a.attrelid = t.oid and a.attnum = any(x.indkey)
        where t.relnamespace = 'custosd'::regnamespace
        """,
    )
    indexed = {(row["table"], row["column"]) for row in found}
    often = {
        "runs": "state state_utc standing standing_utc steps grown_utc ended_utc end_reason path",
        "trajectories": "digest fold",
        "transcripts": "byte_offset cursor grown_utc path",
        "daemons": "beat_utc agents sweeps",
        "leases": "expires_utc fence",
        "lives": "epoch sequence state since_utc heard_utc gaps_s progress_utc pid",
        "epochs": "epoch",
        "restarts": "state fence owner ended_utc",
        "interventions": "state attempts closed_utc measured_utc",
        "tasks": "lease_until_utc fence attempts",
    }
    for table, columns in often.items():
        for column in columns.split():
            assert (table, column) not in indexed
            exists = await database.unit(
                fetchval,
                "select count(*) from information_schema.columns where table_schema = 'custosd'"
                " and table_name = $1 and column_name = $2",
                table,
                column,
            )
            assert exists == 1, (table, column)


async def test_names_are_ordered_by_bytes(database: Database) -> None:
    """An index on names does not break when the locale's library is updated."""
    found = await database.unit(
        fetch,
        """
        select distinct t.relname, a.attname from pg_index x
        join pg_class t on t.oid = x.indrelid
        join pg_attribute a on a.attrelid = t.oid and a.attnum = any(x.indkey)
        join pg_collation c on c.oid = a.attcollation
        where t.relnamespace = 'custosd'::regnamespace and c.collname <> 'C'
        """,
    )
    assert found == []


# Rows: what an agent has, and one row of each table that later parts will write.

_GROUND = """
insert into custosd.agents (shard, agent_id, first_seen_utc, epoch) values (7, 'a', 'now', 1);
insert into custosd.runs (shard, agent_id, run_id, epoch, seen_utc) values (7, 'a', 'r', 1, 'now');
insert into custosd.verdicts (shard, id, agent_id, run_id, at_utc, steps, standing, phase,
    needs_steering, judge) values (7, 'v', 'a', 'r', 'now', 3, 'stuck', 'testing', true, 'rules');
"""

ROWS: dict[str, dict[str, str]] = {
    "agents": {"shard": "8", "agent_id": "'b'", "first_seen_utc": "now()"},
    "runs": {"shard": "7", "agent_id": "'a'", "run_id": "'s'", "seen_utc": "now()"},
    "transcripts": {
        "shard": "1",
        "key": "'k'",
        "path": "''",
        "format": "''",
        "session": "''",
        "byte_offset": "0",
        "cursor": "''",
    },
    "verdicts": {
        "shard": "7",
        "id": "'w'",
        "agent_id": "'a'",
        "run_id": "'r'",
        "at_utc": "now()",
        "steps": "0",
        "standing": "'unknown'",
        "phase": "'unknown'",
        "needs_steering": "false",
        "judge": "'rules'",
    },
    "signals": {
        "shard": "7",
        "verdict_id": "'v'",
        "place": "0",
        "kind": "'stale'",
        "severity": "'note'",
        "measure": "1",
        "threshold": "'Infinity'",
    },
    "facts": {"at_utc": "now()", "shard": "0", "id": "'f'", "kind": "'told'", "body": "'{}'"},
    "interventions": {
        "shard": "7",
        "id": "'i'",
        "agent_id": "'a'",
        "idempotency_key": "'key'",
        "verdict_id": "'v'",
        "kind": "'guidance'",
        "message": "'read the error'",
        "proposed_by": "'guardian'",
        "proposed_utc": "now()",
        "expires_utc": "now() + interval '30 minutes'",
    },
    "restarts": {
        "shard": "7",
        "id": "'x'",
        "agent_id": "'a'",
        "idempotency_key": "'key'",
        "cause": "'hang'",
        "requested_by": "'liveness'",
        "epoch": "1",
        "next_epoch": "2",
        "intended_utc": "now()",
    },
    "lives": {
        "shard": "7",
        "agent_id": "'a'",
        "epoch": "0",
        "sequence": "0",
        "state": "'starting'",
        "since_utc": "now()",
    },
    "epochs": {"shard": "7", "agent_id": "'a'", "epoch": "1"},
    "holds": {
        "kind": "'pause'",
        "subject": "'a'",
        "placed_by": "'eve'",
        "reason": "''",
        "since_utc": "now()",
    },
    "tokens": {
        "id": "'t'",
        "secret_hash": "sha256('s')",
        "created_utc": "now()",
        "created_by": "'eve'",
    },
    "tasks": {"id": "'t'", "title": "'a task'", "created_utc": "now()"},
    "spends": {
        "shard": "7",
        "id": "'s'",
        "at_utc": "now()",
        "agent_id": "'a'",
        "model": "'sonnet'",
        "reserved_usd": "0.5",
    },
    "fleet_days": {"day": "'2026-03-01'", "spent_usd": "0.5"},
    "daemons": {
        "name": "'d'",
        "pid": "1",
        "version": "'0'",
        "started_utc": "now()",
        "beat_utc": "now()",
        "agents": "0",
        "sweeps": "0",
    },
    "leases": {
        "name": "'conductor'",
        "owner": "'d'",
        "fence": "1",
        "taken_utc": "now()",
        "expires_utc": "now() + interval '30 s'",
    },
}

POSSIBLE: list[tuple[str, dict[str, str]]] = [
    *((table, {}) for table in ROWS),
    ("runs", {"ended_utc": "now()", "end_reason": "'submitted'"}),
    ("interventions", {"state": "'approved'", "approved_utc": "now()", "approved_by": "'eve'"}),
    (
        "interventions",
        {
            "state": "'acted'",
            "queued_utc": "now()",
            "delivered_utc": "now()",
            "channel": "'inbox'",
            "acknowledged_utc": "now()",
            "acted_utc": "now()",
            "closed_utc": "now()",
            "measured_utc": "now()",
            "alignment_after": "0.5",
        },
    ),
    ("interventions", {"hold_out": "true", "state": "'expired'", "closed_utc": "now()"}),
    (
        "restarts",
        {"state": "'succeeded'", "ended_utc": "now() - interval '1 day'"},
    ),
    (
        "restarts",
        {"state": "'running'", "started_utc": "now()", "owner": "'d'", "fence": "1"},
    ),
    ("lives", {"pid": "1", "started_ticks": "0", "boot_id": "''", "gaps_s": "'{0,Infinity}'"}),
    ("tasks", {"state": "'ready'", "ready_utc": "now()"}),
    (
        "tasks",
        {
            "state": "'claimed'",
            "ready_utc": "now()",
            "agent_shard": "7",
            "agent_id": "'a'",
            "agent_epoch": "1",
            "claimed_utc": "now()",
            "lease_until_utc": "now()",
            "fence": "1",
            "attempts": "1",
        },
    ),
]

IMPOSSIBLE: list[tuple[str, dict[str, str], str]] = [
    ("agents", {"shard": "256"}, "shard_range"),
    ("agents", {"agent_id": "''"}, "name_given"),
    ("agents", {"epoch": "-1"}, "agents_epoch"),
    ("runs", {"state": "'zombie'"}, "agent_state_known"),
    ("runs", {"standing": "'fine'"}, "standing_known"),
    ("runs", {"agent_id": "'nobody'"}, "runs_agent_fk"),
    ("runs", {"epoch": "1"}, "runs_epoch_unique"),
    ("runs", {"ended_utc": "now()"}, "runs_end_complete"),
    ("runs", {"end_reason": "'finished'"}, "runs_end_complete"),
    ("runs", {"steps": "-1"}, "tally_range"),
    ("transcripts", {"byte_offset": "-1"}, "tally_range"),
    ("verdicts", {"alignment": "1.01"}, "fraction_range"),
    ("verdicts", {"confidence": "'NaN'"}, "fraction_range"),
    ("verdicts", {"id": "'v'"}, "verdicts_pk"),
    ("verdicts", {"run_id": "'s'"}, "verdicts_run_fk"),
    ("verdicts", {"steering_kind": "'threat'"}, "steering_kind_known"),
    ("signals", {"verdict_id": "'w'"}, "signals_verdict_fk"),
    ("signals", {"kind": "'doomed'"}, "signal_kind_known"),
    ("facts", {"kind": "'Told You'"}, "facts_kind"),
    ("facts", {"run_id": "'r'"}, "facts_run_of_agent"),
    ("facts", {"body": "'[]'"}, "facts_body"),
    ("interventions", {"state": "'sent'"}, "intervention_state_known"),
    ("interventions", {"message": "''"}, "interventions_worded"),
    ("interventions", {"state": "'approved'"}, "interventions_approved"),
    ("interventions", {"state": "'queued'"}, "interventions_queued"),
    ("interventions", {"state": "'delivered'"}, "interventions_delivered"),
    (
        "interventions",
        {"state": "'acknowledged'", "delivered_utc": "now()", "channel": "'inbox'"},
        "interventions_acknowledged",
    ),
    ("interventions", {"state": "'expired'"}, "interventions_closed"),
    ("interventions", {"closed_utc": "now()"}, "interventions_closed"),
    ("interventions", {"state": "'failed'", "closed_utc": "now()"}, "interventions_failed"),
    ("interventions", {"hold_out": "true", "delivered_utc": "now()"}, "interventions_held_out"),
    ("interventions", {"alignment_after": "0.5"}, "interventions_measured"),
    ("interventions", {"attempts": "-1"}, "interventions_attempts"),
    ("restarts", {"cause": "'mood'"}, "restart_cause_known"),
    ("restarts", {"next_epoch": "1"}, "restarts_epoch_grows"),
    ("restarts", {"state": "'running'"}, "restarts_running"),
    ("restarts", {"evidence": "'{}'"}, "restarts_evidence"),
    ("restarts", {"fence": "-1"}, "tally_range"),
    ("restarts", {"failure": "'why'"}, "restarts_failed"),
    ("restarts", {"state": "'abandoned'"}, "restarts_ended"),
    ("restarts", {"state": "'failed'", "ended_utc": "now()"}, "restarts_failed"),
    ("lives", {"wait_kind": "'lunch'"}, "wait_kind_known"),
    ("lives", {"sequence": "-1"}, "tally_range"),
    ("lives", {"interval_s": "-1"}, "lives_interval"),
    ("lives", {"gaps_s": "'{1,-1}'"}, "lives_gaps"),
    ("lives", {"pid": "1"}, "lives_process_whole"),
    ("lives", {"pid": "0", "started_ticks": "0", "boot_id": "''"}, "lives_pid"),
    ("epochs", {"epoch": "-1"}, "tally_range"),
    ("holds", {"kind": "'hug'"}, "hold_kind_known"),
    ("holds", {"subject": "''"}, "name_given"),
    ("tokens", {"secret_hash": "'s'"}, "tokens_hash"),
    ("tasks", {"state": "'paused'"}, "task_state_known"),
    ("tasks", {"priority": "'urgent'"}, "task_priority_known"),
    ("tasks", {"state": "'ready'"}, "tasks_ready"),
    ("tasks", {"state": "'ready'", "ready_utc": "now()", "unmet": "1"}, "tasks_ready"),
    ("tasks", {"lease_until_utc": "now()"}, "tasks_leased"),
    ("tasks", {"timeout_s": "0"}, "tasks_timeout"),
    ("tasks", {"overdue": "true"}, "tasks_overdue"),
    ("tasks", {"settled_fence": "1"}, "tasks_settled"),
    ("tasks", {"failure_kind": "'bad luck'"}, "task_failure_known"),
    ("tasks", {"attempts": "9"}, "tasks_attempts"),
    ("tasks", {"state": "'succeeded'"}, "tasks_ended"),
    ("tasks", {"state": "'failed'", "ended_utc": "now()"}, "tasks_failed"),
    ("tasks", {"agent_id": "'a'"}, "tasks_agent_whole"),
    ("leases", {"fence": "0"}, "leases_fence"),
    ("leases", {"owner": "''"}, "name_given"),
    ("leases", {"expires_utc": "now()"}, "leases_order"),
    ("daemons", {"pid": "0"}, "daemons_pid"),
    ("spends", {"reserved_usd": "-1"}, "usd_range"),
    ("spends", {"reserved_usd": "'NaN'"}, "usd_range"),
    ("spends", {"settled_usd": "'Infinity'", "settled_utc": "now()"}, "usd_range"),
    ("spends", {"settled_usd": "1"}, "spends_settled"),
    ("spends", {"model": "''"}, "name_given"),
    ("fleet_days", {"spent_usd": "-1"}, "usd_range"),
]


def insertion(table: str, changes: dict[str, str]) -> str:
    row = ROWS[table] | changes
    return f"insert into custosd.{table} ({', '.join(row)}) values ({', '.join(row.values())})"


async def test_rows_that_can_be_are_accepted(database: Database) -> None:
    for table, changes in POSSIBLE:
        await database.unit(execute, _GROUND + insertion(table, changes))
        await database.unit(execute, "delete from custosd.agents")
        if table not in {"agents", "facts"}:
            await database.unit(execute, f"delete from custosd.{table}")


async def test_rows_that_cannot_be_are_refused(database: Database) -> None:
    await database.unit(execute, _GROUND)
    for table, changes, constraint in IMPOSSIBLE:
        with pytest.raises(StoreRefused) as caught:
            await database.unit(execute, insertion(table, changes))
        assert caught.value.constraint == constraint, (table, changes)


async def test_a_key_given_twice_acts_once(database: Database) -> None:
    """One message for one key, one open restart for one agent, one restart for one epoch."""
    await database.unit(execute, _GROUND)
    for table, again, constraint in (
        ("interventions", {"id": "'j'"}, "interventions_once"),
        ("restarts", {"id": "'y'"}, "restarts_once"),
        ("restarts", {"id": "'y'", "idempotency_key": "'other'"}, "restarts_one_open"),
    ):
        await database.unit(execute, insertion(table, {}) + " on conflict do nothing")
        with pytest.raises(StoreRefused) as caught:
            await database.unit(execute, insertion(table, again))
        assert caught.value.constraint == constraint
    ended = "update custosd.restarts set state = 'abandoned', ended_utc = now()"
    await database.unit(execute, ended)
    again = {"id": "'y'", "idempotency_key": "'other'"}
    with pytest.raises(StoreRefused) as caught:
        await database.unit(execute, insertion("restarts", again))
    assert caught.value.constraint == "restarts_one_epoch"
    await database.unit(execute, insertion("restarts", again | {"next_epoch": "3"}))


async def test_steps_of_a_restart_end_when_they_say_so(database: Database) -> None:
    await database.unit(execute, _GROUND + insertion("restarts", {}))
    step = (
        "insert into custosd.restart_steps"
        " (shard, restart_id, step, state, started_utc, place, attempt) values "
    )
    await database.unit(execute, step + "(7, 'x', 'lease', 'running', now(), 0, 1)")
    for values, constraint in (
        ("(7, 'x', 'spawn', 'done', now(), 0, 1)", "restart_steps_ended"),
        ("(7, 'x', 'lease', 'running', now(), 0, 1)", "restart_steps_pk"),
        ("(7, 'x', 'prayer', 'running', now(), 0, 1)", "restart_step_known"),
        ("(7, 'y', 'spawn', 'running', now(), 0, 1)", "restart_steps_restart_fk"),
        ("(7, 'x', 'spawn', 'running', now(), 0, 0)", "restart_steps_attempt"),
        ("(7, 'x', 'spawn', 'running', now(), -1, 1)", "restart_steps_place"),
    ):
        with pytest.raises(StoreRefused) as caught:
            await database.unit(execute, step + values)
        assert caught.value.constraint == constraint


async def test_edges_join_two_tasks_that_are_there(database: Database) -> None:
    for task in ("t", "u"):
        await database.unit(execute, insertion("tasks", {"id": f"'{task}'"}))
    edge = "insert into custosd.task_edges (task_id, depends_on) values "
    await database.unit(execute, edge + "('t', 'u')")
    for values, constraint in (
        ("('t', 't')", "task_edges_no_self"),
        ("('t', 'u')", "task_edges_pk"),
        ("('t', 'nothing')", "task_edges_depends_fk"),
        ("('nothing', 't')", "task_edges_task_fk"),
    ):
        with pytest.raises(StoreRefused) as caught:
            await database.unit(execute, edge + values)
        assert caught.value.constraint == constraint
    await database.unit(execute, "delete from custosd.tasks where id = 'u'")
    assert await database.unit(fetchval, "select count(*) from custosd.task_edges") == 0


async def test_what_an_agent_had_goes_with_it_but_record_and_acts_stay(
    database: Database,
) -> None:
    """Who is acted upon may have no run: what was done does not go with its transcripts."""
    await database.unit(execute, _GROUND)
    kept = ("lives", "interventions", "restarts")
    for table in ("signals", *kept):
        await database.unit(execute, insertion(table, {}))
    fact = {"shard": "7", "agent_id": "'a'", "run_id": "'r'"}
    await database.unit(execute, insertion("facts", fact))
    await database.unit(execute, "delete from custosd.agents")
    for table in ("runs", "verdicts", "signals"):
        assert await database.unit(fetchval, f"select count(*) from custosd.{table}") == 0
    for table in ("facts", *kept):
        assert await database.unit(fetchval, f"select count(*) from custosd.{table}") == 1


async def test_ready_tasks_and_claims_are_found_by_index(database: Database) -> None:
    """Among 5,000 tasks that are done: the ready set and the claims read no table whole."""
    await database.unit(
        execute,
        "insert into custosd.tasks (id, title, state, created_utc, ended_utc)"
        " select 't' || n, '', 'succeeded', now(), now() from generate_series(1, 5000) as n",
    )
    await database.unit(execute, "analyze custosd.tasks", tx=False)
    for state in ("ready", "claimed"):
        found = await database.unit(
            fetch, f"explain select id from custosd.tasks where state = '{state}'"
        )
        text = "\n".join(row["QUERY PLAN"] for row in found)
        assert "Seq Scan" not in text
