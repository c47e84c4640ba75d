"""What would stop the jobs of a suite on this machine, found without running or importing any of them."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kdbench.errors import Problem, did_you_mean
from kdbench.job import Resources
from kdbench.quantities import show_bytes
from kdbench.schedule import machine
from kdbench.schedule.packing import TINY
from kdbench.spec import TaskSpec
from kdbench.suite import Suite

if TYPE_CHECKING:
    from kdbench.registry import Method, Registry
    from kdbench.resolve import Asked

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
"""Names under which modules are distributed, where these differ by more than dashes."""
SERVERS = ("http", "https", "databricks", "databricks-uc", "uc")
"""Schemes of tracking URIs that MLflow 3 takes; ``file`` is in maintenance mode there and refused."""


def preflight(
    suite: Suite,
    registry: Registry,
    results: Path,
    tasks: Sequence[tuple[int, TaskSpec]],
    methods: Mapping[str, Method],
    asked: Collection[Asked],
) -> tuple[dict[Resources, int], list[Problem]]:
    """For all resources that are asked for, how many such jobs run at the same time here if no others do, and
    everything that would stop some jobs.

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
    slots, more = _resources(suite, asked)
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
    distribution = DISTRIBUTIONS.get(module, module).replace("_", "-")
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


def _resources(suite: Suite, asked: Collection[Asked]) -> tuple[dict[Resources, int], list[Problem]]:
    """Slots of the local executor, and resources that this machine can never give to a job."""
    workers = suite.executor.options.get("workers")
    limit = workers if isinstance(workers, int) and not isinstance(workers, bool) and workers > 0 else machine.cores()
    if suite.executor.name != "local":
        return {each.resources: limit for each in asked}, []
    here = Machine.found(any(each.resources.on_gpu for each in asked))
    problems = [
        Problem(each.place(suite, field), message, hint)
        for each in sorted(asked, key=lambda each: (each.method, each.task))
        for field, message, hint in here.refuses(each.resources)
    ]
    return {each.resources: max(1, min(limit, here.slots(each.resources))) for each in asked}, problems


@dataclass(frozen=True)
class Machine:
    """What this machine has for jobs, as far as it is known without torch."""

    cores: int
    memory: int
    gpus: int
    devices: tuple[machine.Gpu, ...] | None
    """None: only their number is known."""

    @classmethod
    def found(cls, on_gpu: bool) -> Machine:
        """GPUs are looked for only where that matters."""
        if not on_gpu:
            return cls(machine.cores(), machine.memory(), 0, ())
        return cls(machine.cores(), machine.memory(), machine.gpu_count(), machine.listed_gpus())

    def refuses(self, asked: Resources) -> Iterator[tuple[str, str, str]]:
        """Fields that can never be met here, each with a message and a hint."""
        if asked.cpus > self.cores:
            message = f"each job asks for {asked.cpus:g} CPU cores, but this machine has {self.cores}"
            yield "cpus", message, "a CPU job computes with one thread anyway"
        if asked.memory is not None and asked.memory > self.memory:
            there = show_bytes(self.memory)
            message = f"each job may take {show_bytes(asked.memory)} of memory, but this machine has {there}"
            yield "memory", message, "ask for less"
        if asked.on_gpu:
            yield from self._refuses_gpus(asked)

    def _refuses_gpus(self, asked: Resources) -> Iterator[tuple[str, str, str]]:
        field = "gpus" if asked.gpus else "gpu_memory"
        wanted = f"{asked.gpus:g} GPU{'s' * (asked.gpus > 1)}" if asked.gpus else "a part of a GPU"
        if asked.gpus > self.gpus or not self.gpus:
            there = f"this machine has {self.gpus}" if self.gpus else "none is to be seen here"
            hint = "ask for fewer" if self.gpus else "run it where there are GPUs, or set gpus: 0"
            yield field, f"each job asks for {wanted}, but {there}", hint
            return
        if not machine.torch_has_gpus():
            message = f"each job asks for {wanted}, but the installed torch is built without support for them"
            yield field, message, "install a build of torch for your GPUs (https://pytorch.org)"
        devices = self.devices
        if devices is None:
            return
        if asked.gpus > 1 and any(device.instance for device in devices):
            message = f"each job asks for {wanted}, but of GPUs that are split up (MIG) a process can use only one part"
            yield field, message, "set gpus: 1, or choose whole GPUs with CUDA_VISIBLE_DEVICES"
        elif asked.gpu_memory is not None:
            count = max(1, round(asked.gpus))
            largest = sorted((device.memory for device in devices), reverse=True)[count - 1]
            if asked.gpu_memory > largest:
                where = "the largest GPU has" if count == 1 else f"{count} GPUs have at most"
                message = f"each job asks for {show_bytes(asked.gpu_memory)} of GPU memory, but {where}"
                yield "gpu_memory", f"{message} {show_bytes(largest)}", "ask for less, or for more devices with gpus"

    def slots(self, asked: Resources) -> int:
        """How many jobs with these resources fit beside each other, at least 0; memory of GPUs that is unknown or in
        use by others now is taken as there."""
        limits = [self.cores / asked.cpus]
        if asked.memory is not None:
            limits.append(self.memory / asked.memory)
        if asked.gpus >= 1:
            limits.append(self.gpus / asked.gpus)
        elif asked.on_gpu:
            sizes = [device.memory for device in self.devices] if self.devices is not None else [0] * self.gpus
            limits.append(sum(_per_device(asked, size) for size in sizes))
        return int(min(limits) + TINY)


def _per_device(asked: Resources, size: int) -> int:
    """Jobs that share one device of ``size`` bytes; 0 bytes: unknown."""
    shares = [1 / asked.gpus] if asked.gpus else []
    if asked.gpu_memory is not None:
        shares.append(size / asked.gpu_memory if size else 1.0)
    return int(min(shares) + TINY)


def _tracking(suite: Suite) -> list[Problem]:
    uri: Any = suite.tracking.mlflow
    return tracking_problems(uri, suite.place("tracking", "mlflow")) if isinstance(uri, str) else []


def tracking_problems(uri: str, place: str) -> list[Problem]:
    """What is wrong with the form of a tracking URI, which stands at ``place``."""
    scheme = urlsplit(uri).scheme
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
