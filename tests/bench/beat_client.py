"""Beats as fast as one door takes them, from a process of its own; prints what came of it.

    python tests/bench/beat_client.py datagram SOCKET --agents 1000 --array 100 --first-seq 1
    python tests/bench/beat_client.py http HOST:PORT --token TOKEN ...
    python tests/bench/beat_client.py pushgateway HOST:PORT ...

Standard library alone, raw sockets: what it costs itself must not hide what the door costs.
Over HTTP each connection is kept and has one request on its way.
"""

import argparse
import json
import os
import selectors
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

BEAT = b'{"agent":"agent-%06d","epoch":0,"seq":%d,"status":"running"}'
_END_OF_HEAD = b"\r\n\r\n"


@dataclass(slots=True)
class Sent:
    """What was sent; `accepted` only where the door says so (0: it does not)."""

    beats: int = 0
    messages: int = 0
    accepted: int = 0
    failed: int = 0
    round_trips_s: list[float] = field(default_factory=list)


def messages(asked: argparse.Namespace) -> Iterator[tuple[bytes, int]]:
    """Messages and how many beats are in each; every agent's sequence grows by one a beat."""
    number = 0
    while True:
        beats = []
        for _ in range(asked.array):
            round_, agent = divmod(number, asked.agents)
            beats.append(BEAT % (agent, asked.first_seq + round_))
            number += 1
        yield (beats[0] if asked.array == 1 else b"[" + b",".join(beats) + b"]"), len(beats)


def posts(asked: argparse.Namespace) -> Iterator[tuple[bytes, int]]:
    head = (
        f"POST /api/v1/beats HTTP/1.1\r\nhost: {asked.target}\r\n"
        f"authorization: Bearer {asked.token}\r\ncontent-type: application/json\r\n"
    ).encode()
    for body, beats in messages(asked):
        yield head + b"content-length: %d\r\n\r\n" % len(body) + body, beats


def pushes(asked: argparse.Namespace) -> Iterator[tuple[bytes, int]]:
    """One group an agent, as the Pushgateway has it."""
    number = 0
    host = asked.target.encode()
    while True:
        round_, agent = divmod(number, asked.agents)
        body = b"last_beat %d\n" % (asked.first_seq + round_)
        yield (
            (
                b"POST /metrics/job/beats/agent/agent-%06d HTTP/1.1\r\nhost: %s\r\n"
                b"content-length: %d\r\n\r\n%s" % (agent, host, len(body), body)
            ),
            1,
        )
        number += 1


def send_datagrams(asked: argparse.Namespace, sent: Sent, until: float) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(asked.target)
        for message, beats in messages(asked):
            if time.monotonic() >= until:
                return
            sock.send(message)  # waits where the door's queue is full
            sent.beats += beats
            sent.messages += 1


def post_all(
    asked: argparse.Namespace, requests: Iterator[tuple[bytes, int]], sent: Sent, until: float
) -> None:
    selector = selectors.DefaultSelector()
    host, _, port = asked.target.rpartition(":")
    for _ in range(asked.connections):
        sock = socket.create_connection((host, int(port)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        message, beats = next(requests)
        sock.sendall(message)
        selector.register(sock, selectors.EVENT_READ, [time.monotonic(), beats, b""])
    while selector.get_map():
        for key, _ in selector.select():
            sock, state = key.fileobj, key.data
            assert isinstance(sock, socket.socket)
            state[2] += sock.recv(65_536)
            if not _is_whole(state[2]):
                continue
            now = time.monotonic()
            _note(sent, state, now)
            if now >= until:
                selector.unregister(sock)
                sock.close()
                continue
            message, state[1] = next(requests)
            state[0], state[2] = now, b""
            sock.sendall(message)


def _is_whole(data: bytes) -> bool:
    head, end, body = data.partition(_END_OF_HEAD)
    if not end:
        if not data:
            raise ConnectionError("the server closed a connection that it should have kept")
        return False
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line[15:])
    return True


def _note(sent: Sent, state: list, now: float) -> None:
    started, beats, data = state
    sent.messages += 1
    sent.round_trips_s.append(now - started)
    if data[9:12] not in {b"200", b"202"}:
        sent.failed += 1
        return
    sent.beats += beats
    _, found, rest = data.partition(b'"accepted":')
    if found:
        sent.accepted += int(rest.partition(b",")[0].rstrip(b"}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("door", choices=("datagram", "http", "pushgateway"))
    parser.add_argument("target")
    parser.add_argument("--agents", type=int, default=1_000)
    parser.add_argument("--array", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--first-seq", type=int, default=1)
    parser.add_argument("--token", default="")
    asked = parser.parse_args()
    sent = Sent()
    began, cpu = time.monotonic(), time.process_time()
    until = began + asked.seconds
    if asked.door == "datagram":
        send_datagrams(asked, sent, until)
    else:
        post_all(asked, (posts if asked.door == "http" else pushes)(asked), sent, until)
    wall_s, cpu_s = time.monotonic() - began, time.process_time() - cpu
    trips = sorted(sent.round_trips_s) or [0.0]
    told = {
        "beats": sent.beats,
        "messages": sent.messages,
        "accepted": sent.accepted,
        "failed": sent.failed,
        "wall_s": wall_s,
        "busy": cpu_s / wall_s,
        "p50_ms": trips[len(trips) // 2] * 1e3,
        "p99_ms": trips[len(trips) * 99 // 100] * 1e3,
        "pid": os.getpid(),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
