"""What a shell command line does: its verb, its kind, the files that it touches.

Laws: total (any text has a reading) and cautious: `changes_state` speaks of what the
line itself says (writes, deletes, installs, commits); what a program does that it
starts is not known, and its output captured in a file does not count as an edit.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from custosd.core.shell import SimpleCommand, simple_commands
from custosd.core.transcript import EditRange, StepKind, digest_of

MAX_FILES = 50
"""The most files that a reading names."""

_CACHED_CHARS = 400
_MAX_DEPTH = 3


@dataclass(frozen=True, slots=True)
class CommandReading:
    """A command line, read: the kind of its weightiest part, and what it touches.

    `changes_state` says that files or the world may differ afterwards (it writes,
    installs, deletes, commits), False for reading, searching and running tests.
    """

    kind: StepKind
    verb: str
    files: tuple[str, ...] = ()
    edits: tuple[EditRange, ...] = ()
    changes_state: bool = False


def read_command(line: str) -> CommandReading:
    """Read a shell command line (one or many, joined by ; && || | or newlines).

    The weightiest part gives kind and verb (test, edit, run, search, read, in this order;
    the first of equals); files, edits and `changes_state` are those of all parts.
    """
    return _read_short(line) if len(line) <= _CACHED_CHARS else _read(line, 0)


@dataclass(frozen=True, slots=True)
class _Part:
    """What one simple command comes down to, before the parts are weighed."""

    kind: StepKind
    verb: str
    files: tuple[str, ...] = ()
    edits: tuple[EditRange, ...] = ()
    changes: bool = False
    weight: int = -1


_WEIGHTS = {
    StepKind.TEST: 60,
    StepKind.EDIT: 50,
    StepKind.RUN: 40,
    StepKind.BROWSE: 30,
    StepKind.SEARCH: 20,
    StepKind.READ: 10,
}
_WORDS_OUT = ("echo", "printf", "cat")
_HOUSEKEEPING = 35
"""Deleting, moving and making directories: more than looking, less than running."""


@lru_cache(maxsize=1024)
def _read_short(line: str) -> CommandReading:
    return _read(line, 0)


def _read(line: str, depth: int) -> CommandReading:
    parts = [_read_simple(command, depth) for command in simple_commands(line)]
    for before, part in itertools.pairwise(tuple(parts)):
        if part.verb == "tee" and before.verb in _WORDS_OUT and part.files:
            edits = tuple(EditRange(path) for path in part.files)
            parts.append(_Part(StepKind.EDIT, "tee", part.files, edits, changes=True))
    if not parts:
        return CommandReading(StepKind.OTHER, "")
    first = max(parts, key=_weight)
    files = dict.fromkeys(path for part in parts for path in part.files)
    return CommandReading(
        first.kind,
        first.verb,
        tuple(files)[:MAX_FILES],
        tuple(edit for part in parts for edit in part.edits)[:MAX_FILES],
        any(part.changes for part in parts),
    )


def _weight(part: _Part) -> int:
    return part.weight if part.weight >= 0 else _WEIGHTS.get(part.kind, 0)


# --- One simple command -----------------------------------------------------------------


def _read_simple(command: SimpleCommand, depth: int) -> _Part:
    words = _unwrapped(command.words)
    part = _read_words(words, command, depth)
    written = [(path, append) for path, append in command.writes if not _is_sink(path)]
    if not written:
        return part
    files = (*part.files, *(path for path, _ in written))
    if part.kind in (StepKind.RUN, StepKind.TEST, StepKind.SEARCH):
        return _Part(part.kind, part.verb, files, part.edits, part.changes, part.weight)
    edits = [_written(path, append, command.text) for path, append in written]
    return _Part(StepKind.EDIT, part.verb or ">", files, (*part.edits, *edits), changes=True)


def _is_sink(path: str) -> bool:
    return path.startswith("/dev/") or not path


def _written(path: str, append: bool, text: str) -> EditRange:  # noqa: FBT001 - comes in pairs
    if not text or append:
        return EditRange(path, created=not append, digest=digest_of(text) if text else "")
    last_line = text.count("\n") + (not text.endswith("\n"))
    return EditRange(path, 1, last_line, created=True, digest=digest_of(text))


def _read_words(words: list[str], command: SimpleCommand, depth: int) -> _Part:
    if not words:
        return _Part(StepKind.OTHER, "")
    verb, args = _program(words[0]), words[1:]
    if verb in _SHELLS:
        return _shell(verb, args, command, depth)
    if _PYTHON.fullmatch(verb):
        return _python(args, command)
    if reader := _READERS.get(verb):
        return reader(verb, args, command)
    if runner := _SUBCOMMANDS.get(verb):
        return runner(verb, args)
    return _read_plain(verb, words, args)


def _read_plain(verb: str, words: list[str], args: list[str]) -> _Part:
    """A program whose arguments mean nothing special here."""
    if verb in _TESTERS or _TEST_PROGRAM.search(words[0]):
        return _Part(StepKind.TEST, verb, _paths(args))
    if kind := _KINDS.get(verb):
        return _Part(kind, verb, () if kind is StepKind.OTHER else _paths(args))
    if verb in _SCRIPTED:
        return _script(verb, args)
    files = (words[0],) if "/" in words[0] else ()
    return _Part(StepKind.RUN, verb, files, changes=verb in _STORES)


def _program(word: str) -> str:
    """The name of a program, without its folder and without a shell's decoration."""
    name = word.rsplit("/", 1)[-1] or word
    return name[:80]


