"""A decoder after a frozen denoiser, random features, and the sampler of both."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from kdbench.tracks.diffusion.blocks.refinement import PatchDiscriminator, RandomFeatures, Refiner
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.data.degrade import blur
from kdbench.tracks.diffusion.networks.build import build
from kdbench.tracks.diffusion.samplers.decoded import Decoded
from kdbench.tracks.diffusion.samplers.fewstep import FewStep
from kdbench.tracks.diffusion.spec import UNet


def images(count=4, seed=0):
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_a_new_decoder_changes_nothing():
    x = images()
    decoder = Refiner(1, 8)
    assert torch.equal(decoder(x), x)
    decoder(x).square().mean().backward()
    assert decoder.body[-1].weight.grad.abs().sum() > 0


def test_random_features_are_those_of_their_seed():
    torch.manual_seed(1)
    one, state = RandomFeatures(1), torch.random.get_rng_state()
    torch.manual_seed(2)
    other = RandomFeatures(1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in one.parameters())
    assert not torch.equal(one.convs[0].weight, RandomFeatures(1, seed=1).convs[0].weight)
    assert len(state)


def test_perceptual_distance_grows_with_blur_and_reaches_the_image():
    x, features = images(), RandomFeatures(1)
    assert float(features.distance(x, x)) == 0
    near, far = (float(features.distance(blur(x, std), x)) for std in (0.5, 2.0))
    assert 0 < near < far
    free = blur(x, 1.0).requires_grad_(True)
    features.distance(free, x).backward()
    assert free.grad.abs().sum() > 0
    assert [tuple(part.shape[1:]) for part in features(x)] == [(16, 16, 16), (32, 8, 8), (64, 4, 4)]


def test_features_have_unit_length_at_every_place():
    for part in RandomFeatures(1)(images()):
        assert torch.allclose(part.norm(dim=1), torch.ones_like(part[:, 0]), atol=1e-5)


def test_a_discriminator_sees_patches():
    network, x = PatchDiscriminator(1), images().requires_grad_(True)
    logits = network(x)
    assert logits.shape == (4, 1, 4, 4)
    assert x.isfinite().all()


def test_the_decoder_counts_no_evaluation_and_is_stored(tmp_path):
    torch.manual_seed(0)
    network, decoder = build(UNet(channels=8), (1, 16, 16)), Refiner(1, 8)
    with torch.no_grad():
        decoder.body[-1].bias.fill_(0.25)
    steps = FewStep(network, [20.0, 2.0], "jump")
    sampler, noise = Decoded(steps, decoder), torch.randn(3, 1, 16, 16)
    generator = torch.Generator().manual_seed(0)
    plain, made = (each.sample(noise, Condition.none(3), generator) for each in (steps, sampler))
    assert made.nfe == plain.nfe == 2
    assert torch.allclose(made.x, plain.x + 0.25)
    assert len(made.trajectory) == len(plain.trajectory) + 1
    assert "decoder" in sampler.networks()
    sampler.save(tmp_path)
    again = Decoded.load(tmp_path, SimpleNamespace(place=lambda part: part))
    assert torch.equal(again.sample(noise, Condition.none(3), generator).x, made.x)


def test_images_of_a_discriminator_may_have_any_channels():
    assert PatchDiscriminator(3)(torch.zeros(2, 3, 16, 16)).shape == (2, 1, 4, 4)
    with pytest.raises(RuntimeError):
        PatchDiscriminator(1)(torch.zeros(2, 3, 16, 16))
