"""The capacity gap: a board about distillation means something only where the teacher is better than plain training.

The teacher and a student that is trained on the ground truth with the task's own recipe and budget are measured once
on the *validation* data, and kept in the cache.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.tracks.llm.spec import Gate

if TYPE_CHECKING:
    from kdbench.tracks.llm.task import LLMTask


def measured(task: LLMTask) -> dict[str, float]:
    """``teacher_<metric>`` and ``student_<metric>`` on the validation data, for every metric that validation gives."""
    spec = task.spec

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            probe = type(task)(
                spec, seed=0, method="llm/sft", folder=Path(scratch), cache=task.cache, device=task.device
            )
            student = probe.student()
            probe.fit(student, lambda model, batch: probe.nll(model, batch).mean())
            values = {f"teacher_{name}": value for name, value in probe.validate(probe.teacher()).items()}
            values |= {f"student_{name}": value for name, value in probe.validate(student).items()}
        (folder / "gap.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")

    values: dict[str, float] = json.loads((task.cache.get("gap", spec.gap_key(), make) / "gap.json").read_text())
    return values


def gate(values: Mapping[str, float], wanted: Gate) -> list[str]:
    """Why the capacity gap does not suffice for a leaderboard, one sentence each; empty where it does.

    ``values`` are those of :func:`measured`. A metric that the task does not have is not asked for.

    >>> gate({"teacher_exact_match": 0.9, "student_exact_match": 0.8}, Gate(perplexity=None))
    ['exact match: teacher 0.900, student without distillation 0.800: a gap of 0.100, less than 0.15']
    """
    reasons = []
    for name in ("exact_match", "accuracy", "f1"):
        least, teacher, student = getattr(wanted, name), values.get(f"teacher_{name}"), values.get(f"student_{name}")
        if least is not None and teacher is not None and student is not None and teacher - student < least:
            reasons.append(
                f"{name.replace('_', ' ')}: teacher {teacher:.3f}, student without distillation {student:.3f}: "
                f"a gap of {teacher - student:.3f}, less than {least:g}"
            )
    most = wanted.perplexity
    teacher, student = values.get("teacher_perplexity"), values.get("student_perplexity")
    if most is not None and teacher is not None and student is not None and teacher > most * student:
        reasons.append(
            f"perplexity: teacher {teacher:.2f}, student without distillation {student:.2f}: "
            f"a ratio of {teacher / student:.3f}, more than {most:g}"
        )
    return reasons
