-- The record: everything that happened, by day.
--
-- No foreign keys: what happened stays told when its agent is gone. `kind` has no closed
-- vocabulary, so that an older program can share the table with a newer one. Facts about
-- no agent lie in shard 0. Days are dropped whole; what falls on a day that has no
-- partition lies in the default one and is moved when its day is made.

create table custosd.facts (
    at_utc          timestamptz not null,
    shard           custosd.shard not null,
    id              custosd.name not null,
    kind            text not null constraint facts_kind check (kind ~ '^[a-z][a-z0-9_]*$'),
    agent_id        custosd.name,
    run_id          custosd.name,
    body            jsonb not null constraint facts_body check (jsonb_typeof(body) = 'object'),
    constraint facts_pk primary key (at_utc, shard, id),
    constraint facts_run_of_agent check (run_id is null or agent_id is not null)
) partition by range (at_utc);

create index facts_agent on custosd.facts (shard, agent_id, at_utc desc, id desc)
    where agent_id is not null;

create table custosd.facts_default partition of custosd.facts default;

-- Makes the partitions for `first` and the `ahead` days after it; returns how many were
-- new. Readers go on meanwhile. Writers wait: one that had chosen the default partition for
-- its row would be refused when the row's own day is there.
create function custosd.prepare_fact_days(first date, ahead integer) returns integer
language plpgsql as $$
declare
    day date;
    part text;
    starts timestamptz;
    ends timestamptz;
    made integer := 0;
begin
    if (select bool_and(to_regclass('custosd.facts_' || to_char(first + n, 'YYYYMMDD')) is not null)
        from generate_series(0, ahead) as n) then
        return 0;
    end if;
    lock table custosd.facts in share row exclusive mode;
    for day in select first + n from generate_series(0, ahead) as n loop
        part := 'facts_' || to_char(day, 'YYYYMMDD');
        continue when to_regclass('custosd.' || part) is not null;
        starts := day::timestamp at time zone 'UTC';
        ends := (day + 1)::timestamp at time zone 'UTC';
        execute format(
            'create table custosd.%I (like custosd.facts including defaults including constraints)',
            part);
        execute format(
            'with moved as (delete from custosd.facts_default'
            ' where at_utc >= $1 and at_utc < $2 returning *)'
            ' insert into custosd.%I select * from moved', part)
            using starts, ends;
        execute format(
            'alter table custosd.facts attach partition custosd.%I for values from (%L) to (%L)',
            part, starts, ends);
        made := made + 1;
    end loop;
    return made;
end
$$;

-- Drops the days that lie wholly before `before`; returns how many there were.
create function custosd.drop_fact_days(before timestamptz) returns integer
language plpgsql as $$
declare
    part text;
    last date := (before at time zone 'UTC')::date;
    dropped integer := 0;
begin
    for part in
        select c.relname
        from pg_inherits as i join pg_class as c on c.oid = i.inhrelid
        where i.inhparent = 'custosd.facts'::regclass
          and c.relname ~ '^facts_[0-9]{8}$'
          and to_date(substr(c.relname, 7), 'YYYYMMDD') < last
        order by c.relname
    loop
        execute format('drop table custosd.%I', part);
        dropped := dropped + 1;
    end loop;
    delete from custosd.facts_default where at_utc < last::timestamp at time zone 'UTC';
    return dropped;
end
$$;
