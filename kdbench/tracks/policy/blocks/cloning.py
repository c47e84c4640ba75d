"""Behaviour cloning of whatever student a task has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.tracks.policy.blocks.logged import LoggedBatch
from kdbench.tracks.policy.networks.tables import TableNet
from kdbench.tracks.policy.policies.base import Learned
from kdbench.tracks.policy.policies.chunks import Regression
from kdbench.tracks.policy.policies.gaussian import Gaussian
from kdbench.tracks.policy.policies.tabular import Tables
from kdbench.tracks.policy.spec import Generalist
from kdbench.tracks.policy.spec import TableNet as TableSpec

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask


def shape_of(task: PolicyTask) -> dict[str, int]:
    """Arguments of a chunk policy that the task's student decides."""
    student = task.spec.student
    return {
        "actions": task.kind.actions,  # type: ignore[attr-defined]
        "horizon": student.horizon,  # type: ignore[union-attr]
        "observed": student.observed,  # type: ignore[union-attr]
        "executed": student.executed,  # type: ignore[union-attr]
    }


def table_loss(model: TableNet, batch: LoggedBatch) -> Tensor:
    """Mean negative log-likelihood of the actions of all problems, over the steps that were made."""
    parts = []
    for number, (states, actions, mask) in enumerate(zip(batch.states, batch.actions, batch.mask, strict=True)):
        parts.append(F.cross_entropy(model(states[mask], number), actions[mask]))
    return torch.stack(parts).mean()


def clone(task: PolicyTask, loader: Any = None, **options: Any) -> Learned:
    """Train the task's student on demonstrations and wrap it; ``options`` are those of ``task.fit``."""
    student = task.student()
    loader = task.train_loader() if loader is None else loader
    if isinstance(task.spec.student, TableSpec):
        task.fit(student, table_loss, loader=loader, **options)
        return Tables([table.cpu().numpy() for table in student.tables()])
    if isinstance(task.spec.student, Generalist):
        task.fit(student, lambda model, batch: step_loss(model, batch), loader=loader, **options)
        return Gaussian(student)

    def loss(model: Any, batch: Any) -> Tensor:
        zeros = torch.zeros_like(batch.actions)
        level = torch.zeros(len(batch), dtype=torch.int64, device=zeros.device)
        return F.mse_loss(model(zeros, level, batch.obs), batch.actions)

    task.fit(student, loss, loader=loader, **options)
    return Regression(student, **shape_of(task))


def step_loss(model: Any, batch: Any) -> Tensor:
    """Mean squared error of single actions."""
    return F.mse_loss(model(batch.obs.vector, batch.obs.robot), batch.actions)
