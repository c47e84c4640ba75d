"""Exact joint distributions of responses: what no factorised step can do, whatever the network.

The best product of marginals of tokens S, given a state c, has a divergence from their joint distribution of

    C(S | c) = sum_i H(Y_i | c) - H(Y_S | c),

the conditional total correlation (Kang et al. 2025, ParallelBench). It is 0 where every problem has one solution. Here
the responses of a problem are enumerated, which gives C, a mask predictor without error, and what of its samples is
right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from math import log

import torch
from torch import Tensor

from kdbench.tracks.dllm.batches import Prompts
from kdbench.tracks.dllm.decoding import decode
from kdbench.tracks.dllm.networks.base import Predictor
from kdbench.tracks.dllm.policies.basic import TopK


@dataclass
class Joint:
    """Responses that are equally probable."""

    outputs: Tensor
    """(M, n) int64, all different."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Joint:
        """Of sequences of one length; those that come twice count once."""
        return cls(torch.unique(torch.tensor(rows), dim=0))

    def marginals(self, canvas: Tensor, mask: int, vocabulary: int) -> Tensor:
        """(B, n, V) float64 probabilities of each position given the visible part of ``canvas`` (B, n).

        Where nothing agrees with that part, which is wrong already, those without any condition.
        """
        agrees = ((self.outputs == canvas[:, None]) | (canvas[:, None] == mask)).all(dim=-1).double()  # (B, M)
        agrees = torch.where(agrees.any(dim=1, keepdim=True), agrees, 1.0)
        chosen = torch.nn.functional.one_hot(self.outputs, vocabulary).double()  # (M, n, V)
        counts = torch.einsum("bm,mnv->bnv", agrees, chosen)
        return counts / counts.sum(dim=-1, keepdim=True)

    def total_correlation(self, canvas: Tensor | None = None, mask: int = -1) -> float:
        """C of all masked positions in nats, given the visible part of ``canvas`` (n,); None: of all positions."""
        outputs = self.outputs
        if canvas is not None:
            outputs = outputs[((outputs == canvas) | (canvas == mask)).all(dim=-1)]
            if not len(outputs):
                raise ValueError("no response agrees with what is visible")
        sums = 0.0
        for column in outputs.unbind(dim=1):
            share = torch.unique(column, return_counts=True)[1].double() / len(outputs)
            sums -= float(torch.xlogy(share, share).sum())
        return sums - log(len(outputs))

    def contains(self, tokens: Tensor) -> Tensor:
        """(B,) bool: whether texts (B, n) are responses of the distribution."""
        _, number = torch.unique(torch.cat([self.outputs, tokens]), dim=0, return_inverse=True)
        return torch.isin(number[len(self.outputs) :], number[: len(self.outputs)])


class ExactPredictor(Predictor):
    """The mask predictor of a joint distribution, without any error."""

    def __init__(self, joint: Joint, *, mask: int, eos: int, vocabulary: int) -> None:
        super().__init__()
        self.joint, self.mask, self.eos, self.vocabulary = joint, mask, eos, vocabulary

    def forward(self, ids: Tensor, present: Tensor | None = None) -> Tensor:
        """Log-probabilities (B, T, V) in float64; prompts are not read, and nothing is said about them."""
        count = self.joint.outputs.shape[1]
        logits = torch.zeros(*ids.shape, self.vocabulary, dtype=torch.float64)
        different, row = torch.unique(ids[:, -count:], dim=0, return_inverse=True)
        logits[:, -count:] = self.joint.marginals(different, self.mask, self.vocabulary).log()[row]
        return logits


# --- closed forms -----------------------------------------------------------------------------------------------------


def shuffle_accuracy(n: int, k: int) -> float:
    """Probability that k tokens per step, sampled from exact marginals, make a permutation of ``n`` items.

    With m items left and j = min(k, m): the j tokens of a step are distinct with m! / ((m - j)! m^j).

    >>> round(shuffle_accuracy(6, 2), 4), round(shuffle_accuracy(4, 4), 4)
    (0.3125, 0.0938)
    """
    value, left = 1.0, n
    while left:
        j = min(k, left)
        for taken in range(j):
            value *= (left - taken) / left
        left -= j
    return value


def replace_accuracy(n: int, k: int) -> float:
    """Probability that so exactly one of ``n`` items is replaced, each being as probable.

    a(m) = (j / m)(1 - 1/m)^(j - 1) + (1 - 1/m)^j a(m - j), a(0) = 0: one of the j tokens of this step, or none so far.

    >>> round(replace_accuracy(6, 2), 4), round(replace_accuracy(4, 4), 4)
    (0.7335, 0.4219)
    """
    if n == 0:
        return 0.0
    j = min(k, n)
    return j / n * (1 - 1 / n) ** (j - 1) + (1 - 1 / n) ** j * replace_accuracy(n - j, k)


CLOSED = {"shuffle": shuffle_accuracy, "replace_random": replace_accuracy}


@lru_cache(maxsize=32)
def ideal(operation: str, n: int) -> Joint:
    """The distribution of a closed form: items 0 to n - 1, the new one n; all permutations, the list included."""
    if operation == "shuffle":
        return Joint.of(list(permutations(range(n))))
    return Joint.of([[n if place == new else place for place in range(n)] for new in range(n)])


def simulated(operation: str, n: int, k: int, samples: int, generator: torch.Generator) -> float:
    """Share of right texts when the exact predictor is decoded k at a time, in random order at temperature 1."""
    joint = ideal(operation, n)
    vocabulary = n + 3
    net = ExactPredictor(joint, mask=n + 1, eos=n + 2, vocabulary=vocabulary)
    empty = Prompts(torch.zeros(samples, 0, dtype=torch.int64), torch.zeros(samples, 0, dtype=torch.bool))
    options = {"length": n, "block": n, "temperature": 1.0, "generator": generator}
    written = decode(net, empty, TopK(k, "random"), **options)  # type: ignore[arg-type]
    return float(joint.contains(written.tokens).double().mean())


def deviation(operation: str, n: int, k: int, samples: int, generator: torch.Generator) -> float:
    """How many standard errors the simulation is away from the closed form; infinite where a certain one fails."""
    wanted = CLOSED[operation](n, k)
    error = (wanted * (1 - wanted) / samples) ** 0.5
    difference = abs(simulated(operation, n, k, samples, generator) - wanted)
    if error < 1e-9:
        return 0.0 if difference < 1e-9 else float("inf")
    return difference / error
