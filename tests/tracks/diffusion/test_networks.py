"""Raw networks, the denoisers built from them, and their files."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from kdbench.errors import ArtifactError, UsageError
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks import lora
from kdbench.tracks.diffusion.networks.attention import Attention
from kdbench.tracks.diffusion.networks.base import Denoiser, guided
from kdbench.tracks.diffusion.networks.build import build, load_denoiser, save_denoiser
from kdbench.tracks.diffusion.networks.dit import positions
from kdbench.tracks.diffusion.processes import Edm, Flow, Vp
from kdbench.tracks.diffusion.spec import Dit, Mlp, UNet

PROMPTS = (4, 3, 5)
IMAGE = (1, 8, 8)
SPECS = {
    "mlp": (Mlp(width=16, depth=3), IMAGE),
    "mlp-points": (Mlp(width=16, depth=2), (2,)),
    "unet": (UNet(channels=8, multipliers=(1, 2), attention=True), IMAGE),
    "unet-fold": (UNet(channels=8, multipliers=(1, 2, 2), blocks=2, fold=True), (3, 16, 16)),
    "unet-cross": (UNet(channels=8, multipliers=(1, 2), tokens="cross"), IMAGE),
    "dit": (Dit(patch=4, width=16, depth=2, heads=2), (1, 16, 16)),
    "dit-cross": (Dit(patch=2, width=16, depth=3, heads=2, tokens="cross"), IMAGE),
}


def alive(model: nn.Module, seed: int = 0) -> nn.Module:
    """The network with every weight drawn, so that no layer that begins at zero hides what comes before it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def made(name: str, process=None, **rest) -> Denoiser:
    spec, shape = SPECS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return alive(build(spec, shape, PROMPTS, process=process or Flow(), **rest))


def batch(shape, count=3, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *shape, generator=generator, dtype=dtype)
    tokens = torch.stack([torch.randint(1, size, (count,), generator=generator) for size in PROMPTS], 1)
    return x, torch.rand(count, generator=generator, dtype=dtype), Condition.of_tokens(tokens)


@pytest.mark.parametrize("name", SPECS)
def test_a_new_network_gives_zero_so_that_the_wrapper_alone_speaks(name):
    spec, shape = SPECS[name]
    x, t, cond = batch(shape)
    torch.testing.assert_close(build(spec, shape, PROMPTS, process=Flow())(x, t, cond), x)
    edm = Edm(data_std=0.5)
    skip = 0.25 / (0.25 + t**2)
    torch.testing.assert_close(
        build(spec, shape, PROMPTS, process=edm)(x, t, cond), skip.view(-1, *[1] * (x.ndim - 1)) * x
    )


@pytest.mark.parametrize("name", SPECS)
def test_every_parameter_learns_and_everything_given_matters(name):
    model = made(name)
    x, t, cond = batch(SPECS[name][1])
    out = model(x, t, cond)
    assert out.shape == x.shape
    out.square().mean().backward()
    idle = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # no gradient reaches the bias of keys: it adds the same to all logits of a query
    assert [key for key in idle if not key.endswith("key.bias")] == []
    assert not torch.allclose(model(x, 0.5 * t, cond), out, atol=1e-3)
    for slot in range(len(PROMPTS)):
        other = cond.tokens.clone()
        other[:, slot] = 0
        assert not torch.allclose(model(x, t, Condition.of_tokens(other)), out, atol=1e-4), f"slot {slot}"


@pytest.mark.parametrize("name", SPECS)
def test_rows_do_not_mix(name):
    model = made(name)
    x, t, cond = batch(SPECS[name][1])
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], cond[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(model(x, t, cond), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SPECS)
def test_feature_maps_have_the_channels_that_are_declared(name):
    model = made(name)
    x, t, cond = batch(SPECS[name][1])
    out, maps = model(x, t, cond, features=True)
    assert torch.equal(out, model(x, t, cond))
    assert {key: value.shape[1] for key, value in maps.items()} == model.channels
    assert all(value.ndim >= 3 and len(value) == 3 for value in maps.values())
    least = min(value[0, 0].numel() for value in maps.values())
    assert maps["mid"][0, 0].numel() == least


def test_maps_of_a_folded_u_net_are_at_their_resolutions():
    model = made("unet-fold")
    x, t, cond = batch((3, 16, 16))
    sides = {key: tuple(value.shape[2:]) for key, value in model(x, t, cond, features=True)[1].items()}
    assert sides == {"enc0": (8, 8), "enc1": (4, 4), "enc2": (2, 2), "mid": (2, 2)} | {
        "dec0": (8, 8),
        "dec1": (4, 4),
        "dec2": (2, 2),
    }


@pytest.mark.parametrize("name", ["mlp", "unet", "unet-cross", "dit-cross"])
def test_derivatives_along_time_and_state_are_those_of_finite_differences(name):
    model = made(name).double()
    x, t, cond = batch(SPECS[name][1], dtype=torch.float64)
    t = 0.2 + 0.6 * t
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def net(x, c):
        return model.net(x, c, cond)

    _, slope = torch.func.jvp(net, (x, t), (v, torch.ones_like(t)))
    h = 1e-5
    torch.testing.assert_close(slope, (net(x + h * v, t + h) - net(x - h * v, t - h)) / (2 * h), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "unet-cross", "dit-cross"])
