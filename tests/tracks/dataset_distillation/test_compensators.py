"""Compensators: their budget, their rows, and that one batch does not depend on the next."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdbench.errors import ArtifactError, UsageError
from kdbench.tracks.dataset_distillation.blocks.compensators import base_images, rows_with
from kdbench.tracks.dataset_distillation.blocks.margin import boundary_margin
from kdbench.tracks.dataset_distillation.blocks.recover import recovery_terms
from kdbench.tracks.dataset_distillation.distilled.compensated import Compensated
from kdbench.tracks.dataset_distillation.networks.build import build


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("networks", [1, 2, 4])
@pytest.mark.parametrize("ipc", [5, 10, 50])
@pytest.mark.parametrize("shared", [True, False])
def test_the_budget_is_used_but_not_exceeded(ipc, networks, classes, shared):
    count = base_images(ipc, networks, classes, shared=shared)
    a_base = networks / classes if shared else networks  # compensators per base image, in images a class
    assert count * (1 + a_base) <= ipc + 1e-9
    assert (count + 1) * (1 + a_base) > ipc + 1e-9


def test_the_formula_of_the_paper():
    assert base_images(10, 4, 10) == 7  # floor(10 / (4 / 10 + 1))
    assert base_images(10, 4, 100) == 9
    assert base_images(50, 4, 1000) == 49
    assert base_images(10, 4, 10, shared=False) == 2


@pytest.mark.parametrize(("ipc", "shared", "least"), [(1, True, 2), (4, False, 5)])
def test_too_small_a_budget_says_what_would_do(ipc, shared, least):
    with pytest.raises(UsageError, match="too few") as error:
        base_images(ipc, 4, 10, shared=shared)
    assert f"at least {least} images" in repr(vars(error.value))
    assert base_images(least, 4, 10, shared=shared) == 1


def made(count, classes, networks, shared, value=None):
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(count * classes, 1, 4, 4, generator=generator)
    kept = networks * count * (1 if shared else classes)
    added = (
        torch.rand(kept, 1, 4, 4, generator=generator) - 0.5 if value is None else torch.full((kept, 1, 4, 4), value)
    )
    rows = rows_with(count, classes, networks, shared=shared)
    low, high = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    labels = torch.arange(classes).repeat(count)
    return Compensated(base, labels, shared=added, rows=rows, low=low, high=high)


@pytest.mark.parametrize("shared", [True, False])
def test_every_image_is_met_with_each_of_its_compensators(shared):
    count, classes, networks = 3, 4, 2
    found = made(count, classes, networks, shared)
    images = found.images().unflatten(0, (networks + 1, count, classes))
    base = found.base.unflatten(0, (count, classes))
    added = found.shared.unflatten(0, (networks, count, -1))  # one for all classes, or one for each
    assert torch.equal(images[0], base)
    for m in range(networks):
        assert torch.equal(images[m + 1], (base + added[m]).clamp(0, 1))
    assert torch.equal(found.classes(), torch.arange(classes).repeat(count * (networks + 1)))


@pytest.mark.parametrize("shared", [True, False])
def test_compensators_of_zero_give_the_base_again(shared):
    found = made(2, 3, 2, shared, value=0.0)
    assert torch.equal(found.images(), found.base.repeat(3, 1, 1, 1))


def test_images_stay_what_pictures_may_be():
    found = made(2, 3, 1, True, value=5.0).images()
    assert float(found.max()) == 1
    with pytest.raises(ArtifactError, match="low and high"):
        Compensated(torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64)).images()


def test_losses_of_batches_that_lie_together_are_those_of_each():
    torch.manual_seed(0)
    network = build("mini_vgg(2)", (1, 8, 8), 3)
    network(torch.randn(40, 1, 8, 8))  # statistics that are not those of a new layer
    network.eval().double()
    x, y = torch.randn(3, 4, 1, 8, 8, dtype=torch.float64), torch.arange(4) % 3
    network.requires_grad_(False)
    together = recovery_terms(x.flatten(0, 1), y.repeat(3), [network], [1.0], 0.5, groups=3)
    alone = [recovery_terms(batch, y, [network], [1.0], 0.5) for batch in x]
    for name in ("ce", "bn"):
        assert float(together[name]) == pytest.approx(float(sum(terms[name] for terms in alone)), rel=1e-6)
    as_one = recovery_terms(x.flatten(0, 1), y.repeat(3), [network], [1.0], 0.5)
    assert float(as_one["bn"]) < float(together["bn"]) * 0.9


def test_margins_of_a_linear_network_are_exact():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x = torch.randn(6, 1, 2, 2)
    z, weight = network(x), network[1].weight
    first, second = z.topk(2, dim=1).indices.T
    wanted = (z.gather(1, first[:, None]) - z.gather(1, second[:, None])).squeeze(1) / (
        weight[first] - weight[second]
    ).norm(dim=1)
    torch.testing.assert_close(boundary_margin(network, x), wanted.detach())
