"""What must hold of every divergence: values, gradients, limits, masks, temperature, precision."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kdbench.errors import UsageError
from kdbench.losses import divergences as d

EACH = [
    pytest.param(partial(function, **options), id=name + "".join(f"-{value}" for value in options.values()))
    for name, function, options in [
        ("ce_soft", d.ce_soft, {}),
        ("fkl", d.fkl, {}),
        ("rkl", d.rkl, {}),
        ("sym_kl", d.sym_kl, {}),
        ("sfkl", d.sfkl, {"lam": 0.1}),
        ("srkl", d.srkl, {"lam": 0.1}),
        ("jsd", d.jsd, {"beta": 0.5}),
        ("jsd", d.jsd, {"beta": 0.9}),
        ("jsd", d.jsd, {"beta": 0.0}),
        ("jsd", d.jsd, {"beta": 1.0}),
        ("akl", d.akl, {"mu": 0.5}),
        ("tvd", d.tvd, {}),
        ("hellinger", d.hellinger, {}),
        ("ab", d.ab_divergence, {"alpha": 0.5, "beta": 0.7}),
    ]
]
ZERO_AT_EQUALITY = [case for case in EACH if case.id != "ce_soft"]


def logits(*shape: int, seed: int = 0, scale: float = 2.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradient(loss, student: torch.Tensor, teacher: torch.Tensor, **options) -> torch.Tensor:
    student = student.clone().requires_grad_()
    loss(student, teacher, **options).sum().backward()
    assert student.grad is not None
    return student.grad


def from_probabilities(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", EACH)
def test_one_value_per_position_in_float32_for_half_precision_logits(loss):
    value = loss(logits(3, 4, 7, dtype=torch.bfloat16), logits(3, 4, 7, seed=1, dtype=torch.bfloat16))
    assert value.shape == (3, 4)
    assert value.dtype == torch.float32


@pytest.mark.parametrize("loss", ZERO_AT_EQUALITY)
def test_zero_with_zero_gradient_when_student_equals_teacher(loss):
    same = logits(5, 9)
    assert loss(same, same + 3).abs().max() < 1e-7  # a constant shift of logits is no difference
    assert gradient(loss, same, same).abs().max() < 1e-7


@pytest.mark.parametrize("loss", ZERO_AT_EQUALITY)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 20))
def test_never_negative(loss, seed, scale):
    assert loss(logits(4, 6, seed=seed, scale=scale), logits(4, 6, seed=seed + 1, scale=scale)).min() > -1e-9


@pytest.mark.parametrize("loss", [case for case in EACH if not case.id.startswith("akl")])  # its weights are constants
def test_gradient_is_the_derivative_of_the_value(loss):
    student, teacher = logits(3, 6).requires_grad_(), logits(3, 6, seed=1)
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher), (student,))


@pytest.mark.parametrize("loss", EACH)
def test_teacher_gets_no_gradient(loss):
    student, teacher = logits(3, 6).requires_grad_(), logits(3, 6, seed=1).requires_grad_()
    loss(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("loss", EACH)
def test_temperature_divides_both_logits_and_its_square_multiplies_the_value(loss):
    student, teacher = logits(4, 8), logits(4, 8, seed=1)
    cooled = loss(student / 3, teacher / 3)
    assert torch.allclose(loss(student, teacher, temperature=3.0, scale_t2=False), cooled)
    assert torch.allclose(loss(student, teacher, temperature=3.0), 9 * cooled)


@pytest.mark.parametrize("loss", EACH)
def test_a_temperature_per_position_equals_one_call_per_position(loss):
    student, teacher, tau = logits(4, 8), logits(4, 8, seed=1), torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    one_by_one = [loss(student[i], teacher[i], temperature=float(tau[i])) for i in range(4)]
    assert torch.allclose(loss(student, teacher, temperature=tau), torch.stack(one_by_one))


@pytest.mark.parametrize("loss", EACH)
def test_padding_of_one_vocabulary_is_cut_before_the_softmax(loss):
    student, teacher = logits(3, 64), logits(3, 66, seed=1)
    assert torch.equal(loss(student, teacher), loss(student, teacher[:, :64]))
    assert torch.equal(loss(teacher, student), loss(teacher[:, :64], student))


def test_another_tokenizer_is_not_taken_for_padding():
    with pytest.raises(ValueError, match="different vocabularies"):
        d.fkl(logits(3, 512), logits(3, 1024))


@pytest.mark.parametrize("loss", EACH)
def test_no_rows_are_no_values(loss):
    assert loss(logits(0, 6), logits(0, 6)).shape == (0,)


@pytest.mark.parametrize("loss", EACH)
def test_impossible_entries_leave_value_and_gradient_finite_and_count_for_nothing_where_both_have_them(loss):
    student, teacher = logits(3, 6), logits(3, 6, seed=1)
    padded_student, padded_teacher = (F.pad(z, (0, 1), value=-math.inf) for z in (student, teacher))
    assert torch.allclose(loss(padded_student, padded_teacher), loss(student, teacher))
    full = gradient(loss, padded_student, padded_teacher)
    assert torch.allclose(full[:, :6], gradient(loss, student, teacher))
    assert (full[:, 6] == 0).all()

    one_sided = student.clone()
    one_sided[:, 2] = -math.inf
    for pair in ((one_sided, teacher), (teacher, one_sided)):
        assert loss(*pair).isfinite().all()
        assert gradient(loss, *pair).isfinite().all()


@pytest.mark.parametrize("loss", EACH)
def test_a_learned_temperature_has_a_finite_gradient_beside_impossible_entries(loss):
    student, teacher = (F.pad(logits(3, 6, seed=seed), (0, 1), value=-math.inf) for seed in (0, 1))
    tau = torch.full((3,), 2.0, dtype=torch.float64, requires_grad=True)
    loss(student, teacher, temperature=tau).sum().backward()
    assert tau.grad.isfinite().all()


@pytest.mark.parametrize("loss", EACH)
def test_extreme_logits_stay_finite_in_float32(loss):
    student = torch.tensor([[1e4, 0.0, -1e4]])
    teacher = torch.tensor([[-1e4, 0.0, 1e4]])
    assert loss(student, teacher).isfinite().all()
    assert gradient(loss, student, teacher).isfinite().all()


# --- which is which ---------------------------------------------------------------------------------------------------


def test_values_by_hand():
    """p = (0.5, 0.5), q = (0.9, 0.1): every divergence from its definition, with plain numbers."""
    p, q = (0.5, 0.5), (0.9, 0.1)
    student, teacher = from_probabilities(list(q)), from_probabilities(list(p))

    def kl(a, b):
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    def mix(w):
        return tuple(w * x + (1 - w) * y for x, y in zip(p, q, strict=True))

    assert d.fkl(student, teacher).item() == pytest.approx(kl(p, q))
    assert d.rkl(student, teacher).item() == pytest.approx(kl(q, p))
    assert d.ce_soft(student, teacher).item() == pytest.approx(kl(p, q) + math.log(2))
    assert d.sfkl(student, teacher, lam=0.1).item() == pytest.approx(kl(p, mix(0.1)))
    assert d.srkl(student, teacher, lam=0.1).item() == pytest.approx(kl(q, mix(0.9)))
    assert d.jsd(student, teacher, beta=0.3).item() == pytest.approx(0.3 * kl(p, mix(0.3)) + 0.7 * kl(q, mix(0.3)))
    assert d.tvd(student, teacher).item() == pytest.approx(0.4)
    squared = 0.5 * sum((math.sqrt(x) - math.sqrt(y)) ** 2 for x, y in zip(p, q, strict=True))
    assert d.hellinger(student, teacher).item() == pytest.approx(math.sqrt(squared))


def test_fkl_is_kl_div_of_torch_with_the_student_as_input():
    student, teacher = logits(5, 9), logits(5, 9, seed=1)
    expected = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="none").sum(-1)
    assert torch.allclose(d.fkl(student, teacher), expected)
    # torch's "batchmean" divides a (B, L, V) tensor by B alone: L times too large for a mean over tokens
    three = F.kl_div(student.view(1, 5, 9).log_softmax(-1), teacher.view(1, 5, 9).softmax(-1), reduction="batchmean")
    assert torch.allclose(three, 5 * d.fkl(student, teacher).mean())


def test_logit_gradients_have_the_published_form():
    student, teacher = logits(5, 9), logits(5, 9, seed=1)
    q, p = student.softmax(-1), teacher.softmax(-1)
    assert torch.allclose(gradient(d.fkl, student, teacher), q - p)
    assert torch.allclose(gradient(d.ce_soft, student, teacher), q - p)
    reverse = d.rkl(student, teacher).unsqueeze(-1)
    assert torch.allclose(gradient(d.rkl, student, teacher), q * (q.log() - p.log() - reverse))


def test_soft_cross_entropy_exceeds_fkl_by_the_entropy_of_the_teacher():
    student, teacher = logits(5, 9), logits(5, 9, seed=1)
    difference = d.ce_soft(student, teacher) - d.fkl(student, teacher)
    assert torch.allclose(difference, torch.distributions.Categorical(logits=teacher).entropy())
    assert torch.allclose(difference, d.entropy(d.log_softmax(teacher)))


def test_gradient_at_high_temperature_does_not_depend_on_it():
    """Hinton's reason for the factor: with it the gradient tends to the difference of centred logits over V."""
    student, teacher = logits(2, 5), logits(2, 5, seed=1)
    student, teacher = student - student.mean(-1, keepdim=True), teacher - teacher.mean(-1, keepdim=True)
    limit = (student - teacher) / 5
    assert torch.allclose(gradient(d.fkl, student, teacher, temperature=1e4), limit, atol=1e-3)
    assert gradient(d.fkl, student, teacher, temperature=1e4, scale_t2=False).abs().max() < 1e-4


