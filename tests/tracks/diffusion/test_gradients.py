"""Sizes and tails of the gradients of generated samples."""

from __future__ import annotations

import pytest
import torch

from kdbench.tracks.diffusion.blocks.gradients import GradientTail
from kdbench.tracks.diffusion.blocks.notes import Notes


def test_a_heavy_sample_is_a_tail_and_equal_ones_have_neither_tail_nor_noise():
    equal, heavy = GradientTail(), GradientTail()
    rows = torch.ones(201, 3, 2)
    equal.add(rows)
    rows = rows.clone()
    rows[:3] *= 50
    heavy.add(rows)
    assert equal.summary() == {"gradient_tail": 1.0, "gradient_noise": 0.0, "gradient_kept": 1.0}
    assert heavy.summary()["gradient_tail"] == pytest.approx(50)
    mean = (201 + 3 * 49) / 201
    wanted = (3 * 50**2 + 198) / 201 / mean**2 - 1
    assert heavy.summary()["gradient_noise"] == pytest.approx(wanted, rel=1e-5)


def test_it_watches_the_backward_pass_of_a_mean_and_changes_nothing():
    tail, notes = GradientTail(), Notes()
    x = torch.zeros(4, 2, requires_grad=True)
    made = x * 1.0
    (tail.watch(made, notes) * torch.tensor([3.0, 4.0])).sum(1).mean().backward()
    assert torch.allclose(x.grad, torch.tensor([0.75, 1.0]).expand(4, 2))
    assert notes.read() == {"gradient_norm": pytest.approx(5)}
    assert tail.updates == 1


def test_what_is_kept_of_the_norm_and_the_state():
    tail = GradientTail()
    for number in range(60):
        tail.add(torch.full((4, 1), 8.0 if number < 10 else 2.0))
    assert tail.summary()["gradient_kept"] == pytest.approx(0.25, rel=0.05)
    again = GradientTail()
    again.load_state_dict(tail.state_dict())
    assert again.summary() == tail.summary()
