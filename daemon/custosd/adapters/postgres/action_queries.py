"""The SQL of what is written about acts, under the laws of `queries`."""

PRUNE_BATCH = 2_000
"""Rows that one unit of pruning takes away at most."""

LIVES_SLICE = 5_000
"""Lives that one statement stores at most."""

_LIFE = """
    agent_id, epoch, sequence, state, since_utc, heard_utc, interval_s, wait_kind,
    wait_until_utc, pid, started_ticks, boot_id, gaps_s, progress_utc
"""

# The statements below are put together from the constant part above, never from data.
READ_LIVES = f"select {_LIFE} from custosd.lives order by agent_id"  # noqa: S608 - constant parts

READ_LIFE = f"""
select {_LIFE} from custosd.lives where shard = $1 and agent_id = $2
"""  # noqa: S608 - constant parts

SAVE_LIVES = """
insert into custosd.lives as known (shard, agent_id, epoch, sequence, state, since_utc,
    heard_utc, interval_s, wait_kind, wait_until_utc, pid, started_ticks, boot_id, gaps_s,
    progress_utc)
select shard, agent_id, epoch, sequence, state, since_utc, heard_utc, interval_s, wait_kind,
    wait_until_utc, pid, started_ticks, boot_id, gaps_s::float8[], progress_utc
from unnest($1::smallint[], $2::text[], $3::bigint[], $4::bigint[], $5::text[],
            $6::timestamptz[], $7::timestamptz[], $8::float8[], $9::text[],
            $10::timestamptz[], $11::bigint[], $12::bigint[], $13::text[], $14::text[],
            $15::timestamptz[])
    as told (shard, agent_id, epoch, sequence, state, since_utc, heard_utc, interval_s,
        wait_kind, wait_until_utc, pid, started_ticks, boot_id, gaps_s, progress_utc)
on conflict (shard, agent_id) do update set
    epoch = excluded.epoch, sequence = excluded.sequence, state = excluded.state,
    since_utc = excluded.since_utc, heard_utc = excluded.heard_utc,
    interval_s = excluded.interval_s, wait_kind = excluded.wait_kind,
    wait_until_utc = excluded.wait_until_utc, pid = excluded.pid,
    started_ticks = excluded.started_ticks, boot_id = excluded.boot_id,
    gaps_s = excluded.gaps_s, progress_utc = excluded.progress_utc
    where (excluded.epoch, excluded.sequence) >= (known.epoch, known.sequence)
"""

_RESTART = """
    restart.id, restart.agent_id, restart.idempotency_key, restart.cause, restart.reason,
    restart.requested_by, restart.epoch, restart.next_epoch, restart.intended_utc,
    restart.fingerprint, restart.task, restart.evidence::text as evidence, restart.state,
    restart.owner, restart.fence, restart.failure, restart.started_utc, restart.ended_utc,
    (select json_agg(json_build_object(
            'step', step.step, 'attempt', step.attempt, 'state', step.state,
            'started_utc', step.started_utc, 'ended_utc', step.ended_utc,
            'result', step.result) order by step.place)::text
        from custosd.restart_steps as step
        where step.shard = restart.shard and step.restart_id = restart.id) as steps
"""

# The statements below are put together from the constant parts above, never from data.
READ_RESTART = f"""
select {_RESTART} from custosd.restarts as restart
where restart.shard = $1 and restart.id = $2
"""  # noqa: S608 - constant parts

READ_RESTARTS_OF = f"""
select {_RESTART} from custosd.restarts as restart
where restart.shard = $2 and restart.agent_id = $3
    and (restart.ended_utc is null or restart.intended_utc >= $1)
order by intended_utc, id
"""  # noqa: S608 - constant parts

READ_RESTARTS = f"""
select {_RESTART} from custosd.restarts as restart where restart.ended_utc is null
union all
select {_RESTART} from custosd.restarts as restart
where restart.ended_utc is not null and restart.intended_utc >= $1
order by intended_utc, id
"""  # noqa: S608 - constant parts

# Whoever gives an agent an epoch waits here for whoever else does: by the time the row is
# locked, the statement after this one sees what the other has done.
LOCK_EPOCH = """
insert into custosd.epochs as known (shard, agent_id, epoch) values ($1, $2, 0)
on conflict (shard, agent_id) do update set epoch = known.epoch
"""

# The parameters of both statements that write a restart: 1 to 14 the restart, 15 to 21 the
# columns of its steps, from 22 on what never changes after the intent.
_STEPS = """
    insert into custosd.restart_steps as known
        (shard, restart_id, step, attempt, place, state, started_utc, ended_utc, result)
    select stored.shard, stored.id, told.*
    from stored cross join unnest($15::text[], $16::integer[], $17::integer[], $18::text[],
            $19::timestamptz[], $20::timestamptz[], $21::text[]) as told
    on conflict (shard, restart_id, step, attempt) do update set
        place = excluded.place, state = excluded.state, started_utc = excluded.started_utc,
        ended_utc = excluded.ended_utc, result = excluded.result
        where (known.place, known.state, known.started_utc, known.ended_utc, known.result)
            is distinct from (excluded.place, excluded.state, excluded.started_utc,
                excluded.ended_utc, excluded.result)
"""

