"""The fold: bounded, total, storable at any point, and right about what was done."""

import time
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.trajectories import asked, failing, folded, passing, read, run, said, search, write

from custosd.core.detectors import DetectorLimits, next_quiet_deadline, signals
from custosd.core.history import EFFECTS_KEPT, FILES_KEPT, WINDOW_STEPS
from custosd.core.rules import judge_by_rules
from custosd.core.trajectory import Activity, Trajectory
from custosd.core.transcript import (
    Acted,
    Asked,
    Compacted,
    EditRange,
    Ended,
    ErrorClass,
    Opened,
    Result,
    RunEnd,
    Said,
    Spent,
    Step,
    StepKind,
    Text,
    TranscriptEvent,
    Unread,
    Usage,
    Waiting,
)
from custosd.core.verdicts import Phase

HARD_BOUND = 24 * 1024
TYPICAL_BOUND = 9 * 1024
NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)

# Few different values, so that repeats, overlaps and returns really come about.
words = st.sampled_from(["", "a", "src/a.py", "docs/b.md", "\ud800", "x" * 3_000, "/tmp/c", "ü\0"])
any_text = words | st.text(max_size=40)
digests = st.sampled_from(["0" * 16, "1" * 16, "a1b2c3d4e5f60718"])
texts = st.builds(Text, any_text, st.sampled_from([0, 1, 10_000]), digests, digests)
times = st.none() | st.just(NOON)
lines = st.integers(0, 40)
edits = st.builds(EditRange, words, lines, lines, st.booleans(), digests | st.just(""))
usages = st.builds(
    Usage, st.integers(0, 10**9), st.integers(0, 10**9), st.just(0), st.floats(0, 1e6)
)
steps = st.builds(
    Step,
    key=words,
    kind=st.sampled_from(StepKind),
    tool=words,
    verb=words | st.sampled_from(["scroll_down", "cat", "rm"]),
    action=texts,
    observation=texts,
    result=st.sampled_from(Result),
    error=st.none() | st.sampled_from(ErrorClass),
    files=st.lists(words, max_size=3).map(tuple),
    edits=st.lists(edits, max_size=3).map(tuple),
    exit_code=st.none() | st.integers(-1, 255),
    changes_state=st.booleans(),
    started_utc=times,
    ended_utc=times,
)
rules = st.sampled_from(
    [
        "Fix src/a.py",
        "Don't touch docs/.",
        "Only edit src/a.py.",
        "You can now edit docs/.",
        "Go on.",
    ]
)
events: st.SearchStrategy[TranscriptEvent] = st.one_of(
    st.builds(Acted, st.just(""), steps),
    st.builds(Acted, st.just(""), steps),
    st.builds(Acted, st.just(""), steps),
    st.builds(Asked, st.just(""), rules | any_text, times),
    st.builds(Said, st.just(""), any_text, st.booleans(), times),
    st.builds(Spent, st.just(""), usages),
    st.builds(Waiting, st.just(""), any_text),
    st.builds(Compacted, st.just("")),
    st.builds(Ended, st.just(""), st.sampled_from(RunEnd), any_text),
    st.builds(Opened, st.just(""), words),
    st.builds(Unread, words),
)


def encoded(trajectory: Trajectory) -> bytes:
    return msgspec.msgpack.encode(trajectory)


def reloaded(trajectory: Trajectory) -> Trajectory:
    return msgspec.msgpack.decode(encoded(trajectory), type=Trajectory)


@given(st.lists(events, max_size=60))
def test_any_sequence_of_events_is_folded_judged_and_stored(story: list[TranscriptEvent]) -> None:
    trajectory = folded(*story)
    assert trajectory.steps == sum(isinstance(event, Acted) for event in story)
    found = signals(trajectory, DetectorLimits(), 1e6)
    assert len({signal.kind for signal in found}) == len(found)
    assert all(0 <= n < trajectory.steps for signal in found for n in signal.steps)
    assert all(list(signal.steps) == sorted(signal.steps) for signal in found)
    assert all(len(signal.steps) <= 16 for signal in found)
    judge_by_rules(trajectory.digest(), found, 1e6)
    next_quiet_deadline(trajectory, DetectorLimits())
    assert reloaded(trajectory) == trajectory


@given(st.lists(events, max_size=40), st.lists(events, max_size=40))
def test_a_fold_that_was_stored_goes_on_as_if_it_had_not_been(
    before: list[TranscriptEvent], after: list[TranscriptEvent]
) -> None:
    kept = folded(*before)
    loaded = reloaded(kept)
    for event in after:
        kept.advance(event)
        loaded.advance(event)
    assert encoded(kept) == encoded(loaded)
    assert kept.digest() == loaded.digest()


@given(st.lists(events, max_size=40), st.lists(usages, max_size=5), st.randoms())
def test_the_price_of_calls_may_come_at_any_time(
    story: list[TranscriptEvent], prices: list[Usage], random: object
) -> None:
    unpaid = [event for event in story if not isinstance(event, Spent)]
    first = folded(*(Spent("", usage) for usage in prices), *unpaid).digest()
    last = folded(*unpaid, *(Spent("", usage) for usage in prices)).digest()
    assert first == last


