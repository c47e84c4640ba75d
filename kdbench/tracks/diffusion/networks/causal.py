"""A causal transformer over codes, whose distribution over whole sequences can be asked for exactly.

Codes enter as their vectors of the codebook, so that any sequence of vectors can be read in their place. The feature
of place i sees the condition and the vectors of the places before i, never those from i on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdbench.tracks.diffusion.conditions import Condition
from kdbench.training.transformer import Block, initialise


class CausalGpt(nn.Module):
    """p(codes | cond), place by place in raster order."""

    codebook: Tensor

    def __init__(
        self, codebook: Tensor, length: int, vocabulary: int, *, width: int = 64, depth: int = 3, heads: int = 4
    ) -> None:
        """``codebook`` (V, D); ``length`` places; ``vocabulary`` tokens of the condition, 0 the null one."""
        super().__init__()
        codes, dim = codebook.shape
        self.config = {
            "codes": codes,
            "dim": dim,
            "length": length,
            "vocabulary": vocabulary,
            "width": width,
            "depth": depth,
            "heads": heads,
        }
        self.length = length
        self.register_buffer("codebook", codebook.detach().clone())
        self.read = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))
        self.start = nn.Embedding(vocabulary, width)
        self.place = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, codes)
        initialise(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CausalGpt:
        """An untrained network with the shape of another, whose codebook is still to be loaded."""
        fields = dict(config)
        return cls(torch.zeros(fields.pop("codes"), fields.pop("dim")), **fields)

    @property
    def codes(self) -> int:
        """Size of the codebook."""
        return len(self.codebook)

    def features_of(self, vectors: Tensor, cond: Condition) -> Tensor:
        """(B, m + 1, W) features of the places 0 to m, given the vectors (B, m, D) of the first m places; m < length.

        Feature i sees the vectors before i.
        """
        assert cond.tokens is not None
        h = torch.cat([self.start(cond.tokens[:, :1]), self.read(vectors)], 1)
        h = h + self.place.weight[: h.shape[1]]
        count = h.shape[1]
        mask = torch.full((count, count), float("-inf"), device=h.device).triu(1)
        for block in self.blocks:
            h = block(h, mask)
        return self.norm(h)

    def forward(self, prefix: Tensor, cond: Condition) -> Tensor:
        """(B, m + 1, V) logits of the places 0 to m, given the codes (B, m) of the first m places; m < length."""
        return self.head(self.features_of(self.codebook[prefix], cond))

    def log_probs(self, codes: Tensor, cond: Condition) -> Tensor:
        """(B, n) log p(code i | codes before i, cond) of codes (B, n); the sum is the sequence's exact log p."""
        logits = self(codes[:, :-1], cond).float()
        return logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0]

    def next_probs(self, prefix: Tensor, cond: Condition, guidance: float = 1.0) -> Tensor:
        """(B, V) probabilities of the code after ``prefix`` (B, m).

        With ``guidance`` w the logits are those without condition plus w times the difference to those with it.
        """
        logits = self(prefix, cond)[:, -1].float()
        if guidance != 1:
            unasked = self(prefix, cond.null())[:, -1].float()
            logits = unasked + guidance * (logits - unasked)
        return logits.softmax(-1)

    @torch.no_grad()
    def table(self, cond: Condition, places: int, guidance: float = 1.0) -> Tensor:
        """(B, V ** places) float64 exact joint probabilities of the first ``places`` codes, the last counting ones."""
        joint = torch.ones(len(cond), 1, dtype=torch.float64, device=self.codebook.device)
        prefixes = torch.zeros(1, 0, dtype=torch.int64, device=self.codebook.device)
        for _ in range(places):
            asked = cond.repeat(len(prefixes))
            each = prefixes.repeat(len(cond), 1)
            chunks = [slice(start, start + 8192) for start in range(0, len(each), 8192)]
            probs = torch.cat([self.next_probs(each[rows], asked[rows], guidance) for rows in chunks]).double()
            joint = (joint[..., None] * probs.view(len(cond), len(prefixes), self.codes)).flatten(1)
            following = torch.arange(self.codes, device=prefixes.device).repeat(len(prefixes))[:, None]
            prefixes = torch.cat([prefixes.repeat_interleave(self.codes, 0), following], 1)
        return joint

    @torch.no_grad()
    def sample(
        self, cond: Condition, generator: torch.Generator, guidance: float = 1.0, places: int | None = None
    ) -> Tensor:
        """(B, n) int64 codes, drawn place by place; ``places`` defaults to all."""
        codes = torch.zeros(len(cond), 0, dtype=torch.int64, device=self.codebook.device)
        for _ in range(self.length if places is None else places):
            probs = self.next_probs(codes, cond, guidance)
            codes = torch.cat([codes, drawn(probs, generator)[:, None]], 1)
        return codes


def drawn(probs: Tensor, generator: torch.Generator) -> Tensor:
    """(...) int64 draws from probabilities (..., V), by inverting their cumulative sums at uniform numbers."""
    uniform = torch.rand(probs.shape[:-1], generator=generator, dtype=torch.float64).to(probs.device)
    total = probs.double().cumsum(-1)
    picks = torch.searchsorted(total, (uniform * total[..., -1])[..., None], right=True)[..., 0]
    return picks.clamp_max(probs.shape[-1] - 1)


class Factorized(nn.Module):
    """All codes at once, independently of each other given the condition: the least a parallel decoder knows."""

    codebook: Tensor

    def __init__(self, codebook: Tensor, length: int, vocabulary: int, *, width: int = 64) -> None:
        super().__init__()
        codes, dim = codebook.shape
        self.config = {"codes": codes, "dim": dim, "length": length, "vocabulary": vocabulary, "width": width}
        self.length = length
        self.register_buffer("codebook", codebook.detach().clone())
        self.start = nn.Embedding(vocabulary, width)
        self.place = nn.Embedding(length, width)
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, codes))
        initialise(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Factorized:
        """As :meth:`CausalGpt.from_config`."""
        fields = dict(config)
        return cls(torch.zeros(fields.pop("codes"), fields.pop("dim")), **fields)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, length, V) logits for tokens (B, 1) of the condition."""
        return self.head(self.start(tokens[:, :1]) + self.place.weight)

    @torch.no_grad()
    def table(self, cond: Condition, places: int) -> Tensor:
        """As :meth:`CausalGpt.table`."""
        assert cond.tokens is not None
        probs = self(cond.tokens).double().softmax(-1)
        joint = probs[:, 0]
        for place in range(1, places):
            joint = (joint[..., None] * probs[:, place, None]).flatten(1)
        return joint

    @torch.no_grad()
    def sample(self, cond: Condition, generator: torch.Generator) -> Tensor:
        """(B, length) int64 codes."""
        assert cond.tokens is not None
        return drawn(self(cond.tokens).float().softmax(-1), generator)
