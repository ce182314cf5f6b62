"""What Prometheus reads is what was counted."""

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from custosd.adapters.telemetry.prometheus import Exposition
from custosd.flow.gauge import Gauge
from custosd.flow.monitor import ROWS_A_TURN, Kind, Monitor


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


async def test_operations_are_told_with_outcomes_buckets_and_percentiles(autojump_clock):
    monitor = Monitor()
    for takes_s in (0.2, 0.2, 3.0):
        async with monitor.operation(Kind.DATABASE, "restore", 0.5) as operation:
            operation.used("rows", 7)
            await trio.sleep(takes_s)
    with pytest.raises(OSError, match="gone"):
        async with monitor.operation(Kind.DATABASE, "restore"):
            raise OSError("gone")
    with trio.move_on_after(0):
        async with monitor.operation(Kind.DATABASE, "restore"):
            await trio.sleep_forever()
    read = samples(await Exposition(monitor).text())

    def of(name: str, **labels: str) -> float:
        row = {"kind": "database", "name": "restore"}
        return read[f"custosd_{name}", frozenset({**row, **labels}.items())]

    assert of("operations_total", outcome="ok") == 3
    assert of("operations_total", outcome="error") == 1
    assert of("operations_total", outcome="cancelled") == 1
    assert of("operation_errors_total", error="OSError") == 1
    assert of("operation_seconds_bucket", le="0.1") == 2
    assert of("operation_seconds_bucket", le="0.25") == 4
    assert of("operation_seconds_bucket", le="+Inf") == 5
    assert of("operation_seconds_count") == 5
    assert of("operation_seconds_sum") == pytest.approx(3.4)
    assert of("operation_queue_seconds_sum") == pytest.approx(1.5)
    assert of("operation_quantile_seconds", quantile="0.99") == pytest.approx(3.0, rel=0.01)
    assert of("operation_recent_quantile_seconds", quantile="0.99") == pytest.approx(3.0, rel=0.01)
    assert of("operation_resources_total", resource="rows") == 21
    assert of("operations_running") == 0
    assert of("operation_concurrency", by="time") == pytest.approx(1.0)
    await trio.sleep(600)
    later = samples(await Exposition(monitor).text())
    names = {name for name, _ in later}
    assert "custosd_operation_quantile_seconds" in names
    assert "custosd_operation_recent_quantile_seconds" not in names, "nothing ended of late"


async def test_gauges_of_the_daemons_own_stand_beside(autojump_clock):
    gauges = [
        Gauge("agents", "Agents.", 3, {"standing": "stuck"}),
        Gauge("agents", "Agents.", 4, {"standing": 'a "quoted"\nname'}),
        Gauge("dropped", "Dropped.", 9, counts=True),
    ]
    read = samples(await Exposition(Monitor(), lambda: gauges).text())
    assert read["custosd_agents", frozenset({("standing", "stuck")})] == 3
    assert read["custosd_agents", frozenset({("standing", 'a "quoted"\nname')})] == 4
    assert read["custosd_dropped_total", frozenset()] == 9


async def test_asked_again_it_tells_the_numbers_as_they_stand_then(autojump_clock):
    numbers = iter([1.0, 2.0])
    exposition = Exposition(Monitor(), lambda: [Gauge("queue_items", "Waiting.", next(numbers))])
    assert b"custosd_queue_items 1.0" in await exposition.text()
    assert b"custosd_queue_items 2.0" in await exposition.text()


async def test_many_rows_hold_nobody_up(autojump_clock):
    monitor = Monitor()
    for number in range(100):
        async with monitor.operation(Kind.FILE, f"work {number}"):
            pass
    turns = turns_before_the_text = 0

    def gauges() -> list[Gauge]:
        nonlocal turns_before_the_text
        turns_before_the_text = turns
        return []

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        read = samples(await Exposition(monitor, gauges).text())
        nursery.cancel_scope.cancel()
    told = {name for name, _ in read}
    assert "custosd_operation_seconds_bucket" in told
    assert turns_before_the_text >= 100 / ROWS_A_TURN / 2
