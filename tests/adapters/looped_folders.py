"""Folders whose git files lead round in a circle, or further than a stack is deep."""

from collections.abc import Callable, Mapping
from pathlib import Path


def _loop(folder: Path) -> None:
    (folder / "l1").symlink_to("l2")
    (folder / "l2").symlink_to("l1")


def _pointed_to(folder: Path) -> None:
    _loop(folder)
    (folder / ".git").write_text("gitdir: l1\n")


def _is_one(folder: Path) -> None:
    _loop(folder)
    (folder / ".git").symlink_to("l1")


def _shared(folder: Path) -> None:
    _loop(folder)
    (folder / "own").mkdir()
    (folder / "own" / "commondir").write_text("../l1\n")
    (folder / ".git").write_text("gitdir: own\n")


def _long(folder: Path) -> None:
    for number in range(1_200):
        (folder / f"l{number}").symlink_to(f"l{number + 1}")
    (folder / ".git").write_text("gitdir: l0\n")


LOOPED: Mapping[str, Callable[[Path], None]] = {
    "gitdir": _pointed_to,
    "git itself": _is_one,
    "commondir": _shared,
    "a chain": _long,
}
"""Each puts its links into an empty folder."""
