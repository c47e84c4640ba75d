"""ALM: chunks of the same bytes, debiased and merged, a binarised divergence, and transfer to another vocabulary."""

from __future__ import annotations

import pytest
import torch

from kdbench.losses.binarised import BINARISED, binary_ce, temperature_limit
from kdbench.tracks.llm.alignment import Alignment
from kdbench.tracks.llm.chunks import Spoken, likelihoods, spoken
from kdbench_methods.llm.alm import balanced, hidden_loss

BYTES = {"tokenizer": "bytes", "merge": 0.0}


def one_chunk_per_token(count: int, *, closed: bool = True) -> Alignment:
    """A row of ``count`` tokens that both sides share; the last is special where ``closed``."""
    each = torch.arange(count)
    after = torch.where(each + 1 < count, each + 1, -1)
    last = each == count - 1
    return Alignment((each, each), (after, after), torch.ones(count, dtype=torch.int64), last, last & closed)


def test_of_equal_tokenizers_it_is_a_binary_cross_entropy_of_each_token_and_at_rest_where_the_models_agree():
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 7), torch.tensor([0, 3, 6, 2, 1])
    blanks = torch.tensor([True] + [False] * 6)
    teacher = spoken(logits, targets, blanks)
    student = logits.clone().requires_grad_()
    own = spoken(student, targets, blanks)
    p, q, scored, _ = likelihoods(one_chunk_per_token(5), teacher, own, append_space=False)
    assert scored.all()
    value = binary_ce(p, q, 1.0)
    chance = logits.softmax(-1)[torch.arange(5), targets]
    entropy = -(chance * chance.log() + (1 - chance) * (1 - chance).log())
    assert torch.allclose(value, entropy, atol=1e-4)
    value.sum().backward()
    assert student.grad.abs().max() < 1e-5
    elsewhere = (logits + torch.randn(5, 7)).requires_grad_()
    p, q, _, _ = likelihoods(one_chunk_per_token(5), teacher, spoken(elsewhere, targets, blanks), append_space=False)
    binary_ce(p, q, 1.0).sum().backward()
    assert elsewhere.grad.abs().max() > 1e-2


@pytest.mark.parametrize("name", BINARISED)
@pytest.mark.parametrize("tau", [1.0, 100.0])
def test_each_divergence_is_least_where_the_likelihoods_agree(name, tau):
    teacher = torch.tensor([-0.01, -0.7, -5.0, -40.0])
    least = BINARISED[name](teacher, teacher, tau)
    for factor in (0.5, 0.9, 1.2, 3.0):
        assert (BINARISED[name](teacher, teacher * factor, tau) >= least - 1e-6).all()
    assert (BINARISED[name](teacher, teacher * 3, tau) > least).any()


def test_a_certain_chunk_has_finite_gradients():
    for name, compare in BINARISED.items():
        student = torch.tensor([0.0, -1e-9, -200.0], requires_grad=True)
        compare(torch.tensor([0.0, -3.0, -1e-9]), student, 1.0).sum().backward()
        assert student.grad.isfinite().all(), name


def test_the_limit_of_high_temperatures():
    teacher, student = torch.tensor([-1.0, -4.0], dtype=torch.float64), torch.tensor([-2.5, -3.0], dtype=torch.float64)
    tau = 200.0
    divergence = binary_ce(teacher, student, tau) - binary_ce(teacher, teacher, tau)
    assert torch.allclose(tau * divergence, temperature_limit(teacher, student, tau), rtol=0.02)


def test_a_chunk_includes_that_a_word_begins_after_it_unless_a_special_token_ends_it():
    spoke = Spoken(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-0.1, -0.2, -0.3]), torch.ones(3))
    p, _, scored, _ = likelihoods(one_chunk_per_token(3), spoke, spoke)
    assert torch.allclose(p, torch.tensor([-1.2, -2.3, -3.0]))  # the word after token t is seen at position t + 1
    assert scored.tolist() == [True, True, True]
    _, _, scored, _ = likelihoods(one_chunk_per_token(3, closed=False), spoke, spoke)
    assert scored.tolist() == [True, True, False]


