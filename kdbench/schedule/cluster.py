"""The connection to a Ray cluster, and which of its machines can run jobs.

A machine counts once a first task there has told what it has and that it can run the jobs of this run.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdbench.errors import Problem, UsageError
from kdbench.provenance import package_versions
from kdbench.schedule import remote, shipping
from kdbench.schedule.nodes import Node, Nodes, devices

log = logging.getLogger(__name__)

ANSWER = 5.0
"""Seconds that a cluster's head has to answer at all: Ray itself waits for minutes."""
FIRST_LOOK = 600.0
"""Seconds until the machines of the cluster must have answered; a runtime environment may install packages first."""
LOOK = 1.0
"""Seconds between two looks at which machines there are."""
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set where the coordinator itself was started by ``ray job submit``, which chooses the folder to work in."""


def environment(given: Mapping[str, Any], cargo: shipping.Cargo, empty: Path, *, ship: bool) -> dict[str, Any]:
    """The runtime environment of a run: what the suite says, the code of kdbench (``ship``) and the plugins.

    ``empty`` is a folder without anything in it.
    """
    modules = [str(shipping.package_folder(name)) for name in shipping.PACKAGES] if ship else []
    if cargo.folder is not None:
        modules.append(str(cargo.folder))
    made = {
        **given,
        "py_modules": [*modules, *given.get("py_modules", [])],
        # plugins that are dropped in there are another user's
        "env_vars": {"KDBENCH_PLUGINS": "", **given.get("env_vars", {})},
        "excludes": [*given.get("excludes", []), "__pycache__", "*.pyc"],
    }
    if SUBMITTED not in os.environ:
        # without a folder to work in, Ray would import from the path of this one, whatever is there on the machine
        made.setdefault("working_dir", str(empty))
    return made


def connect(address: str, environment: dict[str, Any]) -> None:
    """Connect to the cluster. Raises ``UsageError`` where none answers or it does not let this process in."""
    if ray.is_initialized():
        raise UsageError(
            "Ray is initialised in this process already, but code is shipped when that happens",
            hint="call ray.shutdown() before the run",
        )
    hint = "start one with: ray start --head"
    named = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    host, _, port = named.rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=ANSWER).close()
        except OSError as error:
            raise UsageError(f"no Ray cluster answers at {named}: {error.strerror or error}", hint=hint) from error
    # notices of Ray's go to standard output, where tables and JSON go; what matters of them is an event here
    ray._private.worker._worker_logs_enabled = False
    with _signals_kept():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment)
        except ConnectionError as error:
            raise UsageError(f"no Ray cluster answers: {_first_line(error)}", hint=hint) from error
        except (RuntimeError, ValueError, TypeError, RayError) as error:
            raise UsageError(f"the Ray cluster cannot be used: {_first_line(error)}") from error


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray replaces the handler of SIGTERM, which is the run's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Cluster:
    """The machines of the cluster that this process is connected to."""

    def __init__(self, setting: remote.Setting, *, code: str, wants_gpus: bool, workers: int | None) -> None:
        """Look at all machines that are there, which may take minutes where Ray installs packages on them first.

        ``code`` is the digest of the code that they should have. Raises ``UsageError`` where there is none with cores,
        and where one of them cannot run the jobs.
        """
        self.nodes = Nodes(workers)
        self._setting = setting
        self._code = code
        self._wants_gpus = wants_gpus
        self._probe = ray.remote(num_cpus=0, max_retries=0)(remote.probe)
        self._probes: dict[Any, dict[str, Any]] = {}
        """Machines, as Ray describes them, that were asked and have not answered, by the reference to the answer."""
        self._asked: set[str] = set()
        self._next_look = 0.0
        self._compare_with_ray()
        if not self._probes:
            hint = "start one with: ray start --address=HEAD:PORT"
            raise UsageError("no machine of the Ray cluster has cores for jobs", hint=hint)
        ready, late = ray.wait(list(self._probes), num_returns=len(self._probes), timeout=FIRST_LOOK)
        if late:
            names = ", ".join(sorted(self._probes[probe]["NodeManagerAddress"] for probe in late))
            raise UsageError(f"machines of the Ray cluster do not answer: {names}", hint="ray status says more")
        problems = self._take(ready)
        if problems:
            raise UsageError(problems)

    def look(self) -> bool:
        """Take note of machines that came or went, at most once a second; whether there are any."""
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + LOOK
        before = self.nodes.capacity
        self._compare_with_ray()
        if self._probes:
            ready, _ = ray.wait(list(self._probes), num_returns=len(self._probes), timeout=0)
            for problem in self._take(ready):
                log.warning("%s", problem)
        return self.nodes.capacity != before

    def hurry(self) -> None:
        """Make the next look at once: something happened."""
        self._next_look = 0.0

    def _compare_with_ray(self) -> None:
        there = {row["NodeID"]: row for row in ray.nodes() if row["Alive"]}
        for node in self.nodes.there:
            if node.id not in there:
                self.nodes.remove(node.id)
                log.warning("a machine of the cluster is gone: %s", node.address)
        for id, row in there.items():
            if id not in self._asked and row["Resources"].get("CPU"):
                self._asked.add(id)
                here = self._probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(id, soft=False))
                self._probes[here.remote(self._setting, self._wants_gpus)] = row

    def _take(self, ready: list[Any]) -> list[Problem]:
        """Count the machines that answered; returns what stops the others from running jobs."""
        problems = []
        for probe in ready:
            row = self._probes.pop(probe)
            place = f"machine {row['NodeManagerAddress']} of the Ray cluster"
            try:
                probed: remote.Probed = ray.get(probe)
            except RayError as error:
                problems.append(Problem(place, said(error)))
                continue
            objection = _objection(place, probed, self._code)
            if objection is None:
                self.nodes.add(_node(row, probed))
            else:
                problems.append(objection)
        return problems


def _objection(place: str, probed: remote.Probed, code: str) -> Problem | None:
    """What stops a machine from running the jobs; what may change their results is logged."""
    if probed.code != code:
        hint = "install this version there, or leave out ship: false"
        return Problem(place, "it has another version of kdbench than this one", hint)
    mine = package_versions()
    absent = sorted(set(mine) - set(probed.packages) - {"kdbench"})
    if absent:
        hint = "install there what kdbench needs, or name it in runtime_env (pip)"
        return Problem(place, f"it lacks the packages {', '.join(absent)}", hint)
    if probed.missing:
        reasons = f" ({'; '.join(probed.broken)})" if probed.broken else ""
        hint = "install there the packages that contribute them"
        return Problem(place, f"it lacks the tracks {', '.join(probed.missing)}{reasons}", hint)
    others = [
        f"{name} {version} (here {mine[name]})"
        for name, version in sorted(probed.packages.items())
        if name in mine and mine[name] != version
    ]
    if others:
        log.warning("%s has other packages, which can change results: %s", place, ", ".join(others))
    return None


def _node(row: Mapping[str, Any], probed: remote.Probed) -> Node:
    resources = row["Resources"]
    return Node(
        id=row["NodeID"],
        cpus=float(resources["CPU"]),
        memory=int(resources.get("memory", 0)),
        gpus=devices(int(resources.get("GPU", 0)), probed.gpus),
        address=row["NodeManagerAddress"],
    )


def said(error: RayError) -> str:
    """What an error says, as one sentence: Ray's own are followed by pages of advice."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        return str(cause) if isinstance(cause, UsageError) else f"{type(cause).__name__}: {cause}"
    if isinstance(error, RuntimeEnvSetupError):
        return f"its runtime environment cannot be set up: {error.error_message}"
    return _first_line(error).partition(". ")[0]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
