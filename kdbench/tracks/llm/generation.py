"""Batched decoding with a key-value cache, greedy or sampled; written for networks whose forward takes milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from kdbench.losses.tokens import IGNORE
from kdbench.tracks.llm.data.encoding import TextBatch
from kdbench.tracks.llm.networks.models import body_and_head


@dataclass
class Prompts:
    """Prompts as rows of ids, the start token included."""

    ids: list[list[int]]
    index: Tensor
    """(B,) int64: row of the split that each prompt comes from."""
    split: str = "train"

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Responses:
    """What a model wrote after each prompt."""

    tokens: list[list[int]]
    """Response ids, the end token included where the model gave one."""
    logprobs: list[list[float]]
    """Log-probability of each token under the model at temperature 1, before any truncation."""

    @property
    def generated(self) -> int:
        """Tokens in all."""
        return sum(len(row) for row in self.tokens)


def left_pad(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids (B, P) padded on the left, and their mask (B, P) int64."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def filter_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set logits (B, V) to -inf outside the ``top_k`` largest and outside the smallest set of probability ``top_p``.

    The most probable token always stays. ``top_k`` 0 and ``top_p`` 1 change nothing.
    """
    if 0 < top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        outside = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= top_p)
        outside.scatter_(-1, order[:, :1], False)
        logits = logits.masked_fill(outside, -torch.inf)
    return logits


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    eos: int,
    pad: int,
    max_new: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    generator: torch.Generator | None = None,
) -> Responses:
    """Continue each prompt by up to ``max_new`` tokens or to ``eos``. ``temperature`` 0 is greedy.

    The model is in eval mode meanwhile. Rows that have ended leave the batch once half of it has ended. Sampling draws
    from ``generator`` (on the CPU) for every row and step, so that results do not depend on the device.
    """
    if temperature > 0 and generator is None:
        raise ValueError("sampling needs a generator")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        ids, mask = (tensor.to(device) for tensor in left_pad(prompts, pad))
        rows = torch.arange(len(prompts), device=device)
        alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
        tokens = torch.full((len(prompts), max_new), pad, device=device)
        logprobs = torch.zeros(len(prompts), max_new, device=device)
        lengths = torch.zeros(len(prompts), dtype=torch.int64, device=device)
        step_logits = stepper(model, ids, mask)
        logits = step_logits.logits
        for step in range(max_new):
            if temperature > 0:
                chosen_from = filter_logits(logits / temperature, top_k, top_p)
                noise = torch.rand(len(prompts), 1, generator=generator).to(device)[rows]
                cumulative = chosen_from.double().softmax(dim=-1).cumsum(dim=-1)
                token = torch.searchsorted(cumulative, noise.double() * cumulative[:, -1:], right=True).squeeze(1)
                token = token.clamp_(max=logits.shape[-1] - 1)
            else:
                token = logits.argmax(dim=-1)
            kept = rows[alive]
            tokens[kept, step] = token[alive]
            logprobs[kept, step] = logits.log_softmax(dim=-1).gather(-1, token[:, None]).squeeze(1)[alive]
            lengths[kept] += 1
            alive = alive & (token != eos)
            left = int(alive.sum())
            if left == 0 or step == max_new - 1:
                break
            if left <= len(rows) // 2:
                step_logits.keep(alive)
                rows, token, alive = rows[alive], token[alive], alive[alive]
            logits = step_logits(token)
    finally:
        model.train(was_training)
    counts = lengths.tolist()
    return Responses(
        [row[:n] for row, n in zip(tokens.tolist(), counts, strict=True)],
        [row[:n] for row, n in zip(logprobs.tolist(), counts, strict=True)],
    )


class Stepper(Protocol):
    """What a model remembers of its prompts and of the tokens so far."""

    logits: Tensor
    """(B, V) float32: of the first new token."""

    def __call__(self, token: Tensor) -> Tensor:
        """Logits (B, V) float32 after one more token (B,) per row."""

    def keep(self, which: Tensor) -> None:
        """Go on with the rows of a mask (B,) only."""


def stepper(model: nn.Module, ids: Tensor, mask: Tensor) -> Stepper:
    """Read prompts (B, P), padded on the left as ``mask`` (B, P) says, to continue them token by token.

    A model that continues prompts in its own way (an encoder-decoder) has a method ``stepper(ids, mask)``.
    """
    own = getattr(model, "stepper", None)
    return CausalStepper(model, ids, mask) if own is None else own(ids, mask)


class CausalStepper:
    """One forward per new token, with what the model remembers of the earlier ones."""

    def __init__(self, model: nn.Module, ids: Tensor, mask: Tensor) -> None:
        self.model = model
        self.parts = body_and_head(model)
        self.mask = mask
        self.cache: Any = DynamicCache(config=model.config)
        self.positions = (mask.cumsum(dim=-1) - 1).clamp_(min=0)
        self.logits = self._forward(ids, self.positions)
        self.positions = self.positions[:, -1:]

    def __call__(self, token: Tensor) -> Tensor:
        """Logits (B, V) float32 after one more token (B,) per row."""
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=-1)
        self.positions = self.positions + 1
        return self._forward(token[:, None], self.positions)

    def keep(self, which: Tensor) -> None:
        """Go on with the rows of a mask only."""
        self.cache.batch_select_indices(which.nonzero().squeeze(1))
        self.mask, self.positions = self.mask[which], self.positions[which]

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        inputs = {
            "input_ids": ids,
            "attention_mask": self.mask,
            "position_ids": positions,
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if self.parts is None:
            return self.model(**inputs, logits_to_keep=1).logits[:, -1].float()
        body, head = self.parts
        return head(body(**inputs).last_hidden_state[:, -1]).float()


def as_batch(prompts: Prompts, responses: Responses, pad: int) -> TextBatch:
    """Prompts and responses as rows padded on the right, of which the response is scored; ``index`` is -1."""
    full = [[*prompt, *response] for prompt, response in zip(prompts.ids, responses.tokens, strict=True)]
    width = max(len(row) for row in full)
    ids = torch.full((len(full), width), pad)
    mask = torch.zeros(len(full), width, dtype=torch.int64)
    labels = torch.full((len(full), width), IGNORE)
    logprobs = torch.zeros(len(full), width)
    for i, (row, prompt) in enumerate(zip(full, prompts.ids, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
        labels[i, len(prompt) : len(row)] = torch.tensor(row[len(prompt) :])
        logprobs[i, len(prompt) : len(row)] = torch.tensor(responses.logprobs[i])
    index = torch.full((len(full),), -1)
    return TextBatch(ids, mask, labels, index, prompts.split, logprobs)
