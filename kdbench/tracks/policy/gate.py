"""Is a task informative? A plainly cloned student must learn something of it; on validation seeds."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.tracks.policy.blocks.cloning import clone
from kdbench.tracks.policy.spec import Gate

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask


def measured(task: PolicyTask) -> dict[str, float]:
    """What :meth:`PolicyTask.validate` gives for behaviour cloning with the task's recipe and limits, seed 0. Once per
    task, cached."""
    spec = task.spec

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            probe = type(task)(
                spec, seed=0, method="policy/bc", folder=Path(scratch), cache=task.cache, device=task.device
            )
            values = probe.validate(clone(probe))
        (folder / "gap.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")

    values: dict[str, float] = json.loads((task.cache.get("gap", spec.gap_key(), make) / "gap.json").read_text())
    return values


def problems(values: Mapping[str, float], wanted: Gate) -> list[str]:
    """Why the task says nothing about policies, one sentence each; empty where it does.

    >>> problems({"success": 0.05}, Gate())
    ['plain behaviour cloning succeeds in 0.050 of the validation episodes, less than 0.2']
    """
    if values["success"] >= wanted.success:
        return []
    found = values["success"]
    return [f"plain behaviour cloning succeeds in {found:.3f} of the validation episodes, less than {wanted.success:g}"]
