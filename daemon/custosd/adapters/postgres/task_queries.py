"""The statements of `tasks`.

Laws:

1. Whoever ends tasks or adds edges holds the graph's lock first, in a statement of its own, so
   that the next one sees every edge that counts. Completions share it; whatever adds edges, or
   may end more tasks than its own, has it alone. Claims and renewals need none.
2. Completions lock the tasks that they free in the order of their ids, so they never wait for
   each other in a circle. A claim waits for nobody.
3. A row is updated once in a statement: all that happens to it is summed up before.
4. `$1` is the time: null means the server's, as it is when the statement begins.
5. Numbers of rows stand in the text, rounded up: a planner that does not know them guesses a
   tenth of the table. Rows are reached by `= any(array(...))`, which it takes for few.
"""

from functools import lru_cache

from custosd.core.task_book import LOST_WORDS
from custosd.core.tasks import (
    PRIORITY_SHARE,
    FailureKind,
    RetryRules,
    ScoreRules,
)

_GRAPH_LOCK = 0x7461736B  # "task"
_CLAIM_LOCKS = 0x636C6169  # "clai"

LOCK_GRAPH = f"select pg_advisory_xact_lock({_GRAPH_LOCK})"
SHARE_GRAPH = f"select pg_advisory_xact_lock_shared({_GRAPH_LOCK})"
LOCK_CLAIM = f"select pg_advisory_xact_lock({_CLAIM_LOCKS}, hashtext($1))"

PRUNE_BATCH = 1_000

_CLOCK = "clock as (select coalesce($1::timestamptz, statement_timestamp()) as now_utc)"

_TASK = """
    t.id, t.title, t.goal, t.state, t.priority, t.capabilities, t.unmet, t.blocking, t.attempts,
    t.max_attempts, t.created_utc, t.created_by, t.not_before_utc, t.ready_utc, t.deadline_utc,
    t.timeout_s, t.ended_utc, t.agent_id, t.agent_epoch, t.claimed_utc, t.lease_until_utc,
    t.times_out_utc, t.claim_key, t.fence, t.settled_fence, t.failure_kind, t.failure, t.result,
    array(select e.depends_on from custosd.task_edges as e where e.task_id = t.id
          order by e.depends_on)::text[] as depends_on
"""

READ_NOW = "select coalesce($1::timestamptz, statement_timestamp())"

READ_TASKS = f"select {_TASK} from custosd.tasks as t where t.id = any($1::text[]) order by t.id"  # noqa: S608 - constant parts

# Whoever is about to be given more to wait for must not be claimed meanwhile.
READ_TASKS_HELD = f"{READ_TASKS} for update of t"

READ_STATES = "select id, state from custosd.tasks where id = any($1::text[])"

READ_ASSIGNED = f"""
select {_TASK} from custosd.tasks as t
join unnest($1::smallint[], $2::text[]) as asked (shard, agent)
    on t.agent_shard = asked.shard and t.agent_id = asked.agent
where t.state = 'claimed'
order by t.id
"""  # noqa: S608 - constant parts

READ_HELD_UNDER = f"""
select {_TASK} from custosd.tasks as t
where t.agent_shard = $1 and t.agent_id = $2 and t.state = 'claimed' and t.claim_key = $3
order by t.id
"""  # noqa: S608 - constant parts


@lru_cache
def find_tasks(
    *, by_state: bool, by_agent: bool, after: bool, by_end: bool, own_ends: bool, limit: int
) -> str:
    """Tasks, newest first. `$1` states, `$2` agents, `$3` the last task seen, `$4` ended after."""
    wanted = {
        "t.state = any($1::text[])": by_state,
        "t.agent_id = any($2::text[])": by_agent,
        "(t.created_utc, t.id) < (select l.created_utc, l.id from custosd.tasks as l"
        " where l.id = $3)": after,
        "t.ended_utc > $4": by_end,
        f"t.failure_kind is distinct from '{FailureKind.DEPENDENCY.value}'": own_ends,
    }
    where = " and ".join(words for words, is_asked in wanted.items() if is_asked) or "true"
    return f"""
    select {_TASK} from custosd.tasks as t
    where {where} and num_nulls($1::text[], $2::text[], $3::text, $4::timestamptz) < 5
    order by t.created_utc desc, t.id desc limit {limit:d}
    """  # noqa: S608 - constant parts


