"""Rows of prompt and response as an encoder-decoder reads them: a source, and a target that is aligned with logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdbench.tracks.llm.data.encoding import TextBatch


@dataclass
class SourceTarget:
    """B rows cut at their first scored token; position j of the target is what logits at position j predict."""

    source: Tensor
    """(B, E) int64, padded on the left: everything before the first scored token, the start token included."""
    source_mask: Tensor
    """(B, E) int64, 1 for tokens."""
    target: Tensor
    """(B, D) int64, padded on the right: the first scored token and all that follows it."""
    target_mask: Tensor
    """(B, D) int64, 1 for tokens."""
    scored: Tensor
    """(B, D) bool: which tokens of the target are scored; row-major in the order of ``models.targets_of``."""

    def decoder_inputs(self, start: int) -> Tensor:
        """(B, D) int64: the target behind ``start``, without its last token."""
        return torch.cat([torch.full_like(self.target[:, :1], start), self.target[:, :-1]], dim=1)


def split_rows(batch: TextBatch) -> SourceTarget:
    """Cut every row at its first scored token; rows without one are all source."""
    scored, lengths = batch.scored, batch.attention_mask.sum(dim=1)
    width = batch.input_ids.shape[1]
    starts = torch.where(scored.any(dim=1), scored.int().argmax(dim=1) + 1, lengths)
    before, after = int(starts.max()), max(1, int((lengths - starts).max()))
    device = batch.input_ids.device
    left = torch.arange(before, device=device) - (before - starts)[:, None]
    right = torch.arange(after, device=device) + starts[:, None]
    within, source_mask = right.clamp(max=width - 1), left >= 0
    target_mask = right < lengths[:, None]
    source = batch.input_ids.gather(1, left.clamp(min=0))
    return SourceTarget(
        source,
        source_mask.long(),
        batch.input_ids.gather(1, within),
        target_mask.long(),
        target_mask & scored.gather(1, (within - 1).clamp(max=width - 2)),
    )


@torch.no_grad()
def causal_logits(model: nn.Module, pairs: SourceTarget) -> Tensor:
    """(N, V) float32 logits of a decoder-only model on the scored tokens of the target.

    The model reads the source, padded on the left to E tokens in every row, and the target behind it: its logits at
    E - 1 + j predict token j of the target, for all rows alike (Elfeki et al. 2025, section on distillation).
    """
    ids = torch.cat([pairs.source, pairs.target[:, :-1]], dim=1)
    mask = torch.cat([pairs.source_mask, pairs.target_mask[:, :-1]], dim=1)
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
        use_cache=False,
        logits_to_keep=pairs.target.shape[1],
    ).logits
    return logits[pairs.scored].float()
