"""One job of a method on a smoke task, and such tasks themselves, in this process."""

from __future__ import annotations

from tests.methods.llm.conftest import interrupted, registry, run
from tests.tracks.dataset_distillation.conftest import make, shared

__all__ = ["interrupted", "make", "registry", "run", "shared"]
