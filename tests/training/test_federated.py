"""Rounds of federated training: who speaks about what, what comes back, and the bytes of it."""

import pytest
import torch
from torch import nn

from kdbench.errors import UsageError
from kdbench.training import federated as F


def exchange(keeps, sample=6, classes=3, **settings):
    torch.manual_seed(0)
    clients = nn.ModuleList(nn.Linear(4, classes) for _ in range(len(keeps)))
    settings = {"share": "logits", "temperature": 2.0, "generator": torch.Generator().manual_seed(1), **settings}
    return F.Exchange(clients, torch.randn(keeps.shape[1], 4), keeps, sample=sample, **settings)


def test_the_mean_is_over_those_that_sent():
    outputs = torch.randn(3, 5, 2)
    kept = torch.tensor([[1, 0, 1, 0, 1], [1, 0, 0, 1, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
    mean, received = F.consensus(outputs, kept)
    assert received.tolist() == [True, False, True, True, True]
    assert torch.allclose(mean[0], outputs[:, 0].mean(0))
    assert torch.allclose(mean[2], outputs[0, 2])
    assert torch.allclose(mean[4], outputs[:2, 4].mean(0))


def test_with_all_masks_set_the_mean_is_that_of_all_clients():
    outputs = torch.randn(4, 7, 3)
    mean, received = F.consensus(outputs, torch.ones(4, 7, dtype=torch.bool))
    assert received.all()
    assert torch.allclose(mean, outputs.mean(0), atol=1e-6)


def test_images_that_nobody_sends_are_dropped_and_bytes_are_counted():
    keeps = torch.zeros(2, 10, dtype=torch.bool)
    keeps[0, :4], keeps[1, 2:5] = True, True
    made = exchange(keeps, sample=10)
    made.run()
    assert sorted(made.rows.tolist()) == [0, 1, 2, 3, 4]
    assert made.unsent == [5]
    bits = 2
    assert made.uploaded == [7 * 3 * 4 + 2 * bits]
    assert made.downloaded == [2 * (10 * 4 + 5 * 3 * 4 + bits)]
    with torch.no_grad():
        alone = made.clients[1](made.proxy[4])
    assert torch.allclose(made.targets[made.rows.tolist().index(4)], alone, atol=1e-6)


def test_fewer_kept_images_are_fewer_bytes():
    everything, few = torch.ones(2, 10, dtype=torch.bool), torch.rand(2, 10) < 0.3
    one, other = exchange(everything), exchange(few)
    one.run(), other.run()
    assert other.uploaded[0] < one.uploaded[0]


def test_shared_probabilities_come_back_as_logits_of_their_mean():
    made = exchange(torch.ones(2, 6, dtype=torch.bool), share="probabilities")
    made.run()
    with torch.no_grad():
        probs = torch.stack([(client(made.proxy[made.rows]) / 2).softmax(-1) for client in made.clients]).mean(0)
    assert torch.allclose((made.targets / 2).softmax(-1), probs, atol=1e-5)


def test_masks_have_to_fit():
    with pytest.raises(UsageError, match="one row for each of 2 clients"):
        F.Exchange(
            nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)]),
            torch.randn(5, 4),
            torch.ones(3, 5, dtype=torch.bool),
            sample=5,
            share="logits",
            temperature=1.0,
            generator=torch.Generator(),
        )


@pytest.mark.parametrize(("steps", "rounds"), [(200, 10), (6, 10), (7, 3), (60, 7), (2, 1), (1, 10)])
@pytest.mark.parametrize("local", [0.01, 0.5, 0.99])
def test_every_round_trains_locally_exchanges_and_learns(steps, rounds, local):
    table = F.Timetable(steps, rounds, local)
    assert max(table.ends) == steps
    assert len(table.ends) == table.rounds <= rounds
    if steps == 1:
        return  # no room for an exchange
    assert len(table.exchanges) == table.rounds
    previous = 0
    for exchange_step, end in zip(sorted(table.exchanges), sorted(table.ends), strict=True):
        assert previous < exchange_step < end
        previous = end


def test_averaged_weights_are_weighted_means_and_equal():
    clients = [nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)) for _ in range(2)]
    a, b = (client[0].weight.detach().clone() for client in clients)
    sent = F.average_weights(clients, [100, 300])
    for client in clients:
        assert torch.allclose(client[0].weight, 0.25 * a + 0.75 * b)
    assert sent == (6 + 3 + 4 * 3) * 4 + 8  # weights, biases, normalisation, its count of batches


def test_weights_of_different_architectures_cannot_be_averaged():
    with pytest.raises(UsageError, match="one architecture"):
        F.average_weights([nn.Linear(2, 3), nn.Linear(2, 4)], [1, 1])