# --- Unwrapping -------------------------------------------------------------------------

_KEYWORDS = frozenset(("then", "do", "else", "elif", "if", "while", "until", "!", "{", "}", "time"))
_NAMED_RUN = frozenset(("uv", "poetry", "pipenv", "hatch", "rye", "pdm", "conda", "mamba"))
_WRAPPERS_ONLY = frozenset(
    (
        *("sudo", "doas", "nohup", "command", "exec", "builtin", "stdbuf", "nice"),
        *("ionice", "setsid"),
        *("env", "xargs", "npx", "bunx", "xvfb-run", "unbuffer", "time", "chronic", "eatmydata"),
    )
)
_VALUE_OPTIONS = {
    "sudo": frozenset(("-u", "-g", "-h", "-p", "-C", "-D")),
    "nice": frozenset(("-n",)),
    "ionice": frozenset(("-c", "-n", "-p")),
    "env": frozenset(("-u", "-C", "-S")),
    "xargs": frozenset(("-n", "-P", "-I", "-L", "-d", "-s", "-a", "-E")),
    "timeout": frozenset(("-s", "-k", "--signal", "--kill-after")),
    "uv": frozenset(("--with", "--python", "-p", "--extra", "--group", "--project", "--directory")),
    "conda": frozenset(("-n", "-p", "--name", "--prefix")),
    "npx": frozenset(("-p", "--package")),
}


def _unwrapped(given: tuple[str, ...]) -> list[str]:
    """The words without what only carries a command: sudo, env, `uv run` and so on."""
    words = list(given)
    for _ in range(8):
        while words and words[0] in _KEYWORDS:
            words = words[1:]
        if not words:
            return words
        verb = _program(words[0])
        if verb in _WRAPPERS_ONLY:
            inner = _after_options(words[1:], _VALUE_OPTIONS.get(verb, frozenset()))
        elif verb == "timeout":
            inner = _after_options(words[1:], _VALUE_OPTIONS[verb])[1:]
        elif verb in _NAMED_RUN and words[1:2] == ["run"]:
            inner = _after_options(words[2:], _VALUE_OPTIONS.get(verb, _VALUE_OPTIONS["uv"]))
        elif verb in ("pnpm", "yarn", "npm", "bundle") and words[1:2] == ["exec"]:
            inner = _after_options(words[2:], frozenset())
        else:
            return words
        if not inner:
            return words
        words = inner
    return words


