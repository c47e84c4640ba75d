"""Which jobs belong to which suite: part of the spool, since one job may serve several suites.

``<results>/suites/<digest of the name>.json`` holds the name, the ids of every job that a run of the suite planned,
and the MLflow server that they are reported to.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from kdbench.errors import Problem, UsageError
from kdbench.spec import digest
from kdbench.store import spool

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Members:
    """A suite and its jobs."""

    suite: str
    jobs: tuple[str, ...]
    """Ids, finished or not, in the order in which they were first planned."""
    tracking: str | None
    """MLflow tracking URI of the suite's newest run, without a password; None where tracking is off."""


def public(uri: str) -> str:
    """A tracking URI without the user and password that it may hold: the form that files and messages get."""
    return re.sub(r"//[^/\s]*@", "//", uri)


def folder_of(results: Path) -> Path:
    """Where the membership files are."""
    return results / "suites"


def add(results: Path, suite: str, jobs: Iterable[str], tracking: str | None) -> None:
    """Add jobs to a suite, which is tracked there from now on; a damaged list is started anew.

    Safe under concurrent runs. Raises ``OSError`` where the folder cannot be written.
    """
    _update(results, suite, jobs, None if tracking is None else public(tracking))


def join(results: Path, suite: str, jobs: Iterable[str]) -> None:
    """As :func:`add`, for a suite that stays tracked as it is; a new one is not."""
    _update(results, suite, jobs)


def _update(results: Path, suite: str, jobs: Iterable[str], *tracking: str | None) -> None:
    folder = folder_of(results)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest(suite)}.json"
    with FileLock(folder / ".lock"):
        before = _known(path, suite)
        server = tracking[0] if tracking else before.tracking
        after = Members(suite, tuple(dict.fromkeys((*before.jobs, *jobs))), server)
        if after != before:
            spool.write_whole(path, json.dumps({"suite": suite, "tracking": server, "jobs": after.jobs}) + "\n")


def _known(path: Path, suite: str) -> Members:
    if path.exists():
        try:
            return _read(path)
        except UsageError as error:
            log.warning("%s: starting anew", error)
    return Members(suite, (), None)


def every(results: Path, problems: list[Problem] | None = None) -> Iterator[Members]:
    """Every suite that ran; damaged files are treated as by :func:`kdbench.store.spool.iter_outcomes`."""
    for path in sorted(folder_of(results).glob("[!.]*.json")):
        try:
            yield _read(path)
        except UsageError as error:
            spool.report(error, problems)


def _read(path: Path) -> Members:
    try:
        content = json.loads(path.read_bytes())
        members = Members(str(content["suite"]), tuple(content["jobs"]), content["tracking"])
        if not all(isinstance(id, str) for id in members.jobs):
            raise TypeError("ids are strings")
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"damaged list of a suite's jobs: {error}"
        raise UsageError(message, place=str(path), hint="delete it and run the suite again") from error
    return members
