"""Durations and sizes as text."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custosd.config.quantities import (
    DURATION_PATTERN,
    SIZE_PATTERN,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@given(st.floats(min_value=0, allow_nan=False, allow_infinity=False, allow_subnormal=True))
def test_a_written_duration_is_read_back_as_the_same_number(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.integers(0, 1 << 62))
def test_a_written_size_is_read_back_as_the_same_number(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.text(alphabet="0123456789.dhms KMGTikB-+e", max_size=12) | st.text())
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    """And the patterns of the schema agree with the parsers, but for what is out of range."""
    for parse, pattern in ((parse_duration, DURATION_PATTERN), (parse_size, SIZE_PATTERN)):
        try:
            value = parse(text)
        except ValueError:
            continue
        assert value >= 0
        assert re.fullmatch(pattern, text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("30s", 30.0),
        ("1.5h", 5400.0),
        ("2d", 172_800.0),
        ("1h30m", 5400.0),
        (" 1h 30m ", 5400.0),
        ("1d 1ms", 86_400.001),
        ("0s", 0.0),
        (0, 0.0),
        (90, 90.0),
        (0.5, 0.5),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "30",
        "s",
        "-1s",
        "30m1h",
        "1h1h",
        "1e3s",
        "1.s",
        ".5s",
        "٣s",
        "1s\n2",
        True,
        None,
        -1,
        float("nan"),
        float("inf"),
        10**400,
        "1" * 399 + "d",
        [30],
    ],
)
def test_no_durations(value: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10MiB", 10 << 20),
        ("64 KiB", 64 << 10),
        ("2GB", 2 * 10**9),
        ("1.5GiB", 3 << 29),
        ("1kB", 1000),
        ("1KB", 1000),
        ("0B", 0),
        (4096, 4096),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "value", ["", "10", "10M", "10mib", "-1B", "1.5B", "MiB", 1.0, True, -1, 1 << 63, None]
)
def test_no_sizes(value: object) -> None:
    with pytest.raises(ValueError, match=r"size|bytes"):
        parse_size(value)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.05, "50ms"), (90, "90s"), (3600, "1h"), (1209600, "14d"), (0, "0s")]
)
def test_durations_are_written_in_the_largest_unit_that_divides_them(
    seconds: float, text: str
) -> None:
    assert format_duration(seconds) == text


def test_sizes_are_written_in_the_largest_unit_that_divides_them() -> None:
    assert [format_size(n) for n in (16 << 20, 2 * 10**9, 1536, 7, 0)] == [
        "16MiB",
        "2GB",
        "1536B",
        "7B",
        "0B",
    ]
