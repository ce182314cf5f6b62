"""The tasks of a trio run as a tree: who runs in whose nursery, and where each one waits.

    main
      nursery 1
        guard_trajectories  waits at guardian.py:481 guard_trajectories

Only code's own names and places stand in it, no values.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

import trio

MOST_TASKS = 20_000
"""How many tasks a dump tells of; the others are counted."""

_LIBRARY = PurePath(trio.__file__).parent


@dataclass(frozen=True, slots=True)
class TaskSeen:
    """One task at one moment.

    `depth` is 0 for the first task, and one more in each nursery; `nursery` its number in
    its parent, from 1. `waits_at` is the innermost frame outside of trio, "file:line
    function"; `inside` the frame of trio that it waits in, "" where there is none.
    """

    name: str
    depth: int
    nursery: int
    waits_at: str
    inside: str


def tasks(root: trio.lowlevel.Task | None = None) -> Iterator[TaskSeen]:
    """Every task, parents before children; of the whole run, or below `root`.

    To be used in trio's thread without an await in between. Some 3 µs a task.
    """
    first = root or trio.lowlevel.current_root_task()
    # A stack of our own: nurseries may lie deeper in each other than Python likes to recurse.
    left = [(first, 0, 0)] if first is not None else []
    while left:
        task, depth, nursery = left.pop()
        waits_at, inside = _places(task)
        yield TaskSeen(task.name, depth, nursery, waits_at, inside)
        children = [
            (child, depth + 1, number)
            for number, nursery_of in enumerate(task.child_nurseries, 1)
            for child in sorted(nursery_of.child_tasks, key=lambda one: one.name)
        ]
        left.extend(reversed(children))


def task_tree(root: trio.lowlevel.Task | None = None, *, most: int = MOST_TASKS) -> str:
    """The tree as lines for a person."""
    lines: list[str] = []
    count = 0
    for seen in tasks(root):
        count += 1
        if count > most:
            continue
        nursery = f"[{seen.nursery}] " if seen.nursery > 1 else ""
        inside = f" in {seen.inside}" if seen.inside else ""
        where = f"  waits at {seen.waits_at}{inside}" if seen.waits_at else ""
        lines.append(f"{'  ' * seen.depth}{nursery}{seen.name}{where}")
    if count > most:
        lines.append(f"... and {count - most} more")
    return "\n".join(lines)


def _places(task: trio.lowlevel.Task) -> tuple[str, str]:
    ours = theirs = ""
    for frame, line in task.iter_await_frames():
        code = frame.f_code
        path = PurePath(code.co_filename)
        if path.is_relative_to(_LIBRARY):
            # The entrance to trio says what is waited for: `MemoryReceiveChannel.receive`.
            theirs = theirs or code.co_qualname
        else:
            ours, theirs = f"{path.name}:{line} {code.co_qualname}", ""
    return ours, theirs
