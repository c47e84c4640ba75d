"""Ctrl-C and SIGTERM during a run: the first asks it to stop, the second stops it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While entered, remembers the first signal and raises ``KeyboardInterrupt`` on the second.

    Signals are the business of a program's main thread: in any other this does nothing, and the program that runs
    jobs in a thread decides itself.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that came, or None."""
        self._before: dict[signal.Signals, Any] = {}
        self._held = False
        self._came_meanwhile = False

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._came) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, no signal raises: for the short work that must be whole. One that comes is remembered.

        Raises ``KeyboardInterrupt`` at the end where the second signal came inside.
        """
        self._held, self._came_meanwhile = True, False
        try:
            yield
        finally:
            self._held = False
        if self._came_meanwhile:
            raise KeyboardInterrupt

    def _came(self, number: int, frame: FrameType | None) -> None:
        second = self.number is not None
        self.number = self.number if second else number
        if second and self._held:
            self._came_meanwhile = True
        elif second:
            raise KeyboardInterrupt
