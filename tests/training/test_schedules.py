"""Weights over training, and averages that are logged along."""

import pytest
import torch

from kdbench.training.schedules import CosineRamp, Ramp, Watch


def values(ramp, steps):
    made = []
    for step in range(1, steps + 1):
        made.append(ramp.value)
        ramp(step)
    return made


def test_ramp_rises_linearly_and_stays():
    assert values(Ramp(10, 0.4), 10) == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 7)
    assert values(Ramp(10, 0.0), 3) == [1.0] * 3


def test_cosine_ramp_starts_at_zero():
    made = values(CosineRamp(10, 0.5), 10)
    assert made[0] == 0
    assert made == sorted(made)
    assert made[5:] == [1.0] * 5
    assert values(CosineRamp(10, 0.0), 2) == [1.0, 1.0]


def test_watch_logs_means():
    class Log:
        rows: list = []

        def log(self, step, **values):
            self.rows.append((step, {name: float(value) for name, value in values.items()}))

    watch = Watch(Log(), 100, prefix="x/")
    for step in range(1, 5):
        watch.add(std=torch.tensor(float(step)))
        watch(step)
    assert Log.rows == [(2, {"x/std": 1.5}), (4, {"x/std": 3.5})]
