"""How well the detectors do on labelled runs, beside the loop rules of other agents.

    python tests/bench/bench_detectors.py [--split tune|report|all] [--data DIR]

Thresholds were chosen on `tune` alone; `report` is what is reported. The split is by
task group under a fixed hash, so no task is in both. An *alarm* is any signal of
severity ALARM raised at any step while the transcript was folded, silence not counted;
"any signal" adds suspicions and notes. Intervals are 95 %: Wilson's for shares of
resolved runs, a bootstrap over task groups for F1.
"""

import argparse
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import readings
import vendors
from fingerprints import read_fingerprints
from readings import LabelledRun
from scores import Outcome, auroc, bootstrap, score
from sessions import read_sessions

from custosd.core.detectors import DetectorLimits, signals
from custosd.core.signals import Severity, SignalKind
from custosd.core.trajectory import Trajectory
from custosd.core.transcript import Acted, Ended, Step, StepKind, TranscriptEvent

LIMITS = DetectorLimits()
DATA = Path(__file__).resolve().parents[3] / "shared" / "transcripts"
CODING = ("swe-agent/", "dgm", "aider", "openhands-study")
WEIGHTS = {Severity.NOTE: 1.0, Severity.SUSPICION: 2.0, Severity.ALARM: 4.0}


@dataclass(slots=True)
class Folded:
    """One run with all that the detectors said on the way.

    `first` is the step at which a kind of signal first had at least a severity; `weight`
    the weight of all signals raised in the first k steps, per k.
    """

    run: LabelledRun
    steps: list[Step]
    first: dict[tuple[SignalKind, Severity], int] = field(default_factory=dict)
    weight: list[float] = field(default_factory=list)
    again: list[bool] = field(default_factory=list)
    repeat: list[bool] = field(default_factory=list)
    stale_share: list[float] = field(default_factory=list)
    error_share: list[float] = field(default_factory=list)
    trajectory: Trajectory = field(default_factory=Trajectory)


def half_of(task: str) -> str:
    """The half that a task group belongs to, for ever."""
    return "tune" if hashlib.sha256(task.encode()).digest()[3] % 2 == 0 else "report"


def fold(run: LabelledRun) -> Folded:
    """Fold a run's main thread step by step and note what the detectors say when."""
    folded = Folded(run, [])
    seen: set[tuple[SignalKind, Severity]] = set()
    for event in run.events:
        folded.trajectory.advance(event)
        if isinstance(event, Acted):
            folded.steps.append(event.step)
        elif not isinstance(event, Ended) and getattr(event, "final", False) is False:
            continue
        for signal in signals(folded.trajectory, LIMITS, 0.0):
            key = (signal.kind, signal.severity)
            folded.first.setdefault(key, len(folded.steps))
            seen.add(key)
        if isinstance(event, Acted):
            mark = folded.trajectory.window[-1]
            folded.again.append(mark.again)
            folded.repeat.append(mark.repeat)
            folded.weight.append(sum(WEIGHTS[severity] for _, severity in seen))
            n = len(folded.steps)
            folded.stale_share.append(folded.trajectory.stale / n)
            folded.error_share.append(folded.trajectory.errors / n)
    return folded


# The tables


FirstStep = Callable[[Folded], int | None]


def alarm(folded: Folded) -> int | None:
    return earliest(folded, {Severity.ALARM})


def suspicion(folded: Folded) -> int | None:
    return earliest(folded, {Severity.ALARM, Severity.SUSPICION}, without=_CLAIMS)


def any_signal(folded: Folded) -> int | None:
    return earliest(folded, set(Severity), without=_CLAIMS)


_CLAIMS = frozenset({SignalKind.UNTESTED_CLAIM, SignalKind.OVERSPENDING})


def earliest(
    folded: Folded, severities: set[Severity], without: frozenset[SignalKind] = frozenset()
) -> int | None:
    at = [
        step
        for (kind, severity), step in folded.first.items()
        if severity in severities and kind not in without
    ]
    return min(at, default=None)


def of_kind(kind: SignalKind, severity: Severity) -> FirstStep:
    return lambda folded: folded.first.get((kind, severity))


def of_vendor(rule: vendors.Rule) -> FirstStep:
    def first(folded: Folded) -> int | None:
        at = rule(folded.steps)
        return None if at is None else at + 1

    return first


