"""Conditions are indexed, joined, repeated and emptied row by row; guidance combines their predictions."""

from __future__ import annotations

import pytest
import torch

from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import guided
from kdbench.tracks.diffusion.networks.gmm import ExactDenoiser, Mixture
from kdbench.tracks.diffusion.processes import Edm

TOKENS = torch.tensor([[1, 2], [3, 4], [5, 6]])


def test_rows():
    cond = Condition(3, tokens=TOKENS, image=torch.arange(3.0).view(3, 1, 1, 1))
    assert cond[torch.tensor([2, 0])].tokens.tolist() == [[5, 6], [1, 2]]
    assert len(cond[torch.tensor([True, False, True])]) == 2
    assert cond[1:].image.flatten().tolist() == [1, 2]
    assert cond.repeat(2).tokens[:, 0].tolist() == [1, 1, 3, 3, 5, 5]
    assert Condition.cat([cond, cond[:1]]).tokens.tolist() == [*TOKENS.tolist(), [1, 2]]
    assert len(Condition.cat([Condition.none(2), Condition.none(3)])) == 5


def test_null_keeps_the_image_and_empties_the_rest():
    cond = Condition(3, tokens=TOKENS, image=torch.ones(3, 1, 1, 1))
    assert cond.null().tokens.abs().sum() == 0
    assert torch.equal(cond.null().image, cond.image)
    dropped = cond.dropped(torch.tensor([False, True, False]))
    assert dropped.tokens.tolist() == [[1, 2], [0, 0], [5, 6]]
    text = Condition(2, embedding=torch.ones(2, 3, 4), empty=torch.full((1, 3, 4), 7.0))
    assert (text.null().embedding == 7).all()
    assert text.dropped(torch.tensor([True, False])).embedding[:, 0, 0].tolist() == [7, 1]
    with pytest.raises(ValueError, match="empty text"):
        Condition(2, embedding=torch.ones(2, 3, 4)).null()


def test_guidance_is_a_line_through_both_predictions():
    mixture = Mixture([[1.0, 0.0], [-1.0, 0.0]], 0.3, labels=[1, 2])
    teacher, rows = ExactDenoiser(mixture, Edm()), 8
    x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cond = Condition.of_tokens(torch.tensor([1, 2] * 4))
    asked, free = teacher(x, 0.8, cond), teacher(x, 0.8, cond.null())
    assert torch.equal(guided(teacher, x, 0.8, cond, 1.0), asked)
    assert torch.allclose(guided(teacher, x, 0.8, cond, 0.0), free, atol=1e-12)
    assert torch.allclose(guided(teacher, x, 0.8, cond, 3.0), free + 3 * (asked - free), atol=1e-12)
    w = torch.linspace(0, 2, rows, dtype=torch.float64)
    assert torch.allclose(guided(teacher, x, 0.8, cond, w), free + w[:, None] * (asked - free), atol=1e-12)
    other = Condition.of_tokens(torch.tensor([2, 1] * 4))
    away = teacher(x, 0.8, other)
    assert torch.allclose(guided(teacher, x, 0.8, cond, 2.0, other), away + 2 * (asked - away), atol=1e-12)
    assert torch.allclose(
        guided(teacher, x, 0.8, cond, 3.0), mixture.guided_denoise(x, cond.tokens[:, 0], 3.0, 1.0, 0.8)
    )
