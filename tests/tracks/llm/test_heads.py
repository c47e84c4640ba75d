"""Batches with large logits: the same losses, gradients and meters, block by block."""

from __future__ import annotations

import pytest
import torch

from kdbench.losses.divergences import fkl, jsd
from kdbench.tracks.llm import evaluate, heads
from kdbench.tracks.llm.evaluate import forced
from kdbench.training.distill import distillation_loss, hard_loss


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "LARGE", 1)
    monkeypatch.setattr("kdbench.losses.vocabulary.BLOCK", 512 * 7)  # several blocks a batch


def measured(task, loss, name: str = "train"):
    model = task.student()
    batch = task.split(name).sequences.batch(torch.tensor([1, 0, 5]), name)
    value = loss(model, batch)
    total = value if isinstance(value, torch.Tensor) else sum(value.values())
    total.backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    parts = None if isinstance(value, torch.Tensor) else {key: part.item() for key, part in value.items()}
    return total.item(), parts, gradients, dict(task.budget.spent)


CASES = [
    ("text", {}),
    ("instruct", {}),
    ("instruct", {"student": {"tied": True}}),
    ("text-ood", {}),
    ("text", {"outputs": {"k": 12}}),
]


@pytest.mark.parametrize(("name", "overrides"), CASES)
@pytest.mark.parametrize(
    "options", [{}, {"kd_ratio": 0.4, "temperature": 2.0, "reduction": "seq_mean"}, {"kd_ratio": 0.0}]
)
def test_the_loss_is_that_of_whole_logits(make_task, monkeypatch, name, overrides, options):
    divergence = jsd if options else fkl
    plain = measured(task := make_task(name, **overrides), distillation_loss(task, divergence, **options))
    monkeypatch.setattr(heads, "LARGE", 1)
    monkeypatch.setattr("kdbench.losses.vocabulary.BLOCK", 512 * 7)
    task = make_task(name, **overrides)
    found = measured(task, distillation_loss(task, divergence, **options))
    assert task.large(task.student(), next(iter(task.train_loader()))) is not None
    assert found[0] == pytest.approx(plain[0], rel=1e-5)
    assert found[1] == pytest.approx(plain[1], rel=1e-5)
    assert torch.allclose(found[2], plain[2], rtol=1e-3, atol=1e-6)
    assert found[3] == plain[3], "what it costs"


def test_the_hard_loss_asks_no_teacher(make_task, everything_is_large, monkeypatch):
    task = make_task("text")
    found = measured(task, hard_loss(task))
    assert "teacher_queries" not in found[3]
    monkeypatch.setattr(heads, "LARGE", 1 << 60)
    task = make_task("text")
    plain = measured(task, hard_loss(task))
    assert found[0] == pytest.approx(plain[0], rel=1e-5)
    assert torch.allclose(found[2], plain[2], rtol=1e-3, atol=1e-6)


def test_what_is_small_or_not_linear_is_held_whole(make_task, monkeypatch):
    task = make_task("text")
    batch = next(iter(task.train_loader()))
    assert task.large(task.student(), batch) is None, "small"
    monkeypatch.setattr(heads, "LARGE", 1)
    assert task.large(task.student(), batch) is not None
    model = task.student()
    model.lm_head = torch.nn.Sequential(model.lm_head)
    assert task.large(model, batch) is None
    classifier = make_task("classify-reviews")
    assert classifier.large(classifier.student(), next(iter(classifier.train_loader()))) is None


def test_evaluation_takes_large_batches_in_pieces(make_task, monkeypatch):
    task = make_task("text")
    model, sequences = task.student(), task.split("val").sequences
    whole = forced(model, sequences.batches(8, "val"), task.device, task.scored_teacher)
    sizes = []
    model.lm_head.register_forward_hook(lambda module, given, logits: sizes.append(logits.numel()))
    monkeypatch.setattr(evaluate, "LARGE", 3 * sequences.ids.shape[1] * model.config.vocab_size)
    found = forced(model, sequences.batches(8, "val"), task.device, task.scored_teacher)
    assert len(sizes) == 3
    assert max(sizes) < evaluate.LARGE
    assert found.row.tolist() == whole.row.tolist()
    assert found.nll == pytest.approx(whole.nll, rel=1e-5)
    assert found.forward_kl == pytest.approx(whole.forward_kl, rel=1e-4)
