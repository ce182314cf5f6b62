"""The state of an agent's repository, as git tells it without believing the repository.

Laws:

1. The repository's own configuration is an agent's word, and may name programs (filters,
   monitors, hooks): git never runs with it. It gets a folder of ours for its own, and of the
   agent's only objects, index and files; of the configuration a few words are taken over that
   can name no program.
2. Nothing is written, fetched or locked; no submodule is entered; each program is bounded in time
   and killed with its group.
3. Branch and commit are read from the repository's files: they are known without git, too.
"""

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from custosd.adapters.places import Located, first_line
from custosd.adapters.programs import (
    Finished,
    ProgramAbsent,
    ProgramLate,
    ProgramStarved,
    plain_environment,
    run_program,
)
from custosd.core.errors import WorkspaceError
from custosd.core.secrets import without_secrets
from custosd.core.workspaces import Repository
from custosd.flow.bounded import for_each
from custosd.flow.threads import Threads

_MOST_BYTES = 256 * 1024
_LARGEST_PACKED = 8 * 1024 * 1024
_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REF = re.compile(r"refs/[^\x00-\x20~^:?*\[\\\x7f]+")
_TAKEN_OVER = frozenset(
    {"core.autocrlf", "core.eol", "core.filemode", "core.symlinks", "core.ignorecase"}
)
_WORD = re.compile(r"[A-Za-z]{1,16}|[01]")
_LENGTHS = (40, 64)
"""Of a commit's name, by its digest."""

_NOTHING = "ref: refs/heads/none"


class NoGit(WorkspaceError):
    """Git could not tell; `reason`: no_git, timeout, or what it ended with."""


@dataclass(frozen=True, slots=True)
class Checkout:
    """What a thread found out for git to go on with: see `repository_at`."""

    repository: Repository
    located: Located
    exclude: str = ""


def repository_at(found: Located, owner: int | None) -> Checkout:
    """Branch and commit of a repository; blocks as its files do.

    Raises `WorkspaceError` where it is not the agent's, `OSError` where it is broken.
    """
    if owner is not None and any(each.stat().st_uid != owner for each in (found.own, found.shared)):
        raise WorkspaceError("not_owned", "the repository belongs to another user")
    head = found.head or resolved(found.shared, found.ref, found.own)
    if head and not _OID.fullmatch(head):
        raise OSError(f"{found.own}/HEAD names no commit")
    exclude = found.shared / "info" / "exclude"
    repository = Repository(str(found.copy), without_secrets(found.branch), head, bare=found.bare)
    return Checkout(repository, found, str(exclude) if _is_regular(exclude) else "")


def resolved(shared: Path, ref: str, own: Path | None = None) -> str:
    """The commit that a ref names; "" for none. Raises `OSError` for what is no ref."""
    if not _REF.fullmatch(ref) or ".." in ref or "//" in ref:
        raise OSError("what is checked out is no ref")
    for folder in (own or shared, shared):
        try:
            line = first_line(folder / ref)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            continue
        return line if _OID.fullmatch(line) else ""
    return _packed(shared / "packed-refs", ref)


def _packed(path: Path, ref: str) -> str:
    if not _is_regular(path):
        return ""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with os.fdopen(fd, "rb") as file:
        for line in file.read(_LARGEST_PACKED).split(b"\n"):
            oid, _, name = line.partition(b" ")
            if name == os.fsencode(ref):
                return oid.decode("ascii", "replace")
    return ""


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def make_skeletons(folder: Path) -> None:
    """Make the folders that git takes for the repository's: empty ones, for both digests."""
    for length in _LENGTHS:
        own = folder / str(length)
        for name in ("objects", "refs"):
            (own / name).mkdir(parents=True)
        (own / "HEAD").write_text(f"{_NOTHING}\n")
        digest = "\trepositoryformatversion = 1\n[extensions]\n\tobjectFormat = sha256\n"
        plain = "\trepositoryformatversion = 0\n"
        (own / "config").write_text("[core]\n" + (digest if length == 64 else plain))  # noqa: PLR2004 - the length of a digest


