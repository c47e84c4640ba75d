"""Work as tasks of a Ray cluster: one for each piece, and what it tells as a stream.

Ray decides which machine takes a task and brings objects from one to the other; there is no network code here. What
runs on the machines is in ``remote``, what a task asks of them in ``nodes``, what travels in ``shipping``. Ray's own
retries are off: a task whose machine is lost ends as ``lost``, and the loop starts the work again.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, TaskCancelledError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdbench.cache import Cache
from kdbench.errors import Problem, UsageError
from kdbench.paths import drop_in_folders
from kdbench.schedule import cluster, remote, shipping
from kdbench.schedule.executor import Context, Ended, Event, Progress, Reason, Resized, Started, Usage, Work
from kdbench.schedule.packing import Capacity, Demand
from kdbench.store import packs, spool

log = logging.getLogger(__name__)

BUSY = 50.0
"""Messages a second from all tasks together: each costs the coordinator about a millisecond."""
NODE_LABEL = "ray.io/node-id"
MAX_TASKS = 100_000
"""Tasks that can wait for an order to stop at the same time."""


@dataclass
class _Task:
    """One piece of work, from its submission to its end."""

    work: Work
    key: str
    stream: Any
    """Ray's generator of references to lists of messages."""
    submitted: float
    running: bool = False
    cancelled: bool = False
    archives: dict[remote.Kind, IO[bytes]] = field(default_factory=dict)
    """What arrives in pieces."""

    def close(self) -> None:
        """Forget what arrived."""
        for file in self.archives.values():
            file.close()


class RayExecutor:
    """Runs work on the machines of a Ray cluster."""

    def __init__(
        self, context: Context, *, address: str, workers: int | None, runtime_env: Mapping[str, Any], ship: bool
    ) -> None:
        """See :func:`kdbench.schedule.ray.ray`."""
        self._tasks: dict[str, _Task] = {}
        self._events: list[Event] = []
        self._warned: set[str] = set()
        self._sent: dict[str, list[Any]] = {}
        """References to cache entries in Ray's object store, by name."""
        with tempfile.TemporaryDirectory(prefix="kdbench-") as folder:
            dropped = [path for path in drop_in_folders()[0] if path.exists()]
            self._cargo = shipping.load([*dropped, *context.plugins], Path(folder))
            empty = Path(folder, "work")
            empty.mkdir()
            code = shipping.code_digest()
            cluster.connect(address, cluster.environment(runtime_env, self._cargo, empty, ship=ship))
        self._open = True
        try:
            setting = remote.Setting(
                tracks=tuple(context.tracks),
                preload=tuple(context.preload),
                plugins=self._cargo.plugins,
                provenance=dict(context.provenance),
                address=ray.util.get_node_ip_address(),
            )
            self._cluster = cluster.Cluster(setting, code=code, wants_gpus=context.wants_gpus, workers=workers)
            self._setting = replace(setting, every=max(1.0, self.capacity.cpus / BUSY))
            self._run = ray.remote(num_returns="streaming", max_retries=0)(remote.run)
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            desk: Any = ray.remote(num_cpus=0, max_concurrency=MAX_TASKS, scheduling_strategy=here)(remote.Desk)
            self._desk = desk.remote()
        except BaseException:
            self.close()
            raise

    @property
    def capacity(self) -> Capacity:
        return self._cluster.nodes.capacity

    def refuses(self, demand: Demand) -> str | None:
        return self._cluster.nodes.refuses(demand)

    def submit(self, work: Work) -> None:
        job = work.job
        method = None if job.module is not None else self._cargo.name_of(job.method_file)
        if method is None and job.module is None:
            raise UsageError(f"{job.method_file} is part of no plugin and of no package", hint="give it with --plugin")
        request = self._cluster.nodes.request(work.slot, exact=job.resources.memory is not None)
        run = self._run.options(
            name=f"kdbench {work.kind} {work.id}",
            num_cpus=request.cpus,
            num_gpus=request.gpus or None,
            memory=request.memory or None,
            label_selector=None if request.nodes is None else {NODE_LABEL: f"in({', '.join(request.nodes)})"},
        )
        key = f"{work.id}-{secrets.token_hex(4)}"
        parcel = remote.Parcel(key, work, method, _checkpoint(work.folder), self._entries(work))
        self._tasks[work.id] = _Task(work, key, run.remote(self._setting, parcel, self._desk), time.monotonic())

    def cancel(self, id: str) -> None:
        task = self._tasks.get(id)
        if task is None or task.cancelled:
            return
        task.cancelled = True
        if task.running:
            self._desk.stop.remote(task.key)
        else:
            ray.cancel(task.stream)  # it waits for a machine

    def poll(self, timeout: float) -> list[Event]:
        if self._cluster.look():
            self._events.append(Resized(self.capacity))
            self._give_up_what_fits_nowhere()
        streams = {task.stream: task for task in self._tasks.values()}
        if not streams:
            if not self._events:
                time.sleep(timeout)
        elif ray.wait(list(streams), timeout=0 if self._events else timeout, fetch_local=False)[0]:
            ready, _ = ray.wait(list(streams), num_returns=len(streams), timeout=0, fetch_local=False)
            for stream in ready:
                self._read(streams[stream])
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        for task in self._tasks.values():
            task.close()
        self._tasks.clear()
        self._sent.clear()
        ray.shutdown()  # Ray ends the tasks of a driver that goes, and with each its fork server and its work

    # --- what comes back ----------------------------------------------------------------------------------------------

    def _read(self, task: _Task) -> None:
        """Take the next list of messages of a task, which is ready."""
        try:
            messages: list[remote.Message] = ray.get(next(task.stream))
        except StopIteration:
            self._lost(task, "lost", "its task ended without a word")
            return
        except RayError as error:
            self._cluster.hurry()
            self._lost(task, *_reason(error))
            return
        for message in messages:
            self._take(task, message)

    def _take(self, task: _Task, message: remote.Message) -> None:
        if isinstance(message, remote.Output):
            _write(task.work.folder / spool.LOG, message)
        elif isinstance(message, remote.Piece):
            self._take_piece(task, message)
        elif isinstance(message, remote.Warned):
            if message.text not in self._warned:  # each machine says the same, and each process of it
                self._warned.add(message.text)
                log.warning("%s", message.text)
        elif isinstance(message, Ended):
            self._arrived(task)
            self._finish(task, message)
        elif isinstance(message, Started | Progress | Usage):
            task.running = True
            self._events.append(message)

    def _lost(self, task: _Task, reason: Reason, message: str) -> None:
        seconds = time.monotonic() - task.submitted
        self._finish(task, Ended(task.work.id, seconds, "cancelled" if task.cancelled else reason, message))

    def _finish(self, task: _Task, ended: Ended) -> None:
        del self._tasks[task.work.id]
        task.close()
        self._desk.forget.remote(task.key)
        self._events.append(ended)

    def _take_piece(self, task: _Task, piece: remote.Piece) -> None:
        file = task.archives.get(piece.of)
        if file is None:
            file = task.archives[piece.of] = tempfile.SpooledTemporaryFile(shipping.PIECE)  # noqa: SIM115
        file.write(piece.data)
        if not piece.last or piece.of == "folder":  # the folder waits for the end of the work
            return
        with task.archives.pop(piece.of):
            if piece.of == "checkpoint":
                _put_checkpoint(task.work.folder, file)
            else:
                _put_entries(file)

    def _arrived(self, task: _Task) -> None:
        """Put the folder of finished work where it belongs, as if it had been written here."""
        file = task.archives.get("folder")
        if file is None:
            return
        shipping.unpack(file, task.work.folder)
        outcome = spool.read_outcome(task.work.folder) if task.work.kind == "job" else None
        if outcome is not None:  # where the method's file is differs from machine to machine
            spool.write_outcome(task.work.folder, outcome.model_copy(update={"job": task.work.job}))

    def _give_up_what_fits_nowhere(self) -> None:
        """Work that waits for a machine of a kind that is gone would wait for ever."""
        for task in list(self._tasks.values()):
            slot = task.work.slot
            asked = Demand(slot.cpus, len(slot.gpus) * slot.share, slot.memory, slot.gpu_memory)
            why = None if task.running else self.refuses(asked)
            if why is not None:
                ray.cancel(task.stream)
                self._lost(task, "lost", f"its machine is gone, and it {why}")

    # --- what is sent along -------------------------------------------------------------------------------------------

    def _entries(self, work: Work) -> dict[str, list[Any]]:
        """The cache entries that the work reads and that the coordinator's cache has, sent once for all work."""
        found = {}
        for name in work.needs:
            if name not in self._sent:
                folder = Cache().find(*json.loads(name))
                if folder is None:  # it is in a pack that ships with its track, or to be made
                    continue
                archive = shipping.packed([(folder, f"{folder.parent.name}/{folder.name}")])
                self._sent[name] = [ray.put(piece) for piece in archive]
            found[name] = self._sent[name]
        return found


