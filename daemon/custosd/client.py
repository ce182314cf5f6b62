"""What an agent written in Python needs to be supervised: beats, waits, steps, letters, tasks.

    from custosd.client import Client

    client = Client()                       # everything from the environment, see below
    with client.beating(15):
        client.report_step("make test", exit_code=2, observation=output)
        with client.waiting("human", 600):
            answer = ask_somebody()
        for letter in client.claim():
            read(letter.text)
            client.acknowledge(letter)
        for work in client.claim_tasks(capabilities=["python"]):
            client.complete_task(work, do(work.goal))
    client.finished()

Laws:

1. It needs nothing but the standard library of Python 3.9, and may be copied as one file.
2. It never harms the agent's work: unless `strict`, no call raises; one that did not succeed
   returns False (or nothing), is counted in `failures`, and `trouble` says why.
3. A beat blocks for `timeout_s` at most, whatever the daemon, the network or a name server does;
   a word about tasks, which goes over HTTP alone, for `TASKS_TIMEOUT_S`.
4. Beats may be sent from several threads; a sequence number is never used twice.

Of the environment it reads CUSTOSD_AGENT, CUSTOSD_EPOCH, CUSTOSD_SOCKET, CUSTOSD_URL,
CUSTOSD_TOKEN or CUSTOSD_TOKEN_FILE, CUSTOSD_TRANSCRIPT, CUSTOSD_INBOX and CUSTOSD_HANDOVER.
The supervisor sets CUSTOSD_AGENT, CUSTOSD_EPOCH, CUSTOSD_HANDOVER, CUSTOSD_SOCKET and, where
it has one, CUSTOSD_INBOX for what it starts.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import math
import os
import socket as sockets
import stat
import threading
import time
import urllib.parse
from datetime import datetime, timezone
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Sequence  # noqa: UP035 - Python 3.9

SYSTEM_SOCKET = "/run/custosd/beats.sock"
"""Where beats go when nothing else is said."""

BEATS_PATH = "/api/v1/beats"
CLAIMS_PATH = "/api/v1/claims"
TASKS_PATH = "/api/v1/tasks"
TASKS_TIMEOUT_S = 15.0
LONGEST_WAIT_S = 24 * 3600.0
LONGEST_INTERVAL_S = 3600.0
LONGEST_TEXT = 200

_LARGEST_ANSWER_BYTES = 64 * 1024
_LARGEST_FILE_BYTES = 1024 * 1024
_LONGEST_ADDRESS_BYTES = 107
_OK = 200
_HELD = 409
_QUEUE_PAUSE_S = 0.005
_FIRST_PAUSE_S = 0.2
_FAULT = 500
_LARGEST_TOLD_BYTES = 64 * 1024 * 1024
_UTC = timezone.utc  # noqa: UP017 - Python 3.9


class ClientError(Exception):
    """What a strict client raises: something was not done, and why."""


class NotDelivered(ClientError):
    """A beat did not reach the daemon, or nobody knows whether it did."""


class BeatRefused(ClientError):
    """The daemon did not let a beat in. `why` is its code, as "old_epoch"."""

    def __init__(self, why: str, message: str) -> None:
        super().__init__(message)
        self.why = why


class TaskNotDone(ClientError):
    """The daemon did not do what was asked about a task. `why` is its code, as "lost"."""

    def __init__(self, why: str, message: str) -> None:
        super().__init__(message)
        self.why = why


class TaskClaim(NamedTuple):
    """A task that this agent has claimed, until `until_utc`; `form` is all that is known of it."""

    task: str
    title: str
    goal: str
    fence: int
    attempt: int
    until_utc: str
    form: Mapping[str, Any]


class Letter(NamedTuple):
    """A message from the supervisor, claimed and not acknowledged yet."""

    id: str
    kind: str
    text: str
    epoch: int
    expires_utc: str


class WorkClaim(NamedTuple):
    """What became of a claim: `id` of the lease, or "" and those that hold it already."""

    id: str
    expires_utc: str
    held_by: tuple[str, ...]
    held: tuple[dict[str, Any], ...] = ()


class Client:
    """One agent's line to its supervisor.

    `agent`, `epoch`, `socket` (a path), `url` (where the daemon's HTTP side is), `token`: from
    the environment unless given. Where both are known the socket is used. `timeout_s` bounds
    each beat. `strict`: raise `ClientError` instead of returning False, and wait for the daemon's
    answer to each beat.
    """

    def __init__(
        self,
        agent: str | None = None,
        epoch: int | None = None,
        socket: str | None = None,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout_s: float = 0.5,
        strict: bool = False,
        environ: Mapping[str, str] | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        env = os.environ if environ is None else environ
        self.strict = strict
        self.timeout_s = timeout_s
        self.failures = 0
        """How many calls did not succeed."""
        self.trouble = ""
        """Why the last one that did not succeed did not."""
        self._now_s = now_s
        self._env = env
        self.agent = env.get("CUSTOSD_AGENT", "") if agent is None else agent
        self.epoch = _whole(env.get("CUSTOSD_EPOCH", "")) if epoch is None else epoch
        self._token = _token(env) if token is None else token
        if socket is None and url is None:
            socket, url = env.get("CUSTOSD_SOCKET", ""), env.get("CUSTOSD_URL", "")
        self._url = url or env.get("CUSTOSD_URL", "")
        self._way: _Datagrams | _Posts
        if url and not socket:
            self._way = _Posts(url, self._token)
        else:
            self._way = _Datagrams(socket or SYSTEM_SOCKET)
        self._lock = threading.Lock()
        self._sequence = 0
        self._said: dict[str, Any] = {"status": "running"}
        self._interval_s: float | None = None
        self._waits: list[tuple[str, float]] = []
        self._finished = False
        self._transcript: _Transcript | None = None

    # --- beats ------------------------------------------------------------------------

    def beat(
        self,
        status: str | None = None,
        progress: str | None = None,
        task: str | None = None,
        metrics: Mapping[str, float] | None = None,
        *,
        wait: tuple[str, float] | None = None,
        interval_s: float | None = None,
    ) -> bool:
        """Send one beat; of the first four, what is not given is as it was said last.

        `status`: starting, idle, running, waiting, monitoring, stopping, finished. `wait` (see
        `waiting`) and `interval_s` (when the next beat comes) are said in this one. `progress`:
        anything that changes when work was done. True: it was sent, and none before it was
        refused (when strict: and it was let in).
        """
        given = {"status": status, "progress": progress, "task": task, "metrics": metrics}
        return self._guarded(lambda: self._beat(given, wait, interval_s))

    @contextlib.contextmanager
    def waiting(self, kind: str, expected_s: float) -> Iterator[None]:
        """Say that the block waits for a "human", a "rate_limit" or a "command".

        `expected_s` is how long that is thought to take. While it lasts, silence about
        progress is expected; waits may be nested.
        """
        wait = (kind, time.monotonic() + float(expected_s))
        self._waits = [*self._waits, wait]
        self.beat()
        try:
            yield
        finally:
            self._waits = [other for other in self._waits if other is not wait]
            self.beat()

    @contextlib.contextmanager
    def beating(self, interval_s: float) -> Iterator[None]:
        """Send a beat now and each `interval_s` until the block ends, from a thread.

        The thread says that this process is there, not that work is done: tell `progress`
        where some is.
        """
        ended = threading.Event()
        before, self._interval_s = self._interval_s, float(interval_s)

        def send() -> None:
            self._quiet_beat()
            while not ended.wait(interval_s) and not self._finished:
                self._quiet_beat()

        thread = threading.Thread(target=send, name="custosd-beats", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            self._interval_s = before
            thread.join(self.timeout_s * 2)

    def finished(self) -> bool:
        """Say that the work is over and this process is about to end; no beat follows."""
        self._finished = True
        return self.beat("finished")

    def close(self) -> None:
        """Let go of what is open. Not needed at the end of a process; a later beat opens anew."""
        self._way.close()

    def _quiet_beat(self) -> None:
        # Nobody would catch what a thread raises.
        with contextlib.suppress(ClientError):
            self.beat()

    def _beat(
        self,
        given: Mapping[str, Any],
        wait: tuple[str, float] | None,
        interval_s: float | None,
    ) -> None:
        deadline = time.monotonic() + self.timeout_s
        if not self._lock.acquire(timeout=self.timeout_s):
            raise NotDelivered("another beat is still being sent")
        try:
            self._said.update({key: value for key, value in given.items() if value is not None})
            form = self._form(wait, self._interval_s if interval_s is None else interval_s)
            data = json.dumps(form).encode()
            refused = self._way.send(data, deadline, wait=self.strict)
        finally:
            self._lock.release()
        if refused is not None:
            raise BeatRefused(*refused)

    def _form(self, wait: tuple[str, float] | None, interval_s: float | None) -> dict[str, Any]:
        if not self.agent:
            raise ClientError("this agent has no name; set CUSTOSD_AGENT")
        # Wall time, so that it grows over restarts, and beside other senders of this agent.
        self._sequence = max(self._sequence + 1, int(self._now_s() * 1_000_000))
        form = {"agent": self.agent, "epoch": self.epoch, "seq": self._sequence, "pid": os.getpid()}
        said = self._said
        form["status"] = said["status"]
        for key in ("progress", "task"):
            if said.get(key):
                form[key] = _shown(said[key])
        if said.get("metrics"):
            form["metrics"] = _numbers(said["metrics"])
        if interval_s is not None:
            form["interval_s"] = min(float(interval_s), LONGEST_INTERVAL_S)
        waits = self._waits
        if wait is None and waits and said["status"] != "finished":
            wait = (waits[-1][0], waits[-1][1] - time.monotonic())
        if wait is not None:
            expected_s = round(max(0.0, min(float(wait[1]), LONGEST_WAIT_S)), 3)
            form.update(status="waiting", wait={"kind": wait[0], "expected_s": expected_s})
        if self._token:
            form["token"] = self._token
        return form

    # --- the transcript ---------------------------------------------------------------

    def report_step(
        self,
        action: object,
        observation: object = None,
        *,
        exit_code: int | None = None,
        ok: bool | None = None,
        tool: str | None = None,
        **more: object,
    ) -> bool:
        """Append an action and its answer to CUSTOSD_TRANSCRIPT.

        `action` and `observation` are text or JSON; `more` are further fields of a step as
        TRANSCRIPTS.md has them (`files`, `edits`, `thought`, ...).
        """
        given = {"observation": observation, "exit_code": exit_code, "ok": ok, "tool": tool}
        told = {key: value for key, value in given.items() if value is not None}
        return self.report("step", action=action, **told, **more)

    def report(self, line: str, /, **fields: object) -> bool:
        """Append a line of any type: "ask", "say", "call", "answer", "wait", "spend", "end", ..."""
        at = datetime.now(_UTC).isoformat(timespec="milliseconds")
        record = {"type": line, "at": at, **fields}

        def append() -> None:
            self._opened().append(record)

        return self._guarded(append)

    def report_goal(self, goal: str, **fields: object) -> bool:
        """Open the transcript with what the agent was asked to do.

        `fields` are further ones of a header (`cwd`, `model`, `branch`). Without this the
        first step opens it.
        """
        return self._guarded(lambda: self._opened({"goal": goal, **fields}))

    def _opened(self, header: Mapping[str, object] | None = None) -> _Transcript:
        if self._transcript is None:
            path = self._env.get("CUSTOSD_TRANSCRIPT", "")
            if not path:
                raise ClientError("there is no transcript; set CUSTOSD_TRANSCRIPT to a file")
            transcript = _Transcript(path)
            session = f"{self.agent or 'agent'}-{self.epoch}-{int(self._now_s() * 1000)}"
            names = {"agent": self.agent} if self.agent else {}
            at = datetime.now(_UTC).isoformat(timespec="milliseconds")
            first = {"custosd": 1, "session": session, **names, "cwd": os.getcwd(), "at": at}  # noqa: PTH109 - one import fewer
            transcript.append({**first, **(header or {})})
            self._transcript = transcript
        elif header is not None:
            self._transcript.append({"type": "ask", "text": header["goal"]})
        return self._transcript

    # --- from the supervisor ----------------------------------------------------------

    def handover(self) -> dict[str, Any]:
        """What the incarnation before this one left: cause, summary, goal, task, constraints.

        {} where there is none: this is the first one, or CUSTOSD_HANDOVER is not set.
        """
        path = self._env.get("CUSTOSD_HANDOVER", "")
        if not path:
            return {}
        found: list[dict[str, Any]] = []

        def read() -> None:
            found.append(_read_object(path))

        return found[0] if self._guarded(read) else {}

    def claim(self, most: int = 10) -> list[Letter]:
        """Take what waits in CUSTOSD_INBOX, the oldest first; each letter has one taker.

        A letter that is not acknowledged within some minutes comes again.
        """
        inbox = self._env.get("CUSTOSD_INBOX", "")
        claimed: list[Letter] = []

        def take() -> None:
            claimed.extend(_claimed(inbox, most))

        if inbox:
            self._guarded(take)
        return claimed

    def acknowledge(self, letter: Letter, note: str = "") -> bool:
        """Say that a letter was read and is heeded; `note`: what is made of it."""
        inbox = self._env.get("CUSTOSD_INBOX", "")

        def put() -> None:
            _acknowledge(inbox, letter, note)

        return self._guarded(put)

    # --- beside other agents ----------------------------------------------------------

    def claim_work(
        self,
        files: Sequence[str] = (),
        goal: str = "",
        *,
        ttl_s: float = 1800.0,
        repository: str = "",
    ) -> WorkClaim | None:
        """Lease what is about to be done, so that no other agent begins with it as well.

        `files` are paths in the repository, a folder is all below it. The same call
        again renews the lease. Where another agent holds it, `id` is "" and `held_by` says who:
        nothing keeps this one from going on. None: it is not known (see `trouble`). Needs
        CUSTOSD_URL and a token; bounded by `timeout_s`.
        """
        form = {
            "agent": self.agent,
            "files": list(files),
            "goal": goal,
            "ttl_s": ttl_s,
            "repository": repository,
        }
        found: list[WorkClaim] = []

        def take() -> None:
            status, answer = self._call("POST", CLAIMS_PATH, form)
            if status == _OK:
                claim = answer["claim"]
                found.append(WorkClaim(str(claim["id"]), str(claim["expires_utc"]), ()))
            elif status == _HELD and answer.get("held"):
                held = tuple(answer["held"])
                by = tuple(dict.fromkeys(str(claim["agent"]) for claim in held))
                found.append(WorkClaim("", "", by, held))
            else:
                raise ClientError(str(answer.get("message") or f"the daemon answered {status}"))

        return found[0] if self._guarded(take) else None

    def release_work(self, claim: WorkClaim | str) -> bool:
        """Give a lease back before it ends by itself."""
        claim_id = claim if isinstance(claim, str) else claim.id

        def release() -> None:
            agent = urllib.parse.quote(self.agent, safe="")
            path = f"{CLAIMS_PATH}/{urllib.parse.quote(claim_id, safe='')}?agent={agent}"
            status, answer = self._call("DELETE", path, None)
            if status != _OK:
                raise ClientError(str(answer.get("message") or f"the daemon answered {status}"))

        return self._guarded(release)

    def _call(self, method: str, path: str, form: object) -> tuple[int, dict[str, Any]]:
        """One request and its answer, within `timeout_s`."""
        if not self._url:
            raise ClientError("it is not known where to ask; set CUSTOSD_URL")
        return _asked(self._url, self._token, method, path, form, self.timeout_s)

    # --- tasks ------------------------------------------------------------------------

    def claim_tasks(
        self, most: int = 1, capabilities: Sequence[str] = (), lease_s: float | None = None
    ) -> list[TaskClaim]:
        """Take the most urgent tasks that these capabilities suffice for; [] where none is ready.

        Each is this agent's alone until its lease ends: `extend_task` in time, then say how it
        went. An answer that was lost is asked for again, and brings the same tasks.
        """
        form: dict[str, Any] = {
            "agent": self.agent,
            "epoch": self.epoch,
            "limit": most,
            "capabilities": list(capabilities),
            "key": os.urandom(12).hex(),
        }
        claimed: list[TaskClaim] = []

        def take() -> None:
            if lease_s is not None:
                form["lease_s"] = lease_s
            claimed.extend(map(_task_claim, self._ask_tasks("claim", form).get("tasks", [])))

        self._guarded(take)
        return claimed

    def extend_task(self, claim: TaskClaim, lease_s: float | None = None) -> bool:
        """Let the lease last on, from now; False: the task is somebody else's by now, or ended."""
        more = {} if lease_s is None else {"lease_s": lease_s}
        return self._say_of(claim, "extend", more)

    def complete_task(self, claim: TaskClaim, result: str = "") -> bool:
        """Say that it is done; False: the claim was lost (see `trouble`), and nothing changed."""
        return self._say_of(claim, "complete", {"result": result})

    def fail_task(
        self, claim: TaskClaim, reason: str = "", kind: str = "error", after_s: float = 0.0
    ) -> bool:
        """Say that this attempt came to nothing.

        `kind`: "error" (tried again, some times), "permanent" (not tried again) or
        "usage_limit" (no fault of the task; tried again after `after_s`).
        """
        return self._say_of(claim, "fail", {"reason": reason, "kind": kind, "after_s": after_s})

    def _say_of(self, claim: TaskClaim, operation: str, more: Mapping[str, Any]) -> bool:
        form = {"task": claim.task, "agent": self.agent, "fence": claim.fence, **more}
        return self._guarded(lambda: self._ask_tasks(operation, form))

    def _ask_tasks(self, operation: str, form: Mapping[str, Any]) -> dict[str, Any]:
        """The daemon's answer; asked again where it was lost, for each of these may be."""
        if not self._url:
            raise ClientError("tasks need the daemon's HTTP side; set CUSTOSD_URL")
        path, deadline = f"{TASKS_PATH}/{operation}", time.monotonic() + TASKS_TIMEOUT_S
        pause_s = _FIRST_PAUSE_S
        while True:
            left_s = max(0.001, deadline - time.monotonic())
            try:
                return _done(*_asked(self._url, self._token, "POST", path, form, left_s))
            except NotDelivered:
                if time.monotonic() + pause_s >= deadline:
                    raise
            time.sleep(pause_s)
            pause_s *= 2

    def _guarded(self, work: Callable[[], object]) -> bool:
        try:
            work()
        except ClientError as error:
            trouble = error
        except Exception as error:  # noqa: BLE001 - law 2
            trouble = ClientError(f"{type(error).__name__}: {error}")
            trouble.__cause__ = error
        else:
            return True
        self.failures += 1
        self.trouble = str(trouble)
        if self.strict:
            raise trouble
        return False


class _Datagrams:
    """Beats over the daemon's unix socket; its answers come to a name that the kernel gives."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: sockets.socket | None = None
        self._pid = 0

    def send(self, data: bytes, deadline: float, *, wait: bool) -> tuple[str, str] | None:
        """Send it; what was refused, of this one (`wait`) or of one before it."""
        sock = self._open()
        earlier = _last_refusal(_answers_at_hand(sock))
        self._send(sock, data, deadline)
        if not wait:
            return earlier
        try:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            return _refusal_in(sock.recv(_LARGEST_ANSWER_BYTES))
        except OSError as error:
            # A late answer must not be taken for that to the next one.
            self.close()
            raise NotDelivered("the daemon did not answer in time") from error
        finally:
            if self._socket is not None:
                # With a time limit even MSG_DONTWAIT waits for it.
                sock.settimeout(None)

    def _send(self, sock: sockets.socket, data: bytes, deadline: float) -> None:
        with _short_address(self._path) as address:
            while True:
                try:
                    sock.sendto(data, sockets.MSG_DONTWAIT, address)
                except OSError as error:
                    # The kernel has no wait for a queue with a time limit: an unconnected
                    # socket counts as writable, whoever's queue is full.
                    if error.errno == errno.EAGAIN and time.monotonic() < deadline:
                        time.sleep(_QUEUE_PAUSE_S)
                        continue
                    raise NotDelivered(f"{self._path}: {_reason(error)}") from error
                return

    def _open(self) -> sockets.socket:
        # After a fork the answers would come to whoever reads first.
        if self._socket is None or self._pid != os.getpid():
            self.close()
            self._socket = sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM)
            self._pid = os.getpid()
            with contextlib.suppress(OSError):  # only Linux gives names
                self._socket.bind("")
        return self._socket

    def close(self) -> None:
        """Let the socket go; the next beat makes another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    __del__ = close


def _answers_at_hand(sock: sockets.socket) -> Iterator[bytes]:
    with contextlib.suppress(OSError):
        for _ in range(100):
            yield sock.recv(_LARGEST_ANSWER_BYTES, sockets.MSG_DONTWAIT)


def _last_refusal(answers: Iterator[bytes]) -> tuple[str, str] | None:
    refused = None
    for answer in answers:
        refused = _refusal_in(answer) or refused
    return refused


def _refusal_in(answer: bytes) -> tuple[str, str] | None:
    try:
        first = json.loads(answer)["refused"][:1]
        return (str(first[0]["why"]), f"{first[0]['why']}: {first[0]['detail']}") if first else None
    except (ValueError, TypeError, LookupError, RecursionError):
        return None


class _Posts:
    """Beats over HTTP, from a thread of its own: nothing else bounds a name server's time."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._token = token
        self._thread: threading.Thread | None = None

    def send(self, data: bytes, deadline: float, *, wait: bool) -> tuple[str, str] | None:
        """Post it; what was refused. `wait` changes nothing: the answer is waited for anyway."""
        del wait
        if self._thread is not None and self._thread.is_alive():
            raise NotDelivered("the daemon has not answered the beat before this one yet")
        outcome: list[tuple[str, str] | Exception | None] = []

        def post() -> None:
            try:
                outcome.append(self._post(data, deadline - time.monotonic()))
            except Exception as error:  # noqa: BLE001 - for the caller to see
                outcome.append(error)

        self._thread = threading.Thread(target=post, name="custosd-post", daemon=True)
        self._thread.start()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if not outcome:
            raise NotDelivered("the daemon did not answer in time")
        if isinstance(outcome[0], Exception):
            raise NotDelivered(f"{self._url}: {_reason(outcome[0])}") from outcome[0]
        return outcome[0]

    def close(self) -> None:
        """Nothing is kept open."""

    def _post(self, data: bytes, timeout_s: float) -> tuple[str, str] | None:
        parts = urllib.parse.urlsplit(self._url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ClientError("it is no http or https address")
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(parts.hostname, parts.port, timeout=max(0.001, timeout_s))
        path = parts.path.rstrip("/")
        path = path if path.endswith(BEATS_PATH) else path + BEATS_PATH
        headers = {"content-type": "application/json", "connection": "close"}
        if self._token:
            headers["authorization"] = f"Bearer {self._token}"
        try:
            connection.request("POST", path, data, headers)
            response = connection.getresponse()
            answer = response.read(_LARGEST_ANSWER_BYTES)
        finally:
            connection.close()
        if response.status == _OK:
            return None
        code = f"http_{response.status}"
        return _refusal_in(answer) or (code, f"the daemon answered {response.status}")


def _asked(
    url: str, token: str, method: str, path: str, form: object, timeout_s: float
) -> tuple[int, dict[str, Any]]:
    """The status and the answer of the daemon whose beats go to `url`; raises `NotDelivered`.

    On a thread of its own: nothing else bounds a name server's time.
    """
    data = None if form is None else json.dumps(form).encode()
    outcome: list[tuple[int, bytes] | Exception] = []

    def ask() -> None:
        try:
            outcome.append(_requested(url, token, method, path, data, timeout_s))
        except Exception as error:  # noqa: BLE001 - for the caller to see
            outcome.append(error)

    thread = threading.Thread(target=ask, name="custosd-ask", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not outcome:
        raise NotDelivered("the daemon did not answer in time")
    if isinstance(outcome[0], ClientError):
        raise outcome[0]
    if isinstance(outcome[0], Exception):
        raise NotDelivered(f"{url}: {_reason(outcome[0])}") from outcome[0]
    status, body = outcome[0]
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None  # somebody between us and the daemon said it
    return status, answer if isinstance(answer, dict) else {}


def _done(status: int, answer: dict[str, Any]) -> dict[str, Any]:
    """What was answered about tasks; raises `NotDelivered`, `TaskNotDone`."""
    if status == _OK:
        return answer
    message = str(answer.get("message", f"the daemon answered {status}"))
    if status >= _FAULT:
        # A word about tasks may be said again, whether it was heard or not.
        raise NotDelivered(message)
    raise TaskNotDone(str(answer.get("error", f"http_{status}")), message)


def _requested(
    url: str, token: str, method: str, path: str, data: bytes | None, timeout_s: float
) -> tuple[int, bytes]:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ClientError("it is no http or https address")
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=max(0.001, timeout_s))
    above = parts.path.rstrip("/")
    above = above.removesuffix(BEATS_PATH)
    headers = {"content-type": "application/json", "connection": "close"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    try:
        connection.request(method, above + path, data, headers)
        response = connection.getresponse()
        return response.status, response.read(_LARGEST_TOLD_BYTES)
    finally:
        connection.close()


def _task_claim(form: Mapping[str, Any]) -> TaskClaim:
    claim = form["claim"]
    return TaskClaim(
        form["id"],
        form["title"],
        form["goal"],
        claim["fence"],
        form["attempts"],
        claim["until_utc"],
        form,
    )


class _Transcript:
    """A file that grows by lines, each written at once."""

    def __init__(self, path: str) -> None:
        self._path = path

    def append(self, record: Mapping[str, object]) -> None:
        line = json.dumps(record, ensure_ascii=False, default=str)
        # Half a surrogate pair has no UTF-8, but an escape.
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        fd = os.open(self._path, flags, 0o640)
        try:
            about = os.fstat(fd)
            if not stat.S_ISREG(about.st_mode):
                raise ClientError(f"{self._path} is no regular file")
            # Whoever wrote before us may have died in the middle of a line.
            if about.st_size and os.pread(fd, 1, about.st_size - 1) != b"\n":
                data = b"\n" + data
            _write(fd, data)
        finally:
            os.close(fd)


def _claimed(inbox: str, most: int) -> Iterator[Letter]:
    new, claimed = os.path.join(inbox, "new"), os.path.join(inbox, "claimed")  # noqa: PTH118 - one import fewer
    try:
        with os.scandir(new) as entries:
            found = [(entry.stat().st_mtime_ns, entry.name) for entry in entries]
    except FileNotFoundError:
        return
    for _, name in sorted(found):
        if most <= 0:
            return
        if not name.endswith(".json"):
            continue
        mine = os.path.join(claimed, name)  # noqa: PTH118 - the same
        try:
            os.rename(os.path.join(new, name), mine)  # noqa: PTH104, PTH118 - the same
            form = _read_object(mine)
        except (OSError, ValueError, ClientError):
            continue  # somebody else took it, or it is no letter
        letter = Letter(
            name[: -len(".json")],
            str(form.get("kind", "")),
            str(form.get("text", "")),
            _whole(str(form.get("epoch", ""))),
            str(form.get("expires_utc", "")),
        )
        if not _expired(letter.expires_utc):
            most -= 1
            yield letter


def _acknowledge(inbox: str, letter: Letter, note: str) -> None:
    if not inbox or letter.id != os.path.basename(letter.id) or not letter.id.strip("."):  # noqa: PTH119 - one import fewer
        raise ClientError("there is no inbox, or this is no letter of it")
    form = {
        "id": letter.id,
        "acknowledged_utc": datetime.now(_UTC).isoformat(),
        "note": _shown(note),
    }
    name = f"{letter.id}.json"
    whole = os.path.join(inbox, "tmp", f"{letter.id}.{os.getpid()}.{threading.get_ident()}")  # noqa: PTH118 - the same
    fd = os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    try:
        _write(fd, json.dumps(form).encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(whole, os.path.join(inbox, "done", name))  # noqa: PTH104, PTH118 - the same
    for part in ("claimed", "new"):  # it may have been put back meanwhile
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(inbox, part, name))  # noqa: PTH108, PTH118 - the same


def _read_object(path: str) -> dict[str, Any]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ClientError(f"{path} is no regular file")
        data = b""
        while len(data) <= _LARGEST_FILE_BYTES:
            piece = os.read(fd, _LARGEST_FILE_BYTES)
            if not piece:
                break
            data += piece
    finally:
        os.close(fd)
    if len(data) > _LARGEST_FILE_BYTES:
        raise ClientError(f"{path} has more than {_LARGEST_FILE_BYTES} bytes")
    form = json.loads(data)
    if not isinstance(form, dict):
        raise ClientError(f"{path} holds no JSON object")
    return form


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


@contextlib.contextmanager
def _short_address(path: str) -> Iterator[str]:
    """An address that the kernel takes, however deep the folder lies."""
    if len(os.fsencode(path)) <= _LONGEST_ADDRESS_BYTES:
        yield path
        return
    folder, name = os.path.split(path)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def _token(env: Mapping[str, str]) -> str:
    if given := env.get("CUSTOSD_TOKEN", ""):
        return given
    path = env.get("CUSTOSD_TOKEN_FILE", "")
    if not path:
        return ""
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - one import fewer
            return file.read(LONGEST_TEXT * 4).strip()
    except (OSError, ValueError):
        return ""  # what needs it is refused, and says so


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What of it are finite numbers: no beat is lost for a metric."""
    numbers = {}
    for name, value in list(metrics.items())[:32]:
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            if name and math.isfinite(float(value)):
                numbers[_shown(name)] = float(value)
    return numbers


def _shown(text: object) -> str:
    return "".join(c if c.isprintable() else " " for c in str(text)[:LONGEST_TEXT])


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def _expired(text: str) -> bool:
    try:
        expires = datetime.fromisoformat(text)
    except ValueError:
        return False
    return expires.tzinfo is not None and expires <= datetime.now(_UTC)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or "it failed"
