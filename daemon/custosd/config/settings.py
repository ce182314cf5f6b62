"""Every setting of custosd: name, unit, range, default and meaning.

To add a key is to add a line here. Counts, bytes and seconds are in the names; ranges are
what still makes sense, not what is advisable. What can not be true together is refused by
the section's `conflicts`.
"""

import os
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, get_args

from custosd.config.acting import (
    AlertSettings,
    DoorSettings,
    LivenessSettings,
    RestartSettings,
    SteeringSettings,
)
from custosd.config.agents import AgentSettings, twins
from custosd.config.coordination import ConductorSettings
from custosd.config.kinds import (
    AbsolutePath,
    Amount,
    Choice,
    Count,
    CredentialName,
    Dsn,
    Duration,
    HttpUrl,
    Name,
    Patterns,
    Size,
    Switch,
    Text,
    Words,
)
from custosd.config.models import EnsembleSettings, ModelSettings, judges_in, pair_judges_in
from custosd.config.money import MoneySettings
from custosd.config.secret import Secret
from custosd.config.section import (
    Conflict,
    Section,
    Side,
    default,
    in_order,
    key_of,
    required,
    section,
    tables,
)
from custosd.config.sync import SyncSettings
from custosd.config.tasks import TaskSettings
from custosd.config.workspaces import WorkspaceSettings
from custosd.core.detectors import DetectorLimits

LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]
FormatName = Literal[
    "auto",
    "claude-code",
    "codex",
    "codex-exec",
    "gemini-cli",
    "pi",
    "openhands",
    "swe-agent",
    "mini-swe-agent",
    "aider",
    "custosd",
]


class DaemonSettings(Section):
    """The daemon itself."""

    name: Annotated[str, Text(longest=64)] = default(
        "custosd", "What this daemon is called in its log, where several write to one place."
    )
    state_dir: Annotated[Path | None, AbsolutePath("folder", optional=True)] = default(
        "",
        "Where everything lies that outlives a restart. Empty: $STATE_DIRECTORY, as systemd sets"
        " it, else $XDG_STATE_HOME/custosd, else ~/.local/state/custosd.",
    )
    drain_s: Annotated[float, Duration("0s", "10m")] = default(
        "10s", "How long a stop waits for what is in flight; what is left then is cut off."
    )

    def state_folder(self, env: Mapping[str, str]) -> Path:
        """The state folder, from `state_dir` or from the environment; it may not exist yet."""
        if self.state_dir is not None:
            return self.state_dir
        # systemd separates several folders by colons; the first is the unit's own.
        if given := env.get("STATE_DIRECTORY", "").split(":")[0]:
            return Path(given)
        # The XDG rules say that a relative path there counts as none.
        if os.path.isabs(xdg := env.get("XDG_STATE_HOME", "")):  # noqa: PTH117 - of a text
            return Path(xdg, "custosd")
        home = Path(env["HOME"]) if env.get("HOME") else Path.home()
        return home / ".local/state/custosd"


class LogSettings(Section):
    """What is logged on standard output, and in which form."""

    format: Annotated[LogFormat, Choice(get_args(LogFormat))] = default(
        "auto", "Lines of JSON, or coloured text for people; auto is text on a terminal only."
    )
    level: Annotated[LogLevel, Choice(get_args(LogLevel))] = default(
        "info", "The least important lines that are still written."
    )


class EmbeddedSettings(Section):
    """The PostgreSQL server that the daemon runs for itself, where no store.dsn is given."""

    data_dir: Annotated[Path | None, AbsolutePath("folder", optional=True)] = default(
        "", "Where its data lie. Empty: the folder postgres in the state folder."
    )
    binaries: Annotated[Path | None, AbsolutePath("folder", optional=True)] = default(
        "",
        "The folder of initdb and postgres. Empty: those installed along, else the system's.",
    )
    shared_buffers_bytes: Annotated[int, Size("1MiB", "64GiB")] = default(
        "32MiB", "Memory that it keeps for its pages."
    )

    def data_folder(self, state: Path) -> Path:
        """Where the data lie, given the state folder."""
        return self.data_dir or state / "postgres"


