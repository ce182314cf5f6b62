"""The settings as values: made from Python, frozen, never impossible."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from custosd.config.agents import AgentSettings
from custosd.config.coordination import ConductorSettings
from custosd.config.kinds import Address, Folders, HttpUrl, Kind, Words
from custosd.config.section import Section, key_of, kind_of
from custosd.config.settings import (
    Config,
    DaemonSettings,
    EmbeddedSettings,
    GuardianSettings,
    RecorderSettings,
    RootSettings,
    StoreSettings,
)
from custosd.config.tree import Entry, entries


def test_settings_are_made_by_attribute_names_and_take_the_defaults_for_the_rest() -> None:
    settings = GuardianSettings(interval_s=30)
    assert (settings.interval_s, settings.judge_timeout_s, settings.judge) == (30.0, 60.0, "rules")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Config().guardian.interval_s = 3  # type: ignore[misc]


def test_what_is_impossible_together_is_refused_from_python_too() -> None:
    with pytest.raises(ValidationError, match="judge_concurrency: expected at most concurrency"):
        GuardianSettings(concurrency=3)
    with pytest.raises(ValidationError, match="batch: expected at most queue"):
        Config(recorder=RecorderSettings(batch=5, queue=4))
    with pytest.raises(ValidationError, match=r"embedded\.data_dir: expected no such key"):
        StoreSettings(dsn="postgresql://h", embedded=EmbeddedSettings(data_dir=Path("/d")))


def test_a_refused_dsn_is_not_in_the_error() -> None:
    with pytest.raises(ValidationError) as caught:
        StoreSettings(dsn="postgresql://u:hunter2@h/d")
    assert "hunter2" not in str(caught.value)


KEYS = [entry for entry in entries() if entry.kind is not None]


@pytest.mark.parametrize("entry", KEYS, ids=lambda entry: ".".join(entry.path))
def test_every_key_says_what_it_means_and_has_a_default_or_an_example(entry: Entry) -> None:
    assert re.fullmatch(r"[A-Z].*\.", entry.meaning)
    assert entry.kind
    assert entry.kind.parse(entry.example) is not NotImplemented
    assert entry.required or entry.kind.plain(entry.kind.parse(entry.default)) == entry.default


def test_the_unit_is_in_the_attribute_and_not_in_the_key() -> None:
    """A duration ends in _s, a size in _bytes, and nothing else does."""

    def check(section: type[Section]) -> None:
        for name, field in section.model_fields.items():
            kind = type(kind_of(field)).__name__
            assert name.endswith("_s") == (kind == "Duration")
            assert name.endswith("_bytes") == (kind == "Size")

    for entry in entries():
        if entry.section:
            check(entry.section)
    assert key_of("max_line_bytes") == "max_line"
    assert key_of("spend_usd") == "spend_usd"


@pytest.mark.parametrize(
    ("state_dir", "env", "folder"),
    [
        ("/s", {"STATE_DIRECTORY": "/var/lib/custosd"}, "/s"),
        ("", {"STATE_DIRECTORY": "/var/lib/custosd:/var/lib/b", "HOME": "/h"}, "/var/lib/custosd"),
        ("", {"XDG_STATE_HOME": "/x", "HOME": "/h"}, "/x/custosd"),
        ("", {"XDG_STATE_HOME": "x", "HOME": "/h"}, "/h/.local/state/custosd"),
        ("", {"HOME": "/h"}, "/h/.local/state/custosd"),
    ],
)
def test_the_state_folder_is_configured_else_systemds_else_the_users(
    state_dir: str, env: dict[str, str], folder: str
) -> None:
    settings = DaemonSettings.model_validate({"state_dir": state_dir})
    assert settings.state_folder(env) == Path(folder)


def test_the_private_server_keeps_its_data_in_the_state_folder() -> None:
    assert EmbeddedSettings().data_folder(Path("/s")) == Path("/s/postgres")
    assert EmbeddedSettings(data_dir=Path("/d")).data_folder(Path("/s")) == Path("/d")


def test_a_home_sign_is_expanded() -> None:
    assert RootSettings(path=Path("~/a")).path == Path.home() / "a"


def test_an_agent_needs_what_its_control_and_its_channel_need() -> None:
    with pytest.raises(ValueError, match=r'unit: expected a value beside control = "systemd"'):
        AgentSettings(id="a", control="systemd")
    with pytest.raises(ValueError, match=r'tmux_target: expected a value beside channel = "tmux"'):
        AgentSettings(id="a", channel="tmux")
    AgentSettings(id="a", control="systemd", unit="custosd-agent@a.service")


def test_a_model_answers_about_pairs_before_the_next_sweep() -> None:
    """The rules take no time: where they judge, how long a judge may take does not matter."""
    ConductorSettings(interval_s=2.0, judge_timeout_s=8.0)
    with pytest.raises(ValueError, match=r"judge_timeout: expected at most interval"):
        ConductorSettings(interval_s=2.0, judge_timeout_s=8.0, judge="sonnet")


def test_two_agents_share_neither_a_name_nor_a_folder_of_transcripts() -> None:
    with pytest.raises(ValueError, match=r"agent\[1\]\.id: expected an id that no other"):
        Config(agents=(AgentSettings(id="a"), AgentSettings(id="a")))
    with pytest.raises(ValueError, match=r"agent\[1\]\.transcripts: expected folders of this"):
        Config(
            agents=(
                AgentSettings(id="a", transcripts=(Path("/x"),)),
                AgentSettings(id="b", transcripts=(Path("/x/y"),)),
            )
        )


@pytest.mark.parametrize("name", ["", "a:b", "a/b", "../a", "-a", "a.", "é", "a" * 65, "a\nb"])
def test_an_agents_name_can_stand_in_a_path_and_in_a_unit(name: str) -> None:
    with pytest.raises(ValueError, match="id"):
        AgentSettings(id=name)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (HttpUrl(), "ftp://a"),
        (HttpUrl(), "http://"),
        (HttpUrl(), "http://ada:secret@host/"),
        (HttpUrl(), "http://host:99999/"),
        (Address(), "host"),
        (Address(), "host:"),
        (Address(), ":80"),
        (Address(), "host:70000"),
        (Words("words", "[]"), "one"),
        (Words("words", "[]"), ["a", ""]),
        (Folders(), ["relative"]),
    ],
)
def test_what_is_no_address_no_command_and_no_folder_is_refused(kind: Kind, bad: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the message is the reader's
        kind.parse(bad)


@pytest.mark.parametrize(
    "unit", ["--now", "-H root@evil", "a*.service", "a", "a.service b.service"]
)
def test_a_unit_is_one_unit_and_no_option(unit: str) -> None:
    with pytest.raises(ValidationError, match=r"unit"):
        AgentSettings(id="a", control="systemd", unit=unit)
    good = AgentSettings(id="a", control="systemd", unit="custosd-agent@a-1.service")
    assert good.unit == "custosd-agent@a-1.service"


@pytest.mark.parametrize("target", ["builder", "a:b", "=a:1.0", "%x", "a:1.0:2"])
def test_a_pane_is_one_pane(target: str) -> None:
    with pytest.raises(ValidationError, match="tmux_target"):
        AgentSettings(id="a", channel="tmux", tmux_target=target)
    for good in ("main:1.0", "main:builder.2", "%7"):
        assert AgentSettings(id="a", channel="tmux", tmux_target=good).tmux_target == good


def test_a_pane_needs_programs_that_may_be_in_it() -> None:
    with pytest.raises(ValidationError, match="tmux_programs"):
        AgentSettings(id="a", channel="tmux", tmux_target="%7", tmux_programs=())
