"""Reading a terminal agent's screen: its composer, hints, long pastes, and what was told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custosd.adapters.channels.screen import Screen, ScreenReader, fingerprint, parse_screen

READER = ScreenReader()
FAINT = "\x1b[2m"
CLAUDE = "● Done.\n\n╭──────╮\n│ > {} │\n╰──────╯\n  ? for shortcuts\n"
CODEX = "• Done.\n\n\u203a {}\n\n  gpt-x · 80% left\n"
AIDER = "Tokens: 3k\n──────\n> {}"


def composed(captured: str, cursor: int | None = None) -> tuple[Screen, bool]:
    screen = parse_screen(captured, cursor)
    composer = READER.composer(screen)
    assert composer is not None
    return screen, READER.is_empty(composer)


@pytest.mark.parametrize("form", [CLAUDE, CODEX, AIDER])
def test_an_empty_composer_is_empty_and_a_letter_in_it_is_somebodys(form: str) -> None:
    assert composed(form.format(""))[1]
    assert not composed(form.format("x"))[1]


@pytest.mark.parametrize("form", [CLAUDE, CODEX, AIDER])
@pytest.mark.parametrize(
    "hint",
    [
        f'{FAINT}Try "fix it"\x1b[0m',
        "\x1b[7mT\x1b[0;2mry\x1b[0m",
        f"\x1b[38;5;2m{FAINT}Ask me\x1b[22m ",
        "\x1b[7m \x1b[27m",
    ],
)
def test_what_is_faint_was_not_typed(form: str, hint: str) -> None:
    assert composed(form.format(hint))[1]


@pytest.mark.parametrize("typed", ["\x1b[38;5;2mgreen\x1b[0m", "\x1b[48;2;2;2;2mx", "\x1b[1;22mx"])
def test_colours_do_not_make_text_faint(typed: str) -> None:
    assert not composed(AIDER.format(typed))[1]


def test_faintness_reaches_over_lines_until_it_is_switched_off() -> None:
    assert composed(f"{FAINT}> hint\n  more")[1]
    assert not composed(f"{FAINT}> hint\x1b[0m\n  more")[1]


def test_a_hint_that_is_not_faint_can_be_configured() -> None:
    reader = ScreenReader(hints=(r"type your message.*",))
    composer = reader.composer(parse_screen("> Type your message or @path\n"))
    assert composer is not None
    assert reader.is_empty(composer)


def test_the_last_prompt_is_the_composer_and_earlier_ones_are_told() -> None:
    screen = parse_screen("> what I asked\nan answer\n\n> ")
    composer = READER.composer(screen)
    assert composer is not None
    assert (composer.row, READER.tells(screen, composer, "What I asked")) == (3, 0)
    assert READER.tells(screen, composer, "what I asked") == 1


def test_a_dialog_is_no_empty_composer() -> None:
    assert not composed("Do you want to proceed?\n\u276f 1. Yes\n  2. No\n")[1]


def test_a_visible_cursor_below_the_prompt_has_got_there_by_typing() -> None:
    assert composed("> \n\n", 0)[1]
    assert not composed("> \n\n", 1)[1]


def test_no_prompt_is_no_composer() -> None:
    assert READER.composer(parse_screen("$ make\nok\n")) is None


def test_a_running_turn_is_said_near_the_composer_only() -> None:
    near = parse_screen("* Working (Esc to interrupt)\n\n> ")
    far = parse_screen("the words esc to interrupt\n" + "\n" * 9 + "> ")
    for screen, busy in ((near, True), (far, False)):
        composer = READER.composer(screen)
        assert composer is not None
        assert READER.is_busy(screen, composer) is busy


@pytest.mark.parametrize(
    "shown", ["> [Pasted text #1 +199 lines]", "> [Pasted Content 9000 chars]"]
)
def test_a_collapsed_paste_is_held_by_the_composer_alone(shown: str) -> None:
    screen = parse_screen(f"{shown}\n\n> ")
    assert not READER.holds(screen, READER.composer(screen), "some long text")
    screen = parse_screen(f"told\n{shown}")
    assert READER.holds(screen, READER.composer(screen), "some long text")


@given(st.text(st.characters(categories=["L", "N", "P", "Zs"]), min_size=1), st.integers(8, 60))
def test_a_text_is_found_however_it_is_wrapped_and_framed(text: str, width: int) -> None:
    text = READER.tamed("[custosd] " + " ".join(text.split()))
    rows = [text[at : at + width] for at in range(0, len(text), width)]
    shown = "told\n" + "\n".join(f"│ {'> ' if at == 0 else '  '}{r} │" for at, r in enumerate(rows))
    screen = parse_screen(shown)
    assert READER.holds(screen, READER.composer(screen), text)


@given(st.lists(st.sampled_from(["> quoted", ">", "│ > x", "words", ">>> code", "", "  > y"])))
def test_no_line_of_a_tamed_text_looks_like_a_composer(lines: list[str]) -> None:
    tamed = READER.tamed("\n".join(lines))
    assert READER.composer(parse_screen(tamed)) is None
    assert fingerprint(tamed) == fingerprint("\n".join(lines))


pieces = st.characters(codec="utf-8") | st.sampled_from(["\x1b[", "\x1b", "m", "\n", ";2", "> "])


@given(st.lists(pieces).map("".join))
def test_whatever_a_pane_holds_can_be_read(captured: str) -> None:
    screen = parse_screen(captured)
    assert len(screen.lines) == captured.count("\n") + 1
    composer = READER.composer(screen)
    READER.holds(screen, composer, "x")
    READER.tells(screen, composer, "x")
