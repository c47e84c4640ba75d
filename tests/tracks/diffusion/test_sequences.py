"""Total variation of sequences and pairs of codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binom

from kdbench.tracks.diffusion.evaluate.sequences import (
    bigram_tv,
    exact_tv,
    neighbours,
    pair_tables,
    sampling_floor,
    sequence_index,
    sequence_table,
    total_variation,
)


def test_total_variation():
    p = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    q = torch.tensor([[0.0, 0.0, 1.0], [0.2, 0.3, 0.5]])
    assert total_variation(p, q).tolist() == pytest.approx([1.0, 0.0])


def test_numbers_of_sequences_count_the_last_code_first():
    tokens = torch.cartesian_prod(torch.arange(3), torch.arange(3), torch.arange(3))
    assert sequence_index(tokens, 3).tolist() == list(range(27))
    assert torch.allclose(sequence_table(tokens, 3), torch.full((27,), 1 / 27, dtype=torch.float64))


def test_a_sample_in_the_right_proportions_is_at_zero():
    tokens = torch.tensor([[0, 0], [0, 0], [0, 0], [1, 1]])
    exact = torch.tensor([0.75, 0.0, 0.0, 0.25])
    assert exact_tv(tokens, exact, 2) == pytest.approx(0)
    assert exact_tv(tokens.flip(0)[:2], exact, 2) == pytest.approx(0.25)


@pytest.mark.parametrize("count", [1, 7, 60])
def test_floor_of_a_finite_sample(count):
    p = np.array([0.5, 0.25, 0.2, 0.05, 0.0])
    ks = np.arange(count + 1)
    wanted = sum(np.abs(ks / count - q) @ binom.pmf(ks, count, q) for q in p) / 2
    assert sampling_floor(torch.from_numpy(p), count) == pytest.approx(wanted, rel=1e-9)


def test_floor_is_what_samples_have():
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(16, generator=generator, dtype=torch.float64)
    p /= p.sum()
    draws = torch.multinomial(p, 300 * 100, replacement=True, generator=generator).view(300, 100)
    found = torch.stack([total_variation(torch.bincount(row, minlength=16) / 100, p) for row in draws]).mean()
    assert float(found) == pytest.approx(sampling_floor(p, 100), rel=0.02)


def test_neighbours_of_a_grid():
    pairs = neighbours(4)
    assert len(pairs) == len(set(pairs)) == 24
    assert all(b - a == 4 or (b - a == 1 and a % 4 < 3) for a, b in pairs)


def test_pairs_find_what_single_codes_hide():
    """Two codes that always agree, and two independent ones: the same single codes, half of the pairs wrong."""
    same = torch.tensor([[0, 0], [1, 1]]).repeat(50, 1)
    free = torch.cartesian_prod(torch.arange(2), torch.arange(2)).repeat(25, 1)
    assert bigram_tv(same, same, 2, [(0, 1)]) == 0
    assert bigram_tv(free, same, 2, [(0, 1)]) == pytest.approx(0.5)
    assert pair_tables(free, 2, [(0, 1), (1, 0)]).shape == (2, 4)
    assert bigram_tv(free, same, 2, [(0, 1), (0, 0)]) == pytest.approx(0.25)
