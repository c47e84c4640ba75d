"""Modular networks and networks in pieces: routing, graphs, modules on their own, and what saving keeps."""

import math

import pytest
import torch
from torch import nn

from kdbench.errors import UsageError
from kdbench.tracks.vision.metrics import few_shot_accuracy
from kdbench.tracks.vision.models import build, rebuild
from kdbench.tracks.vision.models.hybrid import Section, StitchedPart, cut, prefix, suffix
from kdbench.tracks.vision.models.moe import Experts, ModularMoE, importance_loss, usage_entropy
from kdbench.tracks.vision.models.nac import ModularNac, sparse_graph
from kdbench.tracks.vision.models.split import pieces, still_norms

ARCHS = ["rn(4,1)", "vit(16,3,2)", "mixer(16,2)"]


def moe(**changes):
    torch.manual_seed(0)
    return ModularMoE(16, 2, [1, 2], **{"experts": 4, "k": 2, "num_classes": 5} | changes)


def nac(**changes):
    torch.manual_seed(0)
    return ModularNac(16, 2, [1, 2], **{"density": 0.2, "num_classes": 5} | changes)


def images(n=3):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


# --- experts ----------------------------------------------------------------------------------------------------------


def test_tokens_go_to_their_best_experts_alone():
    layer, x, record = Experts(8, 16, 4, 2), torch.randn(2, 5, 8), []
    out = layer(x, record)
    (probs,) = record
    for row, token in enumerate(x.flatten(0, 1)):
        weights, chosen = probs[row].topk(2)
        expected = sum(weight * layer.experts[number](token) for weight, number in zip(weights, chosen, strict=True))
        torch.testing.assert_close(out.flatten(0, 1)[row], expected)


def test_an_expert_that_nobody_chose_gets_no_gradient():
    layer = Experts(8, 16, 3, 1)
    with torch.no_grad():
        layer.gate.weight.zero_()
        layer.gate.weight[1, 0] = 9.0
    layer(torch.rand(2, 5, 8) + 0.1).sum().backward()
    assert layer.experts[1][0].weight.grad.abs().sum() > 0
    for idle in (0, 2):
        assert layer.experts[idle][0].weight.grad.abs().sum() == 0
    assert layer.gate.weight.grad.abs().sum() > 0


def test_all_experts_at_once_are_a_weighted_sum():
    layer, x = Experts(8, 16, 3, 3), torch.randn(2, 5, 8)
    probs = layer.gate(x).softmax(-1)
    expected = sum(probs[..., number, None] * expert(x) for number, expert in enumerate(layer.experts))
    torch.testing.assert_close(layer(x), expected)


def test_more_experts_per_token_than_there_are():
    with pytest.raises(ValueError, match="expected 1 to 3"):
        Experts(8, 16, 3, 4)


def test_balance_and_usage():
    even, one = torch.eye(4).repeat(3, 1), torch.eye(4)[[0] * 12]
    assert importance_loss([even]).item() == pytest.approx(0, abs=1e-6)
    assert importance_loss([one]).item() == pytest.approx(3)  # variance 3/16 over mean 1/4 squared
    assert usage_entropy([even], 1) == pytest.approx(1)
    assert usage_entropy([one], 1) == 0
    half = torch.eye(4)[[0, 1] * 6]
    assert usage_entropy([half, even], 1) == pytest.approx((math.log(2) / math.log(4) + 1) / 2)


# --- graphs -----------------------------------------------------------------------------------------------------------


def test_the_graph_is_symmetric_connected_and_as_dense_as_asked():
    graph = sparse_graph(60, 0.2, 0)
    assert torch.equal(graph, graph.T)
    assert graph.diagonal().all()
    assert torch.equal(graph, sparse_graph(60, 0.2, 0))
    assert not torch.equal(graph, sparse_graph(60, 0.2, 1))
    assert graph.double().mean().item() == pytest.approx(0.2 + 0.8 * 3 / 60, abs=0.03)
    ring = sparse_graph(10, 0.0, 0)
    assert ring.sum() == 30
    assert torch.linalg.matrix_power(ring.double(), 10).gt(0).all()
    assert sparse_graph(10, 1.0, 0).all()


