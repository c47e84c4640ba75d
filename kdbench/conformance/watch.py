"""Watching one run of a method: what its hooks do that no outcome tells."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pluggy
import torch
from torch import Tensor, nn

from kdbench import registry, worker
from kdbench.task import Task

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
"""Flags of files that are opened to be written."""


@dataclass
class Seen:
    """What was seen of a run."""

    task: Task | None = None
    fits: int = 0
    """Calls of ``task.fit``."""
    test_data: list[str] = field(default_factory=list)
    """Where ``train`` asked for test data, or pretended to be evaluating: ``file:line``."""
    teacher: list[str] = field(default_factory=list)
    """Tensors of shared teachers that ``train`` changed."""
    student: bool | None = None
    """Whether a weight of the result differs from the fresh student; None where they cannot be compared."""
    state: list[str] = field(default_factory=list)
    """Global state that the hooks left changed, each with its hook."""
    files: list[str] = field(default_factory=list)
    """Files that were written outside the job's folder, the cache and the folder for temporary files."""
    temporary: list[str] = field(default_factory=list)
    """Temporary files that were not removed."""


@contextmanager
def watching(temporary: Path, *allowed: Path) -> Iterator[Seen]:
    """Watch the one job that runs inside. ``temporary`` is the folder of its temporary files, which is made;
    ``allowed`` are further folders into which it may write.

    The checks that ``kdbench`` itself makes stay as they are: what is watched behaves as it does unwatched.
    """
    seen = Seen()
    temporary.mkdir(parents=True, exist_ok=True)
    make_task = worker.make_task

    def make(*arguments: Any, **options: Any) -> Task:
        seen.task = _probed(make_task(*arguments, **options), seen)
        return seen.task

    def manager_of(*arguments: Any) -> pluggy.PluginManager:
        manager = registry.method_manager(*arguments)
        undo.append(_watch_hooks(manager, seen))
        return manager

    undo: list[Any] = []
    with (
        patch.object(worker, "make_task", make),
        patch.object(worker, "method_manager", manager_of),
        patch.object(tempfile, "tempdir", str(temporary)),
        _files(seen, (temporary, *allowed)),
    ):
        try:
            yield seen
        finally:
            for stop in undo:
                stop()
    seen.temporary += sorted(path.name for path in temporary.iterdir())


# --- the task ---------------------------------------------------------------------------------------------------------


def _probed(task: Task, seen: Seen) -> Task:
    """The same task, of a subclass that notes who asks for test data, and how the student and teachers are returned."""
    kind = type(task)

    class Probe(kind):  # type: ignore[valid-type, misc]
        def require_evaluation(self) -> None:
            if self.phase != "evaluate":
                seen.test_data.append(_outside())
            super().require_evaluation()

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "phase" and value != "train" and sys._getframe(1).f_globals.get("__name__") != worker.__name__:
                seen.test_data.append(_outside())
            super().__setattr__(name, value)

        def fit(self, *arguments: Any, **options: Any) -> Any:
            seen.fits += 1
            return super().fit(*arguments, **options)

        def check(self, model: Any) -> None:
            super().check(model)
            seen.teacher += self.changed_teachers()
            seen.student = _differs(self, model)

    Probe.__name__, Probe.__qualname__, Probe.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    task.__class__ = Probe
    return task


def _outside() -> str:
    """The nearest caller outside this module and the task's own code, as ``file:line``."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        name = str(frame.f_globals.get("__name__"))
        if name != __name__ and name != "kdbench.task" and not name.startswith("kdbench.tracks."):
            break
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


@torch.no_grad()
def _differs(task: Task, model: Any) -> bool | None:
    if not isinstance(model, nn.Module):
        return None
    fresh, trained = task.student().state_dict(), model.state_dict()
    if fresh.keys() != trained.keys() or any(fresh[name].shape != trained[name].shape for name in fresh):
        return None  # another network than the student of the task
    return any(not torch.equal(fresh[name], _on(trained[name], fresh[name])) for name in fresh)


def _on(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.to(like.device, like.dtype)


# --- global state -----------------------------------------------------------------------------------------------------


def _watch_hooks(manager: pluggy.PluginManager, seen: Seen) -> Any:
    before: dict[str, Mapping[str, Any]] = {}

    def start(hook: str, *_: Any) -> None:
        before[hook] = global_state()

    def end(_: Any, hook: str, *__: Any) -> None:
        if hook in ("train", "evaluate"):
            seen.state += [f"{change} by {hook}" for change in changes(before[hook], global_state())]

    return manager.add_hookcall_monitoring(start, end)


def global_state() -> dict[str, Any]:
    """What a method may not leave changed, by name."""
    return {
        "the default dtype of torch": torch.get_default_dtype(),
        "the number of threads of torch": torch.get_num_threads(),
        "deterministic algorithms of torch": torch.are_deterministic_algorithms_enabled(),
        "the gradient mode of torch": torch.is_grad_enabled(),
        "the precision of float32 products": torch.get_float32_matmul_precision(),
        "torch.backends.cudnn.benchmark": torch.backends.cudnn.benchmark,
        "the working folder": os.getcwd(),
        "the environment": dict(os.environ),
        "sys.path": list(sys.path),
        "the filters of warnings": list(warnings.filters),
        "signal handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)],
        "the level of the root logger": logging.getLogger().level,
        "threads": {thread.name for thread in threading.enumerate() if not thread.daemon},
        "the recursion limit": sys.getrecursionlimit(),
    }


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs, for people."""
    found = []
    for name, value in before.items():
        now = after[name]
        if now == value:
            continue
        if isinstance(value, dict):
            keys = sorted(key for key in value.keys() | now.keys() if value.get(key) != now.get(key))
            found.append(f"{name} ({', '.join(keys[:4])}) was changed")
        elif isinstance(value, list | set):
            found.append(f"{name} was changed")
        else:
            found.append(f"{name} was changed from {value} to {now}")
    return found


# --- files ------------------------------------------------------------------------------------------------------------


class _Auditor:
    """Python's audit hook for opened files; a hook cannot be removed, so that there is one, which is mostly asleep."""

    def __init__(self) -> None:
        self.seen: Seen | None = None
        self.allowed: tuple[str, ...] = ()
        self.thread = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or self.seen is None or threading.get_ident() != self.thread:
            return
        path, mode, flags = arguments
        if not isinstance(path, str | bytes) or not _writes(mode, flags):
            return
        name = os.path.abspath(os.fsdecode(path))
        if not name.startswith(self.allowed) and "__pycache__" not in name:
            self.seen.files.append(name)


def _writes(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & WRITING)


_auditor: list[_Auditor] = []


@contextmanager
def _files(seen: Seen, allowed: Sequence[Path]) -> Iterator[None]:
    if not _auditor:
        _auditor.append(_Auditor())
        sys.addaudithook(_auditor[0])
    auditor = _auditor[0]
    auditor.thread = threading.get_ident()
    auditor.allowed = ("/dev/", "/proc/", *(str(folder.absolute()) + os.sep for folder in allowed))
    auditor.seen = seen
    try:
        yield
    finally:
        auditor.seen = None
