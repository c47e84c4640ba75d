"""Stored pairs of noise and teacher samples."""

from __future__ import annotations

import pytest
import torch

from kdbench.tracks.diffusion.blocks.endpoints import endpoints
from kdbench.tracks.diffusion.blocks.stored import StoredRows, write_rows
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.processes import Edm
from tests.helpers.exact_task import CLASSES, exact_task


@pytest.fixture
def task(tmp_path):
    return exact_task(tmp_path, Edm(sigma_min=0.02, sigma_max=20.0))


def test_pairs_are_ends_of_the_teacher_s_flow(task):
    found = endpoints(task, 40, steps=24, seed=3)[torch.arange(40)]
    again = task.official_teacher(24, 1.0).sample(found.noise, found.cond, torch.Generator())
    torch.testing.assert_close(found.x, again.x)
    assert len(found) == 40
    for token in (1, 2):  # and so are samples of the class that was asked for
        rows = found.cond.tokens[:, 0] == token
        probability = CLASSES.class_log_probabilities(found.x[rows], 1.0, 1e-3)[:, token - 1].exp()
        assert probability.mean() > 0.95


def test_they_are_made_once_and_every_job_pays_for_them(task, tmp_path):
    first = endpoints(task, 30, steps=6)
    asked = task.teacher().rows
    assert asked == 30 * 11  # Heun: two evaluations a step but for the last
    second = endpoints(task, 30, steps=6)
    assert task.teacher().rows == asked
    rows = torch.tensor([4, 0, 29])
    assert torch.equal(first[rows].x, second[rows].x)
    assert task.budget.spent["teacher_queries"] == 2 * 30 * 11
    other = endpoints(task, 30, steps=6, seed=1)
    assert not torch.equal(first[rows].noise, other[rows].noise)
    guided = endpoints(task, 30, steps=6, guidance=2.0)
    assert torch.equal(first[rows].noise, guided[rows].noise)
    assert not torch.equal(first[rows].x, guided[rows].x)
    late = exact_task(tmp_path, task.process, phase="evaluate")
    endpoints(late, 30, steps=6)
    assert late.budget.spent["teacher_queries"] == 0


def test_batches_go_over_all_pairs_and_on_from_where_they_were(task):
    pairs = endpoints(task, 10, steps=2)
    loader = pairs.loader(4, torch.Generator().manual_seed(0))
    epoch = [batch.noise for batch in loader]
    assert [len(part) for part in epoch] == [4, 4, 2]
    assert sorted(torch.cat(epoch)[:, 0].tolist()) == sorted(pairs[torch.arange(10)].noise[:, 0].tolist())
    running = iter(loader)
    next(running)
    state = loader.state_dict()
    rest = [batch.noise for batch in running]
    fresh = pairs.loader(4, torch.Generator())
    fresh.load_state_dict(state)
    assert all(torch.equal(a, b.noise) for a, b in zip(rest, fresh, strict=True))


def test_rows_keep_every_part_of_a_condition(tmp_path):
    cond = Condition(
        3,
        tokens=torch.tensor([[1], [2], [3]]),
        image=torch.randn(3, 1, 2, 2),
        embedding=torch.randn(3, 4, 5),
        empty=torch.randn(1, 4, 5),
        pooled=torch.randn(3, 6),
        empty_pooled=torch.randn(1, 6),
    )
    write_rows(tmp_path, {"x": torch.arange(12.0).view(3, 2, 2)}, cond, nfe=2.0)
    stored, rows = StoredRows(tmp_path), torch.tensor([2, 0])
    found, wanted = stored.condition(rows), cond[rows]
    assert len(stored) == 3
    assert found.size == 2
    assert stored.facts == {"nfe": 2.0}
    for name in ("tokens", "image", "embedding", "empty", "pooled", "empty_pooled"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert stored.take("x", rows, torch.tensor([1, 0])).tolist() == [[10.0, 11.0], [0.0, 1.0]]
    taken = stored.take("x", rows)
    taken.zero_()  # a copy: the file stays as it is
    assert stored.take("x", rows)[0].tolist() == [[8.0, 9.0], [10.0, 11.0]]
