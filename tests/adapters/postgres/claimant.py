"""One of many who claim: `claimant.py DSN NAME BATCH` until nothing is ready.

Says, a line each: the id and the fence of every task claimed and completed; "lost" for each
completion that was refused.
"""

import sys

import structlog
import trio

from custosd.adapters.postgres.bridge import open_database
from custosd.adapters.postgres.tasks import PostgresTasks
from custosd.core.agents import AgentId
from custosd.core.tasks import ClaimRequest, Holder, Settling, TaskQuery, TaskState

OPEN = TaskQuery(frozenset({TaskState.READY, TaskState.BLOCKED, TaskState.CLAIMED}), limit=1)


async def main(dsn: str, name: str, batch: str) -> None:
    agent = AgentId(name)
    async with open_database(dsn, pool_size=1) as database:
        store = PostgresTasks(database)
        print("up", flush=True)
        sys.stdin.readline()
        while True:
            claimed = await store.claim(ClaimRequest(agent, 300.0, int(batch)))
            for task in claimed.tasks:
                done = await store.complete(task.id, Holder(agent, task.fence))
                word = task.fence if done.outcome is Settling.DONE else "lost"
                print(task.id, word, flush=True)
            if not claimed.tasks and not await store.find(OPEN):
                return


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    trio.run(main, *sys.argv[1:])
