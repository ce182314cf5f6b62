"""The store's SQL. Each statement takes a whole batch, as one array for each column.

Laws:

1. The number of statements of a unit does not depend on the number of rows.
2. A statement reads the same rows from a plan that knows its arguments and from one that
   does not: rows are found by key, and limits of batches stand in the text.
3. Rows come sorted by key, so that two batches lock them in the same order.
"""

PRUNE_BATCH = 2_000
"""Rows that one unit of pruning takes away at most."""

SAVE_TRANSCRIPTS = """
insert into custosd.transcripts as known
    (shard, key, path, format, session, agent, byte_offset, cursor, grown_utc)
select * from unnest($1::smallint[], $2::text[], $3::text[], $4::text[], $5::text[],
                     $6::text[], $7::bigint[], $8::bytea[], $9::timestamptz[])
on conflict (shard, key) do update set
    path = excluded.path, format = excluded.format, session = excluded.session,
    agent = excluded.agent,
    byte_offset = excluded.byte_offset, cursor = excluded.cursor,
    grown_utc = greatest(known.grown_utc, excluded.grown_utc)
"""

# A conflict locks and so writes the row even where nothing changes: what is known in full
# is left out first.
ENSURE_AGENTS = """
insert into custosd.agents as known (shard, agent_id, format, parent, first_seen_utc)
select told.*
from unnest($1::smallint[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
    as told (shard, agent_id, format, parent, seen_utc)
left join custosd.agents as before
    on before.shard = told.shard and before.agent_id = told.agent_id
where before.agent_id is null
    or told.format not in ('', before.format)
    or told.parent not in ('', before.parent)
    or told.seen_utc < before.first_seen_utc
on conflict (shard, agent_id) do update set
    format = coalesce(nullif(excluded.format, ''), known.format),
    parent = coalesce(nullif(excluded.parent, ''), known.parent),
    first_seen_utc = least(known.first_seen_utc, excluded.first_seen_utc)
"""

# Runs that have no epoch yet get the next ones of their agent, in the order of arrival. The
# update locks the agent, so two daemons never give the same epoch.
GIVE_EPOCHS = """
with fresh as (
    select told.*, row_number() over (
        partition by told.shard, told.agent_id order by told.place) as n
    from unnest($1::smallint[], $2::text[], $3::text[], $4::timestamptz[], $5::integer[])
        as told (shard, agent_id, run_id, seen_utc, place)
    left join custosd.runs as before
        on before.shard = told.shard and before.agent_id = told.agent_id
        and before.run_id = told.run_id
    where coalesce(before.epoch, 0) = 0
), given as (
    update custosd.agents as agent set epoch = agent.epoch + counted.n
    from (select shard, agent_id, max(n) as n from fresh group by shard, agent_id) as counted
    where agent.shard = counted.shard and agent.agent_id = counted.agent_id
    returning agent.shard, agent.agent_id, agent.epoch - counted.n as last
)
insert into custosd.runs as known (shard, agent_id, run_id, epoch, seen_utc)
select fresh.shard, fresh.agent_id, fresh.run_id, given.last + fresh.n, fresh.seen_utc
from fresh join given on given.shard = fresh.shard and given.agent_id = fresh.agent_id
on conflict (shard, agent_id, run_id) do update set
    epoch = excluded.epoch, seen_utc = least(known.seen_utc, excluded.seen_utc)
    where known.epoch = 0
"""

# States come here and with the record: the latest word wins by its own time, whoever brings it.
SAVE_RUNS = """
update custosd.runs as known set
    thread = coalesce(nullif(told.thread, ''), known.thread),
    transcript_key = told.transcript_key, path = told.path,
    state = case when told.state_utc >= coalesce(known.state_utc, '-infinity')
        then told.state else known.state end,
    state_utc = greatest(known.state_utc, told.state_utc),
    steps = told.steps, grown_utc = told.grown_utc,
    seen_utc = least(known.seen_utc, told.seen_utc),
    end_reason = told.end_reason,
    ended_utc = case when told.end_reason is null then null else told.grown_utc end
from unnest($1::smallint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
            $7::text[], $8::timestamptz[], $9::bigint[], $10::timestamptz[],
            $11::timestamptz[], $12::text[])
    as told (shard, agent_id, run_id, thread, transcript_key, path, state, state_utc, steps,
             seen_utc, grown_utc, end_reason)
where known.shard = told.shard and known.agent_id = told.agent_id
    and known.run_id = told.run_id
"""

