-- What custosd does to agents: written before the act, so that it is done once.

-- One steering message with its life. Times are set as its states are reached; a state
-- without its time is impossible. Agents held out for measurement are never delivered to.
create table custosd.interventions (
    shard               custosd.shard not null,
    id                  custosd.name not null,
    agent_id            custosd.name not null,
    run_id              custosd.name not null,
    idempotency_key     custosd.name not null,
    verdict_id          custosd.name,
    kind                custosd.steering_kind not null,
    reason              custosd.steering_reason,
    message             text not null constraint interventions_worded check (message <> ''),
    hold_out            boolean not null default false,
    state               custosd.intervention_state not null default 'proposed',
    proposed_by         text not null,
    approved_by         text not null default '',
    channel             text not null default '',
    failure             text not null default '',
    attempts            smallint not null default 0,
    proposed_utc        timestamptz not null,
    approved_utc        timestamptz,
    queued_utc          timestamptz,
    delivered_utc       timestamptz,
    acknowledged_utc    timestamptz,
    acted_utc           timestamptz,
    closed_utc          timestamptz,
    expires_utc         timestamptz not null,
    alignment_before    custosd.fraction,
    alignment_after     custosd.fraction,
    standing_before     custosd.standing,
    standing_after      custosd.standing,
    measured_utc        timestamptz,
    constraint interventions_pk primary key (shard, id),
    constraint interventions_once unique (shard, agent_id, idempotency_key),
    constraint interventions_run_fk foreign key (shard, agent_id, run_id)
        references custosd.runs on delete cascade,
    constraint interventions_verdict_fk foreign key (shard, verdict_id)
        references custosd.verdicts on delete set null (verdict_id),
    constraint interventions_expires check (expires_utc > proposed_utc),
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

create index interventions_of_agent on custosd.interventions (shard, agent_id, proposed_utc desc);
create index interventions_of_verdict on custosd.interventions (shard, verdict_id)
    where verdict_id is not null;
create index interventions_open on custosd.interventions (expires_utc) where closed_utc is null;

-- One restart of one agent: `epoch` is the run's that ends, `next_epoch` the one that begins.
create table custosd.restarts (
    shard               custosd.shard not null,
    id                  custosd.name not null,
    agent_id            custosd.name not null,
    run_id              custosd.name not null,
    idempotency_key     custosd.name not null,
    cause               custosd.restart_cause not null,
    fingerprint         text not null default '',
    reason              text not null default '',
    requested_by        text not null,
    evidence            jsonb not null,
    state               custosd.restart_state not null default 'intended',
    epoch               bigint not null constraint restarts_epoch check (epoch >= 0),
    next_epoch          bigint,
    owner               custosd.name,
    fence               bigint,
    failure             text not null default '',
    intended_utc        timestamptz not null,
    started_utc         timestamptz,
    ended_utc           timestamptz,
    constraint restarts_pk primary key (shard, id),
    constraint restarts_once unique (shard, agent_id, idempotency_key),
    constraint restarts_run_fk foreign key (shard, agent_id, run_id)
        references custosd.runs on delete cascade,
    constraint restarts_epoch_grows check (next_epoch > epoch),
    constraint restarts_running check (
        state <> 'running' or (started_utc is not null and owner is not null and fence is not null)),
    constraint restarts_succeeded check (state <> 'succeeded' or next_epoch is not null),
    constraint restarts_failed check ((state = 'failed') = (failure <> '')),
    constraint restarts_ended check (
        (state in ('succeeded', 'failed', 'abandoned')) = (ended_utc is not null)),
    constraint restarts_order check (ended_utc >= intended_utc)
) with (fillfactor = 85);

-- No agent is restarted twice at once, whoever tries.
create unique index restarts_one_open on custosd.restarts (shard, agent_id)
    where ended_utc is null;
create index restarts_of_agent on custosd.restarts (shard, agent_id, intended_utc desc);

create table custosd.restart_steps (
    shard               custosd.shard not null,
    restart_id          custosd.name not null,
    step                custosd.restart_step not null,
    attempt             smallint not null default 1,
    state               custosd.step_state not null default 'running',
    started_utc         timestamptz not null,
    ended_utc           timestamptz,
    result              jsonb,
    constraint restart_steps_pk primary key (shard, restart_id, step, attempt),
    constraint restart_steps_restart_fk foreign key (shard, restart_id)
        references custosd.restarts on delete cascade,
    constraint restart_steps_attempt check (attempt >= 1),
    constraint restart_steps_ended check ((state = 'running') = (ended_utc is null)),
    constraint restart_steps_order check (ended_utc >= started_utc)
) with (fillfactor = 85);
