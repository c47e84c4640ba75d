"""Sums over the tokens of each row, by one loop for models and teacher."""

from __future__ import annotations

import numpy as np
import pytest

from kdbench.tracks.llm.blocks.domains import forward_flops, model_nll, row_nll
from kdbench.tracks.llm.evaluate import forced
from kdbench.tracks.llm.scoring import scored_tokens


@pytest.mark.parametrize("name", ["text", "instruct"])
def test_rows_have_the_sum_of_their_tokens_whatever_the_batches_are(make_task, name):
    task = make_task(name)
    sequences, student = task.split("val").sequences, task.student()
    sums = model_nll(task, student, sequences)
    result = forced(student, sequences.batches(3, "val"), task.device)
    expected = np.bincount(result.row, weights=result.nll)
    assert np.allclose(sums, expected, rtol=1e-5)
    assert np.allclose(sums / scored_tokens(sequences), result.per_row(), rtol=1e-5)
    assert task.budget.spent["flops"] == forward_flops(student, sequences)
    teacher = row_nll(task, task.scored_teacher, sequences, 5)
    assert np.allclose(teacher, model_nll(task, task.teacher(), sequences), rtol=1e-5)
    assert task.budget.spent["teacher_queries"] == len(sequences)