SAVE_TRAJECTORIES = """
insert into custosd.trajectories (shard, agent_id, run_id, digest, fold)
select told.shard, told.agent_id, told.run_id, told.digest::jsonb, told.fold
from unnest($1::smallint[], $2::text[], $3::text[], $4::text[], $5::bytea[])
    as told (shard, agent_id, run_id, digest, fold)
on conflict (shard, agent_id, run_id) do update set
    digest = excluded.digest, fold = excluded.fold
"""

# Facts may come before the progress of their run: it is kept then with what they tell,
# without an epoch.
ENSURE_RUNS = """
insert into custosd.runs as known (shard, agent_id, run_id, path, seen_utc)
select told.*
from unnest($1::smallint[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
    as told (shard, agent_id, run_id, path, seen_utc)
left join custosd.runs as before
    on before.shard = told.shard and before.agent_id = told.agent_id
    and before.run_id = told.run_id
where before.agent_id is null
    or (before.path = '' and told.path <> '')
    or told.seen_utc < before.seen_utc
on conflict (shard, agent_id, run_id) do update set
    path = coalesce(nullif(known.path, ''), excluded.path),
    seen_utc = least(known.seen_utc, excluded.seen_utc)
"""

RECORD_FACTS = """
insert into custosd.facts (at_utc, shard, id, kind, agent_id, run_id, body)
select told.at_utc, told.shard, told.id, told.kind, told.agent_id, told.run_id,
    told.body::jsonb
from unnest($1::timestamptz[], $2::smallint[], $3::text[], $4::text[], $5::text[], $6::text[],
            $7::text[])
    as told (at_utc, shard, id, kind, agent_id, run_id, body)
on conflict do nothing
"""

RECORD_VERDICTS = """
insert into custosd.verdicts (shard, id, agent_id, run_id, at_utc, steps, standing, phase,
    alignment, confidence, needs_steering, steering_kind, steering_reason, message, summary,
    focus, goal, evidence, unknown_reason, judge, model, prompt_version, input_hash,
    input_tokens, output_tokens, cached_tokens, cost_usd, latency_s, absent)
select shard, id, agent_id, run_id, at_utc, steps, standing, phase,
    alignment, confidence, needs_steering, steering_kind, steering_reason, message, summary,
    focus, goal, evidence::integer[], unknown_reason, judge, model, prompt_version, input_hash,
    input_tokens, output_tokens, cached_tokens, cost_usd, latency_s, absent::text[]
from unnest($1::smallint[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::bigint[],
        $7::text[], $8::text[], $9::float8[], $10::float8[], $11::boolean[], $12::text[],
        $13::text[], $14::text[], $15::text[], $16::text[], $17::text[], $18::text[],
        $19::text[], $20::text[], $21::text[], $22::text[], $23::text[], $24::bigint[],
        $25::bigint[], $26::bigint[], $27::float8[], $28::float8[], $29::text[])
    as told (shard, id, agent_id, run_id, at_utc, steps, standing, phase,
        alignment, confidence, needs_steering, steering_kind, steering_reason, message,
        summary, focus, goal, evidence, unknown_reason, judge, model, prompt_version,
        input_hash, input_tokens, output_tokens, cached_tokens, cost_usd, latency_s, absent)
on conflict (shard, id) do nothing
"""

RECORD_SIGNALS = """
insert into custosd.signals
    (shard, verdict_id, place, kind, severity, steps, measure, threshold, about, peers)
select shard, verdict_id, place, kind, severity, steps::integer[], measure, threshold, about,
    peers::text[]
from unnest($1::smallint[], $2::text[], $3::smallint[], $4::text[], $5::text[], $6::text[],
            $7::float8[], $8::float8[], $9::text[], $10::text[])
    as told (shard, verdict_id, place, kind, severity, steps, measure, threshold, about, peers)
on conflict (shard, verdict_id, place) do nothing
"""

