"""What a new incarnation finds: a file with what is known of its work, and its environment.

    FOLDER/AGENT/handover.json      agent, epoch, cause, summary, goal, task, constraints
    FOLDER/AGENT/environment        NAME="value", as systemd and a shell read it

Laws:

1. Each file is written beside its place and moved there whole: who reads it never sees half
   of it. It holds what the agent's own transcript held, so only its owner may read it, and
   the group that was named.
2. Texts and their number are bounded, and a name becomes part of a path only when it is one.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import trio

from custosd.core.errors import ControlError
from custosd.core.secrets import without_secrets
from custosd.flow.file_writer import write_whole
from custosd.ports import HandOver

LONGEST_TEXT = 20_000
"""Characters of each text that are handed over."""

MOST_CONSTRAINTS = 200

KEY = "CUSTOSD_RESTART"
"""Which restart an incarnation comes from; everything that it starts inherits it."""

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_SPECIAL = re.compile(r'(["\\$`])')


def plain(text: str, what: str) -> str:
    """The text itself, where it may stand in a path, a variable and a header."""
    if _PLAIN.fullmatch(text):
        return text
    raise ControlError("bad_name", f"{what} has 1 to 128 letters, digits and . _ : - only")


def place_of(folder: Path, agent: str) -> Path:
    """The folder of one agent; raises `ControlError` "bad_name"."""
    return folder / plain(agent, "the id of an agent that is started")


def environment_of(key: str, hand_over: HandOver, file: Path) -> dict[str, str]:
    """The variables that a new incarnation is started with."""
    return {
        "CUSTOSD_AGENT": hand_over.agent,
        "CUSTOSD_EPOCH": str(hand_over.epoch),
        "CUSTOSD_HANDOVER": str(file),
        KEY: plain(key, "the key of a restart"),
    }


async def write_hand_over(
    folder: Path,
    key: str,
    hand_over: HandOver,
    readers: int | None = None,
    told: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Write both files for an agent; return the variables. Raises `ControlError`.

    `readers` is the id of the group that may read them, besides the user that we are: one that
    this user is in. `told` are more variables, by name: where the daemon's doors are.
    """
    place = place_of(folder, hand_over.agent)
    variables = dict(told or {}) | environment_of(key, hand_over, place / "handover.json")
    try:
        await trio.to_thread.run_sync(_write, place, hand_over, variables, readers)
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else str(error)
        raise ControlError(
            "handover_unwritten",
            f"{place}: {words}; the daemon must be able to write there, and be in the"
            " group of those that read it",
        ) from error
    return variables


def read_environment(folder: Path, agent: str) -> dict[str, str]:
    """What was last written for this agent to find; empty where nothing was."""
    try:
        lines = (place_of(folder, agent) / "environment").read_text().splitlines()
    except (OSError, ValueError):
        return {}
    return {
        name: re.sub(r'\\(["\\$`])', r"\1", value.removeprefix('"').removesuffix('"'))
        for name, _, value in (line.partition("=") for line in lines)
    }


def replace(file: Path, data: bytes, *, readers: int | None = None) -> None:
    """Put a file there whole, durably, for its owner and a group; blocks as the disk does."""
    mode, group = (0o600, -1) if readers is None else (0o640, readers)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        write_whole(data, file.name, folder, mode=mode, group=group)
    finally:
        os.close(folder)


def as_form(hand_over: HandOver) -> dict[str, object]:
    """The hand-over as it is written and posted: its texts without secrets, and bounded."""
    return {
        "agent": hand_over.agent,
        "epoch": hand_over.epoch,
        "cause": hand_over.cause,
        "summary": _told(hand_over.summary),
        "goal": _told(hand_over.goal),
        "task": hand_over.task[:LONGEST_TEXT],
        "constraints": list(map(_told, hand_over.constraints[:MOST_CONSTRAINTS])),
    }


def _told(text: str) -> str:
    return without_secrets(text)[:LONGEST_TEXT]


def _write(
    place: Path, hand_over: HandOver, variables: Mapping[str, str], readers: int | None
) -> None:
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    if readers is not None:
        # Whoever may read must be able to come there; not to see who else is handed over to.
        _open_way(place.parent, 0o711)
        _open_way(place, 0o710, readers)
    text = json.dumps(as_form(hand_over), ensure_ascii=False, indent=1)
    replace(place / "handover.json", text.encode("utf-8", "replace"), readers=readers)
    lines = "".join(f'{name}="{_quoted(value)}"\n' for name, value in variables.items())
    replace(place / "environment", lines.encode(), readers=readers)


def _open_way(folder: Path, mode: int, group: int = -1) -> None:
    status = folder.stat()
    if group not in {-1, status.st_gid}:
        os.chown(folder, -1, group)
    if status.st_mode & 0o7777 != mode:
        folder.chmod(mode)


def _quoted(value: str) -> str:
    if any(ord(character) < ord(" ") for character in value):
        raise ValueError("a variable may not hold control characters")
    return _SPECIAL.sub(r"\\\1", value)
