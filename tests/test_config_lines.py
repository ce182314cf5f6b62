"""Where keys stand in a TOML text."""

import json
import tomllib
from collections.abc import Iterator
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from custosd.config.lines import lines_of

TRICKY = '''\
# a = 1
top = """one
two = 2
""""                # its last quote belongs to the text
'quoted key' . "b.c" = 3
literal = \'\'\'
[not a table] \\
\'\'\'

[one] # [two]
list = [ # a comment with ] in it
  "x ] y",
  [1,
   2], { inner = "}", deep.er = [
     3] },
]
empty = []
date = 1979-05-27 07:32:00

[one.sub]
k = 'a # b'

[[many]]
a = 1
[[many]]
a = 2
[many.part]
b = 1
[[many.more]]
c = 1
[[many.more]]
c = 2
[many . "more".x]
d = 1
'''


def test_every_kind_of_toml_is_stepped_over() -> None:
    tomllib.loads(TRICKY)
    assert lines_of(TRICKY) == {
        ("top",): 2,
        ("quoted key",): 5,
        ("quoted key", "b.c"): 5,
        ("literal",): 6,
        ("one",): 10,
        ("one", "list"): 11,
        ("one", "list", 0): 12,
        ("one", "list", 1): 13,
        ("one", "list", 1, 0): 13,
        ("one", "list", 1, 1): 14,
        ("one", "list", 2): 14,
        ("one", "list", 2, "inner"): 14,
        ("one", "list", 2, "deep"): 14,
        ("one", "list", 2, "deep", "er"): 14,
        ("one", "list", 2, "deep", "er", 0): 15,
        ("one", "empty"): 17,
        ("one", "date"): 18,
        ("one", "sub"): 20,
        ("one", "sub", "k"): 21,
        ("many",): 23,
        ("many", 0): 23,
        ("many", 0, "a"): 24,
        ("many", 1): 25,
        ("many", 1, "a"): 26,
        ("many", 1, "part"): 27,
        ("many", 1, "part", "b"): 28,
        ("many", 1, "more"): 29,
        ("many", 1, "more", 0): 29,
        ("many", 1, "more", 0, "c"): 30,
        ("many", 1, "more", 1): 31,
        ("many", 1, "more", 1, "c"): 32,
        ("many", 1, "more", 1, "x"): 33,
        ("many", 1, "more", 1, "x", "d"): 34,
    }


def test_lines_count_the_same_with_carriage_returns() -> None:
    assert lines_of(TRICKY.replace("\n", "\r\n")) == lines_of(TRICKY)


names = st.text(alphabet="ab.-_ \"'#=[]\n\\é", min_size=1, max_size=5)
texts = st.text(alphabet="ab \"'#=[]{},\n\\", max_size=8)
scalars = texts | st.integers(-9, 9) | st.booleans()
inline = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=2)
)
documents = st.dictionaries(
    names,
    inline
    | st.dictionaries(names, inline, max_size=3).map(lambda d: ("table", d))
    | st.lists(st.dictionaries(names, inline, max_size=3), min_size=1, max_size=3).map(
        lambda d: ("tables", d)
    ),
    max_size=5,
)


def _key(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _text(value: Any, *, literal: bool) -> str:
    if isinstance(value, list):
        return "[\n" + "".join(f" {_text(v, literal=literal)}, # ]\n" for v in value) + "]"
    if isinstance(value, dict):
        parts = (f"{_key(k)} = {_text(v, literal=literal)}" for k, v in value.items())
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, str) and literal and "'" not in value:
        return f"'''{value}'''"
    return json.dumps(value, ensure_ascii=False)


def _toml(document: dict[str, Any], *, literal: bool) -> str:
    lines: list[str] = []

    def pairs(table: dict[str, Any]) -> None:
        lines.extend(f"  {_key(k)}= {_text(v, literal=literal)} # =" for k, v in table.items())

    pairs({k: v for k, v in document.items() if not isinstance(v, tuple)})
    for name, value in document.items():
        if isinstance(value, tuple) and value[0] == "table":
            lines.append(f"[ {_key(name)} ]")
            pairs(value[1])
        elif isinstance(value, tuple):
            for table in value[1]:
                lines.append(f"[[{_key(name)}]]")
                pairs(table)
    return "\n".join(lines)


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    parts = value.items() if isinstance(value, dict) else ()
    parts = enumerate(value) if isinstance(value, list) else parts
    for part, inner in parts:
        yield (*path, part)
        yield from _paths(inner, (*path, part))


@given(document=documents, literal=st.booleans())
def test_all_keys_of_the_parser_have_a_line_and_no_others(
    *, document: dict[str, Any], literal: bool
) -> None:
    text = _toml(document, literal=literal)
    found = lines_of(text)
    assert set(found) == set(_paths(tomllib.loads(text)))
    assert all(1 <= line <= text.count("\n") + 1 for line in found.values())


@given(st.text(alphabet="ab=[]{}\"'.,#\n\\ 1"))
@example("a=[}")
def test_text_that_is_no_toml_is_only_skipped(text: str) -> None:
    """Never an error of its own, and always an end."""
    try:
        lines_of(text)
    except tomllib.TOMLDecodeError:
        return
