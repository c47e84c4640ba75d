"""Low-rank adapters: what they add, swapping, merging, files."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.networks import lora


class Net(nn.Module):
    """Linear layers, convolutions of several kinds, and one that can have no adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.dilated = nn.Conv2d(6, 4, 3, padding=2, dilation=2, padding_mode="circular")
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4, bias=bool(number)) for number in range(2))
        self.heads = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        h = self.grouped(self.dilated(self.conv(x))).flatten(2).transpose(1, 2)
        for block in self.blocks:
            h = torch.tanh(block(h))
        return F.linear(h, self.heads.out_proj.weight)


LAYERS = ["conv", "dilated", "blocks.0", "blocks.1"]


def fresh(dtype=torch.float64) -> Net:
    """Frozen, as adapters leave it: torch takes other kernels for weights that require gradients."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().to(dtype).requires_grad_(False)


def drawn(network: nn.Module, name: str, seed: int) -> None:
    """Weights for an adapter as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora.layers(network).values():
            if name in layer.adapters:
                weight = layer.adapters[name].up.weight
                weight.copy_(torch.randn(weight.shape, generator=generator))


def two(dtype=torch.float64) -> Net:
    network = fresh(dtype)
    for seed, name in enumerate(("one", "two")):
        lora.add(network, name, rank=2, alpha=3.0, generator=torch.Generator().manual_seed(seed))
        drawn(network, name, seed)
    return network


@torch.no_grad()
def said(network: nn.Module, x):
    """Without gradients, for comparisons of bits."""
    return network(x)


def inputs(dtype=torch.float64):
    return torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(9), dtype=dtype)


def test_a_new_adapter_is_everywhere_it_can_be_and_changes_no_bit():
    network, x = fresh(torch.float32), inputs(torch.float32)
    before = said(network, x)
    assert lora.add(network, rank=2) == LAYERS
    assert torch.equal(said(network, x), before)
    network(x).sum().backward()
    learning = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert learning == {f"{layer}.adapters.lora.up.weight" for layer in LAYERS}


def test_only_the_adapter_is_trained():
    network = two()
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {
        f"{layer}.adapters.{name}.{part}.weight"
        for layer in LAYERS
        for name in ("one", "two")
        for part in ("down", "up")
    }
    lora.train_only(network, "two")
    assert all(".adapters.two." in name for name, p in network.named_parameters() if p.requires_grad)
    assert any(p.requires_grad for p in network.parameters())


def test_what_is_added_is_alpha_over_rank_times_the_product():
    network, x = two(), inputs()
    lora.use(network, {"one": 0.25, "two": -2.0})
    plain = fresh()
    with torch.no_grad():
        for path, layer in lora.layers(network).items():
            weight = plain.get_submodule(path).weight
            for name, strength in (("one", 0.25), ("two", -2.0)):
                up, down = layer.adapters[name].up.weight, layer.adapters[name].down.weight
                product = torch.einsum("or,r...->o...", up.flatten(1), down)
                torch.testing.assert_close(layer.adapters[name].change(), 3.0 / 2 * product)
                weight += strength * 3.0 / 2 * product
    torch.testing.assert_close(said(network, x), said(plain, x))


def test_a_convolutional_adapter_is_a_convolution_of_low_rank():
    network, x = two(), inputs()
    layer = network.conv
    lora.use(network, "one")
    added = F.conv2d(x, layer.adapters["one"].change(), stride=2, padding=1)
    torch.testing.assert_close(layer(x), layer.base(x) + added)
    assert torch.linalg.matrix_rank(layer.adapters["one"].change().flatten(1)) == 2


