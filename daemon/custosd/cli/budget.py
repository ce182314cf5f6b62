"""What judging has cost, read from the database where no daemon runs."""

import os

from custosd.adapters.memory_spends import MemorySpends
from custosd.adapters.postgres.spends import PostgresSpends
from custosd.app import budgets_of, open_postgres
from custosd.cli.settings import run_to_the_end
from custosd.config.settings import Config
from custosd.core.acts import ActAnswer, ActOutcome
from custosd.core.money_words import money_explained
from custosd.flow.clock import wall_clock
from custosd.ports import SpendStore
from custosd.services.purse import Purse

SOURCE = "the database: no daemon runs"
EMPTY = "nowhere: no daemon ever ran here"


def stored_budget(config: Config) -> ActAnswer:
    """Every limit as the last daemon left it; its private server is started for that."""
    return run_to_the_end(_stored, config)


async def _stored(config: Config) -> ActAnswer:
    folder = config.store.embedded.data_folder(config.daemon.state_folder(os.environ))
    if not config.store.dsn and not folder.exists():
        return await _read(config, MemorySpends(), EMPTY)
    served = not config.store.dsn and (folder / "postmaster.pid").exists()
    async with open_postgres(config, os.environ, serve=not served) as database:
        return await _read(config, PostgresSpends(database), SOURCE)


async def _read(config: Config, store: SpendStore, source: str) -> ActAnswer:
    purse = Purse(store, wall_clock(), budgets_of(config))
    await purse.load()
    explained = money_explained(purse.shown(), source)
    detail = {**explained.form, "lines": list(explained.lines)}
    return ActAnswer(ActOutcome.DONE, explained.lines[0], detail)
