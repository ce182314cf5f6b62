"""A shell line is read for what it does: kind, verb, files, edits, change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custosd.core.commands import MAX_FILES, read_command
from custosd.core.shell import MAX_COMMANDS, simple_commands
from custosd.core.transcript import StepKind, digest_of

READ, SEARCH, EDIT = StepKind.READ, StepKind.SEARCH, StepKind.EDIT
RUN, TEST, OTHER = StepKind.RUN, StepKind.TEST, StepKind.OTHER


@pytest.mark.parametrize(
    ("line", "kind", "verb"),
    [
        ("cat a.py | head -20", READ, "cat"),
        ("sed -n '1,20p' a/b.py", READ, "sed"),
        ("git -C /r diff --stat", READ, "git diff"),
        ("git log --oneline -5 -- a.py", READ, "git log"),
        ("ls -la && cat setup.cfg", SEARCH, "ls"),
        ("grep -rn 'a b' src | wc -l", SEARCH, "grep"),
        ("find . -name '*.py' | xargs grep -l foo", SEARCH, "find"),
        ("git grep foo", SEARCH, "git grep"),
        ("sed -i 's/x/y/' a.py", EDIT, "sed"),
        ("echo hi > a.txt", EDIT, "echo"),
        ("echo hi | sudo tee /etc/motd", EDIT, "tee"),
        ("git apply fix.patch", EDIT, "git apply"),
        ("python -c \"open('z','w').write('x')\"", EDIT, "python"),
        ("rm -rf build && python setup.py build", RUN, "setup.py build"),
        ("python repro.py > out.txt 2>&1", RUN, "python"),
        ("make -j4 && make install", RUN, "make"),
        ("cargo build --release", RUN, "cargo build"),
        ("ruff check . && mypy src", RUN, "ruff"),
        ("git commit -m \"$(cat <<'EOF'\nDon't (\nEOF\n)\"", RUN, "git commit"),
        ("pip install -e .[dev]", RUN, "pip install"),
        ("cd x && export A=1", OTHER, "cd"),
        ("curl -s https://example.org/a", StepKind.BROWSE, "curl"),
        ("", OTHER, ""),
    ],
)
def test_the_weightiest_part_gives_kind_and_verb(line: str, kind: StepKind, verb: str) -> None:
    reading = read_command(line)
    assert (reading.kind, reading.verb) == (kind, verb)


@pytest.mark.parametrize(
    "line",
    [
        "pytest -q tests/test_a.py::test_b 2>&1 | tail -5",
        "python -m pytest",
        "FOO=1 uv run --with x pytest -k a",
        "python -m unittest discover",
        "tox -e py311",
        "nox -s tests",
        "npx jest --ci",
        "pnpm exec vitest run",
        "npm test",
        "npm run test:unit -- a",
        "pnpm test",
        "yarn test",
        "bun test",
        "go test ./...",
        "cargo test -p core",
        "cargo nextest run",
        "mvn -q test",
        "./gradlew :app:testDebug",
        "make check",
        "make -C build test",
        "ctest --output-on-failure",
        "bundle exec rspec spec/a_spec.rb",
        "vendor/bin/phpunit tests",
        "dotnet test",
        "python manage.py test app.tests",
        "./tests/runtests.py admin",
        "python tests/runtests.py --parallel 1",
        "bin/test sympy/core",
        "sudo timeout -k 5 30 make test",
        "bash -lc 'cd r && pytest -x'",
        "conda run -n env pytest",
        "git stash && pytest; git stash pop",
        "if true; then pytest; fi",
    ],
)
def test_running_tests_is_a_test_however_it_is_wrapped(line: str) -> None:
    assert read_command(line).kind is TEST


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("head -n 20 a/b.py", ("a/b.py",)),
        ("grep -n foo a.py b.py", ("a.py", "b.py")),
        ("grep -e foo -A 3 a.py", ("a.py",)),
        ("pytest tests/test_a.py::test_b", ("tests/test_a.py",)),
        ("python repro.py --n 3", ("repro.py",)),
        ("cat 'a file.py'", ()),  # a name with blanks is not told from a text
        ("find src lib -name x", ("src", "lib")),
        ("cp a.py b.py", ("a.py", "b.py")),
    ],
)
def test_the_files_are_those_that_the_line_names(line: str, files: tuple[str, ...]) -> None:
    assert read_command(line).files == files


def test_a_here_document_is_an_edit_with_lines_and_content() -> None:
    reading = read_command("cat > f.py <<'EOF'\nimport x\nprint('it')\nEOF\npython f.py")
    assert reading.kind is EDIT
    assert reading.files == ("f.py",)
    (edit,) = reading.edits
    assert (edit.path, edit.first_line, edit.last_line, edit.created) == ("f.py", 1, 2, True)
    assert edit.digest == digest_of("import x\nprint('it')\n")


def test_numbered_sed_tells_the_lines() -> None:
    (edit,) = read_command("sed -i '10,20s/x/y/' a.py").edits
    assert (edit.path, edit.first_line, edit.last_line) == ("a.py", 10, 20)


def test_a_patch_names_its_files() -> None:
    reading = read_command(
        "apply_patch <<'EOF'\n*** Begin Patch\n*** Update File: a.py\n*** Add File: b.py\nEOF"
    )
    assert [(edit.path, edit.created) for edit in reading.edits] == [
        ("a.py", False),
        ("b.py", True),
    ]


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        ("cat a.py", False),
        ("pytest", False),
        ("python repro.py > out.txt", False),
        ("ls > /dev/null", False),
        ("sed -i s/a/b/ x.py", True),
        ("rm x.py; pytest", True),
        ("mkdir -p a/b", True),
        ("git checkout -- a.py", True),
        ("git stash list", False),
        ("git branch", False),
        ("npm ci", True),
        ("docker ps", False),
        ("docker rm x", True),
        ("curl -X POST http://x/y", True),
        ("echo a >> b.txt", True),
        ("bash -c 'echo a > b.txt'", True),
    ],
)
def test_change_is_what_the_line_itself_says(line: str, changes: bool) -> None:  # noqa: FBT001
    assert read_command(line).changes_state is changes


@pytest.mark.parametrize(
    "line",
    [
        "it's broken",
        "((((",
        "a | | b",
        'echo "$(',
        "cat <<EOF",
        "> x",
        "$" * 100,
        '"$(' * 5_000,
        "<<a " * 1_000,
        "bash -c " * 50,
    ],
)
def test_what_cannot_be_parsed_is_read_roughly(line: str) -> None:
    read_command(line)


_SHELLISH = st.text(
    alphabet=st.sampled_from(list("ab ./-\n'\"\\$()`|;&<>#{}=0EOF")) | st.characters(), max_size=300
)


@given(_SHELLISH)
def test_any_text_has_a_bounded_reading(line: str) -> None:
    reading = read_command(line)
    assert len(reading.files) <= MAX_FILES
    assert len(reading.edits) <= MAX_FILES
    assert len(simple_commands(line)) <= MAX_COMMANDS


@given(st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), min_size=1, max_size=8))
def test_plain_words_come_back_as_they_are(words: list[str]) -> None:
    quoted = " ".join(f"'{word}'" for word in words)
    (command,) = simple_commands(quoted)
    assert command.words == tuple(words)