def _after_options(words: list[str], with_value: frozenset[str]) -> list[str]:
    """The words after leading options and assignments (of env)."""
    at = 0
    while at < len(words):
        word = words[at]
        if word == "--":
            return words[at + 1 :]
        if word in with_value:
            at += 2
        elif word.startswith("-") or (_ASSIGNMENT.match(word) is not None):
            at += 1
        else:
            break
    return words[at:]


_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_SHELLS = frozenset(("bash", "sh", "zsh", "dash", "ksh", "fish", "eval"))


def _shell(verb: str, args: list[str], command: SimpleCommand, depth: int) -> _Part:
    """What a shell is given: `bash -lc '…'` is what is in it, `bash a.sh` runs a script."""
    script = ""
    for at, arg in enumerate(args):
        if verb == "eval":
            script = " ".join(args)
            break
        if arg.startswith("-") and not arg.startswith("--") and arg.endswith("c"):
            script = args[at + 1] if at + 1 < len(args) else ""
            break
        if not arg.startswith("-"):
            return _script(verb, args[at:])
    script = script or command.text
    if not script or depth >= _MAX_DEPTH:
        return _Part(StepKind.RUN, verb)
    inner = _read(script, depth + 1)
    return _Part(inner.kind, inner.verb, inner.files, inner.edits, changes=inner.changes_state)


# --- Paths ------------------------------------------------------------------------------

_NOT_A_PATH = re.compile(r"[\s=(){}|;<>$`'\"\\]|^[-+]?[\d.,:%]*$|^https?:|^[-+%@!]")


def _path(word: str) -> str:
    """The path in an argument ("a.py::test_b" names a.py), or ""."""
    word = word.split("::", 1)[0]
    return "" if not word or len(word) > 300 or _NOT_A_PATH.search(word) else word  # noqa: PLR2004 - a path


def _paths(args: list[str]) -> tuple[str, ...]:
    """The arguments that look like paths: a slash or a file name's dot in them."""
    found = (_path(arg) for arg in args)
    return tuple(path for path in found if path and ("/" in path or "." in path))[:MAX_FILES]


def _operands(args: list[str], with_value: frozenset[str] = frozenset()) -> list[str]:
    """The arguments that are no options, nor an option's value."""
    found: list[str] = []
    skip = False
    for at, arg in enumerate(args):
        if skip:
            skip = False
        elif arg == "--":
            found.extend(args[at + 1 :])
            break
        elif arg.startswith("-") and len(arg) > 1:
            skip = arg in with_value
        else:
            found.append(arg)
    return found


def _named(operands: list[str]) -> tuple[str, ...]:
    return tuple(path for path in map(_path, operands) if path)[:MAX_FILES]


# --- Reading, searching, writing --------------------------------------------------------

_ADDRESS = re.compile(r"^\s*(\d+)(?:\s*,\s*(\d+|\$))?\s*!?\s*[sdcaiyDp{=]")
_PATTERN_GIVEN = frozenset(("-e", "-f", "--regexp", "--file", "--files"))


def _looking(verb: str, args: list[str], _: SimpleCommand) -> _Part:
    values = frozenset(("-n", "-c", "--lines", "--bytes")) if verb in ("head", "tail") else _NONE
    return _Part(StepKind.READ, verb, _named(_operands(args, values)))


_NONE: frozenset[str] = frozenset()


def _grepping(verb: str, args: list[str], _: SimpleCommand) -> _Part:
    values = frozenset(("-A", "-B", "-C", "-m", "-e", "-f", "-g", "-t", "-d", "--include", "-E"))
    values = values - {"-E"} if verb != "fd" else values
    operands = _operands(args, values)
    if not _PATTERN_GIVEN.intersection(args):
        operands = operands[1:]
    return _Part(StepKind.SEARCH, verb, _named(operands))


def _finding(verb: str, args: list[str], _: SimpleCommand) -> _Part:
    where: list[str] = []
    for arg in args:
        if arg.startswith(("-", "(", "!")):
            break
        where.append(arg)
    deletes = "-delete" in args or ("-exec" in args and "rm" in args)
    return _Part(StepKind.SEARCH, verb, _named(where), changes=deletes)


