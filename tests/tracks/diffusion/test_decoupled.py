"""The two terms of distribution matching with guidance: their sum, their levels, and what replaces one of them."""

from __future__ import annotations

import math

import pytest
import torch

from kdbench.tracks.diffusion.blocks.backward import Reached
from kdbench.tracks.diffusion.blocks.critic import Critic
from kdbench.tracks.diffusion.blocks.decoupled import (
    DecoupledMatching,
    Moments,
    asked,
    augmentation,
    matching_term,
)
from kdbench.tracks.diffusion.blocks.matching import Matching
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.evaluate.saturation import band_power, drift, saturation, variance_ratio
from kdbench.tracks.diffusion.networks.base import guided
from kdbench.tracks.diffusion.processes import Edm, Flow
from tests.helpers.denoisers import SmallDenoiser, Streams, draws

W = 4.0


class Spy(SmallDenoiser):
    """Remembers what it was asked."""

    def __init__(self, *args, **rest):
        super().__init__(*args, **rest)
        self.calls = []

    def denoise(self, x, t, cond, features):
        self.calls.append((x.clone(), t.clone(), cond.tokens.clone()))
        return super().denoise(x, t, cond, features)


def side(kind, process, teacher=None, critic=None, **options):
    teacher, critic = teacher or SmallDenoiser(process, seed=1), critic or SmallDenoiser(process, seed=2)
    critic = Critic(critic.double(), lr=1e-3)
    return kind(Streams(teacher.double()), SmallDenoiser(process), critic, times=[1.0], guidance=W, **options)


def inputs(t=0.5):
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return (
        x,
        Condition.of_tokens(torch.arange(6) % 3 + 1),
        Reached(x, torch.full((6,), t).double(), torch.zeros(6).long()),
    )


# --- the identity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [Edm(), Flow()])
@pytest.mark.parametrize("normalize", [True, False])
def test_with_one_level_both_terms_are_the_guided_gradient(process, normalize):
    whole = side(Matching, process, normalize=normalize).gradient(*inputs())
    parts = side(DecoupledMatching, process, normalize=normalize, schedule="shared").gradient(*inputs())
    torch.testing.assert_close(parts, whole, atol=1e-12, rtol=1e-12)
    dm = side(DecoupledMatching, process, normalize=normalize, schedule="shared", terms="dm").gradient(*inputs())
    ca = side(DecoupledMatching, process, normalize=normalize, schedule="shared", terms="ca")
    ca.levels.draw(6, ca.rng)  # so that what follows is at the level and with the noise of dm
    ca.rng.set_state(torch.Generator().manual_seed(len("generator")).get_state())
    torch.testing.assert_close(dm + ca.gradient(*inputs()), whole, atol=1e-12, rtol=1e-12)


def test_the_terms_are_their_formulas():
    teacher, x = SmallDenoiser(), torch.randn(3, 2)
    cond, t = Condition.of_tokens(torch.tensor([1, 2, 3])), torch.full((3,), 0.7)
    found = asked(teacher, x, t, cond)
    torch.testing.assert_close(found.guided(W), guided(teacher, x, t, cond, W).detach())
    torch.testing.assert_close(found.without, teacher(x, t, cond.null()).detach())
    fake = torch.randn(3, 2)
    torch.testing.assert_close(matching_term(found, fake) + augmentation(found, W), fake - found.guided(W))
    assert torch.equal(augmentation(found, 1.0), torch.zeros(3, 2))


# --- levels -----------------------------------------------------------------------------------------------------------


def levels_of(schedule, process=None, t=0.5):
    teacher, critic = Spy(process, seed=1), Spy(process, seed=2)
    made = side(DecoupledMatching, process or Edm(), teacher, critic, schedule=schedule)
    made.critic.network.calls.clear()
    for _ in range(20):
        made.gradient(*inputs(t))
    return teacher.calls, critic.calls


def test_each_term_has_its_own_level_and_noise():
    teacher, critic = levels_of("hybrid")
    assert len(teacher) == 40
    dm, ca = teacher[0::2], teacher[1::2]
    assert all((times < 0.5).all() for _, times, _ in ca)
    assert any((times > 0.5).any() for _, times, _ in dm)
    for (x, times, _), (other, more, _) in zip(dm, critic, strict=True):
        assert torch.equal(x[:6], other)  # teacher and critic of DM read the same samples
        assert torch.equal(times[:6], more)
    noises = [((x[:6] - inputs()[0]) / times[:6, None]) for x, times, _ in (dm[0], ca[0])]
    assert (noises[0] - noises[1]).abs().min() > 1e-6


