"""TDM: where points are diffused from, what moves the student, what is left of it in fewer steps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from kdbench.tracks.diffusion.batches import Draw
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser
from kdbench.tracks.diffusion.networks.gmm import ExactDenoiser, Mixture
from kdbench.tracks.diffusion.processes import Flow
from kdbench_methods.diffusion.tdm import TdmParams, Trajectory

PROCESS = Flow()
MIXTURE = Mixture([[1.0, 0.0], [-1.0, 0.5]], [0.3, 0.2])
TIMES = [1.0, 0.75, 0.5, 0.25]


class Shifted(Denoiser):
    """An exact denoiser whose predictions are off by a trainable constant."""

    def __init__(self, offset=0.0, mixture=MIXTURE):
        super().__init__()
        self.process, self.inner = PROCESS, ExactDenoiser(mixture, PROCESS)
        self.offset = torch.nn.Parameter(torch.tensor([offset, 0.0]))

    def denoise(self, x, t, cond, features):
        return self.inner(x, t, cond) + self.offset


def losses(student, critic, **params):
    task = SimpleNamespace(
        process=PROCESS,
        teacher=lambda: ExactDenoiser(MIXTURE, PROCESS),
        guidance=1.0,
        generator=lambda name: torch.Generator().manual_seed(len(name)),
        device=torch.device("cpu"),
    )
    return Trajectory(task, student, SimpleNamespace(network=critic), TIMES, TdmParams(**params), Notes())


def draw(rows=64):
    return Draw(torch.randn(rows, 2, generator=torch.Generator().manual_seed(2)), Condition.none(rows))


@pytest.mark.parametrize("separate", [True, False])
def test_points_are_diffused_from_the_end_of_their_step(separate):
    student = Shifted()
    found = losses(student, Shifted(), separate=separate)
    x0, implied, point, tau, fresh, s = found.moved(student, draw(), torch.Generator().manual_seed(0))
    assert set(s.tolist()) == {0.75, 0.5, 0.25, 0.0}
    assert (tau > s).all()
    assert (tau < s + 0.25 + 1e-6).all() == separate
    reached = PROCESS.noised(x0, implied, s)
    torch.testing.assert_close(point, PROCESS.diffuse(reached, fresh, s, tau).detach())
    start = PROCESS.noised(x0, implied, s + 0.25)  # the implied noise is that of the state the student was asked at
    torch.testing.assert_close(student(start, s + 0.25), x0, atol=1e-4, rtol=1e-4)
    clean = losses(student, Shifted(), origin="clean").moved(student, draw(), torch.Generator().manual_seed(0))
    torch.testing.assert_close(clean[2], PROCESS.noised(clean[0], clean[4], clean[3]).detach())


def test_a_random_end_lies_in_the_interval_of_its_step():
    student = Shifted()
    _, _, _, tau, _, s = losses(student, Shifted(), random_end=True).moved(
        student, draw(256), torch.Generator().manual_seed(0)
    )
    assert len(s.unique()) > 100
    assert (tau >= s).all()


def test_samples_move_from_the_critic_towards_the_teacher():
    student = Shifted()
    found = losses(student, Shifted(0.5), metric="mse").student_loss(student, draw(), None)
    found["tdm"].backward()
    assert student.offset.grad[0] > 0.01  # descent goes to the left, where the critic is not
    assert student.offset.grad[1].abs() < 1e-6
    still = Shifted()
    losses(still, Shifted(), metric="mse").student_loss(still, draw(), None)["tdm"].backward()
    assert still.offset.grad.abs().max() < 1e-6


def test_the_critic_learns_the_students_predictions():
    """Those of a student of a single narrow mode are near one point, wherever it is asked."""
    narrow = Mixture([[1.0, 0.0]], 0.05)
    student, values = Shifted(0.3, narrow), {}
    for offset in (0.0, 0.3, 0.6):
        found = losses(student, Shifted(offset, narrow))
        values[offset] = float(found.critic_loss(draw(), None)["score"].detach())
    assert values[0.3] < 0.1 * min(values[0.0], values[0.6])


@pytest.mark.parametrize("importance", [True, False])
def test_weights_of_the_critics_samples(importance):
    student, critic = Shifted(0.5), Shifted()
    found = losses(student, critic, importance=importance, most_snr=2.0)
    rng = torch.Generator().set_state(found.critic_rng.get_state())
    x0, implied, point, tau, fresh, s = found.moved(student, draw(), rng)
    weight = ((1 - tau) / tau).square().clamp(max=2.0)
    if importance:
        a, scale = (1 - tau) / (1 - s), tau[:, None]
        b = (tau**2 - (a * s) ** 2).sqrt()
        mixed = (a[:, None] * s[:, None] * implied + b[:, None] * fresh) / scale
        weight = weight * (-mixed.square().mean(1) / 2).exp() / (-fresh.square().mean(1) / 2).exp()
    wanted = (weight * (critic(point, tau) - x0).square().mean(1)).mean()
    torch.testing.assert_close(found.critic_loss(draw(), None)["score"], wanted, atol=1e-5, rtol=1e-4)


def test_one_training_serves_several_numbers_of_steps(run):
    job = run("diffusion/tdm", "ring", steps=4)
    extra, metrics = job.outcome.extra, job.outcome.metrics
    assert {"sw2_1", "sw2_2", "marginal_sw2"} <= set(extra)
    assert metrics["nfe"] == 4
    assert extra["sw2_1"] != metrics["sw2"]
    assert "real_images" not in job.outcome.cost
    assert job.outcome.cost["critic_updates"] == 6
