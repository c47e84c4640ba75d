"""What runs on the machines of a Ray cluster: one Ray task for each piece of work.

The task does not do the work itself: like the coordinator of a local run it has a fork server, and the work is a
process forked from it, with the same isolation, limits and log. What happens comes back as a stream of lists of
messages: events, new output, and archives in pieces. The folder of the work comes last, before its ``Ended``.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import ray
from filelock import FileLock, Timeout

from kdbench import provenance
from kdbench.cache import Cache
from kdbench.errors import Problem, UsageError
from kdbench.registry import discover
from kdbench.schedule import machine, shipping
from kdbench.schedule.executor import Context, Ended, Event, Resized, Started, Work
from kdbench.schedule.local import LocalExecutor
from kdbench.schedule.packing import Slot
from kdbench.spec import digest
from kdbench.store import packs, spool

Kind = Literal["folder", "checkpoint", "entries"]

TICK = 0.5
"""Seconds between two looks for an order to stop."""
LONGEST_OUTPUT = 256 << 10
"""Bytes of output that are sent at a time."""


@dataclass(frozen=True)
class Setting:
    """What is the same for all work of a run."""

    tracks: tuple[str, ...]
    preload: tuple[str, ...]
    plugins: tuple[str, ...]
    """Parts of the cargo, drop-ins included."""
    provenance: Mapping[str, Any]
    """Of the coordinator."""
    address: str
    """Of the coordinator's machine."""
    every: float = 1.0
    """Seconds between two messages of one piece of work, unless it starts or ends."""


@dataclass(frozen=True)
class Parcel:
    """A piece of work on its way to a machine."""

    key: str
    """Name of this attempt at it."""
    work: Work
    """With the folder and the devices of the coordinator."""
    method: str | None
    """The method's file, a part of the cargo; None where it is a module."""
    checkpoint: Sequence[ray.ObjectRef[bytes]] = ()
    """Archive of what an earlier attempt left, in pieces."""
    entries: Mapping[str, Sequence[ray.ObjectRef[bytes]]] = field(default_factory=dict)
    """Archives of cache entries by their names, in pieces."""


@dataclass(frozen=True)
class Output:
    """New bytes of a piece of work's log."""

    offset: int
    data: bytes


@dataclass(frozen=True)
class Piece:
    """A part of an archive."""

    of: Kind
    data: bytes
    last: bool


@dataclass(frozen=True)
class Warned:
    """What the machine had to say beside its work."""

    text: str


Message = Event | Output | Piece | Warned


@dataclass(frozen=True)
class Probed:
    """What a machine says of itself."""

    host: str
    code: str
    """Digest of the code of kdbench there."""
    packages: Mapping[str, str]
    """Versions of what can change results."""
    missing: tuple[str, ...]
    """Tracks of the run that it lacks."""
    broken: tuple[str, ...]
    """Plugins that cannot be used there, and why."""
    gpus: tuple[tuple[int, int], ...]
    """Bytes in all and bytes that others use, of each GPU."""


class Desk:
    """Tells tasks to stop: an actor beside the coordinator, because cancelling a task loses what it would still say."""

    def __init__(self) -> None:
        self._orders: dict[str, asyncio.Event] = {}

    async def wait(self, key: str) -> None:
        """Returns when the attempt is to stop."""
        await self._orders.setdefault(key, asyncio.Event()).wait()

    async def stop(self, key: str) -> None:
        """Order an attempt to stop; it need not have started."""
        self._orders.setdefault(key, asyncio.Event()).set()

    async def forget(self, key: str) -> None:
        """The attempt is over, and nobody waits any more."""
        order = self._orders.pop(key, None)
        if order is not None:
            order.set()


def probe(setting: Setting, wants_gpus: bool) -> Probed:
    """What this machine has. Raises ``UsageError`` where plugins did not arrive or its GPUs cannot be listed."""
    registry = discover([shipping.unloaded(name) for name in setting.plugins])
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # devices may be hidden from a task that asks for none
    gpus = machine.gpus() if wants_gpus else ()
    return Probed(
        host=socket.gethostname(),
        code=shipping.code_digest(),
        packages=provenance.package_versions(),
        missing=tuple(sorted(set(setting.tracks) - set(registry.tracks))),
        broken=tuple(f"{broken.place}: {broken.reason}" for broken in registry.broken),
        gpus=tuple((gpu.memory, gpu.used) for gpu in gpus),
    )


