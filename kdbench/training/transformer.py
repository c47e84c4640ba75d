"""A plain transformer block whose attention takes any position encoding: a bias, and a change of queries and keys."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

Adapt = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Queries and keys (B, H, L, D) before the product to what is multiplied."""
Remember = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""New keys and values (B, H, T, D) to all that there are so far (B, H, S, D)."""


class Block(nn.Module):
    """Pre-norm attention and feed-forward block with GELU, as in GPT-2 (Radford et al. 2019); no dropout.

    Raises ``ValueError`` where ``width`` is not a multiple of ``heads``.
    """

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, mlp), nn.Linear(mlp, width)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, adapt: Adapt | None = None, remember: Remember | None = None
    ) -> Tensor:
        """(B, T, W) to (B, T, W). ``mask`` is added to the scaled products, broadcast to (B, H, T, S)."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm_1(x)).chunk(3, -1)
        )
        if adapt is not None:
            q, k = adapt(q, k)
        if remember is not None:
            k, v = remember(k, v)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        fed: Tensor = self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))
        return x + fed


def initialise(network: nn.Module) -> None:
    """Weights of linear layers and embeddings anew from the global generators, biases zero.

    GPT-2 draws all of them with a deviation of 0.02 at a width of 768. Linear layers get what gives their outputs the
    same deviation at any width, 0.55 over the root of their inputs; embeddings keep 0.02.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.55 / module.in_features**0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
