"""The reference file, the schema and the values in force follow from the settings."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from custosd.config.manual import default_text, look_up, nearest, schema, shown_text, values
from custosd.config.reading import read, read_config
from custosd.config.settings import Config
from custosd.config.sources import Source
from custosd.config.tree import entries

REFERENCE = Path(__file__).resolve().parent.parent / "config" / "custosd.toml"


REPEATED = {"root", "agent", "model", "ensemble", "repository"}


def uncommented(text: str) -> str:
    """All keys of the reference put in force; prose comments have a space behind the #."""
    return re.sub(r"(?m)^#(?=\S)", "", text)


def test_the_shipped_file_is_the_printed_reference() -> None:
    """It is renewed by: custosd config default > config/custosd.toml."""
    assert REFERENCE.read_text() == default_text()


def test_the_shipped_file_changes_nothing() -> None:
    assert read_config([Source(str(REFERENCE))]) == Config()


def test_the_reference_names_every_key_with_its_default() -> None:
    text = uncommented(default_text())
    data = tomllib.loads(text)
    for entry in entries():
        here: Any = data
        for part in entry.path:
            here = here[part]
            here = here[0] if isinstance(here, list) and part in REPEATED else here
        if entry.kind is not None:
            assert here == entry.example
    config = read_config([Source("reference", text.encode())])
    plain = {"transcripts": Config().transcripts, "agents": (), "models": (), "ensembles": ()}
    plain["sync"] = Config().sync
    assert config.model_copy(update=plain) == Config()
    assert [agent.id for agent in config.agents] == ["builder-1"]


def test_lines_of_the_reference_fit_a_page() -> None:
    assert max(map(len, default_text().splitlines())) <= 100


SAMPLE = """
[guardian]
interval = 90
[[transcripts.root]]
path = "/a \\"b\\" é"
glob = ["*.md", "x/*"]
[[transcripts.root]]
path = "/c"
format = "pi"
[store]
dsn = "postgresql://u@h1,h2/d"
"""


def test_what_is_shown_reads_back_the_same() -> None:
    reading = read([Source("a.toml", SAMPLE.encode())])
    text = shown_text(reading)
    # A DSN excludes the private server's keys even at their defaults.
    text = re.sub(r"(?ms)^\[store.embedded\].*?\n\n", "", text)
    assert read_config([Source("shown", text.encode())]) == reading.config


def test_what_is_shown_has_its_origin() -> None:
    reading = read([Source("a.toml", SAMPLE.encode())])
    lines = shown_text(reading).splitlines()
    assert 'interval = "90s"                          # a.toml:3' in lines
    assert "concurrency = 10                          # default" in lines
    shown = {value.path: value.origin for value in values(reading)}
    assert str(shown["transcripts", "root", 1, "path"]) == "a.toml:8"
    assert shown["transcripts", "root", 1, "glob"] is None


def _agrees(value: object, form: dict[str, Any]) -> bool:
    """As much of JSON Schema as our keys use."""
    if "anyOf" in form:
        return any(_agrees(value, one) for one in form["anyOf"])
    types = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list}
    if not isinstance(value, types[form["type"]]):
        return False
    if isinstance(value, bool) and form["type"] != "boolean":
        return False
    if isinstance(value, str):
        fits = form.get("minLength", 0) <= len(value) <= form.get("maxLength", len(value))
        return (
            fits
            and bool(re.search(form.get("pattern", ""), value))
            and (value in form.get("enum", [value]))
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        return form.get("minimum", value) <= value <= form.get("maximum", value)
    return True


TRIED: list[object] = [
    "",
    "a",
    "/a",
    "~/a",
    "a/b",
    "5s",
    "1h30m",
    "0s",
    "250ms",
    "30",
    "10MiB",
    "2 GB",
    0,
    1,
    6,
    20,
    -1,
    0.5,
    True,
    "auto",
    "info",
    "rules",
    "postgresql://h/d",
    ["*"],
    [],
    {},
]


def test_the_schema_lets_through_what_the_settings_take() -> None:
    """Of values within range it says the same, but for what only the parser knows."""
    definitions = schema()["$defs"]
    compared = 0
    for entry in entries():
        if entry.kind is None:
            continue
        parent = look_up(".".join(entry.path[:-1]))
        assert parent
        assert parent.section
        form = definitions[parent.section.__name__]["properties"][entry.name]
        for value in [*TRIED, entry.example]:
            try:
                entry.kind.parse(value)
            except ValueError:
                continue
            assert _agrees(value, form), (entry.path, value)
            compared += 1
        assert not _agrees({} if form.get("type") != "object" else 0, form)
    assert compared > len(entries())


def test_the_schema_knows_no_other_keys() -> None:
    for form in [schema(), *schema()["$defs"].values()]:
        assert form["additionalProperties"] is False
        assert form["description"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("guardian.interval", "guardian.interval"),
        ("guardian", "guardian"),
        ("transcripts.root.path", "transcripts.root.path"),
        ("transcripts.root[0].path", "transcripts.root.path"),
    ],
)
def test_keys_are_looked_up_by_their_names(name: str, found: str) -> None:
    entry = look_up(name)
    assert entry
    assert ".".join(entry.path) == found


@pytest.mark.parametrize("name", ["", ".", "guardian.", "interval", "guardian.interval.x", "a[b]"])
def test_other_names_are_unknown(name: str) -> None:
    assert look_up(name) is None


def test_the_nearest_names_come_first() -> None:
    assert nearest("guardin.interval")[0] == "guardian.interval"
    assert nearest("max_line") == ["transcripts.max_line"]
    assert nearest("%%%") == []
