"""The GPUs of this machine: which this process may use, how large they are, and what others use of them.

NVIDIA's management library (NVML, through ``pynvml``) is asked first: it answers in milliseconds and leaves CUDA alone.
Where it is missing torch is asked, in a process of its own, because a process that has initialised CUDA cannot fork
workers. ``CUDA_VISIBLE_DEVICES`` counts as it does for CUDA itself. Devices are named by their UUID where there is one:
numbers mean other devices to CUDA, which begins with the fastest, than to NVML.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

from kdbench.errors import UsageError

log = logging.getLogger(__name__)

PROC = Path("/proc/driver/nvidia/gpus")
"""Where the driver lists its devices for those without NVML."""


@dataclass(frozen=True)
class Gpu:
    """One device that this process may use: a GPU, or an instance of one that is split up (MIG)."""

    id: str
    """What ``CUDA_VISIBLE_DEVICES`` calls it."""
    name: str
    memory: int
    """Bytes in all."""
    used: int = 0
    """Bytes that other processes have."""
    instance: bool = False
    """Whether it is a MIG instance, of which a process can use only one."""


@cache
def gpus() -> tuple[Gpu, ...]:
    """The GPUs that this process may use, in the order of ``CUDA_VISIBLE_DEVICES``.

    Asked once: later changes of what others use come by :func:`refresh`. Without NVML it takes seconds. Raises
    ``UsageError`` where torch is asked and fails.
    """
    listed = listed_gpus()
    if listed is not None:
        return listed
    there = {gpu.id: gpu for gpu, _ in _nvml_gpus() or ()}
    return tuple(there.get(gpu.id, gpu) for gpu in _torch_gpus())


def listed_gpus() -> tuple[Gpu, ...] | None:
    """The GPUs that this process may use as far as they are known without torch.

    None where NVML or its bindings are missing, and where devices are chosen by number among different models: only
    CUDA knows which is meant then.
    """
    there, visible = _nvml_gpus(), _visible()
    if there is None:
        return None
    by_number = any(part.isdecimal() for part in visible or ())
    in_order = (
        os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len({gpu.name for gpu, _ in there if gpu.memory}) < 2
    )
    return _chosen(visible, there) if in_order or not by_number else None


def gpu_count() -> int:
    """How many GPUs this process may use, found without torch: by NVML, or as the driver lists them."""
    there, visible = _nvml_gpus(), _visible()
    if there is not None:
        return len(_chosen(visible, there))
    listed = len(list(PROC.glob("*")))
    return listed if visible is None else min(listed, len(visible))


def torch_has_gpus() -> bool:
    """Whether the installed torch is one for GPUs, read from its files; True where they do not say."""
    found = util.find_spec("torch")
    folders = list(found.submodule_search_locations or ()) if found is not None else []
    texts = [path.read_text() for folder in folders for path in [Path(folder, "version.py")] if path.is_file()]
    values = [match[1] for text in texts for match in re.finditer(r"^(?:cuda|hip)\b[^=]*= *(.+)$", text, re.MULTILINE)]
    return not values or any(value.strip() != "None" for value in values)


def refresh(known: Sequence[Gpu], ours: Mapping[str, Collection[int]]) -> tuple[Gpu, ...]:
    """The same devices with what others use now; a few milliseconds.

    ``ours`` are the processes of this run on each device (by its id), which are no others. Where NVML does not show
    them, or not their memory (in a container that has process numbers of its own), what others use cannot be told
    from it, and stays as it was known.
    """
    nvml = _library()
    return tuple(known) if nvml is None else tuple(_refreshed(nvml, gpu, set(ours.get(gpu.id, ()))) for gpu in known)


def _refreshed(nvml: ModuleType, gpu: Gpu, ours: set[int]) -> Gpu:
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(gpu.id)
        used = int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
        shown = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError as error:
        log.warning("what others use of GPU %s is unknown: %s", gpu.id, error)
        return gpu
    sizes = {process.pid: int(process.usedGpuMemory) for process in shown if process.usedGpuMemory is not None}
    if not ours <= set(sizes):
        return gpu
    return replace(gpu, used=max(0, used - sum(sizes[pid] for pid in ours)))


# --- what CUDA_VISIBLE_DEVICES says -----------------------------------------------------------------------------------


def _visible() -> list[str] | None:
    """The entries of ``CUDA_VISIBLE_DEVICES`` up to the first that names nothing, or None where it is not set."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return None
    entries = [part.strip() for part in value.split(",")]
    invalid = next((i for i, part in enumerate(entries) if not part or part.startswith("-")), len(entries))
    return entries[:invalid]


