"""Chunks: off-by-ones, levels of single positions, and the limits in which methods are one another."""

from __future__ import annotations

import pytest
import torch

from kdbench.errors import JobError
from kdbench.tracks.policy.batches import ChunkLoader, Episodes
from kdbench.tracks.policy.blocks.ddpm import Ddpm
from kdbench.tracks.policy.networks.unet1d import TemporalUNet
from kdbench.tracks.policy.policies.chunks import Denoising, Regression
from kdbench.tracks.policy.policies.streaming import Streaming, chunk_index, chunk_levels, training_levels
from kdbench.tracks.policy.worlds.base import Observation

ACTIONS, SEEN = 2, 3


def network(observed: int, seed: int = 0) -> TemporalUNet:
    torch.manual_seed(seed)
    return TemporalUNet(ACTIONS, observed * SEEN, (4, 8)).eval()


def window(n: int, seed: int = 0) -> Observation:
    return Observation(torch.randn(n, SEEN, generator=torch.Generator().manual_seed(seed)))


def episodes() -> Episodes:
    """Two episodes of 5 and 3 steps; observation and action at step t are t + 1, and t + 101 in the second."""
    steps = torch.arange(5.0)
    rows = torch.stack([steps + 1, steps + 101])
    rows[1, 3:] = 0
    return Episodes(
        rows[..., None].expand(-1, -1, SEEN).clone(),
        rows[..., None].expand(-1, -1, ACTIONS).clone(),
        torch.tensor([5, 3]),
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(2, 0, dtype=torch.int64),
    )


def test_the_action_at_the_newest_observation_answers_to_it():
    loader = ChunkLoader(episodes(), observed=2, horizon=4, size=8, generator=torch.Generator().manual_seed(0))
    assert len(loader.index) == 8
    batch = loader.batch(torch.arange(8))
    newest = batch.obs.vector[:, SEEN:]
    assert torch.equal(newest[:, 0], batch.actions[:, 1, 0])
    assert batch.obs.vector[0].tolist() == [1.0] * 6  # before the start the first observation is repeated
    assert batch.actions[3, :, 0].tolist() == [3.0, 4.0, 5.0, 5.0]  # after the end the last action
    assert batch.actions[5, :, 0].tolist() == [101.0, 101.0, 102.0, 103.0]  # nothing of the other episode


def test_the_schedule_goes_from_noise_to_clean():
    schedule = Ddpm(32)
    level = torch.tensor([[-1, 0, 15, 31]])
    x0 = torch.rand(1, 4, ACTIONS, dtype=torch.float64) * 2 - 1
    noise = torch.randn(x0.shape, dtype=torch.float64)
    x = schedule.noised(x0, noise, level)
    assert torch.equal(x[:, 0], x0[:, 0])
    assert float(schedule.signal(torch.tensor([31]), x)) < 1e-3
    assert schedule.grid(32) == [*range(31, -1, -1), -1]
    assert schedule.grid(4) == [31, 23, 15, 7, -1]
    jumped = schedule.jump(x, noise, level, torch.full_like(level, -1))
    assert torch.allclose(jumped, x0, atol=1e-9)


def test_with_the_true_noise_ddim_stays_on_the_line_and_ddpm_ends_clean():
    schedule, level = Ddpm(16), torch.full((1,), 9)
    x0, noise = torch.full((1, 3, ACTIONS), 0.3, dtype=torch.float64), torch.randn(1, 3, ACTIONS, dtype=torch.float64)
    x = schedule.noised(x0, noise, level)
    assert torch.allclose(schedule.jump(x, noise, level, level - 4), schedule.noised(x0, noise, level - 4), atol=1e-9)
    x = schedule.noised(x0, noise, torch.zeros(1, dtype=torch.int64))
    end = schedule.step(x, noise, torch.zeros(1, dtype=torch.int64), torch.randn_like(x))
    assert torch.allclose(end, x0, atol=1e-9)