INTEND_RESTART = f"""
with last as (
    select greatest($24::bigint,
        (select epoch from custosd.epochs where shard = $1::smallint and agent_id = $22::text),
        (select epoch from custosd.lives where shard = $1 and agent_id = $22)) as epoch
), stored as (
    insert into custosd.restarts (shard, id, cause, reason, requested_by, fingerprint, task,
        evidence, state, owner, fence, failure, started_utc, ended_utc, agent_id,
        idempotency_key, epoch, intended_utc, next_epoch)
    select $1, $2::text, $3::text, $4::text, $5::text, $6::text, $7::text, $8::text::jsonb,
        $9::text, $10::text, $11::bigint, $12::text, $13::timestamptz, $14::timestamptz, $22,
        $23::text, $24, $25::timestamptz, last.epoch + 1
    from last
    where not exists (
            select from custosd.restarts as other
            where other.shard = $1 and other.agent_id = $22 and other.ended_utc is null)
        and not exists (
            select from custosd.restarts as other
            where other.shard = $1 and other.agent_id = $22 and other.idempotency_key = $23)
    on conflict (shard, id) do nothing
    returning shard, id, agent_id, next_epoch
), steps as ({_STEPS})
update custosd.epochs as known set epoch = stored.next_epoch from stored
where known.shard = stored.shard and known.agent_id = stored.agent_id
"""  # noqa: S608 - constant parts

# A repetition of the word that ended it changes nothing, and is true.
SAVE_RESTART = f"""
with stored as (
    update custosd.restarts as known set
        cause = $3::text, reason = $4::text, requested_by = $5::text, fingerprint = $6::text,
        task = $7::text, evidence = $8::text::jsonb, state = $9::text, owner = $10::text,
        fence = $11::bigint, failure = $12::text, started_utc = $13::timestamptz,
        ended_utc = $14::timestamptz
    where known.shard = $1::smallint and known.id = $2::text
        and known.ended_utc is null and known.fence <= $11
    returning known.shard, known.id
), gone as (
    delete from custosd.restart_steps as known using stored
    where known.shard = stored.shard and known.restart_id = stored.id and not exists (
        select from unnest($15::text[], $16::integer[]) as told (step, attempt)
        where told.step = known.step and told.attempt = known.attempt)
), steps as ({_STEPS})
select exists (select from stored) or exists (
    select from custosd.restarts as known
    where known.shard = $1 and known.id = $2
        and (known.state, known.owner, known.fence, known.failure, known.ended_utc)
            = ($9, $10, $11, $12, $14))
"""  # noqa: S608 - constant parts

_INTERVENTION = """
    intervention.id, intervention.agent_id, intervention.idempotency_key, intervention.kind,
    intervention.message, intervention.proposed_by, intervention.proposed_utc,
    intervention.expires_utc, intervention.reason, intervention.verdict_id,
    intervention.state, intervention.hold_out, intervention.approved_by,
    intervention.channel, intervention.failure, intervention.attempts,
    intervention.approved_utc, intervention.queued_utc, intervention.delivered_utc,
    intervention.acknowledged_utc, intervention.acted_utc, intervention.closed_utc,
    intervention.alignment_before, intervention.alignment_after,
    intervention.standing_before, intervention.standing_after, intervention.measured_utc
"""

READ_INTERVENTIONS = f"""
select {_INTERVENTION} from custosd.interventions as intervention
where intervention.closed_utc is null
union all
select {_INTERVENTION} from custosd.interventions as intervention
where intervention.closed_utc is not null and intervention.proposed_utc >= $1
order by proposed_utc, id
"""  # noqa: S608 - constant parts

PROPOSE = """
insert into custosd.interventions (shard, id, kind, message, proposed_by, expires_utc, reason,
    verdict_id, state, hold_out, approved_by, channel, failure, attempts, approved_utc,
    queued_utc, delivered_utc, acknowledged_utc, acted_utc, closed_utc, alignment_before,
    alignment_after, standing_before, standing_after, measured_utc, agent_id,
    idempotency_key, proposed_utc)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19,
    $20, $21, $22, $23, $24, $25, $26, $27, $28)
on conflict do nothing
returning true
"""

SAVE_INTERVENTION = """
update custosd.interventions as known set
    kind = $3, message = $4, proposed_by = $5, expires_utc = $6, reason = $7, verdict_id = $8,
    state = $9, hold_out = $10, approved_by = $11, channel = $12, failure = $13,
    attempts = $14, approved_utc = $15, queued_utc = $16, delivered_utc = $17,
    acknowledged_utc = $18, acted_utc = $19, closed_utc = $20, alignment_before = $21,
    alignment_after = $22, standing_before = $23, standing_after = $24, measured_utc = $25
where known.shard = $1 and known.id = $2 and known.state = $26
returning true
"""

