"""Durations in bounded memory, with percentiles that are true to 1 %.

The one place that knows the library: HdrHistogram (G. Tene), whose error is bounded in the
value, not in the rank: a percentile stays right in the gap between two modes.
"""

from collections.abc import Sequence

from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

LONGEST_S = 86_400.0
"""What took longer counts as this long."""

_UNIT = 1e6
_DIGITS = 2
_WORD_BYTES = 4


class Sketch:
    """Durations from a microsecond to a day; 16 KiB, whatever their number."""

    __slots__ = ("_histogram",)

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, int(LONGEST_S * _UNIT), _DIGITS, _WORD_BYTES)

    @property
    def count(self) -> int:
        """How many durations were added."""
        return int(self._histogram.total_count)

    def add(self, duration_s: float) -> None:
        """Count one duration, in seconds; shorter than a microsecond counts as that."""
        self._histogram.record_value(int(min(max(duration_s, 0.0), LONGEST_S) * _UNIT) or 1)

    def merge(self, other: "Sketch") -> None:
        """Add all durations of another one."""
        self._histogram.add(other._histogram)  # noqa: SLF001 - of the same class

    def percentiles_s(self, percents: Sequence[float]) -> tuple[float, ...]:
        """The durations that so many per cent do not exceed, in seconds; zeros when empty."""
        if not self.count:
            return (0.0,) * len(percents)
        found = self._histogram.get_percentile_to_value_dict(sorted(set(percents)))
        return tuple(found[percent] / _UNIT for percent in percents)