class StoreSettings(Section):
    """The PostgreSQL database that everything is remembered in."""

    dsn: Annotated[str, Dsn()] = default(
        "",
        "Which server, without a password; several hosts are separated by commas. Empty: the"
        " daemon runs a private one.",
    )
    password_file: Annotated[Path | None, AbsolutePath("file", optional=True)] = default(
        "", "A file that holds the password of store.dsn and that others can not read."
    )
    password_credential: Annotated[str, CredentialName()] = default(
        "", "The systemd credential (LoadCredential=) that holds the password of store.dsn."
    )
    pool_size: Annotated[int, Count(1, 200, "connections")] = default(
        4, "How many connections may be open at once."
    )
    acquire_timeout_s: Annotated[float, Duration("10ms", "10m")] = default(
        "5s", "How long a piece of work waits for a free connection."
    )
    connect_timeout_s: Annotated[float, Duration("10ms", "10m")] = default(
        "10s", "How long a new connection may take, over all hosts."
    )
    statement_timeout_s: Annotated[float, Duration("100ms", "1h")] = default(
        "10s", "How long one statement may run on the server."
    )
    embedded: EmbeddedSettings = section(EmbeddedSettings)

    def password(self, env: Mapping[str, str]) -> Secret | None:
        """Where the password is; nothing is read yet. None: the server asks for none.

        `env` is asked for CREDENTIALS_DIRECTORY.
        """
        if self.password_file is not None:
            return Secret("store.password_file", self.password_file)
        if self.password_credential:
            key = "store.password_credential"
            return Secret.credential(key, self.password_credential, env)
        return None

    def conflicts(self) -> Iterator[Conflict]:
        """See `Section.conflicts`."""
        yield from super().conflicts()
        if self.dsn:
            for name in sorted(self.embedded.model_fields_set):
                path = ("embedded", key_of(name))
                yield Conflict(
                    (
                        Side(path, "no such key beside {beside}", ("dsn",)),
                        Side(("dsn",), "no DSN beside {beside}", path),
                    ),
                    "the daemon runs its own server, or uses the one of the DSN; take one away",
                )
        given = {
            "password_file": self.password_file,
            "password_credential": self.password_credential,
        }
        named = [name for name, value in given.items() if value]
        if len(named) > 1:
            yield Conflict(
                tuple(Side((name,), "one source of the password, not two") for name in named),
                "take one of store.password_file and store.password_credential away",
            )
        if named and not self.dsn:
            yield Conflict(
                (Side((named[0],), "a store.dsn that the password is for"),),
                "the private server needs no password; take the key away, or give a store.dsn",
            )


class RetentionSettings(Section):
    """How long the record is kept."""

    facts_s: Annotated[float, Duration("1d", "3650d")] = default(
        "14d", "How long facts are kept: all that happened, by whole days."
    )
    verdicts_s: Annotated[float, Duration("1d", "3650d")] = default(
        "90d", "How long verdicts and their evidence are kept."
    )
    transcripts_s: Annotated[float, Duration("1d", "3650d")] = default(
        "90d", "How long a run is remembered whose transcript no longer grows."
    )
    acts_s: Annotated[float, Duration("1d", "3650d")] = default(
        "90d",
        "How long restarts, messages, findings, tasks are kept that are over; lives; readings.",
    )
    interval_s: Annotated[float, Duration("1m", "1d")] = default(
        "1h", "How often what is too old is looked for, and taken away."
    )


class RecorderSettings(Section):
    """How facts reach the store."""

    batch: Annotated[int, Count(1, 10_000, "facts")] = default(
        500, "How many facts are written at once, at most."
    )
    flush_s: Annotated[float, Duration("10ms", "1m")] = default(
        "1s", "How long a smaller batch waits for more."
    )
    queue: Annotated[int, Count(1, 1_000_000, "facts")] = default(
        10_000, "How many facts wait for a store that is away; more are dropped, and counted."
    )

    def conflicts(self) -> Iterator[Conflict]:
        """See `Section.conflicts`."""
        yield from super().conflicts()
        yield from in_order(self, "batch", "queue", why="a batch must fit into the queue")


