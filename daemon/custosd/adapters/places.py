"""Where folders lie: the working copy and the repository, as git's own files tell.

Laws: read-only, no git is run; a folder that is gone, or lies in no repository, is a place
of its own, and so is one that was not looked up within `LOOK_S`. What was found stays known
for `KEPT_S`. Folders belong to agents: only regular files are read, none is waited for, and
whatever a look ends with is that folder's alone. One that hangs is left behind, and holds up
no other (`adapters.hung_looks`).
"""

import errno
import os
import re
import stat
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import structlog
import trio

from custosd.adapters.hung_looks import MOST_HUNG, HungLooks
from custosd.core.errors import WorkspaceError
from custosd.core.pairs import Place
from custosd.core.transcript import digest_of
from custosd.flow.cache import Cache
from custosd.flow.threads import Threads
from custosd.ports import Places

log = structlog.get_logger()

KEPT_S = 300.0
MOST_KEPT = 50_000
LOOK_S = 5.0
_THREADS = 8
_LARGEST_FILE = 65_536
_BRANCHES = "refs/heads/"
# One way to match each text: what stands in a configuration may be built to take for ever.
_ORIGIN = re.compile(r'^[ \t]*\[remote "origin"\][^\[]*?^[ \t]*url[ \t]*=(.*)$', re.MULTILINE)
_FAR = re.compile(r"(?:\w[\w+.-]*://)?(?:[^@/]*@)?([^/:@]+)(?::\d+/|[:/])/*(.+)")


class LocalPlaces(Places):
    """`ports.Places` of this machine; see `open_places`. `see` is its look, in a thread."""

    def __init__(
        self,
        nursery: trio.Nursery,
        see: Callable[[str], Place] | None = None,
        guard: HungLooks | None = None,
        look_s: float = LOOK_S,
    ) -> None:
        self._see = see or look
        self._guard = guard or HungLooks()
        self._look_s = look_s
        self._threads = Threads(_THREADS + MOST_HUNG)
        self._known = Cache[str, Place](
            nursery,
            self._look,
            ttl_s=KEPT_S,
            most=MOST_KEPT,
            on_unheard=lambda _folder, _error: None,  # a refusal that nobody waits for
        )

    async def place(self, folder: str, branch: str) -> Place:
        """See the port."""
        if not folder.startswith("/"):
            return Place("", folder, "", branch)
        known = Place("", folder)
        with trio.move_on_after(self._look_s), suppress(WorkspaceError):
            known = await self._known.get(folder)
        return known if known.branch else replace(known, branch=branch)

    async def _look(self, folder: str) -> Place:
        try:
            return await self._guard.run(self._threads, folder, partial(self._see, folder))
        except WorkspaceError:
            raise  # it hangs: not kept, since that may end at any time
        except Exception as error:  # noqa: BLE001 - one folder's, and agents make folders
            log.warning("place.unread", folder=digest_of(folder), error=type(error).__name__)
            return Place("", folder)


@asynccontextmanager
async def open_places(guard: HungLooks | None = None) -> AsyncGenerator[LocalPlaces]:
    """The places of this machine, looked up in threads of their own while the block runs.

    `guard` as others have it who look at folders.
    """
    async with trio.open_nursery() as nursery:
        yield LocalPlaces(nursery, guard=guard)
        nursery.cancel_scope.cancel("closed")


class ToldPlaces(Places):
    """`ports.Places` that looks nowhere: a folder is a place of its own, or what is given."""

    def __init__(self, known: dict[str, Place] | None = None) -> None:
        self._known = known or {}

    async def place(self, folder: str, branch: str) -> Place:
        """See the port."""
        await trio.lowlevel.checkpoint()
        return self._known.get(folder, Place("", folder, "", branch))


def look(folder: str) -> Place:
    """The place of an absolute folder; blocks on the file system."""
    try:
        found = located(folder)
    except (OSError, ValueError):
        found = None
    if found is None:
        return Place("", folder)
    project = _project(found.shared)
    return Place(str(found.shared), str(found.copy), found.inside, found.branch, project)


@dataclass(frozen=True, slots=True)
class Located:
    """A repository as it lies: the working copy, its own folder, and the one that it shares.

    `inside` is the path of the folder that was asked about below the copy; `ref` is what is
    checked out ("refs/heads/main"), "" for none, and `head` its commit where no ref is.
    """

    copy: Path
    own: Path
    shared: Path
    inside: str
    ref: str
    head: str
    bare: bool = False

    @property
    def branch(self) -> str:
        """The branch that is checked out; "" for none."""
        return self.ref.removeprefix(_BRANCHES) if self.ref.startswith(_BRANCHES) else ""


def located(folder: str) -> Located | None:
    """The repository that an absolute folder lies in; None: in none. Blocks as its files do.

    Raises `OSError` and `ValueError` for one that is broken.
    """
    here = Path(folder)
    for copy in (here, *here.parents):
        git, bare = copy / ".git", False
        if git.is_dir():
            own = shared = _real(git)
        elif git.is_file():
            own = _pointed_to(git)
            shared = _shared_by(own)
        elif all((copy / name).exists() for name in ("HEAD", "objects", "refs")):
            own, shared, bare = copy, copy, True
        else:
            continue
        inside = "" if copy == here else str(here.relative_to(copy))
        head = first_line(own / "HEAD")
        ref = head.removeprefix("ref: ") if head.startswith("ref: ") else ""
        return Located(copy, own, shared, inside, ref, "" if ref else head, bare)
    return None


def _pointed_to(git: Path) -> Path:
    """The folder that a working tree's `.git` file names."""
    named = first_line(git).removeprefix("gitdir: ")
    return _real(git.parent / named)


def _shared_by(own: Path) -> Path:
    """The repository of which a working tree's folder is a part; itself for a submodule."""
    common = own / "commondir"
    return _real(own / first_line(common)) if common.is_file() else own


def _real(path: Path) -> Path:
    """Where a path leads; as far as it does, where its links are a loop.

    Unlike `Path.resolve`, which some versions have raise `RuntimeError` for a loop; so do all
    for a chain of links longer than the stack: `OSError` here.
    """
    try:
        return Path(os.path.realpath(path))
    except RecursionError as error:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error


def _project(shared: Path) -> str:
    """What the repository is a clone of; itself where it is none.

    However it is reached (by which protocol, as whom): no secret of an address is in it.
    """
    try:
        found = _ORIGIN.search(_text(shared / "config"))
    except OSError:
        found = None
    origin = found[1].strip(' \t\r"').removeprefix("file://") if found else str(shared)
    if found and "://" not in origin and ":" not in origin:
        origin = os.path.normpath(shared.parent / origin)
    elif far := _FAR.fullmatch(origin):
        origin = f"{far[1]}/{far[2]}".lower()
    return origin.rstrip("/").removesuffix(".git").rstrip("/")


def first_line(path: Path) -> str:
    """The first line of a small regular file. Raises `OSError` for anything else."""
    return _text(path).partition("\n")[0].strip()


def _text(path: Path) -> str:
    # Opening what an agent put in a file's place (a pipe, say) could wait for ever.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"{path} is no regular file")
        return file.read(_LARGEST_FILE).decode("utf-8", "replace")