def test_swapping_and_switching_off():
    network, x = two(torch.float32), inputs(torch.float32)
    plain = said(fresh(torch.float32), x)
    found = {}
    for name in ("one", "two"):
        lora.use(network, name)
        found[name] = said(network, x)
    assert not torch.allclose(found["one"], found["two"], atol=1e-3)
    with lora.using(network, None):
        assert torch.equal(said(network, x), plain)
        with lora.using(network, "one"):
            assert torch.equal(said(network, x), found["one"])
        assert torch.equal(said(network, x), plain)
    assert torch.equal(said(network, x), found["two"])
    with pytest.raises(RuntimeError, match="stop"), lora.using(network, ["one", "two"]):
        raise RuntimeError("stop")
    assert torch.equal(said(network, x), found["two"])


def test_layers_can_be_chosen():
    network = two()
    lora.use(network, "one", "blocks")
    used = {path for path, layer in lora.layers(network).items() if layer.strengths}
    assert used == {"blocks.0", "blocks.1"}
    assert lora.add(network, "third", rank=1, targets=r"^(conv|blocks\.1)$") == ["conv", "blocks.1"]
    assert {path for path, layer in lora.layers(network).items() if layer.strengths} == {"conv", "blocks.1"}


def test_merging_gives_the_same_and_unmerging_the_same_bits():
    network, x = two(torch.float32), inputs(torch.float32)
    weights = {path: layer.weight.clone() for path, layer in lora.layers(network).items()}
    lora.use(network, {"one": 1.0, "two": 0.3})
    before = said(network, x)
    lora.merge(network)
    lora.merge(network)  # once
    assert all(layer.merged for layer in lora.layers(network).values())
    torch.testing.assert_close(said(network, x), before, atol=1e-5, rtol=1e-4)
    with pytest.raises(UsageError, match=r"unmerge\(\)"):
        lora.use(network, "one")
    copied = deepcopy(network)
    for one in (network, copied):
        lora.unmerge(one)
        assert torch.equal(said(one, x), before)
        assert all(torch.equal(layer.weight, weights[path]) for path, layer in lora.layers(one).items())


def test_removal_leaves_the_network_that_was_there():
    x = inputs()
    network = two()
    lora.use(network, "one")
    asked = said(network, x)
    kept, plain = deepcopy(network), network
    lora.remove(kept, merged=True)
    lora.remove(plain, merged=False)
    torch.testing.assert_close(said(kept, x), asked)
    assert torch.equal(said(plain, x), said(fresh(), x))
    assert list(plain.state_dict()) == list(fresh().state_dict()) == list(kept.state_dict())


def test_one_adapter_travels_alone(tmp_path):
    network, x = two().requires_grad_(False), inputs()
    lora.use(network, "one")
    assert set(lora.state(network, "one")) == {f"{layer}.{part}.weight" for layer in LAYERS for part in ("down", "up")}
    lora.save(network, "one", tmp_path / "one.safetensors")
    other = fresh()
    lora.load(other, "effect", tmp_path / "one.safetensors")
    assert not any(p.requires_grad for p in other.parameters())
    assert torch.equal(said(other, x), said(fresh(), x))
    lora.use(other, "effect")
    assert torch.equal(said(other, x), said(network, x))
    with pytest.raises(UsageError, match="already"):
        lora.load(other, "effect", tmp_path / "one.safetensors")
    with pytest.raises(UsageError, match="no layer 'blocks"):
        lora.load(nn.Sequential(nn.Linear(2, 2)), "effect", tmp_path / "one.safetensors")
    with pytest.raises(UsageError, match="no adapter 'three'"):
        lora.save(network, "three", tmp_path / "none.safetensors")


def test_the_same_generator_gives_the_same_adapter():
    first, again = two(), two()
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters()))
    state = torch.get_rng_state()
    lora.add(first, "third", rank=1, generator=torch.Generator().manual_seed(4))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "at least 1"),
        ({"rank": 1, "name": "one"}, "already"),
        ({"rank": 1, "name": "a.b"}, "letters"),
        ({"rank": 1, "targets": "^grouped"}, "no linear or convolutional layer"),
    ],
)
def test_wrong_requests_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        lora.add(two(), **options)
    with pytest.raises(UsageError, match="no adapter 'nobody'; it has one, two"):
        lora.use(two(), "nobody")