def test_second_derivatives_exist_for_penalties_of_gradients(name):
    model = made(name)
    x, t, cond = batch(SPECS[name][1])
    x.requires_grad_()
    (slope,) = torch.autograd.grad(model(x, t, cond, features=True)[1]["mid"].square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", ["mlp", "unet-fold", "dit-cross"])
def test_an_image_of_the_condition_is_read(name):
    spec, shape = SPECS[name]
    model = alive(build(spec, shape, PROMPTS, image_channels=2, process=Flow()))
    x, t, cond = batch(shape)
    image = torch.randn(3, 2, *shape[1:], generator=torch.Generator().manual_seed(3))
    shown = Condition(3, tokens=cond.tokens, image=image)
    assert not torch.allclose(model(x, t, shown), model(x, t, Condition(3, tokens=cond.tokens, image=-image)))
    with pytest.raises(UsageError, match="the condition has none"):
        model(x, t, cond)
    with pytest.raises(UsageError, match=r"the condition has \[1, 2, 2\]"):
        model(x, t, Condition(3, tokens=cond.tokens, image=torch.zeros(3, 1, 2, 2)))


@pytest.mark.parametrize("name", ["unet", "unet-cross", "dit", "dit-cross"])
def test_no_condition_is_the_null_condition(name):
    model = made(name)
    x, t, cond = batch(SPECS[name][1])
    null = model(x, t, cond.null())
    torch.testing.assert_close(model(x, t), null)
    torch.testing.assert_close(guided(model, x, t, cond, 0.0), null)
    asked = model(x, t, cond)
    torch.testing.assert_close(guided(model, x, t, cond, 3.0), null + 3 * (asked - null), atol=1e-4, rtol=1e-4)


def test_wrong_prompts_are_refused():
    model = made("unet-cross")
    x, t, _ = batch(IMAGE)
    with pytest.raises(UsageError, match="3 slots, not of 1"):
        model(x, t, Condition.of_tokens(torch.zeros(3, dtype=torch.int64)))
    with pytest.raises(IndexError):  # a token of another slot's vocabulary
        model(x, t, Condition.of_tokens(torch.tensor([[0, 4, 0]] * 3)))
    with pytest.raises(UsageError, match="embedded text alone"):
        made("unet")(x, t, Condition(3, embedding=torch.zeros(3, 2, 8), empty=torch.zeros(1, 2, 8)))


def test_a_text_that_is_embedded_already_takes_the_place_of_the_encoder():
    model = made("dit-cross")
    x, t, cond = batch(IMAGE)
    embedded = model.net.tokens(cond)
    found = model(x, t, Condition(3, embedding=embedded, empty=model.net.tokens(Condition.none(1))))
    torch.testing.assert_close(found, model(x, t, cond))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="1/4 of their side"):
        build(UNet(channels=8, multipliers=(1, 2), fold=True), (1, 6, 8))
    with pytest.raises(UsageError, match="patches of 3 x 3"):
        build(Dit(patch=3), IMAGE)
    with pytest.raises(UsageError, match="multiple of 4"):
        build(Dit(width=18, heads=2), IMAGE)
    with pytest.raises(UsageError, match="no image beside"):
        build(Mlp(), (2,), image_channels=1)


def test_a_second_conditioning_number_changes_nothing_until_it_is_trained(tmp_path):
    model = made("unet")
    x, t, cond = batch(IMAGE)
    before = model.net(x, t, cond)
    model.net.conditioning.add_number()
    both = torch.stack([t, 1 - t], 1)
    assert torch.equal(model.net(x, both, cond), before)
    with pytest.raises(UsageError, match="reads 2 conditioning numbers, not 1"):
        model.net(x, t, cond)
    alive(model.net.conditioning.maps[1])
    changed = model.net(x, both, cond)
    assert not torch.allclose(changed, before, atol=1e-3)
    save_denoiser(model, tmp_path)
    assert torch.equal(load_denoiser(tmp_path).net(x, both, cond), changed)