# adding

INSERT_TASKS = """
insert into custosd.tasks (id, title, goal, priority, capabilities, state, unmet, blocking,
    max_attempts, created_utc, created_by, not_before_utc, ready_utc, deadline_utc, timeout_s,
    overdue)
select id, title, goal, priority, array(select json_array_elements_text(capabilities::json)),
    state, unmet, blocking, max_attempts, $1, $2, not_before_utc,
    case when state = 'ready' then greatest($1, not_before_utc) end, deadline_utc, timeout_s,
    state = 'ready' and coalesce(deadline_utc <= $1, false)
from unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::int[],
    $10::int[], $11::int[], $12::timestamptz[], $13::timestamptz[], $14::float8[])
    as told (id, title, goal, priority, capabilities, state, unmet, blocking, max_attempts,
        not_before_utc, deadline_utc, timeout_s)
on conflict (id) do nothing
returning id
"""

# Their ends are known to be there: whoever adds has read them under the graph's lock.
INSERT_EDGES = """
insert into custosd.task_edges (task_id, depends_on)
select * from unnest($1::text[], $2::text[])
"""

COUNT_EDGES = """
update custosd.tasks as t set
    unmet = t.unmet + told.unmet,
    blocking = t.blocking + told.blocking,
    state = case when told.unmet > 0 then 'blocked' else t.state end,
    ready_utc = case when told.unmet > 0 then null else t.ready_utc end,
    overdue = t.overdue and told.unmet = 0
from unnest($1::text[], $2::int[], $3::int[]) as told (id, unmet, blocking)
where t.id = told.id and t.ended_utc is null
"""

# From what is newly waited for, over all that it waits for itself: only who waits can close
# a circle, so the way ends at every task that is not blocked.
_UPSTREAM = """
with recursive upstream (id) as (
    select unnest($2::text[]) collate "C"
    union
    select e.depends_on from upstream as u
    join custosd.tasks as t on t.id = u.id and (t.state = 'blocked' or t.id = any($1::text[]))
    join custosd.task_edges as e on e.task_id = u.id
)
"""

MAY_CIRCLE = f"{_UPSTREAM} select exists (select from upstream where id = any($1::text[]))"  # noqa: S608 - constant parts

READ_UPSTREAM = f"""{_UPSTREAM}
select e.task_id, e.depends_on from upstream as u
join custosd.tasks as t on t.id = u.id and (t.state = 'blocked' or t.id = any($1::text[]))
join custosd.task_edges as e on e.task_id = u.id
"""  # noqa: S608 - constant parts

# scoring and claiming


def _number(value: float) -> str:
    return f"'{float(value)!r}'::float8"


def _score(rules: ScoreRules) -> str:
    """`core.tasks.score` of the task `t` at `clock.now_utc`, as the row `s (score)`.

    `offset 0` keeps a subquery whole: its parts are computed once, not at each mention.
    """
    n = _number
    shares = " ".join(f"when '{word}' then {n(share)}" for word, share in PRIORITY_SHARE.items())
    return f"""
    cross join lateral (select
        greatest(extract(epoch from clock.now_utc - t.ready_utc)::float8, 0.0::float8) as ready_s,
        extract(epoch from t.deadline_utc - clock.now_utc)::float8 as slack_s,
        (t.max_attempts - 1)::float8 as retries
        offset 0
    ) as p
    cross join lateral (select (
        {n(rules.priority)} * case t.priority {shares} end
        + {n(rules.age)} * least(p.ready_s / {n(rules.age_s)}, {n(1)})
        + {n(rules.deadline)} * coalesce(
            least(greatest({n(1)} - p.slack_s / {n(rules.deadline_s)}, {n(0)}), {n(1)}), {n(0)})
        + {n(rules.blocking)} * least(t.blocking::float8 / {n(rules.blockers)}, {n(1)})
        + {n(rules.retries)} * case when p.retries > 0
            then greatest({n(1)} - t.attempts::float8 / p.retries, {n(0)}) else {n(0)} end
    ) * case when p.slack_s <= {n(rules.deadline_s)} then {n(rules.boost)} else {n(1)} end as total
        offset 0
    ) as q
    cross join lateral (select case when p.ready_s >= {n(rules.floor_s)}
        then greatest(q.total, {n(rules.floor)}) else q.total end as score
    ) as s
    """  # noqa: S608 - constant parts and numbers


