"""Results that come with kdbench, as tests would have them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from kdbench.job import Outcome
from kdbench.leaderboard.selection import Selection
from kdbench.store import export, membership, reference
from tests.helpers.outcomes import put


def ship(folder: Path, track: str, outcomes: Iterable[Outcome], suite: str = "toy", **more: object) -> Path:
    """Export outcomes into ``folder/<track>``, as reference results are; more arguments as :func:`put` takes."""
    results = folder.parent / f"{folder.name}-{track}-results"
    written = put(results, outcomes, **more)  # type: ignore[arg-type]
    membership.add(results, suite, [outcome.id for outcome in written], None)
    export.export(results, folder / track, "parquet", Selection())
    return folder / track


def come_with(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Let the exports in ``folder`` be those of this installation."""
    monkeypatch.setattr(reference, "FOLDERS", (folder.parent / "none", folder))
    return folder
