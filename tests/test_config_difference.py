"""What a new configuration changes, and what of it waits for the next start."""

from pathlib import Path

from custosd.config.agents import AgentSettings
from custosd.config.difference import AFTER_RESTART, changed_keys
from custosd.config.settings import (
    Config,
    DaemonSettings,
    GuardianSettings,
    RootSettings,
    TranscriptSettings,
)
from custosd.config.sync import RepositorySettings, SyncSettings
from custosd.config.tree import entries
from custosd.config.workspaces import WorkspaceSettings


def test_nothing_is_different_between_equals() -> None:
    assert changed_keys(Config(), Config()) == ((), ())


def test_keys_are_named_as_in_the_file_and_told_apart_by_when_they_hold() -> None:
    after = Config(daemon=DaemonSettings(name="other"), guardian=GuardianSettings(interval_s=5.0))
    assert changed_keys(Config(), after) == (("guardian.interval",), ("daemon.name",))


def test_agents_are_told_apart_by_their_ids_wherever_they_stand() -> None:
    before = Config(agents=(AgentSettings(id="a"), AgentSettings(id="b")))
    after = Config(agents=(AgentSettings(id="b", account="x"), AgentSettings(id="c")))
    at_once, later = changed_keys(before, after)
    assert set(at_once) == {"agent[a]", "agent[b].account", "agent[c]"}
    assert later == ()


def test_tables_with_names_are_told_apart_by_them() -> None:
    one, two = RepositorySettings(name="a/one"), RepositorySettings(name="a/two")
    before = Config(sync=SyncSettings(repositories=(one, two)))
    assert changed_keys(before, Config(sync=SyncSettings(repositories=(two,)))) == (
        ("sync.repository[a/one]",),
        (),
    )


def test_what_is_looked_at_in_folders_waits_for_the_next_start() -> None:
    after = Config(workspace=WorkspaceSettings(tail_lines=5))
    assert changed_keys(Config(), after) == ((), ("workspace.tail_lines",))


def test_folders_of_transcripts_are_followed_from_the_next_start() -> None:
    after = Config(agents=(AgentSettings(id="a", transcripts=(Path("/x"),)),))
    assert changed_keys(Config(), after) == (("agent[a]",), ("agent[a].transcripts",))
    roots = Config(transcripts=TranscriptSettings(roots=(RootSettings(path=Path("/x")),)))
    assert changed_keys(Config(), roots) == ((), ("transcripts.root[0]",))


def test_what_waits_for_the_next_start_are_sections_and_keys_that_there_are() -> None:
    names = {".".join(entry.path) for entry in entries()}
    assert names.issuperset(AFTER_RESTART)
