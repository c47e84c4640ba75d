"""A stand-in for ``pynvml`` on a machine with the GPUs that a test wants."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType, SimpleNamespace

import pytest

from kdbench.schedule import gpus

GIB = 1 << 30


@dataclass
class Board:
    """One GPU, or one MIG instance of it."""

    uuid: str
    name: str = "H200"
    total: int = 80 * GIB
    used: int = 0
    processes: dict[int, int | None] = field(default_factory=dict)
    """Bytes by process; None where the driver does not tell."""
    instances: Sequence[Board | None] = ()
    """MIG instances; None where a place is empty."""
    broken: bool = False


class NVMLError(Exception):
    pass


class NVMLErrorNotSupported(NVMLError):
    pass


class NVMLErrorNotFound(NVMLError):
    pass


def install(monkeypatch: pytest.MonkeyPatch, boards: Sequence[Board] | None) -> None:
    """Make ``import pynvml`` give these GPUs; None: the bindings are there, but no driver."""
    module = ModuleType("pynvml")
    module.NVMLError, module.NVMLError_NotSupported = NVMLError, NVMLErrorNotSupported
    module.NVMLError_NotFound, module.NVML_DEVICE_MIG_ENABLE = NVMLErrorNotFound, 1

    def init() -> None:
        if boards is None:
            raise NVMLError("Driver Not Loaded")

    def memory(board: Board) -> SimpleNamespace:
        if board.broken:
            raise NVMLError("GPU is lost")
        return SimpleNamespace(total=board.total, used=board.used, free=board.total - board.used)

    def mig_mode(board: Board) -> list[int]:
        if board.name == "GTX":
            raise NVMLErrorNotSupported
        return [int(bool(board.instances)), 0]

    def instance(board: Board, number: int) -> Board:
        found = board.instances[number]
        if found is None:
            raise NVMLErrorNotFound
        return found

    def by_uuid(uuid: str) -> Board:
        each = [*(boards or ()), *(part for board in boards or () for part in board.instances if part)]
        found = next((board for board in each if board.uuid == uuid), None)
        if found is None:
            raise NVMLErrorNotFound("Not Found")
        return found

    module.nvmlInit = init
    module.nvmlDeviceGetCount = lambda: len(boards or ())
    module.nvmlDeviceGetHandleByIndex = lambda number: (boards or ())[number]
    module.nvmlDeviceGetHandleByUUID = by_uuid
    module.nvmlDeviceGetUUID = lambda board: board.uuid
    module.nvmlDeviceGetName = lambda board: board.name
    module.nvmlDeviceGetMemoryInfo = memory
    module.nvmlDeviceGetMigMode = mig_mode
    module.nvmlDeviceGetMaxMigDeviceCount = lambda board: len(board.instances)
    module.nvmlDeviceGetMigDeviceHandleByIndex = instance
    module.nvmlDeviceGetComputeRunningProcesses = lambda board: [
        SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in board.processes.items()
    ]
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(gpus, "_library", cache(gpus._library.__wrapped__))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    forget()


def forget() -> None:
    """Look for GPUs anew."""
    gpus.gpus.cache_clear()
    gpus._library.cache_clear()
