"""`custosd budget`: what judging has cost, also from the database where no daemon runs."""

import os

import click

from custosd.adapters.judges.budgets import budgets_of
from custosd.adapters.memory_spends import MemorySpends
from custosd.adapters.postgres.opening import open_postgres
from custosd.adapters.postgres.served import is_served
from custosd.adapters.postgres.spends import PostgresSpends
from custosd.cli.acts import Door, telling
from custosd.cli.settings import run_to_the_end
from custosd.config.settings import Config
from custosd.core.acts import Act, ActAnswer, ActOutcome
from custosd.core.money_words import money_explained
from custosd.flow.clock import wall_clock
from custosd.ports import SpendStore
from custosd.services.purse import Purse

SOURCE = "the database: no daemon runs"
EMPTY = "nowhere: no daemon ever ran here"


@click.group("budget")
def budget() -> None:
    """What judging may cost, and has cost."""


@budget.command("show")
@telling
def budget_show(door: Door) -> None:
    """Show every limit: what is spent, reserved and left, when it resets, and who judges.

    Where no daemon runs, what it left in its database is shown.

    \b
    JSON:    outcome message detail
    detail:  at_utc source own_usd conductor_usd (the part of it that is about
             pairs of agents) fleet_usd (null: not known) share share_most
             unwritten skips limits lines
    limits:  id scope subject span most_usd spent_usd reserved_usd left_usd
             used_share resets_at_utc rung (as_asked, smaller, rules)
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    door.ask(Act.BUDGET, instead=stored_budget)


def stored_budget(config: Config) -> ActAnswer:
    """Every limit as the last daemon left it; its private server is started for that."""
    return run_to_the_end(_stored, config)


async def _stored(config: Config) -> ActAnswer:
    folder = config.store.embedded.data_folder(config.daemon.state_folder(os.environ))
    if not config.store.dsn and not folder.exists():
        return await _read(config, MemorySpends(), EMPTY)
    served = not config.store.dsn and is_served(folder)
    async with open_postgres(config, os.environ, serve=not served) as database:
        return await _read(config, PostgresSpends(database), SOURCE)


async def _read(config: Config, store: SpendStore, source: str) -> ActAnswer:
    purse = Purse(store, wall_clock(), budgets_of(config))
    await purse.load()
    explained = money_explained(purse.shown(), source)
    detail = {**explained.form, "lines": list(explained.lines)}
    return ActAnswer(ActOutcome.DONE, explained.lines[0], detail)
