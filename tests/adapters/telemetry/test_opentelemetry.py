"""Operations as spans: the right parents, the right ends, and nothing lost without a word."""

import gzip
import threading
from collections.abc import AsyncGenerator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest
import structlog
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from custosd.adapters.telemetry.opentelemetry import SpanObserver, open_spans, otlp_exporter
from custosd.flow.monitor import Kind, Monitor, in_force, operation, traced


class Bench:
    """A monitor whose spans are kept in memory."""

    def __init__(self) -> None:
        self.kept = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.kept))
        self.monitor = Monitor(observer=SpanObserver(provider.get_tracer("test")))

    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.kept.get_finished_spans()}

    def parent(self, name: str) -> str | None:
        spans = self.spans()
        parent = spans[name].parent
        if parent is None:
            return None
        return next(n for n, s in spans.items() if s.get_span_context().span_id == parent.span_id)


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_a_span_hangs_below_the_operation_that_it_is_a_part_of(bench, autojump_clock):
    monitor = bench.monitor

    async def child(name: str) -> None:
        async with monitor.operation(Kind.NETWORK, name):
            await trio.sleep(1)
            await trio.to_thread.run_sync(trio.from_thread.run, grandchild, f"{name}'s")

    async def grandchild(name: str) -> None:
        async with monitor.operation(Kind.COMPUTATION, name):
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as outside:
        async with monitor.operation(Kind.PIPELINE, "parent"), trio.open_nursery() as nursery:
            nursery.start_soon(child, "one")
            nursery.start_soon(child, "two")
            outside.start_soon(child, "by the outer nursery")
        async with monitor.operation(Kind.PIPELINE, "next"):
            pass
    assert bench.parent("one") == bench.parent("two") == "parent"
    assert bench.parent("one's") == "one"
    assert bench.parent("two's") == "two"
    # Contexts are inherited where a task is started, whatever nursery it lives in.
    assert bench.parent("by the outer nursery") == "parent"
    assert bench.parent("parent") is bench.parent("next") is None


async def test_a_stream_is_not_the_parent_of_what_its_reader_does(bench, autojump_clock):
    @traced(Kind.PIPELINE, "items")
    async def items() -> AsyncGenerator[int]:
        async with operation(Kind.FILE, "opening"):
            await trio.sleep(0.1)
        yield 1
        async with operation(Kind.STREAM, "held open"):
            yield 2

    with in_force(bench.monitor):
        async with operation(Kind.BATCH, "reader"):
            async for number in items():
                async with operation(Kind.COMPUTATION, f"work {number}"):
                    await trio.sleep(0.1)
    assert bench.parent("work 1") == bench.parent("work 2") == "reader"
    assert bench.parent("held open") == "reader"
    assert bench.parent("items") == "reader"


async def test_an_operation_closed_by_another_task_leaves_that_tasks_own_alone(
    bench, autojump_clock
):
    async def held() -> AsyncGenerator[None]:
        async with operation(Kind.FILE, "held"):
            yield

    async def close(stream: AsyncGenerator[None]) -> None:
        async with operation(Kind.BATCH, "closer"):
            await stream.aclose()
            async with operation(Kind.CACHE, "after"):
                pass

    with in_force(bench.monitor):
        stream = held()
        await anext(stream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(close, stream)
    assert bench.parent("after") == "closer"
    assert bench.spans()["held"].attributes["custosd.cancelled"] is True


async def test_ends_are_told_without_the_words_of_an_error(bench, autojump_clock):
    monitor = bench.monitor
    async with monitor.operation(Kind.CACHE, "fine", 2.0) as current:
        current.used("read_bytes", 4)
    with trio.move_on_after(1):
        async with monitor.operation(Kind.CACHE, "cancelled"):
            await trio.sleep_forever()
    with pytest.raises(ValueError, match="secret"):
        async with monitor.operation(Kind.CACHE, "failed"):
            raise ValueError("a secret")
    spans = bench.spans()
    assert spans["fine"].status.status_code is StatusCode.OK
    assert spans["fine"].attributes["custosd.queued_s"] == 2.0
    assert spans["fine"].attributes["custosd.read_bytes"] == 4
    assert spans["cancelled"].status.status_code is StatusCode.UNSET
    assert spans["cancelled"].attributes["custosd.cancelled"] is True
    assert spans["failed"].status.status_code is StatusCode.ERROR
    assert spans["failed"].attributes["error.type"] == "ValueError"
    assert "secret" not in spans["failed"].to_json()


class Blocked(SpanExporter):
    """Takes nothing until it is let go."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.begun = threading.Event()
        self.taken: list[str] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.begun.set()
        self.go_on.wait(20)
        self.taken += [span.name for span in spans]
        return SpanExportResult.SUCCESS


async def test_a_slow_exporter_costs_spans_which_are_counted_and_never_time():
    exporter = Blocked()
    with structlog.testing.capture_logs() as lines:
        async with open_spans(exporter, version="1", queue=8) as spans:
            monitor = Monitor(observer=spans.observer)

            async def many(count: int) -> None:
                for _ in range(count):
                    async with monitor.operation(Kind.EVENT, "work"):
                        pass

            await many(8)
            await trio.to_thread.run_sync(exporter.begun.wait)
            await many(100)
            assert spans.counts.ended == 108
            exporter.go_on.set()
    counts = spans.counts
    assert counts.exported == len(exporter.taken) < 108
    assert counts.dropped() == 108 - counts.exported
    assert lines == [
        {
            "event": "spans.dropped",
            "log_level": "warning",
            "dropped": counts.dropped(),
            "failed": 0,
        }
    ]


class Failing(SpanExporter):
    """Nobody is there."""

    def export(self, _spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.FAILURE


async def test_what_the_exporter_fails_with_is_counted_as_failed():
    with structlog.testing.capture_logs() as lines:
        async with open_spans(Failing(), version="1") as spans:
            monitor = Monitor(observer=spans.observer)
            async with monitor.operation(Kind.EVENT, "work"):
                pass
    assert (spans.counts.failed, spans.counts.dropped()) == (1, 0)
    assert [line["event"] for line in lines] == ["spans.dropped"]


async def test_what_is_left_is_sent_at_the_end_also_when_cancelled():
    exporter = InMemorySpanExporter()
    with trio.CancelScope() as scope:
        async with open_spans(exporter, version="1") as spans:
            monitor = Monitor(observer=spans.observer)
            async with monitor.operation(Kind.EVENT, "work"):
                scope.cancel()
    assert spans.counts.exported == 1


class Collector(BaseHTTPRequestHandler):
    """Keeps what is posted to it."""

    posted: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.posted.append((self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


async def test_spans_arrive_at_a_collector_that_speaks_otlp() -> None:
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        exporter = otlp_exporter(f"http://127.0.0.1:{server.server_port}/v1/traces")
        async with open_spans(exporter, version="7") as spans:
            monitor = Monitor(observer=spans.observer)
            async with monitor.operation(Kind.DATABASE, "restore"):
                pass
        await trio.to_thread.run_sync(server.shutdown)
        thread.join()
    ((path, body),) = Collector.posted
    sent = ExportTraceServiceRequest.FromString(body)
    (resource,) = sent.resource_spans
    names = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert path == "/v1/traces"
    assert (names["service.name"], names["service.version"]) == ("custosd", "7")
    assert [span.name for span in resource.scope_spans[0].spans] == ["restore"]
    assert spans.counts.exported == 1
