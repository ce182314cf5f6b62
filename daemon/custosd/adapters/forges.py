"""Opens the forges that the configuration asks for, each by its name."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime

from custosd.adapters.github import GitHubSettings, open_github
from custosd.config.settings import Config
from custosd.ports import Forge

GITHUB_URL = "https://api.github.com"


@asynccontextmanager
async def open_forges(
    config: Config, environ: Mapping[str, str], now_utc: Callable[[], datetime]
) -> AsyncGenerator[Mapping[str, Forge]]:
    """The forges of the followed repositories, for the block; none where none is followed.

    Raises `InvalidConfig` where a credential is named and there are none.
    """
    settings = config.sync
    wanted = {repository.forge for repository in settings.repositories}
    forges: dict[str, Forge] = {}
    async with AsyncExitStack() as stack:
        if "github" in wanted:
            github = GitHubSettings(
                settings.base_url or GITHUB_URL,
                settings.token(environ),
                settings.webhook_secret(environ),
                settings.history_s,
                settings.page_timeout_s,
                settings.concurrency,
            )
            forges["github"] = await stack.enter_async_context(open_github(github, now_utc))
        yield forges
