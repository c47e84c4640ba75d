"""Discriminators on features, and adversarial losses."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.blocks.critic import Critic
from kdbench.tracks.diffusion.blocks.gan import (
    DiffusionGan,
    Heads,
    Lazy,
    accuracy,
    discriminator_loss,
    generator_loss,
    noised_logits,
    r1_penalty,
)
from kdbench.tracks.diffusion.blocks.levels import Levels
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.processes import Edm
from tests.helpers.denoisers import SmallDenoiser


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- heads ------------------------------------------------------------------------------------------------------------


def test_a_head_is_a_convolution_of_size_one_averaged_over_places():
    torch.manual_seed(0)
    heads = Heads({"mid": 6, "down.0": 4}, ["down.0", "mid"])
    maps = {"mid": torch.randn(3, 6), "down.0": torch.randn(3, 4, 5, 2)}
    logits = heads(maps)
    assert logits.shape == (3, 2)
    convolution = nn.Conv2d(4, 1, 1)
    with torch.no_grad():
        linear = heads.heads["down_0"]
        convolution.weight.copy_(linear.weight.view(1, 4, 1, 1))
        convolution.bias.copy_(linear.bias)
    torch.testing.assert_close(logits[:, 0], convolution(maps["down.0"]).mean(dim=(1, 2, 3)))
    torch.testing.assert_close(logits[:, 1], heads.heads["mid"](maps["mid"])[:, 0])
    assert Heads({"mid": 6}, hidden=16)({"mid": maps["mid"]}).shape == (3, 1)


@pytest.mark.parametrize("names", [["top"], []])
def test_heads_on_maps_that_are_not_there(names):
    with pytest.raises(UsageError, match="mid, out"):
        Heads({"mid": 6, "out": 2}, names)


# --- where gradients go -----------------------------------------------------------------------------------------------


def adversary():
    critic = Critic(SmallDenoiser(seed=1), lr=1e-2, modules=[Heads({"mid": 8})])
    return critic, DiffusionGan(critic.network, critic.modules[0], Levels(Edm()), rng())


def test_the_trunk_learns_in_the_turn_of_the_critic_and_never_in_that_of_the_generator():
    critic, gan = adversary()
    generator = SmallDenoiser()
    noise, cond = torch.randn(6, 2), Condition.none(6)
    trunk, head = deepcopy(critic.network.first.weight), deepcopy(critic.modules[0].heads["mid"].weight)
    generator_loss(gan.logits(generator(noise, 2.0, cond), cond)).backward()
    assert generator.first.weight.grad.abs().sum() > 0
    assert all(p.grad is None for part in (critic.network, critic.modules) for p in part.parameters())
    generator.zero_grad()
    with critic.training():
        fake = gan.logits(generator(noise, 2.0, cond).detach(), cond)
        critic.update({"gan": discriminator_loss(gan.logits(noise + 3, cond), fake)})
    assert not torch.equal(critic.network.first.weight, trunk)
    assert not torch.equal(critic.modules[0].heads["mid"].weight, head)
    assert torch.equal(critic.network.last.weight, SmallDenoiser(seed=1).last.weight)  # behind the features
    assert all(p.grad is None for p in generator.parameters())


def test_a_discriminator_learns_to_tell_points_apart_and_the_generator_to_please_it():
    critic, gan = adversary()
    real, fake = torch.randn(256, 2, generator=rng(1)) + 2, torch.randn(256, 2, generator=rng(2)) - 2
    cond = Condition.none(256)
    gan.levels = Levels(Edm(sigma_max=2.0), most=0.7)
    for _ in range(60):
        with critic.training():
            critic.update({"gan": discriminator_loss(gan.logits(real, cond), gan.logits(fake, cond))})
    assert accuracy(gan.logits(real, cond), gan.logits(fake, cond)) > 0.9
    x = fake.clone().requires_grad_(True)
    generator_loss(gan.logits(x, cond)).backward()
    assert float((-x.grad).sum(1).mean()) > 0  # downhill is towards the real ones


def test_both_kinds_of_samples_are_noised_at_levels_of_one_distribution():
    seen = []

    class Recording(SmallDenoiser):
        def denoise(self, x, t, cond, features):
            seen.append((x, t))
            return super().denoise(x, t, cond, features)

    network = Recording()
    gan = DiffusionGan(network, Heads({"mid": 8, "out": 2}, ["mid", "out"]), Levels(Edm(), 0.2, 0.6), rng(), mean=True)
    x, cond = torch.zeros(2000, 2), Condition.none(2000)
    assert gan.logits(x, cond).shape == (2000, 1)
    gan.logits(x, cond)
    (first, t), (second, s) = seen
    assert not torch.equal(first, second)
    torch.testing.assert_close(t.log().mean(), s.log().mean(), atol=0.1, rtol=0)
    torch.testing.assert_close((first / t[:, None]).std(), torch.tensor(1.0), atol=0.05, rtol=0)
    low, high = gan.levels.times[200], gan.levels.times[600]
    assert low <= t.min() <= t.max() <= high
    noise, times = torch.randn(2000, 2), torch.full((2000,), 0.5)
    logits = noised_logits(network, gan.heads, x, cond, times, noise)
    torch.testing.assert_close(logits, gan.heads(network(0.5 * noise, 0.5, cond, features=True)[1]))


# --- losses -----------------------------------------------------------------------------------------------------------


def test_losses_are_their_formulas():
    real, fake = torch.tensor([[0.5], [3.0]]), torch.tensor([[-2.0], [0.25]])
    values = {kind: float(discriminator_loss(real, fake, kind)) for kind in ("softplus", "hinge", "lsgan", "wgan")}
    assert values["softplus"] == pytest.approx(float((softplus(-real) + softplus(fake)).mean()))
    assert values["hinge"] == pytest.approx((0.5 + 0) / 2 + (0 + 1.25) / 2)
    assert values["lsgan"] == pytest.approx((0.25 + 4) / 2 + (4 + 0.0625) / 2)
    assert values["wgan"] == pytest.approx(-1.75 / 2 - 3.5 / 2)
    assert float(discriminator_loss(real, fake, "bce")) == pytest.approx(values["softplus"])
    assert float(generator_loss(fake)) == pytest.approx(float(softplus(-fake).mean()))
    assert float(generator_loss(fake, "hinge")) == pytest.approx(1.75 / 2)
    assert float(generator_loss(fake, "lsgan")) == pytest.approx((9 + 0.75**2) / 2)


@pytest.mark.parametrize("kind", ["softplus", "hinge", "bce", "lsgan", "wgan"])
def test_real_is_up_for_the_critic_and_fake_for_the_generator(kind):
    real, fake = torch.zeros(2, 1, requires_grad=True), torch.zeros(2, 1, requires_grad=True)
    discriminator_loss(real, fake, kind).backward()
    assert (real.grad < 0).all()
    if kind != "lsgan":  # whose target of generated samples is 0
        assert (fake.grad > 0).all()
    fake.grad = None
    generator_loss(fake, kind).backward()
    assert (fake.grad < 0).all()


def test_smoothed_labels_are_reached_by_the_probability():
    logit = torch.zeros(1, requires_grad=True)
    for _ in range(200):
        (gradient,) = torch.autograd.grad(discriminator_loss(logit, torch.zeros(1), "bce", 0.2), logit)
        logit = (logit - 2 * gradient).detach().requires_grad_(True)
    torch.testing.assert_close(torch.sigmoid(logit.detach()), torch.tensor([0.8]))
    with pytest.raises(UsageError, match="smoothed"):
        discriminator_loss(logit, logit, "hinge", 0.1)


@pytest.mark.parametrize(
    "loss",
    [
        lambda kind: discriminator_loss(torch.zeros(1), torch.zeros(1), kind),
        lambda kind: generator_loss(torch.zeros(1), kind),
    ],
)
def test_losses_that_there_are_not(loss):
    with pytest.raises(UsageError, match="rahinge"):
        loss("rahinge")


def test_r1_of_a_linear_discriminator_is_the_norm_of_its_weight():
    weight = torch.tensor([[3.0, -4.0]], requires_grad=True)
    x = torch.randn(5, 2, requires_grad=True)
    penalty = r1_penalty(x @ weight.T, x, gamma=0.1)
    torch.testing.assert_close(penalty, torch.tensor(0.05 * 25))
    penalty.backward()
    torch.testing.assert_close(weight.grad, 0.1 * weight.detach())


def test_a_lazy_regularizer_weighs_as_much_as_one_at_each_update():
    lazy = Lazy(4)
    weights = [lazy.weight() for _ in range(10)]
    assert weights == [4.0, 0, 0, 0, 4.0, 0, 0, 0, 4.0, 0]
    other = Lazy(4)
    other.load_state_dict(lazy.state_dict())
    assert [other.weight() for _ in range(3)] == [0, 0, 4.0]


def test_accuracy_counts_both_sides():
    assert float(accuracy(torch.tensor([1.0, -1.0]), torch.tensor([-1.0, -2.0]))) == 0.75