# --- skew, Jensen-Shannon ---------------------------------------------------------------------------------------------


def test_no_skew_is_plain_kl_and_full_skew_is_zero():
    student, teacher = logits(5, 9), logits(5, 9, seed=1)
    assert torch.equal(d.sfkl(student, teacher, lam=0.0), d.fkl(student, teacher))
    assert torch.equal(d.srkl(student, teacher, lam=0.0), d.rkl(student, teacher))
    assert d.sfkl(student, teacher, lam=1.0).abs().max() < 1e-12
    assert d.srkl(student, teacher, lam=1.0).abs().max() < 1e-12


def test_the_skew_bounds_the_divergence_where_plain_kl_explodes():
    """KL(p || lam p + (1 - lam) q) is at most -log lam."""
    student, teacher = torch.tensor([[40.0, -40.0]]), torch.tensor([[-40.0, 40.0]])
    assert d.fkl(student, teacher).item() > 50
    assert d.sfkl(student, teacher, lam=0.1).item() == pytest.approx(-math.log(0.1))
    assert d.srkl(student, teacher, lam=0.1).item() == pytest.approx(-math.log(0.1))


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_jsd_is_bounded_by_the_entropy_of_its_weights_and_reaches_it_for_disjoint_supports(beta):
    bound = -(beta * math.log(beta) + (1 - beta) * math.log(1 - beta))
    assert d.jsd(logits(50, 9, scale=8), logits(50, 9, seed=1, scale=8), beta=beta).max() <= bound
    disjoint = d.jsd(from_probabilities([1, 0]), from_probabilities([0, 1]), beta=beta)
    assert disjoint.item() == pytest.approx(bound)


