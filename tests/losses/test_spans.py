"""The correlation of neighbours within spans."""

from __future__ import annotations

import pytest
import torch

from kdbench.losses.spans import span_distance
from kdbench.tracks.llm.outputs import bucketed, top_events


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STUDENT, TEACHER = logits(6, 5), logits(6, 5, seed=1)
PAIRS = torch.tensor([0, 1, 4])


def test_by_hand():
    q, p = STUDENT.softmax(-1), TEACHER.softmax(-1)
    each = [((p[t] * p[t + 1] - q[t] * q[t + 1]) ** 2).sum() for t in PAIRS.tolist()]
    assert span_distance(STUDENT, TEACHER, PAIRS).item() == pytest.approx(sum(each).item() / 3)


def test_positions_outside_the_pairs_do_not_count():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    span_distance(student, teacher, PAIRS).backward()
    assert teacher.grad is None
    assert (student.grad.abs().sum(-1) > 0).tolist() == [True, True, True, False, True, True]
    assert span_distance(STUDENT, STUDENT, PAIRS).item() == 0


def test_without_pairs_it_is_nothing():
    student = STUDENT.clone().requires_grad_()
    value = span_distance(student, TEACHER, PAIRS[:0])
    value.backward()
    assert value.item() == 0
    assert student.grad.abs().sum() == 0


def test_of_top_events_the_tokens_known_at_both_positions_count():
    values, ids = top_events(TEACHER, 4)
    mine, _ = bucketed(STUDENT.float(), ids, torch.zeros(6, dtype=torch.long))
    value = span_distance(mine, values, PAIRS, ids)
    q, p, total = STUDENT.softmax(-1), TEACHER.softmax(-1), 0.0
    for t in PAIRS.tolist():
        for token in set(ids[t].tolist()) & set(ids[t + 1].tolist()):
            total += (p[t, token] * p[t + 1, token] - q[t, token] * q[t + 1, token]) ** 2
    assert value.item() == pytest.approx(float(total) / 3, rel=1e-4)
