"""Architectures have the stated sizes, and taps are the forward pass itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdbench.task import count_parameters
from kdbench.tracks.vision.flops import multiply_adds
from kdbench.tracks.vision.models import build, family, to_tokens
from kdbench.tracks.vision.spec import check_arch

ARCHS = ["rn(4,1)", "rn(4,2)", "vit(16,2,2)", "mixer(16,2)"]


@pytest.mark.parametrize(("arch", "parameters"), [("rn(24,1)", 176_214), ("rn(4,1)", 5_554), ("rn(6,1)", 11_892)])
def test_parameters_are_those_of_the_protocol(arch: str, parameters: int) -> None:
    assert count_parameters(build(arch, 30)) == parameters


@pytest.mark.parametrize("arch", ARCHS)
def test_taps_lead_to_the_logits(arch: str) -> None:
    model = build(arch, 7).eval()
    x = torch.randn(3, 3, 16, 16)
    taps = model.taps(x)
    assert torch.equal(taps.logits, model(x))
    assert torch.equal(taps.logits, model.head()(taps.penult))
    assert taps.logits.shape == (3, 7)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for stage in taps.stages:
        assert stage.requires_grad
        assert to_tokens(stage).dim() == 3
    taps.logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_shapes_of_stages() -> None:
    x = torch.randn(2, 3, 16, 16)
    rn, vit, mixer = (build(arch, 5).taps(x) for arch in ("rn(4,2)", "vit(16,3,2)", "mixer(16,2)"))
    assert [tuple(s.shape) for s in rn.stages] == [(2, 4, 8, 8), (2, 8, 4, 4), (2, 16, 2, 2)]
    assert [tuple(s.shape) for s in vit.stages] == [(2, 16, 16)] * 3
    assert [tuple(s.shape) for s in vit.cls] == [(2, 16)] * 3
    assert [tuple(s.shape) for s in mixer.stages] == [(2, 16, 16)] * 2
    assert rn.penult.shape == vit.penult.shape == mixer.penult.shape == (2, 16)


def test_tokens_of_a_map_go_row_by_row() -> None:
    stage = torch.arange(2 * 3 * 2 * 2).view(2, 3, 2, 2)
    tokens = to_tokens(stage)
    assert tokens.shape == (2, 4, 3)
    assert tokens[1, 2].tolist() == stage[1, :, 1, 0].tolist()
    assert to_tokens(tokens) is tokens


def test_token_networks_see_where_a_patch_is() -> None:
    x = torch.zeros(2, 3, 16, 16)
    x[0, :, :4, :4] = 1
    x[1, :, 4:8, 8:12] = 1
    for arch in ("vit(16,2,2)", "mixer(16,2)"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            a, b = build(arch, 5).eval()(x)
        assert not torch.allclose(a, b)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet18", "no architecture"),
        ("rn(4)", "no architecture"),
        ("rn(0,1)", "at least 1"),
        ("vit(15,1,2)", "multiple"),
    ],
)
def test_wrong_architectures_are_refused(arch: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(arch, 10)


def test_patches_must_tile_the_image() -> None:
    with pytest.raises(ValueError, match="tiled"):
        build("mixer(16,1)", 10, 18)


def test_spaces_do_not_matter() -> None:
    assert check_arch("rn(4, 1)") == "rn(4,1)"
    assert [family(a) for a in (*ARCHS, "hf:./x")] == ["rn", "rn", "vit", "mixer", "hf"]


# --- multiply-adds ----------------------------------------------------------------------------------------------------


def test_multiply_adds_of_known_layers() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * 8 * 8, 7))
    macs = multiply_adds(net, torch.randn(4, 3, 8, 8))
    assert macs.total == 3 * 5 * 9 * 64 + 320 * 7
    assert macs.modules["2"] == 320 * 7
    assert macs.modules[""] == macs.total


def test_multiply_adds_of_attention() -> None:
    macs = multiply_adds(build("vit(16,1,2)", 10), torch.randn(2, 3, 16, 16))
    n, d = 17, 16
    block = n * d * 3 * d + 2 * n * n * d + n * d * d + 2 * n * d * 2 * d
    assert macs.total == 16 * 48 * d + block + d * 10


def test_conditional_modules_count_what_they_say() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    net = nn.Sequential(nn.Linear(8, 8), Half())
    x = torch.randn(10, 8)
    assert multiply_adds(net, x).total == 128
    macs = multiply_adds(net, x, {Half: lambda module, args, output: len(args[0]) * 64 / 2})
    assert macs.total == 64 + 32
    assert macs.modules["1"] == 32
    assert not any(module._forward_hooks for module in net.modules())
