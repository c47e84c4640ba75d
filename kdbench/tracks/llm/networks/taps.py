"""What a transformer has after each of its layers, with its logits, in one forward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdbench.errors import JobError
from kdbench.tracks.llm.data.encoding import TextBatch


@dataclass
class Taps:
    """One forward of a transformer on a batch of B rows and L tokens."""

    layers: tuple[Tensor, ...]
    """(B, L, D) each: after every layer, the first one first; of causal models the last one is normalised."""
    logits: Tensor
    """(N, V) at the scored positions; classification: (B, C)."""
    scored: Tensor
    """(B, L) bool: the positions of ``logits``; classification: the tokens that are no padding."""

    def at(self, layers: slice = slice(None)) -> tuple[Tensor, ...]:
        """(N, D) of each of the chosen layers, at the scored positions, row-major."""
        return tuple(layer[self.scored] for layer in self.layers[layers])


def hidden_taps(model: nn.Module, batch: TextBatch) -> Taps:
    """Layers and logits of a causal model or a classifier; gradients as the model has them.

    A teacher's forward is metered as any other. Raises ``JobError`` for models that show no hidden states.
    """
    output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
    states = getattr(output, "hidden_states", None)
    if states is None:
        raise JobError(f"a {type(model).__name__} does not show its hidden states")
    layers = tuple(states[1:])  # the first are the embeddings
    if batch.labels.dim() == 1:
        return Taps(layers, output.logits, batch.attention_mask.bool())
    scored = nn.functional.pad(batch.scored, (0, 1))
    return Taps(layers, output.logits[scored], scored)


@torch.no_grad()
def ready(model: nn.Module) -> nn.Module:
    """The model, with the hooks that transformers otherwise puts into it at its first :func:`hidden_taps`.

    Called before ``task.fit``, which writes no checkpoints of networks that change in other ways than by training.
    """
    mode, one = model.training, torch.ones(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
    model.eval().base_model(input_ids=one, attention_mask=one, output_hidden_states=True)
    return model.train(mode)
