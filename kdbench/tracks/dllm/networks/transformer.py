"""A small transformer over prompt and canvas, read in both directions or from left to right."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdbench.tracks.dllm.networks.base import Predictor
from kdbench.tracks.dllm.spec import Net
from kdbench.training.transformer import Block, initialise

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class Shape:
    """All that is needed to build a network."""

    net: Net
    positions: int
    """Tokens of prompt and canvas together."""
    vocabulary: int
    mask: int
    eos: int
    causal: bool = False
    """Each position sees itself and what is left of it; then position i predicts position i + 1."""


@dataclass
class Memory:
    """Keys and values of a whole text, by layer."""

    layers: list[tuple[Tensor, Tensor]]
    """(B, H, T, D) each."""
    present: Tensor
    """(B, T) bool."""

    def __getitem__(self, rows: Tensor) -> Memory:
        return Memory([(k[rows], v[rows]) for k, v in self.layers], self.present[rows])


class Transformer(Predictor):
    """Pre-norm blocks over embeddings of tokens and positions."""

    cacheable = True

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.mask, self.eos, self.vocabulary = shape.mask, shape.eos, shape.vocabulary
        net = shape.net
        self.tokens = nn.Embedding(shape.vocabulary, net.width)
        self.places = nn.Embedding(shape.positions, net.width)
        mlp = net.mlp or 4 * net.width
        self.blocks = nn.ModuleList(Block(net.width, net.heads, mlp) for _ in range(net.layers))
        self.norm = nn.LayerNorm(net.width)
        self.head = nn.Linear(net.width, shape.vocabulary)
        initialise(self)
        for embedding in (
            self.tokens,
            self.places,
        ):  # 0.02 is lost beside what the first blocks of a narrow network add
            nn.init.normal_(embedding.weight, std=0.3)

    def forward(self, ids: Tensor, present: Tensor | None = None) -> Tensor:
        """See :meth:`Predictor.forward`."""
        return self._run(ids, present, None)

    def _run(self, ids: Tensor, present: Tensor | None, kept: list[tuple[Tensor, Tensor]] | None) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        seen = None if present is None else present[:, None, None, :]
        if self.shape.causal:
            below = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
            seen = below if seen is None else seen & below | torch.eye(len(below), dtype=torch.bool, device=ids.device)
        keep = None if kept is None else partial(_kept, kept)
        for block in self.blocks:
            x = block(x, seen, remember=keep)
        return self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(x))
        impossible = torch.arange(self.vocabulary, device=x.device) == self.mask
        return logits.masked_fill(impossible, -torch.inf)

    def remember(self, ids: Tensor, present: Tensor) -> tuple[Tensor, Memory]:
        """As :meth:`forward`, and the keys and values that it has computed."""
        layers: list[tuple[Tensor, Tensor]] = []
        logits = self._run(ids, present, layers)
        return logits, Memory(layers, present)

    def recall(self, memory: Memory, ids: Tensor, places: Tensor) -> Tensor:
        """Logits (B, n, V) of ids (B, n) at ``places`` (B, n), which take the place of what the memory has there.

        All else is as the memory has it: exact for the text that it was made of, an approximation for any other.
        """
        x = self.tokens(ids) + self.places(places)
        seen = memory.present[:, None, None, :]
        for block, (keys, values) in zip(self.blocks, memory.layers, strict=True):
            x = block(x, seen, remember=partial(_replaced, keys, values, places))
        return self._logits(x)

    def recall_tree(self, memory: Memory, ids: Tensor, places: Tensor) -> Tensor:
        """As :meth:`recall` for D drafts at once, ids (B, D, n): logits (B, D, n, V) of one sequence of D n tokens.

        A draft sees itself and what the memory has outside ``places`` (B, n), but no other draft (tree attention).
        """
        drafts, count = ids.shape[1], ids.shape[2]
        x = self.tokens(ids.flatten(1)) + self.places(places).repeat(1, drafts, 1)
        outside = memory.present.scatter(1, places, False)[:, None, None, :].expand(-1, 1, drafts * count, -1)
        number = torch.arange(drafts, device=ids.device).repeat_interleave(count)
        own = (number[:, None] == number)[None, None].expand(len(ids), 1, -1, -1)
        seen = torch.cat([outside, own], dim=-1)
        for block, (keys, values) in zip(self.blocks, memory.layers, strict=True):
            x = block(x, seen, remember=partial(_appended, keys, values))
        return self._logits(x).unflatten(1, (drafts, count))


def _appended(keys: Tensor, values: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)


def _kept(kept: list[tuple[Tensor, Tensor]], k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    kept.append((k, v))
    return k, v


def _replaced(keys: Tensor, values: Tensor, places: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    at = places[:, None, :, None].expand_as(k)
    return keys.scatter(2, at, k), values.scatter(2, at, v)


def save_transformer(net: Transformer, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write shape and weights; they are read as float32 whatever ``dtype`` they are kept in."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = {name: value for name, value in vars(net.shape).items() if name != "net"}
    (folder / CONFIG).write_text(json.dumps({"net": net.shape.net.model_dump(), **shape}) + "\n")
    weights = {name: value.detach().cpu().to(dtype).contiguous() for name, value in net.state_dict().items()}
    save_file(weights, folder / WEIGHTS)


def load_transformer(folder: Path) -> Transformer:
    """Read what :func:`save_transformer` wrote, on the CPU."""
    config = json.loads((folder / CONFIG).read_text())
    net = Transformer(Shape(Net(**config.pop("net")), **config))
    net.load_state_dict(load_file(folder / WEIGHTS))
    return net


def doubled(net: Transformer) -> Transformer:
    """A copy in float64, in evaluation mode, without hooks."""
    copy = Transformer(net.shape).to(next(net.parameters()).device)
    copy.load_state_dict(net.state_dict())
    return copy.double().eval()
