-- Lives, and what is done about them: restarts, messages, holds, tokens.
--
-- Who is restarted or told something is an agent that may have no run: nothing here refers
-- to runs, agents or verdicts. So the tables of 005 are made anew; no program has ever
-- written to them. Nothing compares two times here either: they are of wall clocks, and one
-- that was set back must not keep a restart from being ended.

create domain custosd.wait_kind as text
    constraint wait_kind_known check (value in ('human', 'rate_limit', 'command'));

create domain custosd.hold_kind as text collate "C"
    constraint hold_kind_known check (value in (
        'quarantine', 'pause', 'estop', 'silence', 'ack', 'incident', 'notified'));

-- What is needed to go on with a life. Nothing but the key is indexed, and half of each page
-- is left free, so that the many updates stay in their page.
create table custosd.lives (
    shard               custosd.shard not null,
    agent_id            custosd.name not null,
    epoch               custosd.tally not null,
    sequence            custosd.tally not null,
    state               custosd.agent_state not null,
    since_utc           timestamptz not null,
    heard_utc           timestamptz,
    interval_s          double precision constraint lives_interval check (interval_s >= 0),
    wait_kind           custosd.wait_kind,
    wait_until_utc      timestamptz,
    pid                 bigint constraint lives_pid check (pid > 0),
    started_ticks       custosd.tally,
    boot_id             text,
    gaps_s              double precision[] not null default '{}'
        constraint lives_gaps check (0 <= all (gaps_s)),
    progress_utc        timestamptz,
    constraint lives_pk primary key (shard, agent_id),
    constraint lives_process_whole check (
        (pid is null) = (started_ticks is null) and (pid is null) = (boot_id is null))
) with (fillfactor = 50);

-- The highest epoch that an agent was given with a restart. Its row is what those who give
-- one wait for, and it stays when the restarts are gone.
create table custosd.epochs (
    shard               custosd.shard not null,
    agent_id            custosd.name not null,
    epoch               custosd.tally not null,
    constraint epochs_pk primary key (shard, agent_id)
) with (fillfactor = 50);

drop table custosd.restart_steps;
drop table custosd.restarts;
drop table custosd.interventions;

-- One restart of one agent: `epoch` is the incarnation that ends, `next_epoch` the one that
-- begins; whoever carries it out has the lease of that `fence`.
create table custosd.restarts (
    shard               custosd.shard not null,
    id                  custosd.name not null,
    agent_id            custosd.name not null,
    idempotency_key     custosd.name not null,
    cause               custosd.restart_cause not null,
    reason              text not null default '',
    requested_by        text not null,
    epoch               custosd.tally not null,
    next_epoch          custosd.tally not null,
    fingerprint         text not null default '',
    task                text not null default '',
    evidence            jsonb not null default '[]'
        constraint restarts_evidence check (jsonb_typeof(evidence) = 'array'),
    state               custosd.restart_state not null default 'intended',
    owner               text not null default '',
    fence               custosd.tally not null default 0,
    failure             text not null default '',
    intended_utc        timestamptz not null,
    started_utc         timestamptz,
    ended_utc           timestamptz,
    constraint restarts_pk primary key (shard, id),
    constraint restarts_once unique (shard, agent_id, idempotency_key),
    constraint restarts_epoch_grows check (next_epoch > epoch),
    constraint restarts_running check (
        state <> 'running' or (started_utc is not null and owner <> '' and fence > 0)),
    constraint restarts_failed check ((state = 'failed') = (failure <> '')),
    constraint restarts_ended check (
        (state in ('succeeded', 'failed', 'abandoned')) = (ended_utc is not null))
) with (fillfactor = 85);

-- No agent is restarted twice at once, and no epoch is given twice, whoever tries.
create unique index restarts_one_open on custosd.restarts (shard, agent_id)
    where ended_utc is null;
create unique index restarts_one_epoch on custosd.restarts (shard, agent_id, next_epoch);
create index restarts_open on custosd.restarts (intended_utc) where ended_utc is null;
create index restarts_age on custosd.restarts (intended_utc);

