"""The reward of images: its closed-form parts, its gradient, and what a prompt adds."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.evaluate.classifiers import Judge
from kdbench.tracks.diffusion.evaluate.rewards import Reward, contrast, prompt_log_prob, sharpness


@pytest.fixture
def judges():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Judge(1, 8, 8, (2,)), Judge(1, 8, 8, (10, 3))


def test_contrast_and_sharpness_of_known_images():
    flat = torch.full((1, 1, 4, 4), 0.3)
    halves = torch.cat([torch.full((1, 1, 4, 2), -1.0), torch.full((1, 1, 4, 2), 1.0)], dim=-1)
    checker = ((torch.arange(4)[:, None] + torch.arange(4)) % 2 * 2.0 - 1).view(1, 1, 4, 4)
    assert contrast(torch.cat([flat, halves, checker])).tolist() == pytest.approx([0, 1, 1], abs=1e-6)
    assert sharpness(torch.cat([flat, halves, checker])).tolist() == pytest.approx([0, 2 / 3 / 4, 1])


def test_a_reward_is_the_sum_of_its_parts_and_its_gradient_reaches_images_alone(judges):
    taste, reader = judges
    x = (0.5 * torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))).clamp(-0.9, 0.9).requires_grad_()
    cond = Condition.of_tokens(torch.tensor([[1, 1], [4, 0], [0, 0]]))
    reward = Reward(taste, reader, prompt=2.0, contrast=0.5, sharpness=0.25)
    value = reward(x, cond)
    expected = F.log_softmax(taste(x)[0], 1)[:, 1] + 0.5 * contrast(x) + 0.25 * sharpness(x)
    torch.testing.assert_close(value, expected + 2 * prompt_log_prob(reader, x, cond.tokens))
    value.sum().backward()
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()
    assert all(parameter.grad is None for parameter in reward.parameters())


def test_a_step_along_the_gradient_raises_the_reward(judges):
    reward = Reward(judges[0])
    x = torch.zeros(4, 1, 8, 8).add(0.1 * torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2)))
    x.requires_grad_()
    (slope,) = torch.autograd.grad(reward(x).sum(), x)
    assert (reward(x + 1e-3 * slope) > reward(x)).all()


def test_a_prompt_is_read_slot_by_slot_without_null_and_foreign_tokens(judges):
    reader, x = judges[1], torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    first, second = (F.log_softmax(logits, 1).detach() for logits in reader(x))
    tokens = torch.tensor([[3, 2], [3, 0], [0, 0], [12, 1]])
    expected = [float((first[0, 2] + second[0, 1]) / 2), float(first[1, 2]), 0.0, float(second[3, 0])]
    assert prompt_log_prob(reader, x, tokens).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_prompt_needs_a_reader_and_prompts(judges):
    with pytest.raises(UsageError, match="judge"):
        Reward(judges[0], prompt=1.0)
    with pytest.raises(UsageError, match="prompts"):
        Reward(*judges, prompt=1.0)(torch.zeros(1, 1, 8, 8))
