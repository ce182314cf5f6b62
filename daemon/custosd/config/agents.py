"""The agents that custosd may act upon: one `[[agent]]` table for each.

Whose transcripts lie where, who may beat for it, how it is stopped and started, and how it
is told something. An agent without a table is watched by its transcript all the same.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, get_args

from custosd.config.kinds import (
    AbsolutePath,
    Choice,
    Duration,
    Folders,
    HttpUrl,
    Name,
    Shaped,
    Switch,
    Text,
    Words,
)
from custosd.config.section import Conflict, Section, Side, default, required

ControlName = Literal["none", "systemd", "command", "http"]
ChannelName = Literal["none", "inbox", "http", "command", "tmux"]

UNIT = r"[A-Za-z0-9_][A-Za-z0-9:_.@\\-]{0,246}\.service"
"""One unit: neither an option of systemctl nor a pattern that many units fit."""

PANE = r"[^:.=%@$]+:[^:.]+\.[0-9]+|%[0-9]+"
"""One pane, by its place or by its id."""

NEEDS_OF_CONTROL = {"systemd": ("unit",), "command": ("start",), "http": ("control_url",)}
NEEDS_OF_CHANNEL = {
    "inbox": ("inbox",),
    "http": ("letter_url",),
    "command": ("letter_command",),
    "tmux": ("tmux_target", "tmux_programs"),
}


class AgentSettings(Section):
    """An agent that custosd may stop, start and speak to: one such table for each."""

    id: Annotated[str, Name("name of the agent")] = required(
        "What the agent is called, everywhere; its process finds it as CUSTOSD_AGENT.",
        example="builder-1",
    )
    host: Annotated[str, Name("name of a host", optional=True)] = default(
        "", "Where it runs, for budgets of restarts and for common causes. Empty: here."
    )
    account: Annotated[str, Name("name of an account", optional=True)] = default(
        "", "Whose key or subscription it uses: agents of one account fail together."
    )
    user: Annotated[str, Text(optional=True, longest=32)] = default(
        "", "The user of this machine whose processes may beat for it without a token."
    )
    transcripts: Annotated[tuple[Path, ...], Folders()] = default(
        [], "What is written below these folders is this agent's; they are followed as roots are."
    )
    workspace: Annotated[Path | None, AbsolutePath("folder", optional=True)] = default(
        "", "Where it works: a change in there is a sign of progress."
    )
    beats: Annotated[bool, Switch()] = default(
        value=True,
        description="Whether it sends heartbeats; without them only the other evidence counts.",
    )
    beat_interval_s: Annotated[float, Duration("0s", "1h")] = default(
        "0s", "How often it beats. 0: by its status, as [liveness] says, or as it declares."
    )
    control: Annotated[ControlName, Choice(get_args(ControlName))] = default(
        "none",
        "How it is stopped and started; none: it is never restarted, a person is asked instead.",
    )
    unit: Annotated[str, Shaped("name of one unit", UNIT, "custosd-agent@a.service")] = default(
        "", "With control systemd: the unit it runs as, such as custosd-agent@builder-1.service."
    )
    start: Annotated[tuple[str, ...], Words("words of a command", '["/opt/agent/run"]')] = default(
        [], "With control command: what starts it; the process that this becomes is the agent."
    )
    stop: Annotated[tuple[str, ...], Words("words of a command", '["/opt/agent/stop"]')] = default(
        [], "With control command: what asks it to end. Empty: SIGTERM."
    )
    control_url: Annotated[str, HttpUrl()] = default(
        "",
        "With control http: the hook; /status, /stop, /kill, /interrupt and /spawn are below it.",
    )
    control_token_file: Annotated[Path | None, AbsolutePath("file", optional=True)] = default(
        "", "With control http: a file that holds the token for the hook."
    )
    channel: Annotated[ChannelName, Choice(get_args(ChannelName))] = default(
        "none", "How it is told something; none: nothing is ever delivered, a person is asked."
    )
    inbox: Annotated[Path | None, AbsolutePath("folder", optional=True)] = default(
        "", "With channel inbox: the folder where letters are put for it."
    )
    letter_url: Annotated[str, HttpUrl()] = default(
        "", "With channel http: where letters are posted to."
    )
    letter_token_file: Annotated[Path | None, AbsolutePath("file", optional=True)] = default(
        "", "With channel http: a file that holds the token for it."
    )
    letter_command: Annotated[
        tuple[str, ...], Words("words of a command", '["/opt/agent/tell"]')
    ] = default([], "With channel command: what brings it a letter, which it reads as JSON.")
    tmux_target: Annotated[str, Shaped("name of one pane", PANE, "main:1.0")] = default(
        "", "With channel tmux: the pane it runs in, as tmux calls it: session:window.pane."
    )
    tmux_socket: Annotated[Path | None, AbsolutePath("socket", optional=True)] = default(
        "", "With channel tmux: the server's socket. Empty: that of the daemon's user."
    )
    tmux_programs: Annotated[tuple[str, ...], Words("names of programs", '["claude"]')] = default(
        ["claude", "codex", "gemini", "pi", "aider"],
        "With channel tmux: programs that may be in the foreground; nothing is typed to others.",
    )

    def conflicts(self) -> Iterator[Conflict]:
        """See `Section.conflicts`."""
        yield from super().conflicts()
        for chosen, needs in (("control", NEEDS_OF_CONTROL), ("channel", NEEDS_OF_CHANNEL)):
            word = getattr(self, chosen)
            for need in needs.get(word, ()):
                if not getattr(self, need):
                    yield Conflict(
                        (
                            Side((need,), f'a value beside {chosen} = "{word}"', (chosen,)),
                            Side((chosen,), f"another {chosen} without {{beside}}", (need,)),
                        ),
                        f"{chosen} {word} needs it",
                    )


def twins(agents: tuple[AgentSettings, ...]) -> Iterator[Conflict]:
    """Agents that have an id, or a folder of transcripts, in common."""
    ids: dict[str, int] = {}
    folders: dict[Path, int] = {}
    for index, agent in enumerate(agents):
        first = ids.setdefault(agent.id, index)
        if first != index:
            yield Conflict(
                (
                    Side(("agent", index, "id"), "an id that no other agent has"),
                    Side(("agent", first, "id"), ""),
                ),
                "each agent has one table",
            )
        for folder in agent.transcripts:
            for other, owner in list(folders.items()):
                if owner != index and (
                    folder.is_relative_to(other) or other.is_relative_to(folder)
                ):
                    yield Conflict(
                        (
                            Side(("agent", index, "transcripts"), "folders of this agent alone"),
                            Side(("agent", owner, "transcripts"), ""),
                        ),
                        f"{folder} and {other} hold the same files, which are one agent's only",
                    )
            folders.setdefault(folder, index)
