"""What is done before a fork so that it is quick, and the fork itself."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from kdbench.schedule import child, hugepages
from kdbench.schedule.logs import CappedLog


def preload(config: Mapping[str, Any]) -> list[str]:
    """Import once what jobs need; returns what cannot be. That fails again, and is recorded, in the job that needs it.

    ``config`` names the modules (``preload``), the tracks and the files given with ``--plugin``.
    """
    problems = []
    for name in config["preload"]:
        try:
            import_module(name)
        except Exception as error:  # noqa: BLE001 - any module of any track
            problems.append(f"{name} cannot be imported: {type(error).__name__}: {error}")
    try:
        from kdbench import worker

        worker.warm(tuple(Path(path) for path in config["plugins"]), config["tracks"])
    except Exception as error:  # noqa: BLE001 - extensions are anybody's code
        problems.append(f"{type(error).__name__}: {error}")
    gc.collect()
    gc.freeze()  # what is here now is never garbage: collections in the jobs leave its pages shared
    hugepages.collapse()
    return problems


def fork(
    order: Mapping[str, Any], log: CappedLog, progress: int, leave: Callable[[], None]
) -> tuple[int, int, Connection | None]:
    """Start a process for this job and, where the order says ``reuse``, for those that follow.

    ``progress`` is the pipe for its messages; ``leave`` is called in it, to let go of what it inherits. Returns its
    id, the descriptor of its output and, where it takes more orders, the connection to it. Raises ``OSError`` where
    there is no room for another process.
    """
    with ExitStack() as undo:
        read, write = os.pipe()
        undo.callback(os.close, read)
        undo.callback(os.close, write)
        os.set_blocking(read, False)
        mine, theirs = Pipe() if order["reuse"] else (None, None)
        for connection in (mine, theirs):
            if connection is not None:
                undo.callback(connection.close)
        parent = os.getpid()
        sys.stdout.flush()  # what waits there would appear in every job's log
        pid = os.fork()
        if pid == 0:
            undo.pop_all()
            undo.callback(os.close, read)
            undo.callback(log.abandon)
            undo.callback(leave)
            if mine is not None:
                undo.callback(mine.close)
            _work({**order, "parent": parent}, write, progress, theirs, inherited=undo)
        undo.pop_all()
    os.close(write)
    if theirs is not None:
        theirs.close()
    return pid, read, mine


def _work(
    order: Mapping[str, Any], output: int, progress: int, control: Connection | None, *, inherited: ExitStack
) -> NoReturn:
    """In the forked process: close what it inherited, do the job and those that follow, and end."""
    code = 1
    try:
        inherited.close()
        if control is not None:
            code = child.serve(order, output, progress, control)
        else:
            code = child.run(order, output, progress)
    except BaseException:  # noqa: BLE001 - it goes to the log, and the exit code tells
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)  # without the interpreter's tidying up, which takes longer than small jobs