def test_one_level_for_a_chunk_is_that_level_at_every_position():
    model, x, obs = network(1), torch.randn(5, 7, ACTIONS), window(5)
    level = torch.tensor([0, 3, 9, 20, 31])
    with torch.no_grad():
        one, each = model(x, level, obs), model(x, level[:, None].expand(-1, 7), obs)
    assert torch.allclose(one, each, atol=1e-6)
    with torch.no_grad():
        other = model(x, torch.arange(7).expand(5, -1), obs)
    assert not torch.allclose(one, other, atol=1e-3)


def test_levels_rise_from_chunk_to_chunk():
    assert chunk_index(18, 2, 4).tolist() == [0] * 5 + [1] * 4 + [2] * 4 + [3] * 5
    assert chunk_levels(32, 18, 2, 4).unique().tolist() == [7, 15, 23, 31]
    generator = torch.Generator().manual_seed(0)
    levels = training_levels(400, 32, 18, 2, 4, 0.8, generator)
    assert (levels >= 0).all()
    assert (levels <= 31).all()
    chunked = (levels[:, -1] - levels[:, 0]) == 24
    assert 0.7 < chunked.float().mean() < 0.9
    assert ((levels == levels[:, :1]).all(1) | chunked).all()
    assert levels[chunked][:, 0].unique().tolist() == list(range(8))
    with pytest.raises(JobError, match="no chunk"):
        chunk_index(4, 2, 8)


@pytest.mark.parametrize("start", ["zero", "denoise"])
@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_a_stream_of_four_chunks_costs_a_quarter_and_its_first_chunk_is_clean(start, solver):
    shape = {"actions": ACTIONS, "horizon": 18, "observed": 2, "executed": 4}
    policy = Streaming(network(2), levels=32, start=start, solver=solver, **shape)
    policy.reset(3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for step in range(12):
            policy.act(window(3, step))
    first = 32 + 8 if start == "denoise" else 8
    assert policy.evaluations == [first, 8, 8]
    assert policy._level[:5].tolist() == [-1] * 5
    assert policy._level[-5:].tolist() == [23] * 5
    policy.reset(3, torch.Generator())
    assert policy._buffer is None


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_one_chunk_is_the_ordinary_diffusion_policy(solver):
    shape = {"actions": ACTIONS, "horizon": 8, "observed": 1, "executed": 8}
    whole = Denoising(network(1), levels=16, steps=16, solver=solver, **shape)
    stream = Streaming(network(1), levels=16, solver=solver, **shape)
    for policy in (whole, stream):
        policy.reset(2, torch.Generator().manual_seed(3))
    with torch.no_grad():
        for step in range(16):
            assert torch.allclose(whole.act(window(2, step)), stream.act(window(2, step)), atol=1e-6), step


def test_positions_before_the_newest_observation_keep_what_was_executed():
    shape = {"actions": ACTIONS, "horizon": 10, "observed": 3, "executed": 2}
    policy = Streaming(network(3), levels=8, **shape)
    policy.reset(1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        policy.plan(Observation(torch.zeros(1, 9)))
        before = policy._buffer.clone()
        policy.schedule.noised = lambda x, noise, level: x  # without its noise the past is what it was
        shifted, level = policy._shifted(Observation(torch.zeros(1, 9)))
    assert torch.equal(shifted[:, :2], before[:, 2:4])
    assert level[:2].tolist() == level[2:4].tolist()


def test_a_policy_of_chunks_asks_its_network_once_for_each():
    policy = Regression(network(1), actions=ACTIONS, horizon=6, observed=1, executed=3)
    policy.reset(2, torch.Generator())
    calls = []
    policy.network.register_forward_pre_hook(lambda module, args: calls.append(1))
    with torch.no_grad():
        for step in range(7):
            assert policy.act(window(2, step)).shape == (2, ACTIONS)
    assert len(calls) == 3