def _sed(verb: str, args: list[str], _: SimpleCommand) -> _Part:
    """`sed -i` edits (lines, when its address is numbers); else sed reads."""
    in_place = any(
        arg.startswith("--in-place") or (_SED_FLAGS.match(arg) is not None) for arg in args
    )
    operands = _operands(args, frozenset(("-e", "-f", "--expression", "--file")))
    scripts = [args[at + 1] for at, arg in enumerate(args[:-1]) if arg in ("-e", "--expression")]
    if not scripts and "-f" not in args:
        scripts, operands = operands[:1], operands[1:]
    paths = tuple(path for path in operands if path)[:MAX_FILES]
    if not in_place:
        return _Part(StepKind.READ, verb, paths)
    address = _ADDRESS.match(scripts[0]) if len(scripts) == 1 else None
    first, last = 0, 0
    if address and address[2] != "$":
        first = int(address[1][:9])
        last = int((address[2] or address[1])[:9])
    digest = digest_of("\n".join(scripts))
    edits = tuple(EditRange(path, first, max(first, last), digest=digest) for path in paths)
    return _Part(StepKind.EDIT, verb, paths, edits, changes=True)


_SED_FLAGS = re.compile(r"-[nrEsuz]*i")


def _awk(verb: str, args: list[str], _: SimpleCommand) -> _Part:
    operands = _operands(args, frozenset(("-F", "-v", "-f")))
    named = _named(operands if "-f" in args else operands[1:])
    if "inplace" in args:
        return _Part(StepKind.EDIT, verb, named, tuple(map(EditRange, named)), changes=True)
    return _Part(StepKind.READ, verb, named)


def _perl(verb: str, args: list[str], _: SimpleCommand) -> _Part:
    if any(_PERL_IN_PLACE.match(arg) for arg in args):
        operands = _operands(args, frozenset(("-e",)))
        named = tuple(path for path in _named(operands) if "." in path or "/" in path)
        return _Part(StepKind.EDIT, verb, named, tuple(map(EditRange, named)), changes=True)
    return _script(verb, args)


_PERL_IN_PLACE = re.compile(r"-[0-9lnpw]*i")


def _tee(verb: str, args: list[str], command: SimpleCommand) -> _Part:
    named = tuple(path for path in _named(_operands(args)) if not _is_sink(path))
    if not named:
        return _Part(StepKind.OTHER, verb)
    append = "-a" in args or "--append" in args
    edits = tuple(_written(path, append, command.text) for path in named)
    if command.text:
        return _Part(StepKind.EDIT, verb, named, edits, changes=True)
    return _Part(StepKind.OTHER, verb, named)  # a copy of what a program before it said


def _housekeeping(verb: str, args: list[str], _: SimpleCommand) -> _Part:
    """Deletes, moves, copies, creates: what is touched differs afterwards."""
    named = _named(_operands(args, frozenset(("-t", "-m", "-o", "-g", "-s"))))
    if verb in ("cp", "install", "ln") and len(named) > 1:
        edits: tuple[EditRange, ...] = (EditRange(named[-1], created=True),)
    elif verb in ("mkdir", "rmdir", "chmod", "chown"):
        edits = ()
    else:
        edits = tuple(EditRange(path, created=verb == "touch") for path in named)
    return _Part(StepKind.EDIT, verb, named, edits, changes=True, weight=_HOUSEKEEPING)


def _making_directories(verb: str, args: list[str], _: SimpleCommand) -> _Part:
    named = _named(_operands(args, frozenset(("-m",))))
    return _Part(StepKind.RUN, verb, named, changes=True, weight=_HOUSEKEEPING)


def _patching(verb: str, args: list[str], command: SimpleCommand) -> _Part:
    """`patch`, and `apply_patch` with its envelope of "*** Update File: path" lines."""
    text = command.text or next((arg for arg in args if "\n" in arg), "")
    edits = tuple(
        EditRange(match[2].strip(), created=match[1] == "Add", digest=digest_of(text))
        for match in _PATCHED.finditer(text)
    ) or tuple(EditRange(match[1], digest=digest_of(text)) for match in _DIFFED.finditer(text))
    named = tuple(dict.fromkeys(edit.path for edit in edits)) or _paths(
        [*args, *command.reads] if not text else args
    )
    return _Part(StepKind.EDIT, verb, named[:MAX_FILES], edits[:MAX_FILES], changes=True)


