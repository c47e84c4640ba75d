"""Pools of samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from kdbench.training.pools import Pool


@dataclass
class Batch:
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor


def samples(calls):
    """Each call gives sequences that carry its number."""

    def sample(n):
        calls.append(n)
        ids = torch.stack([torch.tensor([len(calls), i]) for i in range(n)])
        return Batch(ids, torch.ones_like(ids), ids.clone(), torch.full((n,), -1))

    return sample


def pool(calls, size=6, every=3, seed=0):
    like = samples([])(1)
    return Pool(samples(calls), size=size, every=every, like=like, rng=np.random.default_rng(seed))


def test_samples_are_renewed_after_so_many_batches():
    calls = []
    made = pool(calls)
    batches = [made(4) for _ in range(7)]
    assert calls == [6, 6, 6]
    assert [set(batch.input_ids[:, 0].tolist()) for batch in batches] == [{1}] * 3 + [{2}] * 3 + [{3}]


def test_a_batch_has_different_samples_and_batches_differ():
    made = pool([], every=50)
    chosen = [tuple(sorted(made(4).input_ids[:, 1].tolist())) for _ in range(20)]
    assert all(len(set(batch)) == 4 for batch in chosen)
    assert len(set(chosen)) > 5
    assert {i for batch in chosen for i in batch} == set(range(6))


def test_it_goes_on_from_its_state():
    calls, later = [], []
    whole, again = pool(calls), pool(later)
    for _ in range(2):
        whole(4)
    again.load_state_dict(whole.state_dict())
    again.rng.bit_generator.state = whole.rng.bit_generator.state
    assert torch.equal(whole(4).input_ids, again(4).input_ids)
    assert (calls, later) == ([6], [])
    whole(4), again(4)
    assert later == [6]  # due at the same batch


def test_a_pool_that_cannot_serve_is_refused():
    with pytest.raises(ValueError, match="no batch of 7"):
        pool([])(7)
    with pytest.raises(ValueError, match="at least one"):
        pool([], every=0)