# The latest word wins by its own time, so batches may come in any order.
RECORD_CHANGES = """
update custosd.runs as known set
    state = case when told.state_utc >= coalesce(known.state_utc, '-infinity')
        then told.state else known.state end,
    state_utc = greatest(known.state_utc, told.state_utc),
    standing = case when told.standing_utc >= coalesce(known.standing_utc, '-infinity')
        then told.standing else known.standing end,
    standing_utc = greatest(known.standing_utc, told.standing_utc)
from unnest($1::smallint[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[],
            $7::timestamptz[])
    as told (shard, agent_id, run_id, state, state_utc, standing, standing_utc)
where known.shard = told.shard and known.agent_id = told.agent_id
    and known.run_id = told.run_id
"""

_LATEST_RUN = """
    select * from custosd.runs as candidate
    where candidate.shard = agent.shard and candidate.agent_id = agent.agent_id
    order by candidate.epoch desc, candidate.seen_utc desc, candidate.run_id desc
    limit 1
"""

_SIGNALS = """
    select json_agg(json_build_object(
        'kind', signal.kind, 'severity', signal.severity, 'steps', signal.steps,
        'measure', signal.measure, 'limit', signal.threshold, 'about', signal.about,
        'peers', signal.peers) order by signal.place)::text as signals
    from custosd.signals as signal
    where signal.shard = verdict.shard and signal.verdict_id = verdict.id
"""

_VERDICT = """
    verdict.id, verdict.at_utc, verdict.steps, verdict.standing, verdict.phase,
    verdict.alignment, verdict.confidence, verdict.needs_steering, verdict.steering_kind,
    verdict.steering_reason, verdict.message, verdict.summary, verdict.focus, verdict.goal,
    verdict.evidence, verdict.unknown_reason, verdict.judge, verdict.model,
    verdict.prompt_version, verdict.input_hash, verdict.input_tokens, verdict.output_tokens,
    verdict.cached_tokens, verdict.cost_usd, verdict.latency_s, verdict.absent, found.signals
"""

# The statements below are put together from the constant parts above, never from data.
RESTORE_AGENTS = f"""
select agent.agent_id, agent.format, agent.parent, run.run_id, run.path, run.seen_utc,
    run.state, run.grown_utc, run.standing as run_standing,
    trajectory.digest::text as digest, {_VERDICT}
from custosd.agents as agent
cross join lateral ({_LATEST_RUN}) as run
left join custosd.trajectories as trajectory
    on trajectory.shard = agent.shard and trajectory.agent_id = agent.agent_id
    and trajectory.run_id = run.run_id
left join lateral (
    select * from custosd.verdicts as judged
    where judged.shard = agent.shard and judged.agent_id = agent.agent_id
        and judged.run_id = run.run_id
    order by judged.at_utc desc, judged.id desc
    limit 1
) as verdict on true
left join lateral ({_SIGNALS}) as found on true
"""  # noqa: S608 - constant parts

RESTORE_TRANSCRIPTS = """
select key, path, format, session, agent, byte_offset, cursor from custosd.transcripts
"""

READ_TRAJECTORIES = """
select asked.agent_id, asked.run_id, trajectory.fold
from unnest($1::smallint[], $2::text[], $3::text[]) as asked (shard, agent_id, run_id)
cross join lateral (
    select fold from custosd.trajectories as kept
    where kept.shard = asked.shard and kept.agent_id = asked.agent_id
        and kept.run_id = asked.run_id
    limit 1
) as trajectory
"""

READ_VERDICTS = f"""
select agent.agent_id, verdict.run_id, {_VERDICT}
from unnest($1::smallint[], $2::text[]) as agent (shard, agent_id)
cross join lateral (
    select * from custosd.verdicts as judged
    where judged.shard = agent.shard and judged.agent_id = agent.agent_id
    order by judged.at_utc desc, judged.id desc
    limit $3
) as verdict
left join lateral ({_SIGNALS}) as found on true
"""  # noqa: S608 - constant parts

READ_FACTS = """
select id, at_utc, kind, body::text as body from custosd.facts
order by at_utc desc, id desc limit $1
"""

READ_FACTS_OF_AGENT = """
select id, at_utc, kind, body::text as body from custosd.facts
where shard = $1 and agent_id = $2
order by at_utc desc, id desc limit $3
"""

