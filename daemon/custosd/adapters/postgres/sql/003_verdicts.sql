-- What the guardian judged, on which signals, and who judged at what price.

create table custosd.verdicts (
    shard           custosd.shard not null,
    id              custosd.name not null,
    agent_id        custosd.name not null,
    run_id          custosd.name not null,
    at_utc          timestamptz not null,
    steps           custosd.tally not null,
    standing        custosd.standing not null,
    phase           custosd.phase not null,
    alignment       custosd.fraction,
    confidence      custosd.fraction,
    needs_steering  boolean not null,
    steering_kind   custosd.steering_kind,
    steering_reason custosd.steering_reason,
    message         text not null default '',
    summary         text not null default '',
    focus           text not null default '',
    goal            text not null default '',
    evidence        integer[] not null default '{}',
    unknown_reason  text not null default '',
    judge           text not null,
    model           text not null default '',
    prompt_version  text not null default '',
    input_hash      text not null default '',
    input_tokens    custosd.tally not null default 0,
    output_tokens   custosd.tally not null default 0,
    cached_tokens   custosd.tally not null default 0,
    cost_usd        double precision not null default 0,
    latency_s       double precision not null default 0,
    absent          text[] not null default '{}',
    constraint verdicts_pk primary key (shard, id),
    constraint verdicts_run_fk foreign key (shard, agent_id, run_id)
        references custosd.runs on delete cascade
);

-- The last n verdicts of an agent, and the last one of its latest run.
create index verdicts_latest on custosd.verdicts (shard, agent_id, at_utc desc, id desc);

-- What retention looks for; rows arrive in this order, so it only grows at its end.
create index verdicts_age on custosd.verdicts (at_utc);

create table custosd.signals (
    shard           custosd.shard not null,
    verdict_id      custosd.name not null,
    place           smallint not null constraint signals_place check (place >= 0),
    kind            custosd.signal_kind not null,
    severity        custosd.severity not null,
    steps           integer[] not null default '{}',
    measure         double precision not null,
    threshold       double precision not null,
    about           text not null default '',
    peers           text[] not null default '{}',
    constraint signals_pk primary key (shard, verdict_id, place),
    constraint signals_verdict_fk foreign key (shard, verdict_id)
        references custosd.verdicts on delete cascade
);
