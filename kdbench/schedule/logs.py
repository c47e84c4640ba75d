"""A log that never takes more than a fixed room on the disk, whatever is printed into it."""

from __future__ import annotations

from pathlib import Path

HEAD = 512 << 10
"""Bytes kept of the beginning."""
TAIL = 512 << 10
"""Bytes kept of the end."""


class CappedLog:
    """Keeps the first and the last part of what is written, and a line between them that says how much was cut.

    The first part goes to the disk at once; the last part waits in memory until :meth:`close`.
    """

    def __init__(self, path: Path, head: int = HEAD, tail: int = TAIL) -> None:
        self._file = path.open("wb", buffering=0)
        self._room = head
        self._limit = tail
        self._tail = bytearray()
        self._cut = 0

    def write(self, data: bytes) -> None:
        """Add what was printed. Raises ``OSError`` where the disk is full."""
        if self._room:
            first = data[: self._room]
            self._file.write(first)
            self._room -= len(first)
            data = data[len(first) :]
        self._tail += data
        if len(self._tail) > 2 * self._limit:  # cutting at twice the limit moves each byte once, not every time
            self._drop()

    def _drop(self) -> None:
        surplus = len(self._tail) - self._limit
        if surplus > 0:
            del self._tail[:surplus]
            self._cut += surplus

    def abandon(self) -> None:
        """Close the file as it is: for a forked process, which has a copy of what belongs to another."""
        self._file.close()

    def close(self) -> None:
        """Write the last part and close the file; may be called again."""
        if self._file.closed:
            return
        with self._file as file:
            self._drop()
            if self._cut:
                # the last part starts with a whole line, unless one line is longer than all that is kept
                start = self._tail.find(b"\n") + 1
                self._cut += start
                file.write(b"\n[... %d bytes of output are left out here ...]\n" % self._cut)
                del self._tail[:start]
            file.write(bytes(self._tail))


def last_lines(path: Path, count: int = 20, longest: int = 4000) -> str:
    """The end of a log, for an error message; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 8 * longest))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-count:])[-longest:]
