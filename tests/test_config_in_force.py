"""Every key that an answer to "why" names is a key, and its value is told with its line."""

import ast
import re
from pathlib import Path

import custosd.core
from custosd.config.in_force import InForce
from custosd.config.reading import Reading, read
from custosd.config.settings import Config
from custosd.config.sources import Source
from custosd.config.tree import entries
from custosd.core.agents import AgentId
from custosd.core.explanations import Setting

ADA, BOB, GUEST = AgentId("ada"), AgentId("bob"), AgentId("guest")
TEXT = """[liveness]
margin = "7s"
[[agent]]
id = "bob"
[[agent]]
id = "ada"
beat_interval = "12s"
"""


def reading(tmp_path: Path) -> tuple[Reading, str]:
    file = tmp_path / "custosd.toml"
    file.write_text(TEXT)
    return read([Source(str(file))]), str(file)


def test_a_key_that_is_written_has_its_line_and_another_is_the_default(tmp_path: Path) -> None:
    found, file = reading(tmp_path)
    in_force = InForce(found)
    assert in_force.setting(ADA, "liveness.margin") == Setting(
        "liveness.margin", '"7s"', f"{file}:2"
    )
    assert in_force.setting(ADA, "liveness.gaps") == Setting("liveness.gaps", "200", "")


def test_a_key_of_an_agent_is_that_of_its_own_table(tmp_path: Path) -> None:
    found, file = reading(tmp_path)
    in_force = InForce(found)
    key = "agent.beat_interval"
    assert in_force.setting(ADA, key) == Setting(key, '"12s"', f"{file}:7")
    assert in_force.setting(BOB, key).place == ""
    assert in_force.setting(BOB, key).value
    assert in_force.setting(GUEST, key) == Setting(key)


def test_a_key_that_is_none_has_no_value() -> None:
    assert InForce(Reading(Config(), {})).setting(ADA, "no.such") == Setting("no.such")


def test_every_key_that_the_core_names_is_a_key() -> None:
    known = {".".join(entry.path) for entry in entries() if entry.kind is not None}
    sections = {entry.path[0] for entry in entries()}
    key = re.compile(rf"({'|'.join(sections)})\.[a-z_]+")
    named = set()
    for path in Path(next(iter(custosd.core.__path__))).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            value = node.value if isinstance(node, ast.Constant) else None
            if isinstance(value, str) and key.fullmatch(value):
                named.add(value)
    assert {"liveness.margin", "restarts.backoff", "agent.control"} <= named
    assert named <= known
