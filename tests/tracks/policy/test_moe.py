"""Experts: what routes, what is balanced, what can be known before acting; and the preconditioning around them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from kdbench.tracks.policy.blocks.edm import Scaling, ddim
from kdbench.tracks.policy.blocks.routing import usage
from kdbench.tracks.policy.networks.chunk_transformer import ChunkTransformer
from kdbench.tracks.policy.networks.moe import TopKMoE, balance, route
from kdbench.tracks.policy.policies.experts import ScoreChunks
from kdbench.tracks.policy.worlds.base import Observation

BUILD = {"experts": 4, "k": 2, "expansion": 2, "route": "noise"}


def network(seed=0, **changes) -> ChunkTransformer:
    torch.manual_seed(seed)
    options = {"image": 16, "vocabulary": 9, "width": 16, "depth": 2, "heads": 2, **BUILD, **changes}
    return ChunkTransformer(2, 5, **options).eval()


def window(n=3, seed=0) -> Observation:
    generator = torch.Generator().manual_seed(seed)
    return Observation(
        torch.zeros(n, 0),
        image=torch.rand(n, 3, 16, 16, generator=generator),
        text=torch.randint(1, 9, (n, 4), generator=generator),
    )


def test_the_balance_of_experts_that_are_used_alike_is_k_and_of_others_more():
    one_hot = torch.eye(4).repeat(8, 1)
    both = torch.cat([one_hot * 30, one_hot.roll(1, 1) * 30])  # the second expert of a row is one of equals
    even = route(torch.zeros(4000, 4), 2, sampled=True)
    assert even.balance().item() == pytest.approx(2.0, abs=0.02)
    assert even.load.sum().item() == pytest.approx(2.0)
    assert route(both, 1, sampled=False).balance().item() == pytest.approx(1.0)
    skewed = route(torch.tensor([[9.0, 8.0, 0.0, 0.0]]).repeat(50, 1), 2, sampled=False)
    assert skewed.balance().item() > 3.9


def test_training_draws_without_replacement_and_evaluation_takes_the_most_probable():
    torch.manual_seed(0)
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(2000, 1)
    drawn = route(logits, 2, sampled=True)
    assert ((drawn.weights > 0).sum(-1) == 2).all()
    assert drawn.weights.sum(-1).allclose(torch.ones(2000))
    assert (drawn.load > 0.05).all()
    assert drawn.load.argsort(descending=True).tolist() == [0, 1, 2, 3]
    best = route(logits, 2, sampled=False)
    assert best.load.tolist() == [1, 1, 0, 0]
    assert best.weights[0, 0].item() == pytest.approx(math.e / (1 + math.e))


def test_fused_experts_are_the_mixture():
    torch.manual_seed(0)
    mixture = TopKMoE(16, 32, 4, 2).double()
    c, x = torch.randn(1, 16).double(), torch.randn(3, 5, 16).double()
    routing = mixture.routing(c.expand(3, -1), sampled=False)
    assert torch.allclose(mixture(x, routing), mixture.fused(c)(x), atol=1e-12)
    loop = sum(routing.weights[0, e] * mixture.experts[e](x) for e in range(4))
    assert torch.allclose(mixture(x, routing), loop.double(), atol=1e-7)
    with pytest.raises(ValueError, match="between 1 and"):
        TopKMoE(16, 32, 2, 3)


def test_the_router_reads_the_noise_alone():
    model, x, level = network(), torch.randn(3, 5, 2), torch.tensor([0.3, -0.5, 1.0])
    chosen = []
    for seed in (0, 1):
        routings = []
        model(x * (seed + 1), level, window(seed=seed), routings=routings)
        chosen.append([routing.weights for routing in routings])
    assert all(torch.equal(a, b) for a, b in zip(*chosen, strict=True))
    tokens = network(route="token")
    routings = []
    tokens(x, level, window(), routings=routings)
    assert len(routings[0].weights) == 3 * (1 + 1 + tokens.picture.TOKENS + 5)


def test_actions_with_cached_experts_are_the_same_with_fewer_parts():
    model = network()
    with torch.no_grad():
        model.actions_out.weight.mul_(5)
    shape = {"actions": 2, "horizon": 5, "observed": 1, "executed": 5}
    chunks = []
    for cached in (True, False):
        policy = ScoreChunks(model, steps=6, build=BUILD, cached=cached, **shape)
        policy.reset(3, torch.Generator().manual_seed(0))
        with torch.no_grad():
            chunks.append(policy.plan(window()))
        assert sorted(policy._made) == (list(range(6)) if cached else [])
    assert torch.allclose(*chunks, atol=1e-4)
    assert not torch.allclose(chunks[0], torch.zeros_like(chunks[0]))


def test_one_expert_is_a_dense_transformer_with_the_parameters_that_are_active():
    sparse, dense = network(), network(experts=1, k=1, expansion=4)
    routers = sum(p.numel() for block in sparse.blocks for p in block.mixture.router.parameters())
    assert (
        sparse.active_parameters() - routers == dense.active_parameters() == sum(p.numel() for p in dense.parameters())
    )
    whole = network(experts=1, k=1, expansion=8)
    assert sum(p.numel() for p in whole.parameters()) + routers == sum(p.numel() for p in sparse.parameters())
    dense.train()
    routings = []
    dense(torch.randn(3, 5, 2), torch.zeros(3), window(), routings=routings)
    assert balance(routings).item() == 1.0
    found = usage(ScoreChunks(dense.eval(), steps=4, build=BUILD, actions=2, horizon=5, observed=1, executed=5))
    assert found == {"experts_used": pytest.approx(1.0), "level_dependence": pytest.approx(0.0)}


def test_later_actions_do_not_change_earlier_ones():
    model, x = network(), torch.randn(2, 5, 2)
    other = x.clone()
    other[:, 3:] += 1
    with torch.no_grad():
        a, b = (model(value, torch.zeros(2), window(2)) for value in (x, other))
    assert torch.allclose(a[:, :3], b[:, :3], atol=1e-6)
    assert not torch.allclose(a[:, 3:], b[:, 3:])


def test_the_preconditioning_has_its_limits():
    scaling, x = Scaling(), torch.randn(2, 5, 2, dtype=torch.float64)
    zero = lambda x, level, obs: torch.zeros_like(x)  # noqa: E731
    assert torch.allclose(scaling.denoised(zero, x, torch.full((2,), 1e-6).double(), None), x, atol=1e-9)
    assert scaling.denoised(zero, x, torch.full((2,), 1e6).double(), None).abs().max() < 1e-9
    levels = []
    scaling.denoised(lambda x, level, obs: levels.append(level) or x, x, torch.tensor([1.0, math.e**4]), None)
    assert levels[0].tolist() == pytest.approx([0.0, 1.0])
    # a network that is asked for its own target has no error, at any level
    sigma, noise, x0 = torch.tensor([0.01, 3.0]).double(), torch.randn_like(x), x
    s, d = sigma.view(-1, 1, 1), scaling.data_std
    target = (x0 - d**2 / (s**2 + d**2) * (x0 + s * noise)) * (s**2 + d**2).sqrt() / (s * d)
    assert scaling.loss(lambda x, level, obs: target, x0, sigma, noise, None).max() < 1e-20
    # and the weight makes the loss that of the network's own output
    off = scaling.loss(lambda x, level, obs: target + 1, x0, sigma, noise, None)
    assert off.tolist() == pytest.approx([1.0, 1.0])


def test_levels_are_drawn_around_the_data_and_the_schedule_ends_at_zero():
    scaling = Scaling()
    drawn = scaling.training_levels(4000, torch.Generator().manual_seed(0))
    assert drawn.min() >= scaling.least * 0.999
    assert drawn.max() <= scaling.most * 1.001
    assert drawn.median().item() == pytest.approx(0.5, rel=0.1)
    grid = scaling.exponential(10)
    assert grid[0].item() == pytest.approx(80)
    assert grid[-2].item() == pytest.approx(0.001)
    assert grid[-1] == 0
    ratios = grid[1:-1] / grid[:-2]
    assert ratios.allclose(ratios[:1].expand_as(ratios), rtol=1e-4)


def test_ddim_of_a_gaussian_ends_where_its_ode_does():
    """Data N(0, d^2): the denoiser is d^2 / (s^2 + d^2) x, the exact solution x d / sqrt(s^2 + d^2)."""
    d, x = 0.5, torch.tensor([3.0], dtype=torch.float64)
    grid = torch.cat([torch.linspace(math.log(80), math.log(1e-3), 4000).double().exp(), torch.zeros(1).double()])
    start = x * 80 / 3
    state = start
    for here, there in itertools.pairwise(grid):
        state = ddim(state, d**2 / (here**2 + d**2) * state, here, there)
    assert state.item() == pytest.approx(float(start * d / math.sqrt(80**2 + d**2)), rel=2e-3)
