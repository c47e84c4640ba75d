"""One training: saves it, and goes on from what is saved of it (see :mod:`kdbench.training.checkpoint`)."""

from __future__ import annotations

import logging
import math
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.errors import JobError
from kdbench.training.checkpoint import Checkpoints, StartOver
from kdbench.training.inspection import Inspection, content_digest, reaches
from kdbench.training.saving import Unsavable, global_rngs, load_global_rngs, load_network, network_state, plain
from kdbench.training.state import Stateful

if TYPE_CHECKING:
    from kdbench.task import Task
    from kdbench.training.loaders import Cycle

log = logging.getLogger(__name__)

SHORT = 1.0
"""Seconds of a training up to which it is done again rather than kept."""


@dataclass
class Parts:
    """Everything that changes while ``fit`` runs."""

    networks: Sequence[nn.Module]
    """The model and the further modules, and those that the method declares."""
    average: nn.Module | None
    """Of the model."""
    optimizing: Mapping[str, Stateful]
    """What is needed only to go on: optimizer, schedule, scaler."""
    counts: Mapping[str, Stateful]
    """What the result is made of: counters, meters."""
    batches: Cycle
    state: Sequence[Stateful]
    """What the method declares."""

    def __post_init__(self) -> None:
        for number, part in enumerate(self.state):
            if not isinstance(part, Stateful):
                raise JobError(
                    f"state[{number}] of task.fit, a {type(part).__name__}, has no state_dict() and load_state_dict()"
                )
        declared = [part for part in self.state if isinstance(part, nn.Module)]
        self.networks = [*self.networks, *declared]
        self.state = [part for part in self.state if not isinstance(part, nn.Module)]

    def weights(self) -> list[nn.Module]:
        """Every network whose weights or buffers change."""
        return [*self.networks, *([self.average] if self.average is not None else [])]


