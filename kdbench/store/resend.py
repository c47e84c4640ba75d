"""Sends to a tracking server what it missed: what ``kdbench sync mlflow`` does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import Timeout

from kdbench.errors import Problem, UsageError, did_you_mean
from kdbench.store import membership
from kdbench.store.cursor import Cursor, servers
from kdbench.store.sender import Sender, reason

Each = Callable[[int, int], None]
"""Told how many of how many outcomes are through."""


@dataclass
class Report:
    """What came of one server."""

    server: str
    """Its tracking URI, without a password."""
    suites: list[str]
    sent: int = 0
    there: int = 0
    """Outcomes that it had before."""
    deleted: int = 0
    """Outcomes whose runs somebody deleted there: they stay deleted."""
    left: int = 0
    """Outcomes that it still lacks."""
    hidden: list[str] = field(default_factory=list)
    """Suites whose experiment somebody deleted there, and that have nothing new for it."""
    restored: list[str] = field(default_factory=list)
    """Suites whose experiment was deleted there and is back, because there was something to send to it."""
    left_out: list[str] = field(default_factory=list)
    """What cannot be sent to any server, or was refused, with the reasons."""
    trouble: str = ""
    """Why the server could not be used; empty where it could."""

    @property
    def ok(self) -> bool:
        return not (self.trouble or self.left or self.left_out)


def destinations(results: Path, uri: str | None, suites: Collection[str]) -> Mapping[str, list[str]]:
    """Suites by the server to send them to: ``uri``, or the one that their newest run was tracked at.

    Without ``suites``, all are meant. Raises ``UsageError`` for a suite that never ran and where nothing is tracked.
    """
    from kdbench.preflight import tracking_problems

    known = [members.suite for members in membership.every(results)]
    for name in suites:
        if name not in known:
            hint = did_you_mean(name, known, label="have run")
            raise UsageError(f"no suite {name!r} has run here", place="--suite", hint=hint)
    if uri is not None:
        if wrong := tracking_problems(membership.public(uri), "--uri"):
            raise UsageError(wrong)
        found = {uri: list(dict.fromkeys(suites)) or known}
        if not found[uri]:
            raise UsageError("no suite has run here", place=str(results), hint="run one first: kdbench run quickstart")
    else:
        found = servers(results, suites or None)
        untracked = [name for name in suites if not any(name in of for of in found.values())]
        if untracked or not found:
            what = f"suite {untracked[0]!r} is" if untracked else "no suite here is"
            raise UsageError(f"{what} tracked in MLflow", place=str(results), hint="say where to send it: --uri URI")
    for address in found:
        _require_folder(address)
    return found


def _require_folder(uri: str) -> None:
    """MLflow would make the folder of a database, and an old one after the results have moved helps nobody."""
    scheme, _, rest = uri.partition(":///")
    if scheme == "sqlite" and not Path(rest.partition("?")[0]).absolute().parent.is_dir():
        hint = "if the results have moved: --uri sqlite:///FOLDER/mlflow.db"
        raise UsageError("the folder of this database does not exist", place=membership.public(uri), hint=hint)


def resend(
    results: Path,
    uri: str,
    suites: Collection[str],
    *,
    restore: bool = False,
    waiting: Callable[[], None] = lambda: None,
    each: Each = lambda _done, _of: None,
) -> Report:
    """Compare a server with the spool and send what it lacks of these suites.

    ``restore``: also what people deleted there. ``waiting`` is called where another process sends to it now. A server
    that cannot be used is said in the report, never raised.
    """
    cursor = Cursor.of(results, uri)
    report = Report(cursor.server, sorted(suites))
    lock = cursor.lock(0)
    try:
        lock.acquire()
    except Timeout:
        waiting()
        lock.acquire(timeout=-1)
    try:
        cursor.refresh()
        sender = Sender(cursor, uri)
        before = cursor.count
        try:
            _send(sender, report, restore, each)
        finally:
            report.sent = cursor.count - before
    except Exception as error:  # noqa: BLE001  whatever a server or a client library does
        report.trouble = reason(error)
    finally:
        cursor.note_trouble(report.trouble)
        report.left = len(cursor.pending(report.suites))
        lock.release()
    return report


def _send(sender: Sender, report: Report, restore: bool, each: Each) -> None:
    checked = {suite: sender.check(suite, restore=restore) for suite in report.suites}
    pending = sender.cursor.pending(report.suites)
    fresh = {suite for suite, _ in pending}
    report.there = sum(each.there for each in checked.values()) - sum(key in sender.cursor.sent for key in pending)
    report.deleted = sum(len(each.deleted) for each in checked.values())
    for suite in (suite for suite, each in checked.items() if each.hidden):
        (report.restored if suite in fresh else report.hidden).append(suite)
    done = 0

    def one() -> None:
        nonlocal done
        done += 1
        each(done, len(pending))

    try:
        sender.send(pending, one)
    finally:
        report.left_out = list(sender.left_out.values())


def problems(report: Report) -> list[Problem]:
    """What people should know about a server, the worst first."""
    found = []
    if report.trouble:
        hint = f"the same command sends the {report.left} outcomes that it lacks" if report.left else ""
        found.append(Problem(report.server, f"cannot be used: {report.trouble}", hint))
    found += [Problem(report.server, why) for why in report.left_out]
    return found
