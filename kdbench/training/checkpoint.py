"""Checkpoints of a job: what ``task.fit`` leaves on the disk, so that an interrupted job goes on where it was.

A job that is started again runs ``train`` from the top. Calls of ``fit`` that had finished are skipped by loading what
they left, the interrupted one goes on at its step, and everything that is computed between them is computed again. The
result equals that of an uninterrupted job to the last bit: weights, optimizer, schedule, averages, meters, curve,
budget, random generators and the position in the data are saved, and what else a method changes has to be declared
(``task.fit(..., state=[...])``). Where something changes that is not, no checkpoint is written.

``checkpoint/header.json`` names the other files of the folder and is replaced last: a reader finds a whole checkpoint
or none. Files are read with ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdbench import provenance
from kdbench.cache import HASHED_UP_TO, file_digest
from kdbench.store.spool import CHECKPOINT, CHECKPOINT_HEADER, write_whole
from kdbench.training.saving import bytes_of, copied

if TYPE_CHECKING:
    from kdbench.job import Job

log = logging.getLogger(__name__)

FORM = 1
"""Version of the files."""
HELD = 64 << 20
"""Bytes of a finished training up to which it waits in memory for the next checkpoint; more is written at once."""


class StartOver(BaseException):
    """A checkpoint does not fit after all. No error of the job: it starts again, without."""


@dataclass
class Spent:
    """Seconds that ``train`` has taken: by the clock, and of the processor."""

    wall: float = 0.0
    processor: float = 0.0


class Checkpoints:
    """The checkpoint of one job, from which it goes on and to which it adds."""

    def __init__(self, folder: Path, *, every: float, job: Job, device: str) -> None:
        """``folder`` is that of the job, ``every`` the seconds between two checkpoints.

        What is there and does not fit (another job, other code, damage) is removed, with a line in the log.
        """
        self.folder = folder / CHECKPOINT
        self.every = every
        self.home = str(job.method_file)
        self.track = job.track
        self.identity = {"form": FORM, "job": job.id, "device": device, "torch": torch.__version__}
        self.before = Spent()
        """Of the attempts that led to the checkpoint."""
        self.resumed: list[dict[str, int]] = []
        """Where each attempt went on: after ``step`` of ``steps`` of ``fit``, counted from 0 within the job."""
        self._resumed_before = 0
        self.next_at = time.monotonic() + every
        self._started = Spent(time.perf_counter(), time.process_time())
        self._fits = 0
        self._busy = False
        self._current: str | None = None
        self._files: dict[str, dict[str, Any]] = {}
        self._pending: dict[int, dict[str, Any]] = {}
        self._open()

    # --- reading ----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        path = self.folder / CHECKPOINT_HEADER
        if not path.exists():
            if self.folder.exists():  # cut off while the first one was written
                self.discard()
            return
        try:
            header = json.loads(path.read_text())
            problem = self._problem(header)
            if problem is None:
                self.before = Spent(**header["spent"])
                self.resumed, self._resumed_before = header["resumed"], len(header["resumed"])
                self._files, self._current = header["files"], header["current"]
        except (OSError, ImportError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"it cannot be read: {error}"
        if problem is not None:
            log.warning("the checkpoint is left out, the job starts anew: %s", problem)
            self.discard()

    def _problem(self, header: Mapping[str, Any]) -> str | None:
        """Why a checkpoint is not one of this job as it is now."""
        for name, value in self.identity.items():
            if header[name] != value:
                return f"it was written for {name} {header[name]}, and this is {value}"
        loaded = provenance.module_digests(self.track)
        changed = [name for name, digest in header["modules"].items() if (loaded.get(name) or _digest(name)) != digest]
        if changed:
            return f"{changed[0]} was changed since it was written"
        for name, expected in header["files"].items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != expected["size"]:
                return f"{name} is not whole"
            if expected["size"] <= HASHED_UP_TO and file_digest(path) != expected["sha256"]:
                return f"{name} does not have the content that was written"
        return None

    def discard(self) -> None:
        """Remove the checkpoint."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._files, self._current, self._pending = {}, None, {}
        self.before, self.resumed, self._resumed_before = Spent(), [], 0

    def went_on(self, fit: int, step: int, steps: int) -> None:
        """Take note that a training is put back where it was, the last one of this attempt so far."""
        self.resumed[self._resumed_before :] = [{"fit": fit, "step": step, "steps": steps}]

    def take(self) -> int | None:
        """The number of the training that begins now; None for one that another training runs inside itself."""
        if self._busy:
            return None
        self._fits += 1
        return self._fits - 1

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While a training is under way."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def read(self, fit: int) -> dict[str, Any] | None:
        """What was saved of a training, or None. Raises ``StartOver`` where it cannot be read."""
        name = _final(fit)
        if name not in self._files:
            name = self._current or ""
            if not name.startswith(f"fit{fit}-"):
                return None
        try:
            record: dict[str, Any] = torch.load(self.folder / name, weights_only=True)
        except Exception as error:
            raise StartOver(f"{name} cannot be read: {str(error).splitlines()[0]}") from error
        return record

    # --- writing ----------------------------------------------------------------------------------------------------

    def behind(self, fit: int) -> bool:
        """Whether the checkpoint holds a later training: this one is only done again because it was not kept."""
        return max(map(_number, self._files), default=-1) > fit

    def finished(self, fit: int, record: dict[str, Any]) -> None:
        """Keep what a finished training left: in memory until a checkpoint is due, unless it is large."""
        self._pending[fit] = record
        if time.monotonic() >= self.next_at or bytes_of(record) > HELD:
            self.write()
        else:
            self._pending[fit] = copied(record, to_cpu=True)

    def write(self, fit: int | None = None, record: dict[str, Any] | None = None) -> None:
        """Write what is pending, and the state of a training that goes on. A full disk costs the checkpoint alone."""
        self.next_at = time.monotonic() + self.every
        try:
            self._write(fit, record)
        except OSError as error:
            log.warning("a checkpoint could not be written, the job goes on without: %s", error)

    def _write(self, fit: int | None, record: dict[str, Any] | None) -> None:
        self.folder.mkdir(exist_ok=True)
        current = self._current
        if current is not None and (record is not None or _number(current) in self._pending):
            current = None
        files = {name: facts for name, facts in self._files.items() if name != self._current or name == current}
        for number, final in self._pending.items():
            files[_final(number)] = self._save(_final(number), final)
        if record is not None:
            current = f"fit{fit}-{record['step']}.pt"
            files[current] = self._save(current, record)
        spent = self.spent()
        header = {
            **self.identity,
            "modules": provenance.module_digests(self.track),
            "files": files,
            "current": current,
            "spent": {"wall": spent.wall, "processor": spent.processor},
            "resumed": self.resumed,
        }
        write_whole(self.folder / CHECKPOINT_HEADER, json.dumps(header, indent=1) + "\n")
        self._files, self._current, self._pending = files, current, {}
        for path in self.folder.iterdir():
            if path.name not in files and path.name != CHECKPOINT_HEADER:
                path.unlink()

    def _save(self, name: str, record: dict[str, Any]) -> dict[str, Any]:
        path = self.folder / name
        with path.open("wb") as file:
            torch.save(record, file)
            file.flush()
            os.fsync(file.fileno())
        size = path.stat().st_size
        return {"size": size, "sha256": file_digest(path) if size <= HASHED_UP_TO else None}

    def spent(self) -> Spent:
        """Seconds of ``train`` so far, those before the checkpoint included."""
        return Spent(
            self.before.wall + time.perf_counter() - self._started.wall,
            self.before.processor + time.process_time() - self._started.processor,
        )


def _final(fit: int) -> str:
    return f"fit{fit}.pt"


def _number(name: str) -> int:
    """Which training a file is of."""
    return int(name.removeprefix("fit").removesuffix(".pt").partition("-")[0])


def _digest(name: str) -> str | None:
    """Digest of the file of a kdbench module, as ``provenance`` takes it; None where there is no such file."""
    spec = importlib.util.find_spec(name)
    return file_digest(Path(spec.origin))[:16] if spec is not None and spec.origin is not None else None
