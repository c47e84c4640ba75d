"""The spool: one folder per job under ``<results>/jobs``, the truth that every store is filled from.

A job is finished when its ``outcome.json`` exists. That file appears by one rename of a file that is already on
the disk, so a reader or a power cut finds the whole of it or nothing.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, from_json

from kdbench.errors import Problem, UsageError, did_you_mean
from kdbench.job import OUTCOME_SCHEMA, Outcome, Status

log = logging.getLogger(__name__)

JOBS = "jobs"
OUTCOME = "outcome.json"
LOG = "log.txt"
CURVE = "curve.jsonl"
EXAMPLES = "examples.npz"
MODEL = "model"
CHECKPOINT = "checkpoint"
"""Folder in that of a job from which it goes on where it was interrupted."""
CHECKPOINT_HEADER = "header.json"
"""File in it without which there is none."""
RUNNING = "running"
"""Folder beside ``jobs`` in which jobs run until they are finished."""

TEMPORARY_PREFIX = f".{OUTCOME}-"
"""Of an outcome that is being written; one that stays was interrupted."""

STATUSES: tuple[Status, ...] = get_args(Status)

Stamp = tuple[int, int, int]
"""Modification time in nanoseconds, size and inode of an ``outcome.json``: differs whenever it was replaced."""


def jobs_folder(results: Path) -> Path:
    """Where the folders of the jobs are."""
    return results / JOBS


def job_folder(results: Path, id: str) -> Path:
    """Folder of a job, which need not exist. Raises ``ValueError`` for an id that is not one plain name."""
    if not id or id in {".", ".."} or os.sep in id or "/" in id or "\0" in id:
        raise ValueError(f"{id!r} is not the id of a job")
    return jobs_folder(results) / id


def write_outcome(folder: Path, outcome: Outcome, *, durable: bool = True) -> Path:
    """Write ``outcome.json`` into the job's ``folder``, whole or not at all, and replace one that is there.

    The content is on the disk before the name appears; the name itself gets there within seconds, or when the names of
    all finished jobs do (:func:`kdbench.schedule.attempts.settle`). Values that are not finite are written as the
    strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, so that the file is JSON for every reader. Raises ``OSError``
    where the folder cannot be written; nothing is left behind then. ``durable``: False leaves the time at which the
    content is on the disk to the system, for a whole folder of outcomes that counts for nothing until it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / OUTCOME
    # out of jobs/ itself: the time of that folder then changes with the outcome, which is how stores see news
    beside = folder.parent if folder.parent.name == JOBS else folder
    write_whole(path, _json(outcome) + "\n", beside, settled=False, durable=durable)
    return path


def _json(outcome: Outcome) -> str:
    try:
        return outcome.model_dump_json(indent=1)
    except PydanticSerializationError:
        # half a surrogate pair, as file names and error messages may hold, has no place in a file
        return Outcome.model_validate(_encodable(outcome.model_dump())).model_dump_json(indent=1)


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value]
    return value


def write_whole(
    path: Path, text: str, beside: Path | None = None, *, settled: bool = True, durable: bool = True
) -> None:
    """Write a file whole or not at all: its content is on the disk before its name appears.

    ``beside``: folder, on the same disk, for the temporary file; default: that of the file. ``settled``: return only
    when the name is on the disk, too. ``durable``: see :func:`write_outcome`.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent if beside is None else beside)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if settled:
        sync_folder(path.parent)


def artifacts(folder: Path) -> list[str]:
    """Files that a job left in its folder, relative to it, but for its outcome, its log and its checkpoint."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in files if str(path) not in (OUTCOME, LOG) and path.parts[0] != CHECKPOINT)


def has_checkpoint(folder: Path) -> bool:
    """Whether a job can go on from what is in its folder."""
    return (folder / CHECKPOINT / CHECKPOINT_HEADER).exists()


def empty(folder: Path, *, keep: Container[str] = ()) -> None:
    """Remove what is in a folder but for the names in ``keep``."""
    for entry in folder.iterdir():
        if entry.name not in keep:
            remove(entry)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def sync_folder(folder: Path) -> None:
    """Put the names in ``folder`` on the disk, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_outcome(folder: Path) -> Outcome | None:
    """The outcome in a job's folder; None for a job that has not finished. Raises ``UsageError`` for a damaged one."""
    path = folder / OUTCOME
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _damaged(path, f"cannot be read: {error.strerror or error}") from error
    return parse_outcome(text, path)


def parse_outcome(text: bytes, path: Path) -> Outcome:
    """The outcome that ``text`` holds; ``path`` is named in the ``UsageError`` where it holds none."""
    try:
        outcome = Outcome.model_validate_json(text)
    except ValidationError as error:
        written_by = _schema_version(text)
        if written_by is not None and written_by > OUTCOME_SCHEMA:
            raise _newer(path, written_by) from error
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _damaged(path, f"{place}: {first['msg']}" if place else str(first["msg"])) from error
    if outcome.schema_version > OUTCOME_SCHEMA:
        raise _newer(path, outcome.schema_version)
    return outcome


def iter_folders(results: Path) -> Iterator[Path]:
    """Folders of jobs, finished or not, in the order of their ids. None where the results folder does not exist."""
    root = jobs_folder(results)
    for name in names(results):
        yield root / name


def names(results: Path) -> list[str]:
    """Names of the folders of :func:`iter_folders`: ids of jobs, finished or not."""
    try:
        with os.scandir(jobs_folder(results)) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except FileNotFoundError:
        return []
    except NotADirectoryError as error:
        raise UsageError("is not a folder of results", place=str(results)) from error


