"""What would stop the jobs of a suite on this machine, found without running or importing any of them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kdbench.errors import Problem, did_you_mean
from kdbench.quantities import show_bytes
from kdbench.schedule import machine
from kdbench.spec import TaskSpec
from kdbench.suite import Suite

if TYPE_CHECKING:
    from kdbench.registry import Method, Registry

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http", "https", "databricks", "databricks-uc", "uc")
"""Schemes of tracking URIs that MLflow 3 takes; ``file`` is in maintenance mode there and refused."""


def preflight(
    suite: Suite,
    registry: Registry,
    results: Path,
    tasks: Sequence[tuple[int, TaskSpec]],
    methods: Mapping[str, Method],
) -> tuple[int, list[Problem]]:
    """How many jobs run at the same time here, and everything that would stop some of them.

    ``tasks`` are the tasks of the suite with their positions in it.
    """
    problems: list[Problem] = []
    for index, spec in tasks:
        place = suite.place("tasks", index)
        missing = [name for name in spec.requires if not installed(name)]
        for name in missing:
            problems.append(Problem(place, f"{spec.name} needs the package '{name}'", install_hint(name)))
        for problem in spec.problems():
            if not any(name in problem.message for name in missing):
                where = f" ({problem.place})" if problem.place else ""
                problems.append(Problem(place, f"{spec.name}@{spec.scale}: {problem.message}{where}", problem.hint))
    for key, method in sorted(methods.items()):
        for name in method.imports:
            if not installed(name):
                message = f"{key} imports '{name}', which is not installed"
                problems.append(Problem(_place_of_method(suite, method), message, install_hint(name)))
    problems += _executor(suite, registry)
    slots, more = _resources(suite)
    problems += more + _tracking(suite) + _results(results)
    return slots, list(dict.fromkeys(problems))


def installed(name: str) -> bool:
    """Whether a top-level module can be imported, found without importing it."""
    try:
        return util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def install_hint(module: str) -> str:
    """The command that installs what a module comes with."""
    distribution = module.replace("_", "-")
    for requirement in metadata.requires("kdbench") or ():
        match = re.match(r"([A-Za-z0-9._-]+).*extra == ['\"]([^'\"]+)['\"]", requirement)
        if match and match[1].lower().replace("_", "-") == distribution.lower() and match[2] != "dev":
            return f"pip install 'kdbench[{match[2]}]'"
    return f"pip install {distribution}"


def _place_of_method(suite: Suite, method: Method) -> str:
    names = (method.key, method.slug)
    index = next((i for i, choice in enumerate(suite.methods) if choice.method in names), None)
    return suite.place("methods") if index is None else suite.place("methods", index)


def _executor(suite: Suite, registry: Registry) -> list[Problem]:
    name, known = suite.executor.name, registry.executors()
    if name in known:
        return []
    hint = did_you_mean(name, list(known), label="executors")
    return [Problem(suite.place("executor", "name"), f"there is no executor '{name}'", hint)]


def _resources(suite: Suite) -> tuple[int, list[Problem]]:
    """Slots of the local executor, and resources that this machine can never give to a job."""
    asked, options = suite.resources, suite.executor.options
    cores = machine.cores()
    workers = options.get("workers")
    slots = workers if isinstance(workers, int) and not isinstance(workers, bool) and workers > 0 else cores
    if suite.executor.name != "local":
        return max(1, slots), []
    problems: list[Problem] = []
    if asked.cpus > cores:
        message = f"each job asks for {asked.cpus:g} CPU cores, but this machine has {cores}"
        problems.append(Problem(suite.place("resources", "cpus"), message, "a CPU job computes with one thread anyway"))
    slots = min(slots, max(1, int(cores / asked.cpus)))
    memory = machine.memory()
    if asked.memory is not None and asked.memory > memory:
        message = f"each job may take {show_bytes(asked.memory)} of memory, but this machine has {show_bytes(memory)}"
        problems.append(Problem(suite.place("resources", "memory"), message, "ask for less"))
    if asked.gpus:
        gpus = gpu_count()
        if asked.gpus > gpus:
            there = f"this machine has {gpus}" if gpus else "none is to be seen here"
            message = f"each job asks for {asked.gpus:g} GPU{'s' * (asked.gpus > 1)}, but {there}"
            hint = "run it where there are GPUs, or set gpus: 0" if not gpus else "ask for fewer"
            problems.append(Problem(suite.place("resources", "gpus"), message, hint))
        slots = min(slots, max(1, int(gpus / asked.gpus)))
    return max(1, slots), problems


def gpu_count() -> int:
    """NVIDIA GPUs that a job could use, from NVML or ``/proc`` and without torch; ``CUDA_VISIBLE_DEVICES`` counts."""
    there = _nvml_count()
    if there is None:
        there = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return there
    named = [part.strip() for part in visible.split(",")]
    usable = named[: named.index("-1")] if "-1" in named else named  # CUDA ignores what follows an invalid index
    return min(there, len([part for part in usable if part]))


def _nvml_count() -> int | None:
    """What NVML counts; None where its bindings or the driver are missing."""
    if not installed("pynvml"):
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()


def _tracking(suite: Suite) -> list[Problem]:
    uri: Any = suite.tracking.mlflow
    if not isinstance(uri, str):
        return []
    place, scheme = suite.place("tracking", "mlflow"), urlsplit(uri).scheme
    if scheme.partition("+")[0] in DATABASES or scheme in SERVERS or uri == "databricks":
        return []
    hint = "write true for a database in the results folder, sqlite:////path/to/mlflow.db, or https://host"
    if scheme in ("", "file"):
        return [Problem(place, f"'{uri}' is a folder, and MLflow no longer keeps runs in folders", hint)]
    return [Problem(place, f"'{uri}' is no tracking URI: MLflow does not know the scheme '{scheme}'", hint)]


def _results(results: Path) -> list[Problem]:
    """The first folder on the way down to the results that exists must be a folder that can be written."""
    existing = next(path for path in (results, *results.absolute().parents) if path.exists() or path.is_symlink())
    if not existing.is_dir():
        return [Problem(str(existing), "is not a folder, but results are kept in a folder", "choose with --results")]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [Problem(str(existing), "the results folder cannot be written", "choose with --results")]
    return []
