"""Some of the positions at which student and teacher are compared."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor, nn

from kdbench.tracks.llm.batches import TokenLogits
from kdbench.tracks.llm.task import LLMTask


def chosen(tokens: TokenLogits, rows: Tensor | slice) -> TokenLogits:
    """The positions ``rows`` of ``tokens``."""
    values = {field.name: getattr(tokens, field.name) for field in fields(tokens)}
    return TokenLogits(**{name: None if value is None else value[rows] for name, value in values.items()})


@torch.no_grad()
def sample_positions(
    task: LLMTask, model: nn.Module, split: str, count: int, generator: torch.Generator
) -> TokenLogits:
    """About ``count`` positions of a split (classification: rows), evenly from its batches and in random order."""
    model.eval()
    batches = list(task.split(split).sequences.batches(task.spec.evaluation.batch_size, split))
    parts = []
    for batch in batches:
        tokens = task.tokens(model, batch.to(task.device))
        drawn = torch.randperm(len(tokens.student), generator=generator)[: -(-count // len(batches))]
        parts.append(chosen(tokens, drawn.to(task.device)))
    names = [field.name for field in fields(TokenLogits) if getattr(parts[0], field.name) is not None]
    whole = TokenLogits(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})
    return chosen(whole, torch.randperm(len(whole.student), generator=generator).to(task.device))
