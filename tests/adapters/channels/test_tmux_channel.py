"""The tmux channel against a real tmux, real shells and a small terminal agent."""

import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from tests.contracts.channel_contract import WORDS, ChannelContract, letter

from custosd.adapters.channels import tmux_brackets
from custosd.adapters.channels.foreground import foreground_of
from custosd.adapters.channels.tmux import Brackets, TmuxChannel, TmuxChannelSettings
from custosd.adapters.channels.tmux_server import TmuxServer
from custosd.core.errors import ChannelError
from custosd.core.steering import Delivery
from custosd.core.verdicts import SteeringKind

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="no tmux here")

AGENT = Path(__file__).with_name("fake_agent.py")
SETTLED = "echo > settled"
LINES = f"{WORDS}\nRun them now."


class Pane:
    """A tmux server of its own, and one pane in it."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "tmux"
        self.turns = folder / "turns"
        self.settled = folder / "settled"
        os.mkfifo(self.settled)
        self.settings = TmuxChannelSettings(
            target="agents:0.0",
            programs=("fake_agent",),
            socket=self.socket,
            arrival_s=3,
            submit_s=1,
            turn_s=2,
            poll_s=0.02,
        )
        self.channel = TmuxChannel(self.settings)

    def tmux(self, *arguments: str) -> str:
        return subprocess.run(
            ["tmux", "-u", "-f", "/dev/null", "-S", str(self.socket), *arguments],
            check=True,
            capture_output=True,
            text=True,
            env={k: v for k, v in os.environ.items() if k != "TMUX"} | {"LC_ALL": "C.UTF-8"},
        ).stdout

    def agent(self, *flags: str) -> "Pane":
        """The agent, in a pane of its own program."""
        self._start(self._command(*flags))
        self.tmux("wait-for", "ready")
        return self

    def shell_with_agent(self, *flags: str) -> "Pane":
        """The agent, started from an interactive shell."""
        self.shell()
        self.type(f"{self._command(*flags)}; {SETTLED}")
        self.tmux("wait-for", "ready")
        return self

    def type(self, line: str) -> None:
        self.tmux("send-keys", "-t", "agents:0.0", line, "Enter")

    def shell(self, command: str = "bash --norc --noprofile -i") -> "Pane":
        self._start(f"PS1='$ ' HISTFILE= {command}")
        # What the shell runs for us proves that it reads its keys.
        self.settle()
        return self

    def settle(self) -> None:
        """Wait until the shell in the pane has run a command of ours, typed now."""
        self.type(SETTLED)
        self.in_front_again()

    def in_front_again(self) -> None:
        """Wait until the shell is in front; it writes by itself, without a program."""
        self.settled.read_text()

    def got(self) -> list[str]:
        if not self.turns.exists():
            return []
        return [json.loads(line) for line in self.turns.read_text().splitlines()]

    def screen(self) -> str:
        return self.tmux("capture-pane", "-p", "-S", "-", "-t", "agents:0.0")

    def configured(self, **changes: object) -> TmuxChannel:
        self.channel = TmuxChannel(replace(self.settings, **changes))
        return self.channel

    async def arrived(self) -> list[str]:
        return self.got()

    def _start(self, command: str) -> None:
        self.tmux(
            "new-session",
            "-d",
            "-c",
            str(self.socket.parent),
            "-s",
            "agents",
            "-x",
            "100",
            "-y",
            "30",
            command,
        )

    def _command(self, *flags: str) -> str:
        return shlex.join([sys.executable, str(AGENT), str(self.turns), *flags])


@pytest.fixture
def pane(tmp_path: Path) -> Iterator[Pane]:
    pane = Pane(tmp_path)
    yield pane
    stop = ["tmux", "-S", str(pane.socket), "kill-server"]
    subprocess.run(stop, check=False, capture_output=True)


class TestTmuxChannel(ChannelContract):
    @pytest.fixture
    def scene(self, pane: Pane) -> Pane:
        return pane.agent()


async def refusal(channel: TmuxChannel, text: str = WORDS) -> ChannelError:
    with pytest.raises(ChannelError) as caught:
        await channel.deliver(letter(text=text))
    return caught.value


async def test_a_turn_that_the_conversation_shows_is_an_acknowledgement(pane: Pane) -> None:
    receipt = await pane.agent().channel.deliver(letter())
    assert (receipt.delivery, receipt.proof) == (Delivery.ACKNOWLEDGED, "turn_started")


async def test_an_emptied_composer_alone_is_a_delivery_and_no_more(pane: Pane) -> None:
    receipt = await pane.agent("--silent").channel.deliver(letter())
    assert (receipt.delivery, receipt.proof) == (Delivery.DELIVERED, "submitted")
    assert pane.got() == [WORDS]


async def test_the_transcript_is_the_proof_where_one_is_given(pane: Pane) -> None:
    """The screen shows a turn both times; the transcript, only the first time."""
    pane.agent()
    turns = iter([False, False, True])

    async def grew() -> bool:
        return next(turns, False)

    channel = TmuxChannel(pane.settings, grew)
    assert (await channel.deliver(letter("i-1"))).delivery is Delivery.ACKNOWLEDGED
    assert (await channel.deliver(letter("i-2"))).proof == "submitted"


async def test_ten_kilobytes_in_two_hundred_lines_arrive_as_one_turn(pane: Pane) -> None:
    text = "\n".join(f"{number:03} " + "words of a long letter " * 2 for number in range(200))
    await pane.agent("--collapse").channel.deliver(letter(text=text + "."))
    assert pane.got() == [text + "."]
    assert len(text) > 10_000 - 200


async def test_an_agent_started_from_a_shell_is_proved_by_what_is_in_front(pane: Pane) -> None:
    await pane.shell_with_agent().channel.deliver(letter())
    assert pane.got() == [WORDS]


@pytest.mark.parametrize("expected", ["fake_agent", "fake_agent.py", "python3", "bash"])
async def test_nothing_is_typed_into_a_shell(pane: Pane, expected: str) -> None:
    """Whatever is configured as the agent's program."""
    pane.shell()
    error = await refusal(pane.configured(programs=(expected,)))
    assert (error.reason, error.retry) == ("target_is_shell", True)
    pane.settle()
    # A shell shows keys that come before its prompt ahead of it, and again behind it.
    assert set(pane.screen().split()) <= {"$", *SETTLED.split()}


