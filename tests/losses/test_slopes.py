"""Slopes in closed form against automatic differentiation of the divergences."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from kdbench.losses import divergences
from kdbench.losses.divergences import divergence
from kdbench.losses.slopes import SLOPES, Pool, known, with_slope

CASES = [(name, {}) for name in ("ce_soft", "fkl", "rkl", "sfkl", "srkl", "jsd")] + [
    *[("sfkl", {"lam": lam}) for lam in (0.0, 0.5)],
    *[("srkl", {"lam": lam}) for lam in (0.0, 0.9)],
    *[("jsd", {"beta": beta}) for beta in (0.0, 0.2, 1.0)],
]


def logits(*shape: int, seed: int) -> torch.Tensor:
    return 4 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_values_and_slopes(name, options, temperature):
    loss = divergence(name, **options)
    assert known(loss) is not None
    teacher, weights, pool = logits(7, 12, seed=1), logits(7, seed=2), Pool()
    found, expected = (logits(7, 12, seed=0).requires_grad_() for _ in range(2))
    for _ in range(2):  # tensors of the pool are used again
        pool.restart()
        found.grad = None
        values = with_slope(loss, found, teacher, pool, temperature=temperature)
        (values * weights).sum().backward()
    wanted = loss(expected, teacher, temperature=temperature)
    (wanted * weights).sum().backward()
    assert torch.allclose(values, wanted, rtol=1e-9)
    assert torch.allclose(found.grad, expected.grad, rtol=1e-7, atol=1e-10)


def test_extreme_logits_stay_finite():
    student, teacher = torch.zeros(2, 5), torch.zeros(2, 5)
    student[0, 0], teacher[0, 1] = 300.0, 300.0
    student.requires_grad_()
    for name, options in CASES:
        pool = Pool()
        (gradient,) = torch.autograd.grad(
            with_slope(divergence(name, **options), student, teacher, pool).sum(), student
        )
        assert gradient.isfinite().all(), name
        (wanted,) = torch.autograd.grad(divergence(name, **options)(student, teacher).sum(), student)
        assert torch.allclose(gradient, wanted, atol=1e-5), name


def test_padding_of_a_vocabulary():
    student, teacher = logits(3, 34, seed=0).requires_grad_(), logits(3, 33, seed=1)
    (found,) = torch.autograd.grad(with_slope(divergence("fkl"), student, teacher, Pool()).sum(), student)
    (wanted,) = torch.autograd.grad(divergence("fkl")(student, teacher).sum(), student)
    assert torch.allclose(found, wanted)
    assert found[:, 33].abs().max() == 0
    with pytest.raises(ValueError, match="different vocabularies"):
        with_slope(divergence("fkl"), student, teacher[:, :20], Pool())


def test_what_has_no_closed_form_is_computed_as_it_is():
    student, teacher = logits(3, 6, seed=0).requires_grad_(), logits(3, 6, seed=1)
    for loss in (divergence("akl"), divergence("tvd")):
        assert known(loss) is None
        assert torch.equal(with_slope(loss, student, teacher, Pool()), loss(student, teacher))
    assert known(partial(divergences.fkl, temperature=2.0)) is None, "the caller gives the temperature"
    assert known(divergences.rkl) is SLOPES[divergences.rkl]


def test_a_pool_gives_tensors_again_and_takes_back_only_its_own():
    pool, like = Pool(), torch.empty(3, 4)
    first, second = pool.like(like), pool.like(like, torch.float64)
    assert (second.shape, second.dtype) == ((3, 4), torch.float64)
    pool.give(like)
    pool.give(first)
    assert pool.like(like[:2]).data_ptr() == first.data_ptr()
    assert pool.like(like).data_ptr() != first.data_ptr()
    pool.restart()
    assert pool.like(like).data_ptr() == first.data_ptr()
