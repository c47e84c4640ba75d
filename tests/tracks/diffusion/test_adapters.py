"""Adapters on frozen denoisers: they add nothing at first, reach everything later, and never touch the base."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.blocks.adapters import Adapted, sites
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.build import build, load_denoiser, save_denoiser
from kdbench.tracks.diffusion.networks.hub import TextNet
from kdbench.tracks.diffusion.networks.tabulated import Tabulated, TabulatedDenoiser
from kdbench.tracks.diffusion.processes import Edm, Flow
from kdbench.tracks.diffusion.samplers.solvers import Solver
from kdbench.tracks.diffusion.spec import Dit, Mlp, UNet

SPECS = {
    "mlp": (Mlp(width=12, depth=2), Edm()),
    "dit": (Dit(patch=4, width=16, depth=2, heads=2), Flow()),
    "dit-cross": (Dit(patch=4, width=16, depth=2, heads=2, tokens="cross"), Flow()),
    "unet": (UNet(channels=4, multipliers=(1, 2)), Edm()),
    "unet-attention": (UNet(channels=4, multipliers=(1, 2), attention=True), Edm()),
}


def base_of(name):
    spec, process = SPECS[name]
    torch.manual_seed(0)
    model = build(spec, (1, 8, 8), (4, 3), process=process)
    with torch.no_grad():
        for parameter in model.parameters():  # gates and the last layer are zero in a new network
            parameter += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture(params=SPECS)
def base(request):
    return base_of(request.param)


@pytest.fixture(params=["cross", "additive"])
def arch(request):
    return request.param


def adapted(base, arch="cross", trained=False):
    torch.manual_seed(1)
    made = Adapted(base, (4, 3), hidden=8, arch=arch, scale=2.0)
    if trained:
        with torch.no_grad():
            for parameter in made.adapters.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    return made


def batch():
    generator = torch.Generator().manual_seed(5)
    tokens = torch.stack([torch.arange(3) + 1, torch.tensor([1, 2, 0])], 1)
    x = torch.randn(3, 1, 8, 8, generator=generator)
    return x, torch.tensor([0.2, 0.5, 0.9]), Condition.of_tokens(tokens)


def test_the_base_speaks_bit_for_bit_at_first_and_when_disabled(base, arch):
    plain = deepcopy(base)
    x, t, cond = batch()
    fresh, trained = adapted(base, arch), adapted(base, arch, trained=True)
    for w in (1.0, 6.0, torch.tensor([1.0, 3.0, 5.0])):
        assert torch.equal(fresh(x, t, cond, w=w), plain(x, t, cond))
        assert not torch.equal(trained(x, t, cond, w=w), plain(x, t, cond))
    trained.enabled = False
    assert torch.equal(trained(x, t, cond), plain(x, t, cond))
    assert torch.equal(base(x, t, cond), plain(x, t, cond))  # no hook is left


def test_training_moves_the_adapters_alone(base, arch):
    plain = deepcopy(base.state_dict())
    model = adapted(base, arch)
    x, t, cond = batch()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.1)
    for _ in range(2):  # the first step moves the last layers, and from then on gradients reach the others
        ((model(x, t, cond, w=3.0) - x) ** 2).mean().backward()
        optimizer.step()
    assert all(parameter.grad is None for parameter in base.parameters())
    assert all(torch.equal(value, plain[name]) for name, value in base.state_dict().items())
    parts = [*model.embedded.parameters(), *model.adapters.parameters()]
    assert {id(p) for p in trained} == {id(p) for p in parts}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.adapters.parameters())
    assert all(p.grad is not None for p in parts)


def test_scale_level_and_tokens_are_read(arch):
    model = adapted(base_of("dit"), arch, trained=True)
    x, t, cond = batch()
    out = model(x, t, cond)
    assert torch.equal(out, model(x, t, cond, w=2.0))
    assert torch.equal(model.at(5.0)(x, t, cond), model(x, t, cond, w=5.0))
    assert not torch.equal(out, model(x, t, cond, w=2.5))
    assert model.scale == 2.0
    h = torch.randn(3, 4, 16)
    with torch.no_grad():
        w, c = torch.full((3,), 2.0), t
        first = model.adapters[0](h, model.embedded(w, c, cond))
        for other in (
            model.embedded(w + 1, c, cond),
            model.embedded(w, c + 0.1, cond),
            model.embedded(w, c, cond.null()),
        ):
            assert (model.adapters[0](h, other) - first).abs().max() > 1e-4
        moved = model.adapters[0](h + 1, model.embedded(w, c, cond))
    assert torch.equal(moved, first) == (arch == "additive")


def test_one_evaluation_a_step_instead_of_two():
    base = base_of("dit")
    noise, _, cond = batch()
    times = Flow().grid(4).tolist()
    student = Solver(adapted(base), times, "euler").sample(noise, cond, torch.Generator())
    teacher = Solver(base, times, "euler", guidance=2.0).sample(noise, cond, torch.Generator())
    assert (student.nfe, teacher.nfe) == (4, 8)


def test_they_go_onto_another_network_and_to_disk(base, arch, tmp_path):
    model = adapted(base, arch, trained=True)
    x, t, cond = batch()
    other = deepcopy(base)
    with torch.no_grad():
        next(other.net.parameters()).add_(0.5)
    moved = model.onto(other)
    assert not torch.equal(moved(x, t, cond), model(x, t, cond))
    assert torch.equal(model.onto(deepcopy(base))(x, t, cond), model(x, t, cond))
    moved.enabled = False
    assert torch.equal(moved(x, t, cond), other(x, t, cond))
    save_denoiser(model, tmp_path)
    found = load_denoiser(tmp_path)
    assert torch.equal(found(x, t, cond), model(x, t, cond))
    assert found.scale == 2.0
    added = sum(p.numel() for p in model.embedded.parameters()) + sum(p.numel() for p in model.adapters.parameters())
    assert model.share == pytest.approx(added / sum(p.numel() for p in base.parameters()))


def test_features_of_the_adapted_network(base):
    model = adapted(base, trained=True)
    x, t, cond = batch()
    out, maps = model(x, t, cond, features=True)
    assert torch.equal(out, model(x, t, cond))
    assert set(maps) == set(base.channels)


def test_sites_are_the_self_attention_of_the_blocks():
    assert list(sites(base_of("dit-cross").net)) == ["blocks.0.attention", "blocks.1.attention"]
    assert sites(base_of("mlp").net) == {"blocks.0": (12, 12), "blocks.1": (12, 12)}
    assert all(name.endswith("attention.attention") for name in sites(base_of("unet-attention").net))
    with pytest.raises(UsageError, match="no blocks"):
        sites(torch.nn.Linear(2, 2))


def test_pretrained_models_have_sites_and_texts():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        layers_per_block=1,
        block_out_channels=(8, 16),
        **blocks,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    process = Tabulated(tuple(torch.linspace(0.99, 0.01, 20).tolist()))
    base = TabulatedDenoiser(TextNet(unet, (2, 8, 8), (16, 16)), process, (2, 8, 8))
    plain = deepcopy(base)
    torch.manual_seed(1)
    model = Adapted(base, (), hidden=8, text=16)
    assert all(name.endswith("attn1") for name in model.sites)
    cond = Condition(2, embedding=torch.randn(2, 5, 16), empty=torch.zeros(1, 5, 16))
    x, t = torch.randn(2, 2, 8, 8), torch.tensor([0.3, 0.9])
    assert torch.equal(model(x, t, cond, w=5.0), plain(x, t, cond))
    with torch.no_grad():
        for parameter in model.adapters.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    assert not torch.equal(model(x, t, cond, w=5.0), plain(x, t, cond))
    assert torch.equal(base(x, t, cond), plain(x, t, cond))
    embedded = model.embedded(torch.ones(2), t, cond)
    assert embedded.shape == (2, 2 + 5, 8)