def our_rules() -> Iterator[tuple[str, FirstStep]]:
    yield "ALARM, any", alarm
    yield "suspicion or more (no claims)", suspicion
    yield "any signal (no claims)", any_signal
    for kind in SignalKind:
        for severity in reversed(Severity):
            yield f"  {kind} {severity}", of_kind(kind, severity)


def outcomes(
    runs: Sequence[Folded], rule: FirstStep, positive: Callable[[LabelledRun], bool]
) -> list[Outcome]:
    found = []
    for folded in runs:
        at, total = rule(folded), max(1, len(folded.steps))
        left = 0.0 if at is None else max(0.0, 1 - at / total)
        found.append(Outcome(folded.run.task, positive(folded.run), at is not None, left))
    return found


def print_table(
    title: str, runs: Sequence[Folded], positive: Callable[[LabelledRun], bool]
) -> None:
    count = sum(positive(folded.run) for folded in runs)
    if not runs:
        return
    base = count / len(runs)
    always = 2 * base / (1 + base) if base else 0.0
    print(f"\n### {title}")
    print(f"{len(runs)} runs, {count} positive (base {base:.3f}, always-positive F1 {always:.3f})")
    print(f"{'rule':34} fires     P     R    F1 [95 %]          lift  false alarms [95 %]   left")
    rules = [*our_rules(), *((name, of_vendor(r)) for name, r in vendors.RULES.items())]
    for name, rule in rules:
        s = score(outcomes(runs, rule, positive))
        if not s.fires and name.startswith("  "):
            continue
        print(
            f"{name:34} {s.fires:5} {s.precision:5.3f} {s.recall:5.3f} {s.f1:5.3f}"
            f" [{s.f1_low:.3f} {s.f1_high:.3f}] {s.lift:5.2f}  {s.alarms:6.1%}"
            f" [{s.alarms_low:6.1%} {s.alarms_high:6.1%}]  {s.left:.2f}"
        )


def print_unconfounded(title: str, runs: Sequence[Folded]) -> None:
    """AUROC of what is known after k steps, among runs that are still alive then."""
    print(f"\n### {title}: final failure, known after k steps, runs alive at k only")
    print("   k  runs   base   signals [95 %]         stale  errors")
    for k in (5, 10, 20):
        alive = [folded for folded in runs if len(folded.steps) > k]
        if not alive:
            continue
        base = sum(bool(f.run.failed) for f in alive) / len(alive)
        columns = [
            [
                Outcome(f.run.task, bool(f.run.failed), fired=False, left=values(f)[k - 1])
                for f in alive
            ]
            for values in (lambda f: f.weight, lambda f: f.stale_share, lambda f: f.error_share)
        ]
        low, high = bootstrap(columns[0], auroc_of)
        a, b, c = (auroc_of(column) for column in columns)
        print(
            f"{k:4} {len(alive):5}  {base:.3f}   {a:.3f} [{low:.3f} {high:.3f}]   {b:.3f}   {c:.3f}"
        )


def auroc_of(found: Sequence[Outcome]) -> float:
    """AUROC of the values in `left`."""
    return auroc([o.left for o in found if o.positive], [o.left for o in found if not o.positive])


def print_claims(title: str, runs: Sequence[Folded]) -> None:
    """Of the runs that say they are done: how many were, by what stood behind the claim."""
    claims = [f for f in runs if f.trajectory.claims_done]
    if not claims:
        return
    right = sum(not f.run.failed for f in claims)
    print(f"\n### {title}: {len(claims)} claims of done, {right} right ({right / len(claims):.3f})")
    kinds = {
        "nothing said against it": [],
        "untested (suspicion)": [],
        "red or empty-handed (alarm)": [],
    }
    names = list(kinds)
    for folded in claims:
        if alarm(folded) is not None:
            kinds[names[2]].append(folded)
        elif (SignalKind.UNTESTED_CLAIM, Severity.SUSPICION) in folded.first:
            kinds[names[1]].append(folded)
        else:
            kinds[names[0]].append(folded)
    for name, members in kinds.items():
        wrong = sum(bool(f.run.failed) for f in members)
        share = wrong / len(members) if members else 0.0
        print(f"  {name:30} {len(members):4} runs, {share:.3f} of them not resolved")