@settings(max_examples=3, deadline=None)
@given(st.lists(events, max_size=60), st.integers(0, 99))
def test_state_stays_within_its_bound_over_20_000_steps(
    pattern: list[TranscriptEvent], salt: int
) -> None:
    trajectory = Trajectory()
    for turn in range(110):
        for event in pattern:
            trajectory.advance(event)
        for i in range(91):
            name = f"{'deep/' * 12}{turn * salt}/{i}-ü.py"
            trajectory.advance(write(name, f"{turn} {i}"))
            trajectory.advance(search(f"{turn}-{'abcdefghij'[i % 10] * (i + 1)}", "é" * i))
        trajectory.advance(asked("Never touch the ü file. " * 3 + f"Do not edit f{turn}.py. " * 9))
    assert trajectory.steps >= 20_000
    assert len(encoded(trajectory)) <= HARD_BOUND
    assert len(trajectory.window) <= WINDOW_STEPS
    assert len(trajectory.effects.seen) <= EFFECTS_KEPT
    assert len(trajectory.files.seen) <= FILES_KEPT


def test_a_typical_long_run_takes_less_than_9_kib() -> None:
    trajectory = folded(asked("Fix the parser in src/parser.py. Don't touch the lock file."))
    for i in range(400):
        path = f"src/package/module_{i % 12}.py"
        trajectory.advance(read(path, f"{chr(97 + i % 26)} body {chr(97 + i % 7)}"))
        trajectory.advance(write(path, f"v{i}", lines=(i, i + 5)))
        trajectory.advance(failing(f"failed: {chr(97 + i % 26)}"))
    assert len(encoded(trajectory)) <= TYPICAL_BOUND


def test_the_first_thing_that_is_asked_is_the_goal_and_the_last_is_kept_too() -> None:
    trajectory = folded(asked("Fix it."), read("a"), asked("Now the docs."))
    assert (trajectory.goal, trajectory.goal_last) == ("Fix it.", "Now the docs.")


def test_a_constraint_keeps_its_step_and_when_it_was_lifted() -> None:
    trajectory = folded(
        asked("Refactor. Don't touch setup.py."), read("a"), asked("You can now edit setup.py.")
    )
    (constraint,) = trajectory.digest().constraints
    assert (constraint.step, constraint.lifted_step) == (0, 1)


@pytest.mark.parametrize(
    ("event", "activity", "on"),
    [
        (said("It is done."), Activity.TURN_ENDED, ""),
        (said("Shall I go on?"), Activity.WAITING, "human"),
        (said("Please confirm that I may delete it."), Activity.WAITING, "human"),
        (Said("", "Let me look."), Activity.WORKING, ""),
        (Waiting("", "rate_limit"), Activity.WAITING, "rate_limit"),
        (Ended("", RunEnd.ABORTED), Activity.ENDED, ""),
        (read("b"), Activity.WORKING, ""),
    ],
)
def test_what_the_agent_does_just_now(event: TranscriptEvent, activity: Activity, on: str) -> None:
    digest = folded(asked("Go"), read("a"), event).digest()
    assert (digest.activity, digest.waiting_on) == (activity, on)


def test_acting_again_takes_back_what_was_claimed() -> None:
    trajectory = folded(asked("Go"), said("All done."), read("a"))
    assert not trajectory.claims_done
    assert trajectory.digest().claim == ""


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("I have fixed the crash.", True),
        ("All 12 tests pass.", True),
        ("Everything is in place and ready for review.", True),
        ("I was unable to finish; it is not fixed.", False),
        ("Two tests are still failing, although the parser works now.", False),
        ("Here is how it works.", False),
    ],
)
def test_a_claim_of_done_is_told_from_other_last_words(text: str, *, done: bool) -> None:
    assert folded(asked("Go"), said(text)).digest().claims_done is done


@pytest.mark.parametrize(
    ("story", "phase"),
    [
        ([], Phase.STARTING),
        ([read("a"), search("b", "c")], Phase.EXPLORING),
        ([write("a", "1"), write("b", "1")], Phase.IMPLEMENTING),
        ([write("a", "1"), failing(), write("a", "2")], Phase.DEBUGGING),
        ([passing(), passing()], Phase.TESTING),
        ([write("a", "1"), said("Done.")], Phase.FINISHING),
        ([read("a"), said("Which?")], Phase.WAITING),
    ],
)
def test_the_phase_follows_from_the_latest_steps(
    story: list[TranscriptEvent], phase: Phase
) -> None:
    assert folded(asked("Go"), *story).digest().phase is phase


def test_the_focus_names_the_commonest_verbs_and_files() -> None:
    digest = folded(asked("Go"), read("src/a.py"), write("src/a.py", "1"), read("b.py")).digest()
    assert digest.focus == "cat, write: src/a.py, b.py"


def test_tests_and_edits_are_dated() -> None:
    digest = folded(asked("Go"), passing(), write("a.py", "1"), failing()).digest()
    assert (digest.tests_run, digest.tests_passed_at, digest.last_edit_at) == (2, 0, 1)
    assert digest.written == ("a.py",)


def test_something_new_is_progress_and_the_same_again_is_not() -> None:
    once = folded(asked("Go"), read("a.py", "body"))
    again = folded(asked("Go"), read("a.py", "body"), read("a.py", "body"))
    assert once.progress_step == 0
    assert again.progress_step == 0


def test_a_failing_step_is_no_progress() -> None:
    trajectory = folded(asked("Go"), run("make", "boom", ErrorClass.EXIT_CODE))
    assert trajectory.progress_step == -1
    assert trajectory.errors_by_class == {"exit_code": 1}


@pytest.mark.parametrize(
    "piece", ["x", "a/", "a.", "Aa", "a_", "don't ", "leave x ", "?", "sleep ", "```", "edit only "]
)
def test_a_text_built_to_be_slow_costs_no_more_than_its_length(piece: str) -> None:
    def cost(times: int) -> float:
        text = piece * times
        start = time.process_time()
        folded(asked(text), run(text), write(text, text), said(text))
        return time.process_time() - start

    cost(100)
    # Linear work takes eight times as long; quadratic work takes sixty-four.
    assert cost(8_000) < 24 * max(cost(1_000), 0.002)
