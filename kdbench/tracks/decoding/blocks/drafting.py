"""An EAGLE draft at work: what it has read of each row, and the tree that it is growing."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.tracks.decoding.blocks.eagle import Eagle, parts_of, spoken
from kdbench.tracks.decoding.decoders.session import Counter, Prefix, Session


class _Layered(nn.Module):
    """The draft as a session sees it: its layer under the target's output layer."""

    def __init__(self, eagle: Eagle, head: nn.Module) -> None:
        super().__init__()
        self.eagle, self.head, self.config = eagle, head, eagle.config

    def body_and_head(self) -> tuple[nn.Module, Any]:
        return self.eagle, partial(spoken, self.head)


class Drafting:
    """One call of a decoder: B rows that the draft continues level by level, and forgets again."""

    def __init__(self, eagle: Eagle, target: nn.Module) -> None:
        _, head = parts_of(target)
        self.eagle, self.embed = eagle, target.get_input_embeddings()
        self.counter = Counter()
        self.session = Session(_Layered(eagle, head), self.counter)
        self.left = self.ways = torch.zeros(0, dtype=torch.int64)
        """(R,) visual tokens that are left of each row of the start, and the way that they were compressed."""

    @torch.no_grad()
    def start(self, prefix: Prefix, last: Tensor) -> None:
        """Read what the target has read; ``last`` (B,) are the tokens after it."""
        embeddings = self.embed(prefix.ids) if prefix.embeddings is None else prefix.embeddings
        present = prefix.present[:, 1:] & prefix.present[:, :-1]
        fused = self.eagle.fuse(embeddings[:, 1:], prefix.states[:, :-1])
        read = self.eagle.prompted(fused, prefix.ids[:, 1:], present, present)
        if read.inputs.shape[1]:
            self.session.prefill_embeddings(read.inputs, read.present, read.positions, read.visible)
        else:
            self.session.prefill([[]] * len(last), 0)
        self.left, self.ways = read.left, read.choice
        self.places = present.sum(dim=1)
        """(B,) inputs of each row before the newest ones, those of all visual tokens counted."""
        self._kept = self.session.lengths.clone()
        self.commit(last[:, None], prefix.states[:, -1:], torch.ones_like(last, dtype=torch.bool)[:, None])

    def commit(self, tokens: Tensor, features: Tensor, present: Tensor) -> None:
        """What was written, as ``tokens`` (B, n) after the target's ``features`` (B, n, D); the tree is forgotten."""
        self.session.trim(self._kept)
        self._tokens, self._features, self._present = tokens, features, present

    @torch.no_grad()
    def begin(self) -> tuple[Tensor, Tensor]:
        """Logits (B, V) of the next token and the feature f^ (B, D) that they are of."""
        fused = self.eagle.fuse(self.embed(self._tokens), self._features)
        columns = torch.arange(fused.shape[1], device=fused.device)
        positions = (self.places[:, None] + columns).float()
        logits, states = self.session.forward(fused, present=self._present, positions=positions, hidden=True)
        self.session.keep(self._present)
        self._kept = self.session.lengths.clone()
        count = self._present.sum(dim=1)
        self.places = self.places + count
        rows = torch.arange(len(count), device=count.device)
        return logits[rows, count - 1], states[rows, count - 1]

    @torch.no_grad()
    def extend(self, tokens: Tensor, states: Tensor, level: int, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, n, V) and features (B, n, D) after ``tokens`` (B, n) that follow features ``states`` (B, n, D).

        ``level`` counts from 1; ``visible`` (B, n, m) is what they see of the m nodes so far, themselves at the end.
        """
        fused = self.eagle.fuse(self.embed(tokens), states)
        positions = (self.places[:, None] + (level - 1)).float().expand(-1, tokens.shape[1])
        return self.session.forward(fused, positions=positions, visible=visible, hidden=True)

    def select(self, rows: Tensor) -> None:
        """Go on with the chosen rows."""
        self.session.select(rows)
        self.places, self._kept = self.places[rows], self._kept[rows]
        self._tokens, self._features, self._present = self._tokens[rows], self._features[rows], self._present[rows]
