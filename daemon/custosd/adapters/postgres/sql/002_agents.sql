-- Agents, their runs, what they wrote, and the folds of it.
--
-- Every table here is keyed by its shard first, so that rows of one agent lie together,
-- also where a distributed server lays shards on different machines. No column that is
-- updated often is indexed, and pages are filled by half, as one transaction may update
-- every row of a page: such updates stay in their page (HOT).

-- Written once an agent and when it gets a new run; `epoch` is the last one given.
create table custosd.agents (
    shard           custosd.shard not null,
    agent_id        custosd.name not null,
    format          text not null default '',
    parent          text not null default '',
    first_seen_utc  timestamptz not null,
    epoch           bigint not null default 0 constraint agents_epoch check (epoch >= 0),
    constraint agents_pk primary key (shard, agent_id)
);

-- `epoch` is the fencing token: it grows with each run of an agent and is never given
-- twice. It is 0 while only the record spoke of the run. The latest run of an agent is
-- the one with the highest epoch.
create table custosd.runs (
    shard           custosd.shard not null,
    agent_id        custosd.name not null,
    run_id          custosd.name not null,
    epoch           bigint not null default 0 constraint runs_epoch check (epoch >= 0),
    seen_utc        timestamptz not null,
    grown_utc       timestamptz,
    state_utc       timestamptz,
    standing_utc    timestamptz,
    ended_utc       timestamptz,
    steps           custosd.tally not null default 0,
    state           custosd.agent_state not null default 'starting',
    standing        custosd.standing not null default 'unknown',
    end_reason      custosd.run_end,
    thread          text not null default '',
    transcript_key  text not null default '',
    path            text not null default '',
    constraint runs_pk primary key (shard, agent_id, run_id),
    constraint runs_agent_fk foreign key (shard, agent_id)
        references custosd.agents on delete cascade,
    constraint runs_end_complete check ((ended_utc is null) = (end_reason is null))
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

create unique index runs_epoch_unique on custosd.runs (shard, agent_id, epoch) where epoch > 0;

-- Apart from its run, so that the run's row stays small. The fold is usually long enough to
-- be compressed and moved out of the page (a third of its size in the log that way).
create table custosd.trajectories (
    shard           custosd.shard not null,
    agent_id        custosd.name not null,
    run_id          custosd.name not null,
    digest          jsonb not null,
    fold            bytea not null,
    constraint trajectories_pk primary key (shard, agent_id, run_id),
    constraint trajectories_run_fk foreign key (shard, agent_id, run_id)
        references custosd.runs on delete cascade
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05,
        toast.autovacuum_vacuum_scale_factor = 0.05);

-- How far each transcript has been read, and the names that it gave. `shard` is that of its
-- key. `byte_offset` and `cursor` belong together: what follows them has not been folded yet.
create table custosd.transcripts (
    shard           custosd.shard not null,
    key             custosd.name not null,
    path            text not null,
    format          text not null,
    session         text not null,
    agent           text not null default '',
    byte_offset     custosd.tally not null,
    cursor          bytea not null,
    grown_utc       timestamptz,
    constraint transcripts_pk primary key (shard, key)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
