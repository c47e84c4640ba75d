"""The active loop: what a strategy sees, what is bought, and that every round starts anew."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdbench.budget import Budget
from kdbench.training.active import (
    TransferBatch,
    TransferSet,
    active_distillation,
    area,
    outputs,
    transfer_loss,
)

POOL, LABELLED, CLASSES = 20, 6, 3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.norm, self.head = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES)

    def taps(self, x):
        penult = torch.relu(self.norm(self.hidden(x)))
        return SimpleNamespace(penult=penult, logits=self.head(penult))

    def forward(self, x):
        return self.taps(x).logits


class Task:
    """As much of a task as the loop uses; records what it fits."""

    def __init__(self, steps=3):
        self.budget, self.device = Budget({"steps": steps}), torch.device("cpu")
        self.spec = SimpleNamespace(recipe=SimpleNamespace(batch_size=8))
        self.fits, self.seen = [], []

    def generator(self, purpose):
        return torch.Generator().manual_seed(sum(map(ord, purpose)))

    def student(self):
        torch.manual_seed(0)
        return Net()

    def fit(self, model, loss, *, loader, steps, spend, tag):
        start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        batches = [batch for batch, _ in zip(loader, range(8), strict=False)]
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for batch in batches[:steps]:
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
        self.budget.spend(spend, steps)
        self.fits.append(SimpleNamespace(start=start, batches=batches, spend=spend, tag=tag))

    def validate(self, model):
        return {"top1": 0.5}


def images(count, seed):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def loop(strategy, *, rounds=2, batch=4, **options):
    task, asked = Task(), []
    teacher = 2 * images(POOL, 5)[:, :CLASSES]

    def ask(positions):
        asked.append(positions.tolist())
        return teacher[positions]

    def watched(view, count):
        task.seen.append((view, count))
        return strategy(view, count)

    labels = torch.arange(LABELLED) % CLASSES
    result = active_distillation(
        task, (images(LABELLED, 1), labels), images(POOL, 2), ask, watched, rounds=rounds, batch=batch,
        teacher_accuracy=0.8, classes=CLASSES, **options,
    )  # fmt: skip
    return task, result, asked, teacher


def first(view, count):
    return torch.arange(count)


def test_every_round_starts_from_the_same_student_and_the_last_alone_spends_steps():
    task, result, _, _ = loop(first)
    assert [each.spend for each in task.fits] == ["aux_steps", "aux_steps", "steps"]
    assert [each.tag for each in task.fits] == ["round0", "round1", ""]
    for each in task.fits[1:]:
        assert all(torch.equal(each.start[name], tensor) for name, tensor in task.fits[0].start.items())
    assert task.budget.spent["aux_steps"] == 6
    assert not torch.equal(result.student.head.weight, task.fits[0].start["head.weight"])


def test_positions_are_those_of_the_pool_and_never_bought_twice():
    task, result, asked, _ = loop(first)
    assert [each.positions for each in result.rounds] == [[], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert [each.queries for each in result.rounds] == [0, 4, 8]
    assert asked[-1] == list(range(8))
    (one, _), (other, _) = task.seen
    assert one.positions.tolist() == list(range(POOL))
    assert other.positions.tolist() == list(range(4, POOL))  # what was bought has left the pool


def test_a_strategy_sees_the_current_student_on_what_is_left():
    task, _, _, _ = loop(first)
    for number, (view, count) in enumerate(task.seen):
        left = POOL - 4 * number
        assert count == 4
        assert view.probs.shape == (left, CLASSES)
        assert torch.allclose(view.probs.sum(1), torch.ones(left), atol=1e-6)
        assert view.features.shape == (left, 5)
        assert view.taken.shape == (LABELLED + 4 * number, 5)
        assert view.teacher_accuracy == 0.8
    assert not torch.allclose(task.seen[0][0].probs[4:], task.seen[1][0].probs)


def test_a_pool_that_runs_out_is_bought_whole():
    _, result, _, _ = loop(first, rounds=3, batch=8)
    assert [each.queries for each in result.rounds] == [0, 8, 16, 20]


def test_labels_and_bought_soft_labels_reach_the_batches_of_their_images():
    task, _, _, teacher = loop(first)
    pool, labelled = images(POOL, 2), images(LABELLED, 1)
    for batch in task.fits[-1].batches:
        for x, y, soft in zip(batch.x, batch.y, batch.soft, strict=True):
            if y >= 0:
                assert (labelled == x).all(1).nonzero().item() % CLASSES == y
            else:
                assert torch.equal(soft, teacher[(pool == x).all(1).nonzero().item()])
    assert all((batch.y >= 0).all() for batch in task.fits[0].batches)  # nothing is bought before the first round


def test_no_round_is_training_on_the_labels():
    task, result, asked, _ = loop(first, rounds=0)
    assert asked == []
    assert [each.spend for each in task.fits] == ["steps"]
    assert result.rounds[0].queries == 0


def test_rounds_are_reported_with_their_student():
    reported = []
    _, result, _, _ = loop(first, on_round=lambda number, student: reported.append((number, student)))
    assert [number for number, _ in reported] == [0, 1, 2]
    assert reported[-1][1] is result.student
    assert len({id(student) for _, student in reported}) == 3


def test_an_epoch_holds_every_sample_once_in_a_new_order():
    y = torch.arange(10)
    transfer = TransferSet(y.float().unsqueeze(1), y, torch.zeros(10, 2))
    batches = transfer.epochs(4, torch.Generator().manual_seed(0), torch.device("cpu"), lambda x: x + 100)
    epochs = [torch.cat([next(batches).x.flatten() for _ in range(3)]) for _ in range(2)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == [100.0 + i for i in range(10)]
    assert not torch.equal(*epochs)


def test_the_transfer_loss_is_a_mean_over_samples_of_either_kind():
    g = torch.Generator().manual_seed(0)
    logits, soft = torch.randn(2, 6, 4, generator=g)
    y = torch.tensor([0, 1, -1, -1, -1, 2])
    t = 3.0
    hard = F.cross_entropy(logits[y >= 0], y[y >= 0], reduction="sum")
    kl = F.kl_div(F.log_softmax(logits / t, -1), F.softmax(soft / t, -1), reduction="none").sum(-1)[y < 0].sum()
    batch = TransferBatch(torch.zeros(6, 1), y, soft)
    assert transfer_loss(logits, batch, t).item() == pytest.approx(((hard + t**2 * kl) / 6).item(), rel=1e-5)


def test_outputs_are_those_of_evaluation_mode_in_any_batching():
    net, x = Net().train(), images(30, 3)
    probs, features = outputs(net, x, torch.device("cpu"), batch_size=7)
    taps = net.eval().taps(x)
    assert torch.allclose(probs, F.softmax(taps.logits, -1), atol=1e-6)
    assert torch.allclose(features, taps.penult, atol=1e-6)
    assert not probs.requires_grad
    assert torch.equal(net.norm.running_mean, torch.zeros(5))


@pytest.mark.parametrize(
    ("queries", "values", "expected"),
    [([0, 10, 30], [0.0, 1.0, 1.0], 25 / 30), ([0], [0.4], 0.4), ([0, 5], [0.2, 0.4], 0.3)],
)
def test_area_is_the_mean_height(queries, values, expected):
    assert area(queries, values) == pytest.approx(expected)
