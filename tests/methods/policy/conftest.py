"""One job of a method on a smoke task, in this process."""

from __future__ import annotations

from tests.methods.llm.conftest import interrupted, registry, run

__all__ = ["interrupted", "registry", "run"]