@pytest.mark.parametrize("name", ["claude", "-bash"])
async def test_a_shell_under_another_name_is_a_shell(pane: Pane, name: str) -> None:
    pane.shell(f"bash -c 'exec -a {name} bash --norc --noprofile -i'")
    assert (await refusal(pane.configured(programs=("claude",)))).reason == "target_is_shell"


async def test_nothing_is_typed_when_the_agent_has_left_its_shell_behind(pane: Pane) -> None:
    pane.shell_with_agent("--dies-on", "submit")
    pane.type("")
    pane.in_front_again()
    assert (await refusal(pane.channel)).reason == "target_is_shell"
    assert "parser" not in pane.screen()


async def test_nothing_is_typed_into_another_program(pane: Pane) -> None:
    pane.agent()
    error = await refusal(pane.configured(programs=("claude", "codex")))
    assert (error.reason, error.retry, pane.got()) == ("target_is_other", True, [])
    assert "parser" not in pane.screen()


async def test_an_agent_that_is_another_one_gets_no_letter(pane: Pane) -> None:
    pane._start(f"CUSTOSD_AGENT=bob exec {pane._command()}")
    pane.tmux("wait-for", "ready")
    assert (await refusal(pane.channel)).reason == "target_is_other"


async def test_an_agent_that_ends_between_the_last_look_and_the_paste_is_no_target(
    pane: Pane,
) -> None:
    """tmux itself compares: a pane that was seen as the agent's is the shell's by now."""
    pane.shell_with_agent("--dies-on", "submit")
    server = TmuxServer("tmux", pane.socket, 5)
    seen = await server.look("agents:0.0", "@custosd_i-1")
    pane.type("")
    pane.in_front_again()
    assert not await server.paste(seen, LINES, "@custosd_i-1", "pasted")
    assert not await server.press(seen, "Enter", "@custosd_i-1", "submitting")
    pane.settle()
    assert "parser" not in pane.screen()
    assert pane.tmux("list-buffers") == ""
    assert (await server.look("agents:0.0", "@custosd_i-1")).mark == ""


async def test_an_agent_that_ends_on_the_paste_leaves_nothing_submitted(pane: Pane) -> None:
    pane.shell_with_agent("--dies-on", "paste")
    error = await refusal(pane.channel)
    assert error.reason in ("target_changed", "target_is_shell", "target_unproved")
    assert "command not found" not in pane.screen()
    assert pane.got() == []


async def test_a_new_agent_in_the_pane_gets_what_the_last_one_took_along(pane: Pane) -> None:
    """It was pasted and never submitted; the composer that held it is gone."""
    pane.shell_with_agent("--dies-on", "paste")
    await refusal(pane.channel)
    pane.in_front_again()
    pane.tmux("send-keys", "-t", "agents:0.0", "C-u")
    pane.type(pane._command())
    pane.tmux("wait-for", "ready")
    await pane.channel.deliver(letter())
    assert pane.got() == [WORDS]


