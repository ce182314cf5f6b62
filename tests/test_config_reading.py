"""Reading configuration files: what is in force, and what each mistake is answered with."""

# ruff: noqa: E501 - messages stand here as they are printed

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from custosd.config.problems import InvalidConfig, Problem, ProblemKind
from custosd.config.reading import Origin, read, read_config
from custosd.config.settings import Config
from custosd.config.sources import LARGEST_BYTES, Source, locate_config
from custosd.core.errors import ConfigError


def file(text: str | bytes, name: str = "a.toml") -> Source:
    return Source(name, text.encode() if isinstance(text, str) else text)


def mistakes(*sources: Source) -> list[str]:
    with pytest.raises(InvalidConfig) as caught:
        read_config(sources)
    return [str(problem) for problem in caught.value.problems]


def test_nothing_gives_the_defaults() -> None:
    assert read_config([]) == Config() == read_config([file("")])


def test_values_units_and_types() -> None:
    config = read_config(
        [
            file(
                "\ufeff[guardian]\r\ninterval = '1h30m'\r\ngrace = 2\n"
                "[transcripts]\nmax_line = '64 KiB'\n"
                "discover = false\n"
                "[[transcripts.root]]\npath = '~/x'\nglob = ['*.md']\nformat = 'aider'\n"
            )
        ]
    )
    assert config.guardian.interval_s == 5400.0
    assert config.guardian.grace_s == 2.0
    assert config.transcripts.max_line_bytes == 65536
    assert not config.transcripts.discover
    (root,) = config.transcripts.roots
    assert (root.path, root.glob, root.format) == (Path.home() / "x", ("*.md",), "aider")


def test_a_later_file_wins_key_by_key_and_lists_are_replaced() -> None:
    first = file(
        "[recorder]\nbatch = 7\nqueue = 70\n"
        "[[transcripts.root]]\npath = '/a'\n[[transcripts.root]]\npath = '/b'\n"
    )
    second = file("[recorder]\nqueue = 90\n[[transcripts.root]]\npath = '/c'\n", "b.toml")

    reading = read([first, second])

    assert (reading.config.recorder.batch, reading.config.recorder.queue) == (7, 90)
    assert [str(root.path) for root in reading.config.transcripts.roots] == ["/c"]
    assert reading.origins == {
        ("recorder", "batch"): Origin("a.toml", 2),
        ("recorder", "queue"): Origin("b.toml", 2),
        ("transcripts", "root"): Origin("b.toml", 3),
        ("transcripts", "root", 0): Origin("b.toml", 3),
        ("transcripts", "root", 0, "path"): Origin("b.toml", 4),
    }


