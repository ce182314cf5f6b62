"""What the rules judge says, and in which order of precedence."""

from collections.abc import Sequence

import pytest
from tests.core.trajectories import (
    LIMITS,
    asked,
    failing,
    folded,
    passing,
    read,
    refused,
    run,
    said,
    search,
    write,
)

from custosd.core.detectors import signals
from custosd.core.rules import judge_by_rules
from custosd.core.signals import Severity, Signal, SignalKind
from custosd.core.transcript import Ended, RunEnd, TranscriptEvent, Waiting
from custosd.core.verdicts import Judgement, Standing, SteeringReason

GOAL = asked("Fix the crash in src/parser.py. Don't touch setup.py.")
LOOP = [run("curl host", "refused")] * 3


def judged(*events: TranscriptEvent, quiet_s: float = 0.0) -> Judgement:
    trajectory = folded(*events)
    return judge_by_rules(trajectory.digest(), signals(trajectory, LIMITS, quiet_s), quiet_s)


DRIFT = [read("src/parser.py"), *(write("README.md", f"words {i}") for i in range(9))]


@pytest.mark.parametrize(
    ("events", "quiet_s", "standing"),
    [
        ([], 0, Standing.UNKNOWN),
        ([GOAL, read("a")], 0, Standing.PROGRESSING),
        ([GOAL, *LOOP], 0, Standing.STUCK),
        ([GOAL, *[refused("a.py", "x")] * 3], 0, Standing.STUCK),
        ([GOAL, *DRIFT], 0, Standing.DRIFTING),
        ([GOAL, *DRIFT[:6]], 0, Standing.PROGRESSING),
        ([GOAL, write("setup.py", "x")], 0, Standing.DRIFTING),
        ([GOAL, *LOOP, said("What now?")], 0, Standing.WAITING),
        ([GOAL, *LOOP, Waiting("", "rate_limit")], 9_999, Standing.WAITING),
        ([GOAL, write("src/parser.py", "x"), passing(), said("Fixed.")], 0, Standing.DONE),
        ([GOAL, write("src/parser.py", "x"), said("Fixed.")], 0, Standing.DONE_UNTESTED),
        ([GOAL, write("src/parser.py", "x"), failing(), said("Fixed.")], 0, Standing.DONE_UNTESTED),
        ([GOAL, *LOOP, Ended("", RunEnd.LIMIT)], 0, Standing.STOPPED),
        ([GOAL, Ended("", RunEnd.ERROR)], 0, Standing.STOPPED),
        ([GOAL, write("setup.py", "x"), Ended("", RunEnd.ABORTED)], 0, Standing.STOPPED),
        ([GOAL, read("a")], 900, Standing.SILENT),
        ([GOAL, read("a"), said("Here is the list.")], 900, Standing.IDLE),
        ([GOAL, read("a"), said("Here is the list.")], 5, Standing.IDLE),
    ],
)
def test_the_standing_that_a_story_ends_in(
    events: Sequence[TranscriptEvent], quiet_s: float, standing: Standing
) -> None:
    assert judged(*events, quiet_s=quiet_s).standing is standing


def test_without_recent_progress_it_says_unknown_and_why() -> None:
    story = [read("a"), *(run(f"make {c}", f"no {c}") for c in "b")]
    stale = [search("x", "")] * 2
    judgement = judged(GOAL, *story, *[search(f"w{c}", "") for c in "abcdefghijkl"], *stale)
    assert judgement.standing is Standing.UNKNOWN
    assert judgement.unknown_reason == "no_recent_progress"


def test_only_an_alarm_asks_for_steering() -> None:
    suspicion = [run(f"make {c}", f"no {c}", error) for c in "abc" for error in ["exit_code"]]  # type: ignore[list-item]
    assert judged(GOAL, *LOOP).needs_steering
    assert not judged(GOAL, *suspicion).needs_steering
    assert judged(GOAL, *suspicion).standing is Standing.UNKNOWN
    assert judged(GOAL, *suspicion).unknown_reason == "suspected_errors"
    assert not judged(GOAL, *DRIFT[:6]).needs_steering


def test_straying_for_long_is_steered_and_outweighs_the_churn_that_it_causes() -> None:
    churn = [write("README.md", f"all new {i}", created=True) for i in range(10)]
    judgement = judged(GOAL, read("src/parser.py"), *churn)
    assert judgement.standing is Standing.DRIFTING
    assert judgement.steering_reason is SteeringReason.DRIFTING


def test_a_violated_constraint_is_named_in_the_message() -> None:
    judgement = judged(GOAL, write("setup.py", "x"))
    assert judgement.steering_reason is SteeringReason.VIOLATING_CONSTRAINTS
    assert "Don't touch setup.py." in judgement.message
    assert judgement.evidence == (0,)


def test_summaries_name_the_steps_that_show_it() -> None:
    assert judged(GOAL, *LOOP).summary == (
        "Had the same result 3 times with nothing changed between (curl), at steps 0, 1, 2."
    )


def test_alignment_is_never_given_and_the_future_never_told() -> None:
    for story in ([], [GOAL, *LOOP], [GOAL, read("a")], [GOAL, *DRIFT], [GOAL, said("Fixed.")]):
        judgement = judged(*story)
        assert judgement.alignment is None
        assert "will fail" not in judgement.summary + judgement.message


def test_duplicated_work_names_the_peers() -> None:
    digest = folded(GOAL, read("a")).digest()
    twin = Signal(SignalKind.DUPLICATING, Severity.SUSPICION, (), 0.9, 0.8, peers=("bob",))
    judgement = judge_by_rules(digest, (twin,), 0)
    assert judgement.standing is Standing.DUPLICATING
    assert "bob" in judgement.summary


@pytest.mark.parametrize(
    ("events", "quiet_s", "evidence"),
    [
        ([], 0, ()),
        ([GOAL, read("a"), run("make", "no")], 0, (1,)),
        ([GOAL, write("src/parser.py", "x"), passing(), read("b"), said("Fixed.")], 0, (1,)),
        ([GOAL, read("a"), read("b"), said("Done.")], 0, (1,)),
        ([GOAL, *LOOP, said("What now?")], 0, (2,)),
        ([GOAL, *LOOP, Waiting("", "rate_limit")], 9_999, (2,)),
        ([GOAL, *LOOP, Ended("", RunEnd.LIMIT)], 0, (2,)),
        ([GOAL, read("a")], 900, (0,)),
        ([GOAL, read("a"), said("Here is the list.")], 5, (0,)),
        ([GOAL, read("a"), said("Here is the list.")], 900, (0,)),
    ],
)
def test_a_judgement_names_the_steps_that_it_rests_on(
    events: Sequence[TranscriptEvent], quiet_s: float, evidence: tuple[int, ...]
) -> None:
    assert judged(*events, quiet_s=quiet_s).evidence == evidence


def test_where_nothing_is_new_the_last_step_is_named() -> None:
    stale = [search(f"w{c}", "") for c in "abcdefghijkl"]
    judgement = judged(GOAL, read("a"), *stale)
    assert judgement.standing is Standing.UNKNOWN
    assert judgement.evidence == (12,)