def _candidates(rules: ScoreRules, size: int) -> str:
    """The CTEs up to `best (id, score, ready_utc)`: the `size` most urgent; `$2` capabilities.

    Exact. Groups are found by skipping through the index from the oldest of one to that of the
    next. Within a group the oldest are the most urgent, those apart whose deadline is near,
    which are looked at one by one. So a group whose oldest is not among the first `size` of
    all the oldest has none of the first `size` tasks, and no group has more than `size`.
    """
    columns = (
        "t.id, t.priority, t.blocking, t.attempts, t.max_attempts, t.ready_utc, t.deadline_utc"
    )
    near = f"clock.now_utc + {_number(rules.deadline_s)} * interval '1 second'"
    ready = "t.state = 'ready' and t.ready_utc <= clock.now_utc"
    head = f"t.overdue, t.score_group, {columns}"
    return f"""
    {_CLOCK},
    needs as (
        (select t.capabilities from custosd.tasks as t where t.state = 'ready'
         order by t.capabilities limit 1)
        union all
        select following.capabilities from needs cross join lateral (
            select t.capabilities from custosd.tasks as t
            where t.state = 'ready' and t.capabilities > needs.capabilities
            order by t.capabilities limit 1) as following
    ),
    heads as (
        select needs.capabilities, first.* from needs cross join lateral (
            select {head} from custosd.tasks as t
            where t.state = 'ready' and t.capabilities = needs.capabilities
            order by t.overdue, t.score_group, t.ready_utc, t.id limit 1) as first
        where needs.capabilities <@ $2::text[]
        union all
        select heads.capabilities, following.* from heads cross join lateral (
            select {head} from custosd.tasks as t
            where t.state = 'ready' and t.capabilities = heads.capabilities
                and (t.overdue, t.score_group) > (heads.overdue, heads.score_group)
            order by t.overdue, t.score_group, t.ready_utc, t.id limit 1) as following
    ),
    groups as (
        select t.capabilities, t.overdue, t.score_group,
            row_number() over (order by s.score desc, t.ready_utc, t.id) as place
        from clock cross join (
            -- Not yet overdue is as far off as never, until it is near.
            select capabilities, overdue, score_group, id, priority, blocking, attempts,
                max_attempts, ready_utc, case when overdue then deadline_utc end as deadline_utc
            from heads
        ) as t {_score(rules)}
        where t.ready_utc <= clock.now_utc
        order by place limit {size:d}
    ),
    found as (
        select oldest.* from clock cross join groups cross join lateral (
            select {columns} from custosd.tasks as t
            where {ready} and t.capabilities = groups.capabilities
                and t.overdue = groups.overdue and t.score_group = groups.score_group
                and (t.overdue or t.deadline_utc is null or t.deadline_utc > {near})
            order by t.ready_utc, t.id limit {size + 1:d} - groups.place) as oldest
        union all
        select {columns} from clock cross join custosd.tasks as t
        where {ready} and not t.overdue and t.deadline_utc <= {near}
            and t.capabilities <@ $2::text[]
    ),
    best as (
        select t.id, s.score, t.ready_utc from clock cross join found as t {_score(rules)}
        order by s.score desc, t.ready_utc, t.id limit {size:d}
    )
    """  # noqa: S608 - constant parts and numbers


def rounded_up(count: int) -> int:
    """The next power of two: so few texts of a statement are prepared."""
    return 1 << max(count - 1, 0).bit_length()


@lru_cache
def next_tasks(rules: ScoreRules, size: int) -> str:
    """The `size` (a power of two) most urgent tasks for capabilities `$2`, with their scores."""
    return f"""
    with recursive {_candidates(rules, size)}
    select {_TASK}, best.score from best join custosd.tasks as t on t.id = best.id
    where t.id = any(array(select id from best))
    order by best.score desc, best.ready_utc, best.id
    """  # noqa: S608 - constant parts and numbers