DURATION = 'expected a duration from 1s to 1d ("90s", "1h30m", or seconds)'
NO_SECRET = "expected no secret in this file; everybody reads configuration files; "
DSN = (
    "a.toml:2: store.dsn = (not shown): expected a URL such as"
    ' "postgresql://user@host:5432/database", or empty'
)
NO_PASSWORD = (
    f"{DSN}; a password does not belong in the DSN: put it in a file of mode 0600 named by"
    " store.password_file, or in the systemd credential store.password_credential"
)
ROOT = "[[transcripts.root]]\npath = '/a'\n"
ONCE = "; each file is followed once; keep one root, with all the patterns it needs"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # unknown keys
        (
            "[guardian]\nintervall = 5",
            (
                "a.toml:2: guardian.intervall = 5: expected a key of [guardian];"
                " did you mean guardian.interval?"
            ),
        ),
        (
            "[guardian]\ninterval_s = 5",
            (
                "a.toml:2: guardian.interval_s = 5: expected a key of [guardian];"
                " did you mean guardian.interval?"
            ),
        ),
        (
            "[gardian]",
            (
                "a.toml:1: gardian = a table of 0: expected the name of a section;"
                " did you mean guardian?"
            ),
        ),
        (
            "[log]\nmax_files = 'x'",
            (
                'a.toml:2: log.max_files = "x": expected a key of [log];'
                " did you mean transcripts.max_files?"
            ),
        ),
        (
            '[log]\n"what\\nis this" = {}',
            (
                'a.toml:2: log."what\\nis this" = a table of 0: expected a key of [log];'
                " all keys: custosd config default"
            ),
        ),
        (
            ROOT + "globs = ['*']",
            (
                'a.toml:3: transcripts.root[0].globs = ["*"]: expected a key of [transcripts.root[0]];'
                " did you mean transcripts.root.glob?"
            ),
        ),
        # types and ranges
        (
            "[guardian]\ninterval = '5 parsecs'",
            f'a.toml:2: guardian.interval = "5 parsecs": {DURATION}',
        ),
        ("[guardian]\ninterval = 0", f"a.toml:2: guardian.interval = 0: {DURATION}"),
        ("[guardian]\ninterval = nan", f"a.toml:2: guardian.interval = nan: {DURATION}"),
        ("[guardian]\ninterval = true", f"a.toml:2: guardian.interval = true: {DURATION}"),
        ("[guardian]\ninterval = '60'", f'a.toml:2: guardian.interval = "60": {DURATION}'),
        (
            "guardian.interval.deep = 3",
            f"a.toml:1: guardian.interval = a table of 1: {DURATION}",
        ),
        (
            "[transcripts]\nmax_line = '1PiB'",
            (
                'a.toml:2: transcripts.max_line = "1PiB": expected a size from 4KiB to 1GiB'
                ' ("10MiB", "2GB", or bytes)'
            ),
        ),
        (
            "[store]\npool_size = 1.0",
            "a.toml:2: store.pool_size = 1.0: expected a whole number from 1 to 200 (connections)",
        ),
        (
            "[store]\npool_size = true",
            "a.toml:2: store.pool_size = true: expected a whole number from 1 to 200 (connections)",
        ),
        (
            "[detectors]\nalternations = 5",
            "a.toml:2: detectors.alternations = 5: expected a multiple of 2 from 0 to 1000 (steps)",
        ),
        (
            "[detectors]\nspend_usd = -1",
            "a.toml:2: detectors.spend_usd = -1: expected a number from 0 to 1000000 (US dollars)",
        ),
        (
            "[transcripts]\ndiscover = 1",
            "a.toml:2: transcripts.discover = 1: expected true or false",
        ),
        (
            "[log]\nformat = 'xml'",
            'a.toml:2: log.format = "xml": expected "auto", "json" or "console"',
        ),
        (
            "[daemon]\nname = ''",
            'a.toml:2: daemon.name = "": expected a text of at most 64 characters on one line',
        ),
        (
            "[daemon]\nstate_dir = 'here'",
            (
                'a.toml:2: daemon.state_dir = "here": expected the absolute path of a folder'
                " (~ is expanded), or empty; relative to which folder?"
                " write the path out from /, or from ~/"
            ),
        ),
        (
            "[daemon]\nstate_dir = '~no-such-user/x'",
            (
                'a.toml:2: daemon.state_dir = "~no-such-user/x": expected the absolute path of a folder'
                " (~ is expanded), or empty; there is no such user, or no home folder;"
                " write the path out"
            ),
        ),
        ("log = 3", "a.toml:1: log = 3: expected a table [log]"),
        ("[[log]]", "a.toml:1: log = a list of 1: expected a table [log]"),
        (
            "[store]\nembedded = []",
            "a.toml:2: store.embedded = []: expected a table [store.embedded]",
        ),
        (
            "[transcripts]\nroot = '/a'",
            'a.toml:2: transcripts.root = "/a": expected tables [[transcripts.root]]',
        ),
        (
            "[transcripts]\nroot = [\n  {path = '/a'},\n  '/b']",
            'a.toml:4: transcripts.root[1] = "/b": expected a table [[transcripts.root]]',
        ),
        (
            "[[transcripts.root]]\nformat = 'pi'",
            (
                "a.toml:1: transcripts.root[0].path: expected the absolute path of a folder"
                " (~ is expanded); the key is missing"
            ),
        ),
        (
            ROOT + "glob = []",
            (
                "a.toml:3: transcripts.root[0].glob = []: expected a list of patterns below the folder,"
                ' such as ["**/*.jsonl"]'
            ),
        ),
        (
            ROOT + "glob = ['*', '../*']",
            (
                'a.toml:3: transcripts.root[0].glob = ["*", "../*"]: expected a list of patterns below'
                ' the folder, such as ["**/*.jsonl"]; "../*" leads out of the folder'
            ),
        ),
        # secrets
        (
            "[store]\npassword = 'hunter2'",
            (
                f"a.toml:2: store.password = (not shown): {NO_SECRET}keep it in a file of mode 0600 or"
                " a systemd credential: store.password_file or store.password_credential"
            ),
        ),
        (
            "[guardian]\nAPI_KEY = 'hunter2'",
            (
                f"a.toml:2: guardian.API_KEY = (not shown): {NO_SECRET}"
                "no key of this section takes one"
            ),
        ),
        (
            "[store]\npasswrod_file = '/hunter2'",
            (
                "a.toml:2: store.passwrod_file = (not shown): expected a key of [store];"
                " did you mean store.password_file?"
            ),
        ),
        (
            "[store]\npassword_file = 'hunter2'",
            (
                "a.toml:2: store.password_file = (not shown): expected the absolute path of a file"
                " (~ is expanded), or empty; relative to which folder?"
                " write the path out from /, or from ~/"
            ),
        ),
        (
            "[log]\nwhere = 'postgresql://u:hunter2@h/d'",
            (
                "a.toml:2: log.where = (not shown): expected a key of [log];"
                " all keys: custosd config default"
            ),
        ),
        ("[store]\ndsn = 'postgresql://u:hunter2@h/d'", NO_PASSWORD),
        ("[store]\ndsn = 'postgres://h/d?password=hunter2'", NO_PASSWORD),
        ("[store]\ndsn = 'postgresql://h/d?%70assword=hunter2'", NO_PASSWORD),
        ("[store]\ndsn = 'postgresql://h/d?x=1&sslpassword=hunter2'", NO_PASSWORD),
        (
            "[store]\ndsn = 'postgresql://u:hunt/er2@h/d'",
            f"{DSN}; write an @ outside of user@host as %40, and no password at all",
        ),
        ("[store]\ndsn = 'host=h password=hunter2'", DSN),
        ("[store]\ndsn = 'postgresql://[hunter2/d'", DSN),
        # impossible together
        (
            "[guardian]\njudge_concurrency = 20",
            (
                "a.toml:2: guardian.judge_concurrency = 20: expected at most guardian.concurrency (10);"
                " each analysis asks one question at a time"
            ),
        ),
        (
            "[guardian]\nconcurrency = 3",
            (
                "a.toml:2: guardian.concurrency = 3: expected at least guardian.judge_concurrency (5);"
                " each analysis asks one question at a time"
            ),
        ),
        (
            "[recorder]\nbatch = 20\nqueue = 10",
            (
                "a.toml:3: recorder.queue = 10: expected at least recorder.batch (20);"
                " a batch must fit into the queue"
            ),
        ),
        (
            "[transcripts]\nsettle = '20s'",
            'a.toml:2: transcripts.settle = "20s": expected at most transcripts.rescan (10s)',
        ),
        (
            "[watchdog]\ninterval = '2m'",
            (
                'a.toml:2: watchdog.interval = "2m": expected less than watchdog.stale_after (2m);'
                " else a service that stands still is noticed too late"
            ),
        ),
        (
            "[guardian]\njudge_timeout = '2m'",
            (
                'a.toml:2: guardian.judge_timeout = "2m": expected less than watchdog.stale_after (2m);'
                " else one slow answer looks like a daemon that stands still, which is killed"
            ),
        ),
        (
            "[store]\nstatement_timeout = '3m'",
            (
                'a.toml:2: store.statement_timeout = "3m": expected less than watchdog.stale_after (2m)'
                "; else one slow answer looks like a daemon that stands still, which is killed"
            ),
        ),
        (
            "[store]\ndsn = 'postgresql://h/d'\n[store.embedded]\nshared_buffers = '1MiB'",
            (
                'a.toml:4: store.embedded.shared_buffers = "1MiB": expected no such key beside'
                " store.dsn; the daemon runs its own server, or uses the one of the DSN; take one away"
            ),
        ),
        (
            "[store]\nembedded.data_dir = '/d'\ndsn = 'postgresql://h/d'",
            (
                'a.toml:3: store.dsn = "postgresql://h/d": expected no DSN beside'
                " store.embedded.data_dir; the daemon runs its own server, or uses the one of the DSN;"
                " take one away"
            ),
        ),
        (
            "[store]\ndsn = 'postgresql://h/d'\npassword_file = '/p'\npassword_credential = 'p'",
            (
                'a.toml:4: store.password_credential = "p": expected one source of the password, not'
                " two; take one of store.password_file and store.password_credential away"
            ),
        ),
        (
            "[store]\npassword_file = '/p'",
            (
                'a.toml:2: store.password_file = "/p": expected a store.dsn that the password is for;'
                " the private server needs no password; take the key away, or give a store.dsn"
            ),
        ),
        (
            ROOT + ROOT,
            (
                'a.toml:4: transcripts.root[1].path = "/a": expected a folder that is not listed'
                f" already{ONCE}"
            ),
        ),
        (
            ROOT + ROOT + "format = 'pi'",
            (
                'a.toml:4: transcripts.root[1].path = "/a": expected a folder that is not listed'
                f" already{ONCE}"
            ),
        ),
        (
            ROOT + "[[transcripts.root]]\npath = '/a/../a/b/'",
            (
                'a.toml:4: transcripts.root[1].path = "/a/../a/b": expected a folder outside of /a,'
                f" which is listed with the same format{ONCE}"
            ),
        ),
        (
            ROOT + "[[transcripts.root]]\npath = '/'",
            (
                'a.toml:4: transcripts.root[1].path = "/": expected a folder that does not hold /a,'
                f" which is listed with the same format{ONCE}"
            ),
        ),
        # no TOML
        (
            "[log]\nlevel = ",
            "a.toml:2: expected valid TOML; invalid value (at end of document)",
        ),
        (
            "[log]\n\nlevel = x\n",
            "a.toml:3: expected valid TOML; invalid value (column 9)",
        ),
        (
            "[log]\nlevel = 'info'\nlevel = 'info'\n",
            "a.toml:3: expected valid TOML; cannot overwrite a value (column 15)",
        ),
        (
            "a = " + "[" * 20_000,
            "a.toml: expected valid TOML; lists or tables lie in each other too deep",
        ),
        ("a = " + "1" * 20_000, "a.toml: expected valid TOML; a number is too long"),
        (
            b"[log]\nlevel = '\xff'",
            "a.toml:2: expected text in UTF-8; byte 0xff is none; save the file as UTF-8",
        ),
        (b"#" * (LARGEST_BYTES + 1), "a.toml: expected at most 256 KiB; is this the right file?"),
    ],
)
def test_each_mistake_is_answered_with_place_value_and_remedy(
    text: str | bytes, message: str
) -> None:
    assert mistakes(file(text)) == [message]