_PATCHED = re.compile(r"^\*\*\* (Add|Update|Delete) File: (.+)$", re.MULTILINE)
_DIFFED = re.compile(r"^\+\+\+ (?:b/)?([^\s]+)", re.MULTILINE)


def _fetching(verb: str, args: list[str], _: SimpleCommand) -> _Part:
    sends = any(arg in _SENDING or _SENDING_METHOD.match(arg) for arg in args)
    saves = verb == "wget" or "-o" in args or "-O" in args
    return _Part(StepKind.BROWSE, verb, changes=sends or saves)


_SENDING = frozenset(("-d", "--data", "--data-raw", "--data-binary", "-F", "-T", "--json"))
_SENDING_METHOD = re.compile(r"(?:-X)?(?:POST|PUT|DELETE|PATCH)$")

# --- Python and scripts -----------------------------------------------------------------

_PYTHON = re.compile(r"(?:python|pypy|py)[\d.]*")
_TEST_FILE = re.compile(
    r"(?:^|/)(?:test_[^/]*|[^/]*_tests?|runtests|run_?tests?|tests?)\.(?:py|sh|js)$"
)
_TEST_PROGRAM = re.compile(r"(?:^|/)(?:bin/test|runtests(?:\.py)?|run[_-]?tests?(?:\.\w+)?)$")
_WRITES_FILE = re.compile(
    r"open\(\s*[rf]?['\"]([^'\"]+)['\"]\s*,\s*(?:mode\s*=\s*)?['\"][wax]"
    r"|Path\(\s*['\"]([^'\"]+)['\"]\s*\)\.write_(?:text|bytes)"
)
_WRITES = re.compile(
    r"\bopen\([^()\n]{1,200},\s*(?:mode\s*=\s*)?['\"][wax]|\.write_(?:text|bytes)\("
    r"|\bos\.(?:remove|unlink|rename|replace|makedirs)\(|\bshutil\.(?:move|copy|rmtree)"
)
_MODULE_TESTS = frozenset(("pytest", "unittest", "tox", "nox", "nose", "nose2", "doctest", "trial"))
_MODULE_INSTALLS = frozenset(("pip", "venv", "ensurepip", "build"))


def _python(args: list[str], command: SimpleCommand) -> _Part:
    for at, arg in enumerate(args):
        rest = args[at + 1 :]
        if arg == "-m":
            return _python_module(rest)
        if arg == "-c":
            return _python_text(rest[0] if rest else "")
        if arg == "-":
            break
        if not arg.startswith("-"):
            return _script("python", args[at:])
    return _python_text(command.text)


def _python_module(args: list[str]) -> _Part:
    module = args[0] if args else ""
    if module.split(".")[0] in _MODULE_TESTS:
        return _Part(StepKind.TEST, module, _paths(args[1:]))
    if module == "pip":
        return _installing("pip", args[1:])
    changes = module in _MODULE_INSTALLS
    return _Part(StepKind.RUN, module or "python", _paths(args[1:]), changes=changes)


def _python_text(text: str) -> _Part:
    if "pytest.main(" in text or "unittest.main(" in text:
        return _Part(StepKind.TEST, "python")
    if _WRITES.search(text) is None:
        return _Part(StepKind.RUN, "python")
    named = tuple(dict.fromkeys(m[1] or m[2] for m in _WRITES_FILE.finditer(text)))[:MAX_FILES]
    edits = tuple(EditRange(path, digest=digest_of(text)) for path in named)
    return _Part(StepKind.EDIT, "python", named, edits, changes=True)