Listed = Sequence[tuple[Gpu, Sequence[Gpu]]]
"""Every GPU of the machine in the order of the bus, each with its MIG instances."""


def _chosen(visible: Sequence[str] | None, there: Listed) -> tuple[Gpu, ...]:
    """The devices that are named, each by its number or the beginning of its UUID; like CUDA, up to the first that is
    not there or stands twice. All of them where none is named."""
    if visible is None:
        return tuple(usable for gpu, instances in there for usable in instances or (gpu,) if usable.memory)
    chosen: dict[str, Gpu] = {}
    for part in visible:
        gpu = _named(part, there)
        if gpu is None or gpu.id in chosen:
            break
        chosen[gpu.id] = gpu
    return tuple(chosen.values())


def _named(part: str, there: Listed) -> Gpu | None:
    if part.isdecimal():
        named = list(there[int(part) : int(part) + 1])
    else:
        each: list[tuple[Gpu, Sequence[Gpu]]] = [*there, *((part, ()) for _, parts in there for part in parts)]
        named = [entry for entry in each if entry[0].id.startswith(part)]
    usable = [instances[0] if instances else gpu for gpu, instances in named]  # a process gets the first instance
    return usable[0] if len(usable) == 1 and usable[0].memory else None


# --- NVML -------------------------------------------------------------------------------------------------------------


@cache
def _library() -> ModuleType | None:
    """NVML, initialised for as long as this process lives; None where its bindings or the driver are missing."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.debug("NVML cannot be used: %s", error)
        return None
    library: ModuleType = pynvml
    return library


def _nvml_gpus() -> list[tuple[Gpu, tuple[Gpu, ...]]] | None:
    """Every GPU of the machine in the order of the bus, each with its MIG instances; None without NVML."""
    nvml = _library()
    if nvml is None:
        return None
    found = []
    for number in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(number)
            instances = tuple(_described(nvml, part, instance=True) for part in _instances(nvml, handle))
            found.append((_described(nvml, handle), instances))
        except nvml.NVMLError as error:
            # its place stays taken, so that the numbers of those behind it mean the same
            log.warning("GPU %d of this machine cannot be used: %s", number, error)
            found.append((Gpu(f"unusable-{number}", "", 0), ()))
    return found


def _described(nvml: ModuleType, handle: Any, *, instance: bool = False) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    id, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
    return Gpu(id, name, int(memory.total), int(memory.used), instance)


def _instances(nvml: ModuleType, handle: Any) -> Iterator[Any]:
    """Handles of the MIG instances of a GPU; none where it is not split up or cannot be."""
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError_NotSupported:
        return
    if current != nvml.NVML_DEVICE_MIG_ENABLE:
        return
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
        except nvml.NVMLError_NotFound:
            continue


# --- torch ------------------------------------------------------------------------------------------------------------

_ASK_TORCH = """
import json, torch
rows = []
for number in range(torch.cuda.device_count()):
    device = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    uuid = str(getattr(device, "uuid", "")) if torch.version.cuda else ""
    rows.append([f"GPU-{uuid}" if uuid else "", device.name, total, total - free])
print("GPUS", json.dumps(rows))
"""


def _torch_gpus() -> tuple[Gpu, ...]:
    """What torch sees, in CUDA's order. Raises ``UsageError`` where it fails."""
    done = subprocess.run([sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, check=False)
    answer = next((line for line in done.stdout.splitlines() if line.startswith("GPUS ")), None)
    if done.returncode or answer is None:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"torch cannot list the GPUs of this machine: {reason}")
    rows = json.loads(answer.removeprefix("GPUS "))
    visible = _visible()
    names = [str(number) for number in range(len(rows))] if visible is None else visible
    return tuple(
        Gpu(id if id and name.isdecimal() else name, *rest) for name, (id, *rest) in zip(names, rows, strict=False)
    )