@lru_cache
def claim(rules: ScoreRules, size: int) -> str:
    """Claim `$3` of the `size` most urgent tasks, passing over those being claimed just now.

    `$4` shard and `$5` id of the agent, `$6` its epoch, `$7` the lease, `$8` the key. Each row
    tells besides how many were looked at: fewer than `size` is all there are. One row with
    a null id: none was got.
    """
    return f"""
    with recursive {_candidates(rules, size)},
    taken as (
        select t.id from best join custosd.tasks as t on t.id = best.id cross join clock
        where t.id = any(array(select id from best))
            and t.state = 'ready' and t.ready_utc <= clock.now_utc
        order by best.score desc, best.ready_utc, best.id
        limit $3 for update of t skip locked
    ),
    claimed as (
        update custosd.tasks as t set
            state = 'claimed', attempts = t.attempts + 1, fence = t.fence + 1,
            agent_shard = $4, agent_id = $5, agent_epoch = $6, claim_key = $8,
            claimed_utc = clock.now_utc,
            times_out_utc = clock.now_utc + t.timeout_s * interval '1 second',
            lease_until_utc = least(clock.now_utc + $7::interval,
                clock.now_utc + t.timeout_s * interval '1 second')
        from clock where t.id = any(array(select id from taken))
        returning t.*
    )
    select {_TASK}, (select count(*) from best) as looked_at
    from (select 1) as always left join claimed as t on true
    left join best on best.id = t.id
    order by best.score desc, best.ready_utc, best.id
    """  # noqa: S608 - constant parts and numbers


EXTEND = f"""
with {_CLOCK}, extended as (
    update custosd.tasks as t set
        lease_until_utc = least(clock.now_utc + $5::interval, t.times_out_utc)
    from clock
    where t.id = $2 and t.state = 'claimed' and t.agent_id = coalesce($3::text, t.agent_id)
        and t.fence = coalesce($4::bigint, t.fence)
    returning t.*
)
select {_TASK} from extended as t
"""  # noqa: S608 - constant parts

# ending


