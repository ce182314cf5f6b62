"""aider's chat history in the normal form."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.adapters.transcripts.laws import (
    SAMPLES,
    read_or_refuse_lines,
    read_whole,
    read_with_crashes,
    sample_of,
    steps_of,
)

from custosd.adapters.transcripts.aider import FORMAT
from custosd.core.transcript import (
    Acted,
    Asked,
    Ended,
    ErrorClass,
    Opened,
    Result,
    RunEnd,
    Said,
    Spent,
    StepKind,
    Usage,
    Waiting,
)

FILE = SAMPLES / "aider.md"
CHAT = "# aider chat started at 2025-05-01 09:00:00\n\n"
BLOCK = "a.py\n```python\n<<<<<<< SEARCH\nx = 1\n=======\nx = 2\n>>>>>>> REPLACE\n```\n"


def read(text: str) -> list[object]:
    return list(read_whole(FORMAT, (CHAT + text).encode()))


def test_the_file_is_recognised() -> None:
    assert FORMAT.matches(sample_of(FILE))


def test_blocks_tests_and_commands_are_steps() -> None:
    steps = steps_of(read_whole(FORMAT, FILE.read_bytes()))
    assert [(step.kind, step.verb, step.result, step.error) for step in steps] == [
        (StepKind.READ, "add_files", Result.OK, None),
        (StepKind.EDIT, "search_replace", Result.REJECTED, ErrorClass.EDIT_REJECTED),
        (StepKind.EDIT, "search_replace", Result.OK, None),
        (StepKind.TEST, "test", Result.ERROR, ErrorClass.TEST_FAILURE),
        (StepKind.RUN, "python", Result.UNKNOWN, None),
        (StepKind.EDIT, "search_replace", Result.UNANSWERED, None),
    ]


def test_a_block_tells_its_file_and_how_many_lines_become_how_many() -> None:
    _, refused, done, *_ = steps_of(read_whole(FORMAT, FILE.read_bytes()))
    assert refused.action.excerpt.startswith("src/calc.py: 2 lines become 1\n")
    assert "> quoted text in a block" in refused.action.excerpt
    assert (refused.edits, refused.changes_state) == ((), False)
    assert done.action.excerpt.startswith("src/calc.py: 1 lines become 2\n")
    assert [edit.path for edit in done.edits] == ["src/calc.py"]
    assert done.changes_state
    assert done.thought is not None
    assert done.thought.excerpt == "Once more:\n\nsrc/calc.py"


def test_each_chat_opens_a_session_named_by_start_and_number() -> None:
    events = read_whole(FORMAT, FILE.read_bytes())
    sessions = [(e.session, e.model) for e in events if isinstance(e, Opened)]
    assert sessions == [
        ("2025-05-01 09:00:00 #1", ""),
        ("2025-05-01 09:00:00 #1", "gpt-x"),
        ("2025-05-01 10:00:00 #2", ""),
    ]


def test_consecutive_lines_of_the_person_are_one_question() -> None:
    events = read_whole(FORMAT, FILE.read_bytes())
    asked = [event.text for event in events if isinstance(event, Asked)]
    assert asked == ["Make add right,\nplease", "thanks", "And now sub"]


def test_a_reply_without_edits_is_said_and_final_when_nothing_follows_of_itself() -> None:
    events = read_whole(FORMAT, FILE.read_bytes())
    said = [(event.text, event.final) for event in events if isinstance(event, Said)]
    assert said == [
        ("I need to see this file:\n\nsrc/calc.py", False),
        ("It is right now; the test was wrong.", True),
        ("You are welcome.", True),
    ]


def test_what_was_paid_is_read_from_old_and_new_lines() -> None:
    events = read_whole(FORMAT, FILE.read_bytes())
    assert [event.usage for event in events if isinstance(event, Spent)] == [
        Usage(3200, 1100, 0, 0.01),
        Usage(4000, 20, 500, 0.02),
        Usage(5_000_000, 1, 0, 0.0),
        Usage(1000, 2, 0, 0.0),
    ]
    old = read("> 34356 prompt tokens, 66 completion tokens, $0.172770 cost  \n")
    assert [event.usage for event in old if isinstance(event, Spent)] == [
        Usage(34356, 66, 0, 0.17277)
    ]


def test_an_applied_edit_is_told_at_once() -> None:
    """It does not wait for the line that comes after it."""
    state = FORMAT.state()
    for line in (CHAT + "#### go  \n\n" + BLOCK).split("\n"):
        assert not any(isinstance(event, Acted) for event in FORMAT.read(line, state))
    (event,) = FORMAT.read("> Applied edit to a.py  ", state)
    assert isinstance(event, Acted)


def test_when_some_blocks_fail_the_others_are_applied() -> None:
    other = BLOCK.replace("a.py", "b.py")
    events = read(
        f"{BLOCK}\n{other}\n"
        "> # 1 SEARCH/REPLACE block failed to match!  \n"
        "> ## NoExactMatch: This SEARCH block failed to exactly match lines in b.py  \n"
        "> # The other 1 SEARCH/REPLACE block were applied successfully.  \n\n"
    )
    results = [(e.step.files, e.step.result) for e in events if isinstance(e, Acted)]
    assert results == [(("a.py",), Result.OK), (("b.py",), Result.REJECTED)]


def test_the_persons_commands_are_steps_or_nothing_but_no_goal() -> None:
    events = read(
        "#### /add a.py  \n\n#### /test pytest -q  \n> 1 failed in 0.1s  \n\n"
        "#### /ask why?  \n\n#### /exit  \n\n"
    )
    assert [event.text for event in events if isinstance(event, Asked)] == ["why?"]
    (step,) = (event.step for event in events if isinstance(event, Acted))
    assert (step.kind, step.error) == (StepKind.TEST, ErrorClass.TEST_FAILURE)
    assert [event.end for event in events if isinstance(event, Ended)] == [RunEnd.FINISHED]


def test_waiting_is_told() -> None:
    events = read(
        "> Only 3 reflections allowed, stopping.  \n\n> litellm.RateLimitError: slow down  \n\n"
    )
    assert [event.on for event in events if isinstance(event, Waiting)] == ["human", "rate_limit"]


def test_the_state_is_stored_and_loaded_anywhere_even_in_a_block() -> None:
    data = FILE.read_bytes()
    whole = read_whole(FORMAT, data)
    for seed in range(30):
        assert read_with_crashes(FORMAT, data, seed) == whole


_LINES = st.lists(
    st.sampled_from(
        [
            "# aider chat started at 2025-05-01 09:00:00",
            "#### go  ",
            "#### /run ls  ",
            "> Applied edit to a.py  ",
            "> Attempt to fix test errors? yes  ",
            "> Add file to the chat? (Y)es/(N)o [Yes]: n  ",
            "> Tokens: 1.2.3k sent, 4 received.  ",
            "> The LLM did not conform to the edit format.  ",
            "> failed to exactly match lines in a.py  ",
            "> Running ls  ",
            ">",
            "```python",
            "a.py",
            "<<<<<<< SEARCH",
            "=======",
            ">>>>>>> REPLACE",
            "",
            "words",
        ]
    )
    | st.text(max_size=30),
    max_size=40,
)


@given(_LINES)
def test_any_lines_are_read(lines: list[str]) -> None:
    read_or_refuse_lines(FORMAT, lines)


def test_the_state_is_bounded() -> None:
    state = FORMAT.state()
    FORMAT.read("# aider chat started at 2025-05-01 09:00:00", state)
    for line in ("> " + "x" * 5_000 + "  ", "y" * 5_000, "#### " + "z" * 5_000):
        for _ in range(500):
            FORMAT.read(line, state)
        held = state.output.chars + state.reply.chars + state.asked.chars
        assert held < 400_000
    for _ in range(500):
        for line in BLOCK.split("\n"):
            FORMAT.read(line, state)
    assert len(state.blocks) <= 200


@pytest.mark.transcripts
def test_real_histories_have_as_many_of_each_as_a_plain_count_finds(transcripts_dir: Path) -> None:
    for path in (transcripts_dir / "aider").iterdir():
        lines = path.read_text(encoding="utf-8").split("\n")
        events = read_whole(FORMAT, path.read_bytes())
        steps = steps_of(events)
        assert FORMAT.matches(sample_of(path))
        blocks = sum(line.startswith("<<<<<<< SEARCH") for line in lines)
        assert sum(step.kind is StepKind.EDIT for step in steps) == blocks
        attempts = sum(line.startswith("> Attempt to fix") for line in lines)
        assert sum(step.tool.startswith("auto-") for step in steps) == attempts
        chats = sum(line.startswith("# aider chat started at") for line in lines)
        assert len({e.session for e in events if isinstance(e, Opened)}) == chats
        persons = [line.startswith("#### ") for line in lines]
        questions = sum(now and not before for before, now in pairwise(persons))
        assert sum(isinstance(event, Asked) for event in events) == questions
        paid = sum(" prompt tokens, " in line and line.startswith("> ") for line in lines)
        assert sum(isinstance(event, Spent) for event in events) == paid


@pytest.mark.transcripts
def test_real_histories_are_read_the_same_over_crashes(transcripts_dir: Path) -> None:
    path = transcripts_dir / "aider" / "matplotlib__matplotlib-25498.md"
    data = path.read_bytes()
    assert read_with_crashes(FORMAT, data, 5) == read_whole(FORMAT, data)
