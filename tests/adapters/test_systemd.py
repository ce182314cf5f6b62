import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from custosd.adapters.memory_service_manager import RecordingServiceManager
from custosd.adapters.systemd import ServiceManager
from custosd.services.watchdog import ReadinessPort


class Listener:
    """systemd's end of the socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(str(path))

    def messages(self) -> list[dict[str, str]]:
        got = []
        while True:
            try:
                message = self.socket.recv(65536).decode("utf-8")
            except BlockingIOError:
                return got
            got.append(dict(line.split("=", 1) for line in message.split("\n")))

    def close(self) -> None:
        self.socket.close()
        self.path.unlink()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    listener = Listener(tmp_path / "notify")
    yield listener
    listener.socket.close()


@pytest.fixture
def real(listener: Listener) -> Iterator[ServiceManager]:
    manager = ServiceManager({"NOTIFY_SOCKET": str(listener.path), "WATCHDOG_USEC": "30000000"})
    yield manager
    manager.close()


# --- the contract of both implementations ---------------------------------------------


@dataclass
class Case:
    manager: ReadinessPort
    messages: Callable[[], list[dict[str, str]]]


@pytest.fixture(params=["systemd", "memory"])
def case(request, listener: Listener, real: ServiceManager) -> Case:
    if request.param == "systemd":
        return Case(real, listener.messages)
    fake = RecordingServiceManager(watchdog_s=30)
    return Case(fake, lambda: fake.messages)


def test_every_word_of_the_protocol_is_said_in_order(case: Case):
    manager = case.manager
    assert manager.watchdog_s == 30
    assert manager.extend_timeout(2.5)
    assert manager.ready("watching 3 agents")
    assert manager.alive()
    assert manager.status("watching 4 agents")
    assert manager.reloading()
    assert manager.ready()
    assert manager.stopping("draining")
    got = case.messages()
    assert got[4].pop("MONOTONIC_USEC").isdecimal()
    assert got == [
        {"EXTEND_TIMEOUT_USEC": "2500000"},
        {"READY": "1", "STATUS": "watching 3 agents"},
        {"WATCHDOG": "1"},
        {"STATUS": "watching 4 agents"},
        {"RELOADING": "1"},
        {"READY": "1"},
        {"STOPPING": "1", "WATCHDOG_USEC": "0", "STATUS": "draining"},
    ]
    manager.close()


def test_a_status_is_one_line_of_any_language_and_no_assignment(case: Case):
    assert case.manager.status("größer → 3\nREADY=1\t再び")
    assert case.messages() == [{"STATUS": "größer → 3 READY=1 再び"}]


# --- the real one alone ---------------------------------------------------------------


def test_a_reader_that_does_not_read_never_makes_us_wait(real: ServiceManager, listener: Listener):
    sent = sum(real.alive() for _ in range(5000))
    assert 0 < sent < 5000
    assert real.unsent == 5000 - sent
    assert not real.ready()
    listener.messages()
    assert real.status("better")
    assert listener.messages() == [{"READY": "1", "STATUS": "better"}]  # not lost for good
    assert real.status("best")
    assert listener.messages() == [{"STATUS": "best"}]


def test_a_socket_that_was_made_anew_is_found_again(real: ServiceManager, listener: Listener):
    assert real.alive()
    listener.close()
    assert not real.alive()
    again = Listener(listener.path)
    assert real.alive()
    assert again.messages() == [{"WATCHDOG": "1"}]
    again.socket.close()


def test_an_abstract_address_works():
    name = f"custosd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract:
        abstract.bind(f"\0{name}")
        manager = ServiceManager({"NOTIFY_SOCKET": f"@{name}"})
        assert manager.ready()
        assert abstract.recv(100) == b"READY=1"
        manager.close()


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234"])
def test_without_a_service_manager_it_does_nothing(address):
    manager = ServiceManager({} if address is None else {"NOTIFY_SOCKET": address})
    assert manager.watchdog_s is None
    assert not manager.ready("x")
    assert not manager.alive()
    assert manager.unsent == 0
    manager.close()


def test_a_socket_that_is_not_there_is_survived_and_tried_again(tmp_path: Path):
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "later")})
    assert not manager.ready()
    late = Listener(tmp_path / "later")
    assert manager.alive()
    assert late.messages() == [{"READY": "1", "WATCHDOG": "1"}]
    late.socket.close()
    manager.close()


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [
        ("30000000", None, 30),
        ("30000000", "ours", 30),
        ("30000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
    ],
)
def test_the_watchdog_is_ours_only_if_it_names_us(usec, pid, expected):
    named = str(os.getpid()) if pid == "ours" else pid
    environ = {"WATCHDOG_USEC": usec} | ({"WATCHDOG_PID": named} if named else {})
    assert ServiceManager(environ).watchdog_s == expected
    assert environ == {}


def test_a_daemon_that_nobody_watches_says_nothing_of_a_watchdog(listener: Listener):
    manager = ServiceManager({"NOTIFY_SOCKET": str(listener.path)})
    assert manager.stopping()
    assert listener.messages() == [{"STOPPING": "1"}]
    manager.close()


def test_the_time_of_a_reload_is_the_monotonic_clocks(real: ServiceManager, listener: Listener):
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    real.reloading()
    (message,) = listener.messages()
    assert before <= int(message["MONOTONIC_USEC"]) <= before + 60_000_000


def test_children_can_not_speak_for_the_daemon(monkeypatch, listener: Listener):
    monkeypatch.setenv("NOTIFY_SOCKET", str(listener.path))
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    manager = ServiceManager()
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(sorted(os.environ))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "NOTIFY_SOCKET" not in child.stdout
    assert "WATCHDOG" not in child.stdout
    assert manager.watchdog_s == 1
    assert manager.ready()
    assert listener.messages() == [{"READY": "1"}]
    manager.close()
