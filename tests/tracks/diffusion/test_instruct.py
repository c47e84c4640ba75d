"""Phases and parts of the loss of Uni-Instruct."""

from __future__ import annotations

import torch

from kdbench.tracks.diffusion.blocks.fdiv import DIVERGENCES, expanded_loss
from kdbench.tracks.diffusion.blocks.instruct import Instruct, direction_loss
from kdbench.tracks.diffusion.blocks.ratio import DensityRatio
from kdbench.tracks.diffusion.blocks.sid import omega, sid_loss
from kdbench.tracks.diffusion.processes import Flow

T = torch.linspace(0.1, 0.9, 6)


def parts(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6, 4, generator=generator, requires_grad=True) for _ in range(count)]


def made(name: str, **options) -> Instruct:
    return Instruct(DIVERGENCES[name], Flow(), DensityRatio(Flow(), bins=1), **options)


def test_reverse_kl_comes_first_and_the_ratio_is_followed_meanwhile():
    x, real, fake = parts()
    logits = torch.linspace(-1, 2, 6)
    instruct, twin = made("js", warmup=2), DensityRatio(Flow(), bins=1)
    found = [instruct.objective(x, real, fake, T, logits) for _ in range(3)]
    r = twin(logits, T)
    assert torch.equal(found[0], sid_loss(x, real, fake))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], expanded_loss(DIVERGENCES["js"], x, real, fake, r))
    assert not torch.allclose(found[2], found[0])
    again = made("js", warmup=2)
    again.load_state_dict(instruct.state_dict())
    assert again.updates == 3


def test_the_theorem_knows_the_level():
    x, real, fake = parts()
    logits = torch.linspace(-1, 2, 6)
    r = DensityRatio(Flow(), bins=1)(logits, T)
    found = made("chi2", theorem=True).objective(x, real, fake, T, logits)
    assert torch.equal(found, expanded_loss(DIVERGENCES["chi2"], x, real, fake, r, level=T / (1 - T)))


def test_without_base_the_samples_follow_the_weighted_direction_alone():
    x, real, fake = parts()
    logits = torch.linspace(-1, 2, 6)
    r = DensityRatio(Flow(), bins=1)(logits, T)
    found = made("kl", base=False).objective(x, real, fake, T, logits)
    assert torch.equal(found, direction_loss(DIVERGENCES["kl"], x, real, fake, r))
    slopes = torch.autograd.grad(found.sum(), (x, real, fake), allow_unused=True)
    assert torch.allclose(slopes[0], (r / omega(x, real))[:, None] * (fake - real))
    assert slopes[1:] == (None, None)


def test_reverse_kl_needs_no_logits():
    x, real, fake = parts()
    assert torch.equal(made("rkl").objective(x, real, fake, T, None), sid_loss(x, real, fake))
