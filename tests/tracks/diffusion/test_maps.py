"""Networks of noise alone and of two times: with a teacher's weights they start as the teacher; saved and loaded."""

from __future__ import annotations

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.blocks.flowmap import along, line_velocity
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.build import build
from kdbench.tracks.diffusion.networks.gmm import ExactDenoiser, Mixture
from kdbench.tracks.diffusion.networks.maps import FlowMap, FromNoise, MeanVelocity
from kdbench.tracks.diffusion.processes import Edm, Flow, Vp
from kdbench.tracks.diffusion.samplers.maps import MeanSteps, NoiseMap
from kdbench.tracks.diffusion.spec import Dit, Mlp, UNet


class Place:
    """Of a task what loading needs."""

    def place(self, model):
        return model


def made(process, net=None, shape=(2,)):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(net or Mlp(width=16, depth=1), shape, (4,), 0, process)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.double()


def inputs(rows=5, shape=(2,)):
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(rows, *shape, dtype=torch.float64, generator=generator)
    return noise, Condition.of_tokens(torch.randint(4, (rows,), generator=generator))


processes = pytest.mark.parametrize("process", [Edm(), Flow(), Vp()], ids=lambda process: process.name)


@processes
def test_at_the_priors_time_the_signal_is_the_teachers_prediction(process):
    model, (noise, cond) = made(process), inputs()
    signal = FromNoise(model)
    wanted = model(process.prior(noise), process.t_max, cond)
    torch.testing.assert_close(signal(noise, process.t_max, cond), wanted, atol=1e-5, rtol=1e-5)
    other = signal(noise, process.t_min, cond)
    assert (other - wanted).abs().max() > 1e-3  # the time is read
    rows = torch.full((5,), process.t_min)
    torch.testing.assert_close(signal(noise, rows, cond), other)


@pytest.mark.parametrize("process", [Edm(sigma_max=80.0), Flow()], ids=lambda process: process.name)
def test_a_map_without_duration_is_the_teachers_velocity(process):
    model, (noise, cond) = made(process), inputs()
    found = FlowMap(FromNoise(model))(noise, torch.zeros(5, dtype=torch.float64), cond)
    wanted = -line_velocity(model, noise, torch.ones(5, dtype=torch.float64), cond)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@processes
def test_one_call_of_the_map_is_the_sample(process):
    model, (noise, cond) = made(process), inputs()
    signal = FromNoise(model)
    sampled = NoiseMap(signal).sample(noise, cond, torch.Generator())
    ended = noise + FlowMap(signal)(noise, torch.ones(5, dtype=torch.float64), cond)
    torch.testing.assert_close(sampled.x, ended, atol=1e-5, rtol=1e-5)
    assert sampled.nfe == 1


@processes
def test_mean_velocities_start_as_the_teachers_velocity(process):
    plain, (noise, cond) = made(process), inputs()
    t = torch.tensor([0.1, 0.3, 0.6, 0.9, 1.0], dtype=torch.float64)
    wanted = line_velocity(plain, noise, t, cond)
    network = MeanVelocity(made(process)).double()
    for r in (t, 0.5 * t, 0 * t):
        torch.testing.assert_close(network(noise, t, r, cond), wanted)
    network.denoiser.net.conditioning.maps[1].weight.data += 0.1
    assert (network(noise, t, 0 * t, cond) - network(noise, t, t, cond)).abs().max() > 1e-4


def test_steps_of_mean_velocities():
    network = MeanVelocity(made(Flow())).double()
    noise, cond = inputs()
    one, two = (MeanSteps(network, steps).sample(noise, cond, torch.Generator()) for steps in (1, 2))
    ones = torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(one.x, noise - network(noise, ones, 0 * ones, cond))
    middle = noise - 0.5 * network(noise, ones, 0.5 * ones, cond)
    torch.testing.assert_close(two.x, middle - 0.5 * network(middle, 0.5 * ones, 0 * ones, cond))
    assert (one.nfe, two.nfe) == (1, 2)


@pytest.mark.parametrize("net", [Mlp(width=8, depth=1), UNet(channels=8), Dit(patch=4, width=16, depth=1, heads=2)])
def test_all_networks_have_a_forward_derivative(net):
    """In the duration, as finite differences say."""
    noise, cond = inputs(2, (1, 8, 8))
    network = FlowMap(FromNoise(made(Flow(), net, (1, 8, 8))))
    d, step = torch.tensor([0.3, 0.7], dtype=torch.float64), 1e-5
    # outputs of denoisers are float32: the raw network is asked
    raw, number = network.signal.denoiser.net, lambda d: network.first + d * (network.last - network.first)
    _, slope = along(lambda d: raw(noise, number(d), cond), (d,), (torch.ones_like(d),))
    with torch.no_grad():
        finite = (raw(noise, number(d + step), cond) - raw(noise, number(d - step), cond)) / (2 * step)
    torch.testing.assert_close(slope, finite, atol=1e-6, rtol=1e-4)
    assert slope.abs().max() > 1e-4


def test_saved_and_loaded(tmp_path):
    noise, cond = inputs()
    noise = noise.float()
    for number, sampler in enumerate(
        (NoiseMap(FromNoise(made(Edm()).float())), MeanSteps(MeanVelocity(made(Flow()).float()), 3))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        sampler.save(folder)
        again = type(sampler).load(folder, Place())
        before, after = (one.sample(noise, cond, torch.Generator()) for one in (sampler, again))
        torch.testing.assert_close(after.x, before.x, atol=0, rtol=0)
        assert after.nfe == before.nfe


def test_an_exact_denoiser_is_no_student():
    with pytest.raises(UsageError, match="raw network"):
        FromNoise(ExactDenoiser(Mixture([[0.0, 0.0]], 1.0), Flow()))
