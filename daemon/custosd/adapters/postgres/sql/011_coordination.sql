-- The fleet as a whole: what the conductor read and found, and what agents claim to do.
--
-- There is one conductor, and little of all this beside what agents write: no shards.

create domain custosd.finding_kind as text collate "C"
    constraint finding_kind_known check (value in ('duplicate', 'conflict'));

create domain custosd.finding_resolution as text
    constraint finding_resolution_known check (value in (
        'agent_gone', 'not_seen', 'judged_apart'));

-- One row a sweep. The whole reading is the body; beside it stands what is asked for.
create table custosd.readings (
    at_utc          timestamptz not null,
    status          text not null,
    score           custosd.fraction,
    body            jsonb not null,
    constraint readings_pk primary key (at_utc)
);

-- A pair, the lesser name first. `body` is the sighting as it was last.
create table custosd.findings (
    id              custosd.name not null,
    kind            custosd.finding_kind not null,
    one             custosd.name not null,
    other           custosd.name not null,
    first_seen_utc  timestamptz not null,
    last_seen_utc   timestamptz not null,
    sightings       custosd.tally not null,
    missed          integer not null default 0 constraint findings_missed check (missed >= 0),
    resolved_utc    timestamptz,
    resolution      custosd.finding_resolution,
    body            jsonb not null,
    constraint findings_pk primary key (id),
    constraint findings_pair check (one < other),
    constraint findings_resolved check ((resolved_utc is null) = (resolution is null))
) with (fillfactor = 70);

-- Of one kind and pair one is open at most, whoever writes.
create unique index findings_one_open on custosd.findings (kind, one, other)
    where resolved_utc is null;
create index findings_over on custosd.findings (resolved_utc) where resolved_utc is not null;

-- What an agent leased to do, until it runs out by the server's clock.
create table custosd.claims (
    id              custosd.name not null,
    agent_id        custosd.name not null,
    repository      text collate "C" not null default '',
    goal            text not null default '',
    files           text[] not null default '{}',
    taken_utc       timestamptz not null,
    expires_utc     timestamptz not null,
    constraint claims_pk primary key (id),
    constraint claims_say_something check (goal <> '' or files <> '{}'),
    constraint claims_order check (expires_utc > taken_utc)
);

create index claims_of_agent on custosd.claims (agent_id, expires_utc);
create index claims_age on custosd.claims (taken_utc, id);
create index claims_over on custosd.claims (expires_utc);

-- What a claim leaves for others to find (`core.intents`): who is in whose way is looked up
-- here, so that it costs nothing more where many claims last.
create table custosd.claim_marks (
    mark            bigint not null,
    claim_id        custosd.name not null,
    constraint claim_marks_pk primary key (mark, claim_id),
    constraint claim_marks_claim_fk foreign key (claim_id)
        references custosd.claims on delete cascade
);

create index claim_marks_of_claim on custosd.claim_marks (claim_id);