def _script(verb: str, args: list[str]) -> _Part:
    """An interpreter with a script: a test when the script's name says so."""
    operands = _operands(args)
    script = operands[0] if operands else ""
    files = _named(operands[:1]) + _paths(operands[1:])
    if script.endswith("manage.py"):
        sub = operands[1] if len(operands) > 1 else ""
        kind = StepKind.TEST if sub == "test" else StepKind.RUN
        changes = sub in ("migrate", "makemigrations", "flush", "loaddata", "startapp")
        return _Part(kind, f"manage.py {sub}".strip(), files, changes=changes)
    if verb == "python" and script.endswith("setup.py"):
        sub = operands[1] if len(operands) > 1 else ""
        kind = StepKind.TEST if sub == "test" else StepKind.RUN
        return _Part(kind, f"setup.py {sub}".strip(), files, changes=sub in ("install", "develop"))
    if _TEST_FILE.search(script) or _TEST_PROGRAM.search(script):
        return _Part(StepKind.TEST, verb, files)
    return _Part(StepKind.RUN, verb, files)


# --- Tools with subcommands -------------------------------------------------------------

_GIT_READS = frozenset(
    (
        *("status", "diff", "log", "show", "blame", "ls-files", "rev-parse", "describe", "reflog"),
        *("shortlog", "cat-file", "ls-tree", "rev-list", "config", "remote"),
        *("fetch", "whatchanged"),
        *("merge-base", "for-each-ref", "show-ref", "symbolic-ref", "version", "help", "ls-remote"),
    )
)
_GIT_VALUES = frozenset(("-C", "-c", "--git-dir", "--work-tree"))


def _git(verb: str, args: list[str]) -> _Part:
    at = 0
    while at < len(args) and args[at].startswith("-"):
        at += 2 if args[at] in _GIT_VALUES else 1
    sub, rest = (args[at] if at < len(args) else ""), args[at + 1 :]
    name = f"{verb} {sub}".strip()
    operands = _operands(rest, frozenset(("-m", "-n", "-b", "-B", "-F", "--message")))
    match sub:
        case "grep":
            return _Part(StepKind.SEARCH, name, _paths(operands[1:]))
        case "branch" | "tag" | "worktree" | "stash" | "bisect" | "notes" | "submodule":
            reads = (sub != "stash" and not operands) or operands[:1] in (["list"], ["show"])
            kind = StepKind.READ if reads else StepKind.RUN
            return _Part(kind, name, changes=not reads)
        case "apply" | "am":
            return _Part(StepKind.EDIT, name, _paths(operands), changes=True)
        case "rm" | "mv" | "restore":
            edits = tuple(map(EditRange, _paths(operands)))
            return _Part(StepKind.RUN, name, _paths(operands), edits, changes=True)
        case _ if sub in _GIT_READS or not sub:
            return _Part(StepKind.READ, name, _paths(operands))
        case _:
            files = _paths(operands) if sub in ("add", "checkout", "reset", "clean") else ()
            return _Part(StepKind.RUN, name, files, changes=True)


_NODE_INSTALLS = frozenset(
    (
        *("install", "i", "ci", "add", "remove", "uninstall", "rm", "update", "upgrade"),
        *("link", "init"),
        *("publish", "version", "dedupe", "prune", "create"),
    )
)
_NODE_READS = frozenset(
    ("ls", "list", "view", "info", "outdated", "audit", "why", "config", "root")
)


def _node(verb: str, args: list[str]) -> _Part:
    """npm, pnpm, yarn, bun, deno: scripts called test… are tests, whichever way called."""
    operands = _operands(args, frozenset(("--prefix", "-w", "--filter", "-C", "--cwd")))
    sub = operands[0] if operands else ""
    rest = operands[1:]
    if sub in ("run", "run-script", "exec", "x", "dlx", "workspace", "workspaces") and rest:
        script = rest[0]
        kind = StepKind.TEST if _tests(script) or script in _TESTERS else StepKind.RUN
        return _Part(kind, f"{verb} {script}", _paths(rest[1:]))
    if _tests(sub) or sub in _TESTERS:
        return _Part(StepKind.TEST, f"{verb} {sub}", _paths(rest))
    if sub in _NODE_READS:
        return _Part(StepKind.READ, f"{verb} {sub}")
    changes = sub in _NODE_INSTALLS or (not sub and verb in ("yarn", "pnpm"))
    return _Part(StepKind.RUN, f"{verb} {sub}".strip(), _paths(rest), changes=changes)


