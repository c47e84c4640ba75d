"""Text: documentation and source code that is continued."""

from __future__ import annotations

from typing import Any

from kdbench.task import Scores
from kdbench.tracks.decoding import evaluate
from kdbench.tracks.llm.kinds.text import Text


class Docs(Text):
    """Documentation and code of CPython; prompts are the first quarters of chunks."""

    def measure(self, task: Any, model: Any) -> Scores:
        """What :func:`~kdbench.tracks.decoding.evaluate.measure` says of a decoder."""
        return evaluate.measure(task, model)[0]
