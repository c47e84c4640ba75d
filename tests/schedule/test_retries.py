"""What is tried once more, with what, and what is final."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kdbench.job import Failure, Resources
from kdbench.schedule.packing import Capacity, Demand, Device, Slot
from kdbench.schedule.retries import ATTEMPTS, Try, again, on_device

GIB = 1 << 30
MACHINE = Capacity(8.0, (Device(16 * GIB, 16 * GIB), Device(16 * GIB, 16 * GIB)), 64 * GIB)
LOST = Failure(type="lost", message="the machine is gone")
HOST_OOM = Failure(type="oom", message="the job and its children used more than 8.0 GiB")
GPU_OOM = Failure(type="OutOfMemoryError", message="CUDA out of memory. Tried to allocate 2.00 GiB")
CPU_DEMAND, CPU_SLOT = Demand(1.0, memory=8 * GIB), Slot(1.0, memory=8 * GIB)


def retry(status, error, *, before=(), demand=CPU_DEMAND, slot=CPU_SLOT, asked=None, limit=8 * GIB):
    return again(
        status,
        error,
        before=before,
        demand=demand,
        limit=limit,
        slot=slot,
        asked=asked or Resources(),
        capacity=MACHINE,
    )


def test_out_of_main_memory_is_tried_once_more_with_all_of_it():
    found = retry("oom", HOST_OOM)
    assert found.demand == replace(CPU_DEMAND, memory=MACHINE.memory), "nothing else fits beside it"
    assert found.limit == MACHINE.memory
    assert "alone" in found.why
    assert retry("oom", HOST_OOM, before=[Try("oom", "", 1.0)]) is None, "once is enough"


def test_a_limit_that_the_suite_states_is_a_limit():
    assert retry("oom", HOST_OOM, asked=Resources(memory=8 * GIB)) is None


def test_work_that_had_everything_is_not_tried_again():
    all_of_it = replace(CPU_DEMAND, memory=MACHINE.memory)
    assert retry("oom", HOST_OOM, demand=all_of_it, limit=MACHINE.memory) is None


@pytest.mark.parametrize(
    ("demand", "slot", "wanted"),
    [
        (Demand(1.0, 0.25, 8 * GIB), Slot(1.0, (1,), 0.25, 8 * GIB), 1.0),
        (Demand(1.0, 0.0, 8 * GIB, 4 * GIB), Slot(1.0, (0,), 0.25, 8 * GIB, 4 * GIB), 1.0),
    ],
)
def test_out_of_gpu_memory_on_a_shared_device_gets_one_of_its_own(demand, slot, wanted):
    asked = Resources(gpus=demand.gpus, gpu_memory=demand.gpu_memory or None, memory=8 * GIB)
    found = retry("oom", GPU_OOM, demand=demand, slot=slot, asked=asked)
    assert found.demand == replace(demand, gpus=wanted)
    assert found.limit == 8 * GIB, "its main memory stays what it was"
    assert "device of its own" in found.why


@pytest.mark.parametrize("gpus", [1.0, 2.0])
def test_out_of_gpu_memory_on_devices_of_its_own_is_final(gpus):
    demand, slot = Demand(1.0, gpus, 8 * GIB), Slot(1.0, tuple(range(int(gpus))), 1.0, 8 * GIB)
    assert retry("oom", GPU_OOM, demand=demand, slot=slot, asked=Resources(gpus=gpus)) is None
    in_main_memory = retry("oom", HOST_OOM, demand=demand, slot=slot, asked=Resources(gpus=gpus))
    assert in_main_memory.demand == replace(demand, memory=MACHINE.memory), "its main memory is another matter"


def test_lost_work_starts_again_as_it_was_and_first_but_not_for_ever():
    before = []
    for _ in range(ATTEMPTS - 1):
        found = retry("crashed", LOST, before=before)
        assert (found.demand, found.limit, found.first) == (CPU_DEMAND, 8 * GIB, True)
        before.append(Try("crashed", "gone", 1.0))
    assert retry("crashed", LOST, before=before) is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("ok", "lost"),
        ("failed", "ValueError"),
        ("failed", "lost"),
        ("crashed", "SIGKILL"),
        ("timeout", "timeout"),
        ("timeout", "hung"),
        ("diverged", "Diverged"),
        ("over_budget", "OverBudget"),
        ("interrupted", "cancelled"),
    ],
)
def test_what_a_job_does_wrong_it_would_do_wrong_again(status, kind):
    assert retry(status, Failure(type=kind, message="CUDA out of memory, it says")) is None


@pytest.mark.parametrize(
    ("error", "device"),
    [
        (GPU_OOM, True),
        (Failure(type="RuntimeError", message="CUDA error: out of memory"), True),
        (Failure(type="RuntimeError", message="CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (HOST_OOM, False),
        (Failure(type="MemoryError", message="no memory was left"), False),
        (Failure(type="RuntimeError", message="[enforce fail at alloc_cpu.cpp] can't allocate memory"), False),
    ],
)
def test_whose_memory_ran_out(error, device):
    assert on_device(error) is device
