"""Agents that are watched for a while, beside those of the configuration.

    a drill ─► Acts ─► [ Enrolments ] ─► put, drop ─► roster, lives
                             └── keep: whose time is up is let go

Laws:

1. Nobody stays longer than an hour, whatever becomes of who asked.
2. An agent of the configuration is never replaced, changed or let go here.
3. Only names that begin with "canary-", and only hooks on this machine's own addresses:
   whoever may ask for acts must not come by a way to have the daemon call others.
"""

import math
from collections.abc import Callable, Collection, Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

import structlog
import trio
from pydantic import ValidationError

from custosd.config.agents import AgentSettings
from custosd.core.agents import AgentId
from custosd.flow.pulse import Pulse

log = structlog.get_logger()

PREFIX = "canary-"
LONGEST_S = 3600.0
MOST_GUESTS = 100

SHORTEST_HANG_S = 5.0

Form = Mapping[str, str | int | float | bool]


class Enrolments:
    """Who is here for a while, and until when; `keep` lets them go.

    `put` takes an agent in (settings, hang_after_s or None), `drop` lets it go, `settled` says
    whether a name belongs to an agent that is here for good.
    """

    def __init__(
        self,
        put: Callable[[AgentSettings, float | None], None],
        drop: Callable[[AgentId], None],
        settled: Callable[[AgentId], bool],
    ) -> None:
        self._put = put
        self._drop = drop
        self._settled = settled
        self._until: dict[AgentId, float] = {}
        self._came = trio.Event()

    def guests(self) -> Collection[AgentId]:
        """Who is here for a while, and whose time is not up."""
        now = trio.current_time()
        return {agent for agent, until in self._until.items() if until > now}

    def refusal(self, agent: AgentId, form: Form) -> str:
        """Why an agent would not be taken in with this form; "" where it would be."""
        read = self._read(agent, form)
        return read if isinstance(read, str) else ""

    def enrol(self, agent: AgentId, form: Form) -> str:
        """Watch an agent for `ttl_s` from now; "" or why not. A guest's form may be renewed.

        The form: `ttl_s` (at most an hour), `control_url` ("" for none), `letter_url` ("" for
        none), `workspace`, `beat_interval_s`, `hang_after_s`.
        """
        read = self._read(agent, form)
        if isinstance(read, str):
            return read
        settings, ttl_s, hang_after_s = read
        self._until[agent] = trio.current_time() + ttl_s
        self._put(settings, hang_after_s)
        self._came.set()
        log.info("agent.enrolled", agent=agent, ttl_s=ttl_s)
        return ""

    def dismiss(self, agent: AgentId) -> bool:
        """Watch a guest no longer; False for one that is none."""
        if self._until.pop(agent, None) is None:
            return False
        self._let_go(agent, "dismissed")
        return True

    def forget(self, agent: AgentId) -> None:
        """The agent is here for good from now on: its time no longer ends."""
        self._until.pop(agent, None)

    async def keep(self, pulse: Pulse, *, task_status: trio.TaskStatus[None]) -> None:
        """Let go whose time is up, until cancelled. Started: at once."""
        task_status.started()
        while True:
            self._came = trio.Event()
            with pulse.waiting(), trio.move_on_at(min(self._until.values(), default=math.inf)):
                await self._came.wait()
            now = trio.current_time()
            for agent in [agent for agent, until in self._until.items() if until <= now]:
                del self._until[agent]
                self._let_go(agent, "time")
            pulse.beat()

    def _let_go(self, agent: AgentId, reason: str) -> None:
        if not self._settled(agent):
            self._drop(agent)
        log.info("agent.dismissed", agent=agent, reason=reason)

    def _read(self, agent: AgentId, form: Form) -> tuple[AgentSettings, float, float | None] | str:
        ttl_s, hang_after_s = _number(form, "ttl_s"), _number(form, "hang_after_s")
        if ttl_s is None:
            return "ttl_s: for how many seconds it stays"
        if refused := self._why_not(agent) or _flaw(form, ttl_s, hang_after_s):
            return refused
        try:
            settings = _settings(agent, form)
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)[0]
            return f"{'.'.join(map(str, found['loc']))}: {found['msg']}"
        return settings, ttl_s, hang_after_s

    def _why_not(self, agent: AgentId) -> str:
        if not agent.startswith(PREFIX):
            return f"the name of an agent that comes for a while begins with {PREFIX!r}"
        if self._settled(agent):
            return f"{agent} is an agent of the configuration"
        if agent not in self._until and len(self._until) >= MOST_GUESTS:
            return f"there are {MOST_GUESTS} agents here for a while already"
        return ""


def _flaw(form: Form, ttl_s: float, hang_after_s: float | None) -> str:
    if not 0 < ttl_s <= LONGEST_S:
        return f"ttl_s: more than 0 and at most {LONGEST_S:g} seconds"
    if "hang_after_s" in form and (hang_after_s is None or hang_after_s < SHORTEST_HANG_S):
        return f"hang_after_s: {SHORTEST_HANG_S:g} seconds or more"
    for key in ("control_url", "letter_url"):
        if (url := str(form.get(key, ""))) and not _is_here(url):
            return f"{key}: a URL with a loopback address, such as http://127.0.0.1:8080/hook"
    return ""


def _settings(agent: AgentId, form: Form) -> AgentSettings:
    """Raises `pydantic.ValidationError`."""
    control_url, letter_url = str(form.get("control_url", "")), str(form.get("letter_url", ""))
    return AgentSettings.model_validate(
        {
            "id": agent,
            # It fails on purpose: alone on its host and account it is no part of a common cause.
            "host": agent,
            "account": agent,
            "workspace": str(form.get("workspace", "")),
            "beat_interval_s": f"{_number(form, 'beat_interval_s') or 0:g}s",
            "control": "http" if control_url else "none",
            "control_url": control_url,
            "channel": "http" if letter_url else "none",
            "letter_url": letter_url,
        }
    )


def _number(form: Form, key: str) -> float | None:
    value = form.get(key)
    # A truth value is a whole number to Python.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _is_here(url: str) -> bool:
    """Whether a URL leads to this machine by its address; a name may lead anywhere."""
    try:
        parts = urlsplit(url)
        return parts.scheme == "http" and ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False
