"""How far a tracking server has been told: a journal beside the spool, one per server.

Every line is a JSON object: ``begin`` before an outcome is sent, ``done`` with the server's run id after it. What
has no ``done`` is sent (again) later; a dangling ``begin`` names the half-made run that has to go first.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from kdbench.spec import digest
from kdbench.store import duck, membership, spool


@dataclass(frozen=True)
class Sent:
    """An outcome that the server has."""

    content: str
    """SHA-256 of the ``outcome.json`` that was sent."""
    stamp: str
    run: str
    """The server's id of the run."""


@dataclass
class Cursor:
    """What one server has; read and appended to by one process at a time."""

    path: Path
    sent: dict[str, Sent] = field(default_factory=dict)
    """By job id."""
    dangling: dict[str, str] = field(default_factory=dict)
    """Tokens of begun but unfinished sendings, by job id."""

    @classmethod
    def of(cls, results: Path, uri: str) -> Cursor:
        """The cursor of a server; lines that were cut by a power failure are ignored."""
        cursor = cls(duck.private_folder(results) / f"mlflow-{digest(membership.public(uri))}.jsonl")
        try:
            lines = cursor.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return cursor
        for line in lines:
            try:
                cursor._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue  # a cut line: its outcome is sent again, after the half-made run is removed
        return cursor

    def _take(self, entry: dict[str, Any]) -> None:
        if entry["state"] == "begin":
            self.dangling[entry["id"]] = entry["token"]
            return
        self.dangling.pop(entry["id"], None)
        self.sent[entry["id"]] = Sent(entry["content"], entry["stamp"], entry["run"])

    def begin(self, id: str, token: str) -> None:
        """Note that an outcome is about to be sent; ``token`` will be a tag of its run."""
        self._append({"state": "begin", "id": id, "token": token})

    def done(self, id: str, sent: Sent) -> None:
        """Note that the server has an outcome."""
        self._append({"state": "done", "id": id, **vars(sent)})

    def _append(self, entry: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cut = self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if cut else "") + json.dumps(entry) + "\n")
            _to_disk(file)
        self._take(entry)

    def pending(self, results: Path, uri: str) -> list[str]:
        """Ids of outcomes that the server lacks, of suites that are tracked there, in the order in which they ended."""
        server = membership.public(uri)
        wanted = dict.fromkeys(
            id for suite in membership.every(results) if suite.tracking == server for id in suite.jobs
        )
        stamps = spool.stamps(results, wanted)
        changed = {id: stamp for id, stamp in stamps.items() if self._changed(results, id, stamp)}
        return sorted(changed, key=lambda id: (changed[id][0], id))

    def _changed(self, results: Path, id: str, stamp: spool.Stamp) -> bool:
        known = self.sent.get(id)
        if known is None:
            return True
        if known.stamp == spool.stamp_text(stamp):
            return False
        # other times and inodes, as after a copy of the folder, but perhaps the same content
        return known.content != content_digest(spool.job_folder(results, id))


def content_digest(folder: Path) -> str:
    """SHA-256 of a job's ``outcome.json``; empty where it is gone."""
    try:
        return hashlib.sha256((folder / spool.OUTCOME).read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def _to_disk(file: IO[str]) -> None:
    file.flush()
    os.fsync(file.fileno())
