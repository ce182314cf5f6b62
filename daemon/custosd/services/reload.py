"""Takes up a changed configuration: validated first, swapped as a whole, then told.

Laws: what is wrong changes nothing: the old configuration stays, and who asked is told
every problem. What can not be taken up while running is named, and waits for the next start.
"""

from collections.abc import Callable

import structlog
import trio

from custosd.config.difference import changed_keys
from custosd.config.in_force import InForce
from custosd.config.problems import InvalidConfig
from custosd.config.reading import Reading
from custosd.config.settings import Config
from custosd.core.errors import ConfigError
from custosd.core.facts import ConfigReloaded, Fact
from custosd.flow.latest import Latest
from custosd.flow.renewal import Renewal
from custosd.services.watchdog import ReadinessPort

log = structlog.get_logger()

MOST_NAMED = 50
"""Keys named in one line of the log, and in the fact."""


class Reload:
    """Reads the configuration again, on demand; one at a time.

    `read` gives the new configuration or raises `InvalidConfig`; `adopt` makes what is not
    made by a service, or raises `ConfigError` and has changed nothing, before the services
    that changed are run anew; `in_force` is told where each value was written.
    """

    def __init__(
        self,
        read: Callable[[], Reading],
        in_force: InForce,
        adopt: Callable[[Config], None],
        renewal: Renewal[Config],
        facts: trio.MemorySendChannel[Fact],
        manager: ReadinessPort,
        status: Callable[[], str],
    ) -> None:
        self._read = read
        self._in_force = in_force
        self._adopt = adopt
        self._renewal = renewal
        self._started = renewal.value
        self._facts = facts
        self._manager = manager
        self._status = status
        self._lock = trio.Lock()

    async def reload(self) -> ConfigReloaded:
        """Take up what has changed; `failure` says why nothing was, where that is so."""
        async with self._lock:
            self._manager.reloading("reading the configuration")
            try:
                told = await self._reload()
            finally:
                self._manager.ready(self._status())
            await self._facts.send(told)
            return told

    async def _reload(self) -> ConfigReloaded:
        before = self._renewal.value
        try:
            reading = self._read()
        except InvalidConfig as error:
            problems = "; ".join(str(problem) for problem in error.problems)
            log.error("config.refused", problems=len(error.problems), error=problems[:2_000])
            return ConfigReloaded((), (), problems or str(error))
        after = reading.config
        at_once, _ = changed_keys(before, after)
        # Against what the daemon started with: what waits still does, however often we are asked.
        _, later = changed_keys(self._started, after)
        try:
            self._adopt(after)
        except ConfigError as error:
            log.error("config.refused", problems=1, error=str(error)[:2_000])
            return ConfigReloaded((), (), str(error))
        self._in_force.reading = reading
        renewed = await self._renewal.renew(after)
        log.info(
            "config.reloaded",
            changed=list(at_once[:MOST_NAMED]),
            after_restart=list(later[:MOST_NAMED]),
            services=list(renewed),
        )
        return ConfigReloaded(at_once[:MOST_NAMED], later[:MOST_NAMED])


async def answer_hangups(
    hangups: Latest[int],
    reload: Reload,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Reload for each SIGHUP that came, several at once for one; never returns.

    Started: at once; what came before is not answered: it asked for what was read anyway.
    """
    seen = hangups.version
    task_status.started()
    while True:
        seen = (await hangups.wait_changed(seen)).version
        await reload.reload()