def test_roots_may_share_a_folder_with_formats_and_patterns_of_their_own() -> None:
    read_config(
        [
            file(
                "[[transcripts.root]]\npath='/a'\nformat='pi'\nglob=['*.jsonl']\n"
                "[[transcripts.root]]\npath='/a'\nformat='aider'\nglob=['*.md']\n"
                "[[transcripts.root]]\npath='/a/b'\nformat='codex'\n"
            )
        ]
    )


def test_all_mistakes_are_told_at_once_in_the_order_of_files_and_lines() -> None:
    told = mistakes(
        file("[watchdog]\nstale_after = 1\n[log]\nlevel = 3\n[guardian]\nx = 1\njudge = ''\n"),
        file("[log", "b.toml"),
        file("[retention]\nfacts = '1s'\n", "c.toml"),
    )
    assert [line.split(" =")[0] for line in told] == [
        "a.toml:4: log.level",
        "a.toml:6: guardian.x",
        "a.toml:7: guardian.judge",
        (
            "b.toml:1: expected valid TOML; expected ']' at the end of a table declaration"
            " (at end of document)"
        ),
        "c.toml:2: retention.facts",
    ]


def test_a_contradiction_is_told_beside_other_mistakes_and_at_its_last_key() -> None:
    told = mistakes(
        file("[guardian]\njudge_concurrency = 20\n[log]\nlevel = 3\n"),
        file("[guardian]\nconcurrency = 12", "b.toml"),
    )
    assert [line.split(" =")[0] for line in told] == [
        "a.toml:4: log.level",
        "b.toml:2: guardian.concurrency",
    ]


