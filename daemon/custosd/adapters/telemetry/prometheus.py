"""The monitor's accounts and the daemon's own gauges, as Prometheus reads them.

Everything is counted elsewhere, and only looked at here, when somebody asks: a registry of
its own, without what the library would tell of itself or keep for the whole process.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from custosd.flow.gauge import Gauge
from custosd.flow.monitor import (
    BUCKETS_S,
    RECENT_S,
    ROWS_A_TURN,
    Monitor,
    OperationSummary,
    Outcome,
    Series,
)

_QUANTILES = (("0.5", "p50_s"), ("0.9", "p90_s"), ("0.95", "p95_s"), ("0.99", "p99_s"))
_RECENT = (("0.5", "recent_p50_s"), ("0.95", "recent_p95_s"), ("0.99", "recent_p99_s"))
_ROW = ("kind", "name")


class Exposition:
    """What `GET /metrics` answers; to be asked in trio's thread."""

    def __init__(self, monitor: Monitor, gauges: Callable[[], Iterable[Gauge]] = tuple) -> None:
        self._monitor = monitor
        self._gauges = gauges

    async def text(self) -> bytes:
        """The text format, version 0.0.4.

        Some 2 ms for each kind and name in trio's thread, others having their turns between;
        the text itself is made in a worker thread, of what was looked at by then.
        """
        rows: _Rows = []
        for series in self._monitor.series():
            rows.append(_row_of(series))
            if len(rows) % ROWS_A_TURN == 0:
                await trio.lowlevel.checkpoint()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Looked(rows, tuple(self._gauges())))
        return await trio.to_thread.run_sync(generate_latest, registry)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row at one time: what is in the summary, and what is not."""

    summary: OperationSummary
    buckets: tuple[int, ...]
    total_s: float
    queued_s: float


def _row_of(series: Series) -> _Row:
    summary = series.summary(trio.current_time())
    return _Row(summary, tuple(series.buckets), series.total_s, series.queued_s)


class _Looked(Collector):
    def __init__(self, rows: "_Rows", gauges: Iterable[Gauge]) -> None:
        self._rows = rows
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        yield from _durations(self._rows)
        yield from _outcomes(self._rows)
        yield from _loads(self._rows)
        yield from _gauge_families(self._gauges)


_Rows = list[_Row]


def _durations(rows: _Rows) -> Iterator[Metric]:
    seconds = HistogramMetricFamily(
        "custosd_operation_seconds", "How long operations took.", labels=_ROW
    )
    quantiles = GaugeMetricFamily(
        "custosd_operation_quantile_seconds",
        "What so much of the operations since the start did not exceed, true to 1 %.",
        labels=(*_ROW, "quantile"),
    )
    recent = GaugeMetricFamily(
        "custosd_operation_recent_quantile_seconds",
        f"The same of the last {RECENT_S:g} to {2 * RECENT_S:g} seconds; nothing if none ended.",
        labels=(*_ROW, "quantile"),
    )
    queued = SummaryMetricFamily(
        "custosd_operation_queue_seconds", "How long operations waited for a turn.", labels=_ROW
    )
    for one in rows:
        summary = one.summary
        row = (summary.kind.value, summary.name)
        seconds.add_metric(row, _cumulative(one.buckets), one.total_s)
        queued.add_metric(row, summary.count, one.queued_s)
        for quantile, attribute in _QUANTILES:
            quantiles.add_metric((*row, quantile), getattr(summary, attribute))
        for quantile, attribute in _RECENT if summary.recent_count else ():
            recent.add_metric((*row, quantile), getattr(summary, attribute))
    yield seconds
    yield quantiles
    yield recent
    yield queued


def _cumulative(counts: Iterable[int]) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    below = 0
    for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), counts, strict=True):
        below += count
        buckets.append((bound, below))
    return buckets


def _outcomes(rows: _Rows) -> Iterator[Metric]:
    ended = CounterMetricFamily(
        "custosd_operations", "Operations that ended, by how.", labels=(*_ROW, "outcome")
    )
    errors = CounterMetricFamily(
        "custosd_operation_errors", "Operations that failed, by error.", labels=(*_ROW, "error")
    )
    slow = CounterMetricFamily(
        "custosd_operations_slow", "Operations that were told of as slow.", labels=_ROW
    )
    used = CounterMetricFamily(
        "custosd_operation_resources", "What operations used.", labels=(*_ROW, "resource")
    )
    for summary in (one.summary for one in rows):
        row = (summary.kind.value, summary.name)
        ended.add_metric((*row, Outcome.OK.value), summary.ok)
        ended.add_metric((*row, Outcome.ERROR.value), sum(summary.errors.values()))
        ended.add_metric((*row, Outcome.CANCELLED.value), summary.cancelled)
        slow.add_metric(row, summary.slow)
        for error, count in summary.errors.items():
            errors.add_metric((*row, error), count)
        for resource, amount in summary.resources.items():
            used.add_metric((*row, resource), amount)
    yield ended
    yield errors
    yield slow
    yield used


def _loads(rows: _Rows) -> Iterator[Metric]:
    running = GaugeMetricFamily("custosd_operations_running", "Operations under way.", labels=_ROW)
    mean = GaugeMetricFamily(
        "custosd_operation_concurrency",
        "Operations under way on average since the first one: measured, and by Little's law.",
        labels=(*_ROW, "by"),
    )
    for summary in (one.summary for one in rows):
        row = (summary.kind.value, summary.name)
        running.add_metric(row, summary.running)
        mean.add_metric((*row, "time"), summary.concurrency)
        mean.add_metric((*row, "littles_law"), summary.by_littles_law)
    yield running
    yield mean


def _gauge_families(gauges: Iterable[Gauge]) -> Iterator[Metric]:
    families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
    for gauge in gauges:
        kind = CounterMetricFamily if gauge.counts else GaugeMetricFamily
        family = families.get(gauge.name)
        if family is None:
            names = tuple(gauge.labels)
            family = kind(f"custosd_{gauge.name}", gauge.help, labels=names)
            families[gauge.name] = family
        family.add_metric(tuple(gauge.labels.values()), gauge.value)
    yield from families.values()
