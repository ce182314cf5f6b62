"""What an action and its answer come down to: normal forms that repeats are counted on.

Pure text work, shared by all transcript adapters, so that the same failure looks the
same whoever reports it. Both `text_of` and `error_class` run on every observation of
every agent: a few passes at C speed, and bounded looks at head and tail.
"""

import hashlib
import re
from collections.abc import Iterator

from custosd.core.transcript import EXCERPT_CHARS, ErrorClass, Result, StepKind, Text

# --- Normal form ------------------------------------------------------------------------

_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_HEX = bytes.maketrans(b"0123456789abcdefABCDEF", b"h" * 22)
_SEVEN_HEX = b"h" * 7
_HASH = re.compile(rb"\b(?=[a-fA-F]*+[0-9])[0-9a-fA-F]{7,}+(?:-[0-9a-fA-F]{4,12})*+\b")
_ADDRESS = re.compile(rb"0[xX][0-9a-fA-F]+")
_ANSI = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
_TEMPORARY = re.compile(
    rb"\b(?:tmp[._-]?(?=[a-z_]*+[A-Z0-9_])|(?<=/)tmp)[A-Za-z0-9_]{6,10}\b|(?<=/tmp/)[\w.-]*\d[\w.-]*"
)
_JOINTS = ((b"0.0", b"0"), (b"0,0", b"0"), (b"0:0", b"0"))
_UNITS = ((b"0 ms", b"0s"), (b"0 s", b"0s"), (b"0ms", b"0s"), (b"0us", b"0s"), (b"0m0s", b"0s"))


def loosen(text: str) -> str:
    """Make equal what differs only in numbers, hashes, addresses, times and blanks.

    Also temporary paths, uuids, process ids, ports and durations. Every number is "0".
    """
    return _loosened(_raw(text)).decode("utf-8", "surrogatepass")


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _loosened(raw: bytes) -> bytes:
    if b"\x1b" in raw:
        raw = _ANSI.sub(b"", raw)
    if b"0x" in raw or b"0X" in raw:
        raw = _ADDRESS.sub(b"0", raw)
    if b"tmp" in raw:
        raw = _TEMPORARY.sub(b"0", raw)
    if _SEVEN_HEX in raw.translate(_HEX):  # the search by pattern is the dear part
        raw = _HASH.sub(b"0", raw)
    raw = _collapsed(raw.translate(_DIGITS))
    for joint, number in _JOINTS:
        while joint in raw:
            raw = _collapsed(raw.replace(joint, number))
    for written, unit in _UNITS:
        raw = raw.replace(written, unit)
    return b" ".join(raw.split())


LOOSENED_BYTES = 400
"""Texts that come to more when condensed are compared as such, which costs a fifth.

The measure is the condensed length, which is the same for texts that are to be equal.
"""

_CONDENSING = b"0123456789.,: \t\r\n\v\f"
_HEX_RUN = re.compile(rb"hhhhhhh+(?:-hhhh+)*+")
_TEMPORARY_NAME = re.compile(  # begins with its word, so that the search is for a word
    rb"tmp(?:(?<=\btmp)[._-]?(?=[a-z_]*+[A-Z0-9_])[A-Za-z0-9_]{6,10}\b"
    rb"|(?<=/tmp)(?:[A-Za-z0-9_]{6,10}\b|/[\w.-]*\d[\w.-]*))"
)


def _condensed(raw: bytes) -> bytes:
    """What `_loosened` makes equal, without keeping it readable.

    Numbers and blanks are left out instead of put in order. That tells a number from
    none no longer, and milliseconds from seconds still: in a long text little hangs on it.
    """
    if b"\x1b" in raw:
        raw = _ANSI.sub(b"", raw)
    if b"tmp" in raw:
        raw = _TEMPORARY_NAME.sub(b"", raw)
    marked = raw.translate(_HEX)
    if _SEVEN_HEX in marked:  # an address or a hash
        raw = _without(raw, _HEX_RUN.finditer(marked))
    return raw.translate(None, _CONDENSING)


def _without(raw: bytes, places: Iterator[re.Match[bytes]]) -> bytes:
    parts: list[bytes] = []
    at = 0
    for place in places:
        begin, end = place.span()
        parts.append(raw[at:begin])
        at = end
    parts.append(raw[at:])
    return b"".join(parts)


def _collapsed(raw: bytes) -> bytes:
    """Every run of zeros as one zero."""
    if b"0000" in raw:
        raw = raw.replace(b"0000", b"0")
    while b"00" in raw:
        raw = raw.replace(b"00", b"0")
    return raw


