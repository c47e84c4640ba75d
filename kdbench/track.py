"""What a track is: a light literal that names its parts without importing them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Track:
    """A family of problems; contributed through the hook ``kdbench_tracks``."""

    name: str
    title: str
    version: int
    """Bumped by hand when shared code of the track changes results."""
    tasks: Path
    """YAML file with the tasks and their scales."""
    spec: str
    """``module:Class`` of its :class:`kdbench.spec.TaskSpec`; importing it must not import torch."""
    task: str
    """``module:Class`` of its :class:`kdbench.task.Task`."""
    preload: tuple[str, ...] = ("torch",)
    """Modules that workers import once."""
    packs: Path | None = None
    """Folder of shipped, content-addressed cache entries (teachers, teacher outputs)."""
    templates: Path | None = None
    """Folder of Jinja templates from which ``kdbench new`` writes methods (:mod:`kdbench.scaffold`)."""
