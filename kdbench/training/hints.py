"""Hints from an intermediate stage of a teacher (FitNets: Romero et al., ICLR 2015), for any pair of families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.losses.features import hint
from kdbench.losses.logits import cross_entropy
from kdbench.training.projectors import projector, resize, stage_at


def hint_loss(
    student: Any, example: Any, look: Callable[[Any], Any], *, depth: float, weight: float
) -> tuple[nn.Module, Callable[[Any, Any], dict[str, Tensor]]]:
    """A regressor to train along, and the loss CE + ``weight`` * MSE(regressor(f_s), f_t) on stages at ``depth``.

    ``look(batch)`` gives the teacher's representations, without gradients; one ``example`` batch fixes the shapes. The
    regressor is initialised from the global generators. Stages of token networks are maps of their patches; where the
    grids differ, the finer one is averaged. The regressor's ReLU is left out where the teacher's features are signed.
    """
    with torch.no_grad():
        mine = stage_at(student.eval().taps(example.x).stages, depth)
        theirs = stage_at(look(example).stages, depth)
    regressor = projector("conv", mine.shape[1], theirs.shape[1], relu=bool((theirs >= 0).all())).to(mine.device)
    side = min(mine.shape[-1], theirs.shape[-1])

    def loss(model: Any, batch: Any) -> dict[str, Tensor]:
        taps = model.taps(batch.x)
        with torch.no_grad():
            target = resize(stage_at(look(batch).stages, depth), side)
        guided = regressor(resize(stage_at(taps.stages, depth), side))
        return {"ce": cross_entropy(taps.logits, batch.y), "hint": weight * hint(guided, target)}

    return regressor, loss
