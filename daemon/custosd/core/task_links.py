"""To which tasks a work belongs, by what is written on it.

    branch   task/T-12, T-12-fix-the-parser           title  [T-12] Fix the parser
    trailer  Task: T-12       Closes-Task: T-12       body   closes task T-12

Laws:

1. Texts are strangers': everything is bounded, every pattern linear in the text.
2. What is found are candidates, the surest first; which of them are tasks, `belonging` says.
   Of one branch the longest name that is a task counts, and no shorter one in it.
3. What stands in code or in a comment is an example, or a template's, and says nothing.
4. A pull request ends what it belongs to; a commit only what it says it closes: it is
   often one of several.
"""

import re
from collections.abc import Collection, Iterable

from custosd.core.forge import MOST_LINKS, ForgeWork, Link, LinkHow
from custosd.core.tasks import TaskId, is_task_id

LONGEST_TEXT = 20_000
MOST_LINES = 500
LONGEST_LINE = 1_000

_TRAILER = re.compile(r"(?P<word>closes-task|task)s?:[ \t]*(?P<tasks>\S.*)", re.IGNORECASE)
_CLOSING = re.compile(
    r"\b(?:close[sd]?|fix(?:e[sd])?|resolve[sd]?)[ \t]{1,3}task[ \t]{1,3}"
    r"[`'\"(]?(?P<task>[A-Za-z0-9][^\s,;]{0,199})",
    re.IGNORECASE,
)
_BRACKET = re.compile(r"\[([^\[\]\s]{1,200})\]")
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_CODE = ("    ", "\t")
_SEPARATORS = "-_."
_MOST_CUTS = 12
_MOST_PARTS = 8


def links_of_pull_request(branch: str, title: str, body: str) -> tuple[Link, ...]:
    """The tasks that a pull request may belong to; all of them are done once it has landed."""
    found = [*_trailers(body, closing=True), *_closings(body)]
    found += [Link(task, LinkHow.TITLE, closes=True) for task in _bracketed(title)]
    found += [Link(task, LinkHow.BRANCH, closes=True) for task in _named_by(branch)]
    return _distinct(found)


def links_of_commit(message: str) -> tuple[Link, ...]:
    """The tasks that a commit may belong to; done are those that it says it closes."""
    return _distinct([*_trailers(message, closing=False), *_closings(message)])


def links_of_issue(title: str, body: str) -> tuple[Link, ...]:
    """The tasks that an issue may belong to; an issue ends none."""
    found = [*_trailers(body, closing=False)]
    found += [Link(task, LinkHow.TITLE, closes=False) for task in _bracketed(title)]
    return _distinct(Link(link.task, link.how, closes=False) for link in found)


def belonging(work: ForgeWork, known: Collection[TaskId]) -> tuple[Link, ...]:
    """Those of a work's links whose tasks there are; of its branch the longest name only."""
    real = [link for link in work.links if link.task in known]
    named = [link for link in real if link.how is LinkHow.BRANCH]
    longest = max(named, key=lambda link: len(link.task), default=None)
    return tuple(link for link in real if link.how is not LinkHow.BRANCH or link is longest)


def _lines(text: str) -> Iterable[str]:
    """Lines of prose: no comments, and no code, where examples stand."""
    fence = ""
    for line in _COMMENT.sub(" ", text[:LONGEST_TEXT]).splitlines()[:MOST_LINES]:
        if found := _FENCE.match(line):
            if not fence:
                fence = found[1]
            elif found[1].startswith(fence) and not line[found.end() :].strip():
                fence = ""
        elif not fence and not line.startswith(_CODE):
            yield line.strip()[:LONGEST_LINE]


def _trailers(text: str, *, closing: bool) -> Iterable[Link]:
    for line in _lines(text):
        if found := _TRAILER.match(line):
            closes = closing or found["word"].lower() == "closes-task"
            for name in re.split(r"[,\s]+", found["tasks"]):
                if task := _task(name):
                    yield Link(task, LinkHow.TRAILER, closes)


def _closings(text: str) -> Iterable[Link]:
    for line in _lines(text):
        for found in _CLOSING.finditer(line):
            if task := _task(found["task"]):
                yield Link(task, LinkHow.BODY, closes=True)


def _bracketed(title: str) -> Iterable[TaskId]:
    for found in _BRACKET.finditer(title[:LONGEST_LINE]):
        for name in dict.fromkeys((found[1], found[1].removeprefix("task-"))):
            if task := _task(name):
                yield task


def _named_by(branch: str) -> Iterable[TaskId]:
    """The branch, its ends after each slash, and the beginnings of the last that hold a digit."""
    parts = branch[:LONGEST_LINE].removeprefix("refs/heads/").split("/")
    for first in range(min(len(parts), _MOST_PARTS)):
        if task := _task("/".join(parts[first:])):
            yield task
    last = parts[-1]
    cuts = [at for at, character in enumerate(last) if character in _SEPARATORS]
    for cut in cuts[:_MOST_CUTS]:
        beginning = last[:cut]
        # "fix-the-parser" is not about a task called "fix".
        if any(character.isdigit() for character in beginning) and (task := _task(beginning)):
            yield task


def _task(name: str) -> TaskId | None:
    name = name.strip().strip("`'\"()").rstrip(".,;:!")
    return TaskId(name) if is_task_id(name) else None


def _distinct(links: Iterable[Link]) -> tuple[Link, ...]:
    """One link a task, the surest kind of it; it closes if any of them does."""
    kept: dict[TaskId, Link] = {}
    for link in links:
        known = kept.get(link.task)
        if known is None and len(kept) < MOST_LINKS:
            kept[link.task] = link
        elif known is not None and link.closes and not known.closes:
            kept[link.task] = Link(known.task, known.how, closes=True)
    return tuple(kept.values())
