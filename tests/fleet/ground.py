"""Where the fleet works: repositories with worktrees, folders, and the daemon's configuration."""

import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.fleet.plan import FUNCTIONS, Plan

LINES = 20
"""How long a function is: edits at both ends of a file are far apart."""

CONFIG = """
[daemon]
state_dir = "{home}/state"
[store.embedded]
shared_buffers = "32MiB"
[transcripts]
discover = false
[guardian]
interval = "{look}"
cadence = "{look}"
grace = "0s"
[conductor]
interval = "{look}"
[alerts]
storm = 10000
[doors]
listen = "127.0.0.1:{port}"
"""

AGENT = """
[[agent]]
id = "{name}"
transcripts = ["{home}/transcripts/{name}"]
workspace = "{home}/{folder}"
"""


@dataclass(frozen=True, slots=True)
class Ground:
    """A home, and where the daemon listens: the same address in each of its lives."""

    home: Path
    config: Path
    url: str


def prepare(home: Path, plan: Plan, look: str) -> Ground:
    """Make everything that the fleet finds when it begins."""
    for name in ("flags", "records", "members", "work", "trees", "scratch"):
        (home / name).mkdir()
    for member in plan.members:
        (home / "transcripts" / member.name).mkdir(parents=True)
    for name, slugs in plan.modules.items():
        _repository(home / "work" / name, slugs)
    for folder, name in plan.trees.items():
        branch = folder.replace("/", "-")
        _git(home / "work" / name, "worktree", "add", "-q", "-b", branch, str(home / folder))
    port = _free_port()
    config = home / "custosd.toml"
    agents = (AGENT.format(name=m.name, folder=m.folder, home=home) for m in plan.members)
    config.write_text(CONFIG.format(home=home, look=look, port=port) + "".join(agents))
    return Ground(home, config, f"http://127.0.0.1:{port}")


def module(slug: str) -> str:
    """A module of a project: eight functions that have nothing to do with each other."""
    parts = [f'"""The {slug} of the project."""\n']
    for function in FUNCTIONS:
        body = "".join(f"    rows.append({slug!r} + {n!r})\n" for n in map(str, range(LINES)))
        parts.append(f"def {function}(rows):\n    # To {function} it.\n{body}    return rows\n")
    return "\n\n".join(parts)


def _repository(folder: Path, slugs: list[str]) -> None:
    (folder / "src").mkdir(parents=True)
    (folder / "README.md").write_text(f"# {folder.name}\n")
    for slug in slugs:
        (folder / "src" / f"{slug}.py").write_text(module(slug))
    _git(folder, "init", "-q", "-b", "main")
    _git(folder, "add", ".")
    _git(folder, "commit", "-q", "-m", "Begin")


def _git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=Fleet", "-c", "user.email=fleet@example.org")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
