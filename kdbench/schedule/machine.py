"""What this machine has: cores, memory, GPUs."""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path

from kdbench.schedule.gpus import Gpu, gpu_count, gpus, listed_gpus, refresh, torch_has_gpus

CGROUP = Path("/sys/fs/cgroup")

NO_LIMIT = 1 << 60
"""Memory limits from here on mean none; version 1 of control groups writes a number near 2^63."""


def cores() -> int:
    """CPU cores that this process may use: its affinity and the quota of its control group."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = _first_words(CGROUP / "cpu.max", 2) or ("max", "1")
    if quota != "max":
        allowed = min(allowed, math.ceil(int(quota) / int(period)))
    return max(1, allowed)


@cache
def memory() -> int:
    """Bytes of main memory that this process may use: the machine's, or the limit of its control group."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        words = _first_words(CGROUP / name, 1)
        if words and words[0] != "max" and int(words[0]) < NO_LIMIT:
            total = min(total, int(words[0]))
    return total


def _first_words(path: Path, count: int) -> tuple[str, ...] | None:
    try:
        words = tuple(path.read_text().split()[:count])
    except OSError:
        return None
    return words if len(words) == count else None


def kernel_oom_kills() -> int:
    """Processes that the kernel has killed for want of memory since the machine started; 0 where it does not tell."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


__all__ = [
    "Gpu",
    "cores",
    "gpu_count",
    "gpus",
    "kernel_oom_kills",
    "listed_gpus",
    "memory",
    "refresh",
    "torch_has_gpus",
]
