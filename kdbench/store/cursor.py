"""How far a tracking server has been told: a journal beside the spool, one per server.

Every line is a JSON object. ``begin`` is written before an outcome is sent, ``done`` with the server's run id after
it: what has no ``done`` is sent (again) later, and a ``begin`` without one names the half-made run that has to go
first. ``known`` is a ``done`` of a run that was found there, ``deleted`` says that a run which a newer one replaced
is gone from the server, ``experiment`` which experiment a suite's runs are in, ``forget`` that a run is to be made
anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from kdbench.spec import digest
from kdbench.store import duck, membership, spool
from kdbench.store.fresh import Look

Key = tuple[str, str]
"""A suite and the id of one of its jobs: a job that several suites have is a run in the experiment of each."""


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
    """What one server has; written to by one process at a time, which holds :meth:`lock`."""

    results: Path
    server: str
    """Its tracking URI, without a password."""
    sent: dict[Key, Sent] = field(default_factory=dict)
    dangling: dict[Key, str] = field(default_factory=dict)
    """Tokens of begun but unfinished sendings."""
    tokens: set[str] = field(default_factory=set)
    """Every token that was ever used: the runs that carry one are ours."""
    leftover: set[str] = field(default_factory=set)
    """Runs that were replaced and still have to be deleted."""
    experiments: dict[str, str] = field(default_factory=dict)
    """By suite: the experiment that has its runs, by id and time of creation."""
    count: int = 0
    """Outcomes sent since the journal began."""
    _same: dict[Key, str] = field(default_factory=dict)
    """Stamps of files that are other ones than those that were sent, with the same content."""
    _size: int = 0
    """Bytes of the journal that were read."""

    @classmethod
    def of(cls, results: Path, uri: str) -> Cursor:
        """The cursor of a server; lines that were cut by a power failure are ignored."""
        cursor = cls(results, membership.public(uri))
        cursor.refresh()
        return cursor

    @property
    def path(self) -> Path:
        """The journal."""
        return duck.private_folder(self.results) / f"mlflow-{digest(self.server)}.jsonl"

    def lock(self, wait: float = -1) -> FileLock:
        """For one batch of sendings. Raises ``filelock.Timeout`` after ``wait`` seconds (negative: never)."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.with_suffix(".lock"), timeout=wait)

    def refresh(self) -> None:
        """Take in what other processes have sent meanwhile."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._size)
                text = file.read()
        except FileNotFoundError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._size += len(whole)
        for line in whole.splitlines():
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue  # a cut line: its outcome is sent again, after the half-made run is removed

    def _take(self, entry: dict[str, Any]) -> None:
        state = entry["state"]
        if state == "deleted":
            self.leftover.discard(entry["run"])
        elif state == "experiment":
            self._move(entry["suite"], entry["experiment"])
        elif "suite" not in entry:
            if state == "done":
                self.leftover.add(entry["run"])  # an older form, without a suite: made anew in today's
        elif state == "begin":
            self.dangling[entry["suite"], entry["id"]] = entry["token"]
            self.tokens.add(entry["token"])
        else:
            key = entry["suite"], entry["id"]
            self.dangling.pop(key, None)
            before = self.sent.pop(key, None)
            if state == "forget":
                return
            self.sent[key] = Sent(entry["content"], entry["stamp"], entry["run"])
            self.count += state == "done"
            if before is not None and before.run != entry["run"]:
                self.leftover.add(before.run)

    def _move(self, suite: str, experiment: str) -> None:
        if self.experiments.get(suite, experiment) != experiment:
            for of in (self.sent, self.dangling):
                for key in [key for key in of if key[0] == suite]:
                    del of[key]
        self.experiments[suite] = experiment

    def begin(self, key: Key, token: str) -> None:
        """Note that an outcome is about to be sent; ``token`` will be a tag of its run."""
        self._append({"state": "begin", "suite": key[0], "id": key[1], "token": token})

    def done(self, key: Key, sent: Sent) -> None:
        """Note that the server has an outcome; the run that had an older one is left over."""
        self._append({"state": "done", "suite": key[0], "id": key[1], **vars(sent)})

    def known(self, key: Key, sent: Sent) -> None:
        """Note that the server turned out to have an outcome: nothing was sent now."""
        self._append({"state": "known", "suite": key[0], "id": key[1], **vars(sent)})

    def deleted(self, run: str) -> None:
        """Note that a run that was left over is gone."""
        self._append({"state": "deleted", "run": run})

    def forget(self, key: Key) -> None:
        """Note that the server lacks an outcome that it had: the next sending makes a new run."""
        self._append({"state": "forget", "suite": key[0], "id": key[1]})

    def belongs(self, suite: str, experiment: str) -> None:
        """Note which experiment a suite has; where it had another one, nothing of the suite counts as sent."""
        if self.experiments.get(suite) != experiment:
            self._append({"state": "experiment", "suite": suite, "experiment": experiment})

    def _append(self, entry: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            if end > self._size:
                file.write(b"\n")  # ends a line that was cut
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.refresh()

    def pending(self, suites: Collection[str] | None = None) -> list[Key]:
        """Outcomes that the server lacks, in the order in which they ended.

        ``suites``: of these suites, wherever they are tracked; None: of those that are tracked at this server.
        """
        wanted = [
            (members.suite, id)
            for members in membership.every(self.results)
            if (members.tracking == self.server if suites is None else members.suite in suites)
            for id in members.jobs
        ]
        stamps = spool.stamps(self.results, dict.fromkeys(id for _, id in wanted))
        changed = [key for key in wanted if key[1] in stamps and self._changed(key, stamps[key[1]])]
        return sorted(changed, key=lambda key: (stamps[key[1]][0], key[1], key[0]))

    def _changed(self, key: Key, stamp: spool.Stamp) -> bool:
        known, text = self.sent.get(key), spool.stamp_text(stamp)
        if known is None:
            return True
        if text in (known.stamp, self._same.get(key)):
            return False
        # other times and inodes, as after a copy of the folder, but perhaps the same content
        if known.content != content_digest(spool.job_folder(self.results, key[1])):
            return True
        self._same[key] = text
        return False

    # --- what is known without the journal ---

    @property
    def _settled(self) -> Path:
        return self.path.with_suffix(".settled")

    def look(self) -> Look:
        """The spool now; taken before :meth:`pending`, for :meth:`note_settled`. Raises ``OSError``."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return Look.now(self.results, self.path.parent)

    def note_settled(self, look: Look) -> None:
        """Note that at ``look`` nothing was pending: while nothing changes, the next run need not read the journal."""
        if look.settled:
            spool.write_whole(self._settled, self._state(look) + "\n")

    def is_settled(self, look: Look) -> bool:
        """Whether nothing has changed since nothing was pending."""
        try:
            return self._settled.read_text(encoding="utf-8").strip() == self._state(look)
        except FileNotFoundError:
            return False

    def _state(self, look: Look) -> str:
        size = self.path.stat().st_size if self.path.exists() else 0
        return json.dumps({"folders": look.folders, "journal": size})

    # --- what went wrong last ---

    @property
    def _trouble(self) -> Path:
        return self.path.with_suffix(".trouble")

    def trouble(self) -> str:
        """Why the last sending stopped; empty where it did not."""
        try:
            return self._trouble.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return ""

    def note_trouble(self, reason: str) -> None:
        """Tell other processes why nothing is sent; an empty reason: it is."""
        if reason:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            spool.write_whole(self._trouble, reason + "\n")
        else:
            self._trouble.unlink(missing_ok=True)


def content_digest(folder: Path) -> str:
    """SHA-256 of a job's ``outcome.json``; empty where it is gone."""
    try:
        return hashlib.sha256((folder / spool.OUTCOME).read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def servers(results: Path, suites: Collection[str] | None = None) -> dict[str, list[str]]:
    """The suites that are tracked, by the server of their newest run; of ``suites``, or of all where it is None."""
    found: dict[str, list[str]] = {}
    for members in membership.every(results):
        if members.tracking is not None and (suites is None or members.suite in suites):
            found.setdefault(members.tracking, []).append(members.suite)
    return found
