"""A training that makes as many steps as its parent says, and then waits for its turn to come again.

The parent writes lines: ``STEPS`` or ``STEPS FILE`` asks for that many steps, and for the student's weights before and
after them in a file; ``end`` for what is left to do after the last step. Each is answered by a line of JSON with the
processor seconds and the seconds that it took.
"""

from __future__ import annotations

import json
import os
import sys
import time

import torch
from safetensors.torch import save_file
from torch import Tensor, nn


class Turns:
    """Called after every step of a training; measures the steps between two waits."""

    def __init__(self, student: nn.Module) -> None:
        self.student = student
        self._left = 0
        self._file = ""
        self._before: dict[str, Tensor] = {}
        self._started = (0.0, 0.0)
        self._answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # trainers print what they log

    def wait(self) -> None:
        """Until the parent says how many steps to make; ends the process where the parent is gone."""
        words = sys.stdin.readline().split()
        if not words:
            raise SystemExit(1)
        self._left = 0 if words[0] == "end" else int(words[0])
        self._file = words[1] if len(words) > 1 else ""
        if self._file:
            self._before = self._weights("before")
        self._started = time.process_time(), time.perf_counter()

    def step(self, *_: object) -> None:
        """A step is done."""
        self._left -= 1
        if not self._left:
            self.answer()
            self.wait()

    def answer(self) -> None:
        """Say what was spent since the last wait."""
        cpu, wall = time.process_time() - self._started[0], time.perf_counter() - self._started[1]
        if self._file:
            save_file(self._before | self._weights("after"), self._file)
        print(json.dumps({"cpu": cpu, "wall": wall}), file=self._answers, flush=True)

    def _weights(self, when: str) -> dict[str, Tensor]:
        return {f"{when}/{name}": tensor.detach().clone() for name, tensor in self.student.named_parameters()}


class Curve:
    """The mean loss of every fiftieth part of a training, as people keep it."""

    def __init__(self, steps: int) -> None:
        self.every = max(1, steps // 50)
        self.points: list[float] = []
        self._sum = 0.0

    def add(self, step: int, loss: Tensor) -> None:
        self._sum += loss.item()
        if step % self.every == 0:
            self.points.append(self._sum / self.every)
            self._sum = 0.0


def orders(count: int, size: int, steps: int, seed: int) -> list[Tensor]:
    """Rows of each batch: epochs in random order, whose last batches may be smaller."""
    draw, found = torch.Generator().manual_seed(seed), []
    while len(found) < steps:
        found += torch.randperm(count, generator=draw).split(size)
    return found[:steps]
