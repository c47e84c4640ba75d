"""What a plan asks of outcomes, kept between commands: a plan need not read ten thousand files to see that all is done.

``<results>/store/outcomes.json`` is a convenience and never the truth. What it says of an outcome counts while that
file keeps its times, its size and its inode, so that neither an outcome that was replaced nor an index that was copied
along with its folder is believed; the whole counts while its first line is the SHA-256 of the rest.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Container, Hashable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from kdbench.errors import UsageError
from kdbench.hookspecs import hookimpl
from kdbench.job import OUTCOME_SCHEMA, Job, Outcome, Run, Status
from kdbench.spec import digest
from kdbench.store import spool

log = logging.getLogger(__name__)

INDEX = "outcomes.json"
"""In the folder that the stores keep to themselves."""
FORMAT = [1, OUTCOME_SCHEMA]
"""Of the file; another one is not used."""
RACY = 2 * 10**9
"""Nanoseconds: a file that changed this shortly before it was read may change again within one tick of the file
system's clock, which is two seconds at the worst. It is not kept."""
LEARNED = ("ok", "oom")
"""Statuses of outcomes that say something about time or memory."""


class Likeness(NamedTuple):
    """What of a job its time and its memory depend on."""

    on_gpu: bool
    task: str
    scale: str
    method: str
    spec_digest: str
    label: str

    @classmethod
    def of(cls, job: Job) -> Likeness:
        return cls(job.resources.on_gpu, job.task, job.scale, job.method, job.spec_digest, job.label)

    @property
    def track(self) -> str:
        return self.task.partition("/")[0]

    def kinds(self) -> tuple[Hashable, ...]:
        """What outcomes are alike in, the most alike first: all but the seed, then other parameters, then other sizes
        of the task, then any method on it. Nothing that ran on a CPU is like what runs on a GPU."""
        return self, self[:5], self[:4], self[:3]


class Taken(NamedTuple):
    """What a job took."""

    seconds: float
    """Wall-clock time."""
    memory: int | None = None
    """Peak of main memory in bytes, where it was measured."""
    gpu_memory: int | None = None
    """Peak on one GPU in bytes, as torch counts it."""

    @classmethod
    def of(cls, seconds: float, cost: Mapping[str, Any]) -> Taken:
        return cls(seconds, _bytes(cost.get("peak_rss_bytes")), _bytes(cost.get("peak_gpu_bytes")))


def _bytes(value: Any) -> int | None:
    """A meter as bytes; None for one that says nothing."""
    return int(value) if isinstance(value, int | float) and 0 < value < float("inf") else None


class Gist(NamedTuple):
    """What a plan asks of an outcome."""

    status: Status
    modules: Mapping[str, str]
    """Digests of the modules of kdbench that it was made with; outcomes made with the same share one mapping."""
    like: Likeness | None
    """None for an outcome that says nothing about time or memory."""
    taken: Taken | None


