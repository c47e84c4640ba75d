"""Specification of tasks without content."""

from __future__ import annotations

from kdbench.spec import TaskSpec


class NoopSpec(TaskSpec):
    """Nothing beyond what every task has."""

    part: int = 0
    """Tells tasks apart that are the same otherwise."""

    def teacher_key(self) -> str | None:
        return None
