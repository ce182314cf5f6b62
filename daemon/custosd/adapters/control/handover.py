"""What a new incarnation finds: a file with what is known of its work, and its environment.

    <folder>/<agent>/handover.json, <folder>/<agent>/environment

Law: each file is written beside its place and moved there whole; who reads it never sees
half of it. It holds what the agent's own transcript held, so only its owner may read it.
"""

import json
import os
import tempfile
from pathlib import Path

import trio

from custosd.core.errors import ControlError
from custosd.ports import HandOver

LONGEST_TEXT = 20_000
"""Characters of each text that are handed over."""


def environment_of(key: str, hand_over: HandOver, file: Path) -> dict[str, str]:
    """The variables that a new incarnation is started with."""
    return {
        "CUSTOSD_AGENT": hand_over.agent,
        "CUSTOSD_EPOCH": str(hand_over.epoch),
        "CUSTOSD_HANDOVER": str(file),
        "CUSTOSD_RESTART": key,
    }


async def write_hand_over(
    folder: Path, key: str, hand_over: HandOver, owner: int | None = None
) -> dict[str, str]:
    """Write the file and `environment` for an agent; return the variables.

    `owner` is the user that the files are given to, where we may. Raises `ControlError`.
    """
    try:
        return await trio.to_thread.run_sync(
            _write, folder, key, hand_over, owner, abandon_on_cancel=True
        )
    except OSError as error:
        raise ControlError(
            "handover_unwritten", f"the hand-over for {hand_over.agent} in {folder}: {error}"
        ) from error


def _write(folder: Path, key: str, hand_over: HandOver, owner: int | None) -> dict[str, str]:
    place = folder / hand_over.agent
    place.mkdir(parents=True, exist_ok=True, mode=0o755)
    place.chmod(0o755)
    file = place / "handover.json"
    form = {
        "agent": hand_over.agent,
        "epoch": hand_over.epoch,
        "cause": hand_over.cause,
        "summary": hand_over.summary[:LONGEST_TEXT],
        "goal": hand_over.goal[:LONGEST_TEXT],
        "task": hand_over.task[:LONGEST_TEXT],
        "constraints": [text[:LONGEST_TEXT] for text in hand_over.constraints],
    }
    _replace(file, json.dumps(form, ensure_ascii=False, indent=1).encode("utf-8", "replace"), owner)
    variables = environment_of(key, hand_over, file)
    lines = "".join(f"{name}={value}\n" for name, value in variables.items())
    _replace(place / "environment", lines.encode(), owner)
    return variables


def _replace(file: Path, data: bytes, owner: int | None) -> None:
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
            if owner is not None and os.geteuid() == 0:
                os.fchown(out.fileno(), owner, -1)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_key(folder: Path, agent: str) -> str:
    """The key of the restart that last wrote an environment for this agent; "" for none."""
    try:
        text = (folder / agent / "environment").read_text()
    except OSError:
        return ""
    variables = dict(line.partition("=")[::2] for line in text.splitlines())
    return variables.get("CUSTOSD_RESTART", "")
