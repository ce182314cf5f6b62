"""The database that the configuration names: a server of ours, a daemon's, or somebody's own."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from custosd.adapters.postgres.bridge import Database, open_database
from custosd.adapters.postgres.embedded import embedded_postgres
from custosd.adapters.postgres.served import served_dsn
from custosd.config.settings import Config
from custosd.core.errors import StoreError

SYSTEM_STATE = Path("/var/lib/custosd")
"""Where the daemon of systemd/custosd.service keeps its state (StateDirectory=)."""


@asynccontextmanager
async def open_postgres(
    config: Config, environ: Mapping[str, str], *, serve: bool = True
) -> AsyncGenerator[Database]:
    """The database that the configuration names, whatever its schema.

    Without a DSN, a private server is run for the block (`serve`), or the one that a
    running daemon serves is used.
    """
    store, state = config.store, config.daemon.state_folder(environ)
    async with AsyncExitStack() as stack:
        dsn = store.dsn
        if not dsn and serve:
            data_dir = store.embedded.data_folder(state)
            server = await stack.enter_async_context(
                embedded_postgres(
                    data_dir,
                    binaries=store.embedded.binaries,
                    shared_buffers_bytes=store.embedded.shared_buffers_bytes,
                )
            )
            dsn = server.dsn
        elif not dsn:
            dsn = _served(config, environ)
        secret = store.password(environ)
        yield await stack.enter_async_context(
            open_database(
                dsn,
                password=secret.read() if secret else None,
                pool_size=store.pool_size,
                acquire_timeout_s=store.acquire_timeout_s,
                statement_timeout_s=store.statement_timeout_s,
                connect_timeout_s=store.connect_timeout_s,
            )
        )


def _served(config: Config, environ: Mapping[str, str]) -> str:
    """The DSN of the server that a running daemon serves: the user's own, else the system's.

    Only the system's daemon is told its state folder by systemd; whoever asks from a shell
    has to know it. Raises as `served_dsn` does.
    """
    embedded = config.store.embedded
    own = embedded.data_folder(config.daemon.state_folder(environ))
    try:
        return served_dsn(own)
    except StoreError:
        told = config.daemon.state_dir or environ.get("STATE_DIRECTORY")
        if told or not SYSTEM_STATE.is_dir():
            raise
        return served_dsn(embedded.data_folder(SYSTEM_STATE))