def bounded(text: str, limit: int = EXCERPT_CHARS) -> str:
    """Head and tail of a text, at most `limit` + 1 characters, a `…` for the cut."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return text[:half] + "…" + text[-half:]


def text_of(whole: str) -> Text:
    """The bounded form of a text; see `Text` for what is kept of it."""
    raw = _raw(whole)
    loose = _condensed(raw)
    if len(loose) <= LOOSENED_BYTES:
        loose = _loosened(raw)
    return Text(bounded(whole), len(whole), _digest(raw), _digest(loose))


def _digest(raw: bytes) -> str:
    return hashlib.blake2b(raw, digest_size=8).hexdigest()


# --- Failures ---------------------------------------------------------------------------

LOOKED_AT_CHARS = 4_000
"""How much of an observation's head, and of its tail, a failure is looked for in."""

_LAST_ROWS = 12
"""A traceback with exit code 0 (or none) counts when it ends this near to the end."""

_SHORT_CHARS = 1_500
"""An answer to reading or editing longer than this is content, not a complaint."""

_BY_EXIT_CODE = {
    124: ErrorClass.TIMEOUT,
    126: ErrorClass.PERMISSION,
    127: ErrorClass.MISSING_COMMAND,
    137: ErrorClass.OUT_OF_MEMORY,
}
_TOOLS = frozenset((StepKind.READ, StepKind.SEARCH, StepKind.BROWSE, StepKind.PLAN, StepKind.ASK))

_TESTS_FAILED = re.compile(
    r"""^(?:
        =+\ .*?\b[1-9]\d*\ (?:failed|errors?)\b.*?(?:=+|in\ [\d.]+s.*)$          # pytest
      | [1-9]\d*\ (?:failed|errors?)\b(?:,\ \d|.*\bin\ [\d.])                      # pytest -q
      | FAILED\ \((?:failures|errors|unexpected)                                 # unittest
      | FAILED\ \S+::\S                                                          # pytest -rf
      | ---\ FAIL:|FAIL\t\S|FAIL$                                                # go
      | test\ result:\ FAILED                                                    # cargo
      | [\ \t]*+(?:Tests|Test\ Suites|Test\ Files):?\s+.*?\b[1-9]\d*\ failed          # jest, vitest
      | [\ \t]++[1-9]\d*\ failing$                                                  # mocha
      | \#\ fail\ [1-9]                                                          # node --test
      | \d+%\ tests\ passed,\ [1-9]\d*\ tests?\ failed                           # ctest
      | \d+\ examples?,\ [1-9]\d*\ failures?                                     # rspec
      | FAILURES!$|ERRORS!$                                                      # phpunit
      | .*Tests\ run:\ \d+,\ (?:Failures:\ [1-9]|Failures:\ 0,\ Errors:\ [1-9])  # maven
      | .*There\ were\ failing\ tests                                            # gradle
      | Failed!\s+-\ Failed:                                                     # dotnet
      | =+\ tests\ finished:.*\b[1-9]\d*\ (?:failed|exceptions)                  # sympy
      | [\ \t]++[\w.-]++:\ FAIL\ (?:code|✖)                                            # tox
      | FAILED:?\ (?:tests?\b|\d+\ tests?)
    )""",
    re.MULTILINE | re.VERBOSE,
)
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LAST_WORDS = re.compile(r"(?:[\w./-]{1,40}: )?(?:[Ee]rror|ERROR|fatal): ")
_FAILURE_WORDS = ("failed", "FAIL", "failing", "ailures", "# fail", "ERRORS!", " error")
_COLLECTION_FAILED = re.compile(r"^(?:E\s+)?(\w+Error)\b", re.MULTILINE)
_RAISED = re.compile(
    r"^(?:E   )?(?:[A-Za-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|Interrupt|Exit))(?::|$)",
    re.MULTILINE,
)
_ENDS_TRACEBACK = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?([A-Za-z_]\w*)(?::.*)?$", re.MULTILINE)
_BY_EXCEPTION = {
    "SyntaxError": ErrorClass.SYNTAX,
    "IndentationError": ErrorClass.SYNTAX,
    "TabError": ErrorClass.SYNTAX,
    "ModuleNotFoundError": ErrorClass.MISSING_MODULE,
    "ImportError": ErrorClass.MISSING_MODULE,
    "FileNotFoundError": ErrorClass.MISSING_FILE,
    "NotADirectoryError": ErrorClass.MISSING_FILE,
    "PermissionError": ErrorClass.PERMISSION,
    "TimeoutError": ErrorClass.TIMEOUT,
    "TimeoutExpired": ErrorClass.TIMEOUT,
    "ReadTimeout": ErrorClass.TIMEOUT,
    "ConnectionError": ErrorClass.NETWORK,
    "ConnectionRefusedError": ErrorClass.NETWORK,
    "ConnectionResetError": ErrorClass.NETWORK,
    "ConnectError": ErrorClass.NETWORK,
    "RateLimitError": ErrorClass.RATE_LIMIT,
    "AuthenticationError": ErrorClass.AUTH,
    "MemoryError": ErrorClass.OUT_OF_MEMORY,
}

