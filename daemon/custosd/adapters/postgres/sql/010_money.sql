-- What judging has cost: a row a call, written when its money is reserved, before it is made.
-- A row that was never settled counts as it was reserved: nobody knows what was bought.

create domain custosd.usd as double precision
    constraint usd_range check (value >= 0 and value < 'infinity');

create table custosd.spends (
    shard           custosd.shard not null,
    id              custosd.name not null,
    at_utc          timestamptz not null,
    agent_id        text not null,
    model           custosd.name not null,
    reserved_usd    custosd.usd not null,
    settled_usd     custosd.usd,
    settled_utc     timestamptz,
    constraint spends_pk primary key (shard, id),
    constraint spends_settled check ((settled_usd is null) = (settled_utc is null))
) with (fillfactor = 70);

create index spends_age on custosd.spends (at_utc);

-- What the agents themselves spent in a day (UTC), as far as their transcripts tell.
create table custosd.fleet_days (
    day             date not null,
    spent_usd       custosd.usd not null,
    constraint fleet_days_pk primary key (day)
) with (fillfactor = 50);
