"""Problems with one right answer: word problems, list operations, or those of a Hugging Face data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import nn

from kdbench.task import Scores
from kdbench.tracks.decoding import evaluate
from kdbench.tracks.decoding.data.arith import make_arith
from kdbench.tracks.decoding.data.listops import make_listops
from kdbench.tracks.decoding.data.problems import Problem, answer_in
from kdbench.tracks.llm.data.encoding import Sequences
from kdbench.tracks.llm.kinds.instruct import Pairs


class Problems(Pairs):
    """Problems that a generator makes."""

    row = Problem

    def problems(self, name: str) -> list[Problem]:
        """Problems of a split."""
        raise NotImplementedError

    def make(self, name: str) -> tuple[Sequences, list[Any]]:
        return self.encode_items(self.problems(name), self.data.length, "error")

    def tokenizer_texts(self) -> Iterable[str]:
        return (problem.text for problem in self.problems("train"))

    def right(self, problems: Sequence[Problem], texts: Sequence[str]) -> np.ndarray:
        """(N,) 1 where a response ends in the right answer."""
        pairs = zip(problems, texts, strict=True)
        return np.array([float(problem.check(text)) for problem, text in pairs])

    def validate(self, task: Any, model: nn.Module) -> dict[str, float]:
        """loss, perplexity, token_accuracy and exact_match of greedy responses."""
        values, rows = super().validate(task, model), self.prepared.split("val").rows
        values["exact_match"] = float(self.right(rows, self.respond(task, model, rows)).mean())
        return values

    def measure(self, task: Any, model: Any) -> Scores:
        """What :func:`~kdbench.tracks.decoding.evaluate.measure` says of a decoder, and exact_match when greedy."""
        scores, greedy = evaluate.measure(task, model)
        texts = task.tokenizer.batch_decode(greedy.tokens, skip_special_tokens=True)
        right = self.right(task.split("test").rows, texts)
        return Scores(scores.metrics | {"exact_match": float(right.mean())}, scores.examples | {"exact_match": right})


class Arith(Problems):
    """Word problems with a worked rationale."""

    def problems(self, name: str) -> list[Problem]:
        return make_arith(self.data, name, getattr(self.data, name))


class ListOps(Problems):
    """Operations on short lists."""

    def problems(self, name: str) -> list[Problem]:
        return make_listops(self.data, name, getattr(self.data, name))


class HubProblems(Problems):
    """Prompts and responses of a Hugging Face data set or of local files; the answer is what the reference ends in."""

    def content(self, name: str) -> dict[str, Any]:
        from kdbench.tracks.llm.networks.hf import data_digest

        return {"content": data_digest(self.data, name)}

    def problems(self, name: str) -> list[Problem]:
        from kdbench.tracks.llm.networks.hf import instruct_items

        items = instruct_items(self.data, name)
        return [Problem(item.prompt, item.response, answer_in(item.response) or "", "reference") for item in items]

    def make(self, name: str) -> tuple[Sequences, list[Any]]:
        return self.encode_items(self.problems(name), self.data.length, "drop")
