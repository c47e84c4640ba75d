"""The clipped divergence: its limits, by hand, and where its gradients go."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.losses.clipping import clipped_kl, dense_region
from kdbench.losses.divergences import fkl
from kdbench.training.quantiles import Quantiles, quantiles, top_probabilities

OPEN = (torch.tensor(-math.inf), torch.tensor(math.inf))


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STUDENT, TEACHER = logits(6, 9), logits(6, 9, seed=1)


def odds(value: float) -> torch.Tensor:
    return torch.logit(torch.tensor(value, dtype=torch.float64))


@pytest.mark.parametrize("clip", ["cut", "border"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_between_the_quantiles_0_and_1_it_is_forward_kl(clip, dtype):
    student, teacher = STUDENT.to(dtype), 6 * TEACHER.to(dtype)  # with tokens of next to no probability
    value, region = clipped_kl(student, teacher, *OPEN, clip=clip)
    assert torch.allclose(value, fkl(student, teacher), atol=1e-6)
    assert torch.equal(region.inside, torch.ones_like(student))
    assert torch.allclose(region.mass, torch.ones(6, dtype=dtype))


def test_a_sharp_border_leaves_the_tokens_between_the_quantiles():
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)  # places 0.25, 0.65, 0.875, 0.975
    q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    low, high = odds(0.4), odds(0.9)
    value, region = clipped_kl(q.log(), p.log(), low, high, softness=1e-3, keep_top=False)
    assert region.tokens.item() == pytest.approx(2)
    assert region.mass.item() == pytest.approx(0.45)
    inside = fkl(q[1:3].log(), p[1:3].log())
    assert value.item() == pytest.approx(inside.item())
    with_top, region = clipped_kl(q.log(), p.log(), low, high, softness=1e-3)
    assert region.mass.item() == pytest.approx(0.95)
    assert with_top.item() == pytest.approx(fkl(q[:3].log(), p[:3].log()).item())
    # the others at the border they are beyond: the first at that of the second, the last at that of the third
    moved, _ = clipped_kl(q.log(), p.log(), odds(0.64), odds(0.88), softness=1e-3, keep_top=False, clip="border")
    assert moved.item() == pytest.approx(fkl(q[[1, 1, 2, 2]].log(), p[[1, 1, 2, 2]].log()).item(), rel=1e-4)


def test_a_wider_region_holds_more_of_the_teachers_mass():
    widths = [dense_region(TEACHER, odds(low), odds(1 - low)) for low in (0.3, 0.1, 0.01)]
    for narrow, wide in itertools.pairwise(widths):
        assert (wide.mass > narrow.mass).all()
        assert (wide.tokens > narrow.tokens).all()
    assert torch.equal(widths[0].order[:, 0], TEACHER.argmax(-1))
    assert torch.equal(widths[0].inside[:, 0], torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("clip", ["cut", "border"])
def test_gradients_reach_the_student_and_the_quantiles(clip):
    student = STUDENT[:3, :5].clone().requires_grad_()
    low, high = (odds(value).repeat(3).requires_grad_() for value in (0.05, 0.9))
    teacher = TEACHER[:3, :5].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: clipped_kl(x[0], teacher, *x[1:], clip=clip)[0], (student, low, high))
    clipped_kl(student, teacher, low, high, clip=clip)[0].sum().backward()
    assert teacher.grad is None
    assert all((leaf.grad != 0).all() for leaf in (low, high))


@pytest.mark.parametrize("clip", ["cut", "border"])
def test_impossible_tokens_do_no_harm(clip):
    teacher = TEACHER.clone()
    teacher[:, 3] = -math.inf
    student = STUDENT.clone().requires_grad_()
    value, _ = clipped_kl(student, teacher, odds(0.05), odds(0.95), clip=clip)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(student.grad).all()


# --- the network that gives the quantiles -----------------------------------------------------------------------------


def test_the_network_starts_where_it_is_told_and_is_trained_through_the_border():
    torch.manual_seed(0)
    network = Quantiles(top_k=4, hidden=8, low=0.1, high=0.9, least=0.5)
    student, teacher = STUDENT.float().requires_grad_(), TEACHER.float()
    low, high = network(student, teacher)
    assert torch.allclose(low.sigmoid(), torch.full((6,), 0.1))
    assert torch.allclose(high.sigmoid(), torch.full((6,), 0.9))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):  # the first step moves the last layer alone
        optimizer.zero_grad()
        clipped_kl(student, teacher, *network(student, teacher))[0].mean().backward()
        optimizer.step()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())
    low, high = network(student, teacher)
    assert low.std() > 0
    with torch.no_grad():
        network.body[-1].bias.copy_(torch.tensor([50.0, 50.0]))
        low, high = network(student, teacher)
    assert torch.allclose(low.sigmoid(), torch.full((6,), 0.25))  # never closer than the least mass
    assert torch.allclose(high.sigmoid(), torch.full((6,), 0.75))


def test_the_network_sends_no_gradient_to_the_student():
    network = Quantiles(4, 8, 0.1, 0.9)
    student = STUDENT.float().requires_grad_()
    low, _ = network(student, TEACHER.float())
    assert torch.autograd.grad(low.sum(), student, allow_unused=True) == (None,)


def test_it_reads_the_largest_probabilities_in_order():
    top = top_probabilities(torch.tensor([[0.0, 2.0, 1.0]]), 5)
    p = torch.tensor([2.0, 1.0, 0.0]).softmax(-1)
    assert torch.allclose(top, torch.cat([p, torch.zeros(2)])[None])


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.9), (0.1, 1.0), (0.3, 0.9), (0.1, 0.7)])
def test_quantiles_that_cannot_be_learned_are_refused(low, high):
    with pytest.raises(ValueError, match="1 - high < 0.25"):
        Quantiles(4, 8, low, high, least=0.5)
    with pytest.raises(UsageError, match="1 - high < 0.25"):
        quantiles(low, high, learned=True, top_k=4, hidden=8, least=0.5)


def test_fixed_quantiles_may_be_0_and_1():
    low, high = quantiles(0.0, 1.0, learned=False, top_k=4, hidden=8, least=0.5)(STUDENT, TEACHER)
    assert low.tolist() == [-math.inf] * 6
    assert high.tolist() == [math.inf] * 6
    with pytest.raises(UsageError, match="low is below high"):
        quantiles(0.5, 0.5, learned=False, top_k=4, hidden=8, least=0.5)
