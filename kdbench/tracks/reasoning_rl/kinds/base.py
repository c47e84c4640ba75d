"""What all problems with a verifier have in common: prompts, and how models are validated and scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from kdbench.task import Scores
from kdbench.tracks.llm.data.encoding import Sequences, encode_pairs
from kdbench.tracks.llm.kinds.base import LanguageKind
from kdbench.tracks.reasoning_rl import evaluation
from kdbench.tracks.reasoning_rl.data.problems import Problem
from kdbench.tracks.reasoning_rl.data.verify import Verdict


class Reasoning(LanguageKind):
    """Rows of a prompt and a worked solution; subclasses say what a prompt is and when a response is right."""

    row = Problem

    def plain(self, problem: Problem, rule: str | None = None) -> str:
        """The text of the question alone."""
        raise NotImplementedError

    def with_reference(self, problem: Problem, reference: str | None = None) -> str:
        """The text of the question behind a solution; an empty one is no context at all."""
        raise NotImplementedError

    def with_reasons(self, problem: Problem, explanation: str) -> str:
        """The text of the question behind its solution and an explanation of that."""
        raise NotImplementedError

    def verify(self, problem: Problem, text: str, rule: str | None = None) -> Verdict:
        """What the verifier says of a response."""
        raise NotImplementedError

    def problems_of(self, name: str) -> list[Problem]:
        """Problems of a split before they are encoded."""
        raise NotImplementedError

    def encode_problems(self, problems: Sequence[Problem], too_long: str) -> tuple[Sequences, list[Problem]]:
        """Tokens of problems; ``too_long`` says what becomes of those of more than ``data.length`` tokens."""
        prompts, responses = [self.plain(problem) for problem in problems], [problem.response for problem in problems]
        tokenizer, length = self.prepared.tokenizer, self.data.length
        sequences, kept = encode_pairs(prompts, responses, tokenizer, length, too_long=too_long)
        return sequences, [problems[i] for i in kept]

    def prompt_tokens(self, sequences: Sequences, row: int) -> int:
        """Everything before the response."""
        return int(sequences.starts[row])

    def validate(self, task: Any, model: nn.Module) -> dict[str, float]:
        """loss, perplexity, token_accuracy of the worked solutions, and acc of sampled responses."""
        values = super().validate(task, model)
        values["acc"] = float(task.accuracy(model, task.problems("val"), samples=1, metered=False).mean())
        return values

    def measure(self, task: Any, model: nn.Module) -> Scores:
        """See :func:`kdbench.tracks.reasoning_rl.evaluation.measure`."""
        return evaluation.measure(task, model)
