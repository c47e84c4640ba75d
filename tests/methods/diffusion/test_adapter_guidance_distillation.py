"""Adapter guidance distillation: its losses, its states, and what it leaves alone."""

from __future__ import annotations

import json

import pytest
import torch

from kdbench.tracks.diffusion.blocks.trajectories import Guided, disagreement
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import guided
from kdbench.tracks.diffusion.processes import Flow
from kdbench_methods.diffusion.adapter_guidance_distillation import distillation_loss
from tests.helpers.exact_task import CLASSES, ExactNet

TASK = "attributes"
METHOD = "diffusion/adapter_guidance_distillation"
SMALL = {"trajectories": 16, "steps": 3, "hidden": 8}


def test_every_loss_is_least_where_one_evaluation_is_the_guided_one():
    """On a mixture in closed form, where both are known."""
    process, net = Flow(), ExactNet(Flow())
    x0, _ = CLASSES.sample(64, torch.Generator().manual_seed(0), dtype=torch.float64)
    cond = Condition.of_tokens(torch.arange(64) % 2 + 1)
    t = torch.linspace(0.1, 0.9, 64, dtype=torch.float64)
    x = process.noised(x0, torch.randn(64, 2, dtype=torch.float64), t)
    w = torch.linspace(1, 6, 64, dtype=torch.float64)
    batch = Guided(x, t, guided(net, x, t, cond, w), w, cond)
    plain = net(x, t, cond)
    for kind in ("l2", "l1", "cosine", "noise"):
        assert distillation_loss(process, batch.goal, batch, kind, plain) == 0
        assert distillation_loss(process, plain, batch, kind, plain) > 1e-3
    error = ((plain - batch.goal) / t[:, None]) ** 2  # of the velocity
    torch.testing.assert_close(distillation_loss(process, plain, batch, "l2"), error.mean())
    torch.testing.assert_close(distillation_loss(process, plain, batch, "noise"), (t[:, None] * error).mean())
    weight = disagreement(process, x, plain, batch.goal, t)
    torch.testing.assert_close(
        distillation_loss(process, plain, batch, "cosine", plain), (weight * error.mean(1)).mean()
    )
    agreed = Guided(x, t, plain, torch.ones_like(w), cond)  # no guidance, nothing to learn, whatever is predicted
    assert distillation_loss(process, 0 * plain, agreed, "cosine", plain) < 1e-12


def test_it_learns_guidance_and_leaves_the_model_alone(run):
    taught = {"training": {"steps": 100, "lr": 1e-2}}  # so that conditions matter to it
    found = run(METHOD, TASK, overrides={"limits": {"steps": 40}, "teacher": taught}, lr=0.02, **SMALL)
    losses, extra = found.column("loss"), found.outcome.extra
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert extra["identity_error"] == 0
    assert 0 < extra["adapter_share"] < 10
    assert extra["transfer_error"] > 0
    assert found.outcome.cost["teacher_queries"] == 2 * 16 * 3  # stored trajectories alone
    assert found.outcome.cost.get("real_images", 0) == 0


def test_half_the_evaluations_of_guidance(run, tmp_path):
    found = run(METHOD, TASK, **SMALL)
    teacher = run("diffusion/teacher", TASK)
    assert 2 * found.outcome.metrics["nfe"] == teacher.outcome.metrics["nfe"]
    rows = json.loads(next(tmp_path.rglob("scales.json")).read_text())
    assert [(row["scale"], row["model"]) for row in rows] == [
        (scale, model) for scale in (1.0, 3.0, 6.0) for model in ("student", "guided")
    ]


@pytest.mark.parametrize("changed", [{"loss": "cosine"}, {"arch": "additive"}, {"states": "noised"}])
def test_variants(run, changed):
    found = run(METHOD, TASK, **SMALL, **changed)
    queries, images = (found.outcome.cost.get(name, 0) for name in ("teacher_queries", "real_images"))
    if changed.get("states") == "noised":
        assert queries == 2 * images > 0
    else:
        extra = 12 * 8 if "loss" in changed else 0  # its weight asks for the conditional prediction
        assert queries == 2 * 16 * 3 + extra