def run(setting: Setting, parcel: Parcel, desk: Any) -> Iterator[list[Message]]:
    """Do a piece of work on this machine and tell what happens.

    Raises ``UsageError`` where the work cannot be started here and ``OSError`` where the disk of this machine is full.
    """
    with _scratch() as folder:
        executor = _executor(setting)
        work = _here(parcel, folder)
        executor.gpus = _gpus(len(work.slot.gpus), os.environ.get("CUDA_VISIBLE_DEVICES"))
        _take_in(parcel, work.folder, folder)
        try:
            yield from _followed(setting, parcel, work, executor, desk)
        except BaseException:  # whatever happened, the work must not go on without anybody to tell
            _close(executor)
            raise


def _followed(
    setting: Setting, parcel: Parcel, work: Work, executor: LocalExecutor, desk: Any
) -> Iterator[list[Message]]:
    stop = desk.wait.remote(parcel.key)
    host = "" if ray.util.get_node_ip_address() == setting.address else socket.gethostname()
    output, checkpoints = _Tail(work.folder / spool.LOG), _Checkpoints(work.folder / spool.CHECKPOINT)
    executor.submit(work)
    news: dict[type, Event] = {}
    sent = time.monotonic()
    while True:
        wait = min(TICK, max(0.0, sent + setting.every - time.monotonic()))
        urgent = False
        for event in executor.poll(wait):
            if isinstance(event, Ended):
                yield from _end(work, event, [*news.values(), *_warnings.taken()])
                return
            if isinstance(event, Started):
                event, urgent = replace(event, host=host), True
            if not isinstance(event, Resized):  # what the task was given stays as it is
                news[type(event)] = event  # of progress and usage the latest
        if stop is not None and ray.wait([stop], timeout=0)[0]:
            ray.get(stop)  # raises where the coordinator is gone
            executor.cancel(work.id)
            stop = None
        if not urgent and time.monotonic() < sent + setting.every:
            continue
        messages: list[Message] = [*news.values(), *output.new(), *_warnings.taken()]
        news, sent = {}, time.monotonic()
        if messages:
            yield messages
        yield from checkpoints.new()


def _end(work: Work, ended: Ended, before: list[Message]) -> Iterator[list[Message]]:
    """What is left to tell of work that has ended: its cache entries, its folder, its end."""
    if before:
        yield before
    if work.kind == "prepare" and ended.code == 0:
        store = Cache()
        made = [path for path in (store.find(*json.loads(need)) for need in work.needs) if path is not None]
        parts = [(path, f"{path.parent.name}/{path.name}") for path in made]
        if parts:
            yield from _pieces("entries", shipping.packed(parts))
    yield from _pieces("folder", shipping.packed([(work.folder, ".")]))
    yield [ended]


def _pieces(of: Kind, archive: Iterable[bytes]) -> Iterator[list[Message]]:
    before: bytes | None = None
    for data in archive:
        if before is not None:
            yield [Piece(of, before, last=False)]
        before = data
    yield [Piece(of, before or b"", last=True)]


# --- on this machine --------------------------------------------------------------------------------------------------

_executors: dict[str, LocalExecutor] = {}
"""The fork server of this process: it serves one piece of work after the other."""


def _executor(setting: Setting) -> LocalExecutor:
    key = repr(setting)
    if key not in _executors:
        for executor in list(_executors.values()):
            _close(executor)
        own = provenance.of_run()
        # the code comes from the coordinator, all else from this machine
        origin = {**own, "git": setting.provenance.get("git", {}), "host": socket.gethostname()}
        context = Context(
            workers=1,
            preload=setting.preload,
            tracks=setting.tracks,
            plugins=[shipping.unloaded(name) for name in setting.plugins],
            provenance=origin,
        )
        # a process kept for the next job would hold memory of a device that Ray gives to another task
        _executors[key] = LocalExecutor(context, reuse=False, gpus=())
        logging.getLogger("kdbench").addHandler(_warnings)
    return _executors[key]


