"""What a mask predictor is, and how a canvas is read with one."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from kdbench.tracks.dllm.batches import Prompts


class Predictor(nn.Module):
    """Predicts every token of a text from the tokens that are not masked; position i predicts position i."""

    mask: int
    """Id of the mask."""
    eos: int
    vocabulary: int
    """Number of tokens (V)."""
    cacheable: bool = False
    """Whether it has :meth:`remember` and :meth:`recall`."""

    @abstractmethod
    def forward(self, ids: Tensor, present: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of ids (B, T); positions that are not ``present`` (B, T) are not attended to.

        The logit of the mask is -inf. What is said about a *visible* position is the network's guess, not its token.
        """


def canvas_logits(net: nn.Module, prompts: Prompts, canvas: Tensor, present: Tensor | None = None) -> Tensor:
    """Logits (B, L, V) of a canvas (B, L) behind the prompts; ``present`` (B, L) bool, None: all of it is there."""
    there = torch.ones_like(canvas, dtype=torch.bool) if present is None else present
    ids = torch.cat([prompts.ids, canvas], dim=1)
    logits: Tensor = net(ids, torch.cat([prompts.present, there], dim=1))
    return logits[:, prompts.ids.shape[1] :]


def carry_over(logits: Tensor, canvas: Tensor, mask: int) -> Tensor:
    """Logits that are certain of the token at visible positions of ``canvas`` (B, L) (Sahoo et al. 2024)."""
    visible = canvas != mask
    certain = torch.full_like(logits, -torch.inf).scatter(-1, canvas.unsqueeze(-1), 0.0)
    return torch.where(visible.unsqueeze(-1), certain, logits)
