"""Values to put into a store: small, complete, and different where a name says so."""

import math
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from custosd.core.acts import Act, ActOutcome
from custosd.core.agents import AgentId, AgentRef, AgentState, RunId
from custosd.core.beats import Refusal
from custosd.core.coherence import FleetStatus, Trend
from custosd.core.evidence import Condition, Evidence, Source, Value
from custosd.core.facts import (
    ActPerformed,
    AgentDismissed,
    AgentForgotten,
    AgentSeen,
    AmnestyGranted,
    AnalysisSkipped,
    BeatMissed,
    BeatsRefused,
    BeatsSuperseded,
    BudgetReached,
    BudgetRenewed,
    ConcernResolved,
    ConductorSwept,
    ConfigReloaded,
    DaemonStarted,
    DaemonStopped,
    Entry,
    Escalated,
    Fact,
    FactsDropped,
    FindingOpened,
    FindingResolved,
    ForgesSwept,
    HoldLifted,
    HoldPlaced,
    InterventionChanged,
    LifeChanged,
    Notified,
    RepositoryFollowed,
    RestartChanged,
    RestartStepped,
    RestartWithheld,
    SourceTroubled,
    StandingChanged,
    StateChanged,
    SweepFinished,
    TaskChanged,
    TrajectoryAdvanced,
    TrajectoryRewound,
    VerdictReached,
    WorkLanded,
    WorkLinked,
)
from custosd.core.findings import FindingKind, Resolution
from custosd.core.forge import LinkHow, SyncOutcome, Told, Trouble, WorkKind
from custosd.core.holds import FLEET, Hold, HoldKind
from custosd.core.money import Rung
from custosd.core.restarts import Cause, RestartState, RestartStep, StepState
from custosd.core.signals import Severity, Signal, SignalKind
from custosd.core.steering import InterventionState
from custosd.core.tasks import FailureKind, TaskId, TaskState
from custosd.core.trajectory import Activity, Constraint, TrajectoryDigest
from custosd.core.transcript import RunEnd, Usage
from custosd.core.verdicts import (
    JudgedBy,
    Judgement,
    Phase,
    Standing,
    SteeringKind,
    SteeringReason,
    Verdict,
)
from custosd.flow.monitor import Kind, OperationSummary
from custosd.ports import DaemonBeat, MetricsSnapshot, Progress, RunProgress, TranscriptPosition

NOON = datetime(2026, 3, 14, 12, 0, 0, 123456, tzinfo=UTC)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)

ADA = AgentRef(AgentId("claude:ada"), RunId("ada-1"))
ADA_AGAIN = AgentRef(AgentId("claude:ada"), RunId("ada-2"))
BOB = AgentRef(AgentId("codex:bob"), RunId("bob-1"))

HOSTILE = (
    "nul \0, lone \ud800 and \udfff, mark \ufdd0d800 \ufdd0, quote \" ' \\ {,}, 日本 🦊 \x1b[31m"
)
"""Text with everything that a database, JSON or an array literal may trip over."""


def ref(n: int) -> AgentRef:
    return AgentRef(AgentId(f"claude:agent-{n:05}"), RunId(f"run-{n:05}"))


def digest(steps: int = 3, text: str = "") -> TrajectoryDigest:
    return TrajectoryDigest(
        fingerprint=f"fingerprint-{steps}",
        goal=f"make the tests pass {text}",
        constraints=(
            Constraint(f"do not touch the lock file {text}", 0),
            Constraint("no network", 1, lifted_step=2, set_utc=NOON, lifted_utc=NOON + MINUTE),
        ),
        focus=f"reading {text}",
        phase=Phase.TESTING,
        activity=Activity.WORKING,
        waiting_on="",
        steps=steps,
        errors=1,
        edits=2,
        tests_run=1,
        tests_passed_at=None,
        last_edit_at=2,
        claim=text,
        end=None,
        files=("a.py", f"b {text}.py"),
        written=("a.py",),
        usage=Usage(100, 20, 5, 0.1),
        last_step_utc=NOON,
    )


def position(key: str = "claude/ada", offset: int = 1_000) -> TranscriptPosition:
    return TranscriptPosition(
        key,
        f"/home/ada/{key}.jsonl",
        "claude_code",
        "ada-1",
        offset,
        b"\0\xff" + key.encode()[:9],
        "ada",
    )


def run(
    of: AgentRef = ADA,
    steps: int = 3,
    *,
    thread: str = "",
    parent: str = "",
    state: AgentState = AgentState.RUNNING,
    seen_utc: datetime = NOON,
    grown_utc: datetime = NOON,
    state_utc: datetime | None = None,
    end: RunEnd | None = None,
) -> RunProgress:
    fold = f"fold of {steps}".encode() + bytes(range(256))
    told = replace(digest(steps), end=end)
    since_utc = grown_utc if state_utc is None else state_utc
    return RunProgress(of, thread, parent, state, told, fold, seen_utc, grown_utc, since_utc)