class Git:
    """Git over the skeletons in a folder; see `make_skeletons`."""

    def __init__(self, skeletons: Path, threads: Threads, timeout_s: float) -> None:
        self._skeletons = skeletons
        self._threads = threads
        self._timeout_s = timeout_s

    async def state(self, checkout: Checkout) -> Repository:
        """The repository with all that is not in its files. Raises `NoGit`.

        At least the branch and the commit of `checkout` hold when it does.
        """
        said = dict(await self._settings(checkout.located))
        repository = checkout.repository
        upstream = _upstream(said, checkout.located.branch)
        counted: dict[str, int] = {}
        asked = [] if repository.bare else ["changed"]
        theirs = ""
        if upstream and repository.head:
            theirs = await self._threads.run(partial(_if_there, checkout.located.shared, upstream))
            asked += ["ahead"] if theirs else []

        async def ask(what: str) -> None:
            if what == "ahead":
                counted.update(await self._ahead(checkout, said, theirs))
            else:
                counted.update(await self._changed(checkout, said))

        try:
            await for_each(asked, ask)
        except ExceptionGroup as group:
            raise _first(group) from group
        shown = upstream.removeprefix("refs/").removeprefix("remotes/").removeprefix("heads/")
        return replace(
            repository,
            changed=counted.get("changed"),
            untracked=counted.get("untracked"),
            upstream=without_secrets(shown),
            ahead=counted.get("ahead"),
            behind=counted.get("behind"),
        )

    async def _ahead(self, checkout: Checkout, said: dict[str, str], theirs: str) -> dict[str, int]:
        span = f"{theirs}...{checkout.repository.head}"
        words = ["rev-list", "--left-right", "--count", span, "--"]
        told = await self._git(checkout, said, words)
        behind, _, ahead = told.stdout.decode("ascii", "replace").strip().partition("\t")
        if not (ahead.isdigit() and behind.isdigit()):
            raise NoGit("not_counted", "git did not count commits")
        return {"ahead": int(ahead), "behind": int(behind)}

    async def _changed(self, checkout: Checkout, said: dict[str, str]) -> dict[str, int]:
        words = ["status", "--porcelain", "-z", "--no-renames", "--untracked-files=normal"]
        told = await self._git(checkout, said, [*words, "--ignore-submodules=all", "--", "."])
        # What stands behind the last nought was cut off, or is nothing.
        entries = told.stdout.split(b"\0")[:-1]
        untracked = sum(entry.startswith(b"??") for entry in entries)
        return {"changed": len(entries) - untracked, "untracked": untracked}

    async def _settings(self, found: Located) -> list[tuple[str, str]]:
        file = found.shared / "config"
        if not _is_regular(file):
            return []
        words = ["config", "--file", str(file), "--no-includes", "-z", "--list"]
        told = await self._run(["git", *words], {})
        pairs = [entry.partition("\n") for entry in os.fsdecode(told.stdout).split("\0")]
        return [(key, value) for key, _, value in pairs if key]

    async def _git(
        self, checkout: Checkout, said: dict[str, str], words: Sequence[str]
    ) -> Finished:
        found = checkout.located
        length = _digest_length(checkout.repository, said)
        environment = {
            "GIT_COMMON_DIR": str(self._skeletons / str(length)),
            "GIT_WORK_TREE": str(found.copy),
            "GIT_OBJECT_DIRECTORY": str(found.shared / "objects"),
            "GIT_INDEX_FILE": str(found.own / "index"),
            "GIT_SHALLOW_FILE": str(found.shared / "shallow"),
        }
        options = ["-c", "core.fsmonitor=false", "-c", "core.attributesFile=/dev/null"]
        options += ["-c", f"core.excludesFile={checkout.exclude or '/dev/null'}"]
        options += ["-c", "core.hooksPath=/dev/null", "-c", "core.pager=cat"]
        for key in sorted(_TAKEN_OVER & said.keys()):
            if _WORD.fullmatch(said[key]):
                options += ["-c", f"{key}={said[key]}"]
        # Not in its folder: whoever starts a program waits until it is there.
        place = str(found.copy / found.inside)
        argv = ["git", "--no-optional-locks", "-C", place, *options, *words]
        with _checked_out(self._skeletons, checkout.repository.head) as own:
            return await self._run(argv, environment | {"GIT_DIR": own})

    async def _run(self, argv: Sequence[str], more: dict[str, str]) -> Finished:
        environment = plain_environment(_QUIET | more)
        try:
            told = await run_program(
                argv,
                environment=environment,
                timeout_s=self._timeout_s,
                most_bytes=_MOST_BYTES,
            )
        except ProgramAbsent as error:
            raise NoGit("no_git", str(error)) from error
        except ProgramStarved as error:
            raise NoGit("starved", str(error)) from error
        except ProgramLate as error:
            raise NoGit("timeout", str(error)) from error
        if told.status:
            raise NoGit("git_failed", f"git {argv[-1]} ended with {told.status}")
        return told


_QUIET = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_ALLOW_PROTOCOL": "",
}


def _digest_length(repository: Repository, said: dict[str, str]) -> int:
    if repository.head:
        return len(repository.head)
    return 64 if said.get("extensions.objectformat") == "sha256" else 40


@contextmanager
def _checked_out(skeletons: Path, head: str) -> Iterator[str]:
    """A folder that git takes for a working copy's own, with this commit checked out."""
    folder = Path(tempfile.mkdtemp(dir=skeletons))
    try:
        (folder / "HEAD").write_text(f"{head or _NOTHING}\n")
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _upstream(said: dict[str, str], branch: str) -> str:
    """The ref that a branch follows, if fetches go where they go by themselves; "" for none."""
    remote = said.get(f"branch.{branch}.remote", "") if branch else ""
    merge = said.get(f"branch.{branch}.merge", "")
    if not remote or not merge.startswith("refs/heads/"):
        return ""
    if remote == ".":
        return merge
    return f"refs/remotes/{remote}/{merge.removeprefix('refs/heads/')}"


def _if_there(shared: Path, ref: str) -> str:
    try:
        return resolved(shared, ref)
    except OSError:
        return ""


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
