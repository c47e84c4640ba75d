"""Extremely greedy decoding against a known text: how few forwards a network needs if it knew where it is right.

Each forward, every position of the block whose prediction is what the reference has there is committed, and no other.
Where no prediction is right none can become so, as nothing changes: the rest of the block is copied from the reference
(Bao et al. 2025, Learning to Parallel, who find it out by one more forward). The reference is what the network itself
writes one token at a time, so that this is a bound on lossless parallel decoding with it: never more forwards than
that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdbench.tracks.dllm.batches import Prompts
from kdbench.tracks.dllm.decoding import State, Stop, Written, look


@dataclass
class Rows:
    """What was seen of each block at each forward."""

    confidence: Tensor
    """(R, block) float32: probability of the prediction at every position of the block, committed ones included."""
    correct: Tensor
    """(R, block) bool: whether the prediction is what the reference has there."""
    masked: Tensor
    """(R, block) bool: whether the position was still masked."""
    prompt: Tensor
    """(R,) int64: row of the prompt."""


@torch.no_grad()
def oracle_decode(
    net: nn.Module,
    prompts: Prompts,
    reference: Tensor,
    *,
    length: int,
    block: int,
    stop: Stop = "never",
    double: bool = False,
    cached: bool = False,
    log: bool = False,
) -> tuple[Written, Rows | None]:
    """Write ``reference`` (N, L) with as few forwards as the predictions allow; with ``log`` all that was seen.

    ``extra`` of the result counts ``copied`` positions, which no prediction has ever hit.
    """
    was_training = net.training
    net.eval()
    state = State(net, prompts, length=length, block=block, stop=stop, double=double, cached=cached)
    copied = torch.zeros(len(prompts), dtype=torch.int64, device=prompts.ids.device)
    seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    rows = state.alive()
    while len(rows):
        view = look(state, rows)
        right = view.x0 == reference[rows]
        commit = right & view.candidates
        if log:
            places = view.start[:, None] + torch.arange(block, device=rows.device)
            said = view.probs.gather(-1, view.x0.unsqueeze(-1)).squeeze(-1)
            parts = (said.float(), right, view.candidates)
            seen.append((*(part.gather(1, places) for part in parts), rows))  # type: ignore[arg-type]
        filled = view.candidates & ~commit.any(dim=1, keepdim=True)
        copied[rows] += filled.sum(dim=1)
        state.commit(rows, commit | filled, reference[rows], view.conf)
        rows = state.alive()
    net.train(was_training)
    written = state.finished({"copied": copied})
    if not log:
        return written, None
    confidence, correct, masked, prompt = (torch.cat(parts) for parts in zip(*seen, strict=True))
    return written, Rows(confidence, correct, masked, prompt)
