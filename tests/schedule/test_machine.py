"""What this machine has: GPUs as NVML and CUDA name them, what others use of them, and torch where NVML is missing."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from kdbench.errors import UsageError
from kdbench.schedule import gpus, machine
from tests.helpers import nvml
from tests.helpers.nvml import GIB, Board

EIGHT = [Board(f"GPU-{letter}0") for letter in "abcdefgh"]
MIXED = [Board("GPU-a0", "slow"), Board("GPU-b0", "fast"), Board("GPU-b1", "fast")]
SPLIT = [Board("GPU-a0", instances=[Board("MIG-x", total=GIB), None, Board("MIG-y", total=GIB)]), Board("GPU-b0")]


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    yield
    monkeypatch.undo()
    nvml.forget()


@pytest.fixture
def torch_says(monkeypatch):
    """Let the process that asks torch answer with these lines and this exit code; returns the calls."""
    calls = []

    def answer(stdout="", stderr="", code=0):
        def run(command, **_):
            calls.append(command)
            return SimpleNamespace(returncode=code, stdout=stdout, stderr=stderr)

        monkeypatch.setattr(gpus.subprocess, "run", run)
        return calls

    return answer


def ids() -> list[str]:
    nvml.forget()
    return [gpu.id for gpu in machine.gpus()]


# --- which ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boards", "visible", "expected"),
    [
        (EIGHT, None, [board.uuid for board in EIGHT]),
        (EIGHT, "2, 0", ["GPU-c0", "GPU-a0"]),
        (EIGHT, "", []),
        (EIGHT, "1,-1,2", ["GPU-b0"]),
        (EIGHT, "1,9,2", ["GPU-b0"]),
        (EIGHT, "1,1", ["GPU-b0"]),
        (EIGHT, "GPU-d,GPU-a0", ["GPU-d0", "GPU-a0"]),
        (EIGHT, "GPU-", []),
        (MIXED, None, ["GPU-a0", "GPU-b0", "GPU-b1"]),
        (MIXED, "GPU-b1", ["GPU-b1"]),
        (MIXED, "GPU-b", []),
        (SPLIT, None, ["MIG-x", "MIG-y", "GPU-b0"]),
        (SPLIT, "MIG-y", ["MIG-y"]),
        (SPLIT, "0", ["MIG-x"]),
        ([Board("GPU-a0"), Board("GPU-b0", broken=True), Board("GPU-c0")], None, ["GPU-a0", "GPU-c0"]),
        ([Board("GPU-a0", "GTX"), Board("GPU-b0", "GTX", broken=True), Board("GPU-c0", "GTX")], "2,1", ["GPU-c0"]),
    ],
)
def test_devices_are_those_that_cuda_would_use(monkeypatch, boards, visible, expected):
    nvml.install(monkeypatch, boards)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert ids() == expected
    assert machine.gpu_count() == len(expected)


def test_numbers_among_different_models_are_asked_of_cuda_which_begins_with_the_fastest(monkeypatch, torch_says):
    nvml.install(monkeypatch, [*MIXED[:2], replace(MIXED[2], used=3 * GIB)])
    calls = torch_says('GPUS [["GPU-b1", "fast", 85899345920, 0]]\n')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert machine.listed_gpus() is None
    assert machine.gpu_count() == 1
    assert not calls
    (gpu,) = machine.gpus()
    assert (gpu.id, gpu.used) == ("GPU-b1", 3 * GIB), "the device is CUDA's, what is used is NVML's"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert ids() == ["GPU-b0"]


def test_memory_is_known_with_what_others_use(monkeypatch):
    nvml.install(monkeypatch, [Board("GPU-a", total=80 * GIB, used=11 * GIB)])
    assert machine.gpus() == (machine.Gpu("GPU-a", "H200", 80 * GIB, 11 * GIB),)


# --- what others use now ----------------------------------------------------------------------------------------------


def test_what_others_use_is_what_is_used_but_for_our_own_processes(monkeypatch):
    boards = [Board("GPU-a", processes={1: 5 * GIB, 2: 7 * GIB}), Board("GPU-b")]
    nvml.install(monkeypatch, boards)
    known = machine.gpus()
    boards[0].used, boards[1].used = 13 * GIB, 2 * GIB
    assert [gpu.used for gpu in machine.refresh(known, {})] == [13 * GIB, 2 * GIB]
    assert [gpu.used for gpu in machine.refresh(known, {"GPU-a": [2]})] == [6 * GIB, 2 * GIB]
    assert [gpu.used for gpu in machine.refresh(known, {"GPU-a": [1, 2]})] == [GIB, 2 * GIB]


@pytest.mark.parametrize("processes", [{}, {1: None}, {77: 4 * GIB}], ids=["not shown", "no size", "other numbers"])
def test_where_our_own_processes_are_not_seen_they_are_not_taken_for_others(monkeypatch, processes):
    """In a container the driver tells numbers that mean nothing there."""
    boards = [Board("GPU-a", used=GIB)]
    nvml.install(monkeypatch, boards)
    known = machine.gpus()
    boards[0].used, boards[0].processes = 5 * GIB, processes
    assert [gpu.used for gpu in machine.refresh(known, {"GPU-a": [1]})] == [GIB]


def test_a_device_that_is_lost_is_said_and_stays_as_it_was_known(monkeypatch, caplog):
    boards = [Board("GPU-a", used=GIB)]
    nvml.install(monkeypatch, boards)
    known = machine.gpus()
    boards[0].broken = True
    assert machine.refresh(known, {}) == known
    assert "GPU GPU-a is unknown: GPU is lost" in caplog.text


# --- without NVML -----------------------------------------------------------------------------------------------------


ROWS = 'warning: something\nGPUS [["GPU-1f", "A100", 1000, 10], ["", "A100", 1000, 0]]\n'


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, ["GPU-1f", "1"]), ("3,5", ["GPU-1f", "5"]), ("MIG-x,GPU-y", ["MIG-x", "GPU-y"])],
)
def test_without_a_driver_library_torch_is_asked_once(monkeypatch, torch_says, visible, expected):
    nvml.install(monkeypatch, None)
    calls = torch_says(ROWS)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.id for gpu in machine.gpus()] == expected
    assert (machine.gpus()[0].memory, machine.gpus()[0].used) == (1000, 10)
    assert len(calls) == 1
    assert machine.refresh(machine.gpus(), {}) == machine.gpus()


def test_without_a_driver_library_the_driver_s_list_is_counted(monkeypatch, tmp_path):
    nvml.install(monkeypatch, None)
    monkeypatch.setattr(gpus, "PROC", tmp_path)
    assert machine.gpu_count() == 0
    for bus in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / bus).mkdir()
    assert machine.gpu_count() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert machine.gpu_count() == 1


def test_missing_bindings_are_as_a_missing_driver(monkeypatch, torch_says):
    nvml.install(monkeypatch, EIGHT)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    torch_says("GPUS []\n")
    assert ids() == []


def test_torch_s_failure_is_one_sentence(monkeypatch, torch_says):
    nvml.install(monkeypatch, None)
    torch_says(stderr="Traceback\nRuntimeError: no driver\n", code=1)
    with pytest.raises(UsageError, match=r"torch cannot list the GPUs of this machine: RuntimeError: no driver"):
        machine.gpus()


def test_the_question_to_torch_is_a_program():
    """On a machine without GPUs it prints an empty list; here it is only compiled, because torch takes seconds."""
    compile(gpus._ASK_TORCH, "ask", "exec")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\n", False),
        ("cuda: Optional[str] = '12.6'\nhip: Optional[str] = None\n", True),
        ("cuda = None\nhip = '6.2'\n", True),
        ("__version__ = '3'\n", True),
    ],
)
def test_whether_torch_is_built_for_gpus_is_read_from_its_files(monkeypatch, tmp_path, version, expected):
    (tmp_path / "version.py").write_text(version)
    monkeypatch.setattr(gpus.util, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[tmp_path]))
    assert machine.torch_has_gpus() is expected


def test_looking_for_gpus_imports_no_torch():
    program = "import sys; from kdbench.schedule import machine; machine.gpu_count(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