def test_states_hear_their_neighbours_alone():
    network = nac(density=0.0)
    block, state = network.parts[0][0], torch.randn(1, 17, 16)
    other = state.clone()
    other[0, 8] = torch.randn(16)
    changed = (network.run_block(block, state, None) - network.run_block(block, other, None)).abs().amax(2)[0] > 1e-6
    assert changed.nonzero().flatten().tolist() == [7, 8, 9]


# --- modules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [moe, nac])
def test_a_modular_network_is_made_again_from_its_configuration(make):
    network = make(stitch=12).eval()
    again = rebuild(network.kind, network.config).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(images()), network(images()))
    assert network.head() is network.fc


@pytest.mark.parametrize("make", [moe, nac])
def test_modules_one_after_the_other_are_the_network(make):
    network = make().eval()
    state = network.embed(images())
    for number in range(2):
        state = network.run_part(number, state)
    torch.testing.assert_close(network.finish(state), network(images()))
    owned = [id(parameter) for number in range(2) for parameter in network.part_parameters(number)]
    assert sorted(owned) == sorted(id(parameter) for parameter in network.parameters())


@pytest.mark.parametrize("arch", ARCHS)
def test_pieces_are_the_network(arch):
    network = build(arch, 5).eval()
    parts = pieces(network)
    state = parts.embed(images())
    halfway = parts.run(state, 0, 1)
    torch.testing.assert_close(parts.finish(parts.run(halfway, 1, parts.depth)), network(images()))


def test_other_networks_have_no_pieces():
    with pytest.raises(UsageError, match="a ModularMoE cannot be split"):
        pieces(moe())


def test_still_norms_come_back_as_they_were():
    network = build("rn(4,1)", 5).train()
    network.stages[0].eval()
    with still_norms(*network.stages):
        assert not any(m.training for m in network.stages.modules() if isinstance(m, nn.BatchNorm2d))
    assert not network.stages[0][0].bn1.training
    assert network.stages[1][0].bn1.training


def test_cuts_are_contiguous_and_even():
    assert cut(4, 2) == [(0, 2), (2, 4)]
    assert cut(24, 4) == [(0, 6), (6, 12), (12, 18), (18, 24)]
    assert cut(5, 2) == [(0, 2), (2, 5)]
    with pytest.raises(UsageError, match="modules is 3; expected at most 2"):
        cut(2, 3)


def test_the_meta_models_own_blocks_make_its_own_logits():
    meta = build("vit(16,3,2)", 5).eval()
    parts = pieces(meta)
    for number in range(3):
        section = Section(meta, number, number + 1)
        logits = suffix(parts, number, section(prefix(parts, number, images())))
        torch.testing.assert_close(logits, meta(images()))


@pytest.mark.parametrize("make", [moe, nac])
@pytest.mark.parametrize("number", [0, 1])
def test_gradients_pass_the_frozen_suffix_to_one_module(make, number):
    meta, student = build("vit(24,2,2)", 5).requires_grad_(False), make()
    parts, part = pieces(meta), StitchedPart(student, number, 24)
    suffix(parts, number, part(prefix(parts, number, images()))).square().sum().backward()
    used = {id(parameter) for parameter in student.part_parameters(number)}
    for name, parameter in student.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in used), name
    assert all(
        parameter.grad is not None for stitch in (part.enter, part.leave) if stitch for parameter in stitch.parameters()
    )
    assert all(parameter.grad is None for parameter in meta.parameters())


def test_prototypes_tell_new_classes_apart():
    g = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    apart = torch.eye(3)[y] + 0.01 * torch.randn(90, 3, generator=g)
    assert few_shot_accuracy(apart, y, (0, 2), 5, g) == 1.0
    blind = few_shot_accuracy(torch.randn(90, 3, generator=g), y, (0, 1, 2), 5, g)
    assert blind == pytest.approx(1 / 3, abs=0.15)