def test_chunks_are_joined_until_the_teacher_may_begin_a_word():
    word = torch.tensor([0.0, 0.01, 0.5, 0.01]).log()
    teacher = Spoken(torch.tensor([-1.0, -2.0, -3.0, -4.0]), word, torch.ones(4))
    student = Spoken(torch.tensor([-0.5, -0.5, -0.25, -0.25]), torch.zeros(4), torch.ones(4))
    p, q, _, joined = likelihoods(one_chunk_per_token(4), teacher, student, append_space=False, merge=0.1)
    assert p.tolist() == [-3.0, -7.0]  # only after the second token the teacher begins words
    assert q.tolist() == [-1.0, -0.5]
    assert joined.size.tolist() == [2, 2]
    assert joined.after[0].tolist() == [2, -1]


def test_terms_are_balanced_by_their_gradients():
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    parts = balanced({"a": 100 * weight.sum(), "b": weight.prod()}, [weight])
    norms = [torch.autograd.grad(part, weight, retain_graph=True)[0].norm().item() for part in parts.values()]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_hidden_states_are_compared_at_the_ends_of_chunks():
    torch.manual_seed(1)
    states, alignment, same = torch.randn(4, 3), one_chunk_per_token(4), torch.nn.Identity()
    assert hidden_loss(alignment, states, states, same) == 0
    changed = states.clone()
    changed[0] += 5.0  # it has read no token of a chunk yet
    assert hidden_loss(alignment, states, changed, same) == 0
    assert hidden_loss(alignment, states, torch.zeros(4, 3), same) == pytest.approx(1.0)
    assert hidden_loss(alignment, 7 * states, torch.zeros(4, 3), same) == pytest.approx(1.0)


@pytest.mark.parametrize("task", ["instruct", "text"])
def test_a_student_is_given_bytes(run, task):
    result = run("alm", task, **BYTES)
    extra = result.outcome.extra
    assert len(result.column("alm")) == 4
    assert extra["chunk_tokens_student"] == pytest.approx(extra["chunk_bytes"])  # one token a byte
    assert extra["chunk_tokens_teacher"] == 1.0  # every token of the teacher is a chunk
    assert extra["chunk_bytes_after_merging"] == extra["chunk_bytes"]
    assert result.outcome.cost["teacher_queries"] == 16
    assert ("response_bits_per_byte" in extra) == (task == "instruct")


@pytest.mark.parametrize("objective", ["sft", "uld", "mined"])
def test_comparisons_start_from_the_same_student(run, objective):
    other = run("alm", "text", objective=objective)
    assert other.outcome.cost["steps"] == 4
    assert other.outcome.cost.get("teacher_queries", 0) == (0 if objective == "sft" else 16)


def test_hidden_states_and_the_next_token_are_terms_of_the_loss(run):
    result = run("alm", "instruct", hidden=1.0, sft=1.0, merge=0.9, divergence="temperature_limit")
    assert {"alm", "hidden", "ce"} <= set(result.curve[-1])
    assert result.outcome.extra["chunk_bytes_after_merging"] > result.outcome.extra["chunk_bytes"]


def test_two_models_with_one_tokenizer_are_an_ensemble(run):
    extra = run("alm", "text", tokenizer="bytes", partner="body").outcome
    assert extra.cost["aux_steps"] == 4
    single = extra.metrics["bits_per_byte"], extra.extra["partner_bits_per_byte"]
    # the mean of two probabilities is never less likely than their geometric mean
    assert extra.extra["ensemble_bits_per_byte"] <= sum(single) / 2 + 1e-4


def test_the_body_of_the_teacher_keeps_the_task_tokenizer_where_it_is_told_to(run):
    extra = run("alm", "text", student="body", tokenizer="task", merge=0.0).outcome.extra
    assert extra["chunk_tokens_student"] == extra["chunk_tokens_teacher"] == 1.0


def test_a_tokenizer_that_does_not_exist_is_a_clear_error(registry, tmp_path):
    from kdbench.errors import UsageError
    from kdbench.tracks.llm.task import LLMTask
    from kdbench_methods.llm.alm import tokenizer_named

    task = LLMTask(registry.task("llm/text", "smoke", {}), seed=0, method="llm/alm", folder=tmp_path)
    with pytest.raises(UsageError, match="no tokenizer"):
        tokenizer_named(task, str(tmp_path / "nowhere"))
