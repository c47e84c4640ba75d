"""Learned augmentations: the maps they make, gradients into their parameters, and whose turn it is."""

import math

import pytest
import torch

from kdbench.training import augmentors as A


def images(count=4, size=16, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def theta(count=4, **parts):
    made = torch.zeros(count, len(A.AFFINE))
    for name, value in parts.items():
        made[:, A.AFFINE.index(name)] = value
    return made


def test_zero_is_the_identity():
    x = images()
    assert torch.allclose(A.affine(x, theta()), x, atol=1e-5)


def test_shifts_move_the_content_right_and_down_by_whole_pixels():
    x = images()
    moved = A.affine(x, theta(shift_x=2 * 3 / 16, shift_y=2 * 1 / 16))
    assert torch.allclose(moved[..., 1:, 3:], x[..., :-1, :-3], atol=1e-4)


def test_a_quarter_turn_is_clockwise():
    x = images()
    assert torch.allclose(A.affine(x, theta(rotation=math.pi / 2)), x.rot90(-1, (2, 3)), atol=1e-4)


def test_enlarging_by_two_shows_the_middle():
    x = torch.zeros(1, 3, 16, 16)
    x[..., 6:10, 6:10] = 1.0
    assert A.affine(x, theta(1, scale=math.log(2)))[0, 0].sum() == pytest.approx(4 * 16, rel=0.05)


@pytest.mark.parametrize("predicted", [False, True])
def test_gradients_reach_the_distribution_of_maps(predicted):
    augmentor = A.AffineAugmentor(predicted=predicted)
    out = augmentor(images(), torch.Generator().manual_seed(0))
    out.square().mean().backward()
    assert augmentor.mu.grad.abs().min() > 0
    assert torch.tril(augmentor.scale.grad).abs().sum() > 0
    if predicted:
        assert augmentor.net[-1].weight.grad.abs().max() > 0


def test_parts_that_are_not_free_stay_zero():
    augmentor = A.AffineAugmentor(("shift_x",), start=0.5)
    torch.nn.init.ones_(augmentor.mu)
    ranges = augmentor.ranges(images())
    assert ranges["shift_x"] == pytest.approx(0.5)
    assert all(value == 0 for name, value in ranges.items() if name != "shift_x")
    with pytest.raises(ValueError, match="tilt"):
        A.AffineAugmentor(("tilt",))


def test_the_learned_range_is_that_of_the_maps():
    augmentor = A.AffineAugmentor(("shift_x", "shift_y"), start=0.2)
    with torch.no_grad():
        augmentor.scale[1, 0] = 0.3
    mu, scale = augmentor.moments(images(1))
    eps = torch.randn(20000, 5, generator=torch.Generator().manual_seed(0))
    drawn = (mu + eps @ scale[0].T).detach()
    for place, name in enumerate(A.AFFINE):
        assert augmentor.ranges(images(2))[name] == pytest.approx(float(drawn[:, place].std()), rel=0.03, abs=1e-6)


def test_the_autoencoder_learns_and_latent_movements_are_bounded():
    torch.manual_seed(0)
    x = torch.randn(64, 3, 1, 1).expand(64, 3, 8, 8).contiguous()  # plain colours: three numbers suffice
    vae, generator = A.VAE(8, 4, width=4), torch.Generator().manual_seed(0)
    optimizer, losses = torch.optim.Adam(vae.parameters(), lr=0.01), []
    for _ in range(50):
        losses.append(sum(vae.loss(x, generator).values()))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    augmentor = A.LatentAugmentor(vae, 4, radius=0.7)
    with torch.no_grad():
        augmentor.net[-1].weight.mul_(100)
    z = vae.encode(x)[0]
    moved = augmentor.perturbation(z, generator)
    assert 0.5 < moved.abs().max() <= 0.7
    augmentor(x, generator).square().mean().backward()
    assert augmentor.net[0].weight.grad.abs().max() > 0
    assert all(parameter.grad is None or not parameter.requires_grad for parameter in vae.parameters())


def test_a_movement_of_nothing_changes_nothing_or_is_the_drawing():
    vae = A.VAE(8, 4, width=4)
    x, generator = images(2, 8), torch.Generator()
    for residual in (True, False):
        augmentor = A.LatentAugmentor(vae, 4, residual=residual)
        torch.nn.init.zeros_(augmentor.net[-1].weight)
        torch.nn.init.zeros_(augmentor.net[-1].bias)
        expected = x if residual else vae.decoder(vae.encode(x)[0])
        assert torch.allclose(augmentor(x, generator), expected, atol=1e-5)


def test_an_autoencoder_has_sizes_that_can_be_halved_twice():
    with pytest.raises(ValueError, match="18 pixels"):
        A.VAE(18)


def test_fixed_shifts_are_whole_pixels_within_reach():
    x = torch.zeros(50, 3, 16, 16)
    x[..., 8, 8] = 1.0
    moved = A.FixedAugmentor("random-shift", reach=3)(x, torch.Generator().manual_seed(0))
    places = (moved[:, 0] > 0.99).nonzero()
    assert len(places) == 50
    assert (places[:, 1:] - 8).abs().max() == 3
    other = A.FixedAugmentor("randaugment", magnitude=0.2)(images(), torch.Generator().manual_seed(0))
    assert other.shape == (4, 3, 16, 16)
    assert not torch.allclose(other, images())


def test_turns_have_hysteresis():
    turns = A.Alternation(1.0, 2.0, decay=0.0)
    seen = [turns.see(value) for value in (1.5, 0.9, 1.5, 1.9, 2.1, 1.5, 0.5)]
    assert seen == [False, True, True, True, False, False, True]
    with pytest.raises(ValueError, match="not below"):
        A.Alternation(2.0, 2.0)


def test_disagreement_is_smoothed_and_survives_a_checkpoint():
    turns = A.Alternation(0.1, 0.2, decay=0.5)
    turns.see(1.0), turns.see(0.0)
    assert turns.smoothed == pytest.approx(0.5)
    other = A.Alternation(0.1, 0.2, decay=0.5)
    other.load_state_dict(turns.state_dict())
    assert other.see(0.0) == turns.see(0.0)
    assert other.smoothed == turns.smoothed
