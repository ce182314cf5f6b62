"""A stand-in for the daemon: `daemon_like.py DATA_DIR [BINARIES [KEEP [ROOT_WAY]]]`.

Starts the embedded server, says its pid, version and DSN on a line, and stays until it is
killed. With KEEP it stores a row first.
"""

import sys
from pathlib import Path

import structlog
import trio

from custosd.adapters.postgres.embedded import embedded_postgres
from custosd.adapters.postgres.processes import RootWay


async def main(data_dir: str, binaries: str = "", keep: str = "", root_way: str = "") -> None:
    folder = Path(binaries) if binaries else None
    ways = (RootWay(root_way),) if root_way else tuple(RootWay)
    async with embedded_postgres(Path(data_dir), binaries=folder, root_ways=ways) as server:
        if keep:
            await _store()(server.dsn)
        print(server.pid, server.version, server.dsn, flush=True)
        await trio.sleep_forever()


def _store():  # not every Python that runs this has the driver
    from custosd.adapters.postgres.bridge import (  # noqa: PLC0415
        Connection,
        open_database,
    )

    async def insert(connection: Connection) -> None:
        await connection.execute("create table kept (n int)")
        await connection.execute("insert into kept values (42)")

    async def store(dsn: str) -> None:
        async with open_database(dsn) as db:
            await db.unit(insert)

    return store


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    trio.run(main, *sys.argv[1:])
