"""Processes below a process: which there are, what they use, and how they end."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

PR_SET_PDEATHSIG = 1
"""``prctl(2)``: the signal that this process gets when the thread that forked it ends."""
PR_SET_CHILD_SUBREAPER = 36
"""``prctl(2)``: orphans below this process become its children, in whatever session they are."""

_LISTED = Path(f"/proc/self/task/{os.getpid()}/children").exists()
"""Whether the kernel lists the children of a process; otherwise the whole process table is read for them."""

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def adopt_orphans() -> None:
    """Let processes whose parent below this process ends become children of this one, on Linux."""
    if _libc is not None:
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with(parent: int) -> None:
    """Let this process be killed when its parent ends, on Linux; ends it where that has happened already."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def children(pid: int) -> list[int]:
    """Children of a process, those that ended and were not collected included; empty where it is gone.

    What is started while this looks may be missed: whoever must find all looks until there are none.
    """
    if not _LISTED:
        try:
            return [process.pid for process in psutil.Process(pid).children()]
        except psutil.Error:
            return []
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    except OSError:  # the process or one of its threads has just ended
        pass
    return found


def descendants(pid: int) -> list[int]:
    """Children of a process, their children, and so on."""
    found = children(pid)
    for child in found:  # grows while it is walked
        found += children(child)
    return found


def kill_all(pids: Iterable[int]) -> set[int]:
    """Kill these processes; returns those that still ran, which may take a moment to end."""
    killed = set()
    for pid in pids:
        try:
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                process.kill()
                killed.add(pid)
        except psutil.NoSuchProcess:
            continue
    return killed


def kill_group(leader: int, number: signal.Signals = signal.SIGKILL) -> bool:
    """Signal every process of the group that ``leader`` leads or led; whether there was one."""
    try:
        os.killpg(leader, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def memory_used(family: list[psutil.Process], limit: int) -> int:
    """Bytes of main memory that a job and what it started use.

    Resident sizes are quick to read but count shared pages in each process; only where their sum passes the limit
    is the proportional size asked for, which counts them once.
    """
    try:
        total = sum(member.memory_info().rss for member in family)
        if total > limit:
            total = sum(int(getattr(member.memory_full_info(), "pss", member.memory_info().rss)) for member in family)
    except psutil.Error:  # one of them has just ended; the next look is soon
        return 0
    return int(total)
