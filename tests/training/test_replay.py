"""The replay buffer and DistiLLM's adaptive scheduler."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from kdbench.losses.tokens import IGNORE
from kdbench.training.replay import AdaptiveReplay, ReplayBuffer, batch_of, rows_of


@dataclass
class Batch:
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    index: Tensor
    split: str = "train"

    def __len__(self) -> int:
        return len(self.input_ids)


def batch(*rows: list[int], first: int = 0) -> Batch:
    """Rows padded on the right, whose last token is scored; the padding is the token 0."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    labels = torch.full_like(ids, IGNORE)
    for i, row in enumerate(rows):
        labels[i, len(row) - 1] = row[-1]
    return Batch(ids, mask, labels, torch.arange(first, first + len(rows)))


def values(rows) -> list[list[int]]:
    return [row.input_ids.tolist() for row in rows]


def test_rows_lose_their_padding_and_batches_get_it_back():
    original = batch([5, 6, 7], [8, 9])
    rows = rows_of(original)
    assert values(rows) == [[5, 6, 7], [8, 9]]
    again = batch_of(rows, original)
    for name in ("input_ids", "attention_mask", "labels", "index"):
        assert torch.equal(getattr(again, name), getattr(original, name))
    assert again.split == "train"


def test_padding_never_scores():
    joined = batch_of(rows_of(batch([1, 2, 3])) + rows_of(batch([4])), batch([1]))
    assert joined.labels.tolist() == [[IGNORE, IGNORE, 3], [4, IGNORE, IGNORE]]
    assert joined.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_left_padded_batch_comes_back_right_padded():
    left = Batch(
        torch.tensor([[0, 5, 6]]), torch.tensor([[0, 1, 1]]), torch.tensor([[IGNORE, IGNORE, 6]]), torch.tensor([-1])
    )
    joined = batch_of(rows_of(left) + rows_of(batch([1, 2, 3])), left)
    assert joined.input_ids.tolist() == [[5, 6, 0], [1, 2, 3]]


def test_the_buffer_forgets_the_oldest():
    buffer = ReplayBuffer(3)
    assert not buffer.full
    buffer.push(batch([1], [2]))
    buffer.push(batch([3], [4]))
    assert buffer.full
    assert len(buffer) == 3
    assert sorted(values(buffer.sample(3, np.random.default_rng(0)))) == [[2], [3], [4]]


def test_samples_do_not_repeat_and_are_reproducible():
    buffer = ReplayBuffer(100)
    buffer.push(batch(*[[i] for i in range(50)]))
    first = values(buffer.sample(20, np.random.default_rng(3)))
    assert len({tuple(row) for row in first}) == 20
    assert values(buffer.sample(20, np.random.default_rng(3))) == first
    assert len(buffer.sample(80, np.random.default_rng(0))) == 50


def test_nothing_can_be_replayed_from_an_empty_buffer():
    with pytest.raises(ValueError, match="empty"):
        ReplayBuffer(3).sample(1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="at least one"):
        ReplayBuffer(0)


# --- the scheduler ----------------------------------------------------------------------------------------------------


def scheduler(steps: int = 100, epochs: int = 1, **options) -> AdaptiveReplay:
    counter = iter(range(1000, 10**6))
    return AdaptiveReplay(
        [batch([1, 2], [3, 4])] * (steps // epochs),
        lambda n: batch(*[[next(counter)] for _ in range(n)]),
        steps=steps,
        rng=np.random.default_rng(0),
        **options,
    )


def test_phi_rises_by_a_tenth_only_where_the_loss_exceeds_that_of_the_last_rise():
    s = scheduler()
    phis = []
    for loss in [2.0, 1.5, 2.05, 2.1, 2.15, 2.2, 2.19, 2.31]:
        s.observe(loss)
        phis.append(round(s.phi, 3))
    # the reference is 2.0 until 2.1 reaches 2.0 + 0.1, then 2.1 until 2.2 does, then 2.2 until 2.31 does
    assert phis == [0, 0, 0, 0.1, 0.1, 0.2, 0.2, 0.3]


def test_phi_is_at_most_one():
    s = scheduler()
    for i in range(30):
        s.observe(float(i))
    assert s.phi == 1.0


def test_without_mismatch_only_the_data_is_used():
    s = scheduler()
    assert all(b.input_ids.max() <= 4 for b in s)
    assert s.counts == {"fresh": 0, "replay": 0, "data": 100}


@pytest.mark.parametrize(
    ("draw", "step", "full", "kind"),
    [
        (0.3, 0, True, "fresh"),  # below phi (1 - s/S) = 0.5
        (0.3, 50, True, "replay"),  # above 0.25, below 0.5
        (0.3, 50, False, "fresh"),  # below phi while the buffer is not full
        (0.49, 99, True, "replay"),
        (0.5, 0, False, "data"),  # phi is not reached
        (0.9, 99, True, "data"),
    ],
)
def test_what_a_step_trains_on(draw, step, full, kind):
    s = scheduler(threshold=0.5, capacity=2)
    if full:
        s.buffer.push(batch([1], [2]))
    assert s.choose(draw, step) == kind


def test_replay_takes_over_from_fresh_samples_as_training_goes_on():
    s = scheduler(steps=400, threshold=0.8, capacity=20)
    kinds = []
    for _ in s:
        kinds.append(max(s.counts, key=lambda k: s.counts[k] - sum(seen == k for seen in kinds)))
    early, late = kinds[:100], kinds[-100:]
    assert early.count("fresh") > late.count("fresh")
    assert early.count("replay") < late.count("replay")
    assert kinds.count("data") == pytest.approx(80, abs=25)


def test_steps_are_counted_across_epochs():
    s = scheduler(steps=40, epochs=4, threshold=1.0, capacity=4)
    for _ in range(4):
        list(s)
    assert sum(s.counts.values()) == 40
    assert s.counts["data"] == 0
