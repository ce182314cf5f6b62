"""What judging may cost, of the sections that say so."""

from types import MappingProxyType

from custosd.config.settings import Config
from custosd.core.money import Budgets, ModelBudget


def budgets_of(config: Config) -> Budgets:
    """What judging may cost, as the core takes it; of models those that have a price."""
    money = config.money
    windows = {
        model.name: ModelBudget(model.window_5h_usd, model.window_week_usd)
        for model in config.models
        if model.costs
    }
    return Budgets(
        money.agent_day_usd,
        money.fleet_day_usd,
        money.share,
        money.share_floor_usd,
        money.warn_share,
        MappingProxyType(windows),
    )
