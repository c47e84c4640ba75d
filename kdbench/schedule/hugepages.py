"""Memory of the fork server in huge pages: a fork then copies hundreds of page table entries instead of 60,000.

Measured with torch imported (230 MiB of private memory, Linux 6.18): forking takes 2.3 ms instead of 7.5 ms, and the
end of the child 2.2 ms instead of 8 ms.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

SIZE = 2 << 20
"""Bytes of a huge page on the machines that have ``MADV_COLLAPSE``, or a divisor of it."""

MADV_COLLAPSE = 25
"""``madvise(2)``, since Linux 6.1: put this range into huge pages, now."""


def collapse() -> int:
    """Put this process's heap and private mappings into huge pages where the kernel can; returns how many there are.

    Only speed depends on it: where there is no such call or no free huge page, the memory stays as it is.
    """
    if sys.platform != "linux":
        return 0
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    done = 0
    for start, end in _mappings():
        for address in range(-(-start // SIZE) * SIZE, end - SIZE + 1, SIZE):
            done += madvise(ctypes.c_void_p(address), ctypes.c_size_t(SIZE), MADV_COLLAPSE) == 0
    return done


def _mappings() -> list[tuple[int, int]]:
    """Address ranges of writable private memory that belongs to no file."""
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, mode, _, _, inode, *name = line.split(maxsplit=5)
        if mode == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, _, end = addresses.partition("-")
            ranges.append((int(start, 16), int(end, 16)))
    return ranges
