"""What is set about sync reaches the forge, and what can not be is refused by its key."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio

from custosd.adapters.forges import open_forges
from custosd.adapters.github import GitHub
from custosd.config.problems import InvalidConfig
from custosd.config.reading import read_config
from custosd.config.settings import Config
from custosd.config.sources import Source
from custosd.core.forge import Repository


def config(text: str) -> Config:
    return read_config([Source("a.toml", text.encode())])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[sync.repository]]\nname = "engine"', "sync.repository[0].name"),
        ('[[sync.repository]]\nname = ""', "sync.repository[0].name"),
        ('[[sync.repository]]\nname = "ada/engine.git"', "sync.repository[0].name"),
        ("[[sync.repository]]", "sync.repository[0].name"),
        (
            '[[sync.repository]]\nname = "a/b"\n[[sync.repository]]\nname = "A/b"',
            "sync.repository[1].name",
        ),
        ('[sync]\ntoken_file = "/a"\ntoken_credential = "b"', "sync.token_file"),
        (
            '[sync]\nwebhook_secret_file = "/a"\nwebhook_secret_credential = "b"',
            "sync.webhook_secret_file",
        ),
        ('[sync]\npage_timeout = "3m"\n[[sync.repository]]\nname = "a/b"', "sync.page_timeout"),
    ],
)
def test_what_can_not_be_is_refused_by_its_key(text: str, words: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        config(text)
    assert words in str(caught.value)


def test_who_follows_nothing_may_have_a_short_watchdog() -> None:
    assert config('[sync]\npage_timeout = "3m"').sync.page_timeout_s == 180


async def test_forges_are_opened_for_what_is_followed(tmp_path: Path) -> None:
    now = lambda: datetime(2026, 1, 1, tzinfo=UTC)  # noqa: E731 - of this test alone
    text = '[sync]\ntoken_credential = "t"\n[[sync.repository]]\nname = "a/b"\nbranches = ["x"]'
    assert config(text).sync.repositories[0].followed() == Repository("a/b", ("x",))
    async with open_forges(config(""), {}, now) as forges:
        assert forges == {}
    async with open_forges(config(text), {"CREDENTIALS_DIRECTORY": str(tmp_path)}, now) as forges:
        assert isinstance(forges["github"], GitHub)
    with pytest.raises(InvalidConfig, match="CREDENTIALS_DIRECTORY"):
        async with open_forges(config(text), {}, now):
            await trio.lowlevel.checkpoint()
