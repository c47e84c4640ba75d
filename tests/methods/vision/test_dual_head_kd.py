"""Dual-head distillation: the logit-level loss, gradient alignment, heads."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdbench.losses.logits import binary_kl
from kdbench.tracks.vision.models import build
from kdbench_methods.vision import dual_head_kd as method


def params(**values):
    return method.DualHeadKdParams(**values)


class OneBatch:
    """A task with one batch of noise, whose ``fit`` gives the gradients of one step to whoever asks."""

    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.batch = SimpleNamespace(x=torch.randn(24, 3, 16, 16, generator=g), y=torch.randint(4, (24,), generator=g))
        self.teacher = 5 * torch.randn(24, 4, generator=g)
        self.num_classes, self.device = 4, torch.device("cpu")
        self.budget = SimpleNamespace(steps=lambda: 1)
        self.student_network = build("rn(2,1)", 4)
        self.values = {}

    def student(self):
        return self.student_network

    def seeded(self, purpose):
        return torch.random.fork_rng()

    def teacher_logits(self, batch):
        return self.teacher

    def log(self, *args, **values):
        pass

    def fit(self, model, loss, *, modules, on_step, state):
        self.model = model.train()
        self.modules = modules
        terms = loss(model, self.batch)
        self.values = {name: float(value.detach()) for name, value in terms.items()}
        sum(terms.values()).backward()
        on_step(1)

    def artifact(self, name):
        return SimpleNamespace(write_text=lambda text: setattr(self, "measured", json.loads(text)))


def step(**values):
    """Gradients of the step, of the cross-entropy and of the logit-level loss over both networks, and the task."""
    torch.manual_seed(0)
    task = OneBatch()
    own = params(auxiliary="linear", **values)
    torch.manual_seed(1)
    method.train(task, own)
    parameters = [p for network in (task.model, *task.modules) for p in network.parameters()]
    taken = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    taps = task.model.taps(task.batch.x)
    matched = task.modules[0](taps.penult) if task.modules else taps.logits
    ce = own.gamma * nn.functional.cross_entropy(taps.logits, task.batch.y)
    logit = own.alpha * binary_kl(matched, task.teacher, temperature=own.temperature)
    return taken, *(method.flat_gradient(loss, parameters) for loss in (ce, logit)), task


def test_alignment_takes_out_what_is_against_the_cross_entropy_and_nothing_else():
    taken, ce, logit, task = step(heads=1, alpha=10.0)
    dot = logit @ ce
    assert dot < 0  # labels and teacher of noise disagree on one head
    projected = logit - dot / ce.square().sum() * ce
    torch.testing.assert_close(taken, ce + projected, rtol=1e-4, atol=1e-5 * float(taken.abs().max()))
    assert abs(projected @ ce) < 1e-4 * projected.norm() * ce.norm()
    assert task.values["aligned"] == 0
    assert task.measured["conflict_rate"] == 1
    assert task.measured["head_cosine"] < 0


@pytest.mark.parametrize("heads", [1, 2])
def test_without_alignment_the_step_is_that_of_the_sum(heads):
    taken, ce, logit, _ = step(heads=heads, align=False)
    torch.testing.assert_close(taken, ce + logit, rtol=1e-4, atol=1e-5 * float(taken.abs().max()))


def test_each_head_has_its_own_loss():
    _, ce, logit, task = step(heads=2)
    head = sum(p.numel() for p in task.model.head().parameters())
    auxiliary = sum(p.numel() for p in task.modules[0].parameters())
    assert ce[-auxiliary:].abs().max() == 0
    assert logit[-auxiliary - head : -auxiliary].abs().max() == 0
    assert logit[: -auxiliary - head].abs().max() > 0
    assert "head_cosine" not in task.measured


def test_the_nonlinear_head_takes_a_single_sample():
    head = method.auxiliary_head(8, 4, params()).train()
    assert head(torch.randn(1, 8)).isfinite().all()
    many, norm = torch.randn(16, 8), head[2]
    before = norm.running_mean.clone()
    head(many)
    assert (norm.running_mean != before).any()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"auxiliary": "linear", "align": False, "alpha": 0.1},
        {"heads": 1, "align": False},
        {"heads": 1, "gamma": 0.0},
        {"gamma": 0.0, "probability": 1.0},
        {"heads": 1, "gamma": 0.0, "probability": 1.0, "form": "sigmoid"},
    ],
)
def test_every_variant_trains_and_leaves_the_auxiliary_head_behind(smoke, values):
    outcome = smoke("dual_head_kd", "digits-gap", values)
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["parameters"] == sum(p.numel() for p in build("rn(2,1)", 10).parameters())
    assert outcome.extra["nc1"] > 0
    assert ("conflict_rate" in outcome.extra) == (values.get("gamma", 1) + values.get("probability", 0) > 0)
    assert math.isfinite(outcome.extra["weight_norm_spread"])


def test_two_heads_need_a_loss_for_the_main_one(smoke):
    outcome = smoke("dual_head_kd", "digits-gap", {"gamma": 0.0})
    assert outcome.status == "failed"
    assert "the main head has no loss" in outcome.error.message