def _tests(target: str) -> bool:
    return target in ("t", "tst", "check") or _TEST_TARGET.match(target) is not None


_TEST_TARGET = re.compile(
    r"(?:unit|integration|e2e|all|check)?[-_:]?tests?(?![a-z])(?![-_:]?(?:data|env))"
)

_INSTALLING_SUBS = frozenset(
    (
        *("install", "add", "remove", "uninstall", "update", "upgrade", "sync", "lock"),
        *("get", "require"),
        *("dist-upgrade", "purge", "autoremove", "tidy", "publish", "init", "new", "create", "pip"),
        *("mod", "dependency:resolve", "restore", "clean", "fmt", "generate", "fix"),
    )
)


def _installing(verb: str, args: list[str]) -> _Part:
    operands = _operands(args)
    sub = operands[0] if operands else ""
    if sub == "pip":
        return _installing(f"{verb} pip", operands[1:])
    changes = sub in _INSTALLING_SUBS
    reads = sub in ("list", "show", "freeze", "search", "check", "info", "tree", "policy", "config")
    kind = StepKind.READ if reads else StepKind.RUN
    return _Part(kind, f"{verb} {sub}".strip(), _paths(operands[1:]), changes=changes)


def _building(verb: str, args: list[str]) -> _Part:
    """make, cargo, go, mvn, gradle …: a test when one of its targets is a test."""
    operands = _operands(
        args, frozenset(("-C", "-f", "-p", "--package", "-pl", "-j", "--features"))
    )
    operands = [operand for operand in operands if "=" not in operand]
    name = f"{verb} {operands[0]}" if operands else verb
    targets = operands if verb in _MANY_TARGETS else operands[:1]
    tests = [target for target in targets if _builds_tests(target)]
    if tests:
        return _Part(StepKind.TEST, f"{verb} {tests[0]}", _paths(operands[1:]))
    changes = operands[:1] != [] and operands[0] in _INSTALLING_SUBS
    return _Part(StepKind.RUN, name, _paths(operands[1:]), changes=changes)


_MANY_TARGETS = frozenset(
    ("make", "gmake", "mvn", "mvnw", "gradle", "gradlew", "ninja", "rake", "just")
)


def _builds_tests(target: str) -> bool:
    name = target.rsplit(":", 1)[-1]
    return name in ("check", "verify", "nextest", "connectedCheck", "ctest", "spec") or _tests(name)


_CONTROL_READS = frozenset(
    (
        *("ps", "logs", "images", "inspect", "status", "list", "ls", "view", "get", "describe"),
        *("show", "list-units", "is-active", "cat", "diff", "checks", "top", "version", "info"),
        *("search", "api"),
    )
)


def _controlling(verb: str, args: list[str]) -> _Part:
    """docker, kubectl, systemctl, gh …: looking or changing, by the subcommand."""
    operands = _operands(args, frozenset(("-n", "--namespace", "-R", "--repo", "-f", "-p")))
    name = " ".join([verb, *operands[: 2 if verb == "gh" else 1]])[:80]
    subs = operands[:2]
    if any(sub in _CONTROL_READS for sub in subs):
        return _Part(StepKind.READ, name, changes="-X" in args or "--method" in args)
    return _Part(StepKind.RUN, name, changes=bool(subs))


_SUBCOMMANDS: dict[str, Callable[[str, list[str]], _Part]] = {
    "git": _git,
    **dict.fromkeys(("npm", "pnpm", "yarn", "bun", "deno"), _node),
    **dict.fromkeys(
        (
            *("pip", "pip3", "uv", "poetry", "pipenv", "conda", "mamba", "apt", "apt-get"),
            *("apk", "dnf"),
            *("yum", "brew", "gem", "bundle", "rustup", "pdm", "hatch", "rye", "nix-env", "snap"),
        ),
        _installing,
    ),
    **dict.fromkeys(
        (
            *("make", "gmake", "cargo", "go", "mvn", "mvnw", "gradle", "gradlew"),
            *("dotnet", "bazel"),
            *("rake", "just", "ninja", "mix", "swift", "zig", "composer", "sbt", "lein", "stack"),
            *("cabal", "dune", "flutter", "dart", "rails", "meson"),
        ),
        _building,
    ),
    **dict.fromkeys(
        (
            *("docker", "docker-compose", "podman", "kubectl", "helm", "systemctl"),
            *("service", "gh"),
            *("glab", "terraform", "aws", "gcloud", "az", "heroku", "tmux", "journalctl"),
        ),
        _controlling,
    ),
}

