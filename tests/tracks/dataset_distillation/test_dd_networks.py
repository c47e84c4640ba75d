"""Networks: sizes, features, names, and which of them keep statistics."""

from __future__ import annotations

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.dataset_distillation.networks.build import build, has_batch_norm
from kdbench.tracks.dataset_distillation.networks.names import check_arch

COMMITTEE = ["mini_resnet(8)", "mini_vgg(8)", "mini_mobilenet(8)", "mini_shufflenet(16)", "mini_densenet(8)"]


@pytest.mark.parametrize("arch", [*COMMITTEE, "mini_wrn(8)", "convnet(2,16,instance)", "convnet(3,16,batch)"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16)])
def test_networks_take_images_of_any_channels(arch, shape):
    torch.manual_seed(0)
    network = build(arch, shape, 10)
    x = torch.randn(4, *shape)
    taps = network.taps(x)
    assert taps.logits.shape == (4, 10)
    assert torch.allclose(network.head()(taps.penult), taps.logits)
    assert 1_500 < sum(p.numel() for p in network.parameters()) < 40_000
    if arch in COMMITTEE:
        assert has_batch_norm(network)


def test_a_convnet_without_batch_normalisation_has_no_statistics():
    assert not list(build("convnet(2,4,instance)", (1, 8, 8), 10).buffers())
    assert not list(build("convnet(2,4,none)", (1, 8, 8), 10).buffers())
    assert not has_batch_norm(build("convnet(2,4,none)", (1, 8, 8), 10))


def test_instance_normalisation_is_of_each_channel_of_each_image():
    network = build("convnet(1,4,instance)", (1, 8, 8), 10)
    x = 5 + 3 * torch.randn(2, 4, 8, 8)
    normal = network.norms[0](x)
    assert torch.allclose(normal.mean((2, 3)), torch.zeros(2, 4), atol=1e-5)
    assert torch.allclose(normal.var((2, 3), unbiased=False), torch.ones(2, 4), atol=1e-3)


def test_networks_of_the_vision_track_are_for_rgb():
    assert build("resnet(8)", (3, 32, 32), 5)(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    with pytest.raises(UsageError, match="for RGB images"):
        build("resnet(8)", (1, 8, 8), 5)
    with pytest.raises(UsageError, match="for graphs"):
        build("gin(3,32)", (1, 8, 8), 5)


def test_wrong_names_are_explained():
    with pytest.raises(ValueError, match="mini_resnet"):
        check_arch("mini_resnett(8)")
    with pytest.raises(ValueError, match="cannot be halved 4 times"):
        build("convnet(4,8,none)", (1, 8, 8), 10)
    assert check_arch("convnet(2, 16, none)") == "convnet(2,16,none)"
