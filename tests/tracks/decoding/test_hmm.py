"""Hidden Markov models against sums over every path, and expectation maximisation."""

from __future__ import annotations

import itertools

import pytest
import torch

from kdbench.errors import JobError
from kdbench.tracks.decoding.blocks.hmm import HMM, MISSING, fit, padded


def random_model(states: int = 3, vocabulary: int = 4, seed: int = 0) -> HMM:
    return HMM.random(states, vocabulary, torch.Generator().manual_seed(seed), torch.float64)


def paths(model: HMM, tokens: list[int]) -> dict[tuple[int, ...], float]:
    """Joint probability of every sequence of hidden states with the tokens."""
    found = {}
    for path in itertools.product(range(model.states), repeat=len(tokens)):
        p = float(model.initial[path[0]])
        for t, (state, token) in enumerate(zip(path, tokens, strict=True)):
            p *= float(model.transition[path[t - 1], state]) if t else 1.0
            p *= float(model.emission[state, token]) if token != MISSING else 1.0
        found[path] = p
    return found


def test_forward_is_the_sum_over_paths():
    model = random_model()
    rows = [[0, 3, 1, 2], [2, 2, MISSING, 0], [MISSING, 1, 1, MISSING]]
    passed = model(torch.tensor(rows))
    for n, row in enumerate(rows):
        every = paths(model, row)
        assert float(passed.log_likelihood[n].exp()) == pytest.approx(sum(every.values()), rel=1e-9)
        before = paths(model, [*row[:2], MISSING])  # P(h_3 | x_1, x_2)
        total = sum(before.values())
        want = [sum(p for path, p in before.items() if path[-1] == h) / total for h in range(model.states)]
        assert passed.predicted[2, n].tolist() == pytest.approx(want, rel=1e-9)
        after = paths(model, [*row, MISSING])
        want = [sum(p for path, p in after.items() if path[-1] == h) / sum(after.values()) for h in range(3)]
        assert passed.following[n].tolist() == pytest.approx(want, rel=1e-9)


def test_counts_are_the_posterior_over_paths():
    model = random_model(seed=1)
    rows = [[1, 0, 3], [MISSING, 2, 2]]
    counts = model.counts(torch.tensor(rows))
    initial, transition = torch.zeros(3).double(), torch.zeros(3, 3).double()
    emission = torch.zeros(3, 4).double()
    for row in rows:
        every = paths(model, row)
        total = sum(every.values())
        for path, p in every.items():
            initial[path[0]] += p / total
            for t, state in enumerate(path):
                if t:
                    transition[path[t - 1], state] += p / total
                if row[t] != MISSING:
                    emission[state, row[t]] += p / total
    for own, want in ((counts.initial, initial), (counts.transition, transition), (counts.emission, emission)):
        assert torch.allclose(own, want, rtol=1e-9)


def test_sequences_that_underflow_unscaled_are_no_problem():
    model = random_model().float()
    tokens = torch.randint(4, (2, 2000), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model.log_likelihood(tokens), model.double().log_likelihood(tokens).float(), rtol=1e-4)


def test_likelihood_never_falls_and_the_batch_size_does_not_matter():
    truth, tokens = random_model(seed=2), torch.randint(4, (40, 6), generator=torch.Generator().manual_seed(1))
    whole, pieces, seen = random_model(seed=3), random_model(seed=3), []
    fit(whole, tokens, iterations=8, pseudocount=0.0, on_iteration=lambda _, value: seen.append(value))
    fit(pieces, tokens, iterations=8, pseudocount=0.0, batch_size=7)
    assert seen == sorted(seen)
    assert seen[-1] > float(truth.log_likelihood(tokens).mean()) / 6
    assert torch.allclose(whole.transition, pieces.transition)


def test_a_deterministic_cycle_is_learned():
    tokens = torch.tensor([[(start + t) % 3 for t in range(9)] for start in range(3)])
    model = random_model(states=3, vocabulary=3, seed=4)
    fit(model, tokens, iterations=60, pseudocount=1e-3)
    assert float(model.log_likelihood(tokens).mean()) > -1.5  # log 3 for the start, hardly anything afterwards


def test_pseudocounts_leave_nothing_impossible():
    model = random_model(seed=5)
    fit(model, torch.zeros(5, 4, dtype=torch.int64), iterations=3, pseudocount=0.4)
    counts = model.counts(torch.zeros(5, 4, dtype=torch.int64))
    model.maximise(counts, 0.4)
    visits = counts.emission.sum(-1)
    assert model.emission[:, 1].tolist() == pytest.approx((0.1 / (visits + 0.4)).tolist())
    assert torch.isfinite(model.log_likelihood(torch.tensor([[3, 2, 1]]))).all()


def test_an_impossible_sequence_is_an_error():
    model = random_model()
    fit(model, torch.zeros(4, 3, dtype=torch.int64), iterations=1, pseudocount=0.0)
    with pytest.raises(JobError, match="pseudocount"):
        model.counts(torch.tensor([[1, 1]]))


def test_hidden_tokens_are_drawn_anew_but_never_the_end():
    tokens = torch.tensor([[1, 2, 0, 0]]).expand(50, -1).contiguous()
    model, seen = random_model(), []
    counts = model.counts
    model.counts = lambda part: seen.append(part) or counts(part)  # type: ignore[method-assign]
    fit(model, tokens, iterations=2, dropout=0.5, end=0, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(seen[0], seen[1])
    for part in seen:
        assert (part[:, 2:] == 0).all()
        assert 20 < int((part[:, :2] == MISSING).sum()) < 80


def test_rows_that_are_no_distributions_are_refused():
    with pytest.raises(ValueError, match="emission"):
        HMM(torch.tensor([1.0]), torch.tensor([[1.0]]), torch.tensor([[0.4, 0.4]]))


def test_padding_keeps_the_end_token():
    assert padded([[5, 6], [5, 6, 7, 8, 9]], 4, 0).tolist() == [[5, 6, 0, 0], [5, 6, 7, 8]]
