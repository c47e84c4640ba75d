"""The process that feeds MLflow: ``python -m kdbench.store.reporter RESULTS``, with the server in its environment.

It follows the spool until its standard input ends, sends what is left, and ends. A server that cannot be reached
costs one line in ``mlflow.log`` and is tried again, less and less often; what is missed in the end is sent by the
next run or by ``kdbench sync mlflow``, because the cursor knows it.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import time
from pathlib import Path

from kdbench.store.cursor import Cursor
from kdbench.store.fresh import Look
from kdbench.store.membership import public
from kdbench.store.sender import Sender, reason

log = logging.getLogger("kdbench.mlflow")

URI_VARIABLE = "KDBENCH_TRACKING_URI"
"""Tracking URI; not an argument, because it may hold a password and arguments are for everyone to see."""
LOG = "mlflow.log"
"""In the results folder: what the reporter has to say."""
POLL = 1.0
"""Seconds between looks at the spool."""
AGAIN = 15.0
"""Seconds after a failure until the next attempt; doubled by each that follows, up to LONGEST_PAUSE."""
LONGEST_PAUSE = 300.0
UNREACHABLE = 3
"""Exit code where the server could not be used."""
SHARE = 20
"""A look is followed by a pause of this many times its length at least."""


class Reporter:
    """One server, as long as a run lasts."""

    def __init__(self, results: Path, uri: str) -> None:
        self.uri = uri
        self.cursor = Cursor.of(results, uri)
        self.sender: Sender | None = None
        self.failures = 0
        self._trouble = ""
        self._tried = 0.0
        self._looked = 0.0
        self._look: Look | None = None

    def look(self) -> None:
        """Send what is pending, if an attempt failed or anything has changed since the last look."""
        before = self.cursor.look()
        if self.failures or self._look is None or not self._look.settled or self._look.folders != before.folders:
            self._look = before
            self.attempt()

    def attempt(self) -> bool:
        """Send what is pending; False where the server could not be used."""
        self._tried = time.monotonic()
        with self.cursor.lock():
            try:
                self._send()
            except Exception as error:  # noqa: BLE001  whatever a server or a client library does
                self.failures += 1
                self._say(reason(error))
                return False
        self.failures = 0
        self._say("")
        return True

    def _send(self) -> None:
        started = time.monotonic()
        self.cursor.refresh()
        pending = self.cursor.pending()
        self._looked = time.monotonic() - started
        if self.sender is None:
            if not pending and not self.cursor.leftover:
                return
            self.sender = Sender(self.cursor, self.uri)
        self.sender.send(pending)

    def _say(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            log.warning("cannot log to %s: %s; what is missing is sent later", public(self.uri), trouble)
        elif not trouble and self._trouble:
            log.info("%s can be used again", public(self.uri))
        self._trouble = trouble
        self.cursor.note_trouble(trouble)

    @property
    def pause(self) -> float:
        """Seconds until the next look."""
        if self.failures:
            return min(LONGEST_PAUSE, AGAIN * 2.0 ** (self.failures - 1))
        return max(POLL, SHARE * self._looked)

    @property
    def tried_lately(self) -> bool:
        return time.monotonic() - self._tried < AGAIN


def follow(results: Path, uri: str) -> int:
    """Send until standard input ends, then the rest; returns an exit code."""
    reporter = Reporter(results, uri)
    while True:
        reporter.look()
        if _input_ended(reporter.pause):
            break
    if not (reporter.failures and reporter.tried_lately):
        reporter.attempt()
    if reporter.sender is not None and reporter.sender.count:
        log.info("logged %d runs to %s", reporter.sender.count, public(uri))
    return UNREACHABLE if reporter.failures else 0


def _input_ended(seconds: float) -> bool:
    """Whether the coordinator closed our standard input (or died) within some seconds."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([sys.stdin], [], [], left)
        if ready and not os.read(sys.stdin.fileno(), 4096):
            return True
    return False


def main() -> int:
    """Entry point of the process."""
    results, uri = Path(sys.argv[1]), os.environ[URI_VARIABLE]
    logging.basicConfig(
        filename=results / LOG, format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING, force=True
    )
    logging.getLogger("kdbench").setLevel(logging.INFO)
    for name in ("alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return follow(results, uri)


if __name__ == "__main__":
    sys.exit(main())