def test_a_bad_value_is_not_compared_with_anything() -> None:
    """concurrency is meant to be something else than its default, so nothing follows from that."""
    (told,) = mistakes(file("[guardian]\nconcurrency = 'many'\njudge_concurrency = 20"))
    assert told.startswith("a.toml:2: guardian.concurrency")


def test_contradictions_are_looked_for_only_between_files_that_were_all_read() -> None:
    (told,) = mistakes(file("[guardian]\njudge_concurrency = 20"), file("[", "b.toml"))
    assert told.startswith("b.toml:1:")


def test_values_that_contradict_each_other_in_one_file_may_be_mended_by_a_later_one() -> None:
    config = read_config(
        [file("[guardian]\njudge_concurrency = 20"), file("[guardian]\nconcurrency = 20", "b.toml")]
    )
    assert config.guardian.judge_concurrency == 20


def test_secrets_are_found_in_unknown_tables_too_and_are_shown_nowhere() -> None:
    told = mistakes(
        file(
            "[judges]\n[[judges.all]]\nname = 'x'\napi_key = 'hunter2'\n"
            "[judges.y]\ntoken = 'hunter2'"
        )
    )
    assert [line.split(": ")[:2] for line in told] == [
        ["a.toml:1", "judges = a table of 2"],
        ["a.toml:4", "judges.all[0].api_key = (not shown)"],
        ["a.toml:6", "judges.y.token = (not shown)"],
    ]
    assert "hunter2" not in "\n".join(told)


