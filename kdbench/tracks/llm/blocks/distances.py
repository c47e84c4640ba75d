"""How far a student is from its teacher and from the task's own, point after point, on responses that models write."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from kdbench.tracks.llm.blocks.completions import write
from kdbench.tracks.llm.data.encoding import Sequences
from kdbench.tracks.llm.evaluate import forced
from kdbench.tracks.llm.networks.models import scored_logits
from kdbench.training.state import Values


class Watch(Values):
    """Distances of a student to a teacher (proxy) and to the task's teacher (golden) on validation prompts.

    Whole next-token distributions at every token, in nats per token. Forward: KL of the other one to the student on
    its own responses; reverse: KL of the student to the other one on the student's. Metered to nobody.
    """

    kept = ("points",)

    def __init__(self, task: Any, teacher: nn.Module, *, prompts: int, max_new: int, temperature: float) -> None:
        """The first ``prompts`` of the validation data; responses have ``max_new`` tokens at most."""
        self.task, self.teacher = task, teacher
        self.rows = torch.arange(min(prompts, len(task.split("val"))))
        self.options: dict[str, Any] = {"max_new": max_new, "temperature": temperature, "split": "val"}
        self.by_teacher, self.by_oracle = self.written(teacher), self.written(task.teacher())
        self.points: list[dict[str, float]] = []

    def written(self, model: nn.Module) -> Sequences:
        """Responses of a model to the watched prompts, always with the same random numbers."""
        before = dict(self.task.budget.spent)
        generator = torch.Generator().manual_seed(self.task.stream("watch"))
        sequences = write(self.task, model, self.rows, generator=generator, **self.options)
        self.task.budget.restore(before)
        return sequences

    def __call__(self, student: nn.Module, step: int, epoch: float) -> None:
        """Add a point of the curves: ``step``, ``epoch``, and ``proxy_fkl``, ``golden_fkl`` and the two ``_rkl``."""
        was_training = student.training
        student.eval()
        proxy, golden = partial(scored_logits, self.teacher), partial(self.task.scored_teacher, metered=False)
        before, by_student = dict(self.task.budget.spent), self.written(student)

        def distances(sequences: Sequences, other: Any) -> Any:
            batches = sequences.batches(self.task.spec.evaluation.batch_size, "")
            return forced(student, batches, self.task.device, other)

        point = {
            "proxy_fkl": distances(self.by_teacher, proxy).forward_kl,
            "golden_fkl": distances(self.by_oracle, golden).forward_kl,
            "proxy_rkl": distances(by_student, proxy).reverse_kl,
            "golden_rkl": distances(by_student, golden).reverse_kl,
        }
        self.task.budget.restore(before)
        student.train(was_training)
        self.points.append({"step": step, "epoch": epoch, **point})
        self.task.log(step, **point)
