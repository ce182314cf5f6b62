-- What tasks need to be claimed by their urgency in milliseconds, however many there are.
--
-- Urgency changes with time, so no index can hold it. But of tasks that differ in nothing but
-- since when they are ready, the one that waits longest is the most urgent at all times:
-- `score_group` is all of the score that does not depend on time (priority, waiting tasks,
-- attempts), and the ready set is indexed by what is needed, by group, and by age within. The
-- few whose deadline is near are an exception, and have an index of their own; once it has
-- passed, `overdue` makes them another group. It may be set late, never early.

create domain custosd.task_failure as text
    constraint task_failure_known check (value in (
        'error', 'permanent', 'usage_limit', 'timeout', 'lease_lost', 'agent_dead', 'dependency',
        'cancelled'));

alter table custosd.tasks
    add column created_by text not null default '',
    add column timeout_s double precision,
    add column overdue boolean not null default false,
    add column agent_epoch bigint,
    add column claimed_utc timestamptz,
    add column times_out_utc timestamptz,
    add column claim_key text not null default '',
    add column settled_fence bigint not null default 0,
    add column failure_kind custosd.task_failure,
    add column score_group bigint not null generated always as ((((
        case priority when 'critical' then 3 when 'high' then 2 when 'medium' then 1 else 0 end
            * 1048576::bigint + least(blocking, 1048575))
            * 1024 + least(attempts::integer, 1023))
            * 1024 + least(max_attempts::integer, 1023))) stored,
    drop column parent_id,
    alter column capabilities type text[] collate "C",
    alter column result type text using coalesce(result::text, ''),
    alter column result set default '',
    alter column result set not null,
    drop constraint tasks_failed,
    add constraint tasks_failed check (
        state <> 'failed' or (failure <> '' and failure_kind is not null)),
    add constraint tasks_timeout check (timeout_s > 0),
    add constraint tasks_overdue check (not overdue or deadline_utc is not null),
    add constraint tasks_settled check (settled_fence between 0 and fence),
    add constraint tasks_claim_whole check (state <> 'claimed' or (
        agent_id is not null and agent_epoch is not null and claimed_utc is not null));

-- A lease is an agent's, so its owner needs no name of its own.
alter table custosd.tasks drop constraint tasks_leased, drop constraint tasks_lease_whole,
    drop column lease_owner,
    add constraint tasks_leased check ((state = 'claimed') = (lease_until_utc is not null));

drop index custosd.tasks_ready_set;
drop index custosd.tasks_of_agent;
drop index custosd.tasks_claims;

create index tasks_ready_set on custosd.tasks (capabilities, overdue, score_group, ready_utc, id)
    where state = 'ready';
create index tasks_due on custosd.tasks (deadline_utc) where state = 'ready' and not overdue;
create index tasks_claims on custosd.tasks (agent_shard, agent_id, id) where state = 'claimed';
create index tasks_of_agent on custosd.tasks (agent_id, created_utc, id)
    where agent_id is not null;
create index tasks_newest on custosd.tasks (created_utc, id);
create index tasks_ended on custosd.tasks (ended_utc) where ended_utc is not null;
