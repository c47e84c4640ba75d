"""Exit branches: shapes, depth by stage, class tokens."""

import pytest
import torch

from kdbench.training.branches import PatchMerging, SeparableConv, TokenPool, conv_branch, exit_branch, token_branch


def blocks(branch, kind):
    return sum(isinstance(module, kind) for module in branch.modules())


@pytest.mark.parametrize(("stage", "side", "channels"), [(1, 8, 6), (2, 4, 12), (3, 2, 24)])
def test_convolutional_branches_are_deeper_for_earlier_stages(stage, side, channels):
    x = torch.randn(4, channels, side, side)
    branch = exit_branch(x, 3 - stage, 96, 10)
    assert branch(x).shape == (4, 10)
    assert blocks(branch, SeparableConv) == 3 - stage
    assert branch[-1].in_features == 96


def test_convolutional_branches_double_their_channels():
    branch = conv_branch(6, 2, 96, 10)
    assert [layer[-2].num_features for layer in branch if isinstance(layer, SeparableConv)] == [12, 96]


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_token_branches_merge_to_a_grid_of_two(prefix, depth):
    x = torch.randn(4, 16 + prefix, 32)
    branch = token_branch(16 + prefix, 32, depth, 10)
    assert branch(x).shape == (4, 10)
    assert blocks(branch, PatchMerging) == 1
    assert blocks(branch, torch.nn.TransformerEncoderLayer) == max(depth, 1)


def test_merging_takes_neighbours_and_leaves_the_class_token():
    merge = PatchMerging(1, last=True)
    with torch.no_grad():
        merge.reduce[1].weight.fill_(1.0)
        merge.reduce[0] = torch.nn.Identity()
    tokens = torch.arange(17.0).view(1, 17, 1)
    # Class token 0, grid 1..16 row by row: the first block is 1, 2, 5, 6.
    assert merge(tokens).flatten().tolist() == [0, 1 + 2 + 5 + 6, 3 + 4 + 7 + 8, 9 + 10 + 13 + 14, 11 + 12 + 15 + 16]
    with pytest.raises(ValueError, match="3 x 3"):
        merge(torch.zeros(1, 9, 1))


def test_pooling_prefers_the_class_token():
    tokens = torch.arange(5.0).view(1, 5, 1)
    assert TokenPool()(tokens).item() == 0
    assert TokenPool()(tokens[:, 1:]).item() == 2.5