def print_human(runs: Sequence[Folded]) -> None:
    """The step that people call a repetition of its neighbour."""
    rules: dict[str, Callable[[Folded, int], bool]] = {
        "ours: the same write tried again": lambda f, i: f.again[i],
        "ours: effect repeated": lambda f, i: f.repeat[i],
        "same as the action before": lambda f, i: (
            f.steps[i].action.digest == f.steps[i - 1].action.digest
        ),
        "file created again": _created_before,
    }
    print("\n### Human step label: repetition of a neighbour")
    for name, rule in rules.items():
        pairs = [
            Outcome(f.run.task, label == "Repetition", rule(f, i))
            for f in runs
            for i, label in enumerate(f.run.human_labels.get("action_action", ()), start=1)
            if i < len(f.steps)
        ]
        if pairs:
            s = score(pairs)
            positives = sum(pair.positive for pair in pairs)
            print(
                f"{name:34} {len(pairs)} pairs, {positives} positive: P {s.precision:.2f}"
                f" R {s.recall:.2f} F1 {s.f1:.3f} [{s.f1_low:.3f} {s.f1_high:.3f}]"
            )


def _created_before(folded: Folded, i: int) -> bool:
    created = {e.path for s in folded.steps[:i] for e in s.edits if e.created}
    return any(edit.created and edit.path in created for edit in folded.steps[i].edits)


def print_native(runs: Iterable[Folded]) -> None:
    """Which signals fire on sessions that nobody labelled."""
    print("\n### Native sessions: signals with the step at which they first fire")
    for f in runs:
        told = ", ".join(
            f"{kind} {severity}@{step}"
            for (kind, severity), step in sorted(f.first.items(), key=lambda item: item[1])
        )
        print(f"{f.run.source} {f.run.id[-60:]} ({len(f.steps)} steps): {told or 'nothing'}")


def without_end(folded: Folded) -> Folded:
    """The run as it looked while it went on: no submission, no word of how it ended."""
    events: list[TranscriptEvent] = [
        event
        for event in folded.run.events
        if not isinstance(event, Ended)
        and not (isinstance(event, Acted) and event.step.kind is StepKind.SUBMIT)
    ]
    run = folded.run
    return fold(
        LabelledRun(run.source, run.id, run.task, events, run.failed, run.exit, run.human_labels)
    )


SETS = (
    readings.read_dgm,
    readings.read_openhands_study,
    readings.read_aider,
    readings.read_intercode,
    readings.read_tau_airline,
    readings.read_agentrx_retail,
)


def load(data: Path) -> Iterator[LabelledRun]:
    """Every run with a known outcome below the folder; sets that are not there are left out."""
    if (path := data / "fingerprints_external.jsonl").is_file():
        yield from read_fingerprints(path)
    for read_set in SETS:
        yield from (run for run in read_set(data) if run.failed is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--split", choices=("tune", "report", "all"), default="report")
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    runs = [run for run in load(options.data) if options.split in {"all", half_of(run.task)}]
    folds = [fold(run) for run in runs]
    print(f"split {options.split}: {len(folds)} runs;", dict(Counter(f.run.source for f in folds)))

    labelled = folds
    coding = [f for f in labelled if f.run.source.startswith(CODING)]
    print_table("4.1 Coding runs pooled: failed", coding, _failed)
    for source in sorted({f.run.source for f in labelled}):
        print_table(f"{source}: failed", [f for f in labelled if f.run.source == source], _failed)
    java = [without_end(f) for f in coding if "java" in f.run.source]
    print_table("4.3 SWE-agent Java: will not end by its own submit", java, _not_submitted)
    print_unconfounded("4.3 Coding runs", coding)
    for source in sorted({f.run.source for f in labelled}):
        print_claims(f"4.4 {source}", [f for f in labelled if f.run.source == source])
    print_human([f for f in folds if f.run.human_labels])
    print_native(fold(run) for run in read_sessions(options.data))


def _failed(run: LabelledRun) -> bool:
    return bool(run.failed)


def _not_submitted(run: LabelledRun) -> bool:
    return run.exit != "submitted"


if __name__ == "__main__":
    main()