def iter_outcomes(results: Path, problems: list[Problem] | None = None) -> Iterator[Outcome]:
    """Every outcome of the spool, in the order of the ids.

    A damaged one is left out: added to ``problems`` where a list is given, logged as a warning otherwise.
    """
    for folder in iter_folders(results):
        try:
            outcome = read_outcome(folder)
        except UsageError as error:
            report(error, problems)
            continue
        if outcome is not None:
            yield outcome


def read_raw(folder: Path) -> dict[str, Any] | None:
    """The outcome in a job's folder as plain JSON, of which only the status is validated: about 0.1 ms.

    None for a job that has not finished. Raises ``UsageError`` for a damaged one.
    """
    path = f"{folder}/{OUTCOME}"  # ten thousand of them are read for a plan: no Path, and a parser twice as fast
    try:
        with open(path, "rb") as file:
            raw = from_json(file.read())
        status = raw["status"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _damaged(path, f"cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, "is not the JSON of an outcome") from error
    if status not in STATUSES:
        raise _damaged(path, f"has the unknown status {status!r}")
    return dict(raw)


def statuses(results: Path, problems: list[Problem] | None = None) -> dict[str, Status]:
    """Status of every finished job by id, without validating whole outcomes: about 0.1 ms per job.

    Damaged outcomes are treated as by :func:`iter_outcomes`; their jobs count as not done.
    """
    found: dict[str, Status] = {}
    for folder in iter_folders(results):
        try:
            raw = read_raw(folder)
        except UsageError as error:
            report(error, problems)
            continue
        if raw is not None:
            found[folder.name] = raw["status"]
    return found


def stamps(results: Path, ids: Iterable[str] | None = None) -> dict[str, Stamp]:
    """A stamp of every ``outcome.json`` (or of those of ``ids``) by job id.

    It tells a store which outcomes are new or were replaced.
    """
    root = os.fspath(jobs_folder(results))
    found: dict[str, Stamp] = {}
    for name in names(results) if ids is None else ids:
        try:
            state = os.stat(f"{root}/{name}/{OUTCOME}")
        except (FileNotFoundError, NotADirectoryError):
            continue
        found[name] = (state.st_mtime_ns, state.st_size, state.st_ino)
    return found


def stamp_text(stamp: Stamp) -> str:
    """A stamp as stores keep it."""
    return f"{stamp[0]}-{stamp[1]}-{stamp[2]}"


def read_curve(folder: Path) -> list[dict[str, float | None]]:
    """Points of a job's curve, in the order in which they were logged; empty where there is none.

    A last line that was cut, as a killed worker leaves it, is left out. Raises ``UsageError`` for other damage.
    """
    path = folder / CURVE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read: {error}", place=str(path)) from error
    try:
        points = json.loads("[" + ",".join(lines) + "]")
    except ValueError:
        points = _points(lines, path)
    rows: list[dict[str, float | None]] = []
    for number, point in enumerate(points, 1):
        try:
            if "step" not in point:
                raise KeyError("step")
            rows.append({name: None if value is None else _finite(value) for name, value in point.items()})
        except (AttributeError, KeyError, ValueError, TypeError) as error:
            raise UsageError("is not a point of a curve", place=f"{path}:{number}") from error
    return rows


def _points(lines: list[str], path: Path) -> list[Any]:
    points = []
    for number, line in enumerate(lines, 1):
        try:
            points.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise UsageError("is not a point of a curve", place=f"{path}:{number}") from error
    return points


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def find_job(results: Path, prefix: str, waiting: Iterable[str] = ()) -> Path:
    """Folder of the only job, running or finished, whose id starts with ``prefix``.

    ``waiting``: ids of jobs that may have no folder yet. Raises ``UsageError`` for none or several.
    """
    folders = {id: job_folder(results, id) for id in waiting}
    folders |= {path.name: path for path in sorted((results / RUNNING).glob("[!.]*")) if path.is_dir()}
    folders |= {folder.name: folder for folder in iter_folders(results)}
    known = sorted(folders)
    if not known:
        raise UsageError("holds no jobs yet", place=str(results), hint="run a suite first: kdbench run SUITE")
    matches = [name for name in known if name.startswith(prefix)]
    if prefix in matches:
        matches = [prefix]
    if len(matches) > 1:
        shown = ", ".join(matches[:5]) + (", ..." if len(matches) > 5 else "")
        raise UsageError(f"{len(matches)} jobs have an id that starts with {prefix!r}: {shown}", hint="give more of it")
    if not matches:
        raise UsageError(f"no job has the id {prefix!r}", place=str(results), hint=did_you_mean(prefix, known))
    return folders[matches[0]]


def report(error: UsageError, problems: list[Problem] | None) -> None:
    """Hand problems to who asked for them, or else to the log."""
    if problems is not None:
        problems.extend(error.problems)
        return
    for problem in error.problems:
        log.warning("%s", problem)


def _schema_version(text: bytes) -> int | None:
    try:
        version = json.loads(text)["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return version if isinstance(version, int) else None


def _newer(path: Path, version: int) -> UsageError:
    message = f"was written with version {version} of the outcome's form; this kdbench reads up to {OUTCOME_SCHEMA}"
    return UsageError(message, place=str(path), hint="update kdbench")


def _damaged(path: Path | str, reason: str) -> UsageError:
    return UsageError(f"damaged outcome: {reason}", place=str(path), hint="run its suite again, or delete the folder")