class BoardSettings(Section):
    """How facts become the view that everybody reads."""

    queue: Annotated[int, Count(1, 1_000_000, "facts")] = default(
        10_000, "How many facts may wait to be folded in; then their makers wait."
    )
    settle_s: Annotated[float, Duration("0s", "10s")] = default(
        "50ms", "How long the board waits for more facts before it makes a new view."
    )


class RootSettings(Section):
    """A folder that is looked through for transcripts: one such table for each."""

    path: Annotated[Path, AbsolutePath("folder")] = required(
        "The folder; it need not exist yet.", example="~/work/agents"
    )
    format: Annotated[FormatName, Choice(get_args(FormatName))] = default(
        "auto", "What the files are written in; auto looks into each one."
    )
    glob: Annotated[tuple[str, ...], Patterns()] = default(
        ["**/*.jsonl", "**/*.json", "**/*.traj", "**/*.md"],
        "Which files below the folder are transcripts; ** stands for any number of folders.",
    )


class TranscriptSettings(Section):
    """Where transcripts are, and how they are followed."""

    discover: Annotated[bool, Switch()] = default(
        value=True,
        description="Whether the usual folders are looked through too, where they exist:"
        " ~/.claude/projects, ~/.codex/sessions, ~/.gemini/tmp and ~/.pi/agent/sessions.",
    )
    rescan_s: Annotated[float, Duration("1s", "1d")] = default(
        "10s", "How often all folders are looked through, besides what the kernel tells."
    )
    blind_rescan_s: Annotated[float, Duration("1s", "1d")] = default(
        "5s", "The same while the kernel tells nothing: no watches left, or a network file system."
    )
    settle_s: Annotated[float, Duration("0s", "1m")] = default(
        "200ms", "How long a change waits for more before it is read."
    )
    max_line_bytes: Annotated[int, Size("4KiB", "1GiB")] = default(
        "16MiB", "The longest line that is read; a longer one is skipped, and told of."
    )
    backfill_bytes: Annotated[int, Size("4KiB", "64GiB")] = default(
        "256MiB", "How much of a file never met before is read at most, from its end."
    )
    head_bytes: Annotated[int, Size("0B", "64MiB")] = default(
        "1MiB", "How much of such a file is read from its beginning besides: session and goal."
    )
    max_files: Annotated[int, Count(1, 1_000_000, "files")] = default(
        20_000, "How many files are followed at once; those beyond are told of, and left out."
    )
    max_age_s: Annotated[float, Duration("1m", "3650d")] = default(
        "7d", "A file first met that was not written to for this long is left alone until it is."
    )
    read_chunk_bytes: Annotated[int, Size("4KiB", "64MiB")] = default(
        "1MiB", "How much of one file is read before the others have their turn."
    )
    concurrency: Annotated[int, Count(1, 64, "threads")] = default(
        4, "How many files are read at the same time."
    )
    roots: tuple[RootSettings, ...] = tables("root", "The folders.")

    def conflicts(self) -> Iterator[Conflict]:
        """See `Section.conflicts`."""
        yield from super().conflicts()
        yield from in_order(self, "settle_s", "rescan_s")
        for (first, one), (second, other) in combinations(enumerate(self.roots), 2):
            if expected := _overlap(one, other):
                yield Conflict(
                    (Side(("root", second, "path"), expected), Side(("root", first, "path"), "")),
                    "each file is followed once; keep one root, with all the patterns it needs",
                )


def _overlap(one: RootSettings, other: RootSettings) -> str:
    """What the second of two roots would have to be, or nothing if they can both be."""
    paths = [Path(os.path.normpath(root.path)) for root in (one, other)]
    if paths[0] == paths[1] and (one.format == other.format or set(one.glob) & set(other.glob)):
        return "a folder that is not listed already"
    if one.format != other.format:
        return ""
    if paths[1].is_relative_to(paths[0]):
        return f"a folder outside of {one.path}, which is listed with the same format"
    if paths[0].is_relative_to(paths[1]):
        return f"a folder that does not hold {one.path}, which is listed with the same format"
    return ""