def _close(executor: LocalExecutor) -> None:
    executor.close()
    for key in [key for key, other in _executors.items() if other is executor]:
        del _executors[key]


@cache
def _gpus(count: int, visible: str | None) -> tuple[machine.Gpu, ...]:
    """The devices that Ray gave a task, which it names in ``CUDA_VISIBLE_DEVICES``."""
    if not count:
        return ()
    machine.gpus.cache_clear()  # from task to task they are others
    gpus = machine.gpus()
    if len(gpus) != count:
        raise UsageError(f"Ray gave GPUs {visible} to a job, but {len(gpus)} of them are to be seen")
    return gpus


class _Warnings(logging.Handler):
    """What is logged here, for the log of the coordinator: nobody reads that of a Ray worker."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())

    def taken(self) -> list[Warned]:
        """What came since the last call."""
        texts, self._texts = self._texts, []
        return [Warned(text) for text in texts]


_warnings = _Warnings()


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder of this process's own. What processes left that were killed is removed."""
    root = Path(tempfile.gettempdir()) / f"kdbench-ray-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    for path in root.glob("*.lock"):
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            continue
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        path.unlink(missing_ok=True)
        lock.release()
    folder = root / secrets.token_hex(8)
    lock = FileLock(folder.with_suffix(".lock"))
    lock.acquire()
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _here(parcel: Parcel, scratch: Path) -> Work:
    """The work with the folder, the devices and the files of this machine."""
    work = parcel.work
    folder = scratch / "work"
    folder.mkdir()
    file = _module_file(work.job.module) if parcel.method is None else shipping.unloaded(parcel.method)
    slot = Slot(work.slot.cpus, tuple(range(len(work.slot.gpus))), work.slot.share)
    limit = min(work.memory_limit, machine.memory())
    return replace(
        work, job=work.job.model_copy(update={"method_file": file}), folder=folder, slot=slot, memory_limit=limit
    )


def _module_file(module: str | None) -> Path:
    try:
        spec = importlib.util.find_spec(module) if module else None
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise UsageError(
            f"{socket.gethostname()} has no module {module}",
            hint="install there what is installed on the coordinator's machine, or give the method with --plugin",
        )
    return Path(spec.origin).resolve()


def _take_in(parcel: Parcel, folder: Path, scratch: Path) -> None:
    """Put what was sent along where it belongs: the checkpoint, and cache entries that this machine lacks."""
    if parcel.checkpoint:
        with _received(parcel.checkpoint, scratch) as archive, archive.open("rb") as file:
            shipping.unpack(file, folder)
    store = Cache()
    for name, pieces in parcel.entries.items():
        kind, key = json.loads(name)
        if store.find(kind, key) is not None:
            continue
        problems: list[Problem] = []
        with _received(pieces, scratch) as archive:
            packs.take_over(archive, store, problems)
        if problems:
            raise UsageError(problems)


@contextmanager
def _received(pieces: Sequence[ray.ObjectRef[bytes]], scratch: Path) -> Iterator[Path]:
    path = scratch / f"{digest([piece.hex() for piece in pieces])}.tar"
    with path.open("wb") as file:
        for piece in pieces:
            file.write(ray.get(piece))
    try:
        yield path
    finally:
        path.unlink()


class _Tail:
    """What is new in a log."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def new(self) -> list[Output]:
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(LONGEST_OUTPUT)
        except FileNotFoundError:
            return []
        if not data:
            return []
        self.offset += len(data)
        return [Output(self.offset - len(data), data)]


class _Checkpoints:
    """Checkpoints as they appear, so that the job can go on from them where this machine is lost."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen = self._stamp()

    def _stamp(self) -> tuple[int, int] | None:
        try:
            stat = (self.folder / spool.CHECKPOINT_HEADER).stat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    def new(self) -> Iterator[list[Message]]:
        """One that appeared since, in pieces. Where it is replaced meanwhile, the next look finds the newer one."""
        stamp = self._stamp()
        if stamp is None or stamp == self.seen:
            return
        archive = shipping.packed([(self.folder, ".")])
        try:
            first = next(archive)  # all of it is packed by then
        except FileNotFoundError:
            return
        if self._stamp() == stamp:
            self.seen = stamp
            yield from _pieces("checkpoint", chain([first], archive))
