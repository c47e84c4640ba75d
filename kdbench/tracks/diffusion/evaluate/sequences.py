"""How near distributions of token sequences are: total variation of whole sequences and of neighbouring pairs.

Total variation is half of the summed absolute differences: 0 for equal distributions, 1 for disjoint ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """(...) of probabilities (..., V): half the absolute differences."""
    return 0.5 * (p - q).abs().sum(-1)


def sequence_index(tokens: Tensor, vocabulary: int) -> Tensor:
    """(B,) number of each sequence (B, n) in the order of a table (vocabulary,) * n; the last token counts ones."""
    index = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
    for column in tokens.T:
        index = index * vocabulary + column
    return index


def sequence_table(tokens: Tensor, vocabulary: int) -> Tensor:
    """(vocabulary ** n,) float64 frequencies of the sequences (B, n)."""
    size = vocabulary ** tokens.shape[1]
    return torch.bincount(sequence_index(tokens, vocabulary), minlength=size).double() / len(tokens)


def exact_tv(tokens: Tensor, exact: Tensor, vocabulary: int) -> float:
    """Total variation of sampled sequences (B, n) and the exact probabilities (vocabulary ** n,).

    A finite sample is never at 0, even one of the distribution itself: compare with :func:`sampling_floor`.
    """
    return float(total_variation(sequence_table(tokens, vocabulary), exact.double()))


def sampling_floor(exact: Tensor, count: int) -> float:
    """Expected total variation of ``count`` samples of ``exact`` (V,) and itself, exactly.

    The mean absolute deviation of a binomial variable is 2 (1 - p)^(n - m) p^(m + 1) (m + 1) C(n, m + 1), with
    m = floor(n p) (de Moivre 1730).
    """
    p = exact.double()
    p = p[(p > 0) & (p < 1)]
    m = torch.floor(count * p)
    log_choose = (
        torch.lgamma(torch.tensor(count + 1.0, dtype=torch.float64)) - torch.lgamma(m + 2) - torch.lgamma(count - m)
    )
    log_mean = (count - m) * torch.log1p(-p) + (m + 1) * p.log() + torch.log(m + 1) + log_choose
    return float((2 * log_mean.exp() / count).sum() / 2)


def neighbours(side: int) -> list[tuple[int, int]]:
    """Pairs of places of a square grid in raster order that are side by side or one above the other."""
    across = [(r * side + c, r * side + c + 1) for r in range(side) for c in range(side - 1)]
    down = [(r * side + c, (r + 1) * side + c) for r in range(side - 1) for c in range(side)]
    return across + down


def pair_tables(tokens: Tensor, vocabulary: int, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """(P, vocabulary ** 2) float64 frequencies of the tokens at each pair of places of ``tokens`` (B, n)."""
    return torch.stack([sequence_table(tokens[:, list(pair)], vocabulary) for pair in pairs])


def bigram_tv(tokens: Tensor, reference: Tensor, vocabulary: int, pairs: Sequence[tuple[int, int]]) -> float:
    """Total variation of the tables of two samples of sequences (B, n), the mean over pairs of places."""
    mine, theirs = (pair_tables(sample, vocabulary, pairs) for sample in (tokens, reference))
    return float(total_variation(mine, theirs).mean())
