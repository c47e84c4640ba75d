"""Progressive distillation: rounds, budget, and that one step learns what two do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.batches import Batch
from kdbench.tracks.diffusion.blocks.consistency import implied_x0, two_steps
from kdbench.tracks.diffusion.processes import Edm
from kdbench_methods.diffusion.progressive_distill import progressive_loss, rounds_of
from tests.helpers.exact_task import CLASSES, exact_task


def test_rounds_halve_the_steps():
    assert rounds_of(8, 1) == [8, 4, 2, 1]
    assert rounds_of(12, 3) == [12, 6, 3]
    assert rounds_of(4, 4) == [4]
    for first, last in ((6, 1), (8, 3), (2, 4)):
        with pytest.raises(UsageError, match="power of 2"):
            rounds_of(first, last)


def test_a_student_that_makes_both_steps_at_once_has_no_loss(tmp_path):
    process = Edm(sigma_min=0.05, sigma_max=5.0)
    task = exact_task(tmp_path, process)
    times = process.grid(4).double()
    x0, _ = CLASSES.sample(32, torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = Batch(x0, SimpleNamespace(tokens=None), torch.arange(32))

    def teacher(cond):
        return lambda x, t: task.teacher()(x, t, cond)

    def perfect(x, t, cond):
        found = torch.empty_like(x)
        for first in (0, 2):
            rows = t == times[first]
            t1, t2, t3 = (time.expand(int(rows.sum())) for time in times[first : first + 3])
            steps = SimpleNamespace(t=t1, following=t2, end=t3)
            found[rows] = implied_x0(process, x[rows], t1, two_steps(teacher(cond), process, x[rows], steps), t3)
        return found

    def loss(model):
        return progressive_loss(task, teacher, times, torch.Generator().manual_seed(1))(model, batch)

    assert loss(perfect) < 1e-15
    assert loss(lambda x, t, cond: teacher(cond)(x, t)) > 1e-3


def test_the_updates_are_shared_by_the_rounds(run):
    found = run("diffusion/progressive_distill", "ring", first=4)
    assert found.outcome.cost["steps"] == 12
    assert all(len(found.column(f"n{count}/loss")) == 4 for count in (4, 2, 1))
    assert found.outcome.metrics["nfe"] == 1
    few = run("diffusion/progressive_distill", "ring", first=4, last=2)
    assert few.outcome.metrics["nfe"] == 2
    assert len(few.column("n2/loss")) == 6
    # a row of the first round asks the teacher twice, and no other round asks it
    assert few.outcome.cost["teacher_queries"] == 2 * 6 * 16
