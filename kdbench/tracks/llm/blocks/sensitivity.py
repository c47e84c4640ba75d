"""What a language model's answer depends on: gradients in the embeddings of its input, surprise, and attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdbench.losses.tokens import IGNORE, next_token_nll
from kdbench.tracks.llm.data.encoding import TextBatch
from kdbench.tracks.llm.networks.models import scored_logits, targets_of, token_nll


def input_grad_norms(model: nn.Module, batch: TextBatch) -> Tensor:
    """(B, L) float32: how much the loss of each row's answer depends on each of its tokens.

    The L2 norm of the gradient of the summed next-token NLL of the row's scored tokens in the embedding of the token;
    0 for padding and for tokens that come too late to matter. Weights get no gradient; the mode of ``model`` stays.
    """
    embeds = model.get_input_embeddings()(batch.input_ids).detach().requires_grad_()
    with torch.enable_grad():
        loss = token_nll(scored_logits(model, batch, embeds), targets_of(batch)).sum()
        (gradient,) = torch.autograd.grad(loss, embeds)
    return gradient.float().norm(dim=-1)


@torch.no_grad()
def surprise(model: nn.Module, batch: TextBatch) -> Tensor:
    """(B, L) float32: NLL in nats of each token after those before it; 0 for the first one and for padding."""
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, IGNORE)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return nn.functional.pad(next_token_nll(logits, labels), (1, 0))


@torch.no_grad()
def attention_mass(model: nn.Module, batch: TextBatch, where: Tensor) -> Tensor:
    """(B,) in [0, 1]: share of attention on the tokens ``where`` (B, L) bool of those that predict scored tokens.

    Mean over layers, heads and these positions. The implementation of attention that gives weights (``eager``) is used
    for this forward alone.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
        layers = model(**inputs, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(before)
    on = sum((layer.float().mean(1) * where[:, None, :]).sum(-1) for layer in layers) / len(layers)
    scored = batch.scored.float()
    mass: Tensor = (on[:, :-1] * scored).sum(1) / scored.sum(1).clamp(min=1)
    return mass