def progress(*runs: RunProgress, key: str = "claude/ada", offset: int = 1_000) -> Progress:
    return Progress(position(key, offset), runs)


def signal(kind: SignalKind = SignalKind.REPEATING, text: str = "") -> Signal:
    return Signal(kind, Severity.ALARM, (3, 5, 8), 4.0, 3.0, f"read a.py {text}", ("claude:b",))


def verdict(
    id_: str = "verdict-1",
    of: AgentRef = ADA,
    at_utc: datetime = NOON,
    *,
    standing: Standing = Standing.STUCK,
    text: str = "",
) -> Verdict:
    judgement = Judgement(
        standing=standing,
        phase=Phase.DEBUGGING,
        alignment=0.25,
        confidence=1.0,
        needs_steering=True,
        steering_kind=SteeringKind.CORRECTION,
        steering_reason=SteeringReason.STUCK,
        message=f"look at the error first {text}",
        summary=f"runs the same test again {text}",
        focus=text,
        goal=text,
        evidence=(3, 5, 8),
    )
    by = JudgedBy("rules", "none", "p1", "hash", Usage(1, 2, 3, 0.004), 1.5)
    signals = (signal(text=text), signal(SignalKind.ERRORS))
    return Verdict(id_, of, at_utc, 9, judgement, signals, by, ("metrics", text))


def bare_verdict(id_: str, of: AgentRef = ADA, at_utc: datetime = NOON) -> Verdict:
    """A verdict of which nothing is known but that there is none."""
    said = Judgement(Standing.UNKNOWN, unknown_reason="judge_timeout")
    return Verdict(id_, of, at_utc, 0, said, (), JudgedBy("model"))


def entry(id_: str, fact: Fact, at_utc: datetime = NOON) -> Entry:
    return Entry(id_, at_utc, fact)


def verdict_entries(verdicts: Iterable[Verdict]) -> list[Entry]:
    return [entry(f"entry-{v.id}", VerdictReached(v), v.at_utc) for v in verdicts]


def seen(of: AgentRef = ADA, at_utc: datetime = NOON) -> AgentSeen:
    return AgentSeen(of, "claude_code", "/home/ada/claude/ada.jsonl", "claude:parent", at_utc)


def standing_changed(after: Standing, of: AgentRef = ADA) -> StandingChanged:
    return StandingChanged(of, Standing.UNKNOWN, after, "verdict-1")


def state_changed(after: AgentState, of: AgentRef = ADA) -> StateChanged:
    return StateChanged(of, AgentState.STARTING, after, "its transcript grew")


def one_fact_of_each_kind(text: str = "") -> list[Fact]:
    return [
        DaemonStarted("0.1.0", 42),
        DaemonStopped(f"SIGTERM {text}"),
        seen(),
        AgentForgotten(ADA),
        TrajectoryAdvanced(ADA, digest(text=text), 2, NOON),
        TrajectoryRewound(ADA, 7),
        VerdictReached(verdict(text=text)),
        standing_changed(Standing.STUCK),
        state_changed(AgentState.RUNNING),
        SourceTroubled("garbled", f"/home/{text}", 12, ADA.agent),
        SourceTroubled("unreadable", "/home", 0),
        SweepFinished(10, 9, 8, 7, 6, 0.5),
        FactsDropped(3),
        *_facts_of_acting(text),
        ConductorSwept(
            status=FleetStatus.WARNING,
            before=None,
            score=0.45,
            coverage=0.75,
            trend=Trend.FALLING,
            agents=9,
            duplicates=1,
            conflicts=2,
            opened=3,
            resolved=4,
            suspicions=5,
            asked=6,
            failed=7,
            waiting=8,
            duration_s=0.5,
        ),
        FindingOpened("f1", FindingKind.CONFLICT, (ADA.agent, BOB.agent)),
        FindingResolved("f1", FindingKind.DUPLICATE, (ADA.agent, BOB.agent), Resolution.NOT_SEEN),
        *_facts_of_sync(text),
    ]


def evidence(text: str = "") -> tuple[Evidence, ...]:
    return (
        Evidence(Source.PROCESS, Value.BAD, 12.5, 30.0, f"process_gone {text}"),
        Evidence(Source.BEAT, Value.UNKNOWN, 0.0, math.inf),
    )


def hold(
    kind: HoldKind = HoldKind.QUARANTINE, subject: str = ADA.agent, text: str = "", **rest: Any
) -> Hold:
    return Hold(kind, subject, f"uid:1000 {text}", f"fails again {text}", NOON, **rest)


