"""The objective of masked diffusion, and means over masked positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.tracks.dllm.batches import Batch
from kdbench.tracks.dllm.blocks.masking import antithetic, canvas_of, mask_random
from kdbench.tracks.dllm.networks.base import canvas_logits


def ce_at(logits: Tensor, answer: Tensor, mask: Tensor) -> Tensor:
    """(B, L) float32 cross-entropy in nats of logits (B, L, V) where ``mask`` (B, L) is true, 0 elsewhere."""
    values = torch.zeros(answer.shape, device=logits.device)
    values[mask] = F.cross_entropy(logits[mask].float(), answer[mask], reduction="none")
    return values


def mean_at(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` (B, L) over the positions of ``mask``, all rows together; 0 where there is none."""
    return (values * mask).sum() / mask.sum().clamp_min(1)


def mdm_loss(net: nn.Module, batch: Batch, generator: torch.Generator, *, mask_id: int, t_min: float = 0.02) -> Tensor:
    """The bound of masked diffusion in nats per token (Sahoo et al. 2024; Nie et al. 2025, LLaDA).

    With t uniform in [t_min, 1) and each token of the response masked with probability t,

        L = mean over rows of 1 / (t L) times the sum over masked positions of -log p(y_i | prompt, y_visible).

    Prompts are never masked. ``t_min`` keeps 1 / t finite.
    """
    t = antithetic(len(batch), t_min, 1.0, generator)
    mask = mask_random(batch.answer, t, generator)
    logits = canvas_logits(net, batch.prompts, canvas_of(batch.answer, mask, mask_id))
    sums = ce_at(logits, batch.answer, mask).sum(dim=1)
    return (sums / t.to(sums.device)).mean() / batch.length


def causal_loss(net: nn.Module, batch: Batch) -> Tensor:
    """Mean next-token cross-entropy of the response, of a network that reads from left to right."""
    prompt = batch.prompts.ids.shape[1]
    ids = torch.cat([batch.prompts.ids, batch.answer], dim=1)
    there = torch.cat([batch.prompts.present, torch.ones_like(batch.answer, dtype=torch.bool)], dim=1)
    logits = net(ids, there)[:, prompt - 1 : -1]
    return F.cross_entropy(logits.flatten(0, 1).float(), batch.answer.flatten())
