"""Adaptive computation modules: prefixes, masked execution and its real cost, and networks made of them."""

import pytest
import torch
from torch import nn

from kdbench.tracks.vision.flops import multiply_adds
from kdbench.tracks.vision.models import ViT, rebuild
from kdbench.tracks.vision.models.acm import ACM, AcmViT, Gate


def tokens(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def module(learners=4, least=0):
    torch.manual_seed(0)
    return ACM(8, 6, 16, learners, least=least).eval()


def vit(**more):
    torch.manual_seed(0)
    return AcmViT(16, 2, 2, num_classes=5, learners=4, **more).eval()


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
def test_execution_with_k_learners_is_the_prefix_sum(k):
    acm, x = module(), tokens(3, 7, 8)
    made = acm.masked(x, torch.full((3, 7), k))
    torch.testing.assert_close(made, acm.prefixes(x)[..., k, :], rtol=0, atol=1e-5)
    by_hand = sum((acm.learner(i, x.view(-1, 8)) for i in range(k)), torch.zeros(21, 6))
    torch.testing.assert_close(made.view(-1, 6), by_hand, rtol=0, atol=1e-5)


def test_every_token_has_its_own_k_and_the_last_learner_runs():
    acm, x = module(), tokens(5, 8)
    k = torch.tensor([0, 4, 2, 4, 1])
    expected = acm.prefixes(x)[torch.arange(5), k]
    torch.testing.assert_close(acm.masked(x, k), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(acm.prefixes(x)[..., 4, :], acm.prefixes(x)[..., 3, :])


def test_gated_execution_is_the_prefix_of_the_gates_choice():
    acm, x = module(), tokens(2, 9, 8)
    choice = acm.gate(x).argmax(-1)
    expected = torch.gather(acm.prefixes(x), -2, choice[..., None, None].expand(2, 9, 1, 6)).squeeze(-2)
    torch.testing.assert_close(acm(x), expected, rtol=0, atol=1e-5)


def test_multiply_adds_are_those_of_the_rows_that_ran():
    acm, x = module(), tokens(10, 8)

    class Masked(nn.Module):
        def __init__(self, k):
            super().__init__()
            self.acm, self.k = acm, k

        def forward(self, x):
            return self.acm.masked(x, self.k)

    k = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 2, 4])
    assert multiply_adds(Masked(k), x).total * 10 == acm.cost() * int(k.sum())
    assert multiply_adds(Masked(torch.zeros_like(k)), x).total == 0


def test_all_learners_cost_what_the_replaced_module_does():
    acm = ACM(8, 8, 16, 4)
    mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    assert acm.cost() * 4 == multiply_adds(mlp, tokens(1, 8)).total


def test_detached_prefixes_have_the_value_but_fit_the_residual():
    acm, x = module(), tokens(6, 8)
    torch.testing.assert_close(acm.prefixes(x, detach=True), acm.prefixes(x))
    acm.prefixes(x, detach=True)[:, 3].sum().backward()  # A_3 may change learner 3 alone
    assert [bool(gradient.abs().sum() > 0) for gradient in acm.w2.grad] == [False, False, True, False]
    acm.zero_grad()
    acm.prefixes(x)[:, 3].sum().backward()
    assert [bool(gradient.abs().sum() > 0) for gradient in acm.w2.grad] == [True, True, True, False]


def test_gates_choose_one_number_of_learners_and_never_fewer_than_the_least():
    torch.manual_seed(0)
    gate, x = Gate(8, 4, least=1), tokens(50, 8)
    for training in (True, False):
        choice = gate.train(training)(x)
        assert choice.shape == (50, 5)
        torch.testing.assert_close(choice.sum(-1), torch.ones(50))
        assert choice[:, 0].abs().max() == 0
    gate.tilt = 100.0
    assert (gate(x).argmax(-1) == 4).all()
    gate.tilt = -100.0
    assert (gate(x).argmax(-1) == 1).all()


def test_the_gradient_reaches_the_gates_in_training():
    acm, x = module().train(), tokens(20, 8)
    acm(x).square().sum().backward()
    assert acm.gate.net[0].weight.grad.abs().sum() > 0
    assert any(isinstance(layer, nn.GELU) for layer in acm.gate.net)


@pytest.mark.parametrize("parts", [["ffn"], ["ffn", "q", "k", "v", "o"], ["k"]])
def test_a_network_takes_over_what_is_not_replaced_and_can_be_made_again(parts):
    teacher = ViT(16, 2, 2, num_classes=5)
    model = vit(parts=parts)
    model.adopt(teacher)
    assert torch.equal(model.network.patch.weight, teacher.patch.weight)
    assert torch.equal(model.network.fc.bias, teacher.fc.bias)
    assert len(model.acms()) == 2 * len(parts)
    images = tokens(3, 3, 16, 16)
    again = rebuild(model.kind, model.config)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(images), model(images))


def test_attention_that_is_kept_gives_the_teachers_output():
    teacher, images = ViT(16, 2, 2, num_classes=5).eval(), tokens(3, 3, 16, 16)
    model = vit(parts=["k"])
    model.adopt(teacher)
    x = tokens(3, 17, 16)
    mine, theirs = model.network.blocks[0].attn.qkv(x), teacher.blocks[0].attn.qkv(x)
    torch.testing.assert_close(mine[..., :16], theirs[..., :16])
    torch.testing.assert_close(mine[..., 32:], theirs[..., 32:])
    assert model(images).shape == (3, 5)


def test_watched_gives_the_teachers_own_inputs_and_outputs_in_the_order_of_the_modules():
    teacher, images = ViT(16, 2, 2, num_classes=5).eval(), tokens(3, 3, 16, 16)
    model = vit(parts=["q", "v", "o", "ffn"])
    logits, seen = model.watched(teacher, images)
    torch.testing.assert_close(logits, teacher(images))
    assert len(seen) == len(model.acms()) == 8
    for (name, _), (x, out) in zip(model.acms().items(), seen, strict=True):
        place = name.removeprefix("network.")
        if ".qkv." in place:
            part = "qkv".index(place[-1])
            whole = teacher.get_submodule(place[: place.index(".qkv") + 4])(x)
            torch.testing.assert_close(out, whole.chunk(3, -1)[part])
        else:
            torch.testing.assert_close(out, teacher.get_submodule(place)(x))
    assert not any(m._forward_hooks for m in teacher.modules())


def test_routed_gives_the_choices_of_all_gates():
    model, images = vit(), tokens(3, 3, 16, 16)
    logits, choices = model.routed(images)
    assert choices.shape == (3, 17, 2, 5)
    torch.testing.assert_close(logits, model(images))
    assert not any(m._forward_hooks for m in model.modules())
    model.set_fixed(0)
    nothing = model(images)
    model.set_fixed(4)
    assert not torch.allclose(model(images), nothing)
    assert model.config["fixed"] == 4


def test_unknown_parts_and_too_many_learners_are_refused():
    with pytest.raises(ValueError, match="parts is a choice of"):
        vit(parts=["mlp"])
    with pytest.raises(ValueError, match="cannot share"):
        ACM(4, 4, 2, 3)