class Saver:
    """Saves one training and goes on from what is saved of it."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        fit: int,
        task: Task,
        parts: Parts,
        *,
        call: Mapping[str, Any],
        functions: Mapping[str, object],
        first: int,
    ) -> None:
        """``call`` (plain values) says which training it is, ``functions`` are what it calls at each step.

        Before step ``first`` nothing is saved.
        """
        self.checkpoints = checkpoints
        self.fit = fit
        self.task = task
        self.parts = parts
        self.call = {**call, "parameters": [tuple(p.shape) for network in parts.networks for p in network.parameters()]}
        self.first = first
        self.due = checkpoints.next_at
        """Time (``time.monotonic``) at which :meth:`save` is to be called."""
        self.stopping = False
        self._rows = task.rows
        self._artifacts = _files_in(task.folder / "artifacts")
        self._warned = False
        self._before: Any = signal.SIG_DFL
        loader = parts.batches.epochs.loader
        self._inspection = Inspection(
            functions,
            networks=parts.networks,
            kept=[*parts.state, *([loader] if isinstance(loader, Stateful) else [])],
            skipped=task.own_parts(),
            more=task.foreign_parts,
            home=checkpoints.home,
        )

    # --- saving -----------------------------------------------------------------------------------------------------

    def save(self, step: int, batch: Any) -> None:
        """Write a checkpoint after a step, whose last micro-batch was ``batch``, unless something forbids it.

        Ends the process where it was asked to stop.
        """
        if self.checkpoints.behind(self.fit):
            self.due = math.inf
        elif step < self.first:
            return  # also where it is to stop: the next step is the first one
        else:
            reason = self._obstacle()
            if reason is None:
                try:
                    self.checkpoints.write(self.fit, self._record(step, batch, final=False))
                except Unsavable as error:
                    reason = str(error)
            self.due = self.checkpoints.next_at if reason is None else math.inf
            if reason is not None and not self._warned:
                self._warned = True
                log.warning(
                    "no checkpoint of this training is written, an interrupted job starts anew: %s. "
                    "Declare what changes: task.fit(..., state=[...]) takes objects with state_dict() and "
                    "load_state_dict(), such as kdbench.training.state.Values",
                    reason,
                )
            if self.stopping and reason is None:
                log.warning("stopped after step %d of %d, which the checkpoint holds", step, self.call["steps"])
        if self.stopping:
            self._stop()

    def finish(self, step: int, seconds: float) -> None:
        """Keep what the training left, so that it is not done again; what took but a moment is rather done again."""
        if seconds < min(SHORT, self.checkpoints.every) or self._obstacle() is not None:
            return
        try:
            record = self._record(step, None, final=True)
        except Unsavable as error:
            log.debug("training %d is not kept: %s", self.fit, error)
        else:
            self.checkpoints.finished(self.fit, record)

    def _obstacle(self) -> str | None:
        """Why a checkpoint would miss something, or None."""
        loader = self.parts.batches.epochs.loader
        if not isinstance(loader, Stateful) and reaches(loader, self.parts.networks):
            return f"the loader, a {type(loader).__name__}, uses a network that is trained and has no state_dict()"
        gone = [str(path) for path in self._artifacts if not path.exists()]
        return self._inspection.changed() or (f"{gone[0]} was removed" if gone else None)

    def _record(self, step: int, batch: Any, *, final: bool) -> dict[str, Any]:
        parts = self.parts
        loader = parts.batches.epochs.loader
        record = {
            "call": self.call,
            "step": step,
            "final": final,
            "networks": [network_state(network, f"network {i}") for i, network in enumerate(parts.weights())],
            "counts": {name: plain(part.state_dict(), name) for name, part in parts.counts.items()},
            "batches": plain(parts.batches.state_dict(), "loader"),
            "batch": None if batch is None or isinstance(loader, Stateful) else content_digest(batch),
            "state": [plain(part.state_dict(), f"state[{i}]") for i, part in enumerate(parts.state)],
            "task": plain(self.task.state_dict(), "task"),
            "rngs": global_rngs(self.task.device),
            "curve": self.task.curve_since(self._rows),
            "artifacts": self._new_artifacts(),
        }
        if not final:
            record["optimizing"] = {name: plain(part.state_dict(), name) for name, part in parts.optimizing.items()}
        return record

    def _new_artifacts(self) -> dict[str, Tensor]:
        """Content of the files that the functions of the training wrote, as uint8."""
        folder = self.task.folder / "artifacts"
        new = [path for path, state in _files_in(folder).items() if self._artifacts.get(path) != state]
        contents = ((path, np.frombuffer(path.read_bytes(), np.uint8)) for path in new)
        return {str(path.relative_to(folder)): torch.from_numpy(content.copy()) for path, content in contents}

    # --- going on ---------------------------------------------------------------------------------------------------

    @classmethod
    def of(cls, task: Task, parts: Parts, **about: Any) -> Saver | None:
        """The saver of a training of a task; None where nothing is saved: by the task, or within another training."""
        checkpoints = task.checkpoints
        fit = None if checkpoints is None else checkpoints.take()
        return None if checkpoints is None or fit is None else cls(checkpoints, fit, task, parts, **about)

    def resume(self) -> int:
        """Put back what is saved of this training and return after which step it goes on; 0 for a new one.

        Raises ``StartOver`` where it does not fit.
        """
        record = self.checkpoints.read(self.fit)
        if record is None:
            return 0
        if record["call"] != self.call:
            raise StartOver("train called task.fit with other arguments than before")
        try:
            self._load(record)
        except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            raise StartOver(f"training {self.fit} cannot go on: {type(error).__name__}: {error}") from error
        step, steps = int(record["step"]), self.call["steps"]
        self.checkpoints.went_on(self.fit, step, steps)
        if not record["final"]:
            log.warning("goes on after step %d of %d", step, steps)
        return step

    def _load(self, record: Mapping[str, Any]) -> None:
        parts, task = self.parts, self.task
        loader = parts.batches.epochs.loader
        # first of all: iterating a loader anew draws from generators and may spend
        if not record["final"] or isinstance(loader, Stateful) or iter(loader) is loader:
            with task.muted():
                parts.batches.load_state_dict(record["batches"])
            if record["batch"] is not None and content_digest(parts.batches.epochs.last) != record["batch"]:
                raise ValueError("the loader does not give the same batches again")
        for network, saved in zip(parts.weights(), record["networks"], strict=True):
            load_network(network, saved)
        for name, part in parts.counts.items():
            part.load_state_dict(record["counts"][name])
        for name, part in {} if record["final"] else parts.optimizing.items():
            part.load_state_dict(record["optimizing"][name])
        for part, saved in zip(parts.state, record["state"], strict=True):
            part.load_state_dict(saved)
        for name, content in record["artifacts"].items():
            task.artifact(name).write_bytes(content.numpy().tobytes())
        task.restore_curve(self._rows, record["curve"])
        task.load_state_dict(record["task"])
        load_global_rngs(record["rngs"], task.device)

    # --- being stopped ----------------------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the steps are made, SIGTERM asks for a checkpoint after the current one, and ends the process then."""
        stoppable = threading.current_thread() is threading.main_thread()
        with self.checkpoints.busy():
            if stoppable:
                self._before = signal.signal(signal.SIGTERM, self._on_signal)
            try:
                yield
            finally:
                if stoppable:
                    signal.signal(signal.SIGTERM, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stopping, self.due = True, -math.inf

    def _stop(self) -> None:
        """Do what SIGTERM would have done."""
        sys.stdout.flush()
        sys.stderr.flush()
        self.stopping, self.due = False, self.checkpoints.next_at
        signal.signal(signal.SIGTERM, self._before)
        signal.raise_signal(signal.SIGTERM)


def _files_in(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Files below a folder, and what tells that they were written again."""
    files = {}
    for path in folder.rglob("*"):
        if path.is_file():
            state = path.stat()
            files[path] = (state.st_mtime_ns, state.st_size, state.st_ino)
    return files
