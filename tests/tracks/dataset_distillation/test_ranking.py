"""Scores that do not credit images for labels or augmentation."""

from __future__ import annotations

import math

import pytest

from kdbench.tracks.dataset_distillation.evaluate.ranking import augmentation_robust_score, label_robust_score


def test_the_ends_of_the_scale():
    assert label_robust_score(0.0, 0.0, 1.0, 0.0, w=1.0) == pytest.approx(1)
    assert label_robust_score(1.0, 0.0, 0.0, 0.0, w=0.0) == pytest.approx(0)
    middle = (1 - math.exp(-1)) / (math.e - math.exp(-1))
    assert label_robust_score(0.9, 0.9, 0.7, 0.7) == pytest.approx(middle)
    assert augmentation_robust_score(0.5, 0.5, 0.4, 0.4) == pytest.approx(middle)


def test_better_labels_alone_gain_nothing():
    poor = label_robust_score(0.9, 0.5, 0.6, 0.5)
    rich = label_robust_score(0.9, 0.5, 0.8, 0.7)
    assert rich == pytest.approx(poor)
    assert label_robust_score(0.9, 0.6, 0.6, 0.5) > poor, "better images with hard labels do"


def test_both_halves_count():
    assert augmentation_robust_score(0.7, 0.5, 0.4, 0.4) == pytest.approx(augmentation_robust_score(0.6, 0.5, 0.5, 0.4))
    assert augmentation_robust_score(0.7, 0.5, 0.4, 0.4, g=1.0) > augmentation_robust_score(0.7, 0.5, 0.4, 0.4, g=0.0)
