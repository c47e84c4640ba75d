"""What every kind of problems has to say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kdbench.errors import JobError
from kdbench.tracks.decoding.data.problems import Problem, generate
from kdbench.tracks.dllm.batches import Prompts
from kdbench.tracks.dllm.data import vocabulary

if TYPE_CHECKING:
    from kdbench.tracks.dllm.spec import DllmSpec

SPLITS = ("train", "val", "test")


@dataclass
class Split:
    """Problems of a split, encoded."""

    prompts: Prompts
    answer: Tensor
    """(N, L) int64: a response that is right, then ends."""
    operation: Tensor
    """(N,) int64: which of ``names`` a problem is of."""
    names: tuple[str, ...]
    problems: list[Problem]

    def __len__(self) -> int:
        return len(self.answer)


class Kind(ABC):
    """One kind of problems, bound to a task's specification."""

    names: tuple[str, ...]
    """Operations, in the order of :attr:`Split.operation`."""
    single: frozenset[str]
    """Operations whose problems have one solution."""
    mask, eos, vocabulary = vocabulary.MASK, vocabulary.EOS, vocabulary.SIZE

    def __init__(self, spec: DllmSpec) -> None:
        self.spec = spec
        self.data: Any = spec.data
        self._splits: dict[str, Split] = {}

    # --- data -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def problem(self, rng: np.random.Generator) -> Problem:
        """One problem: ``prompt`` without its operation, ``response``, ``answer``, and the operation as ``level``."""

    @abstractmethod
    def solves(self, problem: Problem, response: str) -> bool:
        """Whether a response is right, by a program that knows the problem and not the reference alone."""

    def outcomes(self, problem: Problem) -> list[str]:
        """Every right response of a problem, all equally probable."""
        return [problem.response]

    def split(self, name: str) -> Split:
        """A split, on the CPU, made once. Raises ``JobError`` for a name that there is not."""
        if name not in self._splits:
            if name not in SPLITS:
                raise JobError(f"{self.spec.name} has no split {name!r}; it has {', '.join(SPLITS)}")
            self._splits[name] = self.make(name)
        return self._splits[name]

    def make(self, name: str) -> Split:
        """A split, generated: the same for the same specification; no problem is in two of them."""
        problems = generate(self.problem, name, getattr(self.data, name), self.data.seed)
        operation = [self.names.index(problem.level) for problem in problems]
        ids = [
            vocabulary.prompt(number, problem.prompt[1:], self.data.prompt)
            for number, problem in zip(operation, problems, strict=True)
        ]
        answer = [vocabulary.encode(problem.response, self.data.length) for problem in problems]
        prompts = torch.tensor(ids)
        return Split(
            Prompts(prompts, prompts != vocabulary.EOS),
            torch.tensor(answer),
            torch.tensor(operation),
            self.names,
            problems,
        )

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens of a canvas say, up to the first end."""
        return vocabulary.decode(list(tokens))

    # --- checks -----------------------------------------------------------------------------------------------------

    def correct(self, name: str, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        """(n,) bool: whether canvases (n, L) solve the problems of a split, or of some of its rows."""
        problems = self.split(name).problems
        chosen = range(len(problems)) if rows is None else rows.tolist()
        found = [
            self.solves(problems[row], self.text(line)) for row, line in zip(chosen, tokens.cpu().tolist(), strict=True)
        ]
        return torch.tensor(found, dtype=torch.bool)

    def coupled(self, split: Split) -> Tensor:
        """(N,) bool: problems with more than one solution, whose tokens depend on each other whatever the network."""
        several = torch.tensor([name not in self.single for name in split.names])
        return several[split.operation]
