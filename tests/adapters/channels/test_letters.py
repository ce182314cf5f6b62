"""Letters as other programs get them: clean, bounded, with harmless ids."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.contracts.channel_contract import letter

from custosd.adapters.channels.letters import LONGEST_TEXT, checked_id, letter_json, plain_text
from custosd.core.errors import ChannelError


@given(st.text())
def test_an_id_that_passes_is_one_plain_file_name(text: str) -> None:
    try:
        name = checked_id(text)
    except ChannelError as error:
        assert error.reason == "bad_id"  # noqa: PT017 - both outcomes are right
    else:
        assert name == text
        assert re.fullmatch(r"[A-Za-z0-9_.-]{1,80}", name)
        assert name not in (".", "..")


@given(st.text(st.characters() | st.sampled_from("\x1b\x9b\x00\x7f\r\n\u202e\u2028\ud800")))
def test_a_plain_text_has_no_control_characters_and_stays_plain(text: str) -> None:
    plain = plain_text(text)
    assert not set(plain) & {*map(chr, range(9)), *"\r\x1b\x7f\x9b\u202e\u2028\ud800"}
    assert plain_text(plain) == plain
    assert plain.encode().decode() == plain


def test_joined_emoji_and_accents_stay_whole() -> None:
    text = "\N{WOMAN}\u200d\N{ROCKET} e\u0301 漢字"
    assert plain_text(text) == text


def test_a_letter_is_bounded() -> None:
    assert json.loads(letter_json(letter(text="x" * LONGEST_TEXT)))["epoch"] == 3
    with pytest.raises(ChannelError) as caught:
        letter_json(letter(text="x" * (LONGEST_TEXT + 1)))
    assert caught.value.reason == "text_too_long"
