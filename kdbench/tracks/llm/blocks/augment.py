"""Changed texts to learn from: tokens hidden, replaced, swapped and deleted, and texts mixed in their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.tracks.llm.data.encoding import TextBatch
from kdbench.tracks.llm.networks.tokenizers import pad_id
from kdbench.training.mixing import shares

Augmentation = Literal["none", "tokens", "order", "mixup"]


def hide_or_replace(batch: TextBatch, rate: float, words: Sequence[int], rng: np.random.Generator) -> TextBatch:
    """Each token but the first is hit with probability ``rate``; half of these become others, drawn from ``words``.

    The other half is masked: nobody attends to it, so that no token has to stand for the mask.
    """
    shape = tuple(batch.input_ids.shape)
    hit = torch.from_numpy(rng.random(shape) < rate).to(batch.input_ids.device) & (batch.attention_mask > 0)
    hit[:, 0] = False
    hidden = torch.from_numpy(rng.random(shape) < 0.5).to(hit.device)
    drawn = torch.from_numpy(rng.choice(np.asarray(words), shape)).to(hit.device)
    return replace(
        batch,
        input_ids=torch.where(hit & ~hidden, drawn, batch.input_ids),
        attention_mask=batch.attention_mask.masked_fill(hit & hidden, 0),
        index=torch.full_like(batch.index, -1),
    )


def swap_or_delete(batch: TextBatch, rate: float, pad: int, rng: np.random.Generator) -> TextBatch:
    """Half of the rows have ``rate`` times their length of pairs swapped, the others each token deleted at that rate.

    As in EDA (Wei and Zou, EMNLP 2019), at least one pair and never all tokens. The first token stays.
    """
    ids, mask = batch.input_ids.cpu().clone(), torch.zeros_like(batch.attention_mask, device="cpu")
    for row, length in enumerate(batch.attention_mask.sum(dim=1).tolist()):
        tokens = ids[row, 1:length].numpy().copy()
        if len(tokens) and rng.random() < 0.5:
            for _ in range(max(1, round(rate * len(tokens)))):
                one, two = rng.integers(len(tokens), size=2)
                tokens[[one, two]] = tokens[[two, one]]
        elif len(tokens):
            stays = rng.random(len(tokens)) >= rate
            stays[rng.integers(len(tokens))] = True
            tokens = tokens[stays]
        ids[row, 1:] = pad
        ids[row, 1 : 1 + len(tokens)] = torch.from_numpy(tokens)
        mask[row, : 1 + len(tokens)] = 1
    device = batch.input_ids.device
    index = torch.full_like(batch.index, -1)
    return replace(batch, input_ids=ids.to(device), attention_mask=mask.to(device), index=index)


@dataclass
class View:
    """A batch as networks read it: as it is, or each row's embeddings mixed with those of another row."""

    batch: TextBatch
    partner: Tensor | None = None
    """(B,) int64 rows that each row is mixed with."""
    share: Tensor | None = None
    """(B,) float32 weight of the row itself, in [0, 1]."""

    @property
    def mask(self) -> Tensor:
        """(B, L) 1 where a network reads something: a token of either row."""
        mask = self.batch.attention_mask
        if self.partner is None or self.share is None:
            return mask
        return torch.where(self.share[:, None] < 1, torch.maximum(mask, mask[self.partner]), mask)

    def read(self, model: nn.Module) -> Any:
        """Outputs of a network with its hidden states. Each network mixes in its own embeddings."""
        if self.partner is None or self.share is None:
            inputs = {"input_ids": self.batch.input_ids}
        else:
            embedded = model.get_input_embeddings()(self.batch.input_ids)  # type: ignore[operator]
            inputs = {"inputs_embeds": embedded.lerp(embedded[self.partner], 1 - self.share[:, None, None])}
        return model(**inputs, attention_mask=self.mask, output_hidden_states=True)

    def label_loss(self, nll: Any) -> Tensor:
        """Mean over rows of ``nll(labels)`` (B,), mixed like the texts."""
        values: Tensor = nll(self.batch.labels)
        if self.partner is not None and self.share is not None:
            values = self.share * values + (1 - self.share) * nll(self.batch.labels[self.partner])
        return values.mean()


class Augmenter:
    """Batches changed at random; ``share`` of the rows of each, the others stay as they are."""

    def __init__(
        self,
        kind: Augmentation,
        tokenizer: Any,
        rng: np.random.Generator,
        *,
        rate: float = 0.1,
        share: float = 0.5,
        alpha: float = 0.4,
    ) -> None:
        """``rate`` of the tokens of a row; ``alpha`` of the Beta distribution that mixing shares are drawn from."""
        self.kind, self.rng, self.rate, self.share, self.alpha = kind, rng, rate, share, alpha
        self.pad = pad_id(tokenizer)
        special = set(tokenizer.all_special_ids)
        self.words = [token for token in range(len(tokenizer)) if token not in special]

    def __call__(self, batch: TextBatch) -> View:
        """The view that both networks get."""
        if self.kind == "none":
            return View(batch)
        chosen = torch.from_numpy(self.rng.random(len(batch)) < self.share).to(batch.input_ids.device)
        if self.kind == "mixup":
            partner = torch.from_numpy(self.rng.permutation(len(batch))).to(chosen.device)
            share = shares(len(batch), self.alpha, self.rng).to(chosen.device)
            return View(batch, partner, torch.where(chosen, share, torch.ones_like(share)))
        if self.kind == "tokens":
            changed = hide_or_replace(batch, self.rate, self.words, self.rng)
        else:
            changed = swap_or_delete(batch, self.rate, self.pad, self.rng)
        pick = chosen[:, None]
        return View(
            replace(
                batch,
                input_ids=torch.where(pick, changed.input_ids, batch.input_ids),
                attention_mask=torch.where(pick, changed.attention_mask, batch.attention_mask),
                index=torch.where(chosen, changed.index, batch.index),
            )
        )


def pooled(states: Sequence[Tensor], mask: Tensor, how: Literal["mean", "first"] = "mean") -> list[Tensor]:
    """Hidden states (B, L, D) of all layers to one vector per row (B, D): mean over the tokens read, or the first."""
    if how == "first":
        return [state[:, 0] for state in states]
    weights = mask.float() / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return [torch.einsum("bld,bl->bd", state.float(), weights) for state in states]
