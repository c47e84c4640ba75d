"""A small relative of Neural Attentive Circuits (Rahaman et al., NeurIPS 2022): latent states on a sparse graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.tracks.vision.models.moe import Modular, Record
from kdbench.tracks.vision.models.vit import tokens_of


def sparse_graph(nodes: int, density: float, seed: int) -> Tensor:
    """Random symmetric adjacency (nodes, nodes), bool: each pair with probability ``density``, a ring, self-loops.

    The ring keeps every node in reach of all others.
    """
    generator = torch.Generator().manual_seed(seed)
    upper = torch.rand(nodes, nodes, generator=generator).triu(1)
    edges = (upper > 1 - density) & upper.bool()
    ring = torch.eye(nodes, dtype=torch.bool).roll(1, 0)
    return edges | edges.T | ring | ring.T | torch.eye(nodes, dtype=torch.bool)


class GraphBlock(nn.Module):
    """Pre-norm attention of states (B, S, d) along the edges of a graph alone, then an MLP of twice the width."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.proj = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.norm2, self.mlp = nn.LayerNorm(d), nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        b, s, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=graph)
        x = x + self.proj(mixed.transpose(1, 2).reshape(b, s, d))
        return x + self.mlp(self.norm2(x))


class ModularNac(Modular):
    """Learned states that read the patches once and then talk to their neighbours in a fixed random graph.

    There are as many states as patches and a class token, so that modules can be put between blocks of a vision
    transformer; the first state is the one that classifies. ``density`` in [0, 1] is that of the graph, drawn from
    ``graph_seed``.
    """

    def __init__(
        self,
        d: int,
        heads: int,
        depths: Sequence[int],
        *,
        density: float,
        num_classes: int,
        graph_seed: int = 0,
        size: int = 16,
        stitch: int = 0,
    ) -> None:
        blocks = [GraphBlock(d, heads) for _ in range(sum(depths))]
        super().__init__(d, depths, num_classes=num_classes, size=size, stitch=stitch, blocks=blocks)
        states = 1 + tokens_of(size, f"nac({d})")
        self.states = nn.Parameter(0.02 * torch.randn(1, states, d))
        self.read = nn.MultiheadAttention(d, heads, batch_first=True)
        self.graph: Tensor
        self.register_buffer("graph", sparse_graph(states, density, graph_seed))
        self.kind = "nac"
        self.config = {
            "d": d,
            "heads": heads,
            "depths": list(depths),
            "density": density,
            "num_classes": num_classes,
            "graph_seed": graph_seed,
            "size": size,
            "stitch": stitch,
        }

    def embed(self, x: Tensor) -> Tensor:
        """Images to states (B, S, d) by cross-attention from the learned states to the patches."""
        tokens = super().embed(x)
        states = self.states.expand(len(x), -1, -1)
        return states + self.read(states + self.position, tokens, tokens, need_weights=False)[0]

    def run_block(self, block: nn.Module, state: Tensor, record: Record | None) -> Tensor:
        return block(state, self.graph)
