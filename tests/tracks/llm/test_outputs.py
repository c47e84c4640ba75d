"""Top-k outputs: the same loss cached and live, and keys that change with every ingredient."""

from __future__ import annotations

import pytest
import torch

from kdbench.tracks.llm import outputs

TOP = {"k": 16, "dtype": "float32"}


def kl(tokens) -> torch.Tensor:
    p, q = tokens.teacher.log_softmax(-1), tokens.student.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 2e-3)])
def test_cached_and_live_outputs_give_the_same_loss_and_gradient(make_task, dtype: str, tolerance: float):
    task = make_task("text", outputs={"k": 16, "dtype": dtype})
    student, batch = task.student(), next(iter(task.train_loader()))
    results = []
    for index in (batch.index, torch.full_like(batch.index, -1)):
        batch.index = index
        tokens = task.tokens(student, batch)
        loss = kl(tokens)
        student.zero_grad()
        loss.backward()
        results.append((loss.item(), student.get_output_embeddings().weight.grad.clone(), tokens.nll.detach()))
    (cached, gradient, nll), (live, other, same) = results
    assert cached == pytest.approx(live, abs=tolerance)
    assert torch.allclose(gradient, other, atol=tolerance)
    assert torch.equal(nll, same)
    assert task.budget.spent["cached_teacher_queries"] == task.budget.spent["teacher_queries"] == len(batch)


def test_mixed_batches_take_each_row_from_where_it_is(make_task):
    task = make_task("text", outputs=TOP)
    student, batch = task.student(), next(iter(task.train_loader()))
    whole = task.tokens(student, batch)
    batch.index[::2] = -1
    mixed = task.tokens(student, batch)
    assert torch.allclose(mixed.teacher, whole.teacher, atol=1e-5)
    assert torch.allclose(mixed.student, whole.student, atol=1e-5)


def test_events_are_distributions_that_keep_the_probabilities(make_task):
    torch.manual_seed(0)
    logits, targets = 3 * torch.randn(6, 50), torch.arange(6)
    values, ids = outputs.top_events(logits, 8)
    assert torch.allclose(values.exp().sum(-1), torch.ones(6), atol=1e-6)
    exact = logits.log_softmax(-1)
    assert torch.allclose(values[:, :8], exact.gather(-1, ids), atol=1e-6)
    mine, nll = outputs.bucketed(logits, ids, targets)
    assert torch.allclose(mine, values, atol=1e-4)
    assert torch.allclose(nll, -exact[torch.arange(6), targets], atol=1e-6)
    # merging events can only lose divergence (data processing inequality), and none of it where k is everything
    other = 3 * torch.randn(6, 50)
    full = (exact.exp() * (exact - other.log_softmax(-1))).sum(-1)

    def merged(k: int) -> torch.Tensor:
        p, where = outputs.top_events(logits, k)
        q, _ = outputs.bucketed(other, where, targets)
        return (p.exp() * (p - q)).sum(-1)

    assert (merged(8) <= full + 1e-5).all()
    assert torch.allclose(merged(49), full, atol=1e-4)


def test_a_certain_model_keeps_finite_gradients():
    logits = torch.tensor([[60.0, 0.0, 0.0, 0.0]], requires_grad=True)
    events, nll = outputs.bucketed(logits, torch.tensor([[0, 1]]), torch.tensor([0]))
    (events.sum() + nll.sum()).backward()
    assert torch.isfinite(events).all()
    assert torch.isfinite(logits.grad).all()


def test_log1mexp():
    x = torch.tensor([-1e-3, -0.5, -0.7, -5.0, -40.0], dtype=torch.float64)
    assert torch.allclose(outputs.log1mexp(x), torch.log(1 - torch.exp(x)), rtol=1e-9)


def test_every_ingredient_changes_the_key(make_task):
    def key(split: str = "train", **overrides):
        return make_task("text", **{"outputs": TOP, **overrides})._outputs.key(split)

    base = key()
    assert key() == base
    teacher = {"stages": [{"objective": "lm", "steps": 13, "batch_size": 8, "lr": 3e-3}]}
    changed = [
        key("val"),
        key(outputs={"k": 8, "dtype": "float32"}),
        key(outputs={"k": 16, "dtype": "float16"}),
        key(teacher=teacher),
        key(data={"seed": 1}),
        key(data={"chunk": 24}),
        key(teacher_seed=1),
    ]
    assert all(other != base for other in changed)
    assert key(student={"width": 32}) == base, "students do not change what the teacher says"


def test_weights_digest_sees_a_changed_weight():
    a, b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    b.load_state_dict(a.state_dict())
    assert outputs.weights_digest(a) == outputs.weights_digest(b)
    with torch.no_grad():
        b.bias[0] += 1e-7 + b.bias[0].abs() * 1e-6
    assert outputs.weights_digest(a) != outputs.weights_digest(b)
