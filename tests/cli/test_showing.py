"""What people are shown: harmless, bounded, and as wide as there is room."""

from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from custosd.cli.showing import age, agent_table, printable, shortened
from custosd.core.agents import AgentId, AgentRef, RunId
from custosd.core.verdicts import JudgedBy, Judgement, Standing, Verdict
from custosd.core.view import AgentView

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@given(st.text(), st.integers(2, 300))
def test_printable_text_has_no_control_character_and_an_end(text: str, limit: int) -> None:
    plain = printable(text, limit).plain
    assert len(plain) <= limit
    assert plain.isprintable()


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("wrote /home/ada/app/src/main.py twice", "wrote main.py twice"),
        ("(src/a.py, ../b/c.py)", "(src/a.py, c.py)"),
        ("~/x/y.md; ./z/w.css", "y.md; w.css"),
        ("/usr/bin/python -m unittest", "python -m unittest"),
        ("see https://example.org/a/b and 3/4", "see https://example.org/a/b and 3/4"),
        ("and/or", "and/or"),
    ],
)
def test_paths_are_cut_down_to_names_of_files(text: str, short: str) -> None:
    assert shortened(text) == short


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (172_800, "2 d")]
)
def test_age_is_told_in_the_largest_unit(seconds: int, said: str) -> None:
    assert age(NOW - timedelta(seconds=seconds), NOW) == said
    assert age(None, NOW) == "never"


def view(name: str, summary: str, standing: Standing = Standing.STUCK) -> AgentView:
    ref = AgentRef(AgentId(name), RunId("r"))
    verdict = Verdict("v", ref, NOW, 3, Judgement(standing, summary=summary), (), JudgedBy("rules"))
    return AgentView(
        ref, "custosd", "/x", "", NOW, grown_utc=NOW, standing=standing, verdict=verdict
    )


def lines(views: list[AgentView], width: int) -> list[str]:
    console = Console(width=width, file=StringIO(), color_system=None)
    console.print(agent_table(views, NOW, width))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


texts = st.text(max_size=500) | st.text("/ab [](,", max_size=500)


@given(st.lists(st.tuples(texts, texts), max_size=5), st.sampled_from([80, 120, 200]))
def test_a_table_fits_its_width_and_no_row_floods_it(
    agents: list[tuple[str, str]], width: int
) -> None:
    shown = lines([view(name, summary) for name, summary in agents], width)
    # In cells of a terminal: a combining mark takes none.
    assert all(cell_len(line) <= width for line in shown)
    assert len(shown) <= 1 + 5 * len(agents)


def test_a_usual_reason_takes_one_line_where_there_is_room() -> None:
    reason = (
        "Had the same result 6 times with nothing changed between (grep totals.py),"
        " at steps 6, 8, 10, 12, 14, 16."
    )
    assert len(lines([view("codex:looping", reason)], 200)) == 2
    narrow = lines([view("codex:looping", reason)], 80)
    assert len(narrow) <= 4
    assert "grep totals.py" in " ".join(line[45:].strip() for line in narrow)


def test_who_was_not_judged_yet_is_said_to_be_so() -> None:
    ref = AgentRef(AgentId("custosd:new"), RunId("r"))
    assert "not judged yet" in lines([AgentView(ref, "custosd", "/x", "", NOW)], 80)[1]
