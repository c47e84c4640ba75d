"""Sizes and durations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.quantities import byte_size, duration, show_bytes, show_duration

FACTORS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
FACTORS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "Gi": 2**30, "G": 10**9}


@given(st.integers(1, 10**6), st.sampled_from(sorted(FACTORS)), st.sampled_from(["", " "]))
def test_a_size_is_its_number_times_its_unit(number, unit, space):
    assert byte_size(f"{number}{space}{unit}") == number * FACTORS[unit]
    assert byte_size(f" {number}{space}{unit.lower()} ") == number * FACTORS[unit]


@given(st.integers(1, 2**60))
def test_a_plain_number_is_bytes(number):
    assert byte_size(number) == number == byte_size(str(number))


def test_sizes_may_have_decimals_where_they_are_whole_bytes():
    assert byte_size("1.5 GiB") == 3 * 2**29
    with pytest.raises(ValueError, match="not a whole number of bytes"):
        byte_size("1.3B")


@given(st.integers(0, 99), st.integers(0, 59), st.integers(1, 59))
def test_a_chain_of_units_adds_up(hours, minutes, seconds):
    total = 3600 * hours + 60 * minutes + seconds
    assert duration(f"{hours}h{minutes}m{seconds}s") == total
    assert duration(f"{hours} hours {minutes} min {seconds} sec") == total
    assert duration(total) == total == duration(str(total))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2d", 172800), ("1.5h", 5400)]
)
def test_durations(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "bad", [0, -1, True, None, [], 1.5, "", "GiB", "4 GX", "4GiB 2", "-4GiB", "1e3", "4GiBB", "٤GB"]
)
def test_no_size(bad):
    with pytest.raises(ValueError, match=r"size|bytes"):
        byte_size(bad)


@pytest.mark.parametrize(
    "bad",
    [0, -1, True, None, [], "", "m", "10 moons", "30m1h", "1h1h", "1m30", "-5s", float("nan"), float("inf"), "1e3"],
)
def test_no_duration(bad):
    with pytest.raises(ValueError, match="duration"):
        duration(bad)


@given(st.text(max_size=12) | st.text("0123456789.hmsdGiBkK ", max_size=12))
def test_any_text_is_a_quantity_or_refused_in_words(text):
    for parse in (byte_size, duration):
        try:
            value, reason = parse(text), "expected"
        except ValueError as error:
            value, reason = 1, str(error)
        assert value > 0
        assert "expected" in reason or "above 0" in reason


@given(st.integers(60, 10**6))
def test_what_is_shown_is_read_again_within_its_precision(seconds):
    assert duration(show_duration(seconds)) == pytest.approx(seconds, abs=30 if seconds >= 3600 else 0.5)


def test_shown_quantities_have_units():
    assert [show_duration(s) for s in (0.4, 12, 60, 200, 7200, 7500)] == [
        "0.4 s",
        "12 s",
        "1 min",
        "3 min 20 s",
        "2 h",
        "2 h 5 min",
    ]
    assert [show_bytes(n) for n in (512, 4 * 2**30, 3 * 2**40)] == ["512 B", "4.0 GiB", "3.0 TiB"]
