"""The settings of the acting half: doors, liveness, restarts, steering, notices."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, get_args

from custosd.config.kinds import (
    AbsolutePath,
    Address,
    Amount,
    Choice,
    Count,
    Duration,
    HttpUrl,
    Switch,
    Words,
)
from custosd.config.section import Conflict, Section, default, in_order
from custosd.core.intents import CLAIMS_PER_AGENT

RestartMode = Literal["observe", "act"]
SteeringMode = Literal["observe", "suggest", "act"]


class DoorSettings(Section):
    """Where beats and commands come in.

    The sockets lie in $RUNTIME_DIRECTORY, as systemd sets it, else below the state folder.
    """

    beats: Annotated[bool, Switch()] = default(
        value=True, description="Whether there is a socket for beats: beats.sock."
    )
    everybody: Annotated[bool, Switch()] = default(
        value=True,
        description="Whether users of every group may send to it; who may speak for whom is"
        " looked at beat by beat.",
    )
    control: Annotated[bool, Switch()] = default(
        value=True, description="Whether there is a socket for commands: control.sock."
    )
    listen: Annotated[str, Address()] = default(
        "", "Where the HTTP side listens; without a token it takes nothing. Empty: nowhere."
    )
    connections: Annotated[int, Count(1, 100_000, "connections")] = default(
        1_000, "How many HTTP connections may be open at once."
    )
    metrics_open: Annotated[bool, Switch()] = default(
        value=False,
        description="Whether /metrics answers everybody; else it wants a token with scope read.",
    )
    claims_per_agent: Annotated[int, Count(1, 1_000, "claims")] = default(
        CLAIMS_PER_AGENT, "How many claims on work to come an agent may have at the same time."
    )
    most_agents: Annotated[int, Count(1, 1_000_000, "agents")] = default(
        20_000, "For how many agents beats are kept at once; more are refused."
    )
    strangers: Annotated[bool, Switch()] = default(
        value=False,
        description="Whether an agent without a table may beat: then it is watched, and a person"
        " is asked when it dies.",
    )


class LivenessSettings(Section):
    """When silence becomes a suspicion, and a suspicion a verdict."""

    idle_interval_s: Annotated[float, Duration("1s", "1h")] = default(
        "30s", "How often an agent beats that is idle or waits, where it does not say otherwise."
    )
    running_interval_s: Annotated[float, Duration("1s", "1h")] = default(
        "15s", "The same of one that works."
    )
    monitor_interval_s: Annotated[float, Duration("1s", "1h")] = default(
        "5s", "The same of one that watches others."
    )
    margin_s: Annotated[float, Duration("0s", "10m")] = default(
        "5s", "What every deadline has beyond a multiple of the interval."
    )
    gaps: Annotated[int, Count(8, 1_000, "gaps")] = default(
        200, "From how many of its last intervals an agent's own deadline is reckoned."
    )
    shortest_deadline_s: Annotated[float, Duration("5s", "1h")] = default(
        "50s", "After how much silence an agent is suspected at the earliest."
    )
    longest_deadline_s: Annotated[float, Duration("5s", "1d")] = default(
        "5m", "The longest that its own past intervals can put that off."
    )
    startup_grace_s: Annotated[float, Duration("0s", "1h")] = default(
        "60s", "For how long after its start an agent need not be heard."
    )
    recover_beats: Annotated[int, Count(1, 100, "beats")] = default(
        2, "How many good beats in a row undo degraded."
    )
    probe_timeout_s: Annotated[float, Duration("100ms", "5m")] = default(
        "10s", "How long looking at a suspect may take."
    )
    probe_concurrency: Annotated[int, Count(1, 1_000, "agents")] = default(
        20, "How many suspects are looked at at the same time."
    )
    hang_after_s: Annotated[float, Duration("10s", "7d")] = default(
        "15m", "How long an agent that says it works may show no progress anywhere."
    )
    busy_limit_s: Annotated[float, Duration("10s", "7d")] = default(
        "1h", "For how long the use of a processor alone counts as progress."
    )
    breaker_agents: Annotated[int, Count(1, 100_000, "agents")] = default(
        5, "More suspects than this at once, and than the share, are a cause of their own."
    )
    breaker_share: Annotated[float, Amount(0, 1, "share of the agents")] = default(
        0.05, "The same as a share of a host's, or of all agents."
    )
    breaker_period_s: Annotated[float, Duration("1s", "1h")] = default(
        "60s", "How long a suspicion counts for that."
    )
    stall_s: Annotated[float, Duration("500ms", "10m")] = default(
        "5s", "For how long the daemon itself may stand still before its agents get an amnesty."
    )
    flush_s: Annotated[float, Duration("1s", "10m")] = default(
        "10s", "How often what is known of lives is stored."
    )
    health_s: Annotated[float, Duration("1s", "10m")] = default(
        "30s", "How often all lives are looked over, for a line in the log and for lost deadlines."
    )

    def conflicts(self) -> Iterator[Conflict]:
        """See `Section.conflicts`."""
        yield from super().conflicts()
        yield from in_order(self, "shortest_deadline_s", "longest_deadline_s")
        yield from in_order(self, "margin_s", "shortest_deadline_s", strictly=True)


class RestartSettings(Section):
    """How the dead and the hung are brought back, and how often at most."""

    mode: Annotated[RestartMode, Choice(get_args(RestartMode))] = default(
        "act",
        "With act, agents that have a control are restarted; with observe it is only said which.",
    )
    backoff_s: Annotated[float, Duration("1s", "1h")] = default(
        "30s", "The pause before an agent's second restart; doubled for each further one."
    )
    longest_backoff_s: Annotated[float, Duration("1s", "1d")] = default(
        "10m", "The longest that pause becomes."
    )
    burst: Annotated[int, Count(1, 1_000, "restarts")] = default(
        5, "So many restarts of one agent within the window put it into quarantine."
    )
    window_s: Annotated[float, Duration("1m", "7d")] = default("15m", "The window for that.")
    stable_after_s: Annotated[float, Duration("1m", "7d")] = default(
        "30m", "An agent that lived for this long is counted anew."
    )
    per_task: Annotated[int, Count(1, 1_000, "restarts")] = default(
        3, "So many restarts during one task, and the task is held to be the cause."
    )
    fleet_burst: Annotated[int, Count(1, 100_000, "restarts")] = default(
        5, "So many restarts may come at once in the fleet or on a host, or the share if more."
    )
    fleet_share: Annotated[float, Amount(0, 1, "share of the agents")] = default(
        0.01, "The same as a share; and so many may follow each minute (at least one)."
    )
    common_cause: Annotated[int, Count(2, 10_000, "agents")] = default(
        3, "So many agents that fail alike are one incident: one of them goes first."
    )
    common_period_s: Annotated[float, Duration("10s", "1d")] = default(
        "5m", "Within which they must fail for that."
    )
    probe_stable_s: Annotated[float, Duration("1s", "1d")] = default(
        "60s", "How long the first of them must live before the others follow."
    )
    concurrency: Annotated[int, Count(1, 1_000, "restarts")] = default(
        5, "How many restarts are under way at the same time."
    )
    interrupt_s: Annotated[float, Duration("0s", "10m")] = default(
        "10s", "How long a hung agent has after it was interrupted, before it is stopped."
    )
    graceful_s: Annotated[float, Duration("0s", "10m")] = default(
        "10s", "How long an agent has to end when it is asked to; then it is killed."
    )
    verify_s: Annotated[float, Duration("100ms", "10m")] = default(
        "10s", "How long it may take until a killed agent is seen to be gone."
    )
    first_beat_s: Annotated[float, Duration("1s", "1h")] = default(
        "60s", "How long a new incarnation has to be heard for the first time."
    )


class SteeringSettings(Section):
    """When agents are told something, and by whose leave."""

    mode: Annotated[SteeringMode, Choice(get_args(SteeringMode))] = default(
        "observe",
        "With observe, messages are written down and never sent; with suggest a person approves"
        " each; with act they are sent.",
    )
    ttl_s: Annotated[float, Duration("1m", "7d")] = default(
        "30m", "How long a message is worth delivering."
    )
    cooldown_s: Annotated[float, Duration("0s", "7d")] = default(
        "5m", "The least time between two messages to one agent."
    )
    fleet_cap: Annotated[int, Count(1, 100_000, "messages")] = default(
        10, "How many messages a minute all agents together get, at most."
    )
    hold_out: Annotated[float, Amount(0, 0.5, "share of the messages")] = default(
        0.1, "The share that is kept back to measure what messages are good for."
    )
    without_effect: Annotated[int, Count(1, 100, "messages")] = default(
        3, "After so many messages to an agent without effect, a person is asked."
    )
    outcome_s: Annotated[float, Duration("10s", "1d")] = default(
        "10m", "How long after a message its effect is measured."
    )


class AlertSettings(Section):
    """How a person is told. Every notice is in the log as well."""

    command: Annotated[tuple[str, ...], Words("words of a command", '["/usr/local/bin/page"]')] = (
        default([], "What is run for each notice, with the notice as JSON on its input.")
    )
    url: Annotated[str, HttpUrl()] = default("", "Where each notice is posted to, as JSON.")
    url_token_file: Annotated[Path | None, AbsolutePath("file", optional=True)] = default(
        "", "A file that holds the token for it."
    )
    storm: Annotated[int, Count(1, 10_000, "notices")] = default(
        5, "More new notices than this at once are told as one."
    )
