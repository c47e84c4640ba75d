"""Puts the process of a worker back to what it was, so that the next job finds what a new process would give it.

What a method changes inside libraries (an attribute of a module or class of theirs) is not found. A method that does
that needs processes of its own: ``executor: {name: local, reuse: false}``.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from kdbench import provenance
from kdbench.schedule import processes, settings

THREADS = 0.5
"""Seconds that threads of the job have to end."""
CHILDREN = 5.0
"""Seconds that processes that the job started may take to be gone after they were killed."""
GROWTH = 512 << 20
"""Bytes of main memory that a job may leave in use."""
GPU_GROWTH = 16 << 20
"""Bytes of a device's memory that a job may leave in use."""

OWN = ("kdbench.", "kdbench_methods.", "kdbench_plugin_")
"""Beginnings of the names of modules that a job imports for itself."""

_libc = ctypes.CDLL(None)


class Clean:
    """What a process was like when this was made."""

    def __init__(self) -> None:
        self._settings = settings.of_process() + settings.of_libraries()
        self._modules = set(sys.modules)
        self._threads = set(threading.enumerate())
        self._streams = sys.stdin, sys.stdout, sys.stderr
        self._output = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
        self._process = psutil.Process()
        self._rss = self._process.memory_info().rss
        self._on_gpu = False

    def begin(self) -> None:
        """Let the peaks of memory count from now on.

        Where the system cannot do that (it is not Linux), the peak of a job is that of all jobs of its process.
        """
        reset = Path("/proc/self/clear_refs")
        if reset.exists():
            reset.write_text("5")
        torch = _cuda_in_use()
        if torch is not None:
            for number in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(number)

    def restore(self, method_folder: Path) -> tuple[int, list[str]]:
        """Undo what a job did that is over.

        ``method_folder`` is where the method's module lies, with its helpers. Returns how many processes the job had
        left, which are killed, and what cannot be undone: empty where the process can be used again.
        """
        sys.stdin, sys.stdout, sys.stderr = self._streams
        _flush()
        for descriptor in (1, 2):
            os.dup2(self._output, descriptor)
        problems = settings.put_back(self._settings)
        self._drop_modules(method_folder)
        gc.collect()
        problems += self._threads_left() or self._memory_left()
        if problems:
            return 0, problems
        left = _kill_children()
        return (0, ["what the job started does not end"]) if left is None else (left, [])

    def _drop_modules(self, method_folder: Path) -> None:
        """Forget the modules that the job imported of kdbench and of its method: they may hold state of theirs."""
        dropped = []
        for name in sys.modules.keys() - self._modules:
            file = getattr(sys.modules[name], "__file__", None)
            if name.startswith(OWN) or (file is not None and Path(file).parent == method_folder):
                del sys.modules[name]
                dropped.append(name)
        provenance.forget(dropped)

    def _threads_left(self) -> list[str]:
        deadline = time.monotonic() + THREADS
        left = []
        for thread in set(threading.enumerate()) - self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                left.append(f"the thread {thread.name!r} of the job still runs")
        return left

    def _memory_left(self) -> list[str]:
        torch = _cuda_in_use()
        if torch is not None:
            try:
                torch.cuda.synchronize()
                torch._C._cuda_clearCublasWorkspaces()
                torch.cuda.empty_cache()
            except RuntimeError as error:  # a failure of the device that only shows now
                return [f"the GPU fails: {error}"]
            used = sum(torch.cuda.memory_allocated(number) for number in range(torch.cuda.device_count()))
            if used > GPU_GROWTH:
                return [f"{used / 2**20:.0f} MiB of GPU memory are still in use"]
            if not self._on_gpu:  # CUDA itself, which stays, came with this job
                self._on_gpu = True
                self._rss = self._process.memory_info().rss
        grown = self._process.memory_info().rss - self._rss
        if grown > GROWTH // 8 and sys.platform == "linux" and hasattr(_libc, "malloc_trim"):
            _libc.malloc_trim(0)
            grown = self._process.memory_info().rss - self._rss
        return [f"{grown / 2**20:.0f} MiB of memory are still in use"] if grown > GROWTH else []


def _flush() -> None:
    """Send what Python and C still hold of what was printed: it belongs to the job that is over."""
    sys.stdout.flush()
    sys.stderr.flush()
    _libc.fflush(None)


def _kill_children() -> int | None:
    """Kill what the job started, and collect it; returns how many still ran, or None where they do not end."""
    killed: set[int] = set()
    deadline = time.monotonic() + CHILDREN
    while time.monotonic() < deadline:
        killed |= processes.kill_all(processes.descendants(os.getpid()))
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return len(killed)
        time.sleep(0.002)
    return None


def _cuda_in_use() -> Any:
    """The module ``torch`` where this process has initialised CUDA, or None."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None
