"""A causal transformer that denoises chunks of actions, with experts that are chosen by the noise level.

The order of tokens is noise, sentence, picture, actions. The blocks are those of MoDE (Reuss et al., ICLR 2025): the
noise embedding is added to the input of the attention, and the perceptron's residual begins at its normalised input,

    x = x + Attn(RMSNorm(x) + c),   h = RMSNorm(x),   x = h + sum_e p_e MLP_e(h).

With one expert this is a dense transformer.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.tracks.policy.networks.moe import Perceptron, Routing, TopKMoE
from kdbench.tracks.policy.networks.unet1d import sinusoids
from kdbench.tracks.policy.worlds.base import Observation

Route = Literal["noise", "token"]


class Attention(nn.Module):
    """Causal self-attention of several heads."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.inputs, self.output = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.inputs(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0
        )
        return self.output(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Noise-conditioned attention and a mixture of experts."""

    def __init__(self, width: int, heads: int, hidden: int, experts: int, k: int, dropout: float) -> None:
        super().__init__()
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.mixture = TopKMoE(width, hidden, experts, k)

    def forward(
        self, x: Tensor, noise: Tensor, route: Route, sampled: bool, fused: Perceptron | None
    ) -> tuple[Tensor, Routing | None]:
        """x (B, T, D) and the noise embedding (B, D); with a fused perceptron nothing is routed."""
        x = x + self.attention(self.before(x) + noise[:, None])
        h = self.between(x)
        if fused is not None:
            return h + fused(h), None
        routing = self.mixture.routing(noise if route == "noise" else h.flatten(0, 1), sampled=sampled)
        return h + self.mixture(h, routing), routing


class Picture(nn.Module):
    """A picture (B, 3, H, W) as ``TOKENS`` tokens (B, 4, D), from where in it things are: a spatial softmax.

    Of each of 32 feature maps the expected place under a softmax over the map, and its largest value (Levine et al.,
    JMLR 2016). Where blocks are is learned in fewer steps from this than from patches.
    """

    TOKENS, MAPS = 4, 32

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 5, 2, 2),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(32, self.MAPS, 3, 1, 1),
        )
        axis = torch.linspace(-1, 1, (size + 3) // 4)
        self.register_buffer("places", torch.cartesian_prod(axis, axis), persistent=False)
        self.sharpness = nn.Parameter(torch.tensor(3.0))
        self.tokens = nn.Sequential(
            nn.Linear(3 * self.MAPS, 2 * width), nn.SiLU(), nn.Linear(2 * width, self.TOKENS * width)
        )

    def forward(self, image: Tensor) -> Tensor:
        maps = self.layers(2 * image - 1).flatten(2)
        where = (self.sharpness * maps).softmax(-1) @ self.places
        found = torch.cat([where, maps.amax(-1, keepdim=True)], -1)
        return self.tokens(found.flatten(1)).unflatten(1, (self.TOKENS, -1))


class ChunkTransformer(nn.Module):
    """``forward(x, level, obs)``: what is predicted of a noisy chunk (B, T, A); levels (B,) are real numbers."""

    def __init__(
        self,
        actions: int,
        horizon: int,
        *,
        image: int,
        vocabulary: int,
        width: int,
        depth: int,
        heads: int,
        dropout: float = 0.0,
        experts: int = 1,
        k: int = 1,
        expansion: int = 4,
        route: Route = "noise",
        goal_dropout: float = 0.0,
    ) -> None:
        """``expansion``: width of an expert over that of the model; ``goal_dropout``: share of rows that are trained
        without their sentence."""
        super().__init__()
        self.route, self.goal_dropout, self.width = route, goal_dropout, width
        self.noise = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.words = nn.Embedding(vocabulary, width, padding_idx=0)
        self.picture = Picture(image, width)
        self.actions_in, self.actions_out = nn.Linear(actions, width), nn.Linear(width, actions)
        self.places = nn.Parameter(0.02 * torch.randn(2 + Picture.TOKENS + horizon, width))
        hidden = expansion * width
        self.blocks = nn.ModuleList([Block(width, heads, hidden, experts, k, dropout) for _ in range(depth)])
        self.last = nn.RMSNorm(width)

    def normalise(self, mean: Tensor, std: Tensor) -> None:
        """Pictures are in [0, 1]: there is nothing to shift."""

    def embedding(self, level: Tensor) -> Tensor:
        """(B, D) of levels (B,)."""
        return self.noise(sinusoids(100 * level.float(), self.width))

    def seen(self, obs: Observation) -> Tensor:
        """(B, 1 + K, D) tokens of sentence and picture: they are the same at every level."""
        assert obs.image is not None
        assert obs.text is not None
        told = (obs.text > 0).sum(-1, keepdim=True).clamp_min(1)
        goal = self.words(obs.text).sum(1) / told
        if self.training and self.goal_dropout:
            goal = goal * (torch.rand(len(goal), 1, device=goal.device) >= self.goal_dropout)
        return torch.cat([goal[:, None], self.picture(obs.image)], 1)

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        obs: Observation,
        *,
        seen: Tensor | None = None,
        fused: list[Perceptron] | None = None,
        noise: Tensor | None = None,
        routings: list[Routing] | None = None,
    ) -> Tensor:
        """``seen``, ``noise``: tokens and embeddings that were computed before; ``fused``: a perceptron a block.

        The choices of each block are appended to ``routings``; there are none where fused perceptrons are used.
        """
        c = self.embedding(level) if noise is None else noise
        around = self.seen(obs) if seen is None else seen
        tokens = torch.cat([c[:, None], around, self.actions_in(x)], 1)
        tokens = tokens + self.places[: tokens.shape[1]]
        for number, block in enumerate(self.blocks):
            part = None if fused is None else fused[number]
            tokens, routing = block(tokens, c, self.route, self.training, part)
            if routing is not None and routings is not None:
                routings.append(routing)
        return self.actions_out(self.last(tokens[:, -x.shape[1] :]))

    def active_parameters(self) -> int:
        """Parameters that one evaluation uses: of each mixture k experts."""
        total = sum(p.numel() for p in self.parameters())
        for block in self.blocks:
            mixture: Any = block.mixture
            one = sum(p.numel() for p in mixture.experts[0].parameters())
            total -= (len(mixture.experts) - mixture.k) * one
        return total