def _facts_of_sync(text: str) -> list[Fact]:
    """Facts of forges and of work that landed."""
    ada = ADA.agent
    return [
        RepositoryFollowed(f"github:{text}", SyncOutcome.FAILED, 1, 0, 0.5, Trouble.GONE),
        RepositoryFollowed("github:ada/engine", SyncOutcome.SYNCED, 4, 7, 1.5),
        ForgesSwept(5, 2, 1, 1, 1, 12, 7, 100, 9, 2.5),
        WorkLinked(TaskId(f"T-1{text}"), "github:a/b", WorkKind.COMMIT, "c1", LinkHow.TRAILER),
        WorkLanded(TaskId("T-1"), "github:a/b", WorkKind.PULL_REQUEST, "7", Told.QUEUED, ada),
    ]


def _facts_of_acting(text: str) -> list[Fact]:
    ada = ADA.agent
    return [
        LifeChanged(
            ada,
            2,
            AgentState.RUNNING,
            AgentState.UNRESPONSIVE,
            Condition.DEAD,
            Value.BAD,
            f"process_gone {text}",
            evidence(text),
        ),
        BeatMissed(ada, 2, 3, 90.5),
        AgentDismissed(ada),
        BeatsRefused(Refusal.OLD_EPOCH, 7, ada),
        BeatsRefused(Refusal.FULL, 1),
        BeatsSuperseded(11),
        AmnestyGranted("suspended", 120.0, 60.0, 4),
        RestartChanged(
            "restart-1",
            ada,
            2,
            3,
            RestartState.FAILED,
            Cause.HANG,
            f"liveness {text}",
            text,
            "not_dead",
        ),
        RestartStepped(
            "restart-1", ada, RestartStep.SPAWN, 2, StepState.DONE, f"unit_started {text}", 0.25
        ),
        RestartWithheld(ada, 2, Cause.CRASH, "backoff", 8.0),
        RestartWithheld(ada, 2, Cause.AUTH, "budget"),
        Escalated(f"quarantine:{ada}", "quarantine", ada, f"crash loop {text}"),
        Escalated("incident:1", "incident", None, ""),
        ConcernResolved(f"quarantine:{ada}", text),
        Notified("incident:1", f"command {text}", resolved=True, failure="timeout"),
        HoldPlaced(hold(text=text, until_utc=NOON + DAY)),
        HoldPlaced(hold(HoldKind.INCIDENT, "incident-1", text, agents=(ada, BOB.agent))),
        HoldLifted(HoldKind.ESTOP, FLEET, "time", text),
        InterventionChanged(
            "letter-1", ada, None, InterventionState.PROPOSED, f"guardian:{text}", text
        ),
        InterventionChanged(
            "letter-1",
            ada,
            InterventionState.QUEUED,
            InterventionState.EXPIRED,
            "policy",
            hold_out=True,
        ),
        ActPerformed(Act.ESTOP, f"uid:1000 ({text})", FLEET, ActOutcome.DONE, reason=text),
        ActPerformed(Act.RESTART, "token:ci", ada, ActOutcome.WOULD_BE_DONE, dry_run=True),
        TaskChanged(TaskId("a/1"), None, TaskState.READY, f"uid:0 ({text})"),
        TaskChanged(
            TaskId("b"),
            TaskState.CLAIMED,
            TaskState.FAILED,
            "custosd",
            AgentId(f"worker {text}"),
            2**40,
            FailureKind.AGENT_DEAD,
            TaskId("a/1"),
        ),
        ConfigReloaded(("liveness.late", text), ("store.dsn",), text),
        BudgetReached("fleet/day", Rung.RULES, 9.5, 10.0, NOON + DAY),
        BudgetReached(f"agent/day/{ada}", Rung.SMALLER, 0.8, 1.0, None, ada),
        BudgetRenewed("model/5h/sonnet"),
        AnalysisSkipped(ada, "sonnet", "rules", "fleet/day", NOON + DAY),
    ]


def daemon_beat(name: str = "host:1", at_utc: datetime = NOON) -> DaemonBeat:
    return DaemonBeat(name, 1, "0.1.0", NOON, at_utc, agents=3, sweeps=4)


def metrics(daemon: str = "host:1", at_utc: datetime = NOON) -> MetricsSnapshot:
    seen = OperationSummary(
        kind=Kind.DATABASE,
        name="restore",
        window_s=60.0,
        ok=3,
        errors={"OSError": 1},
        cancelled=2,
        slow=1,
        running=0,
        most_running=4,
        mean_s=0.1,
        p50_s=0.05,
        p90_s=0.2,
        p95_s=0.25,
        p99_s=0.3,
        longest_s=0.31,
        queued_mean_s=0.0,
        queued_p99_s=0.0,
        queued_longest_s=0.0,
        concurrency=0.01,
        by_littles_law=0.01,
        resources={"rows": 7.5},
        recent_s=60.0,
        recent_count=3,
        recent_p50_s=0.04,
        recent_p95_s=0.2,
        recent_p99_s=0.25,
    )
    return MetricsSnapshot(daemon, at_utc, (seen, replace(seen, name="record", errors={})))
