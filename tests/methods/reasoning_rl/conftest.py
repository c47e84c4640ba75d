"""One job of a method on a smoke task, in this process, and a task that a method would receive."""

from __future__ import annotations

from tests.methods.llm.conftest import interrupted, registry, run
from tests.tracks.reasoning_rl.conftest import make

__all__ = ["interrupted", "make", "registry", "run"]
