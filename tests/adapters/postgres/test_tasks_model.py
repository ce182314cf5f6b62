"""The fleet's tasks on PostgreSQL answer as the plain model does, whatever happens."""

import os
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from tests.adapters.postgres.migrated import execute, migrated_dsn
from tests.contracts.task_contract import Clock
from tests.contracts.task_machine import machine_of

from custosd.adapters.postgres.bridge import Database, open_database
from custosd.adapters.postgres.embedded import EmbeddedServer
from custosd.adapters.postgres.tasks import PostgresTasks

pytestmark = pytest.mark.postgres


class PostgresStage:
    """One open database on a thread with a trio of its own."""

    def __init__(self, database: Database, token: trio.lowlevel.TrioToken) -> None:
        self._database = database
        self._token = token

    def fresh(self, clock: Clock) -> PostgresTasks:
        self.run(self._database.unit, execute, "delete from custosd.tasks")
        return PostgresTasks(self._database, now_utc=clock)

    def run(self, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return trio.from_thread.run(call, *args, trio_token=self._token)


@pytest.fixture
def stage(postgres_server: EmbeddedServer) -> Iterator[PostgresStage]:
    dsn = migrated_dsn(postgres_server.dsn, f"model_{os.getpid()}")
    opened: queue.Queue[PostgresStage | BaseException] = queue.Queue()
    stop = trio.Event()

    async def serve() -> None:
        async with open_database(dsn, pool_size=2) as database:
            opened.put(PostgresStage(database, trio.lowlevel.current_trio_token()))
            await stop.wait()

    def run() -> None:
        try:
            trio.run(serve)
        except BaseException as error:  # noqa: BLE001 - handed to the fixture
            opened.put(error)

    thread = threading.Thread(target=run, name="tasks-stage")
    thread.start()
    stage = opened.get(timeout=50)
    if isinstance(stage, BaseException):
        raise stage
    yield stage
    stage._token.run_sync_soon(stop.set)
    thread.join()


EXAMPLES = int(os.environ.get("CUSTOSD_TASK_EXAMPLES", "25"))


@pytest.mark.timeout(600)
def test_the_store_answers_as_the_plain_model_whatever_happens(stage: PostgresStage) -> None:
    run_state_machine_as_test(
        machine_of(stage),
        settings=settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None),
    )
