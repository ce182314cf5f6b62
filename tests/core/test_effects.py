"""The normal form of texts, and what kind of failure an answer shows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custosd.core.effects import bounded, error_class, loosen, outcome, text_of
from custosd.core.transcript import EXCERPT_CHARS, ErrorClass, Result, StepKind, digest_of

TRACE = 'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\n    x()\n'


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("took 0.12s", "took 3.4 s"),
        ("took 12ms", "took 9 ms"),
        ("at 0x7ffab3", "at 0x11"),
        ("pid 4021 port :8080", "pid 7 port :51234"),
        ("commit deadbeef12", "commit 0a1b2c3d4e"),
        ("id 550e8400-e29b-41d4-a716-446655440000", "id 0b0e8400-e29b-41d4-a716-446655440fff"),
        ("in /tmp/tmpab3x9z_q/f", "in /tmp/tmpzz81k_pp/f"),
        ("/tmp/run123/log", "/tmp/run9/log"),
        ("12:03:04 1,234.5", "1:2:3 7"),
        ("a \t b\n\nc", "a b c"),
        ("\x1b[31mred\x1b[0m", "red"),
    ],
)
def test_what_differs_only_in_numbers_and_such_is_made_equal(one: str, other: str) -> None:
    assert loosen(one) == loosen(other)
    assert text_of(one).loose_digest == text_of(other).loose_digest


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("failed", "passed"),
        ("no tests ran", "3 tests ran"),
        ("defaced", "feedback"),
        ("1 2 3", "1 2"),
        ("/tmp/repro.py", "/tmp/other.py"),
    ],
)
def test_what_differs_in_words_stays_apart(one: str, other: str) -> None:
    assert loosen(one) != loosen(other)


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 400))
def test_long_texts_are_equal_when_only_their_numbers_differ(a: int, b: int, rows: int) -> None:
    """Whatever the number of rows: there is no length at which equal texts fall apart."""
    one, other = (
        "".join(f"row {n} took {n / 7:.2f} s\n" for _ in range(rows)) + "end" for n in (a, b)
    )
    assert text_of(one).loose_digest == text_of(other).loose_digest
    assert text_of(one).loose_digest != text_of(one + " failed").loose_digest


@given(st.text())
def test_loosening_twice_is_loosening_once(text: str) -> None:
    once = loosen(text)
    assert loosen(once) == once


@given(st.text(max_size=6_000))
def test_a_text_is_bounded_and_its_digest_is_of_the_whole(whole: str) -> None:
    text = text_of(whole)
    assert len(text.excerpt) <= EXCERPT_CHARS + 1
    assert text.length == len(whole)
    assert text.digest == digest_of(whole)
    assert text.excerpt == bounded(whole)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("== 1 failed, 3 passed in 0.1s ==", ErrorClass.TEST_FAILURE),
        ("x\n\nFAILED (failures=2, errors=1)\nDestroying test database", ErrorClass.TEST_FAILURE),
        ("--- FAIL: TestA (0.00s)\nFAIL", ErrorClass.TEST_FAILURE),
        ("test result: FAILED. 1 passed; 1 failed;", ErrorClass.TEST_FAILURE),
        ("Tests:       1 failed, 3 passed, 4 total", ErrorClass.TEST_FAILURE),
        ("  3 passing\n  1 failing", ErrorClass.TEST_FAILURE),
        ("90% tests passed, 1 tests failed out of 10", ErrorClass.TEST_FAILURE),
        ("10 examples, 2 failures", ErrorClass.TEST_FAILURE),
        ("[ERROR] Tests run: 3, Failures: 1, Errors: 0", ErrorClass.TEST_FAILURE),
        ("  py39: FAIL code 1 (0.5 seconds)", ErrorClass.TEST_FAILURE),
        ("\x1b[31m=== \x1b[1m1 failed\x1b[0m in 0.18s ===\x1b[0m", ErrorClass.TEST_FAILURE),
        (f"{TRACE}KeyError: 'a'", ErrorClass.EXCEPTION),
        (f"{TRACE}django.core.exceptions.ImproperlyConfigured: no\r\n", ErrorClass.EXCEPTION),
        (f"{TRACE}ModuleNotFoundError: No module named 'x'", ErrorClass.MISSING_MODULE),
        (f"{TRACE}FileNotFoundError: [Errno 2] No such file", ErrorClass.MISSING_FILE),
        ('  File "a.py", line 3\n    x = (\n        ^\nSyntaxError: bad', ErrorClass.SYNTAX),
        ("bash: ponyc: command not found", ErrorClass.MISSING_COMMAND),
        ("/bin/sh: 1: foo: not found", ErrorClass.MISSING_COMMAND),
        ("cat: a.txt: No such file or directory", ErrorClass.MISSING_FILE),
        ("bash: /etc/shadow: Permission denied", ErrorClass.PERMISSION),
        ("curl: (6) Could not resolve host: x", ErrorClass.NETWORK),
        ("error TS2304: Cannot find name 'x'.", ErrorClass.SYNTAX),
        ("a.c:3:4: error: expected ';'", ErrorClass.SYNTAX),
        ("panic: runtime error: index out of range", ErrorClass.EXCEPTION),
        ("Command 'make' timed out after 30 seconds", ErrorClass.TIMEOUT),
        ("write: No space left on device", ErrorClass.DISK_FULL),
        ("error: unexpected argument '--x' found", ErrorClass.SYNTAX),
        ("usage: a.py [-h]\na.py: error: unrecognized arguments: -z", ErrorClass.TOOL_MISUSE),
        ("Error: it did not work", ErrorClass.OTHER),
        ("all is well", None),
        ("OK\n3 passed in 0.1s", None),
        ("no errors found, 0 failed", None),
        ("", None),
    ],
)
def test_the_kind_of_failure_is_read_from_the_end(text: str, expected: ErrorClass | None) -> None:
    assert error_class(text) is expected


def test_a_traceback_far_from_the_end_of_a_good_run_is_no_failure() -> None:
    text = f"{TRACE}KeyError: 'a'\n" + "and it went on\n" * 30
    assert error_class(text, 0) is None
    assert error_class(text, 1) is ErrorClass.EXCEPTION


def test_a_file_that_speaks_of_errors_is_no_failure_when_it_is_read() -> None:
    source = f"def f():\n    raise ValueError('Error: failed')\n# {TRACE}KeyError: 1\n" * 40
    assert error_class(source, None, StepKind.READ) is None
    assert error_class(source, 0, StepKind.READ) is None
    assert error_class("cat: x: No such file or directory", 1, StepKind.READ) is (
        ErrorClass.MISSING_FILE
    )


def test_a_search_without_a_match_is_no_failure() -> None:
    assert error_class("", 1, StepKind.SEARCH) is None
    assert error_class("", 2, StepKind.SEARCH) is ErrorClass.EXIT_CODE


def test_a_pipe_hides_the_exit_code_but_not_the_summary() -> None:
    failing = "= 2 failed, 1 passed in 3.1s ="
    assert outcome(failing, 0, StepKind.TEST) == (Result.OK, ErrorClass.TEST_FAILURE)
    assert outcome(failing, 1, StepKind.TEST) == (Result.ERROR, ErrorClass.TEST_FAILURE)


@pytest.mark.parametrize(
    ("text", "exit_code", "failed", "expected"),
    [
        ("fine", None, None, (Result.UNKNOWN, None)),
        ("fine", 0, None, (Result.OK, None)),
        ("", 3, None, (Result.ERROR, ErrorClass.EXIT_CODE)),
        ("", 127, None, (Result.ERROR, ErrorClass.MISSING_COMMAND)),
        ("", 124, None, (Result.ERROR, ErrorClass.TIMEOUT)),
        ("", 137, None, (Result.ERROR, ErrorClass.OUT_OF_MEMORY)),
        ("fine", 1, False, (Result.OK, ErrorClass.EXIT_CODE)),
        ("fine", None, True, (Result.ERROR, ErrorClass.OTHER)),
        ("bash: x: command not found", None, None, (Result.ERROR, ErrorClass.MISSING_COMMAND)),
    ],
)
def test_flag_then_exit_code_then_text_decide(
    text: str,
    exit_code: int | None,
    failed: bool | None,  # noqa: FBT001 - a case of the table
    expected: tuple[Result, ErrorClass | None],
) -> None:
    assert outcome(text, exit_code, StepKind.RUN, failed=failed) == expected


def test_the_cheap_look_misses_no_complaint() -> None:
    """Each complaint's own words must pass the look that comes before the dear one."""
    spoken = {
        "String to replace not found",
        "No replacement was performed",
        "did not appear verbatim",
        "File has not been read yet",
        "File has been modified since",
        "Hunk #1 FAILED",
        "patch does not apply",
        "Your proposed edit has introduced new syntax error",
        "old_string and new_string are identical",
        "env: x: No such file",
        "no required module provides package x",
        "ENOENT: no such file",
        "No space left on device",
        "ENOSPC",
        "Disk quota exceeded",
        "Killed",
        "Out of memory",
        "OOMKilled",
        "Cannot allocate memory",
        "std::bad_alloc",
        "EACCES",
        "x: Operation not permitted",
        "sudo: a password is required",
        "Read-only file system",
        "429 Too Many Requests",
        "Rate limit reached",
        "rate_limit_error",
        "Usage limit reached",
        "401 Unauthorized",
        "Authentication required",
        "Invalid API key",
        "403 Forbidden",
        "could not read Username for",
        "Could not resolve proxy",
        "Connection reset by peer",
        "Network is unreachable",
        "Temporary failure in name resolution",
        "ECONNREFUSED",
        "ENOTFOUND",
        "ETIMEDOUT",
        "Failed to connect to x",
        "No route to host",
        "SSL certificate problem",
        "EXECUTION TIMED OUT",
        "timeout: sending signal",
        "bash has not returned in 120.0 seconds",
        "x: syntax error y",
        "unexpected EOF while looking for matching",
        "panic: x",
        "thread 'main' panicked at x",
        "Segmentation fault",
        "Aborted (core dumped)",
        "Unhandled",
        "unrecognized argument:",
        "illegal option",
        "missing 1 required",
        "usage: x",
        "Unknown tool",
    }
    assert {words for words in spoken if error_class(words, None) is None} == set()


@given(st.text(max_size=9_000), st.none() | st.integers(-300, 300), st.sampled_from(StepKind))
def test_any_text_is_judged(text: str, exit_code: int | None, kind: StepKind) -> None:
    result, error = outcome(text, exit_code, kind)
    assert (result is Result.ERROR) <= (error is not None)


@pytest.mark.parametrize("piece", ["\n", "= ", " ", "a: ", "\t\n", "E   ", "Error: ", "\r\n"])
def test_hostile_repetition_takes_no_long_time(piece: str) -> None:
    """Four thousand characters of anything are judged within the test's own time limit."""
    for _ in range(20):
        error_class((piece + " failed rror FAIL Traceback (most recent call last)") * 500, 1)
        error_class(piece * 4_000 + " failed", 1)