def test_jsd_ends_are_the_plain_kls_by_definition_and_its_slope_there_agrees():
    student, teacher = logits(5, 9), logits(5, 9, seed=1)
    assert torch.equal(d.jsd(student, teacher, beta=0.0), d.fkl(student, teacher))
    assert torch.equal(d.jsd(student, teacher, beta=1.0), d.rkl(student, teacher))
    assert d.jsd(student, teacher, beta=1e-6).max() < 1e-4  # the formula itself tends to 0
    assert torch.allclose(d.jsd(student, teacher, beta=1e-6) / 1e-6, d.fkl(student, teacher), rtol=1e-3)
    assert torch.allclose(d.jsd(student, teacher, beta=1 - 1e-6) / 1e-6, d.rkl(student, teacher), rtol=1e-3)


def test_jsd_mirrors_when_the_distributions_swap():
    student, teacher = logits(5, 9), logits(5, 9, seed=1)
    assert torch.allclose(d.jsd(student, teacher, beta=0.2), d.jsd(teacher, student, beta=0.8))


@pytest.mark.parametrize(("loss", "options"), [(d.jsd, {"beta": 1.2}), (d.sfkl, {"lam": -0.1}), (d.srkl, {"lam": 2})])
def test_weights_outside_the_unit_interval_are_refused(loss, options):
    with pytest.raises(ValueError, match="between 0 and 1"):
        loss(logits(1, 3), logits(1, 3), **options)


# --- adaptive head and tail -------------------------------------------------------------------------------------------


def test_the_token_that_crosses_mu_belongs_to_the_tail():
    teacher = from_probabilities([0.3, 0.1, 0.4, 0.2])  # sorted: 0.4, 0.3 (crosses 0.5), 0.2, 0.1
    student = from_probabilities([0.25, 0.25, 0.25, 0.25])
    head, tail = d.head_tail_gaps(teacher, student, 0.5)
    assert head.item() == pytest.approx(0.15)  # 0.4 alone
    assert tail.item() == pytest.approx(0.05 + 0.05 + 0.15)
    weight = 0.15 / 0.40
    mixed = weight * d.fkl(student, teacher) + (1 - weight) * d.rkl(student, teacher)
    assert torch.allclose(d.akl(student, teacher), mixed)