_COMPLAINT_WORDS: dict[ErrorClass, tuple[str, ...]] = {
    ErrorClass.EDIT_REJECTED: (
        r"String to replace not found",
        r"^No replacement was (?:performed|made)",
        r"did not appear verbatim",
        r"Your proposed edit has introduced new syntax error",
        r"File has not been read yet",
        r"File has been (?:unexpectedly )?modified since",
        r"failed to match[!.]",
        r"^Hunk #\d+ FAILED",
        r"patch does not apply",
        r"apply_patch verification failed",
        r"^Found \d+ matches of the string",
        r"Multiple occurrences of old_str",
        r"0 occurrences found for old_string",
        r"old_string and new_string are (?:exactly the same|identical)",
        r"^Failed to edit",
    ),
    ErrorClass.MISSING_COMMAND: (
        r"^[^\n:]{1,120}: (?:line \d+: |\d+: )?[^\s:]+: (?:command )?not found$",
        r"^(?:zsh|fish): (?:command not found|[Uu]nknown command)",
        r"^[^\s:]+: command not found$",
        r"is not recognized as an internal or external command",
        r"^env: .*No such file",
    ),
    ErrorClass.MISSING_MODULE: (
        r"^(?:\w+: )?(?:Error: )?Cannot find module ",
        r"^.*: No module named ",
        r"^error\[E043[23]\]",
        r"cannot find package ",
        r"no required module provides package ",
        r"error: cannot find symbol",
    ),
    ErrorClass.MISSING_FILE: (
        r"^[^\n]{0,300}: No such file or directory\.?$",
        r"\(No such file or directory\)$",
        r"can't open file ",
        r"\[Errno 2\] No such file",
        r"ENOENT: no such file",
        r"^(?:Error: )?(?:The )?[Ff]ile (?:\S{1,300} )?(?:does not exist|not found)",
        r"^fatal error: .* file not found",
        r"^(?:Error: )?The path \S{1,300} does not exist",
        r"^ERROR: file or directory not found",
    ),
    ErrorClass.DISK_FULL: (r"No space left on device", r"ENOSPC", r"Disk quota exceeded"),
    ErrorClass.OUT_OF_MEMORY: (
        r"^(?:/[^\n]{1,200}: line \d+: +\d+ )?Killed(?: |$)",
        r"[Oo]ut of memory",
        r"OOMKilled",
        r"JavaScript heap out of memory",
        r"Cannot allocate memory",
        r"^std::bad_alloc",
    ),
    ErrorClass.PERMISSION: (
        r"^[^\n]{0,300}: (?:Permission denied|Operation not permitted)",
        r"EACCES",
        r"^Permission to .* denied",
        r"^sudo: a password is required",
        r"Read-only file system",
    ),
    ErrorClass.RATE_LIMIT: (
        r"\b429 Too Many Requests",
        r"[Rr]ate limit (?:exceeded|reached)",
        r"rate_limit_error",
        r"[Uu]sage limit reached",
    ),
    ErrorClass.AUTH: (
        r"\b401 Unauthorized",
        r"[Aa]uthentication (?:failed|required)",
        r"[Ii]nvalid API key",
        r"\b403 Forbidden",
        r"could not read Username for",
    ),
    ErrorClass.NETWORK: (
        r"Could not resolve (?:host|proxy)",
        r"Connection (?:refused|reset by peer)",
        r"Network is unreachable",
        r"Temporary failure in name resolution",
        r"ECONNREFUSED|ENOTFOUND|ETIMEDOUT",
        r"Failed to connect to",
        r"No route to host",
        r"SSL certificate problem",
    ),
    ErrorClass.TIMEOUT: (
        r"\b(?:[Cc]ommand|[Pp]rocess|[Ee]xecution|[Rr]equest|[Oo]peration)\b[^\n]{0,60} timed out",
        r"^EXECUTION TIMED OUT",
        r"^Timeout(?:Error)?:",
        r"timeout: sending signal",
        r"\b[Tt]imed out: ",
        r"has not returned in [\d.]+ s",
    ),
    ErrorClass.SYNTAX: (
        r"^[ \t]*+\w*SyntaxError: ",
        r"^[^\s:]+:\d+:\d+: (?:fatal )?error: ",
        r"^error(?:\[E\d+\])?: ",
        r"\berror TS\d+: ",
        r"\.java:\d+: error: ",
        r": syntax error ",
        r"^\S+:\d+:\d+: syntax error",
        r"unexpected EOF while looking for matching",
        r"^Parse error: ",
    ),
    ErrorClass.EXCEPTION: (
        r"^panic: ",
        r"^thread '[^']*' panicked at ",
        r"^Exception in thread \"",
        r"^Segmentation fault",
        r"^Uncaught \w*(?:Error|Exception)",
        r"^Aborted \(core dumped\)",
        r"^\w*Error: .*\n\s+at ",
        r"^Unhandled",
    ),
    ErrorClass.TOOL_MISUSE: (
        r"unrecognized arguments?:",
        r"[Ii]nvalid option",
        r"[Uu]nknown option",
        r"illegal option",
        r"InputValidationError",
        r"missing (?:1 |\d )?required",
        r"the following arguments are required",
        r"^[Uu]sage: ",
        r"^error: unexpected argument",
        r"Invalid (?:arguments?|parameters?|tool)",
        r"^Unknown (?:tool|command)",
    ),
}
_COMPLAINTS = tuple(
    (kind, re.compile("|".join(words), re.MULTILINE)) for kind, words in _COMPLAINT_WORDS.items()
)
_STRICT = frozenset(
    (
        ErrorClass.MISSING_COMMAND,
        ErrorClass.EDIT_REJECTED,
        ErrorClass.EXCEPTION,
        ErrorClass.OUT_OF_MEMORY,
    )
)