@pytest.mark.parametrize(("schedule", "calls"), [("shared", 20), ("cleaner", 20), ("independent", 40)])
def test_other_schedules(schedule, calls):
    teacher, _ = levels_of(schedule)
    assert len(teacher) == calls
    cleaner = all((times < 0.5).all() for _, times, _ in teacher)
    assert cleaner == (schedule == "cleaner")


def test_the_critic_is_never_asked_without_condition():
    teacher, critic = levels_of("hybrid")
    assert all((tokens[6:] == 0).all() and (tokens[:6] > 0).all() for _, _, tokens in teacher)
    assert all((tokens > 0).all() for _, _, tokens in critic)


def test_both_terms_have_one_normalizer_unless_each_has_its_own():
    one = side(DecoupledMatching, Edm(), common=True).gradient(*inputs())
    own = side(DecoupledMatching, Edm(), common=False).gradient(*inputs())
    assert not torch.allclose(one, own)
    shared = [side(DecoupledMatching, Edm(), common=common, schedule="shared") for common in (True, False)]
    torch.testing.assert_close(*(each.gradient(*inputs()) for each in shared))


# --- replacements -----------------------------------------------------------------------------------------------------


def test_moments_are_those_of_channels_and_their_divergence_is_the_known_one():
    x = torch.randn(50, 3, 4, 4) * torch.tensor([1.0, 2.0, 0.5]).view(1, 3, 1, 1) + 0.7
    found = Moments.of(x)
    torch.testing.assert_close(found.mean, x.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(found.variance, x.var(dim=(0, 2, 3), unbiased=False))
    points = Moments.of(x[:, :, 0, 0])
    torch.testing.assert_close(points.mean, x[:, :, 0, 0].mean(0))
    p, q = torch.distributions.Normal(0.3, 2.0), torch.distributions.Normal(-0.5, 0.7)
    one, other = (Moments(d.mean[None], d.variance[None]) for d in (p, q))
    torch.testing.assert_close(one.divergence(other), torch.distributions.kl_divergence(p, q))
    assert float(one.divergence(one)) == 0


def test_the_divergence_of_moments_reaches_the_generator_and_needs_no_critic():
    teacher, notes = SmallDenoiser(seed=1), Notes()
    generator = SmallDenoiser()
    moments = Moments(torch.tensor([3.0, 3.0]), torch.tensor([1.0, 1.0]))
    made = DecoupledMatching(
        Streams(teacher), generator, None, times=[1.0], guidance=W, terms="ca+moments", moments=moments, notes=notes
    )
    losses = made.generator_loss(generator, draws(), None)
    (gradient,) = torch.autograd.grad(losses["moments"], generator.last.bias)
    assert (gradient < 0).all()  # samples lie below 3
    assert float(losses["dmd"].detach()) > 0
    assert set(notes.read()) == {"ca"}


# --- drift ------------------------------------------------------------------------------------------------------------


def test_saturation_and_contrast():
    real = torch.linspace(-1, 1, 400).view(4, 1, 10, 10)
    assert saturation(real) == pytest.approx(0.05, abs=0.006)
    assert variance_ratio(2 * real, real) == pytest.approx(4)
    values = drift((3 * real).clamp(-1, 1), real)
    assert values["saturation_gap"] > 0.5
    assert values["contrast_gap"] == pytest.approx(math.log(values["variance_ratio"]))
    assert drift(real, real) == pytest.approx(
        {"saturation": saturation(real), "saturation_gap": 0, "variance_ratio": 1, "contrast_gap": 0}
        | {f"band{number}": 0 for number in range(4)}
    )


def test_bands_are_those_of_the_frequency():
    places = torch.arange(16).double()
    waves = [torch.cos(2 * math.pi * cycles * places / 16).expand(1, 1, 16, 16) for cycles in (0, 3, 5, 7)]
    for number, wave in enumerate(waves):
        power = band_power(wave)
        assert int(power.argmax()) == number
        assert float(power.sum() - power.max()) == pytest.approx(0, abs=1e-9)
