"""What the server takes at most: liveness rows by unnest, in batches, over plain asyncpg.

    python tests/bench/upsert_bound.py DSN --rows 10000 --batch 1000 --seconds 4

The table is as lean as it can be: an integer key, no index beside it, half-filled pages, so
that every update stays on its page. It is taken away at the end.
"""

import argparse
import asyncio
import json
import time
from datetime import UTC, datetime, timedelta

import asyncpg

TABLE = """
drop table if exists upsert_bound;
create table upsert_bound (
    agent_id int primary key, seq bigint not null, last_seen timestamptz not null,
    next_deadline timestamptz not null, status smallint not null, meta jsonb
) with (fillfactor = 50)
"""

UPSERT = """
insert into upsert_bound as known (agent_id, seq, last_seen, next_deadline, status)
select * from unnest($1::int[], $2::bigint[], $3::timestamptz[], $4::timestamptz[],
    $5::smallint[])
on conflict (agent_id) do update set seq = excluded.seq, last_seen = excluded.last_seen,
    next_deadline = excluded.next_deadline, status = excluded.status
    where excluded.seq > known.seq
"""


async def measure(dsn: str, rows: int, batch: int, seconds: float) -> dict[str, float]:
    connection = await asyncpg.connect(dsn)
    await connection.execute(TABLE)
    count = 0

    async def upsert(first: int, seq: int) -> None:
        now = datetime.now(UTC)
        size = min(batch, rows - first)
        await connection.execute(
            UPSERT,
            list(range(first, first + size)),
            [seq] * size,
            [now] * size,
            [now + timedelta(seconds=50)] * size,
            [1] * size,
        )

    for first in range(0, rows, batch):
        await upsert(first, 0)
    began, cpu, seq = time.monotonic(), time.process_time(), 0
    while time.monotonic() < began + seconds:
        seq += 1
        for first in range(0, rows, batch):
            await upsert(first, seq)
            count += min(batch, rows - first)
    wall_s, cpu_s = time.monotonic() - began, time.process_time() - cpu
    await connection.execute("drop table upsert_bound")
    await connection.close()
    return {"rows": count, "wall_s": wall_s, "cpu_s": cpu_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dsn")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=4.0)
    asked = parser.parse_args()
    print(json.dumps(asyncio.run(measure(asked.dsn, asked.rows, asked.batch, asked.seconds))))


if __name__ == "__main__":
    main()