class GuardianSettings(Section):
    """How often trajectories are judged, by whom, and when a judgement counts."""

    interval_s: Annotated[float, Duration("1s", "1d")] = default(
        "60s", "How often the guardian looks at all agents."
    )
    concurrency: Annotated[int, Count(1, 1_000, "analyses")] = default(
        10, "How many agents are analysed at the same time."
    )
    judge_concurrency: Annotated[int, Count(1, 1_000, "questions")] = default(
        5, "How many questions to the judge are open at the same time."
    )
    judge: Annotated[str, Name("name of a judge")] = default(
        "rules",
        "Who judges: the name of a model or an ensemble; rules says what the detectors can defend,"
        " and needs no key.",
    )
    fallback: Annotated[tuple[str, ...], Words("names of judges", '["local", "rules"]')] = default(
        [], "Who is asked where the judge cannot be had, one after the other. Empty: nobody."
    )
    smaller_judge: Annotated[str, Name("name of a judge", optional=True)] = default(
        "",
        "Who is asked instead of the judge when money runs short; see [money]. Empty: nobody, but"
        " the fallback and then the rules once it has run out.",
    )
    judge_timeout_s: Annotated[float, Duration("100ms", "1h")] = default(
        "60s", "How long the judge may take for one answer; then the verdict is unknown."
    )
    context_timeout_s: Annotated[float, Duration("10ms", "10m")] = default(
        "5s", "How long each part of the context may take; then it is absent, and said to be."
    )
    grace_s: Annotated[float, Duration("0s", "1d")] = default(
        "60s",
        "For how long after it was first seen an agent gets no verdict that asks to steer it.",
    )
    agreement: Annotated[int, Count(1, 20, "verdicts")] = default(
        2, "How many verdicts in a row must agree before a change of mind counts."
    )
    cadence_s: Annotated[float, Duration("0s", "7d")] = default(
        "15m", "How often a trajectory that changes without suspicion is asked about, at most."
    )
    verdicts_in_context: Annotated[int, Count(0, 100, "verdicts")] = default(
        10, "How many earlier verdicts the judge is shown."
    )
    hot_trajectories: Annotated[int, Count(1, 1_000_000, "trajectories")] = default(
        512, "How many trajectories stay in memory; the others are read from the store when needed."
    )

    def conflicts(self) -> Iterator[Conflict]:
        """See `Section.conflicts`."""
        yield from super().conflicts()
        yield from in_order(
            self,
            "judge_concurrency",
            "concurrency",
            why="each analysis asks one question at a time",
        )


class DetectorSettings(Section):
    """What counts as suspicious in a trajectory; a threshold of 0 turns its detector off."""

    repeats: Annotated[int, Count(0, 1_000, "steps")] = default(
        3, "The same effect this often, with nothing relevant changed in between."
    )
    stale: Annotated[int, Count(0, 32, "steps")] = default(
        3, "This many looks, among the latest, at what had been seen before and did not change."
    )
    errors: Annotated[int, Count(0, 1_000, "steps")] = default(
        3, "This many failed steps in a row."
    )
    alternations: Annotated[int, Count(0, 1_000, "steps", step=2)] = default(
        6, "This many steps that go back and forth between two effects."
    )
    churn: Annotated[int, Count(0, 1_000, "writes")] = default(
        4, "This many writes over the same lines, or of the same file anew."
    )
    no_progress_steps: Annotated[int, Count(0, 10_000, "steps")] = default(
        25, "This many steps without anything new seen, written or passed."
    )
    edit_gap_steps: Annotated[int, Count(0, 10_000, "steps")] = default(
        10, "This many steps after an edit, with no other one taken and no test passed; a note."
    )
    drift_steps: Annotated[int, Count(0, 32, "steps")] = default(
        16, "How many of the latest steps are compared with the goal, to see a drift away from it."
    )
    idle_s: Annotated[float, Duration("0s", "30d")] = default(
        "15m", "A transcript in the middle of its work that did not grow for this long."
    )
    waiting_s: Annotated[float, Duration("0s", "30d")] = default(
        "5m", "An agent that has waited for a person for this long."
    )
    spend_usd: Annotated[float, Amount(0, 1_000_000, "US dollars")] = default(
        0, "What one run may cost; 0 is no limit."
    )

    def limits(self) -> DetectorLimits:
        """The thresholds as the detectors take them."""
        return DetectorLimits(**self.model_dump())