def error_class(
    observation: str, exit_code: int | None = None, kind: StepKind | None = None
) -> ErrorClass | None:
    """The kind of failure that a command's or tool's answer shows; None if none.

    Looks at the text's first and last 4,000 characters only. With `kind` of reading,
    searching or browsing, the text is content: only a short answer that complains, or
    an exit code, is a failure (and a search that finds nothing, exit code 1, is none).
    Without an exit code, or with 0, what counts is what stands at the end: a test
    summary, a traceback, a shell's complaint.
    """
    failed = exit_code is not None and exit_code != 0
    if kind in _TOOLS:
        return _tool_failure(observation, exit_code, kind)
    tail = _plain(observation[-LOOKED_AT_CHARS:])
    if found := _test_failure(tail) or _raised(tail, anywhere=failed):
        return found
    if not failed:
        return _last_words(tail, strict=exit_code == 0 or len(observation) > _SHORT_CHARS)
    found = _complaint(tail) or _complaint(_plain(observation[:LOOKED_AT_CHARS]))
    return found or _BY_EXIT_CODE.get(exit_code or 0, ErrorClass.EXIT_CODE)


def _last_words(tail: str, *, strict: bool) -> ErrorClass | None:
    """What the last three rows complain of; `strict`: only what is no output of success."""
    rows = "\n".join(tail.rstrip().rsplit("\n", 3)[-3:])
    found = _complaint(rows)
    if strict:
        return found if found in _STRICT else None
    if found is None and _LAST_WORDS.match(rows.rsplit("\n", 1)[-1]):
        return ErrorClass.OTHER
    return found


def _plain(text: str) -> str:
    """Without colours and carriage returns, which would hide the ends of lines."""
    if "\x1b" in text:
        text = _COLOUR.sub("", text)
    return text.replace("\r\n", "\n") if "\r" in text else text


def outcome(
    observation: str,
    exit_code: int | None = None,
    kind: StepKind | None = None,
    *,
    failed: bool | None = None,
) -> tuple[Result, ErrorClass | None]:
    """How a step ended, and its kind of failure: flag, then exit code, then the text.

    `failed` is the format's own flag, None where it has none. A step that the flag or
    the exit code calls good keeps the failure that its text shows at the end (a test
    summary behind a pipe). Unknown when nothing says anything.
    """
    found = error_class(observation, exit_code, kind)
    if failed is not None:
        return (Result.ERROR, found or ErrorClass.OTHER) if failed else (Result.OK, found)
    if exit_code is not None:
        return (Result.OK if exit_code == 0 or found is None else Result.ERROR), found
    return (Result.UNKNOWN, None) if found is None else (Result.ERROR, found)


