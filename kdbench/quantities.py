"""Sizes and durations as people write them: ``4GiB``, ``10 GB``, ``90s``, ``1h30m``; and back, for messages."""

from __future__ import annotations

import re
from decimal import Decimal

_BYTES: dict[str, int] = {"b": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgtp", start=1)
    for suffix, base in (("", 1000), ("b", 1000), ("i", 1024), ("ib", 1024))
}
_SECONDS = {
    name: Decimal(seconds) for name, seconds in (("ms", "0.001"), ("s", 1), ("m", 60), ("h", 3600), ("d", 86400))
}
_NAMES = {
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), "ms"),
    **dict.fromkeys(("s", "sec", "second", "seconds"), "s"),
    **dict.fromkeys(("m", "min", "minute", "minutes"), "m"),
    **dict.fromkeys(("h", "hour", "hours"), "h"),
    **dict.fromkeys(("d", "day", "days"), "d"),
}
_SIZE = re.compile(r"([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*([A-Za-z]*)")
_PART = re.compile(r"\s*([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*([A-Za-z]*)")


def byte_size(value: object) -> int:
    """Bytes of ``"4GiB"`` (1024-based), ``"10 GB"`` (1000-based), ``"512M"`` (1000-based) or a plain whole number.

    Raises ``ValueError`` with a sentence for anything else, numbers that are not positive and parts of a byte.
    """
    expected = "expected a size such as 4GiB, 10 GB or 500000000"
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is not a size in bytes; {expected}")
    if isinstance(value, int):
        size = Decimal(value)
    else:
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"{value[:40]!r} is not a size in bytes; {expected}")
        number, unit = match.groups()
        if unit and unit.lower() not in _BYTES:
            raise ValueError(f"{unit!r} in {value[:40]!r} is not a unit of bytes; {expected}")
        size = Decimal(number) * _BYTES.get(unit.lower(), 1)
    if size <= 0:
        raise ValueError(f"a size is above 0 bytes, but this is {value!r}")
    if size != int(size):
        raise ValueError(f"{value!r} is not a whole number of bytes; {expected}")
    return int(size)


def duration(value: object) -> float:
    """Seconds of ``"90s"``, ``"10m"``, ``"1h30m"``, ``"2 days"`` or a plain number of seconds.

    In a chain the units become smaller, each at most once. Raises ``ValueError`` with a sentence for anything else
    and for what is not positive and finite.
    """
    expected = "expected a duration such as 90s, 10m, 1h30m or a number of seconds"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a duration; {expected}")
    seconds = float(_chain(value.strip(), expected)) if isinstance(value, str) else float(value)
    if not 0 < seconds < float("inf"):
        raise ValueError(f"a duration is above 0 seconds and finite, but this is {value!r}")
    return seconds


def _chain(text: str, expected: str) -> Decimal:
    wrong = ValueError(f"{text[:40]!r} is not a duration; {expected}")
    total, position, last = Decimal(0), 0, None
    while position < len(text):
        match = _PART.match(text, position)
        if match is None:
            raise wrong
        number, name = match.groups()
        if not name and (position or match.end() < len(text)):
            raise wrong
        if name and name.lower() not in _NAMES:
            raise ValueError(f"{name!r} in {text[:40]!r} is not a unit of time; {expected}")
        unit = _SECONDS[_NAMES[name.lower()]] if name else Decimal(1)
        if last is not None and unit >= last:
            raise ValueError(f"the units of {text[:40]!r} do not become smaller; {expected}")
        total, position, last = total + Decimal(number) * unit, match.end(), unit
    if last is None:
        raise wrong
    return total


def show_duration(seconds: float) -> str:
    """A duration for people: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def show_bytes(size: float) -> str:
    """A size for people, in 1024-based units: ``512 B``, ``4.0 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