-- Attempts at the steps; `place` keeps them in the order in which they were told.
create table custosd.restart_steps (
    shard               custosd.shard not null,
    restart_id          custosd.name not null,
    step                custosd.restart_step not null,
    attempt             integer not null,
    place               integer not null,
    state               custosd.step_state not null,
    started_utc         timestamptz not null,
    ended_utc           timestamptz,
    result              text not null default '',
    constraint restart_steps_pk primary key (shard, restart_id, step, attempt),
    constraint restart_steps_restart_fk foreign key (shard, restart_id)
        references custosd.restarts on delete cascade,
    constraint restart_steps_attempt check (attempt >= 1),
    constraint restart_steps_place check (place >= 0),
    constraint restart_steps_ended check ((state = 'running') = (ended_utc is null))
) with (fillfactor = 85);

-- One steering message with its life. A state without its time is impossible. What is held
-- out for measurement is never delivered.
create table custosd.interventions (
    shard               custosd.shard not null,
    id                  custosd.name not null,
    agent_id            custosd.name not null,
    idempotency_key     custosd.name not null,
    kind                custosd.steering_kind not null,
    reason              custosd.steering_reason,
    message             text not null constraint interventions_worded check (message <> ''),
    verdict_id          text not null default '',
    hold_out            boolean not null default false,
    state               custosd.intervention_state not null default 'proposed',
    proposed_by         text not null,
    approved_by         text not null default '',
    channel             text not null default '',
    failure             text not null default '',
    attempts            integer not null default 0,
    proposed_utc        timestamptz not null,
    expires_utc         timestamptz not null,
    approved_utc        timestamptz,
    queued_utc          timestamptz,
    delivered_utc       timestamptz,
    acknowledged_utc    timestamptz,
    acted_utc           timestamptz,
    closed_utc          timestamptz,
    alignment_before    custosd.fraction,
    alignment_after     custosd.fraction,
    standing_before     custosd.standing,
    standing_after      custosd.standing,
    measured_utc        timestamptz,
    constraint interventions_pk primary key (shard, id),
    constraint interventions_once unique (shard, agent_id, idempotency_key),
    constraint interventions_attempts check (attempts >= 0),
    constraint interventions_approved check (
        state <> 'approved' or (approved_utc is not null and approved_by <> '')),
    constraint interventions_queued check (state <> 'queued' or queued_utc is not null),
    constraint interventions_delivered check (
        state not in ('delivered', 'acknowledged', 'acted')
        or (delivered_utc is not null and channel <> '')),
    constraint interventions_acknowledged check (
        state not in ('acknowledged', 'acted') or acknowledged_utc is not null),
    constraint interventions_acted check (state <> 'acted' or acted_utc is not null),
    constraint interventions_failed check ((state = 'failed') = (failure <> '')),
    constraint interventions_closed check (
        (state in ('acted', 'expired', 'failed')) = (closed_utc is not null)),
    constraint interventions_held_out check (not hold_out or delivered_utc is null),
    constraint interventions_measured check (
        measured_utc is not null or (alignment_after is null and standing_after is null))
) with (fillfactor = 85);

create index interventions_open on custosd.interventions (proposed_utc)
    where closed_utc is null;
create index interventions_age on custosd.interventions (proposed_utc);

-- What a person, or a rule, has put between the daemon and an act. Few, and about anything.
create table custosd.holds (
    kind                custosd.hold_kind not null,
    subject             custosd.name not null,
    placed_by           text not null,
    reason              text not null,
    since_utc           timestamptz not null,
    until_utc           timestamptz,
    agents              text[] not null default '{}',
    constraint holds_pk primary key (kind, subject)
) with (fillfactor = 85);

-- Who may speak for an agent, and who may ask for acts; secrets only as hashes (SHA-256).
create table custosd.tokens (
    id                  custosd.name not null,
    secret_hash         bytea not null
        constraint tokens_hash check (octet_length(secret_hash) = 32),
    created_utc         timestamptz not null,
    created_by          text not null,
    agent               text not null default '',
    scopes              text[] not null default '{}',
    constraint tokens_pk primary key (id)
);
