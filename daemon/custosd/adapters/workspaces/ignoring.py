"""What a folder's .gitignore files leave out; the patterns are pathspec's business.

Law: these files are an agent's, and a pattern becomes a regular expression, which one with
many wildcards makes run for hours: such a pattern is left out, and told.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pathspec import GitIgnoreSpec, RegexPattern

from custosd.adapters.workspaces.folders import NotRead, file_in

NAME = ".gitignore"

LARGEST_FILE = 256 * 1024
MOST_PATTERNS = 500
LONGEST_PATTERN = 512
LONGEST_PATH = 1_024
"""Of a longer path nothing is said: it is not ignored."""

_MOST_STARS = 3
"""Wildcards between two slashes: a fourth makes it a matter of seconds for one name."""

_MOST_DEEP = 2
_STARS = re.compile(r"\*+")
_ANYTHING = re.compile(".*", re.DOTALL)
_ODD_SET = re.compile(r"\[.*(?:\[|--|&&|~~|\|\|)")
"""A set that regular expressions will once read in another way, and warn of until then."""


_Pattern = tuple[re.Pattern[str], bool]
"""What a path must fit, and whether it is left out then."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The files that count for a folder, the nearest last: (path of its folder, patterns).

    Paths are those below the working copy; a folder's ends in a slash, "" is the copy itself.
    """

    specs: tuple[tuple[str, tuple[_Pattern, ...]], ...] = ()

    def ignores(self, path: str) -> bool:
        """Whether this path is left out; a folder's path ends in a slash."""
        if len(path) > LONGEST_PATH:
            return False
        for base, patterns in reversed(self.specs):
            below = path.removeprefix(base)
            for regex, ignored in reversed(patterns):
                match = regex.match(below)
                # What a pattern says of a folder is not said of what lies in it: an ignored
                # one is not gone into, and one that is let in again decides nothing more.
                if match is not None and match.end() == len(below):
                    return ignored
        return False


def with_file_of(
    rules: Rules, folder: int, base: str, name: str = NAME, owner: int | None = None
) -> tuple[Rules, str]:
    """The rules below this open folder, and what is wrong with its file: "" for nothing.

    `owner` as `folders.file_in` has it.
    """
    try:
        with file_in(folder, name, owner) as (fd, status):
            if not status.st_size:
                return rules, ""
            with open(fd, "rb", closefd=False) as file:
                text = file.read(LARGEST_FILE).decode("utf-8", "replace")
    except FileNotFoundError:
        return rules, ""
    except NotRead as why:
        return rules, str(why)
    return with_patterns(rules, base, text)


def with_patterns(rules: Rules, base: str, text: str) -> tuple[Rules, str]:
    """The rules with these lines after them, and what is wrong with the lines."""
    lines = text.removeprefix("\ufeff").splitlines()
    kept = [_as_git_reads(line) for line in lines[:MOST_PATTERNS] if not _is_left_out(line)]
    patterns = [pattern for line in kept for pattern in _patterns(line)]
    trouble = "" if len(kept) == len(lines) else "patterns_left_out"
    return Rules((*rules.specs, (base, tuple(patterns)))), trouble


def _patterns(line: str) -> Iterator[_Pattern]:
    """The pattern of a line: none for a comment, and for one that cannot be read."""
    try:
        spec = GitIgnoreSpec.from_lines([line])
    except ValueError:
        return
    for pattern in spec.patterns:
        if pattern.include is not None and isinstance(pattern, RegexPattern):
            assert pattern.regex is not None  # noqa: S101 - of one that says anything
            # Of "everything" the library keeps the first character only.
            anything = pattern.regex.pattern == "."
            yield (_ANYTHING if anything else pattern.regex), pattern.include


def _as_git_reads(line: str) -> str:
    """What is in a folder, as `/**` says, is not the folder itself: to the library it is."""
    bare = line.rstrip()
    return f"{bare}/*" if bare.endswith("/**") else line


def _is_left_out(line: str) -> bool:
    parts = line.split("/")
    deep = sum("**" in part for part in parts)
    stars = max(len(_STARS.findall(part)) for part in parts)
    return (
        len(line) > LONGEST_PATTERN
        or deep > _MOST_DEEP
        or stars > _MOST_STARS
        or bool(_ODD_SET.search(line))
    )