def test_a_first_token_that_already_reaches_mu_leaves_the_head_empty():
    teacher, student = from_probabilities([0.9, 0.05, 0.05]), from_probabilities([0.2, 0.4, 0.4])
    assert torch.allclose(d.akl(student, teacher), d.rkl(student, teacher))


def test_mu_of_one_with_an_open_tail_is_forward_kl_when_only_the_head_differs():
    teacher, student = from_probabilities([0.5, 0.3, 0.2]), from_probabilities([0.4, 0.4, 0.2])
    assert torch.allclose(d.akl(student, teacher, mu=0.95), d.fkl(student, teacher))  # the last token agrees


def test_akl_weights_carry_no_gradient():
    student, teacher = logits(4, 9), logits(4, 9, seed=1)
    head, tail = d.head_tail_gaps(d.log_softmax(teacher), d.log_softmax(student), 0.5)
    weight = (head / (head + tail)).unsqueeze(-1)
    mixed = weight * gradient(d.fkl, student, teacher) + (1 - weight) * gradient(d.rkl, student, teacher)
    assert torch.allclose(gradient(d.akl, student, teacher), mixed)


# --- other families ---------------------------------------------------------------------------------------------------


def test_bounded_distances_reach_zero_and_one():
    apart = (from_probabilities([1, 0]), from_probabilities([0, 1]))
    for loss in (d.tvd, d.hellinger):
        assert loss(*apart).item() == pytest.approx(1)
        values = loss(logits(100, 9, scale=10), logits(100, 9, seed=1, scale=10))
        assert ((values >= 0) & (values <= 1)).all()


def test_hellinger_and_total_variation_bound_each_other():
    student, teacher = logits(100, 9), logits(100, 9, seed=1)
    h, t = d.hellinger(student, teacher), d.tvd(student, teacher)
    assert (h.square() <= t + 1e-12).all()
    assert (t <= math.sqrt(2) * h + 1e-12).all()


def test_symmetric_ones_are_symmetric_and_kl_is_not():
    student, teacher = logits(5, 9), logits(5, 9, seed=1)
    for loss in (d.tvd, d.hellinger, d.sym_kl, d.jsd):
        assert torch.allclose(loss(student, teacher), loss(teacher, student))
    assert not torch.allclose(d.fkl(student, teacher), d.fkl(teacher, student))
    assert torch.equal(d.sym_kl(student, teacher), d.fkl(student, teacher) + d.rkl(student, teacher))


def test_ab_divergence_contains_its_special_cases():
    student, teacher = logits(5, 9), logits(5, 9, seed=1)
    assert torch.equal(d.ab_divergence(student, teacher, alpha=1, beta=0), d.fkl(student, teacher))
    assert torch.equal(d.ab_divergence(student, teacher, alpha=0, beta=1), d.rkl(student, teacher))
    near = d.ab_divergence(student, teacher, alpha=1, beta=1e-7)
    assert torch.allclose(near, d.fkl(student, teacher), rtol=1e-4)
    half = d.ab_divergence(student, teacher, alpha=0.5, beta=0.5)
    assert torch.allclose(half, 4 * d.hellinger(student, teacher).square())
    squared = 0.5 * (student.softmax(-1) - teacher.softmax(-1)).square().sum(-1)
    assert torch.allclose(d.ab_divergence(student, teacher, alpha=1, beta=1), squared)
    with pytest.raises(ValueError, match="positive"):
        d.ab_divergence(student, teacher, alpha=-1, beta=0.5)


def test_a_bucket_for_the_rest_never_raises_the_divergence():
    """Data processing: merging events cannot make two distributions easier to tell apart."""
    student, teacher = d.log_softmax(logits(20, 30)), d.log_softmax(logits(20, 30, seed=1))
    top = teacher.topk(8, dim=-1).indices

    def bucket(log_p):
        kept = log_p.gather(-1, top)
        rest = (1 - kept.exp().sum(-1, keepdim=True)).log()
        return torch.cat([kept, rest], -1)

    for loss in (d.fkl, d.rkl, d.jsd, d.tvd, d.hellinger):
        assert (loss(bucket(student), bucket(teacher)) <= loss(student, teacher) + 1e-9).all()


# --- by name ----------------------------------------------------------------------------------------------------------


def test_by_name_binds_options():
    student, teacher = logits(5, 9), logits(5, 9, seed=1)
    assert torch.equal(d.divergence("jsd", beta=0.2)(student, teacher), d.jsd(student, teacher, beta=0.2))


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(UsageError, match=r"did you mean .*'fkl'"):
        d.divergence("fk")
