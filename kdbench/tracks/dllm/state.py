"""Texts that are being written: what is masked, what has been forwarded, and what was written in the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdbench.errors import JobError
from kdbench.tracks.dllm.batches import Prompts
from kdbench.tracks.dllm.networks.base import canvas_logits
from kdbench.tracks.dllm.networks.transformer import Memory, Transformer, doubled

Stop = Literal["never", "eos", "truncate"]


@dataclass
class Written:
    """What was written after each of N prompts, and what it has cost."""

    tokens: Tensor
    """(N, L) int64: canvases without masks."""
    forwards: Tensor
    """(N,) int64: forwards in which the row took part (NFE); a batch of drafts is one."""
    sequences: Tensor
    """(N,) int64: forwarded sequences, each draft counted."""
    forwarded: Tensor
    """(N,) int64: forwarded tokens, the prompt's included and each draft counted."""
    steps: Tensor
    """(N, L) int64: forward (from 0) at which a position was committed; -1: never, it was filled with ends."""
    confidence: Tensor
    """(N, L) float32: confidence at the commit, nan where there was none."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    """Further counts (N,) by name."""

    def __len__(self) -> int:
        return len(self.tokens)

    def lengths(self, eos: int) -> Tensor:
        """(N,) int64: tokens up to and with the first end."""
        ended = self.tokens == eos
        first = ended.int().argmax(dim=1) + 1
        return torch.where(ended.any(dim=1), first, self.tokens.shape[1])

    def to(self, device: torch.device | str) -> Written:
        parts = {name: value.to(device) for name, value in vars(self).items() if name != "extra"}
        return Written(**parts, extra={name: value.to(device) for name, value in self.extra.items()})

    def save(self, folder: Path) -> None:
        """Write everything but ``extra``."""
        tensors = {name: value.cpu().contiguous() for name, value in vars(self).items() if name != "extra"}
        save_file(tensors, folder / "decoded.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Written:
        return cls(**load_file(folder / "decoded.safetensors"))


def joined(parts: list[Written]) -> Written:
    """The rows of several, in order."""
    names = [name for name in vars(parts[0]) if name != "extra"]
    extra = {name: torch.cat([part.extra[name] for part in parts]) for name in parts[0].extra}
    return Written(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names}, extra=extra)


class State:
    """Canvases that are being written: which positions are masked, which block is next, and all counts."""

    def __init__(
        self,
        net: nn.Module,
        prompts: Prompts,
        *,
        length: int,
        block: int,
        stop: Stop = "never",
        cached: bool = False,
        double: bool = False,
    ) -> None:
        """``double``: networks of the track compute in float64. Raises ``JobError`` for a cache that there is not."""
        if length % block:
            raise ValueError(f"length {length} is not a multiple of block {block}")
        if cached and not getattr(net, "cacheable", False):
            raise JobError(f"a {type(net).__name__} keeps no keys and values: leave out `cached`")
        self.source, self.prompts, self.stop, self.cached = net, prompts, stop, cached
        self.net: Any = doubled(net) if double and isinstance(net, Transformer) else net
        self.length, self.block = length, block
        self.mask, self.eos = int(self.net.mask), int(self.net.eos)
        rows, device = len(prompts), prompts.ids.device
        self.tokens = torch.full((rows, length), self.mask, dtype=torch.int64, device=device)
        self.present = torch.ones(rows, length, dtype=torch.bool, device=device)
        self.steps = torch.full((rows, length), -1, dtype=torch.int64, device=device)
        self.confidence = torch.full((rows, length), torch.nan, device=device)
        zeros = torch.zeros(rows, dtype=torch.int64, device=device)
        self.forwards, self.sequences, self.forwarded = zeros, zeros.clone(), zeros.clone()
        self.block_steps = zeros.clone()
        self._memory: Memory | None = None
        self._held = torch.full((rows,), -1, dtype=torch.int64, device=device)  # block that the memory of a row is of

    # --- what is left -------------------------------------------------------------------------------------------------

    @property
    def masked(self) -> Tensor:
        """(N, L) bool."""
        return (self.tokens == self.mask) & self.present

    def alive(self) -> Tensor:
        """(n,) int64: rows that have masks left."""
        return self.masked.any(dim=1).nonzero().flatten()

    def start(self, rows: Tensor) -> Tensor:
        """(n,) int64: first position of the current block of rows that have masks left."""
        return self.masked[rows].int().argmax(dim=1) // self.block * self.block

    def candidates(self, rows: Tensor, canvas: Tensor | None = None) -> Tensor:
        """(n, L) bool: masked positions of the current block, of the rows or of other canvases for them."""
        masked = self.masked[rows] if canvas is None else (canvas == self.mask) & self.present[rows]
        start = masked.int().argmax(dim=1, keepdim=True) // self.block * self.block
        place = torch.arange(self.length, device=masked.device)
        return masked & (place >= start) & (place < start + self.block)

    # --- forwards -----------------------------------------------------------------------------------------------------

    def logits(self, rows: Tensor, canvas: Tensor | None = None) -> Tensor:
        """Logits (n, L, V) of rows, or of other canvases (n, L) for them; repeated rows are drafts of one forward."""
        read = self.tokens[rows] if canvas is None else canvas
        once = torch.unique(rows)
        self.forwards[once] += 1
        self.block_steps[once] += 1
        self.sequences.index_add_(0, rows, torch.ones_like(rows))
        if self.cached:
            return self._cached_logits(rows, read)
        size = self.prompts.present[rows].sum(dim=1) + self.present[rows].sum(dim=1)
        self.forwarded.index_add_(0, rows, size)
        return canvas_logits(self.net, self.prompts[rows], read, self.present[rows])

    def _cached_logits(self, rows: Tensor, read: Tensor) -> Tensor:
        """As :meth:`logits`; what is outside the current block is as it was at the first forward of the block."""
        width, prompt = self.block, self.prompts.ids.shape[1]
        start = self.start(rows)
        fresh = self._held[rows] != start // width
        out = torch.zeros(*read.shape, self.net.vocabulary, device=read.device)
        if fresh.any():
            new = rows[fresh]
            ids = torch.cat([self.prompts.ids[new], read[fresh]], dim=1)
            there = torch.cat([self.prompts.present[new], self.present[new]], dim=1)
            said, memory = self.net.remember(ids, there)
            out = out.to(said.dtype)
            out[fresh] = said[:, prompt:]
            self._hold(new, memory, start[fresh] // width)
            self.forwarded.index_add_(0, new, there.sum(dim=1))
        if not fresh.all():
            old = rows[~fresh]
            places = start[~fresh, None] + torch.arange(width, device=read.device)
            assert self._memory is not None
            memory = self._memory[old]
            memory.present = torch.cat([self.prompts.present[old], self.present[old]], dim=1)  # less after an end
            said = self.net.recall(memory, read[~fresh].gather(1, places), prompt + places)
            out = out.to(said.dtype)
            out[~fresh] = out[~fresh].scatter(1, places.unsqueeze(-1).expand_as(said), said)
            self.forwarded.index_add_(0, old, torch.full_like(old, width))
        return out

    def tree_logits(self, rows: Tensor, drafts: Tensor) -> Tensor:
        """Logits (n, D, L, V) of drafts (n, D, L) of the current block in one sequence a row; other blocks have none.

        The rows have had a forward in this block before, and the cache is in use.
        """
        assert self.cached
        assert self._memory is not None
        self.forwards[rows] += 1
        self.block_steps[rows] += 1
        self.sequences[rows] += 1
        prompt, width = self.prompts.ids.shape[1], self.block
        places = self.start(rows)[:, None] + torch.arange(width, device=rows.device)
        at = places[:, None].expand(-1, drafts.shape[1], -1)
        said = self.net.recall_tree(self._memory[rows], drafts.gather(2, at), prompt + places)
        self.forwarded[rows] += drafts.shape[1] * width
        out = said.new_zeros(*drafts.shape, self.net.vocabulary)
        return out.scatter(2, at.unsqueeze(-1).expand_as(said), said)

    def _hold(self, rows: Tensor, memory: Memory, number: Tensor) -> None:
        if self._memory is None:
            count = len(self.tokens)
            layers = [(k.new_zeros(count, *k.shape[1:]), v.new_zeros(count, *v.shape[1:])) for k, v in memory.layers]
            self._memory = Memory(layers, memory.present.new_zeros(count, memory.present.shape[1]))
        for (keys, values), (k, v) in zip(self._memory.layers, memory.layers, strict=True):
            keys[rows], values[rows] = k, v
        self._memory.present[rows] = memory.present
        self._held[rows] = number

    # --- commits ------------------------------------------------------------------------------------------------------

    def commit(self, rows: Tensor, chosen: Tensor, tokens: Tensor, confidence: Tensor) -> None:
        """Write ``tokens`` (n, L) at ``chosen`` (n, L), as of the forward before; rows that are finished by it end.

        Raises ``AssertionError`` where something is chosen that is written already.
        """
        masked, before = self.masked[rows], self.start(rows)
        assert not (chosen & ~masked).any(), "a position was chosen that is not masked"
        self.tokens[rows] = torch.where(chosen, tokens, self.tokens[rows])
        self.steps[rows] = torch.where(chosen, (self.forwards[rows] - 1)[:, None], self.steps[rows])
        self.confidence[rows] = torch.where(chosen, confidence.float(), self.confidence[rows])
        if self.stop != "never":
            self._end(rows)
        left = self.masked[rows].any(dim=1)
        moved = torch.ones_like(left)
        moved[left] = self.start(rows[left]) != before[left]
        self.block_steps[rows[moved]] = 0

    def _end(self, rows: Tensor) -> None:
        tokens = self.tokens[rows]
        ended = tokens == self.eos
        place = torch.arange(self.length, device=tokens.device)
        first = torch.where(ended.any(dim=1), ended.int().argmax(dim=1), self.length)[:, None]
        behind = place > first
        if self.stop == "truncate":
            self.present[rows] &= ~behind
            return
        whole = ((tokens != self.mask) | (place >= first)).all(dim=1) & ended.any(dim=1)
        self.present[rows] &= ~(behind & whole[:, None])

    def finished(self, extra: Mapping[str, Tensor] | None = None) -> Written:
        """What was written; positions that were left out are filled with ends."""
        tokens = torch.where(self.tokens == self.mask, self.eos, self.tokens)
        tokens = torch.where(self.present, tokens, self.eos)
        steps = torch.where(self.present, self.steps, -1)
        confidence = torch.where(self.present, self.confidence, torch.nan)
        counts = (self.forwards, self.sequences, self.forwarded)
        return Written(tokens, *counts, steps, confidence, dict(extra or {}))
