"""custosd agents list | show: who is there, and why each one stands as it does."""

import json
import re
from pathlib import Path

import pytest
from tests.cli.conftest import EVIL, Run, Watched, on_terminal

from custosd.cli.exit_codes import FAILURE, OK, TEMPORARY

AGENT = ["agent", "run", "format", "path", "parent", "state", "standing", "seen_utc", "grown_utc"]
TRAJECTORY = [
    *("goal", "focus", "phase", "activity", "waiting_on", "end", "steps", "errors", "edits"),
    *("tests_run", "tests_passed_at", "last_edit_at", "last_step_utc", "written", "usage"),
]
JUDGEMENT = [
    *("standing", "phase", "alignment", "confidence", "needs_steering", "steering_kind"),
    *("steering_reason", "message", "summary", "unknown_reason", "evidence", "signals"),
]
VERDICT = [
    *("id", "run", "at_utc", "steps", "judge", "model", "prompt_version", "latency_s", "absent"),
    *JUDGEMENT,
]
PARTS = [
    *("agent", "executions", "metrics", "configuration", "verdicts", "facts", "findings"),
    *("tasks", "workspace"),
]
OUR_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def test_all_agents_are_listed(run: Run, watched: Watched) -> None:
    result = run("agents", "list", config=watched.config)
    assert (result.exit_code, result.stderr) == (OK, "")
    head, *rows = result.stdout.splitlines()
    assert head.split() == ["agent", "standing", "steps", "grown", "why"]
    assert len(rows) == 4
    assert re.match(r"claude-code:c1 +\w+ +4 +\d+ s  \S", rows[0])


def test_the_form_of_an_agent(run: Run, watched: Watched) -> None:
    listed = json.loads(run("agents", "list", "--json", config=watched.config).stdout)
    assert {agent["agent"] for agent in listed} == {
        *("claude-code:c1", "custosd:anna", "custosd:annabel", f"custosd:{EVIL}")
    }
    for agent in listed:
        assert list(agent) == [*AGENT, "trajectory", "verdict", "life"]
        assert list(agent["trajectory"]) == TRAJECTORY
        assert list(agent["verdict"]) == VERDICT
        assert agent["trajectory"]["steps"] == 4
        assert list(agent["trajectory"]["usage"]) == [
            *("input_tokens", "output_tokens", "cached_tokens", "cost_usd")
        ]


@pytest.mark.parametrize("part", ["custosd:anna", "claude", "annabel"])
def test_an_agent_is_named_by_its_id_or_a_part_that_only_it_has(
    run: Run, watched: Watched, part: str
) -> None:
    result = run("agents", "show", part, config=watched.config)
    assert (result.exit_code, result.stderr) == (OK, "")
    shown = result.stdout
    assert part in shown.splitlines()[0]
    for name in ("standing", "transcript", "goal", "steps", "verdicts", "facts"):
        assert re.search(rf"^ *{name}\b", shown, re.MULTILINE), name
    assert "verdict_reached" in shown


def test_the_form_of_one_agent_with_its_history(run: Run, watched: Watched) -> None:
    told = json.loads(run("agents", "show", "c1", "--json", config=watched.config).stdout)
    assert list(told) == ["agent", "verdicts", "facts", "parts"]
    assert list(told["parts"]) == PARTS
    # Where it said that it works there is no folder; that is an error of this part alone.
    assert told["parts"]["workspace"]["error"]["reason"] == "gone"
    for name in ("agent", "verdicts", "facts"):
        assert told["parts"][name] == {"value": told[name]}
    for name in set(PARTS) - {"workspace"}:
        assert list(told["parts"][name]) == ["value"], name
    assert list(told["agent"]) == [*AGENT, "trajectory", "verdict", "life"]
    assert [list(verdict) for verdict in told["verdicts"]] == [VERDICT] * len(told["verdicts"])
    assert {tuple(fact) for fact in told["facts"]} == {("id", "at_utc", "kind", "fact")}
    assert told["agent"]["verdict"] == told["verdicts"][0]


@pytest.mark.parametrize(
    ("part", "problem"), [("anna", None), ("ann", "2 agents have"), ("nobody", "no agent has")]
)
def test_what_fits_no_agent_or_several_is_an_error_that_names_them(
    run: Run, watched: Watched, part: str, problem: str | None
) -> None:
    """`anna` is in `annabel` too: an id that does not end there is a part like any other."""
    result = run("agents", "show", part, config=watched.config)
    assert (result.exit_code, result.stdout) == (FAILURE, "")
    assert result.stderr.startswith(f"custosd: {problem or '2 agents have'} '{part}' in the id;")
    assert "custosd:annabel" in result.stderr
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize("words", [("agents", "list"), ("agents", "show", "custosd:ev")])
@pytest.mark.parametrize("columns", [80, 200])
def test_text_of_agents_never_steers_a_terminal(
    watched: Watched, words: tuple[str, ...], columns: int
) -> None:
    code, said = on_terminal("--config", watched.config, *words, home=watched.home, columns=columns)
    assert code == OK
    plain = OUR_COLOURS.sub("", said).replace("\r\n", "\n")
    assert all(char.isprintable() or char == "\n" for char in plain), ascii(plain)
    # Its markup is text, and nothing but that.
    assert "[/bold][red]" in plain
    if words[1] == "list":
        assert all(len(line) <= columns for line in plain.splitlines())


@pytest.mark.parametrize("words", [("list",), ("list", "--json"), ("show", "x")])
def test_without_a_daemon_it_is_worth_another_try_later(
    run: Run, tmp_path: Path, words: tuple[str, ...]
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'[daemon]\nstate_dir = "{tmp_path}/state"\n')
    result = run("agents", *words, config=config)
    assert (result.exit_code, result.stdout) == (TEMPORARY, "")
    assert result.stderr == (
        f"custosd: no database runs on {tmp_path}/state/postgres: is custosd running?\n"
    )


def test_without_a_database_what_is_in_the_files_is_shown_of_who_has_a_table(
    run: Run, tmp_path: Path
) -> None:
    """Nothing of the rest is empty: it is not known, and why."""
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "output.log").write_text("done\n")
    config = tmp_path / "c.toml"
    config.write_text(
        f'[daemon]\nstate_dir = "{tmp_path}/state"\n\n[[agent]]\nid = "builder-1"\n'
        f'workspace = "{tmp_path}/w"\n'
    )
    for words in ("builder-1", "build"):
        result = run("agents", "show", words, "--json", config=config)
        assert (result.exit_code, result.stderr) == (OK, "")
        told = json.loads(result.stdout)
        assert told["agent"] is told["verdicts"] is told["facts"] is None
        parts = told["parts"]
        failed = {name for name, part in parts.items() if "error" in part}
        assert failed == set(PARTS) - {"configuration", "workspace"}
        assert parts["workspace"]["value"]["outputs"][0]["text"] == "done"
        table = {one["key"]: one for one in parts["configuration"]["value"]}
        assert table["agent.workspace"]["value"] == f'"{tmp_path}/w"'
        assert table["agent.workspace"]["place"] == f"{config}:6"
    shown = run("agents", "show", "builder-1", config=config).stdout
    assert "not known: store: no database runs" in shown
    assert f"({config}:6)" in shown
    assert "output.log (5 bytes): done" in shown
