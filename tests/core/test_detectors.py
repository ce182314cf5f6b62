"""Each detector finds what it should, and leaves healthy work alone."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.core.trajectories import (
    LIMITS,
    asked,
    ever,
    failing,
    folded,
    found,
    passing,
    read,
    refused,
    remove,
    run,
    said,
    search,
    step,
    submit,
    write,
)

from custosd.core.detectors import next_quiet_deadline, question_hash, signals
from custosd.core.signals import Severity, SignalKind
from custosd.core.transcript import (
    Asked,
    EditRange,
    Ended,
    ErrorClass,
    RunEnd,
    Spent,
    StepKind,
    TranscriptEvent,
    Usage,
    Waiting,
)

GOAL = asked("Fix the crash in src/parser.py when the input is empty.")
DRIFT: list[TranscriptEvent] = [
    GOAL,
    read("src/parser.py", "def parse"),
    *(write("README.md", f"words {i}") for i in range(3)),
    *(write("docs/style.css", f"colour {i}") for i in range(3)),
]


def test_the_same_result_three_times_with_nothing_changed_is_a_repetition() -> None:
    signal = found(run("curl host", "refused"), *[run("curl host", "refused")] * 2)
    assert signal[SignalKind.REPEATING].severity is Severity.ALARM
    assert signal[SignalKind.REPEATING].steps == (0, 1, 2)


def test_numbers_that_differ_do_not_hide_a_repetition() -> None:
    events = [run("curl host", f"refused after {i} ms") for i in (12, 7, 31)]
    assert found(*events)[SignalKind.REPEATING].severity is Severity.ALARM


def test_two_of_the_same_are_a_note() -> None:
    signal = found(run("curl host", "refused"), run("curl host", "refused"))
    assert signal[SignalKind.REPEATING].severity is Severity.NOTE


def test_deleting_and_creating_the_same_file_in_turn_is_a_repetition() -> None:
    cycle = [
        run("rm reproduce.py", files=("reproduce.py",), changes=True),
        write("reproduce.py", "the same", created=True),
    ]
    assert SignalKind.REPEATING in ever(cycle * 4, Severity.ALARM)


def test_deleting_told_as_an_edit_and_creating_the_same_file_is_a_repetition() -> None:
    cycle = [remove("reproduce.py"), write("reproduce.py", "the same", created=True)]
    assert SignalKind.REPEATING in ever(cycle * 4, Severity.ALARM)


def test_deleting_what_was_forbidden_is_an_alarm() -> None:
    assert SignalKind.SCOPE in found(asked("Don't touch setup.py."), remove("setup.py"))


def test_tidying_up_does_not_make_a_failing_run_forgotten() -> None:
    script: list[TranscriptEvent] = [
        GOAL,
        write("repro.py", "x", created=True),
        write("src/parser.py", "y"),
        run("python repro.py", "Traceback", ErrorClass.EXCEPTION, files=("repro.py",)),
        remove("repro.py"),
        said("Fixed."),
    ]
    assert found(*script)[SignalKind.UNTESTED_CLAIM].severity is Severity.ALARM


def test_creating_a_file_anew_with_other_contents_again_and_again_is_churn() -> None:
    events: list[TranscriptEvent] = []
    for i in range(5):
        events += [run("rm a.py", changes=True), write("a.py", f"try {i}", created=True)]
    assert SignalKind.CHURNING in ever(events)


def test_the_same_refused_write_three_times_is_a_repetition_and_an_error_streak() -> None:
    signal = found(*[refused("hooks/useTodos.ts", "x")] * 3)
    assert signal[SignalKind.REPEATING].severity is Severity.ALARM
    assert signal[SignalKind.ERRORS].about == "edit_rejected at hooks/useTodos.ts"


def test_the_same_write_tried_again_and_again_is_noted() -> None:
    events: list[TranscriptEvent] = []
    for i in range(3):
        events += [
            refused("a.py", f"v{i}"),
            run("rm a.py", changes=True),
            write("a.py", f"v{i}", created=True),
        ]
    assert SignalKind.REPEATING in ever(events, Severity.NOTE)


def test_looking_at_known_things_again_is_stale() -> None:
    looks = [search(f"word{c}", f"hit {c}") for c in "abc"]
    signal = found(*looks, *looks)
    assert signal[SignalKind.STALE].severity is Severity.SUSPICION
    assert signal[SignalKind.STALE].steps == (3, 4, 5)


def test_nine_failures_in_a_row_are_an_alarm_and_three_a_suspicion() -> None:
    events = [run(f"make target-{c}", f"no {c}", ErrorClass.EXIT_CODE) for c in "abcdefghi"]
    assert found(*events[:3])[SignalKind.ERRORS].severity is Severity.SUSPICION
    assert found(*events)[SignalKind.ERRORS].severity is Severity.ALARM


def test_taking_turns_between_two_actions_is_an_alternation() -> None:
    pair = [run("systemctl start x", "failed"), run("systemctl status x", "dead")]
    assert found(*pair * 3)[SignalKind.ALTERNATING].severity is Severity.ALARM


def test_bringing_back_earlier_contents_is_churn() -> None:
    edits = [write("a.py", content, lines=(3, 9)) for content in ("on", "off", "on", "off")]
    assert found(*edits)[SignalKind.CHURNING].severity is Severity.ALARM


def test_writing_over_the_same_lines_is_churn() -> None:
    edits = [write("a.py", f"try {i}", lines=(10, 12 + i)) for i in range(4)]
    assert found(*edits)[SignalKind.CHURNING].measure == 4


def test_25_steps_without_anything_new_are_no_progress() -> None:
    events = [run(f"make {c}", f"{c}", ErrorClass.EXIT_CODE) for c in "abcdefghijklmnopqrstuvwxyz"]
    assert SignalKind.NO_PROGRESS in found(*events)
    assert SignalKind.NO_PROGRESS not in found(*events[:24])


def test_handing_in_without_an_edit_is_an_alarm() -> None:
    events: list[TranscriptEvent] = [asked("Make it faster"), read("a.py"), submit()]
    assert found(*events)[SignalKind.NO_PROGRESS].severity is Severity.ALARM


def test_handing_in_only_a_script_of_ones_own_is_an_alarm() -> None:
    script = [write("repro.py", "x", created=True), run("python repro.py", "", files=("repro.py",))]
    signal = found(asked("The parser fails"), *script, submit())
    assert signal[SignalKind.NO_PROGRESS].about == "handed in with no edit but to its own scripts"


def test_writing_what_was_forbidden_is_an_alarm() -> None:
    signal = found(asked("Fix it. Don't touch setup.py."), write("/repo/setup.py", "x"))
    assert signal[SignalKind.SCOPE].severity is Severity.ALARM
    assert signal[SignalKind.SCOPE].steps == (0,)


def test_writing_outside_the_only_place_allowed_is_an_alarm() -> None:
    signal = found(asked("Only edit src/parser.py please."), write("src/lexer.py", "x"))
    assert SignalKind.SCOPE in signal


def test_rewriting_documents_when_a_parser_is_to_be_fixed_is_drift() -> None:
    signal = found(*DRIFT)[SignalKind.DRIFTING]
    assert signal.severity is Severity.SUSPICION
    assert "README.md" in signal.about


def test_claiming_done_after_a_failing_test_is_an_alarm() -> None:
    signal = found(GOAL, write("src/parser.py", "x"), failing(), said("All fixed."))
    assert signal[SignalKind.UNTESTED_CLAIM].severity is Severity.ALARM


def test_claiming_done_without_a_test_is_a_suspicion() -> None:
    signal = found(GOAL, write("src/parser.py", "x"), said("All fixed."))
    assert signal[SignalKind.UNTESTED_CLAIM].severity is Severity.SUSPICION


def test_spending_more_than_allowed_is_an_alarm() -> None:
    trajectory = folded(GOAL, Spent("", Usage(cost_usd=5.1)))
    (signal,) = signals(trajectory, replace(LIMITS, spend_usd=5.0), 0)
    assert (signal.kind, signal.severity) == (SignalKind.OVERSPENDING, Severity.ALARM)


def test_a_run_cut_off_at_its_limit_is_a_suspicion() -> None:
    signal = found(GOAL, Ended("", RunEnd.LIMIT))
    assert signal[SignalKind.OVERSPENDING].severity is Severity.SUSPICION


def test_silence_is_told_by_what_the_agent_was_doing() -> None:
    quiet = LIMITS.idle_s
    assert SignalKind.SILENT in found(GOAL, read("a"), quiet_s=quiet)
    assert SignalKind.IDLE in found(GOAL, read("a"), said("Here it is."), quiet_s=quiet)
    assert SignalKind.WAITING in found(GOAL, said("Which one?"), quiet_s=LIMITS.waiting_s)
    assert SignalKind.WAITING in found(GOAL, Waiting("", "permission"), quiet_s=LIMITS.waiting_s)
    assert not found(GOAL, Ended("", RunEnd.FINISHED), quiet_s=1e9)


@pytest.mark.parametrize(
    "events",
    [
        (GOAL, read("a")),
        (GOAL, said("Which one?")),
        (GOAL, said("Here.")),
        (GOAL, Waiting("", "rate_limit")),
        (),
        (GOAL, Ended("", RunEnd.FINISHED)),
    ],
)
def test_nothing_is_new_before_the_quiet_deadline_and_something_is_at_it(
    events: Sequence[TranscriptEvent],
) -> None:
    trajectory = folded(*events)
    deadline = next_quiet_deadline(trajectory, LIMITS)
    at_once = signals(trajectory, LIMITS, 0)
    if deadline is None:
        assert signals(trajectory, LIMITS, 1e9) == at_once
    else:
        assert signals(trajectory, LIMITS, deadline - 0.001) == at_once
        assert len(signals(trajectory, LIMITS, deadline)) == len(at_once) + 1


SOURCE = [f"file_{i}.py" for i in range(20)]
HEALTHY: dict[str, list[TranscriptEvent]] = {
    "a batch of edits over many files": [write(path, "same change") for path in SOURCE],
    "tests run again after each edit": [
        event
        for i in range(6)
        for event in (write("a.py", f"v{i}", lines=(i * 20 + 1, i * 20 + 5)), failing("1 failed"))
    ],
    "tests run again after edits that bring other failures": [
        event
        for i, c in enumerate("abcdef")
        for event in (
            write("a.py", f"v{i}", lines=(i * 20 + 1, i * 20 + 5)),
            failing(f"test_{c} failed"),
        )
    ],
    "retries with variation that come to work": [
        run("make a", "no a", ErrorClass.EXIT_CODE),
        run("make b", "no b", ErrorClass.EXIT_CODE),
        run("make c", "built"),
    ],
    "a scratch file made, run and deleted, each time for another question": [
        event
        for c in "abcde"
        for event in (
            write("scratch.py", c, created=True),
            run("python scratch.py", f"answer {c}", files=("scratch.py",)),
            remove("scratch.py"),
        )
    ],
    "waiting for a build whose answer does not change": [
        run("sleep 60 && gh run view", "running") for _ in range(8)
    ],
    "reading one file in parts by line numbers": [
        read("big.py", "part with the same shape", f"{i}00,{i}99") for i in range(8)
    ],
    "reading the same file now and then": [
        event
        for c in "abcde"
        for event in (
            read("GUIDE.md", "rules"),
            *(read(f"{c}{i}.py", f"{c * i}") for i in range(12)),
        )
    ],
    "many edits of one file in one step": [
        step(
            StepKind.EDIT,
            "multi_edit",
            f"multi {i}",
            "done",
            edits=tuple(EditRange("a.py", n, n + 9) for n in range(1, 9)),
        )
        for i in range(3)
    ],
    "polling a build whose answer changes": [
        run("gh run view", f"job {c} running") for c in "abcdefgh"
    ],
    "scrolling through a long file": [run("scroll_down", f"lines {c}") for c in "abcdefghijklmnop"],
    "reading one file in parts": [
        read("big.py", f"part {c}", f"from {i}") for i, c in enumerate("abcdefgh")
    ],
    "reading a file again after it was edited": [
        event
        for i in range(4)
        for event in (
            read("a.py", f"state {i}"),
            write("a.py", f"v{i}", lines=(9 * i + 1, 9 * i + 3)),
        )
    ],
    "edits at different places of one file": [
        write("a.py", f"v{i}", lines=(i * 30 + 1, i * 30 + 9)) for i in range(12)
    ],
    "many searches for different words": [search(f"word{c}", f"hit {c}") for c in "abcdefghijkl"],
    "searches that find nothing": [
        search(w, "") for w in ("alpha", "beta", "gamma", "delta", "eps")
    ],
    "a long reading without any edit": [read(f"m{c}.py", f"body {c}") for c in "abcdefghijklmnop"],
    "two files edited in turn": [
        write(f"{c}.py", f"v{i}", lines=(i * 9 + 1, i * 9 + 4)) for i in range(5) for c in "ab"
    ],
    "one error now and then": [
        event
        for c in "abcdef"
        for event in (
            run(f"make {c}", f"no {c}", ErrorClass.EXIT_CODE),
            read(f"{c}.mk", f"rule {c}"),
            read(f"{c}.h", f"header {c}"),
        )
    ],
    "work done and tested": [GOAL, write("src/parser.py", "x"), passing(), said("Fixed.")],
    "a failing test put right": [
        GOAL,
        write("src/parser.py", "x"),
        failing(),
        write("src/parser.py", "y"),
        passing(),
        said("Fixed, all tests pass."),
    ],
    "documents written as asked": [
        asked("Write the README and docs/ for parser.py."),
        *(write("README.md", f"part {i}", lines=(i * 9 + 1, i * 9 + 8)) for i in range(6)),
    ],
    "a fix where the issue does not point": [
        GOAL,
        read("src/parser.py"),
        *(write("src/lexer.py", f"v{i}", lines=(i * 9 + 1, i * 9 + 8)) for i in range(6)),
    ],
    "a test beside the code that the goal names": [
        GOAL,
        *(write("tests/test_parser.py", f"v{i}", lines=(i * 9 + 1, i * 9 + 8)) for i in range(6)),
    ],
    "an answer in words, no edit": [asked("What does a.py do?"), read("a.py"), said("It adds.")],
    "a new script, as asked": [
        asked("Write a script that prints primes."),
        write("primes.py", "x", created=True),
        run("python primes.py", "2 3 5", files=("primes.py",)),
        submit(),
    ],
    "a constraint that was lifted before the write": [
        asked("Don't touch setup.py."),
        asked("You can now edit setup.py."),
        write("setup.py", "x"),
    ],
    "a constraint with a condition": [
        asked("If main.py has tests in it, you should not edit them, but you can run main.py."),
        write("main.py", "x"),
    ],
    "an edit whose place is not told, handed in": [
        asked("The parser fails"),
        step(StepKind.EDIT, "edit", "edit 3:9", "done"),
        passing(),
        submit(),
    ],
    "an answer handed in, no edit": [
        asked("Find the flag."),
        read("a.py"),
        step(StepKind.SUBMIT, "submit", "submit flag{found}"),
    ],
    "a constraint with an exception": [
        asked("Don't edit anything except src/parser.py."),
        write("src/parser.py", "x"),
    ],
    "a write to a scratch file below /tmp": [
        asked("Only edit src/parser.py."),
        write("/tmp/try.py", "x"),
        write("src/parser.py", "x"),
    ],
    "a command without output, each time for another file": [
        run(f"mkdir {c}", changes=True) for c in "abcdefgh"
    ],
    "a person asks for the same thing again": [
        event
        for when in ("now", "once more", "again", "still fine?", "and now")
        for event in (asked(f"Run the tests, {when}"), passing(), said("They pass."))
    ],
    "the same commit command after each edit": [
        event
        for i in range(5)
        for event in (
            write("a.py", f"v{i}", lines=(i * 9 + 1, i * 9 + 4)),
            run("git commit -qam wip", changes=True),
        )
    ],
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_work_raises_no_suspicion(name: str) -> None:
    assert ever(HEALTHY[name]) == set()


@pytest.mark.parametrize(
    ("limit", "events", "kind"),
    [
        ("repeats", [run("x", "y")] * 4, SignalKind.REPEATING),
        ("errors", [refused("a", f"{i}") for i in range(9)], SignalKind.ERRORS),
        ("alternations", [run("a", "x"), run("b", "y")] * 4, SignalKind.ALTERNATING),
        ("churn", [write("a", c, lines=(1, 2)) for c in "xyxyxy"], SignalKind.CHURNING),
        ("drift_steps", DRIFT, SignalKind.DRIFTING),
    ],
)
def test_a_limit_of_zero_turns_its_detector_off(
    limit: str, events: list[TranscriptEvent], kind: SignalKind
) -> None:
    trajectory = folded(*events)
    assert kind in {s.kind for s in signals(trajectory, LIMITS, 0)}
    off = replace(LIMITS, **{limit: 0})
    assert kind not in {s.kind for s in signals(trajectory, off, 0)}


def test_a_question_does_not_change_with_quiet_time_alone() -> None:
    trajectory = folded(GOAL, read("a"))
    late = signals(trajectory, LIMITS, LIMITS.idle_s)
    later = signals(trajectory, LIMITS, LIMITS.idle_s + 500)
    assert question_hash(trajectory.digest(), late) == question_hash(trajectory.digest(), later)
    assert question_hash(trajectory.digest(), ()) != question_hash(trajectory.digest(), late)


def test_a_question_changes_with_every_step() -> None:
    one, two = folded(GOAL, read("a")), folded(GOAL, read("a"), read("b"))
    assert question_hash(one.digest(), ()) != question_hash(two.digest(), ())
    assert question_hash(one.digest(), ()) == question_hash(folded(GOAL, read("a")).digest(), ())


def test_a_question_does_not_change_when_money_is_counted() -> None:
    events: list[TranscriptEvent] = [Asked("", "Go"), read("a")]
    spent = [*events, Spent("", Usage(cost_usd=0.1))]
    assert folded(*events).digest().fingerprint == folded(*spent).digest().fingerprint
