"""Operations as OpenTelemetry spans, sent from a thread of its own to where is configured.

Laws:

1. A span's parent is the operation that it is a part of: through nurseries and threads, which
   inherit it, and never through a generator, whose reader would inherit it, too.
2. Nothing waits for the network: what the exporter cannot take is dropped, and counted.
3. A cancelled operation says so (`custosd.cancelled`), and is no error. No words of an error
   go into a span, only its class.
4. The process's global tracer is left alone.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
import trio
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode

from custosd.flow.monitor import Kind, Operation, Outcome
from custosd.flow.threads import Threads

log = structlog.get_logger()

QUEUE = 8_192
"""How many ended spans wait for the exporter; more are dropped."""

BATCH = 512
FLUSH_S = 5.0
FAREWELL_S = 5.0
"""How long what is left may take at the end; then it is dropped, too."""

_CLIENTS = frozenset({Kind.DATABASE, Kind.NETWORK})


@dataclass(slots=True)
class SpanCounts:
    """What became of ended spans. `exported` and `failed` are counted in another thread."""

    ended: int = 0
    exported: int = 0
    failed: int = 0

    def dropped(self, waiting: int = 0) -> int:
        """How many were lost without a try to send them, if `waiting` still wait."""
        return max(self.ended - self.exported - self.failed - waiting, 0)


class SpanObserver:
    """A `custosd.flow.monitor.Observer` that makes a span of each operation."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def began(self, operation: Operation) -> None:
        """See `Observer`."""
        parent = operation.parent.mark if operation.parent is not None else None
        # An empty context, not the current one: nobody else's span is a parent of ours.
        context = Context()
        if isinstance(parent, trace.Span):
            context = trace.set_span_in_context(parent, context)
        kind = SpanKind.CLIENT if operation.kind in _CLIENTS else SpanKind.INTERNAL
        attributes: dict[str, str | float] = {"custosd.kind": operation.kind.value}
        if operation.queued_s:
            attributes["custosd.queued_s"] = operation.queued_s
        operation.mark = self._tracer.start_span(operation.name, context, kind, attributes)

    def ended(self, operation: Operation) -> None:
        """See `Observer`."""
        span = operation.mark
        if not isinstance(span, trace.Span):
            # It began before there was an observer.
            return
        for resource, amount in operation.resources.items():
            span.set_attribute(f"custosd.{resource}", amount)
        match operation.outcome:
            case Outcome.CANCELLED:
                span.set_attribute("custosd.cancelled", value=True)
            case Outcome.ERROR:
                span.set_attribute("error.type", operation.error)
                span.set_status(Status(StatusCode.ERROR, operation.error))
            case _:
                span.set_status(Status(StatusCode.OK))
        span.end()


class _Counting(SpanExporter):
    """The exporter, and what came of each batch."""

    def __init__(self, inner: SpanExporter, counts: SpanCounts) -> None:
        self._inner = inner
        self._counts = counts

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._inner.export(spans)
        except Exception:
            self._counts.failed += len(spans)
            raise
        if result is SpanExportResult.SUCCESS:
            self._counts.exported += len(spans)
        else:
            self._counts.failed += len(spans)
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class _CountingEnds(SpanProcessor):
    """Counts before the queue, which drops without a word."""

    def __init__(self, counts: SpanCounts) -> None:
        self._counts = counts

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        pass

    def on_end(self, span: ReadableSpan) -> None:  # noqa: ARG002 - its signature
        self._counts.ended += 1

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - its signature
        return True


@dataclass(frozen=True, slots=True)
class Spans:
    """What `open_spans` gives: the observer for the monitor, and the counts."""

    observer: SpanObserver
    counts: SpanCounts


@asynccontextmanager
async def open_spans(
    exporter: SpanExporter, *, version: str, queue: int = QUEUE
) -> AsyncGenerator[Spans]:
    """Send spans through `exporter` for the block, from a thread; at the end what is left.

    That takes `FAREWELL_S` at most; what is dropped is told (`spans.dropped`). A slow
    exporter costs spans, never time.
    """
    counts = SpanCounts()
    resource = Resource.create({"service.name": "custosd", "service.version": version})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    batches = BatchSpanProcessor(
        _Counting(exporter, counts),
        max_queue_size=queue,
        max_export_batch_size=min(BATCH, queue),
        schedule_delay_millis=FLUSH_S * 1_000,
    )
    provider.add_span_processor(_CountingEnds(counts))
    provider.add_span_processor(batches)
    try:
        yield Spans(SpanObserver(provider.get_tracer("custosd", version)), counts)
    finally:
        # `shutdown` waits for the network, and knows nothing of cancellation.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + FAREWELL_S):
            await Threads(1).run(provider.shutdown)
        if counts.failed or counts.dropped():
            log.warning("spans.dropped", dropped=counts.dropped(), failed=counts.failed)


def otlp_exporter(endpoint: str) -> SpanExporter:
    """The exporter for OTLP over HTTP; `endpoint` is the whole address, ".../v1/traces"."""
    return OTLPSpanExporter(endpoint=endpoint, timeout=FAREWELL_S)
