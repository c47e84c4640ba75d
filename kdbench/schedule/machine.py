"""What this machine has: cores, memory, GPUs."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kdbench.errors import UsageError

CGROUP = Path("/sys/fs/cgroup")

NO_LIMIT = 1 << 60
"""Memory limits from here on mean none; version 1 of control groups writes a number near 2^63."""


@dataclass(frozen=True)
class Gpu:
    """One device that this process may use."""

    id: str
    """What ``CUDA_VISIBLE_DEVICES`` calls it."""
    name: str
    memory: int
    """Bytes."""


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


_ASK_TORCH = """
import torch
for i in range(torch.cuda.device_count()):
    p = torch.cuda.get_device_properties(i)
    print(p.total_memory, p.name)
"""


@cache
def gpus() -> tuple[Gpu, ...]:
    """The GPUs that this process may use, in CUDA's order.

    Torch is asked in a process of its own (seconds), because a process that has initialised CUDA cannot fork
    workers; called only where a job wants a GPU. Raises ``UsageError`` where torch itself fails.
    """
    done = subprocess.run([sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"torch cannot list the GPUs of this machine: {reason}")
    rows = [line.split(" ", 1) for line in done.stdout.splitlines()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = [part.strip() for part in visible.split(",")] if visible else [str(number) for number in range(len(rows))]
    return tuple(Gpu(id=id, name=name, memory=int(size)) for id, (size, name) in zip(ids, rows, strict=False))
