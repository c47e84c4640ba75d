"""Magnitude pruning: masks that nest and hold, the exact split of the Brier risk, the rate of staged paths."""

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.training.pruning import (
    Masks,
    brier_parts,
    convergence_rate,
    stage_sparsities,
    staged_path,
    staged_path_rate,
)

NAMES = ["0.weight", "2.weight"]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))


def test_every_stage_keeps_the_same_share():
    made = stage_sparsities(0.95, 4)
    kept = [1.0] + [1 - s for s in made]
    assert made[-1] == pytest.approx(0.95)
    assert np.allclose(np.divide(kept[1:], kept[:-1]), 0.05**0.25)
    assert stage_sparsities(0.8, 1) == pytest.approx([0.8])


def test_pruning_drops_the_smallest_over_all_tensors_and_stages_nest():
    model = network()
    before = {name: model.get_parameter(name).detach().clone() for name in NAMES}
    masks = Masks(model, NAMES)
    masks.prune(model, 0.5)
    first = {name: masks.of(name).clone() for name in NAMES}
    kept = torch.cat([before[n][first[n]].abs() for n in NAMES])
    dropped = torch.cat([before[n][~first[n]].abs() for n in NAMES])
    assert kept.min() >= dropped.max()
    assert masks.sparsity(model) == pytest.approx(0.5, abs=0.01)
    with torch.no_grad():  # what training might do to dropped weights
        for name in NAMES:
            model.get_parameter(name).add_(10.0 * ~first[name])
    masks.apply_to(model)
    assert all((model.get_parameter(n)[~first[n]] == 0).all() for n in NAMES)
    masks.prune(model, 0.8)
    assert all((first[n] | ~masks.of(n)).all() for n in NAMES)  # nothing comes back
    assert masks.sparsity(model) == pytest.approx(0.8, abs=0.01)
    assert model[0].bias.abs().min() > 0


def test_masks_survive_a_checkpoint():
    model = network()
    masks = Masks(model, NAMES)
    masks.prune(model, 0.7)
    other = Masks(network(), NAMES)
    other.load_state_dict(masks.state_dict())
    assert all(torch.equal(other.of(n), masks.of(n)) for n in NAMES)


def test_noise_bias_and_variance_sum_to_the_risk():
    g = torch.Generator().manual_seed(0)
    probs = torch.rand(5, 40, 6, generator=g, dtype=torch.float64)
    probs, truth = probs / probs.sum(-1, keepdim=True), torch.rand(40, 6, generator=g, dtype=torch.float64).softmax(-1)
    parts = brier_parts(probs, truth)
    assert parts.error < 1e-10
    assert min(parts.noise, parts.bias2, parts.variance) > 0
    # the risk by its definition
    each = [(probs - nn.functional.one_hot(torch.tensor(k), 6)).square().sum(-1) * truth[:, k] for k in range(6)]
    assert parts.risk == pytest.approx(torch.stack(each).sum(0).mean().item(), rel=1e-12)


def test_known_labels_have_no_noise_and_equal_networks_no_variance():
    probs = torch.full((3, 8, 4), 0.25)
    truth = nn.functional.one_hot(torch.arange(8) % 4, 4).double()
    parts = brier_parts(probs, truth)
    assert parts.noise == 0
    assert parts.variance == pytest.approx(0, abs=1e-12)
    assert parts.bias2 == pytest.approx(0.75)


def test_rate_is_the_slope_of_logarithms():
    sizes = [2, 4, 8]
    assert convergence_rate(sizes, [3 * n**-1.5 for n in sizes]) == pytest.approx(1.5)


def test_paths_of_many_stages_converge_like_1_over_n():
    assert staged_path_rate(np.random.default_rng(0)) == pytest.approx(1, abs=0.35)


def test_a_path_ends_sparse():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(20, 20))
    end = staged_path(rng.normal(size=20), root @ root.T / 20, 0.25, 10)
    assert (end != 0).sum() == 5