def _ending(roots: str, *, falls: bool, leaves: bool) -> str:
    """End attempts and tasks, with all that follows, in one statement; returns the changes.

    `roots` selects from `t` and `clock` what ends by itself: `id`, `state`, `agent_id`,
    `fence`, `verdict` (ready: it rests and comes back), `kind`, `words`, `rest`, `refund`
    (the attempt does not count), `settles` (the word was the holder's own), `result`. `falls`:
    what waits for a task that ended badly ends too. `leaves`: what an ended task waited for
    has one less waiting.
    """
    fallen = """
        falling (id, root, verdict) as (
            select id, id, verdict from roots where verdict in ('failed', 'cancelled')
            union
            select e.task_id, f.root, f.verdict from falling as f
            join custosd.task_edges as e on e.depends_on = f.id
            join custosd.tasks as t on t.id = e.task_id and t.state = 'blocked'
            where t.id <> all(array(select id from roots))
        ),
        fallen as (
            select distinct on (f.id) f.id, f.root, f.verdict from falling as f
            where f.id <> f.root order by f.id, f.root
        ),
    """
    none_fallen = """
        fallen as (select null::text as id, null::text as root, null::text as verdict
                   where false),
    """
    left = """
            union all
            select e.depends_on, 0, 1
            from ended join custosd.task_edges as e on e.task_id = ended.id
            join custosd.tasks as t on t.id = e.depends_on and t.ended_utc is null
    """
    return f"""
    with recursive {_CLOCK},
    roots as materialized ({roots} order by t.id for update of t),
    {fallen if falls else none_fallen}
    ended as (
        select id, verdict from roots where verdict <> 'ready'
        union all select id, verdict from fallen
    ),
    counted as (
        select id, sum(met)::int as met, sum(gone)::int as gone from (
            select e.task_id as id, 1 as met, 0 as gone
            from ended join custosd.task_edges as e on e.depends_on = ended.id
            where ended.verdict = 'succeeded'
            {left if leaves else ""}
        ) as counts group by id
    ),
    news as materialized (
        select id, coalesce(r.verdict, f.verdict) as verdict, f.root,
            coalesce(r.state, 'blocked') as before, r.agent_id as agent,
            coalesce(r.fence, 0) as fence,
            coalesce(r.kind, case when f.id is not null then 'dependency' end) as kind,
            coalesce(r.words, 'it waited for ' || f.root || ', which was ' || f.verdict) as words,
            r.rest, coalesce(r.refund, false) as refund, coalesce(r.settles, false) as settles,
            r.result, coalesce(c.met, 0) as met, coalesce(c.gone, 0) as gone
        from roots as r full join fallen as f using (id) full join counted as c using (id)
    ),
    held as materialized (
        select t.id from custosd.tasks as t where t.id = any(array(select id from news))
        order by t.id for update
    ),
    changed as (
        update custosd.tasks as t set
            state = coalesce(n.verdict, case when {_FREED} then 'ready' else t.state end),
            unmet = case when {_ENDED} then 0 else greatest(t.unmet - n.met, 0) end,
            blocking = case when {_ENDED} then 0 else greatest(t.blocking - n.gone, 0) end,
            ready_utc = case when n.verdict = 'ready' then clock.now_utc + n.rest
                when {_FREED} then greatest(clock.now_utc, t.not_before_utc)
                else t.ready_utc end,
            overdue = case when n.verdict = 'ready' or {_FREED}
                then coalesce(t.deadline_utc <= clock.now_utc, false) else t.overdue end,
            ended_utc = case when {_ENDED} then clock.now_utc else t.ended_utc end,
            attempts = t.attempts - n.refund::int,
            agent_shard = case when n.verdict = 'ready' then null else t.agent_shard end,
            agent_id = case when n.verdict = 'ready' then null else t.agent_id end,
            agent_epoch = case when n.verdict is null then t.agent_epoch end,
            claimed_utc = case when n.verdict is null then t.claimed_utc end,
            times_out_utc = case when n.verdict is null then t.times_out_utc end,
            lease_until_utc = case when n.verdict is null then t.lease_until_utc end,
            claim_key = case when n.verdict is null then t.claim_key else '' end,
            settled_fence = case when n.settles then t.fence else t.settled_fence end,
            failure_kind = coalesce(n.kind, t.failure_kind),
            failure = coalesce(n.words, t.failure),
            result = coalesce(n.result, t.result)
        from news as n, clock
        where t.id = any(array(select id from held)) and n.id = t.id
        returning t.id, t.state
    )
    select n.id, n.before, c.state as after, n.agent, n.fence, n.kind, n.root
    from changed as c join news as n on n.id = c.id
    where n.verdict is not null or (n.met > 0 and c.state = 'ready')
    order by n.id
    """  # noqa: S608 - constant parts


_FREED = "(n.verdict is null and t.state = 'blocked' and t.unmet <= n.met)"
_ENDED = "coalesce(n.verdict <> 'ready', false)"
_CLAIM_FENCE = "case when t.state = 'claimed' then t.fence else 0 end as fence"
_HELD = """t.id = $2 and t.state = 'claimed' and t.agent_id = coalesce($3::text, t.agent_id)
        and t.fence = coalesce($4::bigint, t.fence)"""
_OPEN = "t.ended_utc is null"

_SUCCEEDED = f"""
    select t.id, t.state::text, t.agent_id::text, {_CLAIM_FENCE}, 'succeeded' as verdict,
        null::text as kind, null::text as words, null::interval as rest, false as refund,
        $4::bigint is not null as settles, $5::text as result
    from custosd.tasks as t, clock
"""  # noqa: S608 - constant parts

COMPLETE = _ending(f"{_SUCCEEDED} where {_HELD}", falls=False, leaves=False)
COMPLETE_ANY = _ending(
    f"{_SUCCEEDED} where t.id = $2 and {_OPEN} and $3::text is null", falls=False, leaves=True
)

CANCEL = _ending(
    f"""
    select t.id, t.state::text, t.agent_id::text, {_CLAIM_FENCE}, 'cancelled' as verdict,
        'cancelled' as kind, $3::text as words, null::interval as rest, false as refund,
        false as settles, null::text as result
    from custosd.tasks as t, clock where t.id = any($2::text[]) and {_OPEN}
    """,  # noqa: S608 - constant parts
    falls=True,
    leaves=True,
)