class OutcomeIndex:
    """Gists of the outcomes of a results folder; one object serves one look at it."""

    def __init__(self, results: Path) -> None:
        self.path = results / "store" / INDEX
        self._root = os.fspath(spool.jobs_folder(results))
        self._now = time.time_ns()
        self._changed = False
        content = self._load()
        self._entries: dict[str, list[Any]] = content["entries"]
        """By id: stamp of the file, status, places in the lists of modules and likenesses (or null), time, memory."""
        self._modules: list[dict[str, str]] = content["modules"]
        self._likes = [Likeness(*like) for like in content["likes"]]
        self._places: dict[Hashable, int] = {tuple(sorted(m.items())): at for at, m in enumerate(self._modules)}
        self._places |= {like: at for at, like in enumerate(self._likes)}

    def look(self, id: str, spec_digest: str | None = None) -> Gist | None:
        """The gist of a job's outcome; None for a job that has not finished.

        ``spec_digest``: of the job's task, where it is known. Raises ``UsageError`` for a damaged outcome.
        """
        path = f"{self._root}/{id}/{spool.OUTCOME}"
        try:
            state = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UsageError(f"cannot be read: {error.strerror or error}", place=path) from error
        stamp = [state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_ino]
        entry = self._entries.get(id)
        if entry is not None and entry[0] == stamp:
            return self._gist(entry)
        # the stamp is older than what is read now: an outcome that is replaced in between has another one next time
        raw = spool.read_raw(Path(self._root, id))
        if raw is None:
            return None
        entry = self._entry(stamp, raw, spec_digest)
        if self._now - max(stamp[:2]) > RACY:
            self._entries[id] = entry
            self._changed = True
        return self._gist(entry)

    def save(self, ids: Container[str]) -> None:
        """Write what is new, whole or not at all; of the entries, those of ``ids``.

        Where it cannot be written, on a read-only disk for example, the next command reads the outcomes again.
        """
        if not self._changed:
            return
        entries = {id: entry for id, entry in self._entries.items() if id in ids}
        text = to_json({"format": FORMAT, "modules": self._modules, "likes": self._likes, "entries": entries}).decode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            spool.write_whole(self.path, f"{_sum(text.encode())}\n{text}")
        except OSError as error:
            log.debug("the index %s cannot be written: %s", self.path, error)
        self._changed = False

    def _load(self) -> dict[str, Any]:
        try:
            checksum, _, text = self.path.read_bytes().partition(b"\n")
            if checksum.decode() != _sum(text):
                raise ValueError("its checksum is another")
            content = from_json(text)
            if content["format"] == FORMAT:
                return dict(content)
        except (OSError, ValueError) as error:
            log.debug("the index %s is made anew: %s", self.path, error)
        return {"entries": {}, "modules": [], "likes": []}

    def _gist(self, entry: list[Any]) -> Gist:
        _, status, modules, like, taken = entry
        if like is None:
            return Gist(status, self._modules[modules], None, None)
        return Gist(status, self._modules[modules], self._likes[like], Taken(*taken))

    def _entry(self, stamp: list[int], raw: dict[str, Any], spec_digest: str | None) -> list[Any]:
        modules = _modules(raw)
        like, taken = None, None
        if raw["status"] in LEARNED:
            try:
                like, taken = _experience(raw, spec_digest)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                # one that does not say what it should is no help to an estimate, but no harm either
                log.debug("outcome %s says nothing about its time: %s", raw.get("id"), error)
        return [
            stamp,
            raw["status"],
            self._place(tuple(sorted(modules.items())), modules, self._modules),
            None if like is None else self._place(like, like, self._likes),
            taken,
        ]

    def _place(self, key: Hashable, value: Any, among: list[Any]) -> int:
        """Where a value is in a list; it is added where it is new."""
        if key not in self._places:
            self._places[key] = len(among)
            among.append(value)
        return self._places[key]


def _sum(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _modules(raw: Mapping[str, Any]) -> dict[str, str]:
    provenance = raw.get("provenance")
    modules = provenance.get("modules") if isinstance(provenance, dict) else None
    return {name: str(value) for name, value in modules.items()} if isinstance(modules, dict) else {}


def _experience(raw: Mapping[str, Any], spec_digest: str | None) -> tuple[Likeness, Taken]:
    job = raw["job"]
    seconds = datetime.fromisoformat(raw["finished_at"]) - datetime.fromisoformat(raw["started_at"])
    on_gpu = bool(job["resources"].get("gpus") or job["resources"].get("gpu_memory"))  # as Resources.on_gpu
    if spec_digest is None:
        spec_digest = digest(job["spec"])
    like = Likeness(on_gpu, job["task"], job["spec"]["scale"], job["method"], spec_digest, job["label"])
    return like, Taken.of(seconds.total_seconds(), raw["cost"])


class IndexKeeper:
    """Puts what a run made into the index, so that the next plan of it is quick: hook implementations."""

    @hookimpl
    def kdbench_run_finished(self, run: Run, outcomes: Sequence[Outcome]) -> None:
        if not run.todo:
            return
        todo = set(run.todo)
        index = OutcomeIndex(run.results)
        for job in run.jobs:
            if job.id in todo:
                try:
                    index.look(job.id, job.spec_digest)
                except UsageError as error:
                    spool.report(error, None)
        index.save(set(spool.names(run.results)))