async def test_what_an_agent_ended_with_is_an_open_question_to_the_next(pane: Pane) -> None:
    """It ended on the submission, and may have taken the letter or not."""
    pane.shell_with_agent("--dies-on", "submit")
    await refusal(pane.channel)
    pane.in_front_again()
    pane.type(pane._command())
    pane.tmux("wait-for", "ready")
    error = await refusal(pane.channel)
    assert (error.reason, error.retry, pane.got()) == ("outcome_unknown", False, [])


async def test_a_paste_that_is_read_late_is_submitted_by_the_next_attempt(pane: Pane) -> None:
    pane.agent("--late")
    error = await refusal(pane.configured(arrival_s=0.3))
    assert (error.reason, error.retry, pane.got()) == ("not_arrived", True, [])
    pane.tmux("wait-for", "-S", "go")
    await pane.configured(arrival_s=5).deliver(letter())
    assert pane.got() == [WORDS]


async def test_nothing_is_typed_in_copy_mode(pane: Pane) -> None:
    pane.agent().tmux("copy-mode", "-t", "agents:0.0")
    error = await refusal(pane.channel)
    assert (error.reason, error.retry, pane.got()) == ("pane_in_mode", True, [])


async def test_nothing_is_typed_where_keys_go_to_other_panes_too(pane: Pane) -> None:
    pane.agent().tmux("set-option", "-w", "-t", "agents:0", "synchronize-panes", "on")
    assert (await refusal(pane.channel)).reason == "pane_synchronized"


async def test_half_a_sentence_of_a_person_is_left_alone(pane: Pane) -> None:
    pane.agent("--draft", "please do not")
    before = pane.screen()
    error = await refusal(pane.channel)
    assert (error.reason, error.retry) == ("composer_busy", True)
    assert pane.screen() == before


async def test_a_second_line_of_a_person_is_seen_behind_an_empty_first(pane: Pane) -> None:
    assert (await refusal(pane.agent("--draft", "\nplease").channel)).reason == "composer_busy"


async def test_a_faint_hint_is_no_text_of_a_person(pane: Pane) -> None:
    await pane.agent("--hint", 'Try "fix the tests"').channel.deliver(letter())
    assert pane.got() == [WORDS]


async def test_a_running_turn_is_interrupted_by_an_emergency_alone(pane: Pane) -> None:
    pane.agent("--busy")
    assert (await refusal(pane.channel)).reason == "agent_busy"
    await pane.channel.deliver(letter(kind=SteeringKind.EMERGENCY))
    assert pane.got() == [WORDS]


async def test_an_agent_that_misses_the_first_key_is_asked_again(pane: Pane) -> None:
    await pane.agent("--deaf", "1").channel.deliver(letter())
    assert pane.got() == [WORDS]


async def test_what_cannot_be_submitted_is_taken_back_and_said(pane: Pane) -> None:
    pane.agent("--deaf", "9")
    error = await refusal(pane.channel, LINES)
    assert (error.reason, error.retry, pane.got()) == ("not_submitted", False, [])
    assert "is empty again" in str(error)
    assert "parser" not in pane.screen()


@pytest.mark.parametrize("brackets", [Brackets.ASK, Brackets.PROBE])
async def test_several_lines_are_not_submitted_one_by_one(pane: Pane, brackets: Brackets) -> None:
    """One line may go to an agent that does not take a paste as one piece; two may not."""
    pane.agent("--plain")
    channel = pane.configured(brackets=brackets, probe_s=0.3)
    assert (await refusal(channel, LINES)).reason == "no_bracketed_paste"
    await channel.deliver(letter("i-2"))
    assert pane.got() == [WORDS]


async def test_an_operator_may_say_that_the_agent_takes_several_lines(pane: Pane) -> None:
    await pane.agent().configured(brackets=Brackets.ASSUME).deliver(letter(text=LINES))
    assert pane.got() == [LINES]


async def test_asking_a_tmux_that_does_not_tell_leaves_no_trace(pane: Pane) -> None:
    """Neither a session nor a change of size, nor of the active pane; in any window and pane."""
    pane.agent()
    pane.tmux("split-window", "-t", "agents:0.0", "cat")
    pane.tmux("new-window", "-t", "agents:7", "cat")
    form = "#{session_name} #{window_id} #{pane_id} #{pane_width}x#{pane_height} #{pane_active}"
    before = pane.tmux("list-panes", "-a", "-F", form)
    await pane.channel.deliver(letter(text=LINES))
    assert pane.got() == [LINES]
    assert pane.tmux("list-panes", "-a", "-F", form) == before


