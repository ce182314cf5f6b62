-- The daemons that share this store: who lives, and who may act on what.

create table custosd.daemons (
    name            custosd.name not null,
    pid             integer not null constraint daemons_pid check (pid > 0),
    version         text not null,
    started_utc     timestamptz not null,
    beat_utc        timestamptz not null,
    agents          custosd.tally not null,
    sweeps          custosd.tally not null,
    stopped         boolean not null default false,
    constraint daemons_pk primary key (name)
) with (fillfactor = 50);

-- What is leased has a name: 'conductor', 'shard:17'. `fence` grows with each new owner;
-- whoever acts under a lease carries it along.
create table custosd.leases (
    name            custosd.name not null,
    owner           custosd.name not null,
    fence           bigint not null constraint leases_fence check (fence > 0),
    taken_utc       timestamptz not null,
    expires_utc     timestamptz not null,
    constraint leases_pk primary key (name),
    constraint leases_order check (expires_utc > taken_utc)
) with (fillfactor = 50);
