"""Whole numbers as bytes: what distilled graphs and trees are stored as, and what their size is counted in.

A number from 0 to 127 takes one byte, one up to 16,383 two, and so on (LEB128).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kdbench.errors import ArtifactError


def write(numbers: Iterable[int]) -> bytes:
    """Numbers >= 0 as bytes."""
    out = bytearray()
    for number in numbers:
        if number < 0:
            raise ValueError(f"only numbers from 0 on can be written, not {number}")
        while number > 127:
            out.append(number & 127 | 128)
            number >>= 7
        out.append(number)
    return bytes(out)


def read(data: bytes) -> Iterator[int]:
    """The numbers again. Raises ``ArtifactError`` where the last one is cut off."""
    number = shift = 0
    for byte in data:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield number
            number = shift = 0
    if shift:
        raise ArtifactError("the file ends in the middle of a number")