@pytest.mark.parametrize("process", [Edm(data_std=0.7), Flow(shift=2.0), Vp(beta_max=12.0)], ids=lambda p: p.name)
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, process):
    for name in ("mlp", "unet-cross", "dit"):
        model = made(name, process)
        x, t, cond = batch(SPECS[name][1])
        save_denoiser(model, tmp_path / name)
        back = load_denoiser(tmp_path / name)
        assert torch.equal(back(x, t, cond), model(x, t, cond))
        assert (back.process, back.shape, back.channels) == (model.process, model.shape, model.channels)


def test_adapters_are_saved_with_the_network(tmp_path):
    model = made("dit-cross")
    lora.add(model, "slider", rank=2, targets="cross", generator=torch.Generator().manual_seed(0))
    lora.add(model, "effect", rank=3, alpha=6.0, targets="attention")
    alive(model)
    lora.use(model, {"slider": 0.5, "effect": 1.0}, "blocks.1")
    x, t, cond = batch(IMAGE)
    save_denoiser(deepcopy(model), tmp_path)
    back = load_denoiser(tmp_path)
    assert torch.equal(back(x, t, cond), model(x, t, cond))
    assert lora.describe(back) == lora.describe(model)
    assert lora.used(back) == lora.used(model)
    lora.merge(model)
    with pytest.raises(ArtifactError, match="merged into the weights"):
        save_denoiser(model, tmp_path / "merged")


def test_denoisers_of_other_classes_write_themselves(tmp_path):
    class Unsaved(Denoiser):
        pass

    with pytest.raises(ArtifactError, match=r"no save\(folder\)"):
        save_denoiser(Unsaved(), tmp_path)
    for foreign in ("os:system", "kdbench.errors:JobError", "kdbench.tracks.diffusion.networks.base:nothing"):
        (tmp_path / "denoiser.json").write_text(f'{{"class": "{foreign}"}}')
        with pytest.raises(ArtifactError):
            load_denoiser(tmp_path)


def test_attention_logits_are_those_that_the_blocks_use():
    model = made("dit")
    x, t, cond = batch((1, 16, 16))
    net = model.net
    seen = {}
    handle = net.blocks[1].attention.register_forward_hook(lambda module, args, out: seen.update(h=args[0], out=out))
    out, logits = net.attention_logits(x, t, cond, blocks=[1])
    handle.remove()
    assert torch.equal(out, net(x, t, cond))
    assert list(logits) == [1]
    assert logits[1].shape == (3, 2, 16, 16)
    attention = net.blocks[1].attention
    heads = attention.value(seen["h"]).unflatten(-1, (2, -1)).transpose(1, 2)
    again = attention.proj((logits[1].softmax(-1) @ heads).transpose(1, 2).flatten(-2))
    torch.testing.assert_close(again, seen["out"])
    assert set(net.attention_logits(x, t, cond)[1]) == {0, 1}
    logits[1].sum().backward()
    assert net.blocks[0].attention.query.weight.grad.abs().sum() > 0
    assert not net.blocks[1].attention._forward_hooks


def test_attention_is_that_of_torch():
    attention = Attention(12, 3, 8).double()
    generator = torch.Generator().manual_seed(0)
    h, context = (torch.randn(2, n, w, generator=generator, dtype=torch.float64) for n, w in ((5, 12), (4, 8)))
    q, k, v = (
        part.unflatten(-1, (3, 4)).transpose(1, 2)
        for part in (attention.query(h), attention.key(context), attention.value(context))
    )
    mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(attention.mix(h, context), mixed)
    with pytest.raises(ValueError, match="not a multiple of heads"):
        Attention(10, 3)


def test_positions_tell_all_places_apart_and_shift_evenly():
    table = positions(4, 5, 16).double()
    assert table.shape == (20, 16)
    assert torch.pdist(table).min() > 0.5
    grid = (table @ table.T).view(4, 5, 4, 5)
    torch.testing.assert_close(grid[0, 0, 1, 2], grid[2, 1, 3, 3])  # depends on the offset alone


def test_patches_and_folded_pixels_come_back_where_they_were():
    """A network whose weights copy its input gives it back: places are not permuted on the way."""
    model = build(Dit(patch=2, width=16, depth=1, heads=2), (1, 4, 4), process=Flow())
    x = torch.arange(16.0).view(1, 1, 4, 4)
    weight = model.net.patches.weight.detach().flatten(1)  # (16, 4)
    tokens = (x.unfold(2, 2, 2).unfold(3, 2, 2).reshape(4, 4)) @ weight.T
    read = tokens @ torch.linalg.pinv(weight.T)
    torch.testing.assert_close(model.net._unpatched(read[None]), x, atol=1e-4, rtol=1e-4)