class WatchdogSettings(Section):
    """When the service manager is no longer told that the daemon is alive."""

    interval_s: Annotated[float, Duration("100ms", "10m")] = default(
        "10s", "How often the progress of all services is looked at."
    )
    stale_after_s: Annotated[float, Duration("1s", "1d")] = default(
        "120s", "A service without progress for this long stops the signs of life."
    )

    def conflicts(self) -> Iterator[Conflict]:
        """See `Section.conflicts`."""
        yield from super().conflicts()
        yield from in_order(
            self,
            "interval_s",
            "stale_after_s",
            strictly=True,
            why="else a service that stands still is noticed too late",
        )


class TelemetrySettings(Section):
    """How the daemon looks at itself, and where it sends what it sees."""

    slow_s: Annotated[float, Duration("100ms", "1d")] = default(
        "20s", "After how long an operation that still runs is told of as slow, once."
    )
    stall_s: Annotated[float, Duration("50ms", "1m")] = default(
        "1s", "For how long the loop may stand still before the place is told."
    )
    otlp_endpoint: Annotated[str, HttpUrl()] = default(
        "",
        "Where spans are sent, OTLP over HTTP: http://127.0.0.1:4318/v1/traces. Empty: nowhere.",
    )


class Config(Section):
    """Everything that can be set; each service gets its own section, and no more."""

    daemon: DaemonSettings = section(DaemonSettings)
    log: LogSettings = section(LogSettings)
    store: StoreSettings = section(StoreSettings)
    retention: RetentionSettings = section(RetentionSettings)
    recorder: RecorderSettings = section(RecorderSettings)
    board: BoardSettings = section(BoardSettings)
    transcripts: TranscriptSettings = section(TranscriptSettings)
    guardian: GuardianSettings = section(GuardianSettings)
    money: MoneySettings = section(MoneySettings)
    detectors: DetectorSettings = section(DetectorSettings)
    conductor: ConductorSettings = section(ConductorSettings)
    doors: DoorSettings = section(DoorSettings)
    liveness: LivenessSettings = section(LivenessSettings)
    restarts: RestartSettings = section(RestartSettings)
    steering: SteeringSettings = section(SteeringSettings)
    alerts: AlertSettings = section(AlertSettings)
    tasks: TaskSettings = section(TaskSettings)
    agents: tuple[AgentSettings, ...] = tables("agent", "The agents that custosd may act upon.")
    models: tuple[ModelSettings, ...] = tables("model", "The models that may judge.")
    ensembles: tuple[EnsembleSettings, ...] = tables("ensemble", "Models that judge together.")
    workspace: WorkspaceSettings = section(WorkspaceSettings)
    sync: SyncSettings = section(SyncSettings)
    watchdog: WatchdogSettings = section(WatchdogSettings)
    telemetry: TelemetrySettings = section(TelemetrySettings)

    def conflicts(self) -> Iterator[Conflict]:
        """See `Section.conflicts`."""
        yield from super().conflicts()
        yield from twins(self.agents)
        yield from judges_in(
            self.models,
            self.ensembles,
            self.guardian.judge,
            self.guardian.fallback,
            self.guardian.smaller_judge,
        )
        conductor = self.conductor
        yield from pair_judges_in(
            self.models, self.ensembles, conductor.judge, conductor.smaller_judge
        )
        slowest = [
            "guardian.judge_timeout_s",
            "conductor.judge_timeout_s",
            "store.statement_timeout_s",
        ]
        if self.sync.repositories:
            slowest.append("sync.page_timeout_s")
        for slow in slowest:
            yield from in_order(
                self,
                slow,
                "watchdog.stale_after_s",
                strictly=True,
                why="else one slow answer looks like a daemon that stands still, which is killed",
            )
