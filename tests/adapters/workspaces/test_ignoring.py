"""What .gitignore files leave out, held against git itself; and patterns that are an attack."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.adapters.workspaces.conftest import git
from tests.adapters.workspaces.test_local import changed_in

from custosd.adapters.workspaces.ignoring import Rules, with_patterns

NAMES = ("a", "b.o", "build/a", "build/b.o", "src/a", "src/b.o", "src/build/a", "src/deep/b.o")
PATTERNS = st.sampled_from(
    [
        *("a", "*.o", "build", "build/", "/build", "src/", "/a", "src/*", "**/b.o", "src/**"),
        *("src/**/a", "deep/", "*", "/*", "b.?", "[ab]", "# a", "", " ", "\\!a", "a ", "s*/b.o"),
    ]
)
LINES = st.lists(st.tuples(st.booleans(), PATTERNS), max_size=5).map(
    lambda lines: "".join(f"{'!' if negated else ''}{line}\n" for negated, line in lines)
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(LINES, LINES)
def test_the_same_files_are_left_out_as_by_git(top: str, inner: str) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        for path in NAMES:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text("")
        (folder / ".gitignore").write_text(top)
        (folder / "src" / ".gitignore").write_text(inner)
        git(folder, "init", "-q")
        listed = git(folder, "ls-files", "-z", "--others", "--exclude-standard")
        assert changed_in(folder) == set(listed.split("\0")) - {""}, (top, inner)


@pytest.mark.parametrize(
    "line", ["*a" * 4 + "*b", "a/**/b/**/c/**/d/**/e", "x" * 5_000, "?*" * 300]
)
def test_what_would_run_long_is_left_out_and_told(line: str) -> None:
    rules, trouble = with_patterns(Rules(), "", f"{line}\n*.o\n")
    assert trouble == "patterns_left_out"
    assert rules.ignores("x.o")


@given(st.text("a*?[]!\\/ #\n\0", max_size=60))
@settings(deadline=None)
def test_no_pattern_is_an_error_nor_takes_long(text: str) -> None:
    rules, _ = with_patterns(Rules(), "", text)
    began_at = time.perf_counter()
    rules.ignores("a/" * 60 + "a" * 200)
    rules.ignores("a" * 250)
    assert time.perf_counter() - began_at < 5