_READERS: dict[str, Callable[[str, list[str], SimpleCommand], _Part]] = {
    **dict.fromkeys(("cat", "head", "tail", "less", "more", "nl", "tac", "bat"), _looking),
    **dict.fromkeys(("grep", "egrep", "fgrep", "rg", "ag", "ack", "fd", "zgrep"), _grepping),
    "find": _finding,
    "sed": _sed,
    "gsed": _sed,
    **dict.fromkeys(("awk", "gawk", "mawk"), _awk),
    "perl": _perl,
    "tee": _tee,
    **dict.fromkeys(
        ("rm", "mv", "cp", "touch", "ln", "unlink", "install", "truncate"), _housekeeping
    ),
    **dict.fromkeys(
        (
            *("mkdir", "rmdir", "chmod", "chown", "kill", "pkill", "killall", "tar"),
            *("unzip", "zip"),
            *("rsync", "scp", "dd", "crontab", "useradd", "ssh-keygen", "gunzip", "gzip"),
        ),
        _making_directories,
    ),
    **dict.fromkeys(("patch", "apply_patch", "applypatch"), _patching),
    **dict.fromkeys(("curl", "wget", "http", "lynx", "xh"), _fetching),
}

_TESTERS = frozenset(
    (
        *("pytest", "py.test", "tox", "nox", "nosetests", "nose2", "unittest", "trial"),
        *("jest", "vitest"),
        *("mocha", "ava", "tap", "jasmine", "karma", "cypress", "playwright", "ctest", "rspec"),
        *("phpunit", "pest", "cucumber", "behave", "gotestsum", "nextest", "minitest", "bats"),
        *("runtests.py", "stestr", "ward", "green", "testem", "lit"),
    )
)

_SEARCHES = (
    "ls",
    "tree",
    "locate",
    "which",
    "whereis",
    "type",
    "dir",
    "ctags",
    "fzf",
    "exa",
    "eza",
)
_READS = (
    *("wc", "file", "stat", "diff", "cmp", "comm", "xxd", "hexdump", "od", "strings"),
    *("md5sum", "jq"),
    *("sha256sum", "cut", "sort", "uniq", "tr", "column", "paste", "yq", "man", "ps", "top", "df"),
    *("du", "free", "printenv", "whoami", "id", "uname", "date", "hostname", "lsof", "netstat"),
    *("ss", "pgrep", "basename", "dirname", "realpath", "readlink", "nproc", "uptime", "history"),
)
_SILENT = (
    *("cd", "pushd", "popd", "echo", "printf", "true", "false", "sleep", "export", "set", "unset"),
    *("source", ".", ":", "test", "[", "[[", "alias", "ulimit", "wait", "exit", "return", "local"),
    *("for", "done", "fi", "case", "esac", "in", "shift", "trap", "umask", "function", "read"),
    *("pwd", "clear", "jobs", "fg", "bg", "declare", "let", "break", "continue", "select", "yes"),
)
_KINDS: dict[str, StepKind] = {
    **dict.fromkeys(_SILENT, StepKind.OTHER),
    **dict.fromkeys(_SEARCHES, StepKind.SEARCH),
    **dict.fromkeys(_READS, StepKind.READ),
}
_SCRIPTED = frozenset(("node", "ruby", "php", "tsx", "ts-node", "Rscript", "lua", "julia", "java"))
_STORES = frozenset(("alembic", "psql", "mysql", "sqlite3", "redis-cli", "createdb", "dropdb"))
