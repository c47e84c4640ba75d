"""Some of the positions at which student and teacher are compared."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor, nn

from kdbench.tracks.llm.batches import TokenLogits
from kdbench.tracks.llm.task import LLMTask


def chosen(tokens: TokenLogits, rows: Tensor | slice) -> TokenLogits:
    """The positions ``rows`` of ``tokens``."""
    return _made_of({name: value[rows] for name, value in _tensors(tokens).items()})


def _tensors(tokens: TokenLogits) -> dict[str, Tensor]:
    """All that there is of ``tokens``, the NLL made: what makes it would keep the logits of every position."""
    values = {field.name: getattr(tokens, field.name) for field in fields(tokens) if field.name != "nll_of"}
    return {name: value for name, value in (values | {"nll": tokens.nll}).items() if value is not None}


def _made_of(tensors: dict[str, Tensor]) -> TokenLogits:
    nll = tensors.pop("nll")
    return TokenLogits(nll_of=lambda: nll, **tensors)


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
    found = [_tensors(part) for part in parts]
    whole = _made_of({name: torch.cat([each[name] for each in found]) for name in found[0]})
    return chosen(whole, torch.randperm(len(whole.student), generator=generator).to(task.device))
