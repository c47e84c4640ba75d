"""Modular transformers: networks made of a few modules, and mixtures of experts (V-MoE) as what is inside of them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.tracks.vision.models.base import Classifier, Taps
from kdbench.tracks.vision.models.vit import PATCH, Attention, tokens_of

Record = list[Tensor]
"""Gate probabilities (T, E) of the T tokens of a batch, one entry per layer of experts."""


class Experts(nn.Module):
    """``experts`` MLPs of which each token goes through the ``k`` that its gate prefers; (B, N, d) to (B, N, d).

    The output is the sum of the chosen MLPs' times their softmax probabilities among all of them, which are not
    normalised again (Riquelme et al., NeurIPS 2021, equation 1, without noise). An expert sees its own tokens alone,
    and no token is dropped.
    """

    def __init__(self, d: int, hidden: int, experts: int, k: int) -> None:
        if not 1 <= k <= experts:
            raise ValueError(f"k is {k}; expected 1 to {experts}, the number of experts")
        super().__init__()
        self.k = k
        self.gate = nn.Linear(d, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d, hidden), nn.GELU(), nn.Linear(hidden, d)) for _ in range(experts)
        )

    def forward(self, x: Tensor, record: Record | None = None) -> Tensor:
        tokens = x.flatten(0, 1)
        probs = F.softmax(self.gate(tokens).float(), dim=-1)
        if record is not None:
            record.append(probs)
        weights, chosen = probs.topk(self.k, dim=-1)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, slot = (chosen == number).nonzero(as_tuple=True)
            out = out.index_add(0, rows, weights[rows, slot, None].to(tokens.dtype) * expert(tokens[rows]))
        return out.view_as(x)


class ExpertBlock(nn.Module):
    """Pre-norm attention, then experts of twice the width in place of the MLP."""

    def __init__(self, d: int, heads: int, experts: int, k: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(d), Attention(d, heads)
        self.norm2, self.mlp = nn.LayerNorm(d), Experts(d, 2 * d, experts, k)

    def forward(self, x: Tensor, record: Record | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x), record)


def importance_loss(record: Record) -> Tensor:
    """Squared coefficient of variation of the experts' summed gate probabilities, mean over layers; 0: all alike.

    Riquelme et al., NeurIPS 2021, appendix A, importance loss.
    """
    shares = torch.stack([probs.sum(0) / probs.sum() for probs in record])
    return (shares.var(1, unbiased=False) / shares.mean(1).square()).mean()


def usage_entropy(record: Record, k: int) -> float:
    """Entropy of how often each expert is among a token's ``k``, over its largest value; mean over layers, in [0, 1].

    1: all experts get equally many tokens. 0: one gets all. 1 where there is a single expert.
    """
    entropies = []
    for probs in record:
        count = torch.bincount(probs.topk(k, dim=-1).indices.flatten(), minlength=probs.shape[1]).double()
        share = count / count.sum()
        largest = math.log(len(share))
        entropies.append(float(torch.special.entr(share).sum()) / largest if largest else 1.0)
    return sum(entropies) / len(entropies)


class Modular(Classifier):
    """Patches, a few modules of blocks, class token to classifier; modules can be run, and so trained, on their own.

    ``stitch``: width that the network passes through between its modules, 0 for none.
    """

    def __init__(
        self, d: int, depths: Sequence[int], *, num_classes: int, size: int, stitch: int, blocks: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        tokens = 1 + tokens_of(size, f"{type(self).__name__}({d})")
        self.patch = nn.Conv2d(3, d, PATCH, PATCH)
        self.cls = nn.Parameter(torch.zeros(1, 1, d))
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, d))
        stack = iter(blocks)
        self.parts = nn.ModuleList(nn.ModuleList(next(stack) for _ in range(depth)) for depth in depths)
        between = len(depths) - 1 if stitch else 0
        self.leave = nn.ModuleList(stitching(d, stitch) for _ in range(between))
        self.enter = nn.ModuleList(stitching(stitch, d) for _ in range(between))
        self.norm = nn.LayerNorm(d)
        self.fc = nn.Linear(d, num_classes)

    @abstractmethod
    def run_block(self, block: nn.Module, state: Tensor, record: Record | None) -> Tensor:
        """One block on (B, N, d)."""

    def embed(self, x: Tensor) -> Tensor:
        """Images (B, 3, P, P) to tokens (B, 1 + N, d), the class token first."""
        x = self.patch(x).flatten(2).transpose(1, 2)
        return torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.position

    def run_part(self, number: int, state: Tensor, record: Record | None = None) -> Tensor:
        """One module, without stitches; (B, 1 + N, d) to the same shape."""
        for block in self.parts[number]:
            state = self.run_block(block, state, record)
        return state

    def part_parameters(self, number: int) -> list[nn.Parameter]:
        """Those of one module, of the embedding with the first, of normalisation and classifier with the last."""
        inside = nn.ModuleList([self.parts, self.leave, self.enter, self.norm, self.fc])
        elsewhere = set(inside.parameters())
        own = list(self.parts[number].parameters())
        if number == 0:
            own += [parameter for parameter in self.parameters() if parameter not in elsewhere]
        if number == len(self.parts) - 1:
            own += [*self.norm.parameters(), *self.fc.parameters()]
        return own

    def finish(self, state: Tensor) -> Tensor:
        """The last state to logits (B, C)."""
        return self.fc(self.norm(state[:, 0]))

    def head(self) -> nn.Linear:
        return self.fc

    def taps(self, x: Tensor, record: Record | None = None) -> Taps:
        """One stage per module. Gate probabilities are added to ``record``."""
        state = self.embed(x)
        stages, cls = [], []
        for number in range(len(self.parts)):
            if number and len(self.enter):
                state = self.enter[number - 1](self.leave[number - 1](state))
            state = self.run_part(number, state, record)
            stages.append(state[:, 1:])
            cls.append(state[:, 0])
        penult = self.norm(state[:, 0])
        return Taps(stages, penult, self.fc(penult), cls)


def stitching(d_in: int, d_out: int) -> nn.Sequential:
    """Layer normalisation and a linear map; (..., d_in) to (..., d_out)."""
    return nn.Sequential(nn.LayerNorm(d_in), nn.Linear(d_in, d_out))


class ModularMoE(Modular):
    """A vision transformer of ``len(depths)`` modules with experts in every block (V-MoE)."""

    def __init__(
        self,
        d: int,
        heads: int,
        depths: Sequence[int],
        *,
        experts: int,
        k: int,
        num_classes: int,
        size: int = 16,
        stitch: int = 0,
    ) -> None:
        blocks = [ExpertBlock(d, heads, experts, k) for _ in range(sum(depths))]
        super().__init__(d, depths, num_classes=num_classes, size=size, stitch=stitch, blocks=blocks)
        self.k = k
        self.kind = "vmoe"
        self.config = {
            "d": d,
            "heads": heads,
            "depths": list(depths),
            "experts": experts,
            "k": k,
            "num_classes": num_classes,
            "size": size,
            "stitch": stitch,
        }

    def run_block(self, block: nn.Module, state: Tensor, record: Record | None) -> Tensor:
        return block(state, record)
