-- How the daemons' own operations went, as counted since the start of each: a row a minute.

create table custosd.metrics (
    at_utc          timestamptz not null,
    daemon          custosd.name not null,
    operations      jsonb not null
        constraint metrics_operations check (jsonb_typeof(operations) = 'array'),
    constraint metrics_pk primary key (at_utc, daemon)
);
