"""Independent codes as a baseline."""

from __future__ import annotations

import pytest


def test_it_learns_from_sequences_of_the_teacher(run):
    found = run("diffusion/independent_codes", "codes-pair")
    assert found.outcome.metrics["nfe"] == 1
    assert 0 < found.outcome.metrics["sequence_tv"] <= 1
    assert found.outcome.cost["steps"] == 12
    assert found.outcome.cost["teacher_queries"] == 12 * 8 * 2
    real = run("diffusion/independent_codes", "codes-pair", data=True)
    assert real.outcome.cost["real_images"] == 12 * 8
    assert "teacher_queries" not in real.outcome.cost


def test_the_teacher_is_at_zero(run):
    assert run("diffusion/teacher", "codes-pair").outcome.metrics["sequence_tv"] == pytest.approx(0, abs=1e-12)


def test_an_interrupted_training_goes_on(interrupted):
    interrupted("diffusion/independent_codes", "codes", 5)