def _tool_failure(
    observation: str, exit_code: int | None, kind: StepKind | None
) -> ErrorClass | None:
    if exit_code == 0:
        return None
    short = len(observation) <= _SHORT_CHARS
    found = _complaint(_plain(observation)) if short else None
    if exit_code is None or found:
        return found
    if kind is StepKind.SEARCH and exit_code == 1:
        return None
    return _BY_EXIT_CODE.get(exit_code, ErrorClass.EXIT_CODE)


def _test_failure(tail: str) -> ErrorClass | None:
    if not any(word in tail for word in _FAILURE_WORDS):
        return None
    summary = _TESTS_FAILED.search(tail)
    if summary is None:
        return None
    if "failed" in summary[0] or "FAIL" in summary[0] or "error" not in summary[0]:
        return ErrorClass.TEST_FAILURE
    raised = _COLLECTION_FAILED.findall(tail)  # nothing ran: say what kept it from running
    return _BY_EXCEPTION.get(raised[-1], ErrorClass.TEST_FAILURE) if raised else None


def _raised(tail: str, *, anywhere: bool) -> ErrorClass | None:
    """The exception that a Python traceback ends in, when it ends the text."""
    start = tail.rfind("Traceback (most recent call last)")
    if start < 0:
        if not anywhere and "Error" not in tail[-600:]:
            return None
        start = 0 if anywhere else max(0, len(tail) - 600)
        last = _RAISED.search(tail, start)
        known = _BY_EXCEPTION.get(last[1]) if last else None
        return known if known is ErrorClass.SYNTAX or (known and anywhere) else None
    raised = _ENDS_TRACEBACK.search(tail, tail.find("\n", start) + 1 or len(tail))
    if raised is None:
        return ErrorClass.EXCEPTION if anywhere else None
    if not anywhere and tail.count("\n", raised.end()) > _LAST_ROWS:
        return None
    return _BY_EXCEPTION.get(raised[1], ErrorClass.EXCEPTION)


_NEEDS: dict[ErrorClass, tuple[str, ...]] = {
    ErrorClass.EDIT_REJECTED: (
        *("to replace not", "no replacement", "verbatim", "proposed edit", "been read yet"),
        *("modified since", "failed to match", "hunk #", "not apply", "verification failed"),
        *("matches of the string", "multiple occurrences", "0 occurrences"),
        *("old_string and new_string", "failed to edit"),
    ),
    ErrorClass.MISSING_COMMAND: ("not found", "unknown command", "not recognized", "env: "),
    ErrorClass.MISSING_MODULE: (
        *("cannot find", "no module named", "error[e043", "no required module"),
    ),
    ErrorClass.MISSING_FILE: (*("no such file", "can't open file", "not exist", "not found"),),
    ErrorClass.DISK_FULL: ("no space left", "enospc", "quota exceeded"),
    ErrorClass.OUT_OF_MEMORY: ("killed", "out of memory", "cannot allocate", "bad_alloc"),
    ErrorClass.PERMISSION: ("permi", "eacces", "password", "read-only"),
    ErrorClass.RATE_LIMIT: ("429", "rate limit", "rate_limit", "usage limit"),
    ErrorClass.AUTH: ("401", "authentication", "api key", "403", "username for"),
    ErrorClass.NETWORK: (
        *("not resolve", "connection re", "unreachable", "name resolution", "econnrefused"),
        *("enotfound", "etimedout", "failed to connect", "no route", "ssl certificate"),
    ),
    ErrorClass.TIMEOUT: ("timed out", "timeout", "not returned in"),
    ErrorClass.SYNTAX: ("error", "unexpected eof"),
    ErrorClass.EXCEPTION: (
        *("panic", "exception", "segmentation", "uncaught", "core dumped", "error: ", "unhandled"),
    ),
    ErrorClass.TOOL_MISUSE: (
        *("unrecognized", "invalid", "unknown", "illegal option", "required", "usage: "),
        *("inputvalidationerror", "unexpected argument"),
    ),
}
"""One of these (in lower case) is in every complaint of the class: a cheap look first."""


def _complaint(text: str) -> ErrorClass | None:
    lower = text.lower()
    for kind, pattern in _COMPLAINTS:
        if any(need in lower for need in _NEEDS[kind]) and pattern.search(text):
            return kind
    return None
