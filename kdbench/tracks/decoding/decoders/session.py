"""A causal language model that reads several rows in step, each at a place of its own, and can take tokens back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from kdbench.tracks.decoding.data.pictures import pictures_of
from kdbench.tracks.llm.generation import left_pad
from kdbench.tracks.llm.networks.models import body_and_head

SPARE = 32
"""Slots of forgotten tokens that a cache may carry, beyond a quarter of its longest row, before it is compacted."""


@dataclass
class Counter:
    """What a model has been asked."""

    forwards: int = 0
    """Batched forwards, without those of the prefill."""
    tokens: int = 0
    """Tokens in those forwards, over all rows."""
    prefill_tokens: int = 0
    seconds: float = 0.0
    """Wall time of the forwards, without those of the prefill."""


@dataclass
class Prefix:
    """What a session has read before it decodes; P columns, the rows padded on the left."""

    ids: Tensor
    """(B, P) int64."""
    present: Tensor
    """(B, P) bool, False for padding."""
    embeddings: Tensor | None
    """(B, P, D) where tokens and pictures were embedded together."""
    states: Tensor
    """(B, P, D) last hidden states, those that the output layer reads."""


class Session:
    """The key-value cache of a causal model over B rows, exact whatever is taken back.

    A forward adds one slot per row and column. A slot is seen by later tokens of its row as long as it is kept, so rows
    may keep different numbers of tokens: what is not kept is masked, cut off where it is the end of every row, and
    cleared away when too much of it has piled up. Positions are those of the kept tokens.
    """

    def __init__(self, model: nn.Module, counter: Counter | None = None) -> None:
        self.model, self.parts = model, body_and_head(model)
        self.counter = counter if counter is not None else Counter()
        self.cache: Any = DynamicCache(config=model.config)
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.seen = torch.zeros(0, 0, dtype=torch.bool, device=self.device)
        """(B, S): slots that later tokens see."""
        self.lengths = torch.zeros(0, dtype=torch.int64, device=self.device)
        """(B,) kept tokens of each row."""
        self._added = 0
        self._before = self.lengths

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Sequence[int]], pad: int) -> Prefix | None:
        """Begin with these rows; counted apart from the forwards. None where all of them are empty.

        A model with a method ``embed(ids, pictures)`` reads the pictures of the prompts as well.
        """
        self._begin(len(prompts))
        if not any(prompts):
            return None
        ids, mask = (tensor.to(self.device) for tensor in left_pad(prompts, pad))
        embed = getattr(self.model, "embed", None)
        inputs = {"input_ids": ids} if embed is None else {"inputs_embeds": embed(ids, pictures_of(prompts))}
        present = mask.bool()
        self.counter.prefill_tokens += int(mask.sum())
        _, states = self._read(inputs, present, None, None, logits=False)
        return Prefix(ids, present, inputs.get("inputs_embeds"), states)

    @torch.no_grad()
    def prefill_embeddings(
        self, embeddings: Tensor, present: Tensor, positions: Tensor | None = None, visible: Tensor | None = None
    ) -> None:
        """As :meth:`prefill`, of embeddings (B, P, D) in place of tokens; ``present`` and the rest as of a forward."""
        self._begin(len(embeddings))
        self.counter.prefill_tokens += int(present.sum())
        self._read({"inputs_embeds": embeddings}, present, positions, visible, logits=False)

    @torch.no_grad()
    def forward(
        self,
        ids: Tensor,
        *,
        present: Tensor | None = None,
        positions: Tensor | None = None,
        visible: Tensor | None = None,
        hidden: bool = False,
    ) -> Any:
        """Logits (B, n, V) float32 after each of n more tokens per row, which are kept for now.

        ``ids`` (B, n) are tokens, or (B, n, D) floating embeddings of such.

        ``present`` (B, n) is False for columns that are padding, which are never seen. ``positions`` (B, n) go on from
        each row's length unless given. ``visible`` (B, n, n) says which new tokens [q, k] each new token sees, itself
        among them; default: those before it. Kept tokens of earlier forwards are always seen, unless ``visible`` has
        more columns (B, n, m): it then speaks of the last m slots, the new ones at the end. ``hidden`` also gives the
        last hidden states (B, n, D), those that the output layer reads.
        """
        started = time.perf_counter()
        if present is None:
            present = torch.ones(ids.shape[:2], dtype=torch.bool, device=self.device)
        inputs = {"inputs_embeds" if ids.is_floating_point() else "input_ids": ids}
        output, states = self._read(inputs, present, positions, visible, logits=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.counter.forwards += 1
        self.counter.tokens += int(present.sum())
        self.counter.seconds += time.perf_counter() - started
        return (output, states) if hidden else output

    def keep(self, kept: Tensor) -> None:
        """Of the tokens of the last forward, those that ``kept`` (B, n) selects stay; the others are forgotten."""
        if self._added != kept.shape[1]:
            raise ValueError(f"the last forward had {self._added} columns, not {kept.shape[1]}")
        start = self.seen.shape[1] - self._added
        self.seen[:, start:] &= kept
        self.lengths = self._before + self.seen[:, start:].sum(dim=1)
        self._added = 0
        self._tidy()

    def trim(self, lengths: Tensor) -> None:
        """Of each row the first ``lengths`` (B,) kept tokens stay; those after them are forgotten."""
        self.seen &= self.seen.cumsum(dim=1) <= lengths[:, None]
        self.lengths = torch.minimum(self.lengths, lengths)
        self._added = 0
        self._tidy()

    def select(self, rows: Tensor) -> None:
        """Go on with the chosen ``rows`` (B',) int64, of which one may be chosen several times."""
        self.cache.batch_select_indices(rows)
        self.seen, self.lengths, self._before = self.seen[rows], self.lengths[rows], self._before[rows]

    # --- inside -------------------------------------------------------------------------------------------------------

    def _begin(self, rows: int) -> None:
        self.cache = DynamicCache(config=self.model.config)
        self.seen = torch.zeros(rows, 0, dtype=torch.bool, device=self.device)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=self.device)

    def _read(
        self,
        inputs: dict[str, Tensor],
        present: Tensor,
        positions: Tensor | None,
        visible: Tensor | None,
        *,
        logits: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        rows, columns = present.shape
        if positions is None:
            positions = self.lengths[:, None] + (present.cumsum(dim=1) - 1).clamp_(min=0)
        if visible is None:
            visible = torch.ones(columns, columns, dtype=torch.bool, device=self.device).tril().expand(rows, -1, -1)
        earlier = self.seen.shape[1] + columns - visible.shape[2]
        among = visible & torch.cat([self.seen[:, earlier:], present], dim=1)[:, None, :]
        # padding sees itself: no row is without a key
        among[:, :, -columns:] |= torch.eye(columns, dtype=torch.bool, device=self.device)
        mask = torch.cat([self.seen[:, None, :earlier].expand(-1, columns, -1), among], dim=2)[:, None]
        # a mask of numbers, which every implementation of attention takes
        added = torch.zeros_like(mask, dtype=self.dtype).masked_fill_(~mask, torch.finfo(self.dtype).min)
        arguments = {
            **inputs,
            "attention_mask": added,
            "position_ids": positions,
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if self.parts is None:
            output = self.model(**arguments, output_hidden_states=True)
            states, scores = output.hidden_states[-1], output.logits.float()
        else:
            body, head = self.parts
            states = body(**arguments).last_hidden_state
            scores = head(states).float() if logits else None
        self.seen = torch.cat([self.seen, present], dim=1)
        self._before, self._added = self.lengths, columns
        self.lengths = self.lengths + present.sum(dim=1)
        return scores, states

    def _tidy(self) -> None:
        used = self.seen.any(dim=0)
        slots = used.shape[0]
        end = int(used.nonzero()[-1]) + 1 if bool(used.any()) else 0
        if end < slots:
            self.cache.crop(end - slots)
            self.seen = self.seen[:, :end]
        longest = int(self.lengths.max()) if len(self.lengths) else 0
        if end > longest + longest // 4 + SPARE:
            # kept slots first and in order, then as many others as the longest row needs
            order = self.seen.logical_not().to(torch.int8).argsort(dim=1, stable=True)[:, :longest]
            for layer in self.cache.layers:
                index = order[:, None, :, None].expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3])
                layer.keys, layer.values = layer.keys.gather(2, index), layer.values.gather(2, index)
            self.seen = self.seen.gather(1, order)