def test_files_that_can_not_be_read_are_of_a_kind_of_their_own(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    with pytest.raises(ConfigError) as caught:
        read_config([Source(str(missing)), Source(str(tmp_path)), Source("a\0b")])
    assert isinstance(caught.value, InvalidConfig)
    assert {problem.kind for problem in caught.value.problems} == {ProblemKind.UNREADABLE}
    assert [str(problem) for problem in caught.value.problems] == [
        f"{missing}: expected a readable file; no such file or directory",
        f"{tmp_path}: expected a readable file; is a directory",
        "a\0b: expected a readable file; embedded null byte",
    ]


def test_an_endless_file_is_given_up() -> None:
    assert mistakes(Source("/dev/zero")) == [
        "/dev/zero: expected at most 256 KiB; is this the right file?"
    ]


def test_given_files_come_before_the_environment_and_the_system(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    for name in ("custosd.toml", "conf.d/20.toml", "conf.d/10.toml", "conf.d/readme.md"):
        (tmp_path / name).touch()
    env = {"CUSTOSD_CONFIG": "/x.toml:/y.toml"}

    def names(given: list[str], env: dict[str, str]) -> list[str]:
        return [source.name for source in locate_config(given, env, tmp_path)]

    assert names(["-", "b"], env) == ["-", "b"]
    assert names([], env) == ["/x.toml", "/y.toml"]
    assert names([], {}) == [
        str(tmp_path / name) for name in ("custosd.toml", "conf.d/10.toml", "conf.d/20.toml")
    ]
    assert locate_config([], {"CUSTOSD_CONFIG": ""}, tmp_path / "none") == []


names = st.sampled_from(
    [
        "guardian",
        "interval",
        "store",
        "dsn",
        "embedded",
        "transcripts",
        "root",
        "path",
        "glob",
        "format",
        "recorder",
        "batch",
        "queue",
        "password",
        "token",
        "log",
        "detectors",
        "spend_usd",
    ]
) | st.text(max_size=3)
quoted = names.map(lambda name: '"' + name.encode("unicode_escape").decode().replace('"', "") + '"')
bare = names.filter(lambda name: re.fullmatch("[a-z_]+", name) is not None)
keys = st.lists(bare | quoted, min_size=1, max_size=3).map(".".join)
values = st.recursive(
    st.sampled_from(
        [
            "1",
            "-1",
            "0",
            "true",
            "nan",
            "inf",
            "1e400",
            "'5s'",
            "'1MiB'",
            "'/a'",
            "''",
            "07:32:00",
            "'postgresql://h'",
            "'hunter2'",
            "'postgresql://u:hunter2@h'",
            "9" * 400,
            "1979-05-27",
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda v: f"[{', '.join(v)}]")
        | st.tuples(keys, inner).map(lambda kv: f"{{{kv[0]} = {kv[1]}}}")
    ),
    max_leaves=4,
)
toml_lines = st.one_of(
    st.tuples(keys, values).map(lambda kv: f"{kv[0]} = {kv[1]}"),
    keys.map(lambda key: f"[{key}]"),
    keys.map(lambda key: f"[[{key}]]"),
    st.text(max_size=5),
)
texts = st.lists(toml_lines, max_size=6).map("\n".join)


@given(st.lists(texts.map(str.encode) | st.binary(max_size=40), max_size=3))
@example([b"[[transcripts.root]]", b"[transcripts]\nroot = 3"])
@example([b"log = 3", b"log.level = 'info'", b"[log]\nlevel = 3"])
@example([b"'\\u0000' = 1"])
def test_any_files_give_a_configuration_or_a_config_error(contents: list[bytes]) -> None:
    """And no planted secret is in what is told of them, unless under an innocent name."""
    sources = [Source(f"{number}.toml", content) for number, content in enumerate(contents)]
    problems: tuple[Problem, ...] = ()
    try:
        config = read_config(sources)
    except InvalidConfig as error:
        problems = error.problems
        told = str(error)
    else:
        told = ""
        # An excluded key may not even be named.
        assert Config.model_validate(config.model_dump(exclude_unset=True)) == config
    assert bool(problems) == bool(told)
    assert all(problem.expected for problem in problems)
    assert "u:hunter2" not in told
