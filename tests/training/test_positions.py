"""Positions as digits: the code, the encoder, what the losses are fed with, and every encoding in a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.errors import UsageError
from kdbench.training.digits import Candidates, DigitEncoder, Windows, digit_groups, digits_needed, edits
from kdbench.training.patches import GRID, PatchClassifier, images
from kdbench.training.position_losses import PositionLosses, PositionOptions, collisions, nearness_accuracy
from kdbench.training.positions import PositionEncoding, alibi_slopes


def encoding(kind="seqpe", extent=(64,), limit=2048, **options):
    torch.manual_seed(0)
    return PositionEncoding(kind, width=16, heads=2, layers=2, extent=extent, limit=limit, code=16, **options)


# --- digits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "digits"), [(10, 4), (2, 11), (16, 3)])
def test_the_code_is_injective(base, digits):
    positions = torch.arange(2048)[:, None]
    symbols, present = digit_groups(positions, digits, base)
    assert digits_needed(2048, base) == digits
    assert len(torch.unique(torch.cat([symbols, present.long()], 1), dim=0)) == 2048
    assert symbols.max() < base


def test_pairs_of_positions_have_codes_of_their_own():
    pairs = torch.cartesian_prod(torch.arange(33), torch.arange(33))
    symbols, present = digit_groups(pairs, 2)
    assert len(torch.unique(torch.cat([symbols, present.long()], 1), dim=0)) == 33**2
    assert symbols[pairs.tolist().index([12, 1])].tolist() == [1, 2, 0, 1]


@pytest.mark.parametrize("position", [-1, 1000])
def test_positions_that_have_no_digits_are_refused(position):
    with pytest.raises(ValueError, match="from 0 to 999"):
        digit_groups(torch.tensor([[position]]), 3)


def test_masked_padding_does_not_reach_the_vector():
    torch.manual_seed(0)
    short = DigitEncoder(limit=100, out=8)
    long = DigitEncoder(limit=10_000, out=8)
    weights = short.state_dict()
    places = torch.randn_like(long.places.weight)
    places[-2:] = weights["places.weight"]  # the last two places of four are the two places of two
    long.load_state_dict({**weights, "places.weight": places})
    positions = torch.arange(100)[:, None]
    torch.testing.assert_close(short(positions), long(positions))
    long.mask_padding = False
    assert (short(positions) - long(positions)).abs().max() > 1e-3


def test_every_digit_and_its_place_tell():
    torch.manual_seed(0)
    vectors = DigitEncoder(limit=1000, out=8)(torch.tensor([[1], [10], [11], [110], [101]]))
    distances = torch.cdist(vectors, vectors) + 9 * torch.eye(5)
    assert distances.min() > 1e-4


# --- samples ----------------------------------------------------------------------------------------------------------


def test_edits_change_one_digit():
    inserted, deleted, swapped, replaced = edits(120, 2000)
    assert {1120, 1200, 1209} <= set(inserted)
    assert set(deleted) == {12, 10, 20}
    assert set(swapped) == {210, 102}  # 021 is no position
    assert {20, 920} & set(replaced) == {920}
    assert not any(120 in kind or max(kind) >= 2000 for kind in edits(120, 2000))


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_candidates_are_distinct_and_the_nearest_is_named(dims, rate):
    limit = 2048 if dims == 1 else 32
    source = Candidates(np.random.default_rng(0), limit=limit, dims=dims, count=16, window=64, window_rate=rate)
    pivots, candidates, nearest = source.draw(50)
    assert candidates.shape == (50, 16, dims)
    assert candidates.min() >= 0
    assert candidates.max() < limit
    for pivot, row, best in zip(pivots, candidates, nearest, strict=True):
        assert len(np.unique(row, axis=0)) == 16
        distance = np.linalg.norm(row - pivot, axis=1)
        assert distance.min() > 0
        assert distance[best] == distance.min()
        spread = np.ptp(row, axis=0).max()
        assert spread < 64 if rate else True


def test_hard_negatives_look_like_the_pivot_and_are_not_the_nearest():
    source = Candidates(np.random.default_rng(0), limit=2048, count=16, window_rate=0.0, hard=0.5)
    alike = 0
    for _ in range(100):
        pivot = source.rng.integers(2048, size=1)
        row = source.uniform(pivot)[:, 0]
        near = {value for kind in edits(int(pivot[0]), 2048) for value in kind}
        nearest = row[np.abs(row - pivot).argmin()]
        alike += len(near & set(row.tolist()) - {int(nearest)})
    assert alike > 100  # of 16 plain draws in 2048, about a third of a position would be one edit away


def test_windows_lie_beyond_training_at_the_same_places():
    for extent, limit in (((64,), 2048), ((4, 4), 32)):
        source = Windows(np.random.default_rng(0), limit=limit, extent=extent, count=12)
        inside, outside = source.draw(40)
        shift = outside - inside
        assert (shift == shift[:, :1]).all()
        assert (shift[:, 0] >= np.array(extent)).any(axis=1).all()
        assert (inside < np.array(extent)).all()
        assert outside.max() < limit
        assert all(len(np.unique(row, axis=0)) == 12 for row in inside)


def test_too_few_positions_are_refused():
    with pytest.raises(UsageError, match="too few"):
        Candidates(np.random.default_rng(0), limit=20, count=32)
    with pytest.raises(UsageError, match="no window"):
        Windows(np.random.default_rng(0), limit=100, extent=(64,), count=8)


# --- the losses -------------------------------------------------------------------------------------------------------


def test_weights_rise_over_the_warmup_and_shifts_have_their_rate():
    options = PositionOptions(contrast=0.2, transfer=0.0, shift_rate=0.25, pivots=2, candidates=4)
    losses = PositionLosses(encoding("sinusoidal"), options, np.random.default_rng(0), warmup=4)
    plain = PositionLosses(encoding("sinusoidal"), options, np.random.default_rng(0))
    shares = [float(losses()["contrast"] / plain()["contrast"]) for _ in range(6)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    starts = np.array([losses.shift()[0] for _ in range(400)])
    assert 60 < (starts > 0).sum() < 140
    assert starts.max() <= 2048 - 64


def test_the_losses_teach_what_they_ask():
    """After a few steps the nearest of eight candidates is found several times as often as by chance."""
    torch.manual_seed(0)
    found = PositionEncoding("seqpe", width=16, heads=2, layers=2, extent=(16,), limit=64, code=16)
    options = PositionOptions(contrast=1.0, transfer=1.0, pivots=16, candidates=8, offsets=8)
    losses = PositionLosses(found, options, np.random.default_rng(0))
    optimizer = torch.optim.Adam(found.parameters(), lr=3e-3)
    assert nearness_accuracy(found, options, np.random.default_rng(1), pivots=64)["contrast_accuracy"] < 0.3
    for _ in range(25):
        optimizer.zero_grad()
        sum(losses().values()).backward()
        optimizer.step()
    assert nearness_accuracy(found, options, np.random.default_rng(1), pivots=64)["contrast_accuracy"] > 0.4
    assert collisions(found) == 0


# --- encodings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rope", "alibi", "none"])
def test_relative_encodings_do_not_see_a_shift(kind):
    found = encoding(kind)
    q, k = (torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    products = []
    for start in (0, 100):
        said = found((start + torch.arange(6))[None, :, None])
        change = said.adapt(0)
        a, b = (q, k) if change is None else change(q, k)
        bias = said.bias(0)
        products.append(a @ b.transpose(-1, -2) + (0 if bias is None else bias))
    torch.testing.assert_close(*products, atol=1e-4, rtol=1e-4)


def test_alibi_is_linear_in_the_distance():
    bias = encoding("alibi")(torch.arange(5)[None, :, None]).bias(0)
    assert bias.shape == (1, 2, 5, 5)
    torch.testing.assert_close(bias[0, :, 4, 0], -4 * alibi_slopes(2))


def test_the_scalar_is_a_scaled_product_of_mapped_vectors():
    found = encoding(scale=2.0)
    positions = torch.arange(5)[None, :, None]
    q, k = found.to_qk[0](found.encoder(positions)).chunk(2, -1)
    expected = 2.0 / 8**0.5 * (q[0, 3, 8:] @ k[0, 1, 8:])
    torch.testing.assert_close(found(positions).bias(1)[0, 1, 3, 1], expected)
    per_layer = encoding(maps="per_layer")(positions)
    assert not torch.equal(per_layer.bias(0), per_layer.bias(1))


@pytest.mark.parametrize("extent", [(8,), (4, 4)])
def test_a_learned_table_is_stretched_beyond_training(extent):
    found = encoding("learned", extent=extent, limit=16)
    grid = torch.cartesian_prod(*[torch.arange(n) for n in extent]).reshape(-1, len(extent))
    wide = torch.cartesian_prod(*[torch.arange(2 * n) for n in extent]).reshape(-1, len(extent))
    torch.testing.assert_close(found.vectors(grid), found.table[grid.unbind(-1)])
    stretched = found.vectors(wide)
    loss = stretched.square().sum()
    loss.backward()
    trained = torch.zeros(found.table.shape[:-1], dtype=torch.bool)
    trained[tuple(slice(n) for n in extent)] = True
    assert found.table.grad[~trained].abs().sum() == 0
    found.beyond = "extend"
    torch.testing.assert_close(found.vectors(wide), found.table[wide.unbind(-1)])


def test_an_encoding_without_vectors_says_so():
    with pytest.raises(UsageError, match="no vectors"):
        encoding("rope").vectors(torch.zeros(1, 1, dtype=torch.int64))


@pytest.mark.parametrize("kind", ["seqpe", "learned", "sinusoidal", "rope", "alibi", "none"])
def test_patches_have_positions_of_two_dimensions_at_any_grid(kind):
    torch.manual_seed(0)
    network = PatchClassifier(kind=kind, width=16, layers=1)
    x = images(True).x[:4]
    assert network(x).shape == (4, 10)
    large = torch.nn.functional.interpolate(x, scale_factor=2)
    assert network(large).isfinite().all()
    patches = torch.randperm(GRID**2)
    mixed = torch.nn.functional.unfold(x, 2, stride=2)[..., patches]
    shuffled = torch.nn.functional.fold(mixed, (8, 8), 2, stride=2)
    same = torch.allclose(network(x), network(shuffled), atol=1e-6)
    assert same == (kind == "none")
    assert len(images(True).y) + len(images(False).y) == 1797
