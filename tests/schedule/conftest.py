"""Fixtures of the tests that run whole suites through the command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.scenes import Scene


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    """Makes scenes in the test's folder, and ends what a failed test leaves running."""
    made: list[Scene] = []

    def make(*methods: str, **more: Any) -> Scene:
        made.append(Scene(tmp_path / f"scene{len(made)}", methods, **more))
        return made[-1]

    yield make
    for one in made:
        for process in one.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
