"""Losses of logits made block by block: values and gradients are those of the plain formula."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kdbench.losses.divergences import DIVERGENCES, divergence
from kdbench.losses.vocabulary import Head, chunked_divergence, chunked_loss

N, V, D, E = 13, 40, 6, 5


def values(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def student(dtype: torch.dtype = torch.float64, bias: bool = True) -> Head:
    parts = values(N, D, seed=0, dtype=dtype), values(V, D, seed=1, dtype=dtype), values(V, seed=2, dtype=dtype)
    head = Head(*(part.requires_grad_() for part in parts))
    return head if bias else Head(head.hidden, head.weight)


def teacher(dtype: torch.dtype = torch.float64) -> Head:
    return Head(values(N, E, seed=3, dtype=dtype), values(V, E, seed=4, dtype=dtype))


WEIGHTS = values(N, seed=5).abs()
TARGETS = torch.arange(N) % V


def plain(head: Head, said: torch.Tensor, loss, kd_ratio: float, temperature: float) -> torch.Tensor:
    logits = F.linear(head.hidden, head.weight, head.bias)
    weights = WEIGHTS.to(torch.promote_types(logits.dtype, torch.float32))
    kd = (weights * loss(logits, said, temperature=temperature)).sum()
    ce = (weights * F.cross_entropy(logits.to(weights.dtype), TARGETS, reduction="none")).sum()
    return kd_ratio * kd + (1 - kd_ratio) * ce


def gradients(head: Head, total: torch.Tensor) -> list[torch.Tensor]:
    leaves = [part for part in (head.hidden, head.weight, head.bias) if part is not None]
    return list(torch.autograd.grad(total, leaves))


@pytest.mark.parametrize("rows", [1, 4, 13, 100])
@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in DIVERGENCES] + [("jsd", {"beta": 0.1}), ("sfkl", {"lam": 0.0}), ("srkl", {"lam": 0.4})],
)
def test_values_and_gradients_are_those_of_the_plain_formula(name, options, rows):
    loss = divergence(name, **options)
    for kd_ratio, temperature in ((1.0, 1.0), (0.3, 2.0)):
        head = student(bias=kd_ratio < 1)
        expected = plain(head, teacher().logits(), loss, kd_ratio, temperature)
        parts = chunked_divergence(
            head,
            teacher(),
            loss,
            WEIGHTS,
            targets=TARGETS,
            kd_ratio=kd_ratio,
            temperature=temperature,
            rows=rows,
        )
        total = sum(parts.values())
        assert total.item() == pytest.approx(expected.item(), rel=1e-6)
        for found, wanted in zip(gradients(head, 3 * total), gradients(head, 3 * expected), strict=True):
            assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-8)
        assert list(parts) == (["kd"] if kd_ratio == 1 else ["kd", "ce"])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_lower_precision_has_the_plain_formulas_accuracy(dtype, tolerance):
    loss = divergence("fkl")
    exact = student(dtype)
    exact = Head(*(part.detach().double().requires_grad_() for part in (exact.hidden, exact.weight, exact.bias)))
    said = Head(*(part.double() for part in (teacher(dtype).hidden, teacher(dtype).weight)))
    wanted = gradients(exact, plain(exact, said.logits(), loss, 1.0, 1.0))
    head = student(dtype)
    total = sum(chunked_divergence(head, teacher(dtype), loss, WEIGHTS.float(), rows=4).values())
    assert total.dtype == torch.float32
    for found, goal in zip(gradients(head, total), wanted, strict=True):
        assert found.dtype == dtype
        assert (found.double() - goal).norm() < tolerance * goal.norm()


def test_the_teacher_may_be_logits_and_its_vocabulary_padded():
    said = torch.cat([teacher().logits(), values(N, 2, seed=6)], 1)
    head, loss = student(), divergence("rkl")
    expected = plain(head, said[:, :V], loss, 1.0, 1.0)
    total = sum(chunked_divergence(head, said, loss, WEIGHTS, rows=5).values())
    assert total.item() == pytest.approx(expected.item())
    for found, wanted in zip(gradients(head, total), gradients(head, expected), strict=True):
        assert torch.allclose(found, wanted)


def test_parts_keep_their_values_and_the_first_has_the_gradient():
    head, loss = student(), divergence("fkl")
    parts = chunked_divergence(head, teacher(), loss, WEIGHTS, targets=TARGETS, kd_ratio=0.5, rows=4)
    whole = plain(head, teacher().logits(), loss, 0.5, 1.0)
    assert parts["kd"].item() == pytest.approx(whole.item() - parts["ce"].item())
    assert parts["ce"].item() == pytest.approx(plain(head, teacher().logits(), loss, 0.0, 1.0).item() / 2)
    assert parts["kd"].requires_grad
    assert not parts["ce"].requires_grad


def test_autocast_makes_logits_as_a_linear_layer_does():
    head = student(torch.float32)
    seen = []

    def loss(logits, rows):
        seen.append(logits.dtype)
        return {"loss": logits.float().square().sum()}

    with torch.autocast("cpu", torch.bfloat16):
        total = chunked_loss(head, loss, rows=4)["loss"]
        expected = F.linear(head.hidden, head.weight, head.bias).float().square().sum()
    assert set(seen) == {torch.bfloat16}
    for found, wanted in zip(gradients(head, total), gradients(head, expected), strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_only_what_is_asked_for_is_computed():
    head, loss = student(), divergence("fkl")
    frozen = Head(head.hidden, head.weight.detach(), head.bias.detach())
    total = sum(chunked_divergence(frozen, teacher(), loss, WEIGHTS, rows=4).values())
    (found,) = torch.autograd.grad(total, frozen.hidden)
    assert torch.allclose(found, gradients(head, plain(head, teacher().logits(), loss, 1.0, 1.0))[0], rtol=1e-5)
    with torch.no_grad():
        value = sum(chunked_divergence(head, teacher(), loss, WEIGHTS, rows=4).values())
    assert value.item() == pytest.approx(total.item())
    assert not value.requires_grad


def test_no_block_is_larger_than_it_may_be():
    sizes = []

    def loss(logits, rows):
        sizes.append((len(logits), rows.stop - rows.start))
        return {"loss": logits.sum()}

    chunked_loss(student(), loss, rows=5)
    assert sizes == [(5, 5), (5, 5), (3, 3)]
    with pytest.raises(ValueError, match="at least 1"):
        chunked_loss(student(), loss, rows=0)


def test_a_second_derivation_is_refused():
    total = sum(chunked_divergence(student(), teacher(), divergence("fkl"), WEIGHTS, rows=4).values())
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        total.backward()


def test_no_positions_cost_nothing():
    head = Head(values(0, D, seed=0).requires_grad_(), values(V, D, seed=1).requires_grad_())
    total = sum(chunked_divergence(head, values(0, V, seed=2), divergence("fkl"), WEIGHTS[:0]).values())
    assert total.item() == 0
    assert gradients(head, total)[1].abs().sum() == 0