def _over(rules: RetryRules, kind: str, words: str, where: str, *, told: bool = False) -> str:
    """The roots of attempts that came to nothing; `told`: by their holders, `$7` when again."""
    n = _number
    drawn = "('x' || substr(md5(t.id || ':' || t.attempts), 1, 8))::bit(32)::bigint::float8"
    share = f"({n(1)} + {n(rules.spread)} * ({n(2)} * ({drawn} / {n(2**32)}) - {n(1)}))"
    rest = f"""floor(least({n(rules.first_s)} * power({n(2)}, t.attempts - 1) * {share},
        {n(rules.cap_s)}) * {n(1000)}) * interval '1 millisecond'"""
    spent = "k.kind = 'permanent' or (k.kind <> 'usage_limit' and t.attempts >= t.max_attempts)"
    return f"""
    select t.id, t.state::text, t.agent_id::text, {_CLAIM_FENCE},
        case when {spent} then 'failed' else 'ready' end as verdict,
        k.kind, {words} as words,
        case when k.kind = 'usage_limit' then {"$7::interval" if told else "null::interval"}
            when t.attempts > 0 then {rest} end as rest,
        k.kind = 'usage_limit' as refund,
        {"$4::bigint is not null" if told else "false"} as settles, null::text as result
    from clock, custosd.tasks as t cross join lateral (select {kind} as kind) as k
    where {where}
    """  # noqa: S608 - constant parts


@lru_cache
def fail(rules: RetryRules, *, with_authority: bool) -> str:
    """`$2` id, `$3` agent, `$4` fence, `$5` kind, `$6` words, `$7` rest at a usage limit."""
    where = f"t.id = $2 and {_OPEN} and $3::text is null" if with_authority else _HELD
    kind = "case when t.state = 'claimed' then $5::text else 'permanent' end"
    words = "coalesce(nullif($6::text, ''), k.kind)"
    return _ending(_over(rules, kind, words, where, told=True), falls=True, leaves=True)


def _lost_words() -> str:
    words = " ".join(f"when '{kind.value}' then '{text}'" for kind, text in LOST_WORDS.items())
    return f"case k.kind {words} end"


@lru_cache
def expire(rules: RetryRules) -> str:
    """End the attempts whose leases ran out."""
    kind = f"""case when t.times_out_utc <= clock.now_utc then '{FailureKind.TIMEOUT.value}'
        else '{FailureKind.LEASE_LOST.value}' end"""
    where = "t.state = 'claimed' and t.lease_until_utc <= clock.now_utc"
    return _ending(_over(rules, kind, _lost_words(), where), falls=True, leaves=True)


@lru_cache
def release(rules: RetryRules) -> str:
    """End the attempts of dead incarnations: `$2` shards, `$3` agents, `$4` epochs."""
    kind = f"'{FailureKind.AGENT_DEAD.value}'"
    where = """t.state = 'claimed' and exists (
        select from unnest($2::smallint[], $3::text[], $4::bigint[]) as dead (shard, agent, epoch)
        where t.agent_shard = dead.shard and t.agent_id = dead.agent
            and t.agent_epoch <= dead.epoch)"""
    return _ending(_over(rules, kind, _lost_words(), where), falls=True, leaves=True)


MARK_OVERDUE = f"""
with {_CLOCK}
update custosd.tasks as t set overdue = true from clock
where t.state = 'ready' and not t.overdue and t.deadline_utc <= clock.now_utc
"""  # noqa: S608 - constant parts

# In seconds from now; what is due already is 0 or less.
NEXT_DUE = f"""
with {_CLOCK}
select extract(epoch from least(
    (select min(t.lease_until_utc) from custosd.tasks as t where t.state = 'claimed'),
    (select min(t.deadline_utc) from custosd.tasks as t where t.state = 'ready' and not t.overdue)
) - clock.now_utc)::float8 from clock
"""  # noqa: S608 - constant parts

PRUNE = f"""
with old as (
    select id from custosd.tasks where ended_utc < $1
    order by ended_utc limit {PRUNE_BATCH:d} for update skip locked
), gone as (
    delete from custosd.tasks as t where t.id = any(array(select id from old)) returning 1
)
select count(*) from gone
"""  # noqa: S608 - constant parts
