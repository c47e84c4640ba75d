"""The critic: what it learns, when, and what its turn cannot touch."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from kdbench.errors import Diverged, JobError
from kdbench.tracks.diffusion.blocks.critic import LARGEST, Critic, fake_score_loss
from kdbench.tracks.diffusion.blocks.levels import Levels
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.processes import Edm, Flow
from tests.helpers.denoisers import GaussianDenoiser, SmallDenoiser


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(count: int = 8) -> tuple[torch.Tensor, Condition]:
    return torch.randn(count, 2, generator=rng(9)), Condition.none(count)


# --- levels -----------------------------------------------------------------------------------------------------------


def test_levels_cover_their_places_and_stay_within_what_the_teacher_knows():
    process = Edm(sigma_min=0.1, sigma_max=10)
    times = Levels(process, 0.02, 0.98).draw(4000, rng())
    grid = process.grid(1000)[:-1].flip(0)
    torch.testing.assert_close(times.min(), grid[20])
    torch.testing.assert_close(times.max(), grid[980])
    places = torch.searchsorted(grid, times).double() / 1000
    assert abs(float(places.mean()) - 0.5) < 0.02
    assert abs(float((places < 0.25).double().mean()) - 0.23 / 0.96) < 0.03


@pytest.mark.parametrize("process", [Edm(), Flow()])
def test_levels_above_and_below_a_time_for_each_row(process):
    levels = Levels(process)
    bounds = levels.times[torch.tensor([300, 700])].repeat(500)
    below = levels.draw(1000, rng(), below=bounds)
    assert (below < bounds).all()
    above = levels.draw(1000, rng(), above=bounds)
    assert (above > bounds).all()
    both = levels.draw(1000, rng(), above=bounds, below=levels.times[800])
    assert ((both > bounds) & (both < levels.times[800])).all()
    at_the_end = levels.draw(4, rng(), below=levels.times[0])
    torch.testing.assert_close(at_the_end, levels.times[:1].expand(4))


def test_levels_that_are_none():
    with pytest.raises(ValueError, match="between 0 and 1"):
        Levels(Edm(), 0.5, 0.5)


# --- its loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_least_at_the_posterior_mean():
    """Of all denoisers the exact one of the generated samples has the least loss: here among scaled ones."""
    mean, factor = torch.tensor([1.0, -2.0]).double(), torch.tensor([[1.0, 0.0], [0.5, 0.3]]).double()
    x = mean + torch.randn(20000, 2, generator=rng(), dtype=torch.float64) @ factor.T
    losses = {}
    for shift in (-0.1, 0.0, 0.1):
        other = GaussianDenoiser(mean, factor * (1 + shift), Edm())
        losses[shift] = float(fake_score_loss(other, x, Condition.none(len(x)), Levels(Edm(), 0.3, 0.7), rng(1)))
    assert losses[0.0] < min(losses[-0.1], losses[0.1])


@pytest.mark.parametrize("process", [Edm(), Flow()])
def test_the_loss_is_the_weighted_error_at_the_levels(process):
    network, levels = SmallDenoiser(process), Levels(process, 0.2, 0.5)
    x, cond = rows()
    generator = rng()
    t, noise = levels.draw(8, generator), torch.randn(8, 2, generator=generator)
    error = (network(process.noised(x, noise, t), t, cond) - x) ** 2
    weight = 1 / t**2 + (1 / 0.5**2 if process.name == "edm" else 0)
    torch.testing.assert_close(fake_score_loss(network, x, cond, levels, rng()), (weight[:, None] * error).mean())


def test_samples_get_no_gradient_and_noise_is_fresh():
    network, levels = SmallDenoiser(), Levels(Edm())
    x, cond = rows()
    x.requires_grad_(True)
    generator = rng()
    first = fake_score_loss(network, x, cond, levels, generator)
    second = fake_score_loss(network, x, cond, levels, generator)
    assert first != second
    first.backward()
    assert x.grad is None


# --- its turn ---------------------------------------------------------------------------------------------------------


def test_outside_its_turn_gradients_reach_inputs_alone():
    critic = Critic(SmallDenoiser(), lr=1e-3, modules=[nn.Linear(8, 1)])
    x, cond = rows()
    x.requires_grad_(True)
    critic.network(x, 1.0, cond).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in critic.network.parameters())
    with critic.training():
        assert all(p.requires_grad for p in (*critic.network.parameters(), *critic.modules.parameters()))
    assert not any(p.requires_grad for p in (*critic.network.parameters(), *critic.modules.parameters()))


def test_frozen_parameters_stay_frozen_in_its_turn():
    network = SmallDenoiser()
    network.first.requires_grad_(False)
    before = deepcopy(network.first.state_dict())
    critic = Critic(network, lr=0.1)
    x, cond = rows()
    with critic.training():
        critic.update({"score": fake_score_loss(network, x, cond, Levels(Edm()), rng())})
        assert not network.first.weight.requires_grad
    assert torch.equal(network.first.weight, before["weight"])
    with pytest.raises(JobError, match="nothing to train"):
        Critic(network.requires_grad_(False), lr=0.1)


def test_an_update_is_a_step_of_adam_on_the_sum_and_touches_no_other_network():
    network, other, head = SmallDenoiser(), SmallDenoiser(seed=1), nn.Linear(8, 1)
    mine, mine_head = deepcopy(network), deepcopy(head)
    critic = Critic(network, lr=1e-2, modules=[head])
    x, cond = rows()

    def losses(net, linear):
        inputs = other(x, 2.0, cond)  # with graph: a careless loss
        x0, features = net(inputs, 1.0, cond, features=True)
        return {"score": (x0 - 1).square().mean(), "gan": linear(features["mid"]).mean()}

    with critic.training():
        shown = critic.update(losses(network, head))
    assert set(shown) == {"score", "gan"}
    assert not shown["score"].requires_grad
    optimizer = torch.optim.AdamW([*mine.parameters(), *mine_head.parameters()], lr=1e-2, weight_decay=0)
    sum(losses(mine, mine_head).values()).backward()
    optimizer.step()
    assert torch.equal(network.last.weight, mine.last.weight)
    assert torch.equal(head.weight, mine_head.weight)
    other.zero_grad()
    with critic.training():
        critic.update(losses(network, head))
    assert all(p.grad is None for p in other.parameters())
    assert critic.updates == 2


def test_gradients_are_clipped_and_infinite_ones_replaced():
    critic = Critic(SmallDenoiser(), lr=1.0, clip=0.5)
    critic.optimizer = torch.optim.SGD(critic.optimizer.param_groups[0]["params"], lr=1.0)
    before = torch.cat([p.detach().flatten().clone() for p in critic.network.parameters()])
    x, cond = rows()
    with critic.training():
        critic.update({"score": 100 * critic.network(x, 1.0, cond).square().mean()})
    moved = torch.cat([p.detach().flatten() for p in critic.network.parameters()]) - before
    torch.testing.assert_close(moved.norm(), torch.tensor(0.5))
    weight = nn.Module()
    weight.value = nn.Parameter(torch.tensor([0.0, 1.0]))
    critic = Critic(weight, lr=1.0)
    critic.optimizer = torch.optim.SGD([weight.value], lr=1.0)
    with critic.training():
        critic.update({"root": weight.value.sqrt().sum()})  # its slope at 0 is infinite
    torch.testing.assert_close(weight.value.detach(), torch.tensor([-LARGEST, 0.5]))


def test_what_an_update_refuses():
    critic = Critic(SmallDenoiser(), lr=1e-3)
    x, cond = rows()
    with pytest.raises(JobError, match="inside"):
        critic.update({"score": x.sum()})
    with critic.training():
        with pytest.raises(JobError, match="depends"):
            critic.update({"score": x.sum()})
        with pytest.raises(Diverged):
            critic.update({"score": critic.network(x, 1.0, cond).sum() * float("nan")})
    assert critic.updates == 0


def test_its_state_is_put_back():
    x, cond = rows()

    def step(critic, generator):
        with critic.training():
            critic.update({"score": fake_score_loss(critic.network, x, cond, Levels(Edm()), generator)})

    whole = Critic(SmallDenoiser(), lr=1e-2)
    for _ in range(2):
        step(whole, rng())
    kept = [deepcopy(part.state_dict()) for part in whole.parts]
    step(whole, rng())
    again = Critic(SmallDenoiser(seed=5), lr=1e-2)
    for part, state in zip(again.parts, kept, strict=True):
        part.load_state_dict(state)
    step(again, rng())
    assert torch.equal(again.network.first.weight, whole.network.first.weight)
    assert again.updates == 3
    again.rate(0.5)
    assert again.optimizer.param_groups[0]["lr"] == 0.5