SAVE_DAEMON = """
insert into custosd.daemons
    (name, pid, version, started_utc, beat_utc, agents, sweeps, stopped)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (name) do update set
    pid = excluded.pid, version = excluded.version, started_utc = excluded.started_utc,
    beat_utc = excluded.beat_utc, agents = excluded.agents, sweeps = excluded.sweeps,
    stopped = excluded.stopped
"""

READ_DAEMONS = """
select name, pid, version, started_utc, beat_utc, agents, sweeps, stopped
from custosd.daemons order by beat_utc desc, name
"""

SAVE_METRICS = """
insert into custosd.metrics (at_utc, daemon, operations) values ($1, $2, $3::text::jsonb)
on conflict (at_utc, daemon) do nothing
"""

READ_METRICS = """
select at_utc, daemon, operations::text as operations from custosd.metrics
order by at_utc desc, daemon limit $1
"""

PRUNE_METRICS = f"""
with old as (
    select metric.at_utc, metric.daemon from custosd.metrics as metric
    where metric.at_utc < $1
    order by metric.at_utc
    limit {PRUNE_BATCH} for update of metric skip locked
), gone as (
    delete from custosd.metrics as metric using old
    where metric.at_utc = old.at_utc and metric.daemon = old.daemon
    returning 1
)
select count(*) from gone
"""  # noqa: S608 - constant parts

PREPARE_FACT_DAYS = "select custosd.prepare_fact_days($1::date, $2)"

DROP_FACT_DAYS = "select custosd.drop_fact_days($1)"

# Each run keeps its last one. A scalar subquery, not `exists`: no planner turns it into a
# join that reads the whole table for one batch.
PRUNE_VERDICTS = f"""
with old as (
    select verdict.shard, verdict.id from custosd.verdicts as verdict
    where verdict.at_utc < $1 and verdict.id <> (
        select latest.id from custosd.verdicts as latest
        where latest.shard = verdict.shard and latest.agent_id = verdict.agent_id
            and latest.run_id = verdict.run_id
        order by latest.at_utc desc, latest.id desc
        limit 1)
    order by verdict.at_utc
    limit {PRUNE_BATCH} for update of verdict skip locked
), gone as (
    delete from custosd.verdicts as verdict using old
    where verdict.shard = old.shard and verdict.id = old.id
    returning 1
)
select count(*) from gone
"""  # noqa: S608 - constant parts

_LAST_HEARD = "coalesce(run.grown_utc, greatest(run.seen_utc, run.state_utc, run.standing_utc))"

# Locked before it is deleted: a run that grows meanwhile is looked at again, and stays.
PRUNE_RUNS = f"""
with old as (
    select run.shard, run.agent_id, run.run_id from custosd.runs as run
    where {_LAST_HEARD} < $1
    limit {PRUNE_BATCH} for update skip locked
), gone as (
    delete from custosd.runs as run using old
    where run.shard = old.shard and run.agent_id = old.agent_id and run.run_id = old.run_id
        and {_LAST_HEARD} < $1
    returning 1
)
select count(*) from gone
"""  # noqa: S608 - constant parts

PRUNE_TRANSCRIPTS = f"""
with old as (
    select transcript.shard, transcript.key from custosd.transcripts as transcript
    where transcript.grown_utc < $1 and not exists (
        select from custosd.runs as run where run.transcript_key = transcript.key)
    limit {PRUNE_BATCH} for update of transcript skip locked
), gone as (
    delete from custosd.transcripts as transcript using old
    where transcript.shard = old.shard and transcript.key = old.key
        and transcript.grown_utc < $1
    returning 1
)
select count(*) from gone
"""  # noqa: S608 - constant parts

PRUNE_AGENTS = f"""
with old as (
    select agent.shard, agent.agent_id from custosd.agents as agent
    where agent.first_seen_utc < $1 and not exists (
        select from custosd.runs as run
        where run.shard = agent.shard and run.agent_id = agent.agent_id)
    limit {PRUNE_BATCH} for update of agent skip locked
), gone as (
    delete from custosd.agents as agent using old
    where agent.shard = old.shard and agent.agent_id = old.agent_id
    returning 1
)
select count(*) from gone
"""  # noqa: S608 - constant parts
