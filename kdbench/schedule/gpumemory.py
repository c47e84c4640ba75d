"""Memory of a GPU by process, as NVIDIA's management library (NVML) tells it."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any


def process_memory(device: str) -> dict[int, int]:
    """Bytes that each process has of the device with this UUID, for those of which the driver tells it.

    Empty where NVML or its bindings are missing. In a container with process numbers of its own, nobody is found
    here by them. Raises ``pynvml.NVMLError`` for an unknown device and where the driver fails.
    """
    nvml = _library()
    if nvml is None:
        return {}
    shown = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByUUID(device))
    return {process.pid: int(process.usedGpuMemory) for process in shown if process.usedGpuMemory is not None}


@cache
def _library() -> Any:
    """The bindings, ready for questions; None where there are none, or no driver."""
    try:
        nvml = import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml
