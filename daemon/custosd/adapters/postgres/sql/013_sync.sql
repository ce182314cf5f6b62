-- What was seen on forges, and how far each repository was followed.
--
-- Few repositories, and little beside what agents write: no shards. Words of a work are merged
-- by the daemon under a lock of its repository, so that there is one rule for it.

create domain custosd.work_kind as text collate "C"
    constraint work_kind_known check (value in ('commit', 'pull_request', 'issue', 'check'));

create domain custosd.work_state as text collate "C"
    constraint work_state_known check (value in (
        'open', 'closed', 'merged', 'pending', 'running', 'passed', 'failed', 'skipped'));

create table custosd.sync_repositories (
    repository      custosd.name not null,
    body            jsonb not null,
    constraint sync_repositories_pk primary key (repository)
);

-- The cursor is the forge's own; opaque here.
create table custosd.sync_cursors (
    repository      custosd.name not null,
    stream          custosd.name not null,
    cursor          text not null,
    at_utc          timestamptz not null,
    constraint sync_cursors_pk primary key (repository, stream)
);
create index sync_cursors_age on custosd.sync_cursors (at_utc);

-- `unread`: its links were not looked at since it changed; `version` counts the changes.
create table custosd.works (
    repository      custosd.name not null,
    kind            custosd.work_kind not null,
    key             custosd.name not null,
    state           custosd.work_state not null,
    updated_utc     timestamptz not null,
    version         bigint not null constraint works_version check (version > 0),
    unread          boolean not null,
    at_utc          timestamptz not null,
    body            jsonb not null,
    constraint works_pk primary key (repository, kind, key)
) with (fillfactor = 80);

create index works_unread on custosd.works (at_utc) where unread;
create index works_newest on custosd.works (repository, kind, updated_utc desc);
create index works_latest on custosd.works (updated_utc desc, repository, kind, key);
create index works_age on custosd.works (at_utc);

-- Which works belong to which tasks. Not tied to the task: its record may go before.
create table custosd.work_links (
    task_id         custosd.name not null,
    repository      custosd.name not null,
    kind            custosd.work_kind not null,
    key             custosd.name not null,
    body            jsonb not null,
    constraint work_links_pk primary key (task_id, repository, kind, key),
    constraint work_links_work foreign key (repository, kind, key)
        references custosd.works on delete cascade
);
create index work_links_of_work on custosd.work_links (repository, kind, key);

-- What a forge told by itself; of one id and of one body one is taken.
create table custosd.deliveries (
    forge           custosd.name not null,
    id              custosd.name not null,
    digest          custosd.name not null,
    at_utc          timestamptz not null,
    constraint deliveries_pk primary key (forge, id),
    constraint deliveries_body unique (forge, digest)
);
create index deliveries_age on custosd.deliveries (at_utc);

-- That landed work ends a task: written before it is done, and once.
create table custosd.closings (
    task_id         custosd.name not null,
    repository      custosd.name not null,
    kind            custosd.work_kind not null,
    key             custosd.name not null,
    intended_utc    timestamptz not null,
    done_utc        timestamptz,
    body            jsonb not null,
    constraint closings_pk primary key (task_id, repository, kind, key)
);
create index closings_newest on custosd.closings (intended_utc);