PLACE_HOLD = """
insert into custosd.holds (kind, subject, placed_by, reason, since_utc, until_utc, agents)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict (kind, subject) do update set
    placed_by = excluded.placed_by, reason = excluded.reason, since_utc = excluded.since_utc,
    until_utc = excluded.until_utc, agents = excluded.agents
"""

PLACE_HOLDS = """
insert into custosd.holds (kind, subject, placed_by, reason, since_utc, until_utc, agents)
select kind, subject, placed_by, reason, since_utc, until_utc,
    array(select json_array_elements_text(agents::json))
from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[],
            $6::timestamptz[], $7::text[])
    as told (kind, subject, placed_by, reason, since_utc, until_utc, agents)
on conflict (kind, subject) do update set
    placed_by = excluded.placed_by, reason = excluded.reason, since_utc = excluded.since_utc,
    until_utc = excluded.until_utc, agents = excluded.agents
"""

LIFT_HOLDS = """
with gone as (
    delete from custosd.holds as hold
    using unnest($1::text[], $2::text[]) as told (kind, subject)
    where hold.kind = told.kind and hold.subject = told.subject
    returning 1
)
select count(*) from gone
"""

LIFT_HOLD = "delete from custosd.holds where kind = $1 and subject = $2 returning true"

READ_HOLDS = """
select kind, subject, placed_by, reason, since_utc, until_utc, agents
from custosd.holds order by kind, subject
"""

# One clock for all daemons: the server's, as it was when the statement began.
TAKE_LEASE = """
insert into custosd.leases as known (name, owner, fence, taken_utc, expires_utc)
values ($1, $2, 1, now(), now() + make_interval(secs => $3))
on conflict (name) do update set
    owner = excluded.owner,
    fence = known.fence + case when known.expires_utc > now() then 0 else 1 end,
    taken_utc = case when known.expires_utc > now()
        then least(known.taken_utc, now()) else now() end,
    expires_utc = excluded.expires_utc
    where known.owner = excluded.owner or known.expires_utc <= now()
returning fence, expires_utc
"""

RELEASE_LEASE = """
update custosd.leases set
    expires_utc = least(expires_utc, greatest(now(), taken_utc + interval '1 microsecond'))
where name = $1 and owner = $2
"""

READ_TOKENS = """
select id, secret_hash, created_utc, created_by, agent, scopes from custosd.tokens order by id
"""

# True: it is there, with this secret. One that is there with another is left alone.
ISSUE = """
insert into custosd.tokens as known (id, secret_hash, created_utc, created_by, agent, scopes)
values ($1, $2, $3, $4, $5, $6)
on conflict (id) do update set id = known.id where known.secret_hash = excluded.secret_hash
returning true
"""

REVOKE = "delete from custosd.tokens where id = $1 returning true"

PRUNE_RESTARTS = f"""
with old as (
    select shard, id from custosd.restarts
    where ended_utc is not null and intended_utc < $1 and ended_utc < $1
    order by intended_utc
    limit {PRUNE_BATCH} for update skip locked
), gone as (
    delete from custosd.restarts as restart using old
    where restart.shard = old.shard and restart.id = old.id
    returning 1
)
select count(*) from gone
"""  # noqa: S608 - constant parts

PRUNE_INTERVENTIONS = f"""
with old as (
    select shard, id from custosd.interventions
    where closed_utc is not null and proposed_utc < $1 and closed_utc < $1
    order by proposed_utc
    limit {PRUNE_BATCH} for update skip locked
), gone as (
    delete from custosd.interventions as intervention using old
    where intervention.shard = old.shard and intervention.id = old.id
    returning 1
)
select count(*) from gone
"""  # noqa: S608 - constant parts

_LAST_SEEN = "greatest(life.since_utc, life.heard_utc, life.progress_utc)"

# The epoch outlives the life: the next incarnation of that name must not be given it again.
PRUNE_LIVES = f"""
with old as (
    select life.shard, life.agent_id from custosd.lives as life
    where {_LAST_SEEN} < $1
    limit {PRUNE_BATCH} for update skip locked
), gone as (
    delete from custosd.lives as life using old
    where life.shard = old.shard and life.agent_id = old.agent_id and {_LAST_SEEN} < $1
    returning life.shard, life.agent_id, life.epoch
), kept as (
    insert into custosd.epochs as known (shard, agent_id, epoch)
    select shard, agent_id, epoch from gone where epoch > 0
    on conflict (shard, agent_id) do update set epoch = greatest(known.epoch, excluded.epoch)
)
select count(*) from gone
"""  # noqa: S608 - constant parts
