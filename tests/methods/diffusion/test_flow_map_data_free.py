"""FreeFlow: prediction and correction, what each reads and moves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdbench.tracks.diffusion.batches import Draw
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.gmm import ExactDenoiser, Mixture
from kdbench.tracks.diffusion.processes import Flow
from kdbench_methods.diffusion.flow_map_data_free import FlowMapDataFreeParams, FreeFlow, residual_at

MEAN, STD = torch.tensor([1.0, -0.5]), 0.3
TEACHER = ExactDenoiser(Mixture([MEAN.tolist()], STD), Flow())


class Map(nn.Module):
    """The true map of a Gaussian, off by a trainable constant."""

    def __init__(self, offset=0.0):
        super().__init__()
        self.offset = nn.Parameter(torch.tensor([offset, 0.0]))

    def forward(self, z, d, cond):
        d = d[:, None].clamp_min(1e-3)
        return (d * MEAN + (d**2 * STD**2 + (1 - d) ** 2).sqrt() * z - z) / d + self.offset


def losses(network, critic=TEACHER, **params):
    task = SimpleNamespace(
        teacher=lambda: TEACHER, guidance=1.0, generator=lambda name: torch.Generator().manual_seed(len(name))
    )
    wanted = FlowMapDataFreeParams(**params)
    return FreeFlow(task, network, SimpleNamespace(network=critic), wanted, Notes())


def draw(rows=256):
    return Draw(torch.randn(rows, 2, generator=torch.Generator().manual_seed(2)), Condition.none(rows))


def test_the_true_map_has_no_residual():
    z, d = draw().noise, torch.linspace(0.05, 0.95, 256)
    residual, value = residual_at(Map(), TEACHER, z, d, Condition.none(256), 1.0)
    assert residual.abs().max() < 1e-3
    assert value.requires_grad
    wrong, _ = residual_at(Map(0.3), TEACHER, z, d, Condition.none(256), 1.0)
    assert wrong[:, 0].abs().mean() > 0.2


def test_prediction_leads_to_the_true_map():
    network = Map(0.3)
    found = losses(network, prediction=1.0).map_loss(network, draw())
    assert set(found) == {"prediction"}
    found["prediction"].backward()
    assert network.offset.grad[0] > 0.05
    assert network.offset.grad[1].abs() < 0.1 * network.offset.grad[0]


def test_correction_moves_samples_to_the_teacher():
    network = Map(0.4)
    own = ExactDenoiser(Mixture([(MEAN + torch.tensor([0.4, 0.0])).tolist()], STD), Flow())
    found = losses(network, own, prediction=0.0).map_loss(network, draw())
    assert set(found) == {"correction"}
    found["correction"].backward()
    assert network.offset.grad[0] > 0.05
    same = Map(0.4)
    losses(same, TEACHER, prediction=0.0).map_loss(same, draw())["correction"].backward()
    assert same.offset.grad.abs().max() == 0


def test_the_corrections_gradient_is_a_share_of_the_predictions():
    sizes = []
    for share in (0.5, 1.0):
        network = Map(0.4)
        own = ExactDenoiser(Mixture([[1.4, -0.5]], STD), Flow())
        found = losses(network, own, correction=share).map_loss(network, draw())
        sizes.append(torch.autograd.grad(found["correction"], network.offset)[0].norm())
    assert sizes[1] / sizes[0] == pytest.approx(2, rel=1e-4)


def test_the_correcting_network_learns_the_students_velocity():
    network = Map(0.4)
    values = {}
    for offset in (0.0, 0.4, 0.8):
        critic = ExactDenoiser(Mixture([[1.0 + offset, -0.5]], STD), Flow())
        values[offset] = float(losses(network, critic).critic_loss(draw(), None)["velocity"])
    assert values[0.4] < values[0.0]
    assert values[0.4] < values[0.8]


def test_shares_and_updates(run):
    both = run("diffusion/flow_map_data_free", "ring-flow")
    assert "real_images" not in both.outcome.cost
    assert both.outcome.cost["critic_updates"] == 6
    assert {"residual", "endpoint_error", "teacher_sw2"} <= set(both.outcome.extra)
    assert both.column("prediction")
    assert both.column("correction")
    alone = run("diffusion/flow_map_data_free", "ring-flow", prediction=1.0)
    assert "critic_updates" not in alone.outcome.cost
    assert alone.outcome.cost["steps"] == both.outcome.cost["steps"] == 12
    assert not alone.column("correction")


def test_teachers_that_are_no_flows(run):
    job = run("diffusion/flow_map_data_free", "digits", prediction=0.0, guidance=2.0)
    assert job.outcome.metrics["nfe"] == 1
    assert not job.column("prediction")
