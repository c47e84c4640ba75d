"""OPSD: two contexts of one model, whose weights the teacher has, and what it costs."""

from __future__ import annotations

import pytest
import torch

from kdbench.tracks.reasoning_rl.blocks.handles import Handle, with_adapters
from kdbench.tracks.reasoning_rl.blocks.scoring import token_logits
from kdbench_methods.reasoning_rl import opsd


@pytest.fixture
def sampled(make):
    task = make()
    model = task.student()
    made = task.rollouts(model, task.problems()[:3], group=2, generator=torch.Generator().manual_seed(0))
    return task, model, made


OPTIONS = {"beta": 0.5, "temperature": 1.1, "top_k": 0}


@pytest.mark.parametrize("form", ["jsd", "sampled"])
def test_without_a_reference_the_live_teacher_gives_no_loss_and_no_gradient(sampled, form):
    task, model, made = sampled
    handle = Handle(model, "live")
    empty = made.context(task.encode([task.with_reference(p, "") for p in made.problems]), task.pad)
    values = opsd.distillation(
        form, token_logits(model, made.batch), handle.logits(task, empty), made.targets, **OPTIONS
    )
    gradients = torch.autograd.grad(values.mean(), list(model.parameters()))
    assert values.abs().max().item() < (1e-6 if form == "jsd" else 1e-30)  # the mixture of two equals is rounded
    assert max(float(g.abs().max()) for g in gradients) < 1e-7


def test_a_reference_changes_what_the_teacher_says(sampled):
    task, model, made = sampled
    handle = Handle(model, "fixed")
    behind = made.context(opsd.contexts(task, handle, made, False), task.pad)
    values = opsd.distillation(
        "jsd", token_logits(model, made.batch), handle.logits(task, behind), made.targets, **OPTIONS
    )
    assert values.shape == made.targets.shape
    assert values.mean() > 1e-4


def test_the_temperature_is_on_both_sides(sampled):
    _, model, made = sampled
    with torch.no_grad():
        logits = token_logits(model, made.batch)
    other = logits + 0.3
    hot = opsd.distillation("jsd", logits, other.flip(-1), made.targets, beta=0.5, temperature=2.0, top_k=0)
    halved = opsd.distillation("jsd", logits / 2, other.flip(-1) / 2, made.targets, beta=0.5, temperature=1.0, top_k=0)
    assert torch.allclose(hot, halved, atol=1e-6)


def test_the_teachers_support_is_normalised_again():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    targets = torch.zeros(5, dtype=torch.int64)
    found = opsd.distillation("jsd", student, teacher, targets, beta=1.0, temperature=1.0, top_k=3)
    for row, value in enumerate(found.tolist()):
        kept = teacher[row].topk(3).indices
        q, p = student[row][kept].log_softmax(-1), teacher[row][kept].log_softmax(-1)
        assert value == pytest.approx(float((q.exp() * (q - p)).sum()), abs=1e-12)
    whole = opsd.distillation("jsd", student, teacher, targets, beta=1.0, temperature=1.0, top_k=0)
    again = opsd.distillation("jsd", student, teacher, targets, beta=1.0, temperature=1.0, top_k=9)
    assert torch.allclose(whole, again)


def test_handles_have_the_weights_that_they_say(sampled):
    _, model, _ = sampled
    handles = {kind: Handle(model, kind, decay=0.9, every=2) for kind in ("fixed", "ema", "live")}
    before = [p.detach().clone() for p in model.parameters()]
    for step in (1, 2):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1.0)
        for handle in handles.values():
            handle.step(step)
    expected = {"fixed": 0.0, "ema": 0.2, "live": 2.0}  # the average moved once, by a tenth of the distance
    for kind, handle in handles.items():
        for now, start in zip(handle.model.parameters(), before, strict=True):
            assert torch.allclose(now - start, torch.full_like(start, expected[kind]), atol=1e-5)
    assert handles["ema"].state == [handles["ema"].model]
    assert handles["live"].state == handles["fixed"].state == []
    with pytest.raises(ValueError, match="not 'frozen'"):
        Handle(model, "frozen")


def test_without_its_adapters_the_student_is_what_it_was(make):
    task = make()
    plain = task.student()
    student = with_adapters(task.student(), 4, 8.0)
    trained = [name for name, p in student.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)
    made = task.rollouts(plain, task.problems()[:2], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, p in student.named_parameters():
            if "lora_B" in name:
                p.normal_(generator=torch.Generator().manual_seed(1))
    handle = Handle(student, "fixed")
    first, mine = handle.logits(task, made.batch), token_logits(student, made.batch)
    assert torch.allclose(first, token_logits(plain, made.batch), atol=1e-5)
    assert not torch.allclose(first, mine, atol=1e-2)


def test_no_solution_is_in_the_students_context(sampled):
    task, _, made = sampled
    for problem, prompt in zip(made.problems, made.prompts, strict=True):
        assert problem.solution not in task.decode([prompt])[0]


@pytest.mark.parametrize(
    "params",
    [
        {"teacher": "ema", "decay": 0.5},
        {"teacher": "live", "top_k": 5},
        {"rank": 2},
        {"form": "sampled", "reason_first": True},
    ],
)
def test_every_variant_trains(run, params):
    result = run("reasoning_rl/opsd", "mixed", **params)
    assert result.outcome.status == "ok", result.outcome.error
    assert result.outcome.extra["empty_reference_loss"] < 1e-6


def test_it_generates_less_than_reinforcement_learning_and_needs_no_teacher(run):
    mine = run("reasoning_rl/opsd", "mixed").outcome
    other = run("reasoning_rl/grpo", "mixed").outcome
    assert mine.cost["generated_tokens"] <= 0.25 * other.cost["generated_tokens"]
    assert {"acc_with_reference", "divergence_early", "divergence_late"} <= set(mine.extra)


def test_an_interrupted_job_ends_alike(interrupted):
    interrupted("reasoning_rl/opsd", "mixed", 2, teacher="ema")