def _checkpoint(folder: Path) -> list[Any]:
    """What an earlier attempt left to go on from, in pieces in Ray's object store."""
    if not spool.has_checkpoint(folder):
        return []
    return [ray.put(piece) for piece in shipping.packed([(folder / spool.CHECKPOINT, spool.CHECKPOINT)])]


def _put_checkpoint(folder: Path, file: IO[bytes]) -> None:
    """As the job itself writes it: its header last, so that there is always a whole one."""
    final = folder / spool.CHECKPOINT
    final.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".checkpoint-", dir=folder) as made:
        shipping.unpack(file, Path(made))
        names = sorted((path.name for path in Path(made).iterdir()), key=lambda name: name == spool.CHECKPOINT_HEADER)
        for name in names:
            os.replace(Path(made, name), final / name)
    for path in final.iterdir():
        if path.name not in names:
            path.unlink()


def _put_entries(file: IO[bytes]) -> None:
    """Take cache entries that were made elsewhere into the cache; those that are damaged are logged and left out."""
    problems: list[Problem] = []
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        file.seek(0)
        while data := file.read(shipping.PIECE):
            archive.write(data)
        archive.flush()
        packs.take_over(Path(archive.name), Cache(), problems)
    for problem in problems:
        log.error("%s", problem)


def _write(path: Path, output: remote.Output) -> None:
    with path.open("r+b" if path.exists() else "wb") as file:
        file.seek(output.offset)
        file.write(output.data)


def _reason(error: RayError) -> tuple[Reason, str]:
    """Why Ray ended a task."""
    if isinstance(error, TaskCancelledError):
        return "cancelled", ""
    if isinstance(error, OutOfMemoryError):
        return "oom", "its machine ran out of memory, and Ray ended it"
    if isinstance(error, NodeDiedError):
        return "lost", "its machine is gone"
    if isinstance(error, WorkerCrashedError):
        return "lost", "the Ray process that looked after it died"
    return "lost", cluster.said(error)
