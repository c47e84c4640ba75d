"""Cells: derivation keeps the strongest, the supernet with 0 and 1 is the derived network, networks are made again."""

from __future__ import annotations

import pytest
import torch

from kdbench.tracks.vision.models import cells, rebuild

GENOTYPE = {
    "normal": [("conv3x3", 0), ("skip", 1), ("avgpool3", 1), ("conv1x1", 2)],
    "reduce": [("skip", 0), ("avgpool3", 1), ("skip", 2), ("conv3x3", 0)],
}


def test_derivation_keeps_the_strongest_two_edges_and_never_none() -> None:
    weights = torch.full((5, 5), 0.1)
    weights[:, 0] = 0.9
    weights[0, 2], weights[1, 1] = 0.2, 0.3  # node 0 has the edges from both inputs
    weights[2, 3], weights[3, 4], weights[4, 2] = 0.3, 0.2, 0.4
    assert cells.derive(weights, 2) == [("conv1x1", 0), ("skip", 1), ("conv3x3", 0), ("conv1x1", 2)]


def test_one_hot_weights_are_derived_back() -> None:
    for genes in GENOTYPE.values():
        weights = cells.one_hot(genes, 2)
        assert weights.sum() == 4
        assert sorted(cells.derive(weights, 2)) == sorted(genes)


@pytest.mark.parametrize("layers", [2, 3])
def test_a_supernet_with_one_operation_per_edge_is_the_derived_network(layers: int) -> None:
    """With the same weights, and normalisation without scale (as a new network has it)."""
    net = cells.Supernet(4, layers, 2, num_classes=7)
    derived = cells.CellNet(4, layers, GENOTYPE, num_classes=7)
    weights = tuple(cells.one_hot(GENOTYPE[kind], 2) for kind in cells.KINDS_OF_CELLS)
    edges = cells.all_edges(2)
    for part in ("stem", "fc"):
        getattr(derived, part).load_state_dict(getattr(net, part).state_dict())
    for theirs, mine, reduce in zip(net.cells, derived.cells, net.reduce, strict=True):
        mine.inputs.load_state_dict(theirs.inputs.state_dict(), strict=False)
        for i, (op, source) in enumerate(GENOTYPE[cells.KINDS_OF_CELLS[reduce]]):
            same = theirs.ops[edges.index((i // 2, source))][cells.OPS.index(op) - 1]
            mine.ops[i][0].load_state_dict(same.state_dict(), strict=False)
    x = torch.randn(3, 3, 16, 16)
    assert torch.allclose(net.eval().mix(x, weights), derived.eval()(x), atol=1e-5)


def test_shapes_and_taps() -> None:
    model = cells.CellNet(4, 2, GENOTYPE, num_classes=7)
    taps = model.taps(torch.randn(2, 3, 16, 16))
    assert [tuple(stage.shape) for stage in taps.stages] == [(2, 8, 8, 8), (2, 16, 4, 4)]
    assert torch.equal(taps.logits, model.head()(taps.penult))
    assert cells.Supernet(4, 2, 2, num_classes=7).taps(torch.randn(2, 3, 16, 16)).logits.shape == (2, 7)


def test_a_network_is_made_again_from_its_configuration() -> None:
    model = cells.CellNet(4, 2, GENOTYPE, num_classes=7)
    again = rebuild(model.kind, model.config)
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(again.eval()(x), model.eval()(x))


def test_reduction_cells() -> None:
    assert [cells.reductions(layers) for layers in (1, 2, 3, 8)] == [{0}, {1}, {1, 2}, {2, 5}]
    with pytest.raises(ValueError, match="cannot be halved"):
        cells.CellNet(4, 3, GENOTYPE, num_classes=7, size=12)


def test_unknown_operations_are_named() -> None:
    with pytest.raises(ValueError, match="'conv5x5' is no operation"):
        cells.make_op("conv5x5", 4, 1, True)
