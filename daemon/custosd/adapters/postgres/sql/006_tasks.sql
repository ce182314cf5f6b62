-- The fleet's tasks, what each waits for, and who holds which.
--
-- Tasks are few beside agents and depend on each other across shards: they have none.
-- For the same reason `agent_id` is no foreign key. `unmet` counts the dependencies that
-- have not succeeded and `blocking` the open tasks that wait for this one; both are kept by
-- whoever changes a state or an edge, so the ready set and its scores read one table.

create table custosd.tasks (
    id              custosd.name not null,
    title           text not null,
    goal            text not null default '',
    parent_id       custosd.name,
    state           custosd.task_state not null default 'blocked',
    priority        custosd.task_priority not null default 'medium',
    capabilities    text[] not null default '{}',
    unmet           integer not null default 0,
    blocking        integer not null default 0,
    attempts        smallint not null default 0,
    max_attempts    smallint not null default 4,
    created_utc     timestamptz not null,
    not_before_utc  timestamptz,
    ready_utc       timestamptz,
    deadline_utc    timestamptz,
    ended_utc       timestamptz,
    lease_owner     custosd.name,
    lease_until_utc timestamptz,
    fence           bigint not null default 0,
    agent_shard     custosd.shard,
    agent_id        custosd.name,
    failure         text not null default '',
    result          jsonb,
    constraint tasks_pk primary key (id),
    constraint tasks_parent_fk foreign key (parent_id) references custosd.tasks on delete set null,
    constraint tasks_no_own_parent check (parent_id <> id),
    constraint tasks_unmet check (unmet >= 0),
    constraint tasks_blocking check (blocking >= 0),
    constraint tasks_attempts check (attempts >= 0 and attempts <= max_attempts),
    constraint tasks_fence check (fence >= 0),
    constraint tasks_ready check (state not in ('ready', 'claimed')
        or (unmet = 0 and ready_utc is not null)),
    constraint tasks_leased check (
        (state = 'claimed') = (lease_owner is not null and lease_until_utc is not null)),
    constraint tasks_lease_whole check ((lease_owner is null) = (lease_until_utc is null)),
    constraint tasks_claim_fenced check (state <> 'claimed' or (fence > 0 and attempts > 0)),
    constraint tasks_ended check (
        (state in ('succeeded', 'failed', 'cancelled')) = (ended_utc is not null)),
    constraint tasks_failed check ((state = 'failed') = (failure <> '')),
    constraint tasks_agent_whole check ((agent_shard is null) = (agent_id is null))
) with (fillfactor = 85);

-- The ready set, oldest first; and what is held, to find leases that ran out. The lease's
-- own time is in no index, so renewing it stays cheap.
create index tasks_ready_set on custosd.tasks (ready_utc, id) where state = 'ready';
create index tasks_claims on custosd.tasks (id) where state = 'claimed';
create index tasks_of_agent on custosd.tasks (agent_shard, agent_id) where agent_id is not null;
create index tasks_of_parent on custosd.tasks (parent_id) where parent_id is not null;

-- `task_id` waits for `depends_on`. Longer cycles are refused by whoever inserts.
create table custosd.task_edges (
    task_id         custosd.name not null,
    depends_on      custosd.name not null,
    constraint task_edges_pk primary key (task_id, depends_on),
    constraint task_edges_task_fk foreign key (task_id)
        references custosd.tasks on delete cascade,
    constraint task_edges_depends_fk foreign key (depends_on)
        references custosd.tasks on delete cascade,
    constraint task_edges_no_self check (task_id <> depends_on)
);

create index task_edges_dependents on custosd.task_edges (depends_on, task_id);