async def test_a_daemon_that_is_killed_while_it_asks_leaves_no_session(pane: Pane) -> None:
    """Only its terminal goes then; the client of the session does not get a signal."""
    pane.agent().tmux("set-hook", "-g", "session-closed", "run-shell 'tmux wait-for -S closed'")
    server = TmuxServer("tmux", pane.socket, 5)
    seen = await server.look("agents:0.0", "@x")
    ours, theirs = pty.openpty()
    client = tmux_brackets._shown_on(theirs, server.argv, seen)
    os.close(theirs)
    assert await tmux_brackets._switched_on(ours)
    assert "custosd-" in pane.tmux("list-sessions")
    os.close(ours)
    await trio.to_thread.run_sync(pane.tmux, "wait-for", "closed")
    assert "custosd-" not in pane.tmux("list-sessions")
    client.wait()


async def test_control_characters_are_taken_out_once_more(pane: Pane) -> None:
    """Also the end of the paste, behind which keys would be keys."""
    text = f"{WORDS}\x1b[201~\rrm -rf /\r\x03\x9b201~\u202e"
    await pane.agent().channel.deliver(letter(text=text))
    assert pane.got() == [f"{WORDS}[201~\nrm -rf /\n201~"]


@pytest.mark.parametrize("text", ["!rm -rf /", "/exit", " # remember", "", "\x1b\n", "🚀"])
async def test_what_an_agent_would_take_for_a_command_is_refused(pane: Pane, text: str) -> None:
    error = await refusal(pane.agent().channel, text)
    assert (error.reason, pane.got()) == ("text_unsafe", [])


async def test_a_pane_is_meant_by_its_whole_name(pane: Pane) -> None:
    """tmux itself would take "agent" for "agents"."""
    pane.agent()
    for target in ("agent:0.0", "agents:1.0", "agents:0.1", "%99"):
        error = await refusal(pane.configured(target=target))
        assert (error.reason, error.retry) == ("target_absent", True), target
    number = pane.tmux("display-message", "-p", "-t", "agents:0.0", "#{pane_id}").strip()
    await pane.configured(target=number).deliver(letter())
    assert pane.got() == [WORDS]


@pytest.mark.parametrize("changes", [{"target": "agents"}, {"programs": ()}, {"submit_key": "; x"}])
def test_settings_that_cannot_be_meant_are_refused(pane: Pane, changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"pane|program|key"):
        pane.configured(**changes)


async def test_a_delivery_that_was_cut_off_behind_its_paste_goes_on_there(pane: Pane) -> None:
    """Cut off by cancellation, as by our own end: another channel finishes it, once."""
    pane.agent("--deaf", "1")
    slow = pane.configured(submit_s=60)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow.deliver, letter())
        await trio.to_thread.run_sync(pane.tmux, "wait-for", "ignored")
        nursery.cancel_scope.cancel()

    receipt = await TmuxChannel(pane.settings).deliver(letter())
    assert (receipt.delivery, pane.got()) == (Delivery.DELIVERED, [WORDS])


async def test_a_letter_that_somebody_took_away_is_an_open_question(pane: Pane) -> None:
    pane.agent()
    sight = await TmuxServer("tmux", pane.socket, 5).look("agents:0.0", "@custosd_i-1")
    front = foreground_of(sight.pid).identity
    pane.tmux("set-option", "-p", "-t", sight.id, "@custosd_i-1", f"pasted:{front}")
    error = await refusal(pane.channel)
    assert (error.reason, error.retry, pane.got()) == ("outcome_unknown", False, [])


async def test_without_tmux_the_remedy_is_said(pane: Pane) -> None:
    error = await refusal(pane.configured(tmux="/nowhere/tmux"))
    assert (error.reason, error.retry) == ("tmux_absent", False)
    assert "install tmux" in str(error)


async def test_without_a_server_none_is_started(pane: Pane) -> None:
    assert (await refusal(pane.channel)).reason == "target_absent"
    assert not pane.socket.exists()


async def test_a_tmux_that_hangs_is_given_up(pane: Pane, tmp_path: Path) -> None:
    hanging = tmp_path / "hanging"
    hanging.write_text("#!/bin/sh\nexec sleep 1000\n")
    hanging.chmod(0o755)
    error = await refusal(pane.configured(tmux=str(hanging), call_s=0.2))
    assert (error.reason, error.retry) == ("tmux_stuck", True)
