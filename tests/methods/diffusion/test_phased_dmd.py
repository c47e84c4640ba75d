"""Phased DMD: where phases lead, who learns in them, what moves an expert."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.batches import Draw
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.blocks.phases import Phase, PhaseMatching, affordable, phases_of
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser
from kdbench.tracks.diffusion.networks.gmm import ExactDenoiser, Mixture
from kdbench.tracks.diffusion.processes import Flow

PROCESS = Flow()
MIXTURE = Mixture([[1.0, 0.0], [-1.0, 0.5]], [0.3, 0.2])
TIMES = [1.0, 0.75, 0.5, 0.25]


class Shifted(Denoiser):
    """An exact denoiser whose predictions are off by a trainable constant."""

    def __init__(self, offset=0.0):
        super().__init__()
        self.process, self.inner = PROCESS, ExactDenoiser(MIXTURE, PROCESS)
        self.offset = torch.nn.Parameter(torch.tensor([offset, 0.0]))

    def denoise(self, x, t, cond, features):
        return self.inner(x, t, cond) + self.offset


def matching(experts, expert, critic, phase, **options):
    task = SimpleNamespace(
        process=PROCESS,
        teacher=lambda: ExactDenoiser(MIXTURE, PROCESS),
        generator=lambda name: torch.Generator().manual_seed(len(name)),
    )
    return PhaseMatching(task, experts, expert, SimpleNamespace(network=critic), phase, TIMES, **options)


def draw(rows=64):
    return Draw(torch.randn(rows, 2, generator=torch.Generator().manual_seed(2)), Condition.none(rows))


def test_phases_share_the_steps():
    assert phases_of(TIMES, 2) == [Phase(0, 2, 1.0, 0.5), Phase(2, 2, 0.5, 0.0)]
    assert [phase.end for phase in phases_of(TIMES, 4)] == [0.75, 0.5, 0.25, 0.0]
    with pytest.raises(UsageError, match="divisor of 4"):
        phases_of(TIMES, 3)


def test_a_small_budget_has_fewer_phases(caplog):
    assert affordable(4, 4, 2000) == 4
    assert affordable(4, 2, 5) == 2
    assert not caplog.messages
    assert affordable(4, 4, 7) == 2
    assert affordable(4, 4, 3) == 1
    assert "3 steps are too few for 4 phases" in caplog.messages[-1]


def test_a_phase_goes_on_from_its_experts_to_its_end():
    experts, expert = [Shifted(0.1), Shifted(0.2)], Shifted(0.3)
    found = matching(experts, expert, Shifted(), Phase(2, 1, 0.5, 0.25))
    given = draw()
    x, x0 = found.sample(expert, given, torch.Generator().manual_seed(0))
    state = given.noise
    for network, t, s in zip(experts, TIMES, TIMES[1:], strict=False):
        state = PROCESS.jump(state, network(state, t), t, s)
    clean = expert(state, 0.5)
    torch.testing.assert_close(x0, clean)
    torch.testing.assert_close(x, PROCESS.jump(state, clean, 0.5, 0.25))
    x.sum().backward()
    assert expert.offset.grad is not None
    assert all(network.offset.grad is None for network in experts)


def test_a_phase_of_several_steps_goes_to_its_end_at_once():
    expert = Shifted()
    found = matching([], expert, Shifted(), Phase(0, 4, 1.0, 0.0))
    x, x0 = found.sample(expert, draw(), torch.Generator().manual_seed(0))
    assert x is x0
    first, given = expert(draw().noise, 1.0), draw()
    rows = (x - first).abs().amax(1) < 1e-6  # those that stopped at the first step
    assert 0.1 < rows.float().mean() < 0.45
    assert len(given) == len(x)


def test_experts_move_from_the_critic_towards_the_teacher():
    phase, notes = Phase(1, 1, 0.75, 0.5), Notes()
    expert = Shifted()
    matching([Shifted()], expert, Shifted(0.5), phase, notes=notes).generator_loss(expert, draw(), None)[
        "dmd"
    ].backward()
    assert expert.offset.grad[0] > 0.01
    assert expert.offset.grad[1].abs() < 1e-6
    assert notes.read()["gap"] == pytest.approx(0.5)
    still = Shifted()
    matching([Shifted()], still, Shifted(), phase).generator_loss(still, draw(), None)["dmd"].backward()
    assert still.offset.grad.abs().max() < 1e-7


@pytest.mark.parametrize("levels", ["noisier", "own"])
def test_levels_are_noisier_than_the_end_of_the_phase(levels, monkeypatch):
    seen = []
    network = Shifted()
    network.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    found = matching([Shifted()], Shifted(), network, Phase(1, 1, 0.75, 0.5), levels=levels)
    for _ in range(4):
        found.critic_loss(draw(), None)
        found.generator_loss(found.expert, draw(), None)
    times = torch.cat(seen)
    assert times.min() > 0.5
    assert (times.max() < 0.75) == (levels == "own")


def test_the_critics_target_depends_on_the_option():
    """At the exact denoiser of the expert's samples the corrected loss is least; the naive one is elsewhere."""
    teacherlike = Shifted()
    values = {}
    for target in ("corrected", "naive"):
        for offset in (-0.6, 0.0, 0.6):
            found = matching([], teacherlike, Shifted(offset), Phase(0, 1, 1.0, 0.5), target=target)
            values[target, offset] = float(found.critic_loss(draw(4000), None)["score"].detach())
    assert values["corrected", 0.0] < min(values["corrected", -0.6], values["corrected", 0.6])
    assert values["naive", 0.0] != values["corrected", 0.0]


def test_every_phase_has_its_expert(run):
    job = run("diffusion/phased_dmd", "ring")
    names = {name.split("/")[0] for row in job.curve for name in row}
    assert {"phase1", "phase2", "phase3", "phase4"} <= names
    assert job.outcome.cost["steps"] == 12
    assert job.outcome.metrics["nfe"] == 4
    assert {"naive_bias", "critic_bias"} <= set(job.outcome.extra)
    one = run("diffusion/phased_dmd", "ring", phases=1)
    assert job.outcome.cost["parameters"] == 4 * one.outcome.cost["parameters"]
